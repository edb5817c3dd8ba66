"""The energy mover's distance: the work of turning one shower into another, as a two-sample test.

A shower is a set of energies at points in space. Turning one into another moves energies over distances and adds what
is missing; unlike distances of voxel by voxel, this knows that neighbouring cells are nearly the same.

Source: Komiske, Metodiev and Thaler 2019, arXiv:1902.02346; energy distance: Szekely and Rizzo 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from calogen.families import Family
from calogen.shards.samples import Samples

from ..survey.plan import SurveyPlan
from ..survey.survey import vectors
from .kinds import kind_of
from .multivariate import thinned
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
_SHOWERS = 512  # of each side
_TOGETHER = 32  # showers of both sides, neighbours in energy, that are compared with each other
_FEWEST_GROUPS = 8
_EXCHANGES = 30  # of which showers of a group are called generated
_HOTTEST = 32  # voxels of a shower that are points of their own; the others of a layer become one at their centroid
_NEAR = 0.3  # of the mean distance: the kernel's width, since what differs shows in how near the nearest are

_MEANING = (
    "Energy mover's distance (Komiske, Metodiev, Thaler 2019) of single showers of like incident energy, their voxels "
    "in units of it and at their positions, about the shower's axis where conditions say it; energies move over "
    "distances in units of R, half the longest in the calorimeter, and what one shower lacks counts in full. Mean "
    "between reference and generated showers, twice, less the means within each: 0 if they are alike. The sharper "
    "squared maximum mean discrepancy has the kernel exp(-distance / s), s 0.3 of the mean distance. 512 showers a "
    "side; each keeps its 32 hottest voxels, the others of a layer are put at their centroid; layers without depths "
    "are spread over the width of the widest."
)
ENERGY_MOVER = Quantity("energy_mover", "energy mover's distance of showers", _MEANING, headline=True)
ENERGY_MOVER_MMD = Quantity(
    "energy_mover_mmd", "discrepancy of showers by energy mover's distance", _MEANING, headline=True, telling=True
)


@dataclass(frozen=True)
class Points:
    """One shower as energies at points.

    Attributes:
        energies: (K,), none negative, in any unit.
        positions: (K, 3) in units of R.
    """

    energies: Array
    positions: Array


def energy_mover(first: Points, second: Points) -> float:
    """The energy mover's distance of two showers, in the unit of their energies.

    The least of sum f_ij d_ij / R over flows f from one to the other, plus the difference of their energies. Distances
    count as 2 R at most, so that it is a metric.
    """
    import ot  # takes seconds to import

    a, b = first.energies, second.energies
    if not len(a) or not len(b):
        return float(abs(a.sum() - b.sum()))
    cost, missing = np.minimum(cdist(first.positions, second.positions), 2.0), a.sum() - b.sum()
    # What one shower lacks is a point at a distance R from all others.
    if missing > 0:
        b, cost = np.append(b, missing), np.column_stack([cost, np.ones(len(a))])
    elif missing < 0:
        a, cost = np.append(a, -missing), np.vstack([cost, np.ones(len(b))])
    # No gradients are asked for, which the dual's centre is about.
    work = ot.emd2(a / a.sum(), b / b.sum(), cost, numItermax=1_000_000, center_dual=False, check_marginals=False)
    return float(work * a.sum())


def energy_mover_metrics(reference: Samples, generated: Samples, plan: SurveyPlan) -> dict[Key, Metric]:
    """``energy_mover`` and ``energy_mover_mmd``: how two sets of showers differ under the energy mover's distance.

    Both sets are put in one order of labels and incident (else deposited) energy and cut into groups. If both are of
    one kind, which of a group are generated is a matter of chance, so what each group gives is 0 on average, whatever
    its energies: the floor is 0. The error is the scatter of the groups, or that of exchanging which showers of a group
    are called generated where that is larger: few groups, and few odd showers, make the former small by chance.

    Args:
        reference: Showers in physical units.
        generated: The same.
        plan: Of the comparison.

    Returns:
        Nothing for maps, or for fewer than about 130 showers a side.
    """
    if not plan.family.layers:
        return {}
    sides = [side.select(thinned(len(side), _SHOWERS, plan.seed)) for side in (reference, generated)]
    made = np.repeat([False, True], [len(side) for side in sides])
    order = np.lexsort(np.concatenate([_order(side, plan) for side in sides], axis=1))
    groups = [group for group in np.array_split(order, max(1, len(order) // _TOGETHER)) if _mixed(made[group])]
    if len(groups) < _FEWEST_GROUPS:
        return {}
    points = [shower for side in sides for shower in _points(side, plan)]
    distances = [_distances([points[i] for i in group]) for group in groups]
    width = _NEAR * float(np.mean([d.mean() for d in distances])) or 1.0
    unit, n = kind_of(plan.family).vector_units[0 if plan.has_energy else 1], min(map(len, sides))
    found: dict[Key, Metric] = {}
    rng = np.random.default_rng([plan.seed, 8])
    for quantity, units, apart in (
        (ENERGY_MOVER, unit, distances),
        (ENERGY_MOVER_MMD, "", [1 - np.exp(-d / width) for d in distances]),
    ):
        each = [_discrepancy(d, made[group]) for d, group in zip(apart, groups, strict=True)]
        chance = [
            np.var([_discrepancy(d, rng.permutation(made[group])) for _ in range(_EXCHANGES)])
            for d, group in zip(apart, groups, strict=True)
        ]
        error = math.sqrt(max(np.var(each, ddof=1), np.mean(chance)) / len(each))
        found[Key(quantity)] = Metric.of(float(np.mean(each)), error, 0.0, 0.0, n, units)
    return found


def _mixed(made: NDArray[np.bool_]) -> bool:
    """Whether there are enough of both sides for distances within each."""
    return bool(4 <= np.count_nonzero(made) <= len(made) - 4)


def _distances(showers: Sequence[Points]) -> Array:
    """Energy mover's distances of all pairs, (N, N)."""
    found = np.zeros((len(showers), len(showers)))
    for i, first in enumerate(showers):
        for j in range(i):
            found[i, j] = found[j, i] = energy_mover(first, showers[j])
    return found


