"""Showers in one dataset, as in CaloChallenge's files (arXiv:2410.21611) and in calogen's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...families import FAMILIES, Condition, Family, conversion
from ..hdf5 import outside
from ..samples import Samples
from .header import Header
from .layout import Column, Format, Layout

_ENERGIES = ("incident_energy",)  # other names of the dataset
_ANGLES = {"theta": "incident_theta", "phi": "incident_phi"}


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
        shape = header.dataset(self.marker, None, kinds="iuf").shape
        where = f"{header.path}, dataset {self.marker}"
        if len(shape) not in (2, 4) or (len(shape) == 4 and header.native):
            raise _no_voxels(header, where, shape)
        length, voxels = shape[0], math.prod(shape[1:])
        family = header.family or header.like or family_of_voxels(where, voxels)
        if family.kind != self.kind or voxels != family.voxels:
            raise ShardError(
                "the number of voxels is not the family's",
                where=where,
                expected=f"{family.voxels} voxels (family '{family.name}')",
                found=f"{voxels} voxels",
                hint=None if header.native else "name their `family`: a binning XML file or a [family] table",
            )
        name = "calogen" if header.native else "calochallenge"
        conditional = not header.native or bool(header.names("condition_names"))
        layout = self.layout(header, name, family, length, (self.marker,), conditional=conditional)
        header.require_units(layout.family)
        if len(shape) == 2:
            return layout
        order = turned(family, shape[1:], where)
        note = f"showers turned from {shape[1:]} to layers, sectors and rings"
        return replace(layout.noted(note), view=lambda file: {**file, self.marker: Turned([file[self.marker]], order)})

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
        header = replace(header, one_unit=not self.energy_unit or self.energy_unit == self.cell_unit)
        factor, cells, _ = header.energy_factor("cell_unit", self.cell_unit or default or family.unit, family.unit)
        columns, notes = list[Column](), {"voxels": cells}
        stored = next((name for name in (self.energies, *_ENERGIES) if name in header.found), self.energies)
        if (energy := family.energy) is not None and (conditional or stored in header.found):
            header.dataset(stored, (length,), column=True, kinds="iuf")
            unit = self.energy_unit or default or energy.unit
            energy_factor, energies, said = header.energy_factor("energy_unit", unit, energy.unit)
            columns.append(Column(energy.name, stored, factor=energy_factor, said=said))
            notes = {"incident energies": energies, **notes}
        columns += _further_conditions(header, family, length)
        if not header.native:
            family, angles = _angles(header, family, length)
            columns += [column for column in angles if column.name not in [known.name for known in columns]]
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
    columns = []
    for name in names:
        dataset = header.dataset(f"conditions/{name}", (length,), column=True, kinds="iuf")
        unit, factor = family.condition(name).unit, 1.0
        said = header.native or header.names("condition_units") is not None or name in header.reading.unit
        if not header.native and unit in ("rad", "deg") and (name in header.reading.unit or "unit" in dataset.attrs):
            factor, said = header.angle_factor(dataset, name, unit), True
        columns.append(Column(name, f"conditions/{name}", factor=factor, said=said))
    return columns


def _angles(header: Header, family: Family, length: int) -> tuple[Family, list[Column]]:
    """Directions in datasets of their own, which become conditions of the family, too."""
    columns = []
    for name, stored in _ANGLES.items():
        if stored not in header.found:
            continue
        dataset = header.dataset(stored, (length,), column=True, kinds="iuf")
        own = next((c for c in family.conditions if c.name == name), None)
        factor = header.angle_factor(dataset, name, own.unit if own else "deg")
        if own is None:
            values = dataset[:] * factor
            low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
            family = family.with_condition(Condition(name=name, unit="deg", low=low, high=high))
        columns.append(Column(name, stored, factor=factor, said=True))
    return family, columns


@dataclass(frozen=True)
class Turned:
    """Showers (N, V) of a family in the order of its voxels, from datasets (n, ...) with their axes in another order.

    Attributes:
        parts: The datasets, one after another.
        order: Of their axes, the samples' first.
    """

    parts: Sequence[h5py.Dataset]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, V)."""
        return len(self), math.prod(self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is stored."""
        return np.result_type(*(part.dtype for part in self.parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Some showers, (n, V)."""
        start, stop, _ = rows.indices(len(self))
        found, first = [np.zeros((0, self.shape[1]), self.dtype)], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                found.append(part[low:high].transpose(self.order).reshape(high - low, -1))
            first += len(part)
        return np.concatenate(found)


def turned(family: Family, axes: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The order of axes that takes (R, phi, z), or (z, phi, R), to layers, sectors and rings.

    Raises:
        ShardError: If the family's layers are not alike, or have other numbers of rings and sectors.
    """
    shapes = {layer.shape for layer in family.layers}
    sectors, rings = next(iter(shapes)) if len(shapes) == 1 else (0, 0)
    layers = len(family.layers)
    if axes in ((rings, sectors, layers), (layers, sectors, rings)):
        return (0, 3, 2, 1) if axes == (rings, sectors, layers) else (0, 1, 2, 3)
    raise ShardError(
        "the axes of the showers are not the family's",
        where=where,
        expected=f"rings, sectors, layers: ({rings}, {sectors}, {layers}) (family '{family.name}')",
        found=axes,
    )


def _no_voxels(header: Header, where: str, shape: tuple[int, ...]) -> ShardError:
    """What files are whose showers are not in the cells of layers."""
    if "gen_info" in header.found:
        what = "this is the layout of the CMS HGCal challenge: layers of cells that are not those of a family"
        hint = "write the cells as layers of a [family] table, one dataset 'showers' (N, V), with 'incident_energies'"
    elif len(shape) == 3 and shape[2] in (3, 4, 5):
        what = "these are point clouds (CaloClouds, showerdata), which calogen does not model"
        hint = "sum the points in the cells of a [family] table, one dataset 'showers' (N, V), with 'incident_energies'"
    else:
        what, hint = "the dataset has the wrong shape", None
    return ShardError(what, where=where, expected="(N, V): voxels, layer by layer", found=shape, hint=hint)


def family_of_voxels(where: str, voxels: int) -> Family:
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
        hint="name their `family`: a binning XML file or a [family] table",
    )
