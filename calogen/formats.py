"""Layouts of data files: our own, and those other people write, described so that one reader opens them all.

A layout is found from a file's header alone. It says which datasets hold the voxels and the physics parameters, in
which units they are stored, and what the numbers must be multiplied by to be in the family's own units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .binning import family_from_binning, resolve_family_source
from .errors import CalogenError, ShardError, did_you_mean
from .families import FAMILIES, Family, resolve_family
from .hdf5 import checked_dataset, open_file, outside
from .stacks import SUFFIX, Stack, beside_of

__all__ = [
    "INDEX_EXTRAS",
    "SCHEMA",
    "Column",
    "Layout",
    "family_from_binning",
    "open_rows",
    "read_layout",
    "resolve_family_source",
]

SCHEMA = 1
INDEX_EXTRAS = ("realisation_id", "weights")
"""Optional per-sample datasets that are carried along and never modelled."""

_UNIT_IN_MEV = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
_LAYOUTS = (
    "calogen or CaloChallenge: 'showers' and 'incident_energies'; "
    "CaloGAN: 'layer_0', 'layer_1', ... and 'energy'; maps: 'maps' and 'params', or a NumPy stack as of CAMELS"
)


@dataclass(frozen=True)
class Column:
    """One physics parameter in a file.

    Attributes:
        name: The condition's name.
        dataset: The dataset that holds it; empty where all samples have the first label.
        column: Its column in that dataset; None if the dataset holds nothing else.
        factor: What the stored numbers are multiplied by to be in the condition's unit.
        labels: What the numbers 0, 1, ... stand for in this file, where they stand for labels.
    """

    name: str
    dataset: str
    column: int | None = None
    factor: float = 1.0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one file holds its samples.

    Attributes:
        name: ``calogen``, ``calogan``, ``calochallenge``, ``maps`` or ``stack``.
        family: The family of the samples.
        kind: ``reference`` or ``generated``.
        length: Samples in the file (N).
        values: Datasets of the voxels in the family's order; several when each layer has its own.
        factor: What stored voxels are multiplied by to be in the family's unit.
        conditions: Where each physics parameter is.
        extras: Optional per-sample datasets present.
        index_start: Global index of the first sample.
        provenance: Where the samples come from, as far as the file says.
        notes: Conversions that reading does, in words.
        parameters: The file beside a stack that holds its parameters.
    """

    name: str
    family: Family
    kind: str
    length: int
    values: tuple[str, ...]
    factor: float = 1.0
    conditions: tuple[Column, ...] = ()
    extras: tuple[str, ...] = ()
    index_start: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parameters: Path | None = None


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


# ---------------------------------------------------------------------------------------------------- layouts


def _calogan(file: h5py.File, path: Path, family: Family | None) -> Layout:
    """CaloGAN (arXiv:1705.02355): one dataset a layer in MeV, ``energy`` in GeV, ``overflow`` in MeV."""
    family = family or FAMILIES["calogan"]
    if family.kind != "calorimeter":
        raise ShardError("the file holds showers", where=path, expected=f"samples of family '{family.name}'")
    values = tuple(f"layer_{number}" for number in family.layer_numbers)
    length = None
    for name, layer in zip(values, family.layers, strict=True):
        length = checked_dataset(file, path, name, (length, *layer.shape)).shape[0]
    surplus = sorted(name for name in file if name.startswith("layer_") and name not in values)
    if surplus:
        raise ShardError("the file has more layers than the family", where=path, expected=values, found=surplus)
    checked_dataset(file, path, "energy", (length,), column=True)
    condition, notes = family.conditions[0], list[str]()
    energy_factor = _factor(file, path, "energy_unit", "GeV", condition.unit, notes)
    columns = [Column(condition.name, "energy", None, energy_factor)]
    columns += _further_conditions(file, path, family, length)
    factor = _factor(file, path, "cell_unit", "MeV", family.unit, notes)
    if "overflow" in set(file):
        notes.append("overflow (energy beside the cells) is not modelled and not read")
    return Layout(
        name="calogan",
        family=family,
        kind="reference",
        length=int(length or 0),
        values=values,
        factor=factor,
        conditions=tuple(columns),
        notes=tuple(notes),
    )


