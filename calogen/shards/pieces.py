"""Rows of one file: a run or some of them, read and put into the units of the family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from ..storage import file_state
from .conditions import Conditions, decoded
from .layouts.layout import Layout, Opened
from .layouts.maps import plain_values
from .samples import Samples

SLAB_BYTES = 128 << 20
_RUN_BYTES = 8 << 20  # read at a time where not all rows are wanted


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of one file: those from start to stop, or some of them.

    Attributes:
        facts: Labels named with its path.
        rows: Which rows they are, in increasing order, where they are not all from start to stop.
        missing: What its folder lacks, for people.
        state: Of the file, and of those that it is read with, when its header was read:
            :func:`calogen.storage.file_state`.
    """

    path: Path
    layout: Layout
    start: int
    stop: int
    facts: Mapping[str, str] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None
    missing: tuple[str, ...] = ()
    state: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start if self.rows is None else len(self.rows)

    def cut(self, first: int, last: int) -> Piece:
        """Its rows first to last, counted from its own first one."""
        if self.rows is None:
            return replace(self, start=self.start + first, stop=self.start + last)
        return self.only(np.arange(first, last))

    def only(self, places: NDArray[np.intp]) -> Piece:
        """Some of its rows, at least one, counted from its own first one in increasing order."""
        rows = np.asarray(self.start + places if self.rows is None else self.rows[places], np.int64)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        return replace(self, start=start, stop=stop, rows=None if len(rows) == stop - start else rows)

    def row(self, place: int) -> int:
        """The file's row of one of its own."""
        return self.start + place if self.rows is None else int(self.rows[place])

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Conditions whose label is the same in the whole file, by name."""
        own = (column for column in self.layout.conditions if column.labels and not column.dataset)
        return tuple((column.name, column.labels[0]) for column in own)

    def require_unchanged(self) -> None:
        """Refuse a file that was written again, or replaced, since its header was read.

        Raises:
            ShardError: If it was.
        """
        if self.state and self.state != file_state(self.path, *self.layout.also):
            what = "the file changed while it was in use"
            raise ShardError(what, where=self.path, hint="wait until nothing writes it, and repeat the command")


# ---------------------------------------------------------------------------------------------------- rows
def rows_of(file: Opened, piece: Piece, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows start to stop of one dataset, as stored; start and stop are counted from the piece's first row."""
    first, last = piece.start + start, piece.start + stop
    rows = None if piece.rows is None else piece.rows[start:stop]
    if rows is not None and len(rows):
        first, last = int(rows[0]), int(rows[-1]) + 1
    try:
        dataset = file[name]
        if len(dataset) != piece.layout.length:
            raise ShardError("the file changed while it was in use", where=piece.path)
        if rows is None or len(rows) == last - first:
            return np.asarray(dataset[first:last])
        return _taken(dataset, rows)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ShardError(
            "the file is damaged: rows cannot be read",
            where=f"{piece.path}, dataset {name}, rows {first} to {last - 1}",
            found=str(error),
            hint="copy or make the file again",
        ) from None


def _taken(dataset: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Some rows, read in short runs of which they are taken while these are in the cache."""
    found = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    size = max(1, _RUN_BYTES // max(1, found.itemsize * math.prod(dataset.shape[1:])))
    place = 0
    while place < len(rows):
        first, end = int(rows[place]), int(np.searchsorted(rows, rows[place] + size))
        found[place:end] = np.asarray(dataset[first : int(rows[end - 1]) + 1])[rows[place:end] - first]
        place = end
    return found


def read_conditions(file: Opened, piece: Piece, start: int, stop: int) -> Conditions:
    """Conditions of rows start to stop, counted from the piece's first, in the units of the family."""
    columns = {}
    with np.errstate(over="ignore"):  # too large for float32 becomes Inf, which is reported as such
        for column in piece.layout.conditions:
            if not column.dataset:
                stored: NDArray[Any] = np.full(stop - start, column.value, np.float32)
            else:
                stored = rows_of(file, piece, column.dataset, start, stop)
                stored = stored.reshape(stop - start) if column.column is None else stored[:, column.column]
            if column.labels:
                stored = decoded(stored, column.labels, piece.layout.family.labels(column.name))
            columns[column.name] = _scaled(stored, column.factor)
    return Conditions.of(columns, stop - start, piece.layout.family.labelled)


def read_rows(file: Opened, piece: Piece, start: int, stop: int) -> Samples:
    """Samples of rows start to stop, counted from the piece's first, in the units of the family."""
    layout, family, count = piece.layout, piece.layout.family, stop - start
    with np.errstate(over="ignore"):
        parts = [_scaled(rows_of(file, piece, name, start, stop), layout.factor) for name in layout.values]
    values = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(count, -1) for part in parts], axis=1)
    return Samples(
        family=family,
        values=values if layout.stack else plain_values(values, layout.reading).astype(np.float32, copy=False),
        conditions=read_conditions(file, piece, start, stop),
        extras={name: rows_of(file, piece, name, start, stop) for name in layout.extras},
        kind=layout.kind,
        provenance=(dict(layout.provenance),) if layout.provenance else (),
    )


def _scaled(stored: NDArray[Any], factor: float) -> NDArray[np.float32]:
    if factor != 1.0:  # in double precision: one rounding, not two
        stored = stored.astype(np.float64) * factor
    return stored.astype(np.float32, copy=False)
