"""What a file format is: where a file has its samples, and how samples are written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import h5py
from numpy.typing import NDArray

from ...config import PLAIN, Reading
from ...families import Family
from ..samples import Samples
from .header import Header


class Opened(Protocol):
    """What gives datasets by their names: an open file or stack, or a view of a file that is laid out otherwise."""

    def __getitem__(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Column:
    """One physics parameter in a file.

    Attributes:
        name: The condition's name.
        dataset: The dataset that holds it; empty where all samples have the first label, or the same value.
        column: Its column in that dataset; None if the dataset holds nothing else.
        factor: What the stored numbers are multiplied by to be in the condition's unit.
        labels: What the numbers 0, 1, ... stand for in this file, where they stand for labels.
        value: That of all samples, where no dataset holds it.
        said: Whether file or user say its unit, or its place among other columns.
    """

    name: str
    dataset: str
    column: int | None = None
    factor: float = 1.0
    labels: tuple[str, ...] = ()
    value: float = 0.0
    said: bool = False


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
        stack: Opens a stack of maps, which is no HDF5 file.
        view: Gives the datasets above, of an HDF5 file that has them under other names or in another order.
        counted: Whether simulations are numbered by place or parameters in this file, not named by it.
        also: Files beside it whose content counts, too: that of a stack's parameters.
        reading: What the user said of it, and how its values may be read.
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
    stack: Callable[[], Opened] | None = None
    view: Callable[[h5py.File], Opened] | None = None
    counted: bool = False
    also: tuple[Path, ...] = ()
    reading: Reading = PLAIN

    def noted(self, *notes: str) -> Layout:
        """The same with notes added."""
        return replace(self, notes=(*self.notes, *notes)) if notes else self


class Format(ABC):
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

    def fits(self, names: Collection[str]) -> bool:
        """Whether a file whose root has these names is of this format."""
        return self.marker in names

    @abstractmethod
    def read(self, header: Header) -> Layout:
        """Where a file of this format has its samples and conditions, from its header alone.

        Raises:
            ShardError: If datasets are missing, or do not fit the family or each other.
        """

    def require(self, family: Family, conditions: Sequence[str]) -> None:  # noqa: B027 (most hold any samples)
        """Refuse to write samples that the format cannot hold.

        Raises:
            ConfigError: If it cannot.
        """

    @abstractmethod
    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """The datasets to write: names and rows, (N, ...) each."""

    def attributes(self, family: Family) -> dict[str, str]:  # noqa: ARG002
        """Root attributes to write, beside those of :func:`.header.write_attributes`."""
        return {}
