"""Selections in bins of a condition, histogram edges from the reference, and what is accumulated sample by sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.families import Condition, Family

from .observables import Observable

Array = NDArray[np.float64]

_MAX_BINS = 50
_SHOWN = (0.001, 0.999)  # quantiles of the reference that the bins of an observable span
_BINS_PER_DECADE = 10
_BLOCK_VALUES = 2**16  # values sorted at a time: they stay in the cache

Parts = Sequence[tuple[NDArray[np.bool_], NDArray[np.intp]]]
"""Which selections, and the rows of the samples that belong to just those."""


@dataclass(frozen=True)
class Selection:
    """Samples with a condition in [low, high).

    Attributes:
        name: What metrics print in square brackets; empty for all samples.
        title: The same for people.
        condition: Name of the condition, empty for all samples.
        low: Lower edge in the condition's unit.
        high: Upper edge in the condition's unit.
    """

    name: str = ""
    title: str = "all"
    condition: str = ""
    low: float = -math.inf
    high: float = math.inf

    @property
    def suffix(self) -> str:
        """What follows an observable's name in the key of a metric."""
        return f"[{self.name}]" if self.name else ""

    def of(self, conditions: Mapping[str, NDArray[np.floating]], count: int) -> NDArray[np.bool_]:
        """Which of ``count`` samples belong to it, (N,).

        Raises:
            ShardError: If the samples lack the condition.
        """
        if not self.condition:
            return np.ones(count, dtype=bool)
        if self.condition not in conditions:
            raise ShardError(
                f"the samples lack the condition '{self.condition}' that the reference has",
                expected=self.condition,
                found=", ".join(conditions) or "no conditions",
            )
        values = conditions[self.condition]
        return np.asarray((values >= self.low) & (values < self.high))


ALL = Selection()


def selections(family: Family, conditions: Mapping[str, NDArray[np.floating]], bins: int) -> tuple[Selection, ...]:
    """All samples, then ``bins`` bins of each condition; of labels, one bin for each that the reference has.

    Edges are equal steps, linear or logarithmic: whichever leaves more reference samples in the emptiest bin. They
    start and end where the family's range does if the data reach there, so names do not change from one sample to the
    next; data that fill neither kind evenly get rounded quantiles.

    Args:
        family: Says the conditions' units and ranges.
        conditions: Reference values by name, (N,) each, in the family's units.
        bins: Bins of each condition; 0 or 1 for none.
    """
    found = [ALL]
    for condition in family.conditions:
        if condition.name not in conditions or bins < 2:
            continue
        if condition.labels:
            found += _of_labels(condition, conditions[condition.name])
            continue
        edges = condition_edges(condition, np.asarray(conditions[condition.name], dtype=np.float64), bins)
        for k, (low, high) in enumerate(pairwise(edges)):
            name, title = interval(condition, low, high, named=family.kind == "map" or condition.unit != "MeV")
            # The last bin contains the top of the range.
            top = np.nextafter(np.float32(high), np.float32(np.inf)) if k == len(edges) - 2 else high
            found.append(Selection(name, title, condition.name, float(low), float(top)))
    return tuple(found)


def _of_labels(condition: Condition, values: NDArray[np.floating]) -> list[Selection]:
    """The samples of each label that there are, if there are several."""
    codes = [k for k in range(len(condition.labels)) if (values == k).any()]
    names = [(k, condition.name, condition.labels[k]) for k in codes] if len(codes) > 1 else []
    return [Selection(f"{name}={label}", f"{name} {label}", name, k - 0.5, k + 0.5) for k, name, label in names]


def interval(condition: Condition, low: float, high: float, *, named: bool) -> tuple[str, str]:
    """A bin for keys and for people, energies in GeV where that reads better: ``10:20GeV``, ``sigma_8=0.6:0.7``."""
    giga = condition.unit == "MeV" and high >= 1000
    scale, unit = (1e-3, "GeV") if giga else (1.0, condition.unit)
    first, last = f"{low * scale:.4g}", f"{high * scale:.4g}"
    prefix = f"{condition.name}=" if named else ""
    return f"{prefix}{first}:{last}{unit}", f"{prefix.replace('=', ' ')}{first} to {last} {unit}".rstrip()


def condition_edges(condition: Condition, values: Array, bins: int) -> Array:
    """Edges of at most ``bins`` bins of a condition for some values of it; empty if all are equal."""
    values = values[np.isfinite(values)]
    if not len(values) or values.min() == values.max():
        return np.empty(0)
    candidates = [_equal_edges(condition, values, bins, np.asarray)]
    if values.min() > 0:
        candidates.append(_equal_edges(condition, values, bins, np.log))
    populations = [np.histogram(values, edges)[0].min() for edges in candidates]
    best = int(np.argmax(populations))
    if populations[best] >= 0.2 * len(values) / bins:
        return candidates[best]
    quantiles = np.quantile(values, np.linspace(0, 1, bins + 1))
    inner = [float(f"{q:.2g}") for q in quantiles[1:-1]]
    edges = np.unique([float(quantiles[0]), *inner, float(quantiles[-1])])
    return np.asarray(edges[(edges >= quantiles[0]) & (edges <= quantiles[-1])])


