"""Density maps in HDF5."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...families import FAMILIES, Family
from ..samples import Samples
from .header import Header
from .layout import Column, Format, Layout


class Maps(Format):
    """``maps`` (N, H, W), ``params`` (N, C) and the names of its columns as an attribute."""

    written = "native"
    kind = "map"
    marker = "maps"
    datasets = "maps: 'maps' and 'params', or a NumPy stack as of CAMELS"

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        length, *pixels = header.dataset(self.marker, (None, None, None)).shape
        box = header.file.attrs.get("box_size")
        where = f"{header.path}, dataset {self.marker}"
        family = family_of_maps(where, tuple(pixels), None if box is None else float(box), header.family)
        names = header.names("condition_names" if "condition_names" in header.file.attrs else "param_names")
        if names is None and "params" in header.found:
            raise ShardError(
                "the columns of params have no names",
                where=header.at("param_names"),
                expected="one name a column: conditions are matched by name, never by position",
                hint=f"write the attribute; family '{family.name}' knows {[c.name for c in family.conditions]}",
            )
        if names:
            header.dataset("params", (length, len(names)))
            header.require_known(family, names)
        header.require_units(family)
        columns = tuple(Column(name, "params", index) for index, name in enumerate(names or ()))
        return Layout("calogen" if header.native else "maps", family, length, (self.marker,), conditions=columns)

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """See :class:`.layout.Format`."""
        yield self.marker, samples.values
        if samples.conditions:
            yield "params", np.stack(list(samples.conditions.values()), axis=1)


def family_of_maps(where: object, pixels: tuple[int, ...], box: float | None, family: Family | None) -> Family:
    """The family given, or the only built-in one with such maps; checked against their size.

    Args:
        where: The dataset or file, for messages.
        pixels: Height and width of the maps.
        box: Side in Mpc/h; None: the file does not say.
        family: What the maps are, where that is known.

    Raises:
        ShardError: If there is no such family, or the maps are not its own.
    """
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
