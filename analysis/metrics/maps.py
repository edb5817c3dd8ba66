"""From two surveys of density maps to metrics: how a surrogate's ensembles of maps differ from the simulated ones.

Single maps scatter so much that only ensembles can be judged: in all maps, in bins of the conditions, and in the
quarters of the plane of the first two. Errors and floors are by realisation (see ``ensembles.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family

from ..observables.statistics import LogAxis, bispectra, cross_spectra, minkowski, pixel_histograms
from ..survey.plan import SurveyPlan
from ..survey.selections import ALL, Selection
from ..survey.survey import Survey
from .distances import Metric
from .ensembles import Ensemble, Norm, Rows, Spread, difference, distance, shared, unit_sums
from .inferred import PowerModel, Regressor, response
from .multivariate import thinned

Array = NDArray[np.float64]
FEWEST = 20  # maps of either side below which a selection is left out
SHELLS = 16  # that the headline is about: from the fundamental mode to 16 times that
_THRESHOLDS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)  # quantiles of the reference's pixels
_MOST_MAPS = 50_000  # maps of a side whose power spectra are compared
_MOST_PIXELS = 2**25  # pixels of whole maps that shapes are measured of
_MOST_PAIRS = 2000
_MATRIX = 32  # shells of the correlation matrix, at most
_COARSE = 8  # fine bins of the logarithm in one that figures show
_RARE = 0.01  # share of all peaks below which a bin of heights is not compared
COPIES = 0.01  # share of reference pairs that are most alike


# ------------------------------------------------------------------------------------------------ quarters
@dataclass(frozen=True)
class Quarter(Selection):
    """Maps on one side of the middle of each of some conditions.

    Attributes:
        sides: Of each condition: its name, whether the maps are above, and the middle.
    """

    sides: tuple[tuple[str, bool, float], ...] = ()

    def of(self, conditions: Mapping[str, NDArray[np.floating]], count: int) -> Rows:
        """Which of ``count`` samples belong to it, (N,)."""
        chosen = np.ones(count, dtype=bool)
        for name, above, middle in self.sides:
            chosen &= (conditions[name] >= middle) == above
        return chosen


def quarters(family: Family, conditions: Mapping[str, NDArray[np.floating]]) -> tuple[Quarter, ...]:
    """The quarters of the plane of the first two conditions, q1 to q4; halves where there is one condition.

    Conditions are divided in the middle of the family's range, or at the reference's median where it fills one side
    only; those with a single value not at all. The first condition is above the middle in q2 and q4, the second in q3
    and q4.

    Args:
        family: Says the conditions and their ranges.
        conditions: Reference values by name, (N,) each.
    """
    middles: list[tuple[str, float]] = []
    for condition in family.conditions[:2]:
        values = conditions.get(condition.name)
        if values is None or not len(values) or values.min() == values.max():
            continue
        log = condition.scale == "log"
        middle = float(np.sqrt(condition.low * condition.high) if log else (condition.low + condition.high) / 2)
        share = float(np.mean(values >= middle))
        middles.append((condition.name, middle if 0.2 < share < 0.8 else float(f"{np.median(values):.3g}")))
    found = []
    for number in range(2 ** len(middles) if middles else 0):
        sides = tuple((name, bool(number >> bit & 1), middle) for bit, (name, middle) in enumerate(middles))
        title = ", ".join(f"{name} {'≥' if above else '<'} {middle:.3g}" for name, above, middle in sides)
        found.append(Quarter(f"q{number + 1}", title, sides=sides))
    return tuple(found)


# ------------------------------------------------------------------------------------------------ what is measured
@dataclass(frozen=True)
class Yardstick:
    """What all sides are measured with; decided by the reference.

    Attributes:
        axis: Bins of the logarithm of pixels and peaks.
        thresholds: Of the Minkowski functionals, in 1 + delta, (T,).
        quarters: Of the plane of the conditions.
        model: The reference's mean power spectrum as a function of the conditions.
        regressor: Infers conditions from single maps; None where there are none or too few maps.
    """

    axis: LogAxis
    thresholds: Array
    quarters: tuple[Quarter, ...]
    model: PowerModel
    regressor: Regressor | None = None


@dataclass(frozen=True)
class MapStatistics:
    """What is measured on the maps of one side.

    Attributes:
        yardstick: Shared by all sides.
        power: ``power`` and what the reference's model expects, ``expected``, (n, K), of all maps listed.
        shapes: ``power``, ``pixel``, ``peaks`` (n, bins), ``bispectrum`` (n, B), ``minkowski_0`` ... (n, T),
            ``inferred`` (n, C), of maps kept whole.
        pairs: ``alike`` (P, 1) and ``coherence`` (P, K) of pairs of different maps; None of fewer than two.
    """

    yardstick: Yardstick
    power: Ensemble
    shapes: Ensemble
    pairs: Ensemble | None = field(default=None)


def map_statistics(side: Survey, plan: SurveyPlan, reference: MapStatistics | None = None) -> MapStatistics:
    """Measure the maps of one side.

    Args:
        side: Its survey.
        plan: Shared by all sides.
        reference: The reference's statistics; None for the reference itself, which decides the yardstick.
    """
    family = plan.family
    columns = [i for i, name in enumerate(side.names) if name.startswith("power_")]
    listed = thinned(side.table.shape[1], _MOST_MAPS, plan.seed)
    power = _ensemble(side, listed, {"power": side.table[columns][:, listed].T})
    rows = thinned(len(side.kept), max(FEWEST, _MOST_PIXELS // family.voxels), plan.seed)
    values = side.kept.values[rows]
    yardstick = reference.yardstick if reference else _yardstick(values, power, family)
    expected = yardstick.model.expected(power)
    power = replace(power, columns={**power.columns, "expected": expected.astype(np.float32)})
    pixels, peaks = pixel_histograms(values, yardstick.axis)
    surfaces = minkowski(values, yardstick.thresholds, family.box_size)
    found: dict[str, NDArray[np.floating[Any]]] = {
        "power": side.table[columns][:, side.kept_index[rows]].T,
        "pixel": pixels.astype(np.float32),
        "peaks": peaks.astype(np.float32),
        "bispectrum": bispectra(values, family.box_size),
        **{f"minkowski_{v}": surfaces[:, v] for v in range(3)},
    }
    shapes = _ensemble(side, side.kept_index[rows], found)
    if reference is None:
        yardstick = replace(yardstick, regressor=Regressor.fit(shapes, plan.seed))
    if yardstick.regressor is not None:
        inferred = yardstick.regressor.infer(shapes, own=reference is None)
        shapes = replace(shapes, columns={**shapes.columns, "inferred": inferred})
    return MapStatistics(yardstick, power, shapes, _pairs(values, shapes, family, plan.seed))


def _ensemble(side: Survey, rows: NDArray[np.integer], columns: Mapping[str, NDArray[np.floating]]) -> Ensemble:
    conditions = {name: values[rows] for name, values in side.conditions.items()}
    return Ensemble(conditions, columns, None if side.groups is None else side.groups[rows])


def _yardstick(values: NDArray[np.float32], power: Ensemble, family: Family) -> Yardstick:
    few = values[:: max(1, values.size // 2**23)]
    thresholds = np.unique(np.quantile(few, _THRESHOLDS)).astype(np.float64)
    axis = LogAxis(4 * float(values.max(initial=1.0)))
    model = PowerModel.fit(power, shared(power, power))
    return Yardstick(axis, thresholds, quarters(family, power.conditions), model)


def _pairs(values: NDArray[np.float32], shapes: Ensemble, family: Family, seed: int) -> Ensemble | None:
    """Cross spectra of pairs of maps, each map in one pair at most; of different realisations where they are known."""
    rng = np.random.default_rng([seed, 9])
    everything = np.ones(len(values), dtype=bool)
    order = rng.permutation(len(values))
    if shapes.unit is not None:  # neighbours half the sorted list apart are of different realisations
        unit = rng.permutation(len(values))[shapes.units(everything)]
        order = order[np.argsort(unit[order], kind="stable")]
    half = len(order) // 2
    first, second = order[:half], order[half : 2 * half]
    if shapes.unit is not None:
        different = shapes.unit[first] != shapes.unit[second]
        first, second = first[different], second[different]
    chosen = thinned(len(first), min(_MOST_PAIRS, max(FEWEST, _MOST_PIXELS // (4 * family.voxels))), seed)
    if not len(chosen):
        return None
    square = len(set(family.sample_shape)) == 1 and "turn" in family.symmetries
    alike, coherence = cross_spectra(values[first[chosen]], values[second[chosen]], family.box_size, turns=square)
    own = None if shapes.unit is None else shapes.unit[first[chosen]]
    return Ensemble({}, {"alike": alike[:, None], "coherence": coherence}, own)


# ------------------------------------------------------------------------------------------------ statistics
@dataclass(frozen=True)
class Statistic:
    """A number that says how far apart two ensembles are.

    Attributes:
        key: Of the metric, without its selection.
        columns: What it is made of.
        function: From mean columns (S, F) to the vector compared, (S, K).
        norm: From that vector for the reference, (K,), to the norm of differences.
        unit: Of the result.
        all_power: Whether it takes the power spectra of all maps listed, not only of those kept whole.
    """

    key: str
    columns: str
    function: Callable[[Array], Array]
    norm: Callable[[Array], Norm]
    unit: str = ""
    all_power: bool = False


def _itself(mean: Array) -> Array:
    return mean


def _quotient(mean: Array) -> Array:
    """The ratio estimator: means over means of what their conditions make one expect, (S, 2K) to (S, K)."""
    first, second = np.split(mean, 2, axis=1)
    return np.asarray(first / second)


def _scatter(mean: Array) -> Array:
    """Standard deviations from means of values and of squares, (S, 2K) to (S, K)."""
    first, second = np.split(mean, 2, axis=1)
    return np.asarray(np.sqrt(np.maximum(second - first**2, 0)))


def _covariance(mean: Array) -> Array:
    """Covariance matrices (S, K * K) from means of values and of products, (S, K + K * K)."""
    size = int((np.sqrt(4 * mean.shape[1] + 1) - 1) / 2)
    first, second = mean[:, :size], mean[:, size:].reshape(-1, size, size)
    return np.asarray(second - first[:, :, None] * first[:, None, :]).reshape(len(mean), -1)


def _deviations(covariance: Array) -> Array:
    size = int(np.sqrt(covariance.shape[-1]))
    return np.asarray(np.sqrt(np.maximum(covariance[..., :: size + 1], 0)))


def _correlation(mean: Array) -> Array:
    covariance = _covariance(mean)
    deviation = _deviations(covariance)
    scale = (deviation[:, :, None] * deviation[:, None, :]).reshape(covariance.shape)
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)


def _distribution(mean: Array) -> Array:
    """Distribution functions from mean counts."""
    return np.asarray(mean.cumsum(axis=1) / mean.sum(axis=1, keepdims=True))


def _rms(reference: Array, shells: int | None = None) -> Norm:
    """Root mean square relative deviation over the first shells."""
    return lambda d: np.asarray(np.sqrt(np.mean((d / reference)[:, :shells] ** 2, axis=1)))


def _worst(reference: Array, shells: int | None = None) -> Norm:
    return lambda d: np.asarray(np.max(np.abs(d / reference)[:, :shells], axis=1))


def _frobenius(reference: Array) -> Norm:
    """Frobenius norm over that of the reference."""
    return lambda d: np.asarray(np.linalg.norm(d, axis=1) / np.linalg.norm(reference))


def _frobenius_covariance(reference: Array) -> Norm:
    """The same with each shell in units of its standard deviation in the reference."""
    deviation = _deviations(reference)
    scale = np.outer(deviation, deviation).ravel()
    return lambda d: np.asarray(np.linalg.norm(d / scale, axis=1) / np.linalg.norm(reference / scale))


def _wasserstein(reference: Array) -> Norm:
    """W1 in standard deviations of the reference, from distribution functions on equal bins."""
    share, place = np.diff(reference, prepend=0), np.arange(len(reference))
    sd = max(float(share @ place**2 - (share @ place) ** 2), 0.0) ** 0.5
    return lambda d: np.asarray(np.abs(d).sum(axis=1) / sd)


def _rms_of_largest(reference: Array) -> Norm:
    return lambda d: np.asarray(np.sqrt(np.mean(d**2, axis=1)) / np.abs(reference).max())


def _rms_of_filled(reference: Array) -> Norm:
    filled = reference > _RARE * reference.sum()
    return lambda d: np.asarray(np.sqrt(np.mean((d[:, filled] / reference[filled]) ** 2, axis=1)))


def coarse(counts: NDArray[np.floating]) -> Array:
    """Counts in the wider bins that figures show, (n, B) to (n, B / 8)."""
    return np.asarray(counts.reshape(len(counts), -1, _COARSE).sum(axis=2, dtype=np.float64))


STATISTICS = (
    Statistic("power_rms", "power_expected", _quotient, partial(_rms, shells=SHELLS), all_power=True),
    Statistic("power_worst", "power_expected", _quotient, partial(_worst, shells=SHELLS), all_power=True),
    Statistic("power_scatter", "power_squares", _scatter, partial(_rms, shells=SHELLS), all_power=True),
    Statistic("power_correlation", "power_products", _correlation, _frobenius),
    Statistic("power_covariance", "power_products", _covariance, _frobenius_covariance),
    Statistic("w1_sd/pixel", "pixel", _distribution, _wasserstein, "sd"),
    Statistic("w1_sd/peak_height", "peaks", _distribution, _wasserstein, "sd"),
    Statistic("peak_counts", "coarse_peaks", _itself, _rms_of_filled),
    Statistic("bispectrum_rms", "bispectrum", _itself, _rms),
    *(Statistic(f"minkowski_{v}", f"minkowski_{v}", _itself, _rms_of_largest) for v in range(3)),
)


def _columns(ensemble: Ensemble, name: str, rows: Rows, scale: Array) -> Array:
    """Columns of some maps, (m, F), or what is made of them; power spectra over ``scale``, so of order 1."""
    if name == "coarse_peaks":
        return coarse(ensemble.columns["peaks"][rows])
    if not name.startswith("power_"):
        return np.asarray(ensemble.columns[name][rows], dtype=np.float64)
    power = ensemble.columns["power"][rows] / scale
    if name == "power_expected":
        return np.concatenate([power, ensemble.columns["expected"][rows] / scale], axis=1)
    if name == "power_squares":
        return np.concatenate([power, power**2], axis=1)
    power = power[:, :: -(-power.shape[1] // _MATRIX)]
    products = power[:, :, None] * power[:, None, :]
    return np.concatenate([power, products.reshape(len(power), -1)], axis=1)


# ------------------------------------------------------------------------------------------------ metrics
def map_metrics(reference: MapStatistics, generated: MapStatistics, plan: SurveyPlan) -> dict[str, Metric]:
    """The metrics of maps by key, in all maps, in the bins of the conditions, and in the quarters ``[q1]`` to ``[q4]``.

    Keys:
        ``power_rms[B]``: root mean square of generated over reference mean P(k), minus 1, over the first 16 shells,
        each over what its own conditions make one expect (the same for equal conditions on both sides);
        ``power_worst[B]``: the largest of those deviations; ``power_scatter[B]``: the same as ``power_rms`` of the
        standard deviation between maps. ``power_correlation[B]``, ``power_covariance[B]``: Frobenius norm of the
        difference of P(k)'s correlation and covariance matrix over the norm of the reference's.
        ``w1_sd/pixel[B]``, ``w1_sd/peak_height[B]``: W1 of the logarithm of 1 + delta over its standard deviation.
        ``peak_counts[B]``, ``bispectrum_rms[B]``: relative deviations of the number of peaks in bins of height, and
        of the equilateral bispectrum, root mean square. ``minkowski_0[B]`` ...: deviation in units of the largest
        value over all thresholds. ``slope/C``, ``slope_ratio/C``, ``slope_rms/C``: d ln P(k) / d C with a condition
        C, mean over the first 16 shells: difference, ratio minus 1, and root mean square of the differences in each.
        ``inferred_bias/C[B]``, ``inferred_scatter/C[B]``, ``inferred_slope/C``: C as a regression trained with
        reference maps infers it from single maps: mean deviation and its scatter, compared with other reference maps,
        and how strongly it follows the true value, each against the reference's. ``cross_power``: how alike two
        different maps are once shifted to fit, beside reference maps; ``cross_copies``: share of pairs more alike than
        99 % of the reference's.
    """
    found: dict[str, Metric] = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty bin's deviation is undefined, and left out as such
        for selection in (*plan.selections, *reference.yardstick.quarters):
            found.update(_selection_metrics(reference, generated, selection, plan.seed))
        for name in shared(reference.power, generated.power):
            found.update(_slope_metrics(reference.power, generated.power, name, plan.seed))
        found.update(_pair_metrics(reference, generated))
    return found


def _selection_metrics(
    reference: MapStatistics, generated: MapStatistics, selection: Selection, seed: int
) -> Iterator[tuple[str, Metric]]:
    suffix = selection.suffix
    for all_power in (True, False):
        sides = [s.power if all_power else s.shapes for s in (reference, generated)]
        rows = [side.members(selection) for side in sides]
        n = min(int(np.count_nonzero(r)) for r in rows)
        if n < FEWEST:
            continue
        units = [side.units(r) for side, r in zip(sides, rows, strict=True)]
        scale = np.maximum(sides[0].columns["power"].mean(axis=0, dtype=np.float64), np.finfo(np.float64).tiny)
        for statistic in (s for s in STATISTICS if s.all_power == all_power):
            spreads = []
            for k, side in enumerate(sides):
                columns = _columns(side, statistic.columns, rows[k], scale)
                sums = unit_sums(np.concatenate([columns, np.ones((len(columns), 1))], axis=1), units[k])
                spreads.append(Spread.of(sums, partial(_of_means, statistic.function), seed + k))
            if spreads[0].value.any():
                norm = statistic.norm(spreads[0].value)
                yield f"{statistic.key}{suffix}", distance(spreads[0], spreads[1], norm, n, statistic.unit)
        if not all_power and "inferred" in sides[1].columns and (selection is ALL or isinstance(selection, Quarter)):
            yield from _inferred_metrics(sides, rows, units, selection, seed)


def _of_means(function: Callable[[Array], Array], sums: Array) -> Array:
    """A function of mean columns from weighted sums, whose last column is the number of samples."""
    return function(sums[:, :-1] / sums[:, -1:])


def _inferred_metrics(
    sides: list[Ensemble], rows: list[Rows], units: list[NDArray[np.int64]], selection: Selection, seed: int
) -> Iterator[tuple[str, Metric]]:
    n = min(int(np.count_nonzero(r)) for r in rows)
    for c, name in enumerate(sides[0].conditions):
        if name not in shared(*sides):
            continue
        moments = []
        for side, chosen in zip(sides, rows, strict=True):
            truth = side.conditions[name][chosen].astype(np.float64)
            guess = side.columns["inferred"][chosen, c]
            error = guess - truth
            ones = np.ones_like(error)
            moments.append(np.stack([error, error**2, guess, truth, truth**2, guess * truth, ones], axis=1))
        functions: dict[str, Callable[[Array], Array]] = {
            "bias": lambda m: m[:, :1],
            "scatter": lambda m: _scatter(m[:, :2]),
            "slope": lambda m: (m[:, 5:6] - m[:, 2:3] * m[:, 3:4]) / (m[:, 4:5] - m[:, 3:4] ** 2),
        }
        for quantity, function in functions.items():
            if quantity == "slope" and selection is not ALL:
                continue
            made = partial(_of_means, function)
            each = enumerate(zip(moments, units, strict=True))
            spreads = [Spread.of(unit_sums(m, u), made, seed + k) for k, (m, u) in each]
            ratio = quantity != "bias"
            key = f"inferred_{quantity}/{name}{selection.suffix}"
            yield key, difference(spreads[0], spreads[1], n, ratio=ratio)


def _slope_metrics(reference: Ensemble, generated: Ensemble, name: str, seed: int) -> Iterator[tuple[str, Metric]]:
    names = shared(reference, generated)
    number, n = names.index(name), min(len(reference), len(generated))
    if n < FEWEST:
        return
    spreads = [response(side, names, seed + k) for k, side in enumerate((reference, generated))]
    mine = [_part(s, lambda v: v.reshape(len(v), len(names), -1)[:, number, :SHELLS]) for s in spreads]
    means = [_part(s, lambda v: v.mean(axis=1, keepdims=True)) for s in mine]
    yield f"slope/{name}", difference(means[0], means[1], n)
    yield f"slope_ratio/{name}", difference(means[0], means[1], n, ratio=True)
    yield f"slope_rms/{name}", distance(mine[0], mine[1], _rms(np.ones(1)), n)


def _part(spread: Spread, function: Callable[[Array], Array]) -> Spread:
    """A linear function of a statistic, from (S, K) to (S, J)."""
    return Spread(function(spread.value[None])[0], function(spread.noise), function(spread.again))


def _pair_metrics(reference: MapStatistics, generated: MapStatistics) -> Iterator[tuple[str, Metric]]:
    sides = [s.pairs for s in (reference, generated)]
    if sides[0] is None or sides[1] is None or min(map(len, (sides[0], sides[1]))) < FEWEST // 2:
        return
    pairs: list[Ensemble] = [sides[0], sides[1]]
    n = min(map(len, pairs))
    curves = [p.curve(np.zeros(1), p.columns["alike"], p.members()) for p in pairs]
    value, floor = curves[1], curves[0]
    yield (
        "cross_power",
        Metric.of(float(value.y[0]), float(value.error[0]), float(floor.y[0]), float(floor.error[0]), n),
    )
    alike = [p.columns["alike"][:, 0] for p in pairs]
    limit = np.quantile(alike[0], 1 - COPIES)
    shares = [float(np.mean(a > limit)) for a in alike]
    # Two of each are added, so that none has an error as well (Agresti and Coull 1998).
    padded = [(len(a) * s + 2) / (len(a) + 4) for a, s in zip(alike, shares, strict=True)]
    errors = [float(np.sqrt(p * (1 - p) / len(a))) for a, p in zip(alike, padded, strict=True)]
    yield "cross_copies", Metric.of(shares[1], errors[1], shares[0], errors[0], n)
