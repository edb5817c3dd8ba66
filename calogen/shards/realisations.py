"""Realisations: which maps were cut from one simulated box, and that none of them are on both sides of a split.

Maps of one box show the same structures. A surrogate or a classifier that was trained with some of them knows the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from .conditions import Conditions

_FEWEST_POINTS = 10  # parameter points below which maps of equal parameters need not be of one box
_NAMED = 3


@dataclass(frozen=True)
class Origins:
    """Where the maps of one side come from.

    Attributes:
        conditions: Parameters.
        ids: ``realisation_id``, (N,); None where the files do not have it.
        where: Names the place of a row, for messages.
    """

    conditions: Conditions
    ids: NDArray[np.integer] | None
    where: Callable[[int], str]

    def __len__(self) -> int:
        return self.conditions.rows

    def keys(self, names: list[str], *, with_ids: bool) -> NDArray[np.int64]:
        """A row of whole numbers a map, equal for maps of one box, (N, K).

        An id says little across files, since many number their boxes from 0: parameters belong to it.
        """
        ids = self.ids.astype(np.int64) if with_ids and self.ids is not None else np.zeros(len(self), np.int64)
        bits = self.conditions.array(names).view(np.int32)
        return np.column_stack([ids, bits.astype(np.int64)])

    @property
    def boxes(self) -> NDArray[np.int64] | None:
        """The number of each map's box, in order of appearance, (N,); None where nothing says which it is.

        Without ids, maps of equal parameters are of one box where there are at least ten points in parameter space.
        """
        if not len(self):
            return None
        keys = self.keys([] if self.ids is not None else sorted(self.conditions), with_ids=True)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        if self.ids is None and len(first) < min(_FEWEST_POINTS, len(self)):
            return None
        order = np.empty(len(first), np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        return np.asarray(order[inverse.ravel()])

    def name(self, row: int) -> str:
        """What a map's box is called."""
        if self.ids is not None:
            return f"realisation {int(self.ids[row])}"
        return "the realisation with " + ", ".join(f"{n} {c:.6g}" for n, c in self.conditions.row(row).items())


def require_apart(one: Origins, other: Origins) -> None:
    """Two sides have no realisation in common.

    Args:
        one: What was trained with.
        other: What judges it.

    Raises:
        ShardError: If they have; names the realisation, and where it is on both sides.
    """
    if one.boxes is None or other.boxes is None:
        return
    names = sorted(set(one.conditions) & set(other.conditions))
    with_ids = one.ids is not None and other.ids is not None
    mine, theirs = (_single(side.keys(names, with_ids=with_ids)) for side in (one, other))
    shared, rows, others = np.intersect1d(mine, theirs, return_indices=True)
    if not len(shared):
        return
    order = np.argsort(rows)
    row, twin = int(rows[order[0]]), int(others[order[0]])
    more = [one.name(int(rows[i])) for i in order[1 : 1 + _NAMED]]
    rest = f" ({len(shared)} realisations in all: also {', '.join(more)}{' ...' * (len(shared) > 1 + _NAMED)})"
    raise ShardError(
        f"{one.name(row)} is on both sides" + (rest if more else ""),
        where=one.where(row),
        expected="realisations that are on one side only: maps of one box show the same structures",
        found=f"the same in {other.where(twin)}",
        hint="split by realisation, or name a folder without train/ and validation/: calogen splits it so",
    )


def _single(keys: NDArray[np.int64]) -> NDArray[np.void]:
    """Rows as single values, which can be sorted and intersected."""
    keys = np.ascontiguousarray(keys)
    return keys.view([("", np.int64)] * keys.shape[1]).ravel()
