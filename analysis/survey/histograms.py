"""Histogram edges from the reference, and histograms filled sample by sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import hist
import numpy as np
from numpy.typing import NDArray

from calogen.families import varies

from ..observables.observable import Observable
from .selections import Parts

Array = NDArray[np.float64]
_MAX_BINS = 50
_SHOWN = (0.001, 0.999)  # quantiles of the reference that the bins of an observable span
_BINS_PER_DECADE = 10
_BLOCK_VALUES = 2**16  # values sorted at a time: they stay in the cache


def observable_edges(observable: Observable, reference: NDArray[np.floating]) -> Array:
    """Histogram edges of an observable, decided by the reference alone, (B + 1,).

    Counting quantities get bins centred on their possible values. Others span the central 99.8 % of the reference, or
    six widths of its core on each side if that is less. There are 10 to 50 bins, sqrt(N) / 2 in between; what lies
    outside is under- or overflow.
    """
    values = np.asarray(reference, dtype=np.float64)
    low, high = (float(q) for q in np.quantile(values, _SHOWN)) if len(values) else (0.0, 1.0)
    most = min(_MAX_BINS, max(10, int(len(values) ** 0.5 / 2)))
    if observable.step:
        first, last = round(low / observable.step), round(high / observable.step)
        width = max(1, math.ceil((last - first + 1) / most))
        count = math.ceil((last - first + 1) / width)
        return np.asarray((first - 0.5 + width * np.arange(count + 1)) * observable.step)
    if not varies(high - low, max(abs(low), abs(high)), observable.resolution):
        margin = abs(low) * 0.05 or 0.5
        return np.linspace(low - margin, high + margin, 11)
    if observable.log and low > 0 and high > 100 * low:
        return np.geomspace(low, high, most + 1)
    core = float(np.subtract(*np.quantile(values, (0.84, 0.16))))
    wide = core > 0 and high - low > 8 * core  # long tails would leave the core a single bin
    if wide:
        middle = float(np.median(values))
        low, high = max(low, middle - 6 * core), min(high, middle + 6 * core)
    return np.linspace(low, high, most + 1)


def is_logarithmic(edges: Array) -> bool:
    """Whether bins have equal ratios instead of equal widths."""
    return len(edges) > 2 and edges[0] > 0 and edges[2] - edges[1] > 1.0001 * (edges[1] - edges[0])


def spectrum_axis(voxel: Observable, low: float, high: float) -> hist.axis.Regular:
    """Logarithmic axis of single voxels from at most ``low`` to at least ``high``, ten bins a decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    bins, log = _BINS_PER_DECADE * (last - first), hist.axis.transform.log
    return hist.axis.Regular(bins, 10.0**first, 10.0**last, transform=log, name=voxel.name, label=voxel.axis_label)


class Histograms:
    """Streaming histograms of observables and of single voxels, one for each of them and each selection.

    Zero voxels, and whatever lies below the axis, are underflow; nothing is lost.

    Args:
        edges: By name, the edges of each selection, fixed by the reference.
    """

    def __init__(self, edges: Mapping[str, Sequence[Array]]) -> None:
        self._edges = {name: [float32_edges(e) for e in each] for name, each in edges.items()}
        self._counts = {name: [np.zeros(len(e) + 1, dtype=np.int64) for e in each] for name, each in edges.items()}

    def fill(self, name: str, values: NDArray[np.float32], parts: Parts) -> None:
        """Add an observable of samples (N,), or their voxels (N, ...); ``parts`` says where each sample belongs."""
        found, size = self._counts[name], max(1, _BLOCK_VALUES // values[0].size)
        for chosen, rows in parts:
            for start in range(0, len(rows), size):
                block = values[rows[start : start + size]].ravel()
                block.sort()
                for selection in np.flatnonzero(chosen):
                    found[selection] += count_sorted(block, self._edges[name][selection])

    def merge(self, other: Histograms) -> Histograms:
        """Those of the samples of both, on the same edges."""
        found = copy.copy(self)
        found._counts = {}
        for name, theirs in other._counts.items():
            found._counts[name] = [a + b for a, b in zip(self._counts[name], theirs, strict=True)]
        return found

    def counts(self, name: str, selection: int = 0) -> NDArray[np.int64]:
        """Contents with under- and overflow, (B + 2,)."""
        return np.array(self._counts[name][selection])


def float32_edges(edges: Array) -> NDArray[np.float32]:
    """Edges that float32 values are on the same side of as of the exact ones."""
    rounded = edges.astype(np.float32)
    return np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)


def count_sorted(values: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.int64]:
    """Contents of bins [low, high) of values in increasing order, with under- and overflow, (B + 2,)."""
    below = values.searchsorted(edges)
    found = np.empty(len(edges) + 1, dtype=np.int64)
    found[0], found[-1] = below[0], len(values) - below[-1]
    np.subtract(below[1:], below[:-1], out=found[1:-1])
    return found