def _showers(file: h5py.File, path: Path, family: Family | None, native: bool) -> Layout:
    """CaloChallenge (arXiv:2410.21611) and our own: ``showers`` (N, V) and ``incident_energies`` (N, 1) in MeV."""
    showers = checked_dataset(file, path, "showers", (None, None))
    length, voxels = showers.shape
    if family is None:
        family = _family_of_voxels(path, voxels)
    if family.kind != "calorimeter" or voxels != family.voxels:
        raise ShardError(
            "the number of voxels is not the family's",
            where=f"{path}, dataset showers",
            expected=f"{family.voxels} voxels (family '{family.name}')",
            found=f"{voxels} voxels",
        )
    columns, notes = list[Column](), list[str]()
    unconditional = native and not _names(file, "condition_names")
    if "incident_energies" in set(file) or not unconditional:
        condition = family.conditions[0]
        checked_dataset(file, path, "incident_energies", (length,), column=True)
        default = condition.unit if native else "MeV"
        energy_factor = _factor(file, path, "energy_unit", default, condition.unit, notes)
        columns.append(Column(condition.name, "incident_energies", None, energy_factor))
    columns += _further_conditions(file, path, family, length)
    _check_names(file, path, [column.name for column in columns])
    factor = _factor(file, path, "cell_unit", family.unit if native else "MeV", family.unit, notes)
    return Layout(
        name="calogen" if native else "calochallenge",
        family=family,
        kind="reference",
        length=length,
        values=("showers",),
        factor=factor,
        conditions=tuple(columns),
        notes=tuple(notes),
    )


def _maps(file: h5py.File, path: Path, family: Family | None, native: bool) -> Layout:
    """Density maps: ``maps`` (N, H, W), ``params`` (N, C) and the names of its columns as an attribute."""
    maps = checked_dataset(file, path, "maps", (None, None, None))
    length, *pixels = maps.shape
    box = file.attrs.get("box_size")
    family = _family_of_maps(f"{path}, dataset maps", tuple(pixels), None if box is None else float(box), family)
    names = _names(file, "condition_names" if "condition_names" in file.attrs else "param_names")
    if names is None and "params" in set(file):
        raise ShardError(
            "the columns of params have no names",
            where=f"{path}, attribute param_names",
            expected="one name a column: conditions are matched by name, never by position",
            hint=f"write the attribute; family '{family.name}' knows {[c.name for c in family.conditions]}",
        )
    if names:
        checked_dataset(file, path, "params", (length, len(names)))
        _check_known(path, family, names)
    return Layout(
        name="calogen" if native else "maps",
        family=family,
        kind="reference",
        length=length,
        values=("maps",),
        conditions=tuple(Column(name, "params", index) for index, name in enumerate(names or ())),
    )


def _stack(path: Path, family: Family | None, parameters: Path, *, assumed: bool) -> Layout:
    """A NumPy stack of maps with a parameter file; without names its columns are the family's, in order."""
    stack = Stack.open(path, parameters)
    length, *pixels = stack.maps.shape
    family = _family_of_maps(path, tuple(pixels), None, family)
    known = [condition.name for condition in family.conditions]
    columns = list(stack.header or known)[: stack.parameters.shape[1]]
    if not set(columns) & set(known):
        raise ShardError(
            "no column of the parameter file is a condition of the family",
            where=parameters,
            expected=f"among its columns: {', '.join(known)} (family '{family.name}')",
            found=", ".join(columns),
        )
    surplus = stack.parameters.shape[1] - sum(name in known for name in columns)
    row = f"map i belongs to row i // {stack.each}" if stack.each > 1 else "one row a map"
    notes = [
        f"parameters from {parameters.name}: {row}" + (f"; {surplus} of its columns are not used" if surplus else ""),
        f"maps divided by the mean of their simulation's maps ({len(stack.bounds) - 1} simulations): 1 + delta",
    ]
    if assumed and family.box_size:
        notes.append(f"the file does not say its box: that of family '{family.name}', {family.box_size:g} Mpc/h")
    return Layout(
        name="stack",
        family=family,
        kind="reference",
        length=length,
        values=("maps",),
        conditions=tuple(Column(name, "params", index) for index, name in enumerate(columns) if name in known),
        extras=("realisation_id",),
        provenance={"file": path.name, "parameters": parameters.name},
        notes=tuple(notes),
        parameters=parameters,
    )


