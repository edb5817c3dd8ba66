"""One overall statistic: the largest of many distances, calibrated by exchanging which samples are called generated.

Of a thousand distances some are large by chance. If reference and generated samples are alike, labels given to them at
random make distances as large as the true labels do; how often they make larger ones is the p-value, exact whatever the
distances and their correlations are. Each is standardised first, by its mean and spread over the labellings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from calogen.families import varies

from ..survey.histograms import observable_edges
from ..survey.plan import SurveyPlan
from ..survey.selections import ALL
from ..survey.survey import Survey
from .distances import CHI2, SLICED_W1, W1, Columns, halves, scale_of, several
from .kinds import kind_of
from .multivariate import CORRELATION, KPD, correlation_distance, fourth_power_kernel, scaled_by_largest, thinned
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
Labels = NDArray[np.int8]  # (n, P): 1 for one side, -1 for the other, 0 for neither
PERMUTATIONS = 200  # labellings, the true one among them
_MOST = 10_000  # samples of each side
_MOST_KERNEL = 2000
_FEWEST = 20

_OVERALL = (
    "The permutation statistic: the largest of all distances, each less its mean and in units of its spread when "
    "samples are called reference or generated at random. overall_p: how often such labels give a larger one; p_value: "
    "how often they give a larger one than the largest of this observable, which corrects it for all the others looked "
    f"at. No p-value is below 1/{PERMUTATIONS}, the number of labellings."
)
OVERALL = Quantity("overall", "permutation statistic", _OVERALL, unit="sd", headline=True)
OVERALL_P = Quantity("overall_p", "p-value of the permutation statistic", _OVERALL, headline=True)
P_VALUE = Quantity("p_value", "p-value of an observable, corrected for all others", _OVERALL)


def overall(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """The largest of all distances that labellings can be exchanged for, and p-values.

    These are W1 and chi-square of every observable in every selection, W1 of every condition and random direction,
    KPD, and the distance of correlation matrices, each less its mean over the labellings, over its standard deviation
    there. References of several realisations keep those whole, and the null hypothesis is
    then made of halves of the reference alone: generated samples have no realisations to exchange.

    Returns:
        ``overall``: the largest one, and beside it as floor what labellings by chance give; ``statistic`` says
        which metric it is. ``overall_p``: the share of labellings, the true one included, with one at least as
        large. ``p_value/OBSERVABLE``: the share of labellings whose largest one of all is at least as large as that of
        this observable (Westfall and Young 1993). Empty for fewer than 20 samples a side.
    """
    sides = (reference, generated)
    rows = [thinned(side.table.shape[1], _MOST, plan.seed) for side in sides]
    if (n := min(len(r) for r in rows)) < _FEWEST:
        return {}
    groups = None if reference.groups is None else several(reference.groups[rows[0]])
    labels = _labels(len(rows[0]), len(rows[1]), groups, plan.seed)
    found = dict(_statistics(reference, generated, rows, labels, plan))
    distances = {key: _standardised(values) for key, values in found.items()}
    largest = np.max(list(distances.values()), axis=0)
    others = largest[1:]
    key = max(distances, key=lambda key: distances[key][0])

    def p_value(of: list[Key]) -> Metric:
        reached = max(distances[key][0] for key in of)
        return Metric(float(np.mean(largest >= reached)), None, None, None, None, n)

    observables = dict.fromkeys(key.observable for key in distances if key.observable in plan.observables)
    single = {o: [key for key in distances if key.observable == o] for o in observables}
    floor, spread = float(others.mean()), float(others.std(ddof=1))
    metric = Metric.of(float(largest[0]), spread, floor, spread / math.sqrt(len(others)), n, OVERALL.unit)
    found_p = {Key(OVERALL_P): p_value(list(distances))} | {Key(P_VALUE, o): p_value(of) for o, of in single.items()}
    return {Key(OVERALL): replace(metric, statistic=key), **found_p}


def _labels(reference: int, generated: int, groups: NDArray[np.integer] | None, seed: int) -> Labels:
    """Labellings of the reference and then the generated samples, (n, P); the first is the true one."""
    rng = np.random.default_rng([seed, 6])
    true = np.repeat(np.array([1, -1], dtype=np.int8), (reference, generated))
    if groups is None:
        return np.stack([true, *(rng.permutation(true) for _ in range(PERMUTATIONS - 1))], axis=1)
    found = np.zeros((len(true), PERMUTATIONS), dtype=np.int8)
    for p in range(PERMUTATIONS):
        first, second = halves(rng, reference, groups)
        n = min(len(first), len(second), generated)
        found[rng.permutation(first)[:n], p] = 1
        found[reference + rng.permutation(generated)[:n] if p == 0 else rng.permutation(second)[:n], p] = -1
    return found


def _standardised(values: Array) -> Array:
    """Each value less the mean of the others over the standard deviation of the others, (P,)."""
    centred = np.nan_to_num(values - values.mean())
    n = len(values) - 1
    mean = -centred / n
    variance = (np.sum(centred**2) - centred**2) / n - mean**2
    spread = np.sqrt(np.maximum(variance, 0))
    known = varies(spread, np.abs(values).max())
    return np.asarray(np.divide(centred - mean, spread, out=np.zeros(len(values)), where=known))


def _statistics(
    reference: Survey, generated: Survey, rows: list[NDArray[np.int64]], labels: Labels, plan: SurveyPlan
) -> Iterator[tuple[Key, Array]]:
    """Every statistic for every labelling: key and (P,)."""

    def joined(*sides: Columns) -> Columns:
        return np.concatenate([side[..., r] for side, r in zip(sides, rows, strict=True)], axis=-1)

    table = joined(reference.table, generated.table)
    known = [name for name in reference.conditions if name in generated.conditions]
    conditions = {name: joined(reference.conditions[name], generated.conditions[name]) for name in known}
    for selection in plan.selections:
        mine = selection.of(conditions, table.shape[1])
        if min(np.count_nonzero(labels[mine, 0] == side) for side in (1, -1)) < _FEWEST:
            continue
        for observable, column in zip(plan.observables.values(), table, strict=True):
            if not observable.scored:
                continue
            values = column[mine]
            if scale_of(values, observable.resolution) == 0:  # distances would be those of rounding errors
                continue
            edges = observable_edges(observable, values)
            w1, chi2 = label_distances(values, labels[mine], edges)
            yield Key(W1, observable.name, selection), w1
            yield Key(CHI2, observable.name, selection), chi2
        if selection is ALL:
            for name, column in conditions.items():
                yield Key(W1, name), label_distances(column, labels)[0]
            projections = joined(reference.projections, generated.projections)
            yield Key(SLICED_W1), np.mean([label_distances(p, labels)[0] for p in projections], axis=0)
            chosen = [reference.names.index(name) for name in kind_of(plan.family).correlated(plan)]
            yield Key(CORRELATION), _correlation_distances(table[chosen], labels, plan.resolutions[chosen])
    features = kind_of(plan.family).features
    x = np.concatenate([features(side, plan, r) for side, r in zip((reference, generated), rows, strict=True)])
    yield Key(KPD), _kernel_distances(x, labels, plan.seed)


def label_distances(values: Columns, labels: Labels, edges: Array | None = None) -> tuple[Array, Array]:
    """Wasserstein-1 distance and chi-square between the samples labelled 1 and -1, for every labelling.

    Args:
        values: (n,).
        labels: (n, P).
        edges: Histogram edges for chi-square; without them it is 0.

    Returns:
        (P,) each; NaN where a side has no samples.
    """
    from .sorted_kernel import walk_labels  # imports numba

    order = np.argsort(values)
    ordered = values[order].astype(np.float64)
    bins = np.zeros(len(ordered), np.int64) if edges is None else np.searchsorted(edges, ordered, side="right")
    sizes = np.array([np.count_nonzero(labels == side, axis=0) for side in (1, -1)])
    weights = np.divide(1.0, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)
    w1, chi2 = np.zeros((2, labels.shape[1]))
    walk_labels(ordered, bins, labels[order], weights, w1, chi2)
    both = sizes.prod(axis=0)
    return w1, np.where(both > 0, both * chi2, 0.0) if edges is not None else np.zeros_like(w1)


def _correlation_distances(columns: Columns, labels: Labels, resolution: Array | float = 0.0) -> Array:
    """Root mean square difference of correlation matrices of (K, n) observables with resolutions (K,); (P,)."""
    x = columns.astype(np.float64)
    sides = ([x[:, side == k].T for k in (1, -1)] for side in labels.T)
    return np.array([correlation_distance(first, second, resolution) for first, second in sides])


def _kernel_distances(x: Array, labels: Labels, seed: int) -> Array:
    """Unbiased MMD with the kernel of KPD for features (n, F), (P,), from one kernel matrix of a sub-sample."""
    chosen = np.random.default_rng([seed, 7]).permutation(len(x))[: 2 * _MOST_KERNEL]
    (x,) = scaled_by_largest(x)
    x, placed = x[chosen].astype(np.float32), labels[chosen]
    kernel = fourth_power_kernel(x, x)
    np.fill_diagonal(kernel, 0)
    a, b = ((placed == side).astype(np.float32) for side in (1, -1))
    with_a, with_b = kernel @ a, kernel @ b
    n, m = a.sum(axis=0, dtype=np.float64), b.sum(axis=0, dtype=np.float64)
    pairs = [np.sum(u * v, axis=0, dtype=np.float64) for u, v in ((a, with_a), (b, with_b), (a, with_b))]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(pairs[0] / (n * (n - 1)) + pairs[1] / (m * (m - 1)) - 2 * pairs[2] / (n * m))
