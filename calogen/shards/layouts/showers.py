"""Showers as in calogen's own shards and in CaloChallenge's files (arXiv:2410.21611)."""

from __future__ import annotations

from pathlib import Path

import h5py

from ...errors import ShardError
from ...families import FAMILIES, Family
from ..hdf5 import checked_dataset
from .layout import Column, Layout, _check_names, _factor, _further_conditions, _names


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
