"""What a surrogate is worth: the number of reference samples whose observables are as far from the truth as its own.

The squared Kolmogorov-Smirnov distance of an observable between independent sets of n and m reference samples is, on
average, c^2 (1/n + 1/m), at any size. A surrogate that repeats N reference samples without end adds its own noise,
c^2 / N, so

    1/N = D^2 / c^2 - 1/n - 1/m

has no bias, whatever n and m are. c is measured with halves of the reference; D^2 is the median over observables, or
the quantile that a tenth of them exceed, which both scale like a single one.

Samples generated at the reference's own conditions are more like it than independent ones are: they share its energies.
So each half of the reference is compared with samples generated at conditions that this half does not have.

Source: Kolmogorov 1933; sums of Brownian bridges, Doob 1949.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..survey.plan import SurveyPlan
from ..survey.survey import Survey
from .distances import FEWEST_UNITS, SPLITS, Columns, scale_of, several
from .kinds import kind_of
from .multivariate import thinned
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
_FEWEST = 100  # samples of a side, below which a selection is left out
_MOST = 10_000  # samples of a side
_DISTINCT = 50  # conditions from which on nearly every sample has its own
_CONFIDENT = 1.645  # standard deviations: lower limits hold in 95 % of cases

_WORTH = (
    "Number of reference samples whose observables are as far from the truth (Kolmogorov-Smirnov distance) as those of "
    "the surrogate: in the median over observables, and in the worst tenth. Without an error it is a lower limit "
    "(95 %): the reference is too small to say more. Floor: the lower limit that a perfect surrogate gets."
)
EQUIVALENT = Quantity("equivalent", "reference samples it is worth", _WORTH, headline=True, large=True)
EQUIVALENT_WORST = Quantity("equivalent_worst", "the same in the worst tenth of observables", _WORTH, headline=True)
_LEVELS = {EQUIVALENT: 0.5, EQUIVALENT_WORST: 0.9}  # quantiles over observables


def equivalent_numbers(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """``equivalent`` and ``equivalent_worst`` in every selection: the numbers of samples that the surrogate is worth.

    Observables that the reference has constant are left out, and selections with fewer than 100 samples of a side.
    Realisations of the reference stay whole; the numbers then are of samples cut from realisations as these are.

    Returns:
        The number with its error; or a lower limit, where it cannot be told from the reference's own size.
    """
    found = {}
    for number, selection in enumerate(plan.selections):
        mine, other = (np.flatnonzero(side.members(selection)) for side in (reference, generated))
        if min(len(mine), len(other)) < _FEWEST:
            continue
        rng = np.random.default_rng([plan.seed, 12, number])
        mine, other = (rows[thinned(len(rows), _MOST, plan.seed)] for rows in (mine, other))
        units, other_units = _units(reference, generated, mine, other)
        kept = _by_design(units, other_units, rng)
        other, other_units = other[kept], other_units[kept]
        tables = reference.table[:, mine], generated.table[:, other]
        observables = plan.observables.values()
        varied = [scale_of(r, o.resolution) > 0 for r, o in zip(tables[0], observables, strict=True)]
        if not any(varied):
            continue
        first, second, beside = _halves(units, other_units, rng)
        sizes = first.sum(axis=1), second.sum(axis=1), beside.sum(axis=1)
        if min(map(np.min, sizes)) == 0:
            continue
        none = np.zeros((len(first), len(other)))
        splits = np.concatenate([first / sizes[0][:, None], beside / -sizes[2][:, None]], axis=1)
        floors = np.concatenate([first / sizes[0][:, None] - second / sizes[1][:, None], none], axis=1)
        columns = np.concatenate(tables, axis=1)[varied]
        squares = ks_distances(columns, np.concatenate([splits, floors]).T.astype(np.float32)) ** 2
        noise = 1 / sizes[0] + 1 / sizes[2], 1 / sizes[0] + 1 / sizes[1]
        for quantity, level in _LEVELS.items():
            value, floor = np.quantile(squares, level, axis=0).reshape(2, -1)
            found[Key(quantity, selection=selection)] = _metric(
                value, floor, noise, (len(mine), len(other)), kind_of(plan.family).noun
            )
    return found


def ks_distances(columns: Columns, weights: NDArray[np.float32]) -> Array:
    """Largest difference of cumulative distributions, for every observable and every way to divide the samples.

    Args:
        columns: Observables, (K, N).
        weights: Of every sample in every division, (N, P): positive on one side, where they add up to 1, negative on
            the other.

    Returns:
        (K, P).
    """
    from .sorted_kernel import walk_weights  # imports numba

    found, weights = np.zeros((len(columns), weights.shape[1]), np.float32), np.ascontiguousarray(weights)
    for furthest, values in zip(found, columns, strict=True):
        order = np.argsort(values, kind="stable")
        walk_weights(values[order], order, weights, furthest)
    return found.astype(np.float64)


def _metric(value: Array, floor: Array, noise: tuple[Array, Array], sizes: tuple[int, int], unit: str) -> Metric:
    """The number from squared distances of every split and their noise 1/n + 1/m, (S,).

    Args:
        value: To generated samples.
        floor: Between halves of the reference.
        noise: Of both.
        sizes: Reference and generated samples in all.
        unit: Of the number.
    """
    relative = floor / noise[1]
    square = float(relative.mean())  # c^2
    scatter = float(relative.std(ddof=1)) / square
    inverse = float(value.mean()) / square - float(noise[0].mean())  # 1/N
    whole = sum(1 / size for size in sizes)

    def error(at: float) -> float:
        # Splits average out what dividing adds, so the noise is that of whole sides: a square of noise, and its product
        # with a distance that is the surrogate's own. Besides, there are only so many splits, of value and of floor.
        own = scatter**2 * (whole**2 + 2 * at * whole)
        return math.sqrt(own + 2 * (scatter * (at + float(noise[0].mean()))) ** 2 / len(floor))

    own, n = error(max(inverse, 0.0)), min(sizes)
    limit = 1 / (_CONFIDENT * error(0.0))
    if inverse - _CONFIDENT * own <= 1 / sizes[0]:
        worth = 1 / (max(inverse, 0.0) + _CONFIDENT * own)
        return Metric(worth, None, limit, None, None, n, unit, lower_limit=True)
    return Metric(1 / inverse, own / inverse**2, limit, None, None, n, unit)


def _units(reference: Survey, generated: Survey, mine: Rows, other: Rows) -> tuple[Rows, Rows]:
    """What must lie on one side of a split, of reference and generated samples: those of equal conditions.

    Where few conditions are shared by many samples, it is the realisation, or the sample itself.
    """
    names = [name for name in reference.conditions if name in generated.conditions]
    groups = None if reference.groups is None else several(reference.groups[mine])
    if names:
        sides = ((reference, mine), (generated, other))
        rows = np.concatenate([np.stack([s.conditions[n][r] for n in names], axis=1) for s, r in sides])
        codes = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
        if len(np.unique(codes[: len(mine)])) >= (_DISTINCT if groups is None else FEWEST_UNITS):
            units, own = codes[: len(mine)], codes.max() + 1 + np.arange(len(other))
            return units, np.where(np.isin(codes[len(mine) :], units), codes[len(mine) :], own)
    own = np.arange(len(mine)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return own, own.max() + 1 + np.arange(len(other))


def _by_design(units: Rows, other_units: Rows, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which generated samples to keep: of conditions of the reference no more than it has itself, or they would count
    as independent though they share these."""
    most = np.bincount(units, minlength=int(other_units.max()) + 1)[other_units]
    shuffled = rng.permutation(len(other_units))
    order = shuffled[np.argsort(other_units[shuffled], kind="stable")]
    ordered = other_units[order]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.asarray((most == 0) | (rank < most))


def _halves(units: Rows, other_units: Rows, rng: np.random.Generator) -> tuple[NDArray[np.bool_], ...]:
    """Two halves of the reference, (S, N) each, and the generated samples that go with the second, (S, M)."""
    count = int(max(units.max(), other_units.max())) + 1
    known = np.unique(units)
    left = rng.random((SPLITS, count)) < 0.5
    for row in left:
        row[known] = rng.permutation(len(known)) < len(known) // 2
    return left[:, units], ~left[:, units], ~left[:, other_units]
