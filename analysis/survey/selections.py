"""Selections of samples in bins of a condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.families import Condition, Family

Array = NDArray[np.float64]
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
            name, title = interval(condition, low, high)
            # The last bin contains the top of the range.
            top = np.nextafter(np.float32(high), np.float32(np.inf)) if k == len(edges) - 2 else high
            found.append(Selection(name, title, condition.name, float(low), float(top)))
    return tuple(found)


def _of_labels(condition: Condition, values: NDArray[np.floating]) -> list[Selection]:
    """The samples of each label that there are, if there are several."""
    codes = [k for k in range(len(condition.labels)) if (values == k).any()]
    names = [(k, condition.name, condition.labels[k]) for k in codes] if len(codes) > 1 else []
    return [Selection(f"{name}={label}", f"{name} {label}", name, k - 0.5, k + 0.5) for k, name, label in names]


def interval(condition: Condition, low: float, high: float) -> tuple[str, str]:
    """A bin for keys and for people: ``10:20GeV`` of the incident energy, ``sigma_8=0.6:0.7`` of other conditions."""
    factor, unit = condition.shown(high)
    first, last = f"{low * factor:.4g}", f"{high * factor:.4g}"
    key, words = ("", "") if condition.role == "energy" else (f"{condition.name}=", f"{condition.name} ")
    return f"{key}{first}:{last}{unit}", f"{words}{first} to {last} {unit}".rstrip()


def condition_edges(condition: Condition, values: Array, bins: int) -> Array:
    """Edges of at most ``bins`` bins of a condition for some values of it; empty if all are equal."""
    values = values[np.isfinite(values)]
    if not len(values) or values.min() == values.max():
        return np.empty(0)
    candidates = [_equal_edges(condition, values, bins, log=log) for log in (False, True)[: 1 + (values.min() > 0)]]
    populations = [np.histogram(values, edges)[0].min() for edges in candidates]
    best = int(np.argmax(populations))
    if populations[best] >= 0.2 * len(values) / bins:
        return candidates[best]
    quantiles = np.quantile(values, np.linspace(0, 1, bins + 1))
    inner = [float(f"{q:.2g}") for q in quantiles[1:-1]]
    edges = np.unique([float(quantiles[0]), *inner, float(quantiles[-1])])
    return np.asarray(edges[(edges >= quantiles[0]) & (edges <= quantiles[-1])])


def _equal_edges(condition: Condition, values: Array, bins: int, *, log: bool) -> Array:
    forward, backward = (np.log, np.exp) if log else (np.asarray, np.asarray)
    low, high = (float(forward(x)) for x in (values.min(), values.max()))
    near = 0.05 * (high - low)
    if not log or condition.low > 0:
        family_low, family_high = (float(forward(x)) for x in (condition.low, condition.high))
        low = family_low if abs(family_low - low) <= near else low
        high = family_high if abs(family_high - high) <= near else high
    edges = np.asarray(backward(np.linspace(low, high, bins + 1)), dtype=np.float64)
    edges[0] = min(edges[0], values.min())
    edges[-1] = max(edges[-1], values.max())
    return edges


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
