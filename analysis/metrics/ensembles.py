"""What is independent in a set of samples, and what follows: means, their errors and floors, by whole realisations.

Maps cut from one simulated box are not independent, boxes are. So everything is resampled by *unit*: a realisation
where the source says which there are, else a single sample.

Half the difference between the means of two disjoint halves has the covariance of the mean of all. So the floor of a
difference between two sides is what the halves of each give: (R1 - R2) / 2 + (G1 - G2) / 2, the same statistic for two
sides without any difference, at the sample sizes actually compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..survey.selections import ALL, Selection
from .conditioning import Curve
from .distances import scale_of, several
from .registry import Metric

Array = NDArray[np.float64]
Columns = NDArray[np.floating]
Rows = NDArray[np.bool_]
DRAWS = 40  # halves and bootstrap resamples


@dataclass(frozen=True)
class Ensemble:
    """Numbers measured on n samples of one side.

    Attributes:
        conditions: By name, (n,).
        columns: By name, (n, F).
        unit: Realisation of each sample, (n,); None if every sample is one of its own.
    """

    conditions: Mapping[str, Columns]
    columns: Mapping[str, Columns]
    unit: NDArray[np.integer] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def members(self, selection: Selection = ALL) -> Rows:
        """Which samples belong to a selection, (n,)."""
        return selection.of(self.conditions, len(self))

    def units(self, rows: Rows) -> NDArray[np.int64]:
        """The unit of some samples, numbered from 0, (m,)."""
        unit = None if self.unit is None else several(self.unit[rows])
        return np.arange(np.count_nonzero(rows)) if unit is None else np.unique(unit, return_inverse=True)[1]

    def curve(self, x: Array, values: Columns, rows: Rows) -> Curve:
        """Mean of columns (n, K) over some samples, with errors from the scatter between units."""
        chosen = values[rows].astype(np.float64)
        mean, unit = chosen.mean(axis=0), self.units(rows)
        deviations = unit_sums(chosen - mean, unit)
        count = len(deviations)
        variance = (deviations**2).sum(axis=0) * count / max(count - 1, 1)
        return Curve(x, mean, np.sqrt(variance) / len(chosen))


def shared(reference: Ensemble, generated: Ensemble) -> list[str]:
    """Conditions that vary on both sides."""
    sides = (reference, generated)
    return [n for n in reference.conditions if all(n in s.conditions and scale_of(s.conditions[n]) > 0 for s in sides)]


def unit_sums(values: Columns, unit: NDArray[np.int64]) -> Array:
    """Sums of columns (m, F) over the samples of each unit, (U, F)."""
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(unit.max() + 1 if len(unit) else 0))
    return np.asarray(np.add.reduceat(values[order], starts, axis=0, dtype=np.float64))


@dataclass(frozen=True)
class Spread:
    """A statistic of one side: its value, and how it varies with the units it is computed from.

    Attributes:
        value: Of all samples, (K,).
        noise: Half the difference of two disjoint halves, (S, K).
        again: Of bootstrap resamples, (S, K).
    """

    value: Array
    noise: Array
    again: Array

    @classmethod
    def of(cls, sums: Array, function: Callable[[Array], Array], seed: int) -> Spread:
        """The spread of a function of sums.

        Args:
            sums: Sums over the samples of each unit, (U, F).
            function: From weighted sums (S, F) to the statistic, (S, K).
            seed: Decides halves and resamples.
        """
        count = len(sums)
        rng = np.random.default_rng([seed, 8])
        first = np.zeros((DRAWS, count))
        for row in first:
            row[rng.permutation(count)[: count // 2]] = 1
        again = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            halves = [function(weights @ sums) for weights in (first, 1 - first)]
            return cls(function(sums.sum(axis=0)[None])[0], (halves[0] - halves[1]) / 2, function(again @ sums))

    @classmethod
    def of_means(
        cls, columns: Columns, unit: NDArray[np.int64], function: Callable[[Array], Array], seed: int
    ) -> Spread:
        """The spread of a function of mean columns, from (S, F) to (S, K).

        Args:
            columns: Of some samples, (m, F).
            unit: The unit of each sample, numbered from 0, (m,).
            function: From mean columns to the statistic.
            seed: Decides halves and resamples.
        """
        sums = unit_sums(np.column_stack([columns, np.ones(len(columns))]), unit)
        return cls.of(sums, lambda weighted: function(weighted[:, :-1] / weighted[:, -1:]), seed)


Norm = Callable[[Array], Array]


def distance(reference: Spread, generated: Spread, norm: Norm, n: int, unit: str = "") -> Metric:
    """How far a statistic is from the reference's, with the floor that two equal sides would give.

    Args:
        reference: Of the reference.
        generated: Of the generated samples.
        norm: From differences (S, K) to numbers, (S,).
        n: Samples on the smaller side.
        unit: Of the result.
    """
    value = norm((generated.value - reference.value)[None])[0]
    floors = norm(reference.noise + generated.noise)
    error = norm(generated.again - reference.again).std(ddof=1)
    floor_error = floors.std(ddof=1) / np.sqrt(len(floors))
    return Metric.of(float(value), float(error), float(floors.mean()), float(floor_error), n, unit)


def difference(reference: Spread, generated: Spread, n: int, *, ratio: bool = False) -> Metric:
    """Generated minus reference of a single number, or their ratio minus 1; the floor is 0, either sign is possible."""

    def signed(mine: Array, other: Array) -> Array:
        return np.asarray(mine / other - 1 if ratio else mine - other)

    with np.errstate(divide="ignore", invalid="ignore"):
        value = signed(generated.value, reference.value)[0]
        error = signed(generated.again, reference.again)[:, 0].std(ddof=1)
    return Metric.of(float(value), float(error), 0.0, 0.0, n)
