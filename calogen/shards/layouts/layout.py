"""What a file format is: how the header of a file says where its samples are, and how samples are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError, did_you_mean
from ...families import ENERGY_UNITS, Family, conversion, is_energy
from ..hdf5 import checked_dataset, outside
from ..samples import Samples


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
        length: Samples in the file (N).
        values: Datasets of the voxels in the family's order; several when each layer has its own.
        factor: What stored voxels are multiplied by to be in the family's unit.
        conditions: Where each physics parameter is.
        kind: ``reference`` or ``generated``.
        extras: Optional per-sample datasets present.
        index_start: Global index of the first sample.
        provenance: Where the samples come from, as far as the file says.
        notes: Conversions that reading does, for people.
        parameters: The file beside a stack that holds its parameters.
    """

    name: str
    family: Family
    length: int
    values: tuple[str, ...]
    factor: float = 1.0
    conditions: tuple[Column, ...] = ()
    kind: str = "reference"
    extras: tuple[str, ...] = ()
    index_start: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parameters: Path | None = None


@dataclass(frozen=True)
class Header:
    """The header of an open HDF5 file.

    Attributes:
        file: The file.
        path: Its path, for messages.
        family: What the samples are, as asked for or as the file says; None: the format must find out.
        native: Whether calogen wrote it.
    """

    file: h5py.File
    path: Path
    family: Family | None
    native: bool

    @property
    def found(self) -> set[str]:
        """Names of datasets, groups and links at the root; no link is followed."""
        return set(self.file)

    def dataset(
        self, name: str, shape: tuple[int | None, ...], *, column: bool = False, kinds: str = "f"
    ) -> h5py.Dataset:
        """A dataset after the checks of :func:`calogen.shards.hdf5.checked_dataset`."""
        return checked_dataset(self.file, self.path, name, shape, column=column, kinds=kinds)

    def at(self, attribute: str) -> str:
        """Where an attribute is, for messages."""
        return f"{self.path}, attribute {attribute}"

    def names(self, attribute: str) -> list[str] | None:
        """The texts of an attribute; None if there is none of that name."""
        if attribute not in self.file.attrs:
            return None
        values = np.atleast_1d(np.asarray(self.file.attrs[attribute], dtype=object)).ravel()
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]

    def energy_factor(self, attribute: str, default: str, wanted: str) -> tuple[float, str | None]:
        """What stored energies are multiplied by to be in the unit wanted; and a note, if that converts them.

        Args:
            attribute: Where the file may say its unit.
            default: The unit where it does not.
            wanted: The family's; one that is no energy is left alone.

        Raises:
            ShardError: If the file says a unit that is no energy.
        """
        if not is_energy(wanted):
            return 1.0, None
        unit = self.file.attrs.get(attribute, default)
        unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
        if not is_energy(unit):
            known = ", ".join(ENERGY_UNITS)
            raise ShardError("unknown energy unit", where=self.at(attribute), expected=known, found=unit)
        return conversion(unit, wanted), f"converted from {unit} to {wanted}" if unit != wanted else None

    def further_conditions(self, family: Family, length: int) -> list[Column]:
        """The conditions in the group ``conditions``, one dataset each.

        Raises:
            ShardError: If the family has no such condition, or a dataset is not (N,) numbers.
        """
        link = self.file.get("conditions", getlink=True)
        if link is None:
            return []
        if not isinstance(link, h5py.HardLink):
            raise outside(self.path, "conditions", "a link")
        names = sorted(self.file["conditions"])
        self.require_known(family, names)
        for name in names:
            self.dataset(f"conditions/{name}", (length,), column=True)
        return [Column(name, f"conditions/{name}") for name in names]

    def require_known(self, family: Family, names: Sequence[str]) -> None:
        """Refuse conditions that the family does not have."""
        known = [condition.name for condition in family.conditions]
        for name in names:
            if name not in known:
                raise ShardError(
                    f"family '{family.name}' has no condition '{name}'",
                    where=self.path,
                    expected=", ".join(known),
                    found=name,
                    hint=did_you_mean(name, known),
                )

    def require_units(self, family: Family) -> None:
        """Refuse conditions that the file says are in other units than the family's."""
        for name, unit in zip(self.names("condition_names") or (), self.names("condition_units") or (), strict=False):
            expected = family.condition(name).unit
            if unit != expected:
                raise ShardError(
                    f"'{name}' is stored in another unit than the family's",
                    where=self.at("condition_units"),
                    expected=expected or "no unit",
                    found=unit or "no unit",
                )


class Format:
    """A way to hold samples in HDF5 files: how they are read and written. A new one is a subclass in ``find.FORMATS``.

    Attributes:
        written: What it is called where samples are written; empty if calogen only reads it.
        kind: Of the families whose samples it holds.
        marker: The dataset by which a file of this format is known.
        datasets: What a file of it holds, for messages.
    """

    written: ClassVar[str] = ""
    kind: ClassVar[Literal["calorimeter", "map"]]
    marker: ClassVar[str]
    datasets: ClassVar[str]

    def read(self, header: Header) -> Layout:
        """Where a file of this format has its samples and conditions, from its header alone.

        Raises:
            ShardError: If datasets are missing, or do not fit the family or each other.
        """
        raise NotImplementedError

    def require(self, family: Family, conditions: Sequence[str]) -> None:
        """Refuse to write samples that the format cannot hold.

        Raises:
            ConfigError: If it cannot.
        """

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """The datasets to write: names and rows, (N, ...) each."""
        raise NotImplementedError

    def attributes(self, family: Family) -> dict[str, str]:  # noqa: ARG002
        """Root attributes to write, beside those of :mod:`.attributes`."""
        return {}
