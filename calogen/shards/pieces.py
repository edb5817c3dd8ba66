"""Rows of one file: a run of them, read and put into the units of the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from .conditions import Conditions, decoded
from .layouts.layout import Layout
from .layouts.stacks import Stack
from .samples import Samples

SLAB_BYTES = 128 << 20


@dataclass(frozen=True)
class Piece:
    """A contiguous run of rows, start to stop, of one file; ``facts`` are labels named with its path."""

    path: Path
    layout: Layout
    start: int
    stop: int
    facts: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Conditions whose label is the same in the whole file, by name."""
        return tuple((column.name, column.labels[0]) for column in self.layout.conditions if not column.dataset)


# ---------------------------------------------------------------------------------------------------- rows
def rows_of(file: h5py.File | Stack, piece: Piece, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows start to stop of one dataset, as stored."""
    try:
        dataset = file[name]
        if len(dataset) != piece.layout.length:
            raise ShardError("the file changed while it was in use", where=piece.path)
        return np.asarray(dataset[start:stop])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ShardError(
            "the file is damaged: rows cannot be read",
            where=f"{piece.path}, dataset {name}, rows {start} to {stop - 1}",
            found=str(error),
            hint="copy or make the file again",
        ) from None


def read_conditions(file: h5py.File | Stack, piece: Piece, start: int, stop: int) -> Conditions:
    """Conditions of rows start to stop, in the units of the family."""
    columns = {}
    with np.errstate(over="ignore"):  # too large for float32 becomes Inf, which is reported as such
        for column in piece.layout.conditions:
            if not column.dataset:
                stored: NDArray[Any] = np.zeros(stop - start, np.float32)
            else:
                stored = rows_of(file, piece, column.dataset, start, stop)
                stored = stored.reshape(stop - start) if column.column is None else stored[:, column.column]
            if column.labels:
                stored = decoded(stored, column.labels, piece.layout.family.labels(column.name))
            columns[column.name] = _scaled(stored, column.factor)
    return Conditions.of(columns, stop - start, piece.layout.family.labelled)


def read_rows(file: h5py.File | Stack, piece: Piece, start: int, stop: int) -> Samples:
    """Samples of rows start to stop, in the units of the family."""
    layout, family, count = piece.layout, piece.layout.family, stop - start
    with np.errstate(over="ignore"):
        parts = [_scaled(rows_of(file, piece, name, start, stop), layout.factor) for name in layout.values]
    values = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(count, -1) for part in parts], axis=1)
    return Samples(
        family=family,
        values=values,
        conditions=read_conditions(file, piece, start, stop),
        extras={name: rows_of(file, piece, name, start, stop) for name in layout.extras},
        kind=layout.kind,
        provenance=(dict(layout.provenance),) if layout.provenance else (),
    )


def _scaled(stored: NDArray[Any], factor: float) -> NDArray[np.float32]:
    if factor != 1.0:  # in double precision: one rounding, not two
        stored = stored.astype(np.float64) * factor
    return stored.astype(np.float32, copy=False)
