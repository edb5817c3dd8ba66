"""Ways a surrogate fails that averages do not show: training samples learnt by heart, repeats, and wrong tails."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family

from ..survey.plan import SurveyPlan
from ..survey.survey import Survey, vectors
from .distances import Columns, Draws, halves, quantile, scale_of, squared_distances
from .kinds import kind_of
from .multivariate import some_vectors
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
TAIL = 0.001  # share of the reference beyond each of its outer quantiles
CONVERSION = 0.05  # the same for early and late showers
CLOSEST = 0.01  # share of held-out samples that lie closest to the training samples by chance
_FEWEST_IN_TAILS = 1000
_FEWEST_IN_TREND = 200
_TREND = 3  # degree of the depth's trend in the logarithm of the energy
_MOST_QUERIES = 2000
_MOST_SHAPES = 10_000  # samples of either side that nearest neighbours are looked at of
_FEWEST_QUERIES = 20
_WORK = 1e11  # multiplications and additions of one check's distances: some seconds of one core
_SPLITS = 10
_POOL_BLOCK = 2048

_REPEATS = "Share of generated samples that repeat another one, exactly or nearly."
DUPLICATES = Quantity("duplicates", "exact repeats", _REPEATS, headline=True)
NEAR_DUPLICATES = Quantity("near_duplicates", "near repeats", _REPEATS, headline=True)
_LEARNT = (
    "Share of generated samples that are training samples, and that are nearer to training samples than 99 % of "
    "held-out ones; memorisation_p is the p-value of being no nearer."
)
TRAINING_COPIES = Quantity("training_copies", "copies of training samples", _LEARNT, headline=True)
MEMORISATION = Quantity("memorisation", "samples near to training samples", _LEARNT, headline=True)
MEMORISATION_P = Quantity("memorisation_p", "p-value of being no nearer to training samples", _LEARNT, headline=True)
_TAILS = (
    "Share beyond the reference's 0.1 % and 99.9 % quantiles, and how far those quantiles differ, in standard "
    "deviations."
)
_ENDS = [
    (
        end,
        level,
        Quantity(f"tail_{end}", f"share in the {end} tail", _TAILS),
        Quantity(f"quantile_{end}", f"{end} quantile", _TAILS, "sd"),
    )
    for end, level in (("low", TAIL), ("high", 1 - TAIL))
]
_CONVERSIONS = "Share of showers shallower or deeper than 95 % of the reference's."
EARLY = Quantity("early_conversion", "share of early showers", _CONVERSIONS, headline=True)
LATE = Quantity("late_conversion", "share of late showers", _CONVERSIONS, headline=True)


def memorisation(reference: Survey, generated: Survey, training: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """Whether generated samples are training samples.

    Each sample's distance to the nearest training sample is divided by its distance to the nearest of some held-out
    reference samples. A surrogate that is merely too smooth is nearer to both; one that has learnt samples by heart is
    nearer to its training samples alone. The ratios of generated samples are compared with those of other held-out
    reference samples. Distances are between the square roots of energy shares (Hellinger's, in which voxels of all
    sizes count), or between logarithms of pixels; mirrored samples are the same sample where the family has mirrors.

    Args:
        reference: Held-out reference samples: none of them may be training samples.
        generated: The generated samples.
        training: What the surrogate was trained on.
        plan: Shared by all of them.

    Returns:
        ``training_copies``: share of samples whose observables are all equal to a training sample's; floor: the
        reference's. ``memorisation``: share of generated samples nearer (by ratio) than all but 1 % of the held-out
        ones; floor 1 %. ``memorisation_p``: p-value of generated samples being no nearer, the smaller of a rank test
        of all and an exact test of the nearest 1 %, doubled because there are two. The last two only if there are
        enough whole samples.

    Source: three-sample test in the spirit of Meehan et al. 2020, arXiv:2004.05675.
    """
    known = sample_codes(training, plan)
    shares = [np.isin(sample_codes(side, plan), known) for side in (generated, reference)]
    found = {Key(TRAINING_COPIES): binomial_share(shares[0], shares[1])}
    family, seed = plan.family, plan.seed
    pool = kind_of(family).nearness(vectors(training.kept, plan.fixed_scale))
    others, groups = _some_shapes(reference, plan)
    mine, _ = _some_shapes(generated, plan)
    work = 4.0 * family.voxels * len(family.images) * (len(pool) + len(others) / 2)
    rng = np.random.default_rng([seed, 5])
    first, second = halves(rng, len(others), groups)
    queries = min(_MOST_QUERIES, int(_WORK / work), len(first), len(mine))
    if queries < _FEWEST_QUERIES:
        return found
    held_out, yardstick = others[rng.permutation(first)[:queries]], others[second]
    mine = mine[rng.permutation(len(mine))[:queries]]
    ratios = [
        nearest(side, pool, family) / np.maximum(nearest(side, yardstick, family), 1e-30) for side in (mine, held_out)
    ]
    limit = float(np.quantile(ratios[1], CLOSEST))
    found[Key(MEMORISATION)] = binomial_share(ratios[0] <= limit, ratios[1] <= limit)
    found[Key(MEMORISATION_P)] = Metric(_nearer(*ratios), None, None, None, None, queries)
    return found


def _nearer(mine: Array, others: Array) -> float:
    """p-value of the hypothesis that ``mine`` (N,) are not smaller than ``others`` (M,)."""
    from scipy.stats import hypergeom, mannwhitneyu

    ranks = float(mannwhitneyu(mine, others, alternative="less").pvalue)
    both = np.concatenate([mine, others])
    closest = both <= np.quantile(both, CLOSEST)
    tail = float(hypergeom.sf(closest[: len(mine)].sum() - 1, len(both), closest.sum(), len(mine)))
    return min(1.0, 2 * min(ranks, tail))


def nearest(queries: Columns, pool: Columns, family: Family) -> Array:
    """Distance of each query (N, V) to the nearest of a pool (M, V) or of its mirror images, (N,)."""
    best: Array = np.full(len(queries), np.inf)
    for image in family.images:  # with every image its inverse
        mirrored = queries[:, image.order]
        for start in range(0, len(pool), _POOL_BLOCK):
            square = squared_distances(mirrored, pool[start : start + _POOL_BLOCK])
            np.minimum(best, square.min(axis=1), out=best)
    return np.asarray(np.sqrt(best), dtype=np.float64)


def _some_shapes(side: Survey, plan: SurveyPlan) -> tuple[Columns, NDArray[np.integer] | None]:
    """Some whole samples in the space of nearest neighbours, (n, V), and their realisations, (n,)."""
    values, groups = some_vectors(side, plan, _MOST_SHAPES)
    return kind_of(plan.family).nearness(values), groups


def sample_codes(side: Survey, plan: SurveyPlan) -> NDArray[np.uint64]:
    """A number for each sample that is not empty, equal for samples whose observables are all equal, (n,).

    Where the family has mirrors, mirrored samples have the same number: only signs of their observables differ.
    """
    mixing = np.random.default_rng(0).integers(1, 2**63, size=len(side.table), dtype=np.uint64) | np.uint64(1)
    codes = np.zeros(side.table.shape[1], dtype=np.uint64)
    for name, row, factor in zip(side.names, side.table, mixing, strict=True):
        if "width" in name:  # of a few hits it is the root of a small difference: mirrored ones differ in digits
            continue
        row = np.abs(row) if plan.family.symmetries else row + np.float32(0)  # -0 equals 0
        codes += row.astype(np.float32).view(np.uint32).astype(np.uint64) * factor
    return codes[np.any(side.table != 0, axis=0)]


def duplicates(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """Repeats among the generated samples.

    Args:
        reference: The reference.
        generated: The generated samples.
        plan: Shared by both.

    Returns:
        ``duplicates``: share of samples that repeat an earlier one in all observables; floor: the reference's.
        ``near_duplicates``: share of samples nearer to another generated one than all but 1 % of as many reference
        samples are to each other (distances as in :func:`memorisation`), if there are enough whole samples.
    """
    repeats = [_repeated(sample_codes(side, plan)) for side in (generated, reference)]
    found = {Key(DUPLICATES): binomial_share(*repeats)}
    (others, groups), (mine, _) = (_some_shapes(side, plan) for side in (reference, generated))
    most = math.isqrt(int(_WORK / (6 * _SPLITS * plan.family.voxels)))
    n = min(most, _MOST_QUERIES, len(others) // 2, len(mine) // 2)
    if n < _FEWEST_QUERIES:
        return found
    draws = Draws.make(len(others), len(mine), plan.seed, groups=groups, splits=_SPLITS, cap=n)
    shares = np.empty((2, _SPLITS))
    for s, (first, *compared) in enumerate(draws.parts(others, mine)):
        limit = np.quantile(_nearest_other(first), CLOSEST)
        shares[:, s] = [np.mean(_nearest_other(side) <= limit) for side in compared]
    found[Key(NEAR_DUPLICATES)] = Metric.from_subsamples(shares[0], shares[1], draws.n, min(len(others), len(mine)))
    return found


def _repeated(codes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which samples repeat an earlier one, (n,)."""
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    return repeated


