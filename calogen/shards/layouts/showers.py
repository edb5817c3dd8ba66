"""What the formats of showers share: a dataset of incident energies, units as attributes, further conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...families import Family, conversion
from ..samples import Samples
from .layout import Column, Format, Header, Layout


class ShowerFormat(Format):
    """A format of showers.

    Attributes:
        energies: The dataset of the incident energies, (N,) or (N, 1).
        energy_unit: Their unit where a file does not say another; empty: the family's.
        cell_unit: The same of the voxels.
    """

    kind = "calorimeter"
    energies: ClassVar[str]
    energy_unit: ClassVar[str] = ""
    cell_unit: ClassVar[str] = ""

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """The conditions; formats add the voxels."""
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
        columns += header.further_conditions(family, length)
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
