"""Distances between samples of many observables at once: Frechet and kernel physics distance, density, coverage.

A one-dimensional distance sees each observable by itself; these see how observables go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calogen.families import varies

from ..survey.plan import SurveyPlan
from ..survey.survey import Survey, vectors
from .distances import Columns, Draws, squared_distances
from .kinds import kind_of
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
RECOMMENDED = 50_000  # samples below which jetnet warns about FPD and KPD
NEIGHBOURS = 5
_KERNEL_BATCH = 5000
_SMALLEST_SHARE = 0.4  # of the largest batch, as in jetnet: 20,000 of 50,000
_POINTS = 10
_FRECHET_WORK = 8e8  # samples times squared features of one covariance matrix
_MANIFOLD_SAMPLES = 2000
_MANIFOLD_ROWS = 20_000  # samples that the splits of density and coverage are drawn from
_FEWEST_FRECHET = 50
_FEWEST_KERNEL = 10
_BLOCK = 32  # rows of a kernel matrix held at a time: they stay in the cache
_BALLS = 64  # balls looked into at a time: distances from their centres stay in the cache
_PHYSICS = "Fr\u00e9chet and kernel distance of observables (jetnet's definitions) with N samples a side."
FPD = Quantity("fpd", "FPD", _PHYSICS, headline=True, large=True)
KPD = Quantity("kpd", "KPD", _PHYSICS, headline=True, large=True)
_NEIGHBOURHOOD = (
    "How crowded with reference samples the generated ones lie, and how much of the reference has a generated "
    "neighbour (Naeem et al. 2020); 1 would be perfect."
)
DENSITY = Quantity("density", "density among the reference", _NEIGHBOURHOOD, headline=True)
_telling = partial(Quantity, headline=True, large=True, telling=True)
COVERAGE = _telling("coverage", "coverage of the reference", _NEIGHBOURHOOD)
_CORRELATIONS = "Root mean square difference of the correlation matrices of observables."
CORRELATION = _telling("correlation", "correlations between observables", _CORRELATIONS)


def thinned(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Rows of a seeded sub-sample in increasing order: all of them, or ``most``."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 4]).choice(count, size=most, replace=False))


def some_vectors(side: Survey, plan: SurveyPlan, most: int) -> tuple[Columns, NDArray[np.integer] | None]:
    """At most so many of the samples kept whole, as vectors (n, V), and their realisations, (n,)."""
    rows, groups = thinned(len(side.kept), most, plan.seed), side.kept_groups
    return vectors(side.kept.select(rows), plan.fixed_scale), None if groups is None else groups[rows]


def scaled_by_largest(reference: ArrayLike, *others: ArrayLike) -> list[Array]:
    """Features divided by their largest absolute reference value, as jetnet does; the reference comes first."""
    sides = [np.asarray(x, dtype=np.float64) for x in (reference, *others)]
    largest = np.abs(sides[0]).max(axis=0)
    return [x / np.where(largest > 0, largest, 1.0) for x in sides]


def moments(columns: Array, times: NDArray[np.integer]) -> tuple[Array, Array]:
    """Mean (F,) and covariance (F, F) of features (F, n) about 0, with each sample as often as ``times`` (n,) says."""
    count = times.sum()
    mean = columns @ times / count
    weighted = columns * np.sqrt(times)
    return mean, (weighted @ weighted.T - count * np.outer(mean, mean)) / (count - 1)


def frechet_distance(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Frechet distance of two Gaussians given by their :func:`moments`.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)); the root's trace is taken from the symmetric product
    C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues and stays real when a matrix is singular.
    """
    (mean, covariance), (mean_b, covariance_b) = a, b
    values, axes = np.linalg.eigh(covariance)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_b @ root), 0)).sum()
    return float(np.sum((mean - mean_b) ** 2) + np.trace(covariance) + np.trace(covariance_b) - 2 * overlap)


def batch_sizes(smallest: int, largest: int, points: int = _POINTS) -> NDArray[np.int64]:
    """Sizes of batches at equal steps of 1/N."""
    return np.asarray(1 / np.linspace(1 / smallest, 1 / largest, points)).astype(np.int64)


