"""Which layout a file has, from its header alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import CalogenError, ShardError
from ...families import FAMILIES, Family, resolve_family
from ..hdf5 import checked_dataset, open_file
from .calogan import _calogan
from .layout import INDEX_EXTRAS, SCHEMA, Layout, _check_units
from .maps import _maps
from .showers import _showers
from .stacks import SUFFIX, Stack, _stack, beside_of

_LAYOUTS = (
    "calogen or CaloChallenge: 'showers' and 'incident_energies'; "
    "CaloGAN: 'layer_0', 'layer_1', ... and 'energy'; maps: 'maps' and 'params', or a NumPy stack as of CAMELS"
)


@contextmanager
def open_rows(path: Path, layout: Layout) -> Iterator[h5py.File | Stack]:
    """Opens a file for reading rows of its datasets by name.

    Raises:
        ShardError: If it is missing, unreadable or truncated.
    """
    if layout.parameters is not None:
        yield Stack.open(path, layout.parameters)
        return
    with open_file(path) as file:
        yield file


def read_layout(
    path: Path, family: Family | None = None, parameters: Path | None = None, like: Family | None = None
) -> Layout:
    """Finds out how a file holds its samples, from its header; no sample is read.

    Args:
        path: An HDF5 file in any known layout, or a NumPy stack of maps.
        family: What the samples are, where the file itself does not say; checked against the file.
        parameters: The text file with a stack's parameters; looked for beside it when absent.
        like: What the samples are, where neither ``family`` nor the file says.

    Raises:
        ShardError: If the layout is unknown, shapes or types are wrong, or the file points outside itself.
    """
    if path.suffix == SUFFIX:
        return _stack(path, family or like, parameters or beside_of(path), assumed=family is None)
    with open_file(path) as file:
        try:
            return _find_layout(file, path, family, like)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ShardError("the file's header is damaged", where=path, found=str(error)) from None


def _find_layout(file: h5py.File, path: Path, family: Family | None, like: Family | None) -> Layout:
    schema = file.attrs.get("calogen_schema")
    if schema is not None and not (isinstance(schema, int | np.integer) and 1 <= schema <= SCHEMA):
        raise ShardError(
            "the file was written by a newer calogen" if np.isscalar(schema) else "the file's schema is not a number",
            where=f"{path}, attribute calogen_schema",
            expected=f"at most {SCHEMA}",
            found=schema,
            hint="update calogen",
        )
    stored = _stored_family(file, path)
    if stored is not None and family is not None and not stored.same_samples(family):
        raise ShardError(
            "the file holds another family than asked for", where=path, expected=family.name, found=stored.name
        )
    if family is not None and stored is not None:  # whose labels are part of the data, whatever else is asked for
        known = [c.name for c in family.conditions]
        for condition in (c for c in stored.conditions if c.labels and c.name not in known):
            family = family.with_condition(condition)
    names, family = set(file), family or stored or like
    if "layer_0" in names:
        layout = _calogan(file, path, family)
    elif "showers" in names:
        layout = _showers(file, path, family, schema is not None)
    elif "maps" in names:
        layout = _maps(file, path, family, schema is not None)
    else:
        found = ", ".join(sorted(names)[:12]) or "no datasets"
        raise ShardError("no known layout has these datasets", where=path, expected=_LAYOUTS, found=found)
    if not layout.length:
        raise ShardError("the file holds no samples", where=path, found="0 rows")
    if layout.name != "calogan":  # whose unit of energy is its own
        _check_units(file, path, layout)
    meaning = stored or layout.family
    columns = tuple(replace(column, labels=meaning.labels(column.name)) for column in layout.conditions)
    extras = tuple(name for name in INDEX_EXTRAS if name in names)
    for name in extras:
        checked_dataset(file, path, name, (layout.length,), kinds="iuf")
    kind = str(file.attrs.get("kind", "reference"))
    if kind not in ("reference", "generated"):
        raise ShardError(
            "unknown kind of samples", where=f"{path}, attribute kind", expected="reference or generated", found=kind
        )
    return replace(
        layout,
        kind=kind,
        conditions=columns,
        extras=extras,
        index_start=int(file.attrs.get("index_start", 0)),
        provenance=_provenance(file, path),
    )


def _stored_family(file: h5py.File, path: Path) -> Family | None:
    text = file.attrs.get("family")
    if text is None:
        return None
    try:
        return _parse_family(str(text))
    except CalogenError as error:
        found = error.what
    except ValueError as error:
        found = str(error)
    raise ShardError("the file's family cannot be understood", where=f"{path}, attribute family", found=found)


@lru_cache(maxsize=64)  # thousands of shards carry the same text
def _parse_family(text: str) -> Family:
    if text in FAMILIES:
        return FAMILIES[text]
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("it is not a table")
    return resolve_family(table)


def _provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    text = file.attrs.get("provenance")
    if text is None:  # foreign files: every short attribute says something about the origin
        plain = {str(name): _plain(value) for name, value in file.attrs.items()}
        return {name: value for name, value in plain.items() if value is not None}
    try:
        table = json.loads(str(text))
    except ValueError as error:
        raise ShardError(
            "the provenance is not JSON", where=f"{path}, attribute provenance", found=str(error)
        ) from None
    return table if isinstance(table, dict) else {"provenance": table}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:1000]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value[:1000]
    return value if isinstance(value, bool | int | float) else None