def _equal_edges(condition: Condition, values: Array, bins: int, scale: np.ufunc | object) -> Array:
    forward, backward = (np.log, np.exp) if scale is np.log else (np.asarray, np.asarray)
    low, high = (float(forward(x)) for x in (values.min(), values.max()))
    near = 0.05 * (high - low)
    if scale is not np.log or condition.low > 0:
        family_low, family_high = (float(forward(x)) for x in (condition.low, condition.high))
        low = family_low if abs(family_low - low) <= near else low
        high = family_high if abs(family_high - high) <= near else high
    edges = np.asarray(backward(np.linspace(low, high, bins + 1)), dtype=np.float64)
    edges[0] = min(edges[0], values.min())
    edges[-1] = max(edges[-1], values.max())
    return edges


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
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant but for rounding
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


def counts(values: NDArray[np.floating], edges: Array) -> NDArray[np.int64]:
    """Histogram with under- and overflow as first and last entry, (B + 2,); bins are [low, high)."""
    place = np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right")
    return np.bincount(place, minlength=len(edges) + 1)


def spectrum_axis(low: float, high: float) -> hist.axis.Regular:
    """Logarithmic axis from at most ``low`` to at least ``high``, ten bins a decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    return hist.axis.Regular(
        _BINS_PER_DECADE * (last - first), 10.0**first, 10.0**last, transform=hist.axis.transform.log, name="voxel"
    )


class Spectra:
    """Streaming histograms of single voxels (or pixels), one for each selection.

    Zero voxels, and whatever lies below the axis, are underflow; nothing is lost.

    Args:
        axis: The voxel axis, fixed by the reference.
        selected: The selections.
    """

    def __init__(self, axis: hist.axis.Regular, selected: tuple[Selection, ...]) -> None:
        self.selections, self.axis = selected, axis
        self._edges = float32_edges(np.asarray(axis.edges))
        self._counts = np.zeros((len(selected), axis.size + 2), dtype=np.int64)

    def fill(self, samples: NDArray[np.float32], parts: Parts) -> None:
        """Add samples (N, ...); ``parts`` says where each belongs, see :func:`disjoint`."""
        flat = samples.reshape(len(samples), -1)
        size = max(1, _BLOCK_VALUES // flat.shape[1])
        for chosen, rows in parts:
            for start in range(0, len(rows), size):
                block = flat[rows[start : start + size]].ravel()
                block.sort()
                self._counts[chosen] += _count_sorted(block, self._edges)

    def counts(self, selection: int) -> NDArray[np.int64]:
        """Contents with under- and overflow, (B + 2,)."""
        return np.array(self._counts[selection])

    def histogram(self, selection: int) -> hist.Hist[Any]:
        """The same as a histogram of ``hist``."""
        return _filled(self.axis, self._counts[selection])


class Histograms:
    """Streaming histograms of observables, one for each observable and selection.

    Args:
        edges: By observable, the edges of each selection, fixed by the reference.
    """

    def __init__(self, edges: Mapping[str, Sequence[Array]]) -> None:
        self.edges = edges
        self._sharp = {name: [float32_edges(e) for e in each] for name, each in edges.items()}
        self._counts = {name: [np.zeros(len(e) + 1, dtype=np.int64) for e in each] for name, each in edges.items()}

    def fill(self, table: NDArray[np.float32], parts: Parts) -> None:
        """Add the observables (K, N) of samples, in the order of ``edges``; ``parts`` says where each belongs."""
        for chosen, rows in parts:
            columns = np.sort(table[:, rows], axis=1)
            for column, edges, found in zip(columns, self._sharp.values(), self._counts.values(), strict=True):
                for selection in np.flatnonzero(chosen):
                    found[selection] += _count_sorted(column, edges[selection])

    def counts(self, name: str, selection: int = 0) -> NDArray[np.int64]:
        """Contents with under- and overflow, (B + 2,)."""
        return np.array(self._counts[name][selection])

    def histogram(self, name: str, selection: int = 0) -> hist.Hist[Any]:
        """The same as a histogram of ``hist``."""
        axis = hist.axis.Variable(self.edges[name][selection], name=name)
        return _filled(axis, self._counts[name][selection])


def disjoint(members: NDArray[np.bool_]) -> Parts:
    """Samples put together that belong to the same selections, so that each is looked at once.

    Args:
        members: Which samples belong to which selection, (S, N).

    Returns:
        For each set of selections that occurs: which they are (S,), and the rows of its samples.
    """
    parts = [np.arange(members.shape[1])]
    for mine in members:
        halves = [half for rows in parts for half in (rows[mine[rows]], rows[~mine[rows]])]
        parts = [half for half in halves if len(half)]
    return [(members[:, rows[0]], rows) for rows in parts]


def float32_edges(edges: Array) -> NDArray[np.float32]:
    """Edges that float32 values are on the same side of as of the exact ones."""
    rounded = edges.astype(np.float32)
    return np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _count_sorted(values: NDArray[np.floating], edges: NDArray[np.floating]) -> NDArray[np.int64]:
    """Contents of a histogram of values in increasing order, with under- and overflow, (B + 2,)."""
    below = values.searchsorted(edges)
    found = np.empty(len(edges) + 1, dtype=np.int64)
    found[0], found[-1] = below[0], len(values) - below[-1]
    np.subtract(below[1:], below[:-1], out=found[1:-1])
    return found


def _filled(axis: hist.axis.Regular | hist.axis.Variable, counts: NDArray[np.int64]) -> hist.Hist[Any]:
    histogram = hist.Hist(axis, storage=hist.storage.Int64())
    histogram.view(flow=True)[:] = counts
    return histogram