def _nearest_other(samples: Columns) -> Columns:
    square = squared_distances(samples, samples)
    np.fill_diagonal(square, np.inf)
    return np.asarray(square.min(axis=1))


def tails(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """Rare samples: outer quantiles and the share of samples beyond them, early and late showers.

    Args:
        reference: The reference; below 1,000 samples a side there is nothing to say of tails, below 200 of depths.
        generated: The generated samples.
        plan: Shared by both.

    Returns:
        ``tail_low/O``, ``tail_high/O``: share of generated samples beyond the reference's 0.1 % and 99.9 % quantiles;
        floor: the reference's. ``quantile_low/O``, ``quantile_high/O``: difference of those quantiles in reference
        standard deviations. ``early_conversion``, ``late_conversion``: share of showers whose depth lies beyond the
        reference's 5 % and 95 % quantiles for their energy. Errors are binomial.
    """
    count, found = min(reference.table.shape[1], generated.table.shape[1]), {}
    for name in kind_of(plan.family).main(reference, plan) if count >= _FEWEST_IN_TAILS else ():
        r, g = (side.table[side.names.index(name)].astype(np.float64) for side in (reference, generated))
        spread = scale_of(r, plan.observables[name].resolution)
        for end, level, tail, moved in _ENDS:
            limit = np.quantile(r, level)
            beyond = [side < limit if end == "low" else side > limit for side in (g, r)]
            found[Key(tail, name)] = binomial_share(*beyond)
            if spread == 0:
                continue
            (value, error), (floor, floor_error) = quantile(g, level), quantile(r, level)
            difference, total = (value - floor) / spread, math.hypot(error, floor_error) / spread
            size, unit = min(len(r), len(g)), moved.unit
            found[Key(moved, name)] = Metric.of(difference, total, 0.0, 0.0, size, unit)
    if "shower_depth" in reference.names and count >= _FEWEST_IN_TREND:
        found |= _conversions(reference, generated, plan)
    return found


def _conversions(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """Early and late showers, told by their depth less its trend with the incident energy, over its spread's trend."""
    row = reference.names.index("shower_depth")
    depths = [side.table[row].astype(np.float64) for side in (reference, generated)]
    bases: list[Array] = [np.ones((len(d), 1)) for d in depths]
    energy, sides = plan.family.energy, (reference, generated)
    if energy is not None and all(energy.name in side.conditions for side in sides):
        x = [np.log(np.maximum(side.conditions[energy.name], 1e-30).astype(np.float64)) for side in sides]
        middle, width = float(x[0].mean()), scale_of(x[0]) or 1.0
        bases = [np.asarray(np.vander((column - middle) / width, _TREND + 1), dtype=np.float64) for column in x]
    trend = np.linalg.lstsq(bases[0], depths[0], rcond=None)[0]
    depths = [d - basis @ trend for d, basis in zip(depths, bases, strict=True)]
    spread = np.linalg.lstsq(bases[0], np.abs(depths[0]), rcond=None)[0]
    depths = [d / np.maximum(basis @ spread, 1e-9) for d, basis in zip(depths, bases, strict=True)]
    low, high = np.quantile(depths[0], (CONVERSION, 1 - CONVERSION))
    return {
        Key(EARLY): binomial_share(depths[1] < low, depths[0] < low),
        Key(LATE): binomial_share(depths[1] > high, depths[0] > high),
    }


def binomial_share(mine: NDArray[np.bool_], others: NDArray[np.bool_]) -> Metric:
    """The share of generated samples with a property beside the reference's, with binomial errors."""
    if not len(mine) or not len(others):
        return Metric(None, None, None, None, None, 0)
    errors = [_binomial_error(side) for side in (mine, others)]
    return Metric.of(float(mine.mean()), errors[0], float(others.mean()), errors[1], min(len(mine), len(others)))


def _binomial_error(members: NDArray[np.bool_]) -> float:
    """Error of a share, not 0 where none or all are members (Agresti and Coull 1998: two of each are added)."""
    count, total = float(members.sum()) + 2, len(members) + 4
    share = count / total
    return math.sqrt(share * (1 - share) / total)


def statements(found: Mapping[Key, Metric]) -> list[str]:
    """What these checks say, where they say something bad."""
    said = []
    p = found.get(Key(MEMORISATION_P))
    if p is not None and p.value is not None and p.value < 0.001:
        said.append(
            f"generated samples lie nearer to training samples than held-out ones do (p = {p.value:.1g}): "
            "the surrogate repeats what it was trained on"
        )
    for quantity, text in (
        (TRAINING_COPIES, "are copies of training samples"),
        (DUPLICATES, "repeat another one exactly"),
        (NEAR_DUPLICATES, "nearly repeat another one"),
    ):
        metric = found.get(Key(quantity))
        if metric is not None and metric.pull is not None and metric.value is not None and metric.pull > 5:
            share = f"{100 * metric.value:.3g} % of the samples {text}"
            said.append(f"{share} (reference: {100 * (metric.floor or 0):.2g} %)")
    return said
