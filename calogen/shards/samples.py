"""Samples in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ShardError
from ..families import Family
from .conditions import Conditions
from .realisations import Origin, Origins, prints_of

LOW = "low"
"""The extra that holds maps of low resolution, (N, h, w), of the same boxes as the maps."""


@dataclass(frozen=True, eq=False, init=False)
class Samples:
    """Samples in memory, in physical units.

    Attributes:
        family: What the samples are.
        values: Voxel energies or pixels in the family's unit, ``(N, *family.sample_shape)``.
        conditions: Physics parameters in the family's units (MeV for energies); made of any mapping of columns (N,).
        extras: Optional arrays by name: ``realisation_id`` (N,), ``weights`` (N,), and :data:`LOW`, which families of
            pairs have.
        kind: ``reference`` or ``generated``.
        provenance: Where the samples come from.

    Raises:
        ShardError: If shapes do not fit the family or each other.
    """

    family: Family
    values: NDArray[np.float32]
    conditions: Conditions
    extras: Mapping[str, NDArray[Any]]
    kind: str
    provenance: tuple[dict[str, Any], ...]

    def __init__(
        self,
        family: Family,
        values: ArrayLike,
        conditions: Mapping[str, ArrayLike] | None = None,
        extras: Mapping[str, NDArray[Any]] | None = None,
        kind: str = "reference",
        provenance: tuple[dict[str, Any], ...] = (),
    ) -> None:
        values, extras = np.asarray(values, np.float32), extras or {}
        if values.shape[1:] != family.sample_shape or values.ndim == 0:
            expected = ("N", *family.sample_shape)
            raise ShardError(
                f"samples do not have the shape of family '{family.name}'", expected=expected, found=values.shape
            )
        columns = Conditions.of(conditions or {}, len(values), family.labelled)
        for name, array in extras.items():
            if len(array) != len(values):
                raise ShardError(
                    f"'{name}' and the samples differ in length", expected=len(values), found=len(array), where=name
                )
        found = {"family": family, "values": values, "conditions": columns, "extras": extras}
        low = extras.get(LOW)
        if low is not None and low.shape[1:] != family.low_pixels:
            size = (
                f"(N, h, w) with {family.low_pixels} pixels"
                if family.low_pixels
                else f"none: '{family.name}' has no pairs"
            )
            raise ShardError("maps of low resolution do not fit the family", expected=size, found=low.shape)
        vars(self).update(found, kind=kind, provenance=provenance)  # not by assignment: they are frozen

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | slice | NDArray[Any]) -> Samples:
        """The samples at some rows: one, a slice, or an array as for :meth:`select`."""
        return self.select(index if isinstance(index, slice) else np.atleast_1d(np.arange(len(self))[index]))

    def __repr__(self) -> str:
        known = ", ".join(self.conditions) or "no conditions"
        return f"Samples({len(self)} {self.family.shapes}, {self.family.name}, {self.kind}; {known})"

    def select(self, index: ArrayLike | slice) -> Samples:
        """The samples at some rows.

        Args:
            index: Rows, a mask (N,), or a slice.
        """
        rows = index if isinstance(index, slice) else np.asarray(index)
        extras = {name: array[rows] for name, array in self.extras.items()}
        return replace(self, values=self.values[rows], conditions=self.conditions[rows], extras=extras)

    @staticmethod
    def concatenate(parts: Sequence[Samples], values: NDArray[np.float32] | None = None) -> Samples:
        """One after another; extras that some part lacks are left out.

        Args:
            parts: In their order.
            values: Those of all parts, where they are in one array already.

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
        return replace(
            first,
            values=np.concatenate([part.values for part in parts]) if values is None else values,
            conditions=Conditions.concatenate([part.conditions for part in parts]),
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in extras},
            provenance=distinct(entry for part in parts for entry in part.provenance),
        )

    def origins(self) -> Origins:
        """Parameters and realisation of every map."""
        only = Origin(self.conditions, self.extras.get("realisation_id"))
        return Origins([only], lambda row: f"samples in memory, row {row}", lambda: prints_of(self.values))

    def read(self, start: int = 0, stop: int | None = None) -> Samples:
        """Samples start to stop (to the end when absent)."""
        return self.select(slice(start, stop))

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:
        """Samples start to stop in order, ``size`` at a time."""
        return (samples for _, samples in self.placed_chunks(size, start, stop))

    @property
    def bounds(self) -> tuple[int, ...]:
        """The first row and how many there are: as of one file."""
        return 0, len(self)

    def placed_chunks(
        self, size: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Samples]]:
        """The same, each with its rows (N,)."""
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(start, end, size):
            last = min(first + size, end)
            yield np.arange(first, last), self.read(first, last)


def low_maps(samples: Samples) -> NDArray[np.float32]:
    """The maps of low resolution (N, h, w): those of pairs, or all that there are."""
    return np.asarray(samples.extras[LOW] if samples.family.low_pixels else samples.values, np.float32)


def distinct(provenance: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Each origin once; those that say nothing are left out."""
    seen = {json.dumps(entry, sort_keys=True, default=str): dict(entry) for entry in provenance}
    return tuple(entry for entry in seen.values() if entry)
