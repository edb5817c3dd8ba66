"""Samples that are kept one by one, in blocks of neighbours that are joined when they are first asked for."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.shards.samples import Samples


@dataclass(frozen=True, eq=False)
class Block:
    """Samples of a source in the order of their positions there.

    Attributes:
        columns: By name, what is known of each, (..., n); also their ``position``, and ``whole``: if it is in ``kept``.
        conditions: By name, (n,).
        kept: Whole samples.
        spectra: Their voxel histograms, (kept, B + 2).
    """

    columns: dict[str, NDArray[Any]]
    conditions: dict[str, NDArray[np.float32]]
    kept: Samples
    spectra: NDArray[np.int32]

    @property
    def first(self) -> int:
        """Position of the first one."""
        return min(self.columns["position"][:1].tolist(), default=0)

    def in_order(self) -> Block:
        """The same by position."""
        position = self.columns["position"]
        if (np.diff(position) > 0).all():
            return self
        order = np.argsort(position)
        kept = np.argsort(position[self.columns["whole"]])
        return Block(
            {name: column[..., order] for name, column in self.columns.items()},
            {name: column[order] for name, column in self.conditions.items()},
            self.kept.select(kept),
            self.spectra[kept],
        )


class Listed:
    """Samples that are kept one by one.

    Args:
        blocks: Of different samples.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = sorted(blocks, key=lambda block: block.first)

    def merge(self, other: Listed) -> Listed:
        """The samples of both; nothing is copied yet."""
        return Listed([*self._blocks, *other._blocks])

    @property
    def block(self) -> Block:
        """All of them, by position."""
        if len(self._blocks) > 1:
            self._blocks = [_joined(self._blocks).in_order()]
            _give_back()
        return self._blocks[0]


def _give_back() -> None:
    """Return freed memory to the system: what blocks took lies scattered in the heap, where the C library keeps it."""
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _joined(blocks: list[Block]) -> Block:
    """One after another. The list is emptied meanwhile: only one block at a time is in memory twice."""
    size = sum(len(block.columns["position"]) for block in blocks)
    waiting, names = deque(blocks), set.intersection(*(set(block.columns) for block in blocks))
    blocks.clear()
    columns, conditions, kept, spectra = Buffers(size), Buffers(size), [], []
    while waiting:
        block = waiting.popleft()
        for name in sorted(names):
            columns.add(name, block.columns[name])
        for name, column in block.conditions.items():
            conditions.add(name, column)
        kept.append(block.kept)
        spectra.append(block.spectra)
    return Block(columns.arrays, conditions.arrays, Samples.concatenate(kept), np.concatenate(spectra))


class Buffers:
    """Arrays filled from the left and allocated once: to concatenate parts would hold everything twice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrays: dict[str, NDArray[Any]] = {}
        self._filled: dict[str, int] = {}

    def add(self, name: str, part: NDArray[Any]) -> None:
        """Append along the last axis."""
        if name not in self._arrays:
            self._arrays[name] = np.empty((*part.shape[:-1], self._size), part.dtype)
        start = self._filled.get(name, 0)
        self._filled[name] = stop = start + part.shape[-1]
        self._arrays[name][..., start:stop] = part

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has been appended, by name."""
        return {name: array[..., : self._filled[name]] for name, array in self._arrays.items()}
