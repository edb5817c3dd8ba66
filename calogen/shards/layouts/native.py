"""Showers in one dataset, as in CaloChallenge's files (arXiv:2410.21611) and in calogen's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...families import FAMILIES, Family, conversion
from ..hdf5 import outside
from ..samples import Samples
from .header import Header
from .layout import Column, Format, Layout


class Showers(Format):
    """``showers`` (N, V) and ``incident_energies`` (N, 1): CaloChallenge's in MeV, calogen's in the family's units.

    Attributes:
        energies: The dataset of the incident energies, (N,) or (N, 1).
        energy_unit: Their unit where a file does not say another; empty: the family's.
        cell_unit: The same of the voxels.
    """

    written = "native"
    kind = "calorimeter"
    marker = "showers"
    datasets = "calogen or CaloChallenge: 'showers' and 'incident_energies'"
    energies: ClassVar[str] = "incident_energies"
    energy_unit: ClassVar[str] = ""
    cell_unit: ClassVar[str] = ""

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        length, voxels = header.dataset(self.marker, (None, None)).shape
        where = f"{header.path}, dataset {self.marker}"
        family = header.family or _family_of_voxels(where, voxels)
        if family.kind != self.kind or voxels != family.voxels:
            raise ShardError(
                "the number of voxels is not the family's",
                where=where,
                expected=f"{family.voxels} voxels (family '{family.name}')",
                found=f"{voxels} voxels",
            )
        name = "calogen" if header.native else "calochallenge"
        conditional = not header.native or bool(header.names("condition_names"))
        layout = self.layout(header, name, family, length, (self.marker,), conditional=conditional)
        header.require_units(family)
        return layout

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """See :class:`.layout.Format`."""
        yield self.marker, samples.values
        yield from self.condition_columns(samples)

    def condition_columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """The datasets of the conditions."""
        energy = samples.family.energy
        for name, values in samples.conditions.items():
            if energy is None or name != energy.name:
                yield f"conditions/{name}", values
            elif self.energy_unit:
                factor = conversion(self.energy_unit, energy.unit)
                yield self.energies, (values[:, None].astype(np.float64) / factor).astype(np.float32)
            else:
                yield self.energies, values[:, None]

    def layout(
        self, header: Header, name: str, family: Family, length: int, values: tuple[str, ...], *, conditional: bool
    ) -> Layout:
        """The layout of a file whose voxels have been found.

        Args:
            header: Of the file.
            name: Of the layout.
            family: What the samples are.
            length: How many samples there are (N).
            values: The datasets of their voxels.
            conditional: Whether it must have incident energies.
        """
        default = "" if header.native else "MeV"
        factor, cells = header.energy_factor("cell_unit", self.cell_unit or default or family.unit, family.unit)
        columns, notes = list[Column](), {"voxels": cells}
        if (energy := family.energy) is not None and (conditional or self.energies in header.found):
            header.dataset(self.energies, (length,), column=True)
            unit = self.energy_unit or default or energy.unit
            energy_factor, energies = header.energy_factor("energy_unit", unit, energy.unit)
            columns.append(Column(energy.name, self.energies, factor=energy_factor))
            notes = {"incident energies": energies, **notes}
        columns += _further_conditions(header, family, length)
        found, named = [column.name for column in columns], header.names("condition_names")
        if named is not None and set(named) != set(found):
            raise ShardError(
                "the conditions the file names are not the ones it holds",
                where=header.at("condition_names"),
                expected=named,
                found=found,
            )
        return Layout(
            name,
            family,
            length,
            values,
            factor,
            tuple(columns),
            notes=tuple(f"{what} {note}" for what, note in notes.items() if note),
        )


def _further_conditions(header: Header, family: Family, length: int) -> list[Column]:
    """The conditions in the group ``conditions``, one dataset each."""
    link = header.file.get("conditions", getlink=True)
    if link is None:
        return []
    if not isinstance(link, h5py.HardLink):
        raise outside(header.path, "conditions", "a link")
    names = sorted(header.file["conditions"])
    header.require_known(family, names)
    for name in names:
        header.dataset(f"conditions/{name}", (length,), column=True)
    return [Column(name, f"conditions/{name}") for name in names]


def _family_of_voxels(where: str, voxels: int) -> Family:
    """The only built-in family with so many voxels."""
    known = [family for family in FAMILIES.values() if family.kind == Showers.kind]
    fits = [family for family in known if family.voxels == voxels]
    if len(fits) == 1:
        return fits[0]
    raise ShardError(
        "no built-in family has showers of this size",
        where=where,
        expected=f"one of {', '.join(f'{family.voxels} ({family.name})' for family in known)}",
        found=f"{voxels} voxels",
        hint="name the family: a binning XML file or a [family] table",
    )
