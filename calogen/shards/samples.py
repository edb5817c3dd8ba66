"""Samples in memory, and what can be read like them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ShardError
from ..families import Family
from .realisations import Origins


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in memory, in physical units.

    Attributes:
        family: What the samples are.
        values: Voxel energies or pixels in the family's unit, (N, *family.sample_shape).
        conditions: Physics parameters by name in the condition's unit (MeV for energies), (N,) each.
        extras: Optional arrays by name: ``realisation_id`` (N,), ``weights`` (N,).
        kind: ``reference`` or ``generated``.
        provenance: Where the samples come from.

    Raises:
        ShardError: If shapes do not fit the family or each other.
    """

    family: Family
    values: NDArray[np.float32]
    conditions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    kind: str = "reference"
    provenance: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float32)
        conditions = {name: np.asarray(c, np.float32).reshape(-1) for name, c in self.conditions.items()}
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "conditions", conditions)
        if values.shape[1:] != self.family.sample_shape or values.ndim == 0:
            expected = ("N", *self.family.sample_shape)
            raise ShardError(
                f"samples do not have the shape of family '{self.family.name}'", expected=expected, found=values.shape
            )
        for name, array in {**conditions, **self.extras}.items():
            if len(array) != len(values):
                raise ShardError(
                    f"'{name}' and the samples differ in length", expected=len(values), found=len(array), where=name
                )

    def __len__(self) -> int:
        return len(self.values)

    def select(self, index: ArrayLike | slice) -> Samples:
        """The samples at some rows.

        Args:
            index: Rows, a mask (N,), or a slice.
        """
        rows = index if isinstance(index, slice) else np.asarray(index)
        return Samples(
            family=self.family,
            values=self.values[rows],
            conditions={name: array[rows] for name, array in self.conditions.items()},
            extras={name: array[rows] for name, array in self.extras.items()},
            kind=self.kind,
            provenance=self.provenance,
        )

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """One after another; extras that some part lacks are left out.

        Raises:
            ShardError: If there are none, or they differ in family or conditions.
        """
        if not parts:
            raise ShardError("there are no samples to concatenate")
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts[1:]:
            if not part.family.same_samples(first.family) or set(part.conditions) != set(first.conditions):
                raise ShardError(
                    "samples of different families or conditions cannot be concatenated",
                    expected=f"{first.family.name} {sorted(first.conditions)}",
                    found=f"{part.family.name} {sorted(part.conditions)}",
                )
        extras = [name for name in first.extras if all(name in part.extras for part in parts)]
        provenance: list[dict[str, Any]] = []
        for part in parts:
            provenance += [entry for entry in part.provenance if entry not in provenance]
        return Samples(
            family=first.family,
            values=np.concatenate([part.values for part in parts]),
            conditions={name: np.concatenate([part.conditions[name] for part in parts]) for name in first.conditions},
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in extras},
            kind=first.kind,
            provenance=tuple(provenance),
        )

    def origins(self) -> Origins:
        """Parameters and realisation of every map."""
        return Origins(self.conditions, self.extras.get("realisation_id"), lambda row: f"samples in memory, row {row}")

    def read(self, start: int = 0, stop: int | None = None) -> Samples:
        """Samples start to stop (to the end when absent)."""
        return self.select(slice(start, stop))

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:
        """Samples start to stop in order, ``size`` at a time."""
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(start, end, size):
            yield self.read(first, min(first + size, end))


class Source(Protocol):
    """What a comparison reads: an open folder of shards, or samples in memory."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def provenance(self) -> tuple[dict[str, Any], ...]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def read(self, start: int = 0, stop: int | None = None) -> Samples:  # noqa: D102
        ...

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:  # noqa: D102
        ...

    def origins(self) -> Origins: ...  # noqa: D102
