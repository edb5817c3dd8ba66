"""What a layout of a data file says: which datasets hold voxels and conditions, in which units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import ShardError, did_you_mean
from ...families import Family
from ..hdf5 import checked_dataset, outside

SCHEMA = 1
INDEX_EXTRAS = ("realisation_id", "weights")
"""Optional per-sample datasets that are carried along and never modelled."""
_UNIT_IN_MEV = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}


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
