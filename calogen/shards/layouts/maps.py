"""Density maps in HDF5."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import Reading
from ...errors import ShardError
from ...families import FAMILIES, Family
from ..samples import LOW, Samples
from .header import Header
from .layout import Column, Format, Layout

UNUSED = "_"
"""Stands for a column of parameters that is not used, where columns are named."""


class Maps(Format):
    """``maps`` (N, H, W), ``params`` (N, C) and the names of its columns as an attribute."""

    written = "native"
    kind = "map"
    marker = "maps"
    datasets = "maps: 'maps' and 'params', or a NumPy stack as of CAMELS"

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        length, *pixels = header.dataset(self.marker, (None, None, None)).shape
        said, reading = header.file.attrs.get("box_size"), header.reading
        reading = Reading() if header.native else reading
        box = reading.box if said is None else float(said)
        where = f"{header.path}, dataset {self.marker}"
        family = family_of_maps(where, (pixels[0], pixels[1]), box, header.family or header.like)
        if header.family is None and LOW in header.found:
            family = paired(family, header.dataset(LOW, (length, None, None)).shape[1:], header.path)
        assumed = header.family is None and box is None
        names = header.names("condition_names" if "condition_names" in header.file.attrs else "param_names")
        names = list(reading.columns) if names is None and reading.columns else names
        if names is None and "params" in header.found:
            raise ShardError(
                "the columns of params have no names",
                where=header.at("param_names"),
                expected="one name a column: conditions are matched by name, never by position",
                hint=f"write the attribute, or say `columns`; family '{family.name}' knows "
                f"{[c.name for c in family.conditions]}",
            )
        if names:
            header.dataset("params", (length, len(names)))
            header.require_known(family, [name for name in names if name != UNUSED])
        header.require_units(family)
        columns = tuple(Column(name, "params", i, said=True) for i, name in enumerate(names or ()) if name != UNUSED)
        notes = [f"the file does not say its box: that of family '{family.name}', {family.box_size:g} Mpc/h"] * assumed
        found = Layout(
            "calogen" if header.native else "maps",
            family,
            length,
            (self.marker,),
            conditions=columns,
            notes=tuple(notes),
        )
        if header.native or not reading.maps_per_simulation:
            return found
        ids = np.arange(length) // reading.maps_per_simulation
        return replace(
            found,
            view=lambda file: {self.marker: file[self.marker], "params": file.get("params"), "realisation_id": ids},
        )

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """See :class:`.layout.Format`."""
        yield self.marker, samples.values
        if samples.conditions:
            yield "params", np.stack(list(samples.conditions.values()), axis=1)


def paired(family: Family, low: Sequence[int], where: object) -> Family:
    """The family with maps of low resolution of this size beside its own.

    Raises:
        ShardError: If the maps are no multiple of them.
    """
    try:
        return Family.model_validate({**family.model_dump(), "low_pixels": tuple(low)})
    except ValueError:
        raise ShardError(
            "the sizes of maps of high and low resolution do not go together",
            where=f"{where}, dataset {LOW}",
            expected=f"{family.pixels} pixels over the same whole number along both sides",
            found=tuple(low),
        ) from None


def plain_values(stored: NDArray[Any], reading: Reading) -> NDArray[Any]:
    """Maps whose logarithms are stored, or fields with negative values as positive ones; others as they are."""
    if reading.log10:
        with np.errstate(over="ignore"):
            return np.asarray(np.power(10.0, stored, dtype=np.float64))
    return np.exp(np.asarray(stored, np.float64) / reading.signed) if reading.signed else stored


def family_of_maps(
    where: object, pixels: tuple[int, int], box: float | None, family: Family | None, depth: float = 0.0
) -> Family:
    """The family given, a built-in one with such maps, or one of maps like these; checked against their size.

    Args:
        where: The dataset or file, for messages.
        pixels: Height and width of the maps.
        box: Side in Mpc/h; None: nothing says.
        family: What the maps are, where that is known.
        depth: What they are projected through in Mpc/h, where that is known.

    Raises:
        ShardError: If nothing says how wide they are, or the maps are not the family's.
    """
    if family is None:
        maps = [known for known in FAMILIES.values() if known.pixels]
        fits = [f for f in maps if f.pixels == pixels and box is not None and math.isclose(box, f.box_size)]
        if fits:
            return fits[0]
        if box is None or pixels[0] != pixels[1]:
            what = "how wide the maps are" if box is None else "what the maps are"
            raise ShardError(
                f"nothing says {what}: no built-in family has maps like these",
                where=where,
                expected=", ".join(f"{f.name}: {f.pixels}, box {f.box_size:g} Mpc/h" for f in maps),
                found=f"{pixels}, box {'unknown' if box is None else f'{box:g} Mpc/h'}",
                hint="say the side in Mpc/h, `box=25`, or name their `family`",
            )
        like = max(maps, key=lambda known: len(known.conditions))
        name, about = f"maps-{pixels[0]}-{box:g}", f"Maps of {pixels[0]} x {pixels[1]} pixels, {box:g} Mpc/h wide"
        size = {"pixels": pixels, "box_size": box, "depth": depth}
        return like.model_copy(update={"name": name, "description": about, **size})
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
