"""CaloGAN's files (arXiv:1705.02355)."""

from __future__ import annotations

from pathlib import Path

import h5py

from ...errors import ShardError
from ...families import FAMILIES, Family
from ..hdf5 import checked_dataset
from .layout import Column, Layout, _factor, _further_conditions


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