def extrapolate(sizes: NDArray[np.int64], values: Array) -> tuple[float, float]:
    """Intercept of a line in 1/N, neither intercept nor slope below 0, and its error from the scatter about it."""
    from scipy.optimize import nnls

    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    found, residual = nnls(design, values)
    variance = residual**2 / (len(sizes) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return float(found[0]), math.sqrt(float(variance))


def physics_distances(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """FPD and KPD of the kind's features, with errors and floors; splits of the reference serve as jetnet's batches.

    Keys are ``fpd_SIZE`` and ``kpd_SIZE`` with the number of samples in the largest batch, since values depend on it.
    """
    features = kind_of(plan.family).features
    width = features(reference, plan, np.arange(1)).shape[1]
    largest = min(RECOMMENDED, int(_FRECHET_WORK / width**2))
    sides, groups = (reference, generated), reference.groups
    rows = [thinned(side.table.shape[1], 2 * largest, plan.seed) for side in sides]
    x, y = scaled_by_largest(*(features(side, plan, r) for side, r in zip(sides, rows, strict=True)))
    groups = None if groups is None else groups[rows[0]]
    largest = rounded_down(min(largest, len(x) // 2, len(y)))
    found = {}
    if largest >= _FEWEST_FRECHET:
        draws = Draws.make(len(x), len(y), plan.seed, groups=groups, cap=largest)
        found[Key(FPD, size=draws.n)] = _frechet_metric(x, y, draws, plan.seed)
    size = rounded_down(min(_KERNEL_BATCH, len(x) // 2, len(y) // 2))
    if size >= _FEWEST_KERNEL:
        draws = Draws.make(len(x), len(y), plan.seed + 1, groups=groups, cap=size)
        found[Key(KPD, size=draws.n)] = _kernel_metric(x, y, draws)
    return found


def _frechet_metric(x: Array, y: Array, draws: Draws, seed: int) -> Metric:
    """FPD of scaled features (N, F) and (M, F)."""
    largest = draws.n
    sizes = batch_sizes(math.ceil(_SMALLEST_SHARE * largest), largest)
    rng = np.random.default_rng([seed, 3])
    found = np.empty((3, len(draws.first), len(sizes)))
    centre = x.mean(axis=0)  # covariances of what lies far from 0 would be small differences of large numbers
    a, b = (np.ascontiguousarray((side - centre).T) for side in (x, y))
    for s in range(len(draws.first)):
        halves = [a[:, draws.first[s]], b[:, draws.generated[s]], a[:, draws.second[s]]]
        halves += [np.repeat(a, draws.first_again[s], axis=1), np.repeat(b, draws.generated_again[s], axis=1)]
        for p, size in enumerate(sizes):
            # How often a sample is drawn says as much as a copy of it for each time, and needs no copies.
            drawn = [np.bincount(rng.integers(largest, size=size), minlength=largest) for _ in halves]
            base, mine, other, *resampled = (moments(h, times) for h, times in zip(halves, drawn, strict=True))
            found[0, s, p] = frechet_distance(base, mine)
            found[1, s, p] = frechet_distance(base, other)
            found[2, s, p] = frechet_distance(*resampled)
    value, floor = (extrapolate(sizes, f.mean(axis=0))[0] for f in found[:2])
    line = np.linalg.pinv(np.stack([np.ones(len(sizes)), 1 / sizes], axis=1))[0]
    # Intercepts of single splits, unconstrained: what scatters about 0 must be free to.
    error, floor_error = (float((f @ line).std(ddof=1)) for f in (found[2], found[1]))
    return Metric.of(value, error, floor, floor_error / math.sqrt(len(draws.first)), largest)


def rounded_down(count: int) -> int:
    """A count to two significant digits, never more than it is: sizes in keys should not depend on every sample."""
    step = 10 ** max(0, len(str(count)) - 2)
    return int(count // step * step)


def kernel_distance(a: Columns, b: Columns) -> float:
    """Unbiased squared maximum mean discrepancy with the polynomial kernel (x.y / F + 1)^4.

    Source: jetnet 0.2.5 ``_mmd_poly_quadratic_unbiased``; Gretton et al. 2012.
    """
    return _kernel_mean(a, a) + _kernel_mean(b, b) - 2 * _kernel_mean(a, b)


def _kernel_mean(a: Columns, b: Columns) -> float:
    """Mean kernel of all pairs; of a sample with itself, of all pairs of different samples."""
    columns = np.ascontiguousarray(b.T) / b.shape[1]
    total = 0.0
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        if a is b:  # each pair once: those within the block, then those with what follows
            end = start + len(block)
            within = (block @ columns[:, start:end] + 1) ** 4
            total += float(within.sum() - np.trace(within)) + 2 * _sum_of_fourth_powers(block @ columns[:, end:] + 1)
        else:
            total += _sum_of_fourth_powers(block @ columns + 1)
    return total / (len(a) * (len(b) - (a is b)))


def _sum_of_fourth_powers(values: Columns) -> float:
    squares = np.square(values, out=values).ravel()
    return float(squares @ squares)


def fourth_power_kernel(a: Columns, b: Columns) -> Columns:
    """(x.y / F + 1)^4 of all pairs of (N, F) and (M, F), (N, M)."""
    kernel = a @ b.T
    kernel /= a.shape[1]
    kernel += 1
    np.multiply(kernel, kernel, out=kernel)
    return np.multiply(kernel, kernel, out=kernel)


def _kernel_metric(x: Array, y: Array, draws: Draws) -> Metric:
    """KPD of scaled features (N, F) and (M, F)."""
    found = []
    for base, mine, other in draws.parts(x, y):
        own = _kernel_mean(base, base)
        found.append([own + _kernel_mean(z, z) - 2 * _kernel_mean(base, z) for z in (mine, other)])
    value, floor = np.median(found, axis=0)
    low, high = np.percentile(found, (16.275, 83.725), axis=0)
    error, floor_error = (high - low) / 2
    return Metric.of(value, error, floor, floor_error / math.sqrt(len(found)), draws.n)


def density_coverage(
    reference: Columns, *generated: Columns, neighbours: int = NEIGHBOURS
) -> list[tuple[float, float]]:
    """Density and coverage of generated samples with respect to the reference.

    Around each reference sample lies a ball that reaches to its k-th nearest reference neighbour. Density: balls that
    a generated sample lies in, on average, over k; 1 for equal distributions, less where samples lie where no
    reference does. Coverage: share of balls with a generated sample in them; 1 - 2^-k for equal distributions and
    sizes, less where modes are missing.

    Args:
        reference: (N, F), N > k, on scales that can be compared.
        generated: (M, F), any number of times; each is compared by itself.
        neighbours: k.

    Source: Naeem et al. 2020, arXiv:2002.09797.
    """
    found = np.zeros((len(generated), 2))
    for start in range(0, len(reference), _BALLS):
        centres = reference[start : start + _BALLS]
        within = squared_distances(centres, reference)
        np.fill_diagonal(within[:, start:], np.inf)
        radius = np.partition(within, neighbours - 1, axis=1)[:, neighbours - 1 : neighbours]
        for counts, samples in zip(found, generated, strict=True):
            inside = np.count_nonzero(squared_distances(centres, samples) <= radius, axis=1)
            counts += inside.sum() / (len(samples) * neighbours), np.count_nonzero(inside) / len(reference)
    return [(float(density), float(coverage)) for density, coverage in found]


def manifold_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """``density`` and ``coverage`` of the observables that show modes, each in its standard deviations.

    Few observables on purpose: among dozens, neighbours are so far apart that their balls reach over a
    gap. Nothing for a few samples.
    """
    sides, names = (reference, generated), kind_of(plan.family).modes(reference, plan)
    chosen = [reference.names.index(name) for name in names]
    rows = [thinned(side.table.shape[1], _MANIFOLD_ROWS, plan.seed) for side in sides]
    n = min(_MANIFOLD_SAMPLES, *(len(r) // 2 for r in rows))
    if n <= NEIGHBOURS:
        return {}
    base, other = (side.table[chosen][:, r].astype(np.float64) for side, r in zip(sides, rows, strict=True))
    centre, spread = base.mean(axis=1), base.std(axis=1)
    known = varies(spread, np.abs(base).max(axis=1), plan.resolutions[chosen])
    # Differences of large numbers would lose digits, hence the centre.
    x, y = ((side[known].T - centre[known]) / spread[known] for side in (base, other))
    groups = None if reference.groups is None else reference.groups[rows[0]]
    draws = Draws.make(len(x), len(y), plan.seed + 2, groups=groups, cap=n)
    values = np.array([density_coverage(*parts) for parts in draws.parts(x, y)])
    return {  # values: split, side, metric
        Key(quantity): Metric.from_subsamples(values[:, 0, i], values[:, 1, i], draws.n, min(len(x), len(y)))
        for i, quantity in enumerate((DENSITY, COVERAGE))
    }


def correlation_matrix(columns: NDArray[np.floating], resolution: ArrayLike = 0.0) -> Array:
    """Pearson correlations of (K, N) observables with their resolutions, (K, K); 0 where one of them is constant."""
    constant = ~varies(columns.std(axis=1, dtype=np.float64), np.abs(columns).max(axis=1), np.asarray(resolution))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.corrcoef(columns, dtype=np.float64)
    found[constant], found[:, constant] = 0, 0
    return np.asarray(found)


def correlation_distance(a: NDArray[np.floating], b: NDArray[np.floating], resolution: ArrayLike = 0.0) -> float:
    """Root mean square difference of the correlation matrices of (N, K) and (M, K) observables with resolutions (K,).

    Of observables that vary in ``a``; one that is constant in ``b`` is not correlated there.
    """
    first, second = (correlation_matrix(side.T, resolution) for side in (a, b))
    known = np.diag(first) > 0
    return math.sqrt(float(np.mean((first - second)[np.ix_(known, known)] ** 2))) if known.any() else 0.0


def caveats(found: Mapping[Key, Metric]) -> list[str]:
    """Sentences about metrics whose sample is smaller than the field's recommendation."""
    keys = [key for key in found if key.quantity in (FPD, KPD)]
    if not any(key.quantity == FPD and key.size < RECOMMENDED for key in keys):
        return []
    return [
        f"{' and '.join(keys)}: fewer than the recommended {RECOMMENDED:,} samples a side; "
        "compare these only with the same sizes, and with their floor."
    ]
