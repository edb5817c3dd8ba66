"""Distances between samples, and the splits of samples that give a distance its error and its floor.

The floor of a distance is what two independent sets of reference samples of the same size give. The reference is split
into random halves R1 and R2 many times; with n samples on each side, the value is the mean of D(R1, G), the floor
the mean of D(R1, R2), and the error the standard deviation of D between bootstrap resamples of n. A resample repeats
samples, which adds to the noise of a distance near its floor, so errors err on the large side there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calogen.errors import ShardError
from calogen.families import varies

from ..survey.histograms import count_sorted, float32_edges
from .registry import Metric, Quantity

Array = NDArray[np.float64]
Columns = NDArray[np.floating]
T = TypeVar("T")
SPLITS = 20
MAX_COMPARED = 50_000  # samples a side of one split; more would cost time and show nothing new
MIN_COMPARED = 2
FEWEST_UNITS = 4  # realisations below which samples are taken as independent

_WASSERSTEIN = "Wasserstein-1 distance of one observable, in its unit and in standard deviations of the reference."
W1 = Quantity("w1", "Wasserstein distance", _WASSERSTEIN)
W1_SD = Quantity("w1_sd", "Wasserstein distance in standard deviations", _WASSERSTEIN, unit="sd", counted=True)
_SEPARATION = (
    "Separation power of two histograms as in the CaloChallenge: 0 equal, 1 disjoint; blind beyond the axis, or with "
    "under- and overflow as two more bins."
)
SEPARATION = Quantity("separation", "separation power", _SEPARATION)
SEPARATION_FLOW = Quantity("separation_flow", "separation power with under- and overflow", _SEPARATION)
_CHI2 = "Chi-square per degree of freedom of the same histograms, with under- and overflow."
CHI2 = Quantity("chi2", "chi-square per degree of freedom", _CHI2, unit="per ndf")
_MOMENTS = (
    "Generated over reference mean, standard deviation and half width of the central 68 %, minus 1; for signed "
    "observables the difference of means in standard deviations."
)
MEAN = Quantity("mean", "mean", _MOMENTS)
SPREAD = Quantity("spread", "standard deviation", _MOMENTS)
_CONSTANT = (
    "Share of generated samples that differ, by more than rounding, from the one value that an observable has in all "
    "reference samples: there is no spread to measure a distance by, so means over observables leave it out."
)
UNEQUAL = Quantity("unequal", "samples unlike a constant reference", _CONSTANT)
CORE = Quantity("core", "half width of the central 68 %", _MOMENTS)
_WHOLE = "Distances of whole samples: over random directions, and exact between sub-samples of N."
SLICED_W1 = Quantity("sliced_w1", "sliced Wasserstein distance of whole samples", _WHOLE, headline=True, telling=True)
EMD = Quantity("emd", "earth mover's distance", _WHOLE, headline=True, large=True)


def wasserstein_1d(a: ArrayLike, b: ArrayLike) -> float:
    """Wasserstein-1 distance of two one-dimensional samples, in their unit.

    The integral of |F_a - F_b| over the merged samples; equal sizes reduce to the mean |a_(i) - b_(i)|.

    Args:
        a: (N,) finite values.
        b: (M,) finite values; M may differ from N.

    Raises:
        ValueError: If one of them is empty.
    """
    x, y = (np.sort(np.asarray(v, dtype=np.float64).ravel()) for v in (a, b))
    if not len(x) or not len(y):
        raise ValueError(f"a distance needs samples on both sides, got {len(x)} and {len(y)}")
    if len(x) == len(y):
        return float(np.abs(x - y).mean())
    from scipy.stats import wasserstein_distance  # takes a second to import

    return float(wasserstein_distance(x, y))


def earth_mover(a: ArrayLike, b: ArrayLike) -> float:
    """Exact earth mover's distance of two sets of whole samples under the Euclidean distance.

    Args:
        a: (N, V) samples.
        b: (M, V) samples in the same unit.

    Source: equal sizes are an assignment (Crouse 2016, scipy's); others POT's network simplex (Flamary et al. 2021).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    cost = np.sqrt(squared_distances(x, y))
    if len(x) == len(y):
        from scipy.optimize import linear_sum_assignment

        return float(cost[linear_sum_assignment(cost)].mean())
    import ot  # takes ten seconds to import

    return float(ot.emd2([], [], cost, numItermax=1_000_000))


def squared_distances(a: Columns, b: Columns) -> Columns:
    """Squared Euclidean distances between the rows of (N, V) and (M, V), (N, M), in the precision of the rows."""
    found = a @ b.T
    found *= -2
    found += (a**2).sum(axis=1)[:, None]
    found += (b**2).sum(axis=1)
    return np.maximum(found, 0, out=found)


def separation_power(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Separation power of two histograms: 0 if equal in shape, 1 if they do not overlap.

    Each is normalised to its own sum, so what lies outside the bins is invisible: compare under/overflow as well.

    Args:
        a: Bin contents, (..., B).
        b: Bin contents on the same bins.

    Source: CaloChallenge ``evaluate.py``: 1/2 sum (h1 - h2)^2 / (h1 + h2 + 1e-16), arXiv:2410.21611.
    """
    h, g = (_normalised(x) for x in (a, b))
    return np.asarray(0.5 * np.sum((h - g) ** 2 / (h + g + 1e-16), axis=-1))


def chi2_per_ndf(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Chi-square per degree of freedom of two unweighted histograms; about 1 if they differ by chance only.

    Args:
        a: Counts, (..., B), under- and overflow included.
        b: Counts on the same bins.

    Source: Gagunashvili, arXiv:physics/0605123, eq. 5.
    """
    h, g = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    total_h, total_g = h.sum(axis=-1, keepdims=True), g.sum(axis=-1, keepdims=True)
    both = h + g
    terms = np.divide((total_g * h - total_h * g) ** 2, both, out=np.zeros_like(both), where=both > 0)
    ndf = np.maximum(np.count_nonzero(both, axis=-1) - 1, 1)
    return np.asarray(terms.sum(axis=-1) / np.maximum(total_h * total_g, 1)[..., 0] / ndf)


def _normalised(counts: ArrayLike) -> Array:
    h = np.asarray(counts, dtype=np.float64)
    total = h.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(h, total, out=np.zeros_like(h), where=total > 0), dtype=np.float64)


@dataclass(frozen=True)
class Draws:
    """Which samples enter each comparison: the halves of the reference, the generated ones, and resamples of both.

    Attributes:
        n: Samples on each side of every comparison.
        first: Half R1 of each split, (S, N) true for n samples.
        second: Half R2, disjoint from R1.
        generated: The generated samples compared with R1, (S, M).
        first_again: How often each reference sample is in the split's bootstrap resample, (S, N), summing to n.
        generated_again: The same for the generated samples, (S, M).
    """

    n: int
    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    generated: NDArray[np.bool_]
    first_again: NDArray[np.uint16]
    generated_again: NDArray[np.uint16]

    @classmethod
    def make(
        cls,
        reference: int,
        generated: int,
        seed: int,
        *,
        groups: NDArray[np.integer] | None = None,
        splits: int = SPLITS,
        cap: int = MAX_COMPARED,
    ) -> Draws:
        """Draw the splits.

        Args:
            reference: Number of reference samples, N.
            generated: Number of generated samples, M.
            seed: Decides everything.
            groups: (N,) realisation of each reference sample. Maps cut from one simulation box are not independent,
                so halves and resamples are made of whole realisations (if there are at least four).
            splits: Number of splits, S.
            cap: Largest n.

        Raises:
            ShardError: If there are too few samples to split.
        """
        rng = np.random.default_rng(seed)
        split = [halves(rng, reference, groups) for _ in range(splits)]
        n = min(cap, generated, *(min(len(a), len(b)) for a, b in split))
        if n < MIN_COMPARED:
            raise too_few("to compare", MIN_COMPARED, reference, generated, "give more samples or fewer bins")
        first, second = np.zeros((2, splits, reference), dtype=bool)
        chosen = np.zeros((splits, generated), dtype=bool)
        again = np.zeros((splits, reference), dtype=np.uint16)
        generated_again = np.zeros((splits, generated), dtype=np.uint16)
        for s, (a, b) in enumerate(split):
            first[s, rng.permutation(a)[:n]] = True
            second[s, rng.permutation(b)[:n]] = True
            chosen[s, rng.permutation(generated)[:n]] = True
            again[s] = np.bincount(_resample(rng, reference, n, groups), minlength=reference)
            generated_again[s] = np.bincount(rng.integers(generated, size=n), minlength=generated)
        return cls(n, first, second, chosen, again, generated_again)

    def parts(self, reference: Columns, generated: Columns) -> Iterator[tuple[Columns, Columns, Columns]]:
        """Of samples (N, ...) and (M, ...), those of every split: R1, the generated ones, and R2."""
        for first, mine, second in zip(self.first, self.generated, self.second, strict=True):
            yield reference[first], generated[mine], reference[second]

    def pairs(
        self, reference: Callable[[NDArray[np.generic]], T], generated: Callable[[NDArray[np.generic]], T]
    ) -> tuple[tuple[T, T], tuple[T, T], tuple[T, T]]:
        """What is measured on the samples compared: on R1 and the generated ones, R1 and R2, R1* and G*.

        Args:
            reference: Measures the reference samples that every split has, given as (S, N).
            generated: The same for generated samples, (S, M).
        """
        first, second, again = (reference(picks) for picks in (self.first, self.second, self.first_again))
        mine, mine_again = (generated(picks) for picks in (self.generated, self.generated_again))
        return (first, mine), (first, second), (again, mine_again)

    def each(self, distance: Callable[[Columns, Columns], ArrayLike], reference: Columns, generated: Columns) -> Array:
        """Any distance of samples (N, ...) and (M, ...) for every split: D(R1, G), D(R1, R2), D(R1*, G*); (3, S).

        Of distances that are several numbers, (K,), all of them: (K, 3, S).
        """
        found = []
        for s, (first, mine, second) in enumerate(self.parts(reference, generated)):
            again = np.repeat(reference, self.first_again[s], axis=0)
            mine_again = np.repeat(generated, self.generated_again[s], axis=0)
            found.append([distance(first, mine), distance(first, second), distance(again, mine_again)])
        return np.array(found).T


def too_few(purpose: str, fewest: int, reference: int, generated: int, hint: str) -> ShardError:
    """The error of samples that leave fewer than ``fewest`` on a side, the reference being halved."""
    needed, found = (
        f"{r} reference and {g} generated samples" for r, g in ((2 * fewest, fewest), (reference, generated))
    )
    return ShardError(f"too few samples {purpose}", expected=f"at least {needed}", found=found, hint=hint)


def several(groups: NDArray[np.integer] | None) -> NDArray[np.integer] | None:
    """The realisations of samples, (N,), if there are enough to resample by; else None: each sample by itself."""
    return groups if groups is not None and len(np.unique(groups)) >= FEWEST_UNITS else None


def halves(
    rng: np.random.Generator, count: int, groups: NDArray[np.integer] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two random halves of ``count`` samples; of whole realisations where there are four or more."""
    if (groups := several(groups)) is None:
        order = rng.permutation(count)
        return order[: count // 2], order[count // 2 :]
    names = np.unique(groups)
    left = np.isin(groups, rng.permutation(names)[: len(names) // 2])
    return np.flatnonzero(left), np.flatnonzero(~left)


def _resample(rng: np.random.Generator, count: int, n: int, groups: NDArray[np.integer] | None) -> NDArray[np.int64]:
    if (groups := several(groups)) is None:
        return rng.integers(count, size=n)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    rows = np.concatenate([members[i] for i in rng.integers(len(members), size=max(1, len(members) // 2))])
    return np.asarray(rng.choice(rows, size=n, replace=n > len(rows)), dtype=np.int64)


def compare_1d(
    reference: Columns, generated: Columns, edges: Array, draws: Draws, resolution: float = 0.0
) -> dict[Quantity, Array]:
    """All one-dimensional distances of one observable, from one sort of each side.

    A subset of a sorted sample is sorted, so each split costs no more than a selection.

    Args:
        reference: (N,) finite values.
        generated: (M,) finite values in the same unit.
        edges: Histogram edges, (B + 1,), for separation power and chi-square.
        draws: The samples of every split.
        resolution: Of the observable, in its unit.

    Returns:
        D(R1, G), D(R1, R2) and D(R1*, G*) of every split, (3, S), by quantity.
    """
    from .sorted_kernel import pick  # imports numba

    def sorted_once(column: Columns) -> Callable[[NDArray[np.generic]], tuple[Columns, NDArray[np.int64]]]:
        order = np.argsort(column)
        values = column[order]
        bounds = float32_edges(edges) if values.dtype == np.float32 else edges

        def measured(picks: NDArray[np.generic]) -> tuple[Columns, NDArray[np.int64]]:
            found = np.empty((len(picks), draws.n + 1), values.dtype)
            pick(values, order, picks, found)
            return found[:, :-1], np.stack([count_sorted(row, bounds) for row in found[:, :-1]])

        return measured

    pairs = draws.pairs(sorted_once(reference), sorted_once(generated))
    return {
        # Row by row: what is between stays in the cache.
        W1: np.asarray([list(map(_mean_distance, x, y)) for (x, _), (y, _) in pairs]),
        SEPARATION: np.asarray([separation_power(a[:, 1:-1], b[:, 1:-1]) for (_, a), (_, b) in pairs]),
        SEPARATION_FLOW: np.asarray([separation_power(a, b) for (_, a), (_, b) in pairs]),
        CHI2: np.asarray([chi2_per_ndf(a, b) for (_, a), (_, b) in pairs]),
        CORE: np.asarray([_width_ratio(x, y, resolution) for (x, _), (y, _) in pairs]),
    }


def _mean_distance(x: Columns, y: Columns) -> float:
    """Of two sorted sets of one size, (n,) each."""
    return float(np.abs(x - y).mean(dtype=np.float64))


def _width_ratio(reference: Columns, generated: Columns, resolution: float) -> Array:
    """Half width of the central 68 % of sorted values (S, n), generated over reference, minus 1; (S,)."""
    below, above = (round(q * (reference.shape[1] - 1)) for q in (0.16, 0.84))
    width, other = (np.subtract(x[:, above], x[:, below], dtype=np.float64) for x in (reference, generated))
    known = varies(width, np.abs(reference[:, [below, above]]).max(axis=1), resolution)
    return np.asarray(np.divide(other, width, out=np.full(len(width), np.nan), where=known) - 1)


def moment_differences(
    reference: Columns, generated: Columns, *, signed: bool, resolution: float = 0.0
) -> dict[Quantity, Metric]:
    """``mean`` and ``spread``. They average to zero between halves of one sample: their floor is 0 without a split."""
    n, unit = min(len(reference), len(generated)), "sd" if signed else ""
    return {
        MEAN: Metric.of(
            *mean_difference(reference, generated, signed=signed, resolution=resolution), 0.0, 0.0, n, unit
        ),
        SPREAD: Metric.of(*spread_difference(reference, generated, resolution), 0.0, 0.0, n),
    }


def mean_difference(
    reference: Columns, generated: Columns, *, signed: bool, resolution: float = 0.0
) -> tuple[float, float]:
    """Generated over reference mean, minus 1, and its error; for signed quantities the difference in reference sd.

    Undefined where there is nothing to divide by, unless the sides are equal.
    """
    r, g = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    scale = scale_of(r, resolution) if signed else abs(float(r.mean()))
    if scale <= resolution:
        return (math.nan, math.nan) if unequal(r, g, resolution).any() else (0.0, 0.0)
    ratio = 1.0 if signed else abs(float(g.mean())) / scale
    variance = g.var() / len(g) + ratio**2 * r.var() / len(r)
    return float(g.mean() - r.mean()) / scale, math.sqrt(float(variance)) / scale


def spread_difference(reference: Columns, generated: Columns, resolution: float = 0.0) -> tuple[float, float]:
    """Generated over reference standard deviation, minus 1, and its error.

    Of a constant reference 0 if the generated samples are constant, too; else undefined.

    Source: the variance of a sample variance, (m4 - m2^2) / N, propagated.
    """
    spreads, relative = [], 0.0
    for column in (reference, generated):
        deviation = np.asarray(column, dtype=np.float64)
        deviation = deviation - deviation.mean()
        square = deviation * deviation  # a general power takes twenty times as long
        m2, m4 = float(square.mean()), float(square @ square) / len(square)
        spreads.append(math.sqrt(m2))
        relative += max(m4 / m2**2 - 1, 0.0) / (4 * len(deviation)) if m2 > 0 else 0.0
    if scale_of(reference, resolution) == 0:
        return (0.0, 0.0) if scale_of(generated, resolution) == 0 else (math.nan, math.nan)
    ratio = spreads[1] / spreads[0]
    return ratio - 1, ratio * math.sqrt(relative)


def quantile(values: Array, level: float) -> tuple[float, float]:
    """A quantile and its error: its rank scatters binomially."""
    step = math.sqrt(level * (1 - level) / len(values))
    low, at, high = np.quantile(values, np.clip([level - step, level, level + step], 0, 1))
    return float(at), float(high - low) / 2


def scale_of(reference: Columns, resolution: float = 0.0) -> float:
    """The reference's standard deviation, the yardstick of ``w1_sd``; 0 where it is constant but for rounding.

    Args:
        reference: (N,) finite values, N > 0.
        resolution: Of the observable, in its unit.
    """
    column = np.asarray(reference, dtype=np.float64)
    spread = float(column.std())
    return spread if varies(spread, float(np.abs(column).max()), resolution) else 0.0


def unequal(reference: Columns, generated: Columns, resolution: float = 0.0) -> NDArray[np.bool_]:
    """Which generated values (M,) differ from the one value of a constant reference (N,) by more than rounding."""
    value = float(np.mean(reference, dtype=np.float64))
    away = np.abs(np.asarray(generated, dtype=np.float64) - value)
    return np.asarray(varies(away, np.maximum(np.abs(generated), abs(value)), resolution))
