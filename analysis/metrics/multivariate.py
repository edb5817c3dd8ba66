"""Distances between samples of many observables at once: Frechet and kernel physics distance, density, coverage.

A one-dimensional distance sees each observable by itself; these see how observables go together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..observables.observable import Observable
from ..survey.plan import SurveyPlan
from ..survey.survey import Survey
from .distances import Columns, Draws, Metric, squared_distances

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
_MAIN_LAYERS = 8
_BLOCK = 256  # rows of a kernel matrix held at a time
_EMPTY = 1e-8  # MeV added before the logarithm of a layer's energy, as in CaloChallenge


def thinned(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Rows of a seeded sub-sample in increasing order: all of them, or ``most``."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 4]).choice(count, size=most, replace=False))


def features(side: Survey, plan: SurveyPlan, rows: NDArray[np.int64]) -> Array:
    """The high-level features whose FPD and KPD are measured, for some of a survey's columns, (rows, F).

    Showers: CaloChallenge's, which are log10 of the incident and the layers' energies, and each layer's centre and
    width in x and y. Maps: all observables, logarithms of those that spread over decades.

    Source: CaloChallenge ``evaluate.py``, ``prepare_high_data_for_classifier`` (its factors 1/100 of lengths cancel).
    """
    columns: list[NDArray[np.floating]] = []
    if plan.family.kind == "calorimeter" and plan.has_energy and "incident_energy" in side.conditions:
        columns.append(np.log10(np.maximum(side.conditions["incident_energy"][rows], np.finfo(np.float32).tiny)))
    for name, observable in plan.observables.items():
        column = side.table[side.names.index(name), rows].astype(np.float64)
        if plan.family.kind == "map":
            columns.append(np.log10(np.maximum(column, _EMPTY)) if observable.log else column)
        elif _is_layer_energy(observable):
            columns.append(np.log10(np.maximum(column, 0) + _EMPTY))
        elif name.startswith(("centre_x_", "centre_y_", "width_x_", "width_y_")):
            columns.append(column)
    return np.stack(columns, axis=1).astype(np.float64)


def _is_layer_energy(observable: Observable) -> bool:
    return observable.layer is not None and observable.name == f"energy_{observable.layer}"


def scaled_by_largest(reference: ArrayLike, *others: ArrayLike) -> list[Array]:
    """Features divided by their largest absolute reference value, as jetnet does; the reference comes first."""
    sides = [np.asarray(x, dtype=np.float64) for x in (reference, *others)]
    largest = np.abs(sides[0]).max(axis=0)
    return [x / np.where(largest > 0, largest, 1.0) for x in sides]


def moments(x: Array) -> tuple[Array, Array]:
    """Mean (F,) and covariance (F, F) of (n, F) features."""
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


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


def frechet_physics_distance(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    smallest: int = 20_000,
    largest: int = 50_000,
    batches: int = 20,
    points: int = _POINTS,
    seed: int = 42,
) -> tuple[float, float]:
    """Frechet physics distance (FPD) and the error of its fit.

    Frechet distances of random batches, averaged at each of several sizes and extrapolated linearly in 1/N to
    infinite N. Batches are drawn with replacement, so samples hardly larger than ``largest`` keep some bias: compare
    with the same number for reference against reference.

    Args:
        reference: (N, F) features; each is divided by its largest absolute reference value.
        generated: (M, F) features.
        smallest: Smallest batch.
        largest: Largest batch.
        batches: Batches of each size.
        points: Sizes, at equal steps of 1/N.
        seed: Decides the batches.

    Returns:
        The distance, not negative, and the error of the fit.

    Source: Kansal et al. 2023, arXiv:2211.10295; jetnet 0.2.5 ``fpd``, whose defaults these are.
    """
    x, y = scaled_by_largest(reference, generated)
    sizes = _batch_sizes(smallest, largest, points)
    rng = np.random.default_rng(seed)
    found = np.empty((points, batches))
    for p, size in enumerate(sizes):
        for k in range(batches):
            rows = [rng.choice(len(side), size=size) for side in (x, y)]  # jetnet's order: the same seed, its numbers
            found[p, k] = frechet_distance(moments(x[rows[0]]), moments(y[rows[1]]))
    return _extrapolate(sizes, found.mean(axis=1))


def _batch_sizes(smallest: int, largest: int, points: int) -> NDArray[np.int64]:
    return np.asarray(1 / np.linspace(1 / smallest, 1 / largest, points)).astype(np.int64)


def _extrapolate(sizes: NDArray[np.int64], values: Array) -> tuple[float, float]:
    """Intercept of a line in 1/N, neither intercept nor slope below 0, and its error from the scatter about it."""
    from scipy.optimize import nnls

    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    found, residual = nnls(design, values)
    variance = residual**2 / (len(sizes) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return float(found[0]), math.sqrt(float(variance))


def physics_distances(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[str, Metric]:
    """FPD and KPD of the :func:`features`, with errors and floors; splits of the reference serve as jetnet's batches.

    Keys are ``fpd_SIZE`` and ``kpd_SIZE`` with the number of samples in the largest batch, since values depend on it.
    """
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
        found[f"fpd_{draws.n}"] = _frechet_metric(x, y, draws, plan.seed)
    size = rounded_down(min(_KERNEL_BATCH, len(x) // 2, len(y) // 2))
    if size >= _FEWEST_KERNEL:
        draws = Draws.make(len(x), len(y), plan.seed + 1, groups=groups, cap=size)
        found[f"kpd_{draws.n}"] = _kernel_metric(x, y, draws)
    return found


def _frechet_metric(x: Array, y: Array, draws: Draws, seed: int) -> Metric:
    """FPD of scaled features (N, F) and (M, F)."""
    largest = draws.n
    sizes = _batch_sizes(math.ceil(_SMALLEST_SHARE * largest), largest, _POINTS)
    rng = np.random.default_rng([seed, 3])
    found = np.empty((3, len(draws.first), len(sizes)))
    for s in range(len(draws.first)):
        again, mine_again = draws.first_again[s], draws.generated_again[s]
        halves = [x[draws.first[s]], y[draws.generated[s]], x[draws.second[s]]]
        halves += [np.repeat(x, again, axis=0), np.repeat(y, mine_again, axis=0)]
        for p, size in enumerate(sizes):
            base, mine, other, *resampled = (moments(h[rng.integers(len(h), size=size)]) for h in halves)
            found[0, s, p] = frechet_distance(base, mine)
            found[1, s, p] = frechet_distance(base, other)
            found[2, s, p] = frechet_distance(*resampled)
    value, floor = (_extrapolate(sizes, f.mean(axis=0))[0] for f in found[:2])
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
    total = 0.0
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        if a is b:  # each pair once: those within the block, then those with what follows
            within = fourth_power_kernel(block, block)
            total += float(within.sum() - np.trace(within))
            total += 2 * float(fourth_power_kernel(block, b[start + len(block) :]).sum())
        else:
            total += float(fourth_power_kernel(block, b).sum())
    return total / (len(a) * (len(b) - (a is b)))


def fourth_power_kernel(a: Columns, b: Columns) -> Columns:
    """(x.y / F + 1)^4 of all pairs of (N, F) and (M, F), (N, M)."""
    kernel = a @ b.T
    kernel /= a.shape[1]
    kernel += 1
    np.multiply(kernel, kernel, out=kernel)
    return np.multiply(kernel, kernel, out=kernel)


def kernel_physics_distance(
    reference: ArrayLike, generated: ArrayLike, *, batches: int = 10, size: int = _KERNEL_BATCH, seed: int = 42
) -> tuple[float, float]:
    """Kernel physics distance (KPD): the median of :func:`kernel_distance` over random batches, and its error.

    Args:
        reference: (N, F) features; each is divided by its largest absolute reference value.
        generated: (M, F) features.
        batches: Number of batches, drawn with replacement.
        size: Samples of a batch.
        seed: Decides the batches.

    Returns:
        The median, and half the width of the central 67.45 % of the batches.

    Source: Kansal et al. 2023, arXiv:2211.10295; jetnet 0.2.5 ``kpd``, whose defaults these are.
    """
    x, y = scaled_by_largest(reference, generated)
    found = []
    for batch in range(batches):
        rng = np.random.default_rng(seed + 1000 * batch)  # as in jetnet
        found.append(kernel_distance(*(side[rng.choice(len(side), size=size)] for side in (x, y))))
    return float(np.median(found)), _half_width(found)


def _half_width(values: ArrayLike) -> float:
    low, high = np.percentile(np.asarray(values, dtype=np.float64), (16.275, 83.725))
    return float(high - low) / 2


def _kernel_metric(x: Array, y: Array, draws: Draws) -> Metric:
    """KPD of scaled features (N, F) and (M, F)."""
    found = []
    for s in range(len(draws.first)):
        base, other, mine = x[draws.first[s]], x[draws.second[s]], y[draws.generated[s]]
        own = _kernel_mean(base, base)
        found.append([own + _kernel_mean(z, z) - 2 * _kernel_mean(base, z) for z in (mine, other)])
    value, floor = np.median(found, axis=0)
    error, floor_error = (_half_width(column) for column in np.transpose(found))
    return Metric.of(float(value), error, float(floor), floor_error / math.sqrt(len(found)), draws.n)


def density_coverage(reference: Columns, generated: Columns, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of generated samples with respect to the reference.

    Around each reference sample lies a ball that reaches to its k-th nearest reference neighbour. Density: balls that
    a generated sample lies in, on average, over k; 1 for equal distributions, less where samples lie where no
    reference does. Coverage: share of balls with a generated sample in them; 1 - 2^-k for equal distributions and
    sizes, less where modes are missing.

    Args:
        reference: (N, F), N > k, on scales that can be compared.
        generated: (M, F).
        neighbours: k.

    Source: Naeem et al. 2020, arXiv:2002.09797.
    """
    within = squared_distances(reference, reference)
    np.fill_diagonal(within, np.inf)
    radius = np.partition(within, neighbours - 1, axis=1)[:, neighbours - 1]
    inside = squared_distances(reference, generated) <= radius[:, None]
    return float(inside.sum(axis=0).mean()) / neighbours, float(inside.any(axis=1).mean())


