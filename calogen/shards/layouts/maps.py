"""Density maps in HDF5."""

from __future__ import annotations

import math
from pathlib import Path

import h5py

from ...errors import ShardError
from ...families import FAMILIES, Family
from ..hdf5 import checked_dataset
from .layout import Column, Layout, _check_known, _names


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