def _discrepancy(distances: Array, made: NDArray[np.bool_]) -> float:
    """Twice the mean distance between two sides less the means within, of different showers: unbiased."""
    within = [distances[np.ix_(s, s)].sum() / (s.sum() * (s.sum() - 1)) for s in (~made, made)]
    return float(2 * distances[np.ix_(~made, made)].mean() - sum(within))


def _order(showers: Samples, plan: SurveyPlan) -> Array:
    """What showers are ordered by: the last row first; (K, N)."""
    energy, known = plan.family.energy, showers.conditions
    labels = [known[name] for name in plan.family.labelled if name in known]
    size = known[energy.name] if plan.has_energy and energy else showers.values.sum(axis=1)
    return np.stack([size, *labels]).astype(np.float64)


def _points(showers: Samples, plan: SurveyPlan) -> list[Points]:
    """Every shower as its hottest voxels and, for each layer, the centroid of all others."""
    family, count = showers.family, len(showers)
    energies = np.maximum(vectors(showers, plan.fixed_scale).astype(np.float64), 0.0)
    places, starts, layer_of = _places(family), np.asarray(family.layer_bounds[:-1]), family.layer_of_voxel
    radius = float(np.linalg.norm(np.ptp(places, axis=1))) / 2
    crossing = np.zeros((len(family.layers), 2, count))
    if plan.shower_axis is not None:
        crossing = plan.shower_axis.crossing(showers.conditions)
    most = min(_HOTTEST, family.voxels)
    hottest = np.argpartition(energies, -most, axis=1)[:, -most:]
    found = []
    for row, kept in enumerate(hottest):
        others = energies[row].copy()
        others[kept] = 0.0
        sums = np.add.reduceat(others, starts)
        centroids = np.add.reduceat(others * places, starts, axis=1) / np.where(sums > 0, sums, 1.0)
        points = np.concatenate([places[:, kept], centroids], axis=1)
        points[:2] -= crossing[np.concatenate([layer_of[kept], np.arange(len(starts))]), :, row].T
        mine = np.concatenate([energies[row, kept], sums])
        found.append(Points(mine[mine > 0], points.T[mine > 0] / radius))
    return found


def _places(family: Family) -> Array:
    """Where the voxels are, (3, V) in mm: layers in their middle, or evenly spread over the width of the widest."""
    layers = np.arange(len(family.layers)) * (np.ptp(family.centres, axis=0).max() / len(family.layers))
    depths = np.mean(family.depths, axis=1) if family.depths else layers
    return np.column_stack([family.centres, depths[family.layer_of_voxel]]).T
