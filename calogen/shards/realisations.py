"""Realisations: which maps were cut from one simulated box, and that none of them are on both sides of a split.

Maps of one box show the same structures. A surrogate or a classifier that was trained with some of them knows the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from .conditions import Conditions

_FEWEST_POINTS = 10  # parameter points below which maps of equal parameters need not be of one box
_NAMED = 11
_REMEMBERED, _DIGITS = 3000, 10  # realisations that a provenance keeps, and hexadecimal digits of each
_PIXELS = 64  # of each map, whose order is its print
_FEWEST_LEVELS = 32  # different values among them, for a print to mean anything


@dataclass(frozen=True)
class Origin:
    """Where the maps of one file come from.

    Attributes:
        conditions: Parameters.
        ids: Which realisation each map is of, (N,); None where nothing says.
        counted: Whether these were counted in this file, and mean nothing in any other.
    """

    conditions: Conditions
    ids: NDArray[np.integer] | None
    counted: bool = False


class Origins:
    """Where the maps of one side come from.

    Args:
        parts: Its files.
        where: Names the place of a row, for messages.
        prints: Gives :func:`prints_of` all maps.

    Attributes:
        conditions: Parameters of all maps.
        named: Whether the files themselves say the names of realisations.
    """

    def __init__(
        self, parts: Sequence[Origin], where: Callable[[int], str], prints: Callable[[], NDArray[np.int64]]
    ) -> None:
        self.where, self.prints = where, prints
        self.conditions = Conditions.concatenate([part.conditions for part in parts])
        self.named = all(part.ids is not None and not part.counted for part in parts)
        known = [part.ids for part in parts if part.ids is not None]
        self._ids = np.concatenate(known).astype(np.int64) if len(known) == len(parts) else None
        sizes = [part.conditions.rows for part in parts]
        self._file = np.repeat([k if part.counted else -1 for k, part in enumerate(parts)], sizes)

    def __len__(self) -> int:
        return self.conditions.rows

    def points(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Parameters as whole numbers, equal for equal ones, (N, C)."""
        return self.conditions.array(names).view(np.int32).astype(np.int64)

    @cached_property
    def apart(self) -> bool:
        """Whether realisations of one file have different parameters, so that these say which one a map is of."""
        point = _numbered(self.points(sorted(self.conditions)))
        if self._ids is None:
            return int(point.max(initial=-1)) + 1 >= min(_FEWEST_POINTS, len(self))
        both = _numbered(np.column_stack([self._file, self._ids]))
        return bool(_numbered(np.column_stack([self._file, point])).max() == both.max()) if len(both) else True

    @cached_property
    def boxes(self) -> NDArray[np.int64] | None:
        """The number of each map's box, in order of appearance, (N,); None where nothing says which it is.

        Without ids, maps of equal parameters are of one box where there are at least ten points in parameter space; and
        so they are in several files, each of which has different parameters for each box.
        """
        if not len(self):
            return None
        point = _numbered(self.points(sorted(self.conditions)))
        if self._ids is None:
            return point if self.apart else None
        if not self.named and self.apart and point.max() + 1 >= _FEWEST_POINTS:
            return point
        return _numbered(np.column_stack([self._file, self._ids]))

    def _named_points(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Names of realisations, and parameters, (N, 1 + C)."""
        ids = np.zeros((len(self), 0), np.int64) if self._ids is None else self._ids
        return np.column_stack([ids, self.points(names)])

    def name(self, row: int) -> str:
        """What a map's box is called."""
        if self.named and self._ids is not None:
            return f"realisation {int(self._ids[row])}"
        return "the realisation with " + ", ".join(f"{n} {c:.6g}" for n, c in self.conditions.row(row).items())

    def within(self, other: Origins) -> bool:
        """Whether all realisations are on the other side, too: the same data once more."""
        boxes = self.boxes
        return boxes is not None and len(self.twins(other)[0]) == int(boxes.max(initial=-1)) + 1

    def twins(self, other: Origins) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """A row of each realisation that is on the other side, too, and a row of it there.

        They are known by what the files call them together with their parameters, by parameters that only one
        realisation has, and by the pixels of their maps: never by the rows that they are in.
        """
        sides, names = (self, other), sorted(set(self.conditions) & set(other.conditions))
        found = []
        if self.named and other.named:
            found.append([side._named_points(names) for side in sides])
        elif names and all(side.apart for side in sides):
            points = [side.points(names) for side in sides]
            if max(_numbered(rows).max(initial=-1) + 1 for rows in points) >= min(_FEWEST_POINTS, len(self)):
                found.append(points)
        shared = [_shared(*pair) for pair in found]
        if not any(len(rows) for rows, _ in shared):
            prints = [side.prints() for side in sides]
            rows, others = _shared(*(values[:, None] for values in prints))
            some = prints[0][rows] != 0
            shared.append((rows[some], others[some]))
        rows, others = (np.concatenate(parts) for parts in zip(*shared, strict=True))
        if self.boxes is not None:  # one row of each realisation
            first = np.unique(self.boxes[rows], return_index=True)[1]
            rows, others = rows[first], others[first]
        order = np.argsort(rows)
        return rows[order], others[order]

    def identity(self) -> dict[str, Any]:
        """What says later which realisations these are, as JSON-able values; of many, some thousands of them.

        They are known as :meth:`twins` knows them: by names and parameters, by parameters, or by the pixels of a map.
        """
        names = sorted(self.conditions)
        kind = "pixels"
        if self.boxes is not None and self.apart and _numbered(self.points(names)).max() + 1 >= _FEWEST_POINTS:
            kind = "names" if self.named else "parameters"
        rows = np.arange(len(self)) if self.boxes is None else np.unique(self.boxes, return_index=True)[1]
        rows = rows[np.linspace(0, len(rows) - 1, min(_REMEMBERED, len(rows))).astype(np.intp)]
        rows = rows[self.prints()[rows] != 0] if kind == "pixels" else rows
        return {"by": kind, "conditions": names, "digests": "".join(self._digests(kind, names, rows))}

    def remembered(self, identity: Mapping[str, Any]) -> NDArray[np.intp]:
        """A row of each realisation that is among those of an :meth:`identity`; none where it cannot be understood."""
        kind, names, text = (identity.get(key) for key in ("by", "conditions", "digests"))
        if not (isinstance(kind, str) and isinstance(names, list) and isinstance(text, str)):
            return np.zeros(0, np.intp)
        if (
            not set(map(str, names)) <= set(self.conditions)
            or kind not in ("names", "parameters", "pixels")
            or (kind == "names" and not self.named)
        ):
            return np.zeros(0, np.intp)
        if kind == "parameters" and not self.apart:
            return np.zeros(0, np.intp)
        known = {text[start : start + _DIGITS] for start in range(0, len(text), _DIGITS)}
        rows = np.arange(len(self))
        if kind != "pixels" and self.boxes is not None:
            rows = np.unique(self.boxes, return_index=True)[1]
        found = [row for row, own in zip(rows.tolist(), self._digests(kind, names, rows), strict=True) if own in known]
        chosen = np.array(found, np.intp)
        return chosen if self.boxes is None else chosen[np.unique(self.boxes[chosen], return_index=True)[1]]

    def _digests(self, kind: str, names: Sequence[str], rows: NDArray[np.intp]) -> list[str]:
        if kind == "pixels":
            keys = self.prints()[:, None]
        else:
            keys = self._named_points(names) if kind == "names" else self.points(names)
        texts = (np.ascontiguousarray(keys[row], "<i8").tobytes() for row in rows.tolist())
        return [hashlib.sha256(text).hexdigest()[:_DIGITS] for text in texts]


def require_new(side: Origins, identity: Mapping[str, Any]) -> None:
    """What judges a surrogate holds no realisation that it was trained with.

    Args:
        side: What judges it.
        identity: From :meth:`Origins.identity`, as the provenance of generated samples keeps it.

    Raises:
        ShardError: If it does; names them.
    """
    rows = side.remembered(identity)
    if len(rows):
        named = ", ".join(side.name(int(row)) for row in rows[: 1 + _NAMED])
        raise ShardError(
            f"the surrogate was trained with {len(rows)} of these realisations: {named}"
            + " ..." * (len(rows) > 1 + _NAMED),
            where=side.where(int(rows[0])),
            expected="realisations that it has not seen: maps of one box show the same structures",
            hint="compare with others",
        )


def require_apart(one: Origins, other: Origins) -> None:
    """Two sides have no realisation in common.

    Args:
        one: What was trained with.
        other: What judges it.

    Raises:
        ShardError: If they have; names the realisations, and where the first is on both sides.
    """
    rows, twins = one.twins(other)
    if not len(rows):
        return
    row, twin = int(rows[0]), int(twins[0])
    more = [one.name(int(i)) for i in rows[1 : 1 + _NAMED]]
    rest = f" ({len(rows)} realisations in all: also {', '.join(more)}{' ...' * (len(rows) > 1 + _NAMED)})"
    raise ShardError(
        f"{one.name(row)} is on both sides" + (rest if more else ""),
        where=one.where(row),
        expected="realisations that are on one side only: maps of one box show the same structures",
        found=f"the same in {other.where(twin)}",
        hint="split by realisation, or name a folder without train/ and validation/: calogen splits it so",
    )


def prints_of(maps: NDArray[np.floating]) -> NDArray[np.int64]:
    """A number for each map, (N,), equal for equal maps in whatever unit; 0 where a map has too few different pixels.

    It is made of the order of some pixels by size, which no unit, mean or logarithm changes.
    """
    flat = maps.reshape(len(maps), -1)
    places = np.linspace(0, flat.shape[1] - 1, min(_PIXELS, flat.shape[1])).astype(np.intp)
    some = np.nan_to_num(flat[:, places])
    order = np.argsort(some, axis=1, kind="stable")
    ranked = np.take_along_axis(some, order, axis=1)
    levels = 1 + np.count_nonzero(np.diff(ranked, axis=1), axis=1)
    factors = np.random.default_rng(0).integers(1, 2**62, len(places), dtype=np.int64)
    with np.errstate(over="ignore"):
        return np.where(levels >= min(_FEWEST_LEVELS, len(places)), order @ factors, 0)


def _numbered(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Equal rows (N, K) as equal numbers, in order of appearance, (N,)."""
    if not len(keys):
        return np.zeros(0, np.int64)
    keys = keys.reshape(len(keys), -1)
    _, first, inverse = np.unique(_single(keys), return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return np.asarray(order[inverse.ravel()])


def _shared(mine: NDArray[np.int64], theirs: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of equal keys on both sides, the first of each."""
    _, rows, others = np.intersect1d(_single(mine), _single(theirs), return_indices=True)
    return rows, others


def _single(keys: NDArray[np.int64]) -> NDArray[np.void]:
    """Rows as single values, which can be sorted and intersected."""
    keys = np.ascontiguousarray(keys, dtype=np.int64)
    return (
        keys.view([("", np.int64)] * keys.shape[1]).ravel() if keys.shape[1] else np.zeros(len(keys), [("", np.int64)])
    )
