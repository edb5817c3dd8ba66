"""The root attributes of calogen's own files, whatever their format: written and read side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import h5py
import numpy as np

from ...errors import CalogenError, ShardError
from ...families import FAMILIES, Family, resolve_family
from ..samples import Samples
from .layout import Header

SCHEMA = 1
"""Version of the files that calogen writes; newer ones are refused."""


def write_attributes(file: h5py.File, samples: Samples, provenance: Mapping[str, Any], index_start: int) -> None:
    """Say in a file what it holds.

    Args:
        file: The open file.
        samples: Some of those it holds.
        provenance: Where they come from: JSON-able.
        index_start: Global index of the first of them.
    """
    family, names = samples.family, list(samples.conditions)
    file.attrs.update(
        calogen_schema=SCHEMA,
        kind=samples.kind,
        family=family.model_dump_json(),
        provenance=json.dumps(dict(provenance), sort_keys=True),
        index_start=index_start,
    )
    units = [family.condition(name).unit for name in names]
    for attribute, texts in (("condition_names", names), ("condition_units", units)):
        file.attrs.create(attribute, np.array(texts, dtype=object), dtype=h5py.string_dtype())


def require_schema(header: Header) -> None:
    """Refuse a file that a newer calogen wrote."""
    schema = header.file.attrs.get("calogen_schema", SCHEMA)
    if not (isinstance(schema, int | np.integer) and 1 <= schema <= SCHEMA):
        raise ShardError(
            "the file was written by a newer calogen" if np.isscalar(schema) else "the file's schema is not a number",
            where=header.at("calogen_schema"),
            expected=f"at most {SCHEMA}",
            found=schema,
            hint="update calogen",
        )


def stored_family(header: Header) -> Family | None:
    """The family that a file says it holds; None if it does not say."""
    text = header.file.attrs.get("family")
    if text is None:
        return None
    try:
        return _parse_family(str(text))
    except (CalogenError, ValueError) as error:
        found = error.what if isinstance(error, CalogenError) else str(error)
    raise ShardError("the file's family cannot be understood", where=header.at("family"), found=found)


@lru_cache(maxsize=64)  # thousands of shards carry the same text
def _parse_family(text: str) -> Family:
    table = FAMILIES[text] if text in FAMILIES else json.loads(text)
    if not isinstance(table, Family | dict):
        raise ValueError("it is not a table")
    return resolve_family(table)


def stored_kind(header: Header) -> str:
    """``reference`` or ``generated``."""
    kind = str(header.file.attrs.get("kind", "reference"))
    if kind not in ("reference", "generated"):
        expected = "reference or generated"
        raise ShardError("unknown kind of samples", where=header.at("kind"), expected=expected, found=kind)
    return kind


def stored_provenance(header: Header) -> dict[str, Any]:
    """Where the samples come from: of foreign files, every short attribute that says something about it."""
    text = header.file.attrs.get("provenance")
    if text is None:
        plain = {str(name): _plain(value) for name, value in header.file.attrs.items()}
        return {name: value for name, value in plain.items() if value is not None}
    try:
        table = json.loads(str(text))
    except ValueError as error:
        raise ShardError("the provenance is not JSON", where=header.at("provenance"), found=str(error)) from None
    return table if isinstance(table, dict) else {"provenance": table}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:1000]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value[:1000]
    return value if isinstance(value, bool | int | float) else None