def _family_of_maps(where: object, pixels: tuple[int, ...], box: float | None, family: Family | None) -> Family:
    """The family given, or the only built-in one with such maps; checked against their size."""
    if family is None:
        maps = [known for known in FAMILIES.values() if known.pixels]
        fits = [f for f in maps if f.pixels == pixels and (box is None or math.isclose(box, f.box_size))]
        if len(fits) != 1:
            raise ShardError(
                "no built-in family has maps like these",
                where=where,
                expected=", ".join(f"{f.name}: {f.pixels}, box {f.box_size:g} Mpc/h" for f in maps),
                found=f"{pixels}, box {'unknown' if box is None else f'{box:g} Mpc/h'}",
                hint="describe the maps in a [family] table",
            )
        return fits[0]
    if family.pixels != pixels:
        raise ShardError(
            "the maps have another size than the family's",
            where=where,
            expected=f"{family.pixels or 'showers'} (family '{family.name}')",
            found=pixels,
        )
    if box is not None and family.box_size and not math.isclose(box, family.box_size):
        raise ShardError(
            "the maps have another box size than the family",
            where=where,
            expected=f"{family.box_size:g} Mpc/h",
            found=f"{box:g} Mpc/h",
        )
    return family


def _family_of_voxels(path: Path, voxels: int) -> Family:
    fits = [family for family in FAMILIES.values() if family.kind == "calorimeter" and family.voxels == voxels]
    if len(fits) == 1:
        return fits[0]
    known = ", ".join(f"{f.voxels} ({f.name})" for f in FAMILIES.values() if f.kind == "calorimeter")
    raise ShardError(
        "no built-in family has showers of this size",
        where=f"{path}, dataset showers",
        expected=f"one of {known}",
        found=f"{voxels} voxels",
        hint="name the family: a binning XML file or a [family] table",
    )


def _further_conditions(file: h5py.File, path: Path, family: Family, length: int | None) -> list[Column]:
    link = file.get("conditions", getlink=True)
    if link is None:
        return []
    if not isinstance(link, h5py.HardLink):
        raise outside(path, "conditions", "a link")
    names = sorted(file["conditions"])
    _check_known(path, family, names)
    for name in names:
        checked_dataset(file, path, f"conditions/{name}", (length,), column=True)
    return [Column(name, f"conditions/{name}") for name in names]


def _check_known(path: Path, family: Family, names: list[str]) -> None:
    known = [condition.name for condition in family.conditions]
    for name in names:
        if name not in known:
            raise ShardError(
                f"family '{family.name}' has no condition '{name}'",
                where=path,
                expected=", ".join(known),
                found=name,
                hint=did_you_mean(name, known),
            )


def _check_names(file: h5py.File, path: Path, found: list[str]) -> None:
    names = _names(file, "condition_names")
    if names is not None and set(names) != set(found):
        raise ShardError(
            "the conditions the file names are not the ones it holds",
            where=f"{path}, attribute condition_names",
            expected=names,
            found=found,
        )


def _check_units(file: h5py.File, path: Path, layout: Layout) -> None:
    names, units = _names(file, "condition_names"), _names(file, "condition_units")
    for name, unit in zip(names or (), units or (), strict=False):
        expected = layout.family.condition(name).unit
        if unit != expected:
            raise ShardError(
                f"'{name}' is stored in another unit than the family's",
                where=f"{path}, attribute condition_units",
                expected=expected or "no unit",
                found=unit or "no unit",
            )


def _names(file: h5py.File, attribute: str) -> list[str] | None:
    if attribute not in file.attrs:
        return None
    values = np.atleast_1d(np.asarray(file.attrs[attribute], dtype=object)).ravel()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _factor(file: h5py.File, path: Path, attribute: str, default: str, wanted: str, notes: list[str]) -> float:
    """What stored energies are multiplied by to be in the unit wanted; a conversion is noted."""
    if wanted not in _UNIT_IN_MEV:  # a family of the user's own, in a unit of its own
        return 1.0
    unit = file.attrs.get(attribute, default)
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    if unit not in _UNIT_IN_MEV:
        raise ShardError(
            "unknown energy unit",
            where=f"{path}, attribute {attribute}",
            expected=", ".join(_UNIT_IN_MEV),
            found=unit,
        )
    if unit != wanted:
        what = "incident energies" if attribute == "energy_unit" else "voxels"
        notes.append(f"{what} converted from {unit} to {wanted}")
    return _UNIT_IN_MEV[unit] / _UNIT_IN_MEV[wanted]