def modes(reference: Survey, plan: SurveyPlan) -> list[str]:
    """Observables whose joint distribution shows whether kinds of samples are missing: how much energy lies where.

    Deposited energy and response, depth and its spread, and the shares of the layers that hold most of the energy.
    Maps: mean, standard deviation, maximum and some of the power spectrum.
    """
    if plan.family.kind == "map":
        return [*(n for n in ("maximum",) if n in reference.names), *correlated(plan)]
    return ["total_energy", *main_observables(reference, plan), "shower_depth_width"]


def main_observables(reference: Survey, plan: SurveyPlan) -> list[str]:
    """Response, depth, and the shares of the (at most eight) layers with most energy; of maps the plainest moments."""
    if plan.family.kind == "map":
        return [name for name in ("mean", "std", "maximum") if name in reference.names]
    layers = [f"fraction_{number}" for number in plan.family.layer_numbers]
    means = {name: float(reference.table[reference.names.index(name)].mean(dtype=np.float64)) for name in layers}
    chosen = sorted(layers, key=lambda name: -means[name])[:_MAIN_LAYERS]
    size = ["response"] if plan.has_energy else []
    return [*size, "shower_depth", *(name for name in layers if name in chosen)]


def manifold_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[str, Metric]:
    """``density`` and ``coverage`` of the reference's main observables, each in its standard deviations.

    Few observables on purpose (:func:`modes`): among dozens, neighbours are so far apart that their balls reach over a
    gap. Nothing for a few samples.
    """
    sides, names = (reference, generated), modes(reference, plan)
    chosen = [reference.names.index(name) for name in names]
    rows = [thinned(side.table.shape[1], _MANIFOLD_ROWS, plan.seed) for side in sides]
    n = min(_MANIFOLD_SAMPLES, *(len(r) // 2 for r in rows))
    if n <= NEIGHBOURS:
        return {}
    base, other = (side.table[chosen][:, r].astype(np.float64) for side, r in zip(sides, rows, strict=True))
    centre, spread = base.mean(axis=1), base.std(axis=1)
    varies = spread > 1e-6 * np.abs(base).max(axis=1)
    # Differences of large numbers would lose digits, hence the centre.
    x, y = ((side[varies].T - centre[varies]) / spread[varies] for side in (base, other))
    groups = None if reference.groups is None else reference.groups[rows[0]]
    draws = Draws.make(len(x), len(y), plan.seed + 2, groups=groups, cap=n)
    found = []
    for s in range(len(draws.first)):
        half = x[draws.first[s]]
        found.append([density_coverage(half, z) for z in (y[draws.generated[s]], x[draws.second[s]])])
    values = np.array(found)  # split, side, metric
    return {
        name: Metric.from_subsamples(values[:, 0, i], values[:, 1, i], draws.n, min(len(x), len(y)))
        for i, name in enumerate(("density", "coverage"))
    }


def correlated(plan: SurveyPlan) -> list[str]:
    """The observables whose correlations are compared: about twenty, or the layers' energies of deep families."""
    names, family = list(plan.observables), plan.family
    if family.kind == "map":
        powers = [n for n in names if n.startswith("power_")]
        return ["mean", "std", "peaks", *powers[:: max(1, len(powers) // 15)]]
    if len(family.layers) > 8:
        return [n for n in names if n.startswith("energy_") and "ratio" not in n]
    kinds = ("fraction_", "energy_ratio_", "occupancy_", "width_x_", "width_y_", "width_r_")
    whole = [n for n in ("total_energy", "response", "shower_depth_width") if n in names]
    return [*whole, *(n for n in names if n.startswith(kinds))]


def correlation_matrix(columns: NDArray[np.floating]) -> Array:
    """Pearson correlations of (K, N) observables, (K, K); 0 where one of them is constant."""
    centred = columns.astype(np.float64) - columns.mean(axis=1, dtype=np.float64)[:, None]
    covariance = centred @ centred.T
    size = np.sqrt(np.diag(covariance))
    scale = np.outer(size, size)
    return np.asarray(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0))


def correlation_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Root mean square difference of the correlation matrices of (N, K) and (M, K) observables."""
    difference = correlation_matrix(a.T) - correlation_matrix(b.T)
    return math.sqrt(float(np.mean(difference**2)))


def caveats(found: Mapping[str, Metric]) -> list[str]:
    """Sentences about metrics whose sample is smaller than the field's recommendation."""
    sizes = {key.split("_")[0]: (key, metric.n) for key, metric in found.items() if key.startswith(("fpd_", "kpd_"))}
    if "fpd" not in sizes or sizes["fpd"][1] >= RECOMMENDED:
        return []
    return [
        f"{' and '.join(key for key, _ in sizes.values())}: fewer than the recommended {RECOMMENDED:,} samples a side; "
        "compare these only with the same sizes, and with their floor."
    ]
