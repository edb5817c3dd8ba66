"""From two surveys of density maps to metrics: how a surrogate's ensembles of maps differ from the simulated ones.

Single maps scatter so much that only ensembles can be judged: in all maps, in bins of the conditions, and in the
quarters of the plane of the first two. Errors and floors are by realisation (see ``ensembles.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family, varies

from ..observables.statistics import LogAxis, bispectra, cross_spectra, minkowski, pixel_histograms
from ..survey.plan import SurveyPlan
from ..survey.selections import ALL, Selection
from ..survey.survey import Survey
from .distances import halves
from .ensembles import Ensemble, Norm, Rows, Spread, difference, distance, shared, unit_sums
from .multivariate import thinned
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
FEWEST = 20  # maps of either side below which a selection is left out
_FEWEST_TRAINED = 40  # maps to train a regression with
_RIDGE = 1e-3  # of the mean square of a summary
_STEPS = 25  # of the fit of the mean power spectrum
SHELLS = 16  # that the headline is about: from the fundamental mode to 16 times that
_THRESHOLDS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)  # quantiles of the reference's pixels
_MOST_MAPS = 50_000  # maps of a side whose power spectra are compared
_MOST_PIXELS = 2**25  # pixels of whole maps that shapes are measured of
_MOST_PAIRS = 2000
_MATRIX = 32  # shells of the correlation matrix, at most
_COARSE = 8  # fine bins of the logarithm in one that figures show
_RARE = 0.01  # share of all peaks below which a bin of heights is not compared
COPIES = 0.01  # share of reference pairs that are most alike

_SLOPES = (
    "How ln P(k) depends on a condition: difference of the slope, ratio minus 1, and root mean square over shells."
)
SLOPE = Quantity("slope", "slope of ln P(k)", _SLOPES, headline=True)
SLOPE_RATIO = Quantity("slope_ratio", "slope of ln P(k), generated / reference - 1", _SLOPES, headline=True)
SLOPE_RMS = Quantity("slope_rms", "slope of ln P(k) over shells", _SLOPES)
_INFERRED = (
    "A condition inferred from single generated maps by a regression trained with reference maps: shift, relative "
    "scatter, and relative response to the true value, against the reference's own."
)
INFERRED_BIAS = Quantity("inferred_bias", "shift of inferred conditions", _INFERRED)
INFERRED_SCATTER = Quantity("inferred_scatter", "scatter of inferred conditions", _INFERRED)
INFERRED_SLOPE = Quantity("inferred_slope", "response of inferred conditions", _INFERRED)
_CROSS = (
    "How alike two generated maps are once shifted to fit, beside two reference maps; share of pairs more alike than "
    "99 % of the reference's."
)
CROSS_POWER = Quantity("cross_power", "likeness of different maps", _CROSS, headline=True)
CROSS_COPIES = Quantity("cross_copies", "share of pairs of maps that are alike", _CROSS, headline=True)


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


# ------------------------------------------------------------------------------------------------ conditions
@dataclass(frozen=True)
class PowerModel:
    """The mean power spectrum as a function of the conditions: ln <P(k)> = a(k) + sum_c b_c(k) (theta_c - mean).

    A generalised linear model with logarithmic link and gamma variance: it is the mean over maps that is modelled,
    however maps scatter and whether or not it is known which of them share a box.

    Attributes:
        names: Conditions, C.
        centre: Their means, (C,).
        scale: Mean P(k), (K,).
        slopes: a and b, of P(k) over its mean, (1 + C, K).

    Source: McCullagh and Nelder 1989, ch. 8.
    """

    names: tuple[str, ...]
    centre: Array
    scale: Array
    slopes: Array

    @classmethod
    def fit(cls, side: Ensemble, names: Sequence[str]) -> PowerModel:
        """Fit to the column ``power`` (n, K) of some maps."""
        power = side.columns["power"].astype(np.float64)
        scale = np.maximum(power.mean(axis=0), np.finfo(np.float64).tiny)
        centre = np.array([side.conditions[name].mean(dtype=np.float64) for name in names])
        model = cls(tuple(names), centre, scale, np.zeros((1 + len(names), power.shape[1])))
        design, slopes = model.design(side), model.slopes
        inverse = np.linalg.pinv(design.T @ design)
        for _ in range(_STEPS):
            slopes = slopes + np.clip(inverse @ (design.T @ (power / scale * np.exp(-design @ slopes) - 1)), -1, 1)
        return cls(tuple(names), centre, scale, slopes)

    def design(self, side: Ensemble) -> Array:
        """A constant and the conditions less their means, (n, 1 + C)."""
        columns = [
            side.conditions[name].astype(np.float64) - c for name, c in zip(self.names, self.centre, strict=True)
        ]
        return np.stack([np.ones(len(side)), *columns], axis=1)

    def expected(self, side: Ensemble) -> Array:
        """Mean power spectrum for the conditions of each map, (n, K)."""
        return np.asarray(self.scale * np.exp(self.design(side) @ self.slopes))


def response(side: Ensemble, names: Sequence[str], seed: int) -> Spread:
    """Slopes d ln P(k) / d condition of the mean power spectrum, (C * K) in the order condition, shell.

    Halves and resamples are one step of the fit's iteration from the solution of all.

    Args:
        side: Has ``power`` (n, K).
        names: Conditions, C.
        seed: Decides halves and resamples.

    Source: one-step estimators: van der Vaart 1998, Asymptotic Statistics, sec. 5.7.
    """
    model = PowerModel.fit(side, names)
    design = model.design(side)
    left = side.columns["power"] / model.expected(side) - 1
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    products = (design[:, :, None] * left[:, None, :]).reshape(len(design), -1)
    sums = unit_sums(np.concatenate([squares, products], axis=1), side.units(side.members()))
    size = design.shape[1]

    def step(weighted: Array) -> Array:
        matrix = weighted[:, : size**2].reshape(-1, size, size)
        change = np.linalg.pinv(matrix) @ weighted[:, size**2 :].reshape(len(weighted), size, -1)
        return np.asarray((model.slopes + change)[:, 1:].reshape(len(weighted), -1))

    return Spread.of(sums, step, seed)


@dataclass(frozen=True)
class Regressor:
    """Infers conditions from summaries of a single map: ridge regressions, each trained on one half of the reference.

    Attributes:
        first: Which reference maps trained the first regression, (n,); the others trained the second.
        centre: Mean of each summary, (F,).
        scale: Its standard deviation, (F,).
        weights: Of both regressions, (2, F + 1, C).
    """

    first: NDArray[np.bool_]
    centre: Array
    scale: Array
    weights: Array

    @classmethod
    def fit(cls, shapes: Ensemble, seed: int) -> Regressor | None:
        """Train with reference maps, halves of whole realisations; None without conditions or of fewer than 40 maps."""
        names = tuple(shapes.conditions)
        if not names or len(shapes) < _FEWEST_TRAINED:
            return None
        x = _summaries(shapes)
        centre, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(varies(scale, np.abs(x).max(axis=0)), scale, 1.0)
        x = _design(x, centre, scale)
        truth = np.stack([shapes.conditions[n] for n in names], axis=1).astype(np.float64)
        first = np.zeros(len(x), dtype=bool)
        first[halves(np.random.default_rng([seed, 10]), len(x), shapes.unit)[0]] = True
        penalty = _RIDGE * np.diag([0.0, *np.ones(x.shape[1] - 1)])
        weights = [
            np.linalg.solve(x[h].T @ x[h] + penalty * np.count_nonzero(h), x[h].T @ truth[h]) for h in (first, ~first)
        ]
        return cls(first, centre, scale, np.stack(weights))

    def infer(self, shapes: Ensemble, *, own: bool) -> Array:
        """Infer the conditions of each map, (n, C).

        Args:
            shapes: The maps' summaries.
            own: Whether these are the maps it was trained with: each is then left to the regression that never saw it.
                Of others each regression infers every other map.
        """
        x = _design(_summaries(shapes), self.centre, self.scale)
        by_second = self.first if own else np.arange(len(x)) % 2 == 0
        return np.asarray(np.where(by_second[:, None], x @ self.weights[1], x @ self.weights[0]))


def _summaries(shapes: Ensemble) -> Array:
    """What conditions are inferred from: ln P(k) of 16 shells, Minkowski functionals, the number of peaks; (n, F)."""
    power = np.log(np.maximum(shapes.columns["power"][:, :SHELLS].astype(np.float64), np.finfo(np.float32).tiny))
    peaks = shapes.columns["peaks"].sum(axis=1, dtype=np.float64, keepdims=True)
    return np.concatenate([power, *(shapes.columns[f"minkowski_{v}"] for v in range(3)), peaks], axis=1)


def _design(summaries: Array, centre: Array, scale: Array) -> Array:
    """A constant, and summaries in standard deviations; of those far outside the reference's five at most."""
    standard = np.clip((summaries - centre) / scale, -5, 5)
    return np.concatenate([np.ones((len(standard), 1)), standard], axis=1)


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
    pairs: Ensemble | None = None


def map_statistics(side: Survey, plan: SurveyPlan, reference: MapStatistics | None = None) -> MapStatistics:
    """Measure the maps of one side.

    Args:
        side: Its survey.
        plan: Shared by all sides.
        reference: The reference's statistics; None for the reference itself, which decides the yardstick.
    """
    family = plan.family
    columns = [i for i, observable in enumerate(plan.observables.values()) if observable.wave_number]
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
        quantity: What reports call it.
        columns: What it is made of: columns of some maps (m, F); of power spectra over ``scale``, so of order 1.
        function: From mean columns (S, F) to the vector compared, (S, K).
        norm: From that vector for the reference, (K,), to the norm of differences.
        all_power: Whether it takes the power spectra of all maps listed, not only of those kept whole.
    """

    quantity: Quantity
    columns: Callable[[Ensemble, Rows, Array], Array]
    function: Callable[[Array], Array]
    norm: Callable[[Array], Norm]
    all_power: bool = False


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
    """Root mean square relative deviation."""
    return lambda d: np.asarray(np.sqrt(np.mean((d / reference)[:, :shells] ** 2, axis=1)))


def _worst(reference: Array) -> Norm:
    """Largest relative deviation in the first shells."""
    return lambda d: np.asarray(np.max(np.abs(d / reference)[:, :SHELLS], axis=1))


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


def _of(name: str) -> Callable[[Ensemble, Rows, Array], Array]:
    """Columns as they were measured."""
    return lambda ensemble, rows, _: np.asarray(ensemble.columns[name][rows], dtype=np.float64)


def _expected(ensemble: Ensemble, rows: Rows, scale: Array) -> Array:
    return np.concatenate([ensemble.columns[name][rows] / scale for name in ("power", "expected")], axis=1)


def _squares(ensemble: Ensemble, rows: Rows, scale: Array) -> Array:
    power = ensemble.columns["power"][rows] / scale
    return np.concatenate([power, power**2], axis=1)


def _products(ensemble: Ensemble, rows: Rows, scale: Array) -> Array:
    power = ensemble.columns["power"][rows] / scale
    power = power[:, :: -(-power.shape[1] // _MATRIX)]
    products = power[:, :, None] * power[:, None, :]
    return np.concatenate([power, products.reshape(len(power), -1)], axis=1)


_rms_of_first = partial(_rms, shells=SHELLS)
_headline = partial(Quantity, headline=True)
_in_quarters = partial(Quantity, headline=True, in_quarters=True)
_heights = partial(Quantity, unit="sd", headline=True, in_quarters=True, counted=True)
_POWER = (
    "Generated over reference mean P(k) minus 1, root mean square over the first 16 shells and the largest of them, "
    "and the same of the scatter of P(k) between maps, each over what its own conditions make one expect; [q1] to [q4] "
    "are the quarters of the conditions' plane."
)
_MATRICES = "Difference of P(k)'s correlation and covariance matrices over the norm of the reference's."
_HEIGHTS = "Wasserstein-1 distance of ln(1 + delta) of all pixels, and of those that are peaks, in standard deviations."
_COUNTS = (
    "Relative deviation of the number of peaks in bins of height, and of the equilateral bispectrum, root mean square."
)
_MINKOWSKI = (
    "Area (0), boundary (1) and Euler number (2) of the regions above thresholds: deviation over the largest value."
)
STATISTICS = (
    Statistic(
        _in_quarters("power_rms", "P(k), rms deviation", _POWER), _expected, _quotient, _rms_of_first, all_power=True
    ),
    Statistic(
        _in_quarters("power_worst", "P(k), largest deviation", _POWER), _expected, _quotient, _worst, all_power=True
    ),
    Statistic(_headline("power_scatter", "scatter of P(k)", _POWER), _squares, _scatter, _rms_of_first, all_power=True),
    Statistic(_headline("power_correlation", "correlations of P(k)", _MATRICES), _products, _correlation, _frobenius),
    Statistic(
        _headline("power_covariance", "covariances of P(k)", _MATRICES), _products, _covariance, _frobenius_covariance
    ),
    Statistic(_heights("w1_sd/pixel", "heights of pixels", _HEIGHTS), _of("pixel"), _distribution, _wasserstein),
    Statistic(_heights("w1_sd/peak_height", "heights of peaks", _HEIGHTS), _of("peaks"), _distribution, _wasserstein),
    Statistic(
        _headline("peak_counts", "numbers of peaks", _COUNTS),
        lambda ensemble, rows, _: coarse(ensemble.columns["peaks"][rows]),
        np.asarray,
        _rms_of_filled,
    ),
    Statistic(_headline("bispectrum_rms", "bispectrum", _COUNTS), _of("bispectrum"), np.asarray, _rms),
    Statistic(_headline("minkowski_0", "area above", _MINKOWSKI), _of("minkowski_0"), np.asarray, _rms_of_largest),
    Statistic(_headline("minkowski_1", "boundary above", _MINKOWSKI), _of("minkowski_1"), np.asarray, _rms_of_largest),
    Statistic(
        _headline("minkowski_2", "Euler number above", _MINKOWSKI), _of("minkowski_2"), np.asarray, _rms_of_largest
    ),
)
"""To add one, add an entry: its quantity, the columns it is made of, what is compared, and the norm of differences."""


# ------------------------------------------------------------------------------------------------ metrics
def map_metrics(reference: MapStatistics, generated: MapStatistics, plan: SurveyPlan) -> dict[Key, Metric]:
    """The metrics of maps by key, in all maps, in the bins of the conditions, and in the quarters ``[q1]`` to ``[q4]``.

    What each is says its :class:`Quantity`; errors and floors: ``ensembles.py``.
    """
    found: dict[Key, Metric] = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty bin's deviation is undefined, and left out as such
        for selection in (*plan.selections, *reference.yardstick.quarters):
            found.update(_selection_metrics(reference, generated, selection, plan.seed))
        found.update(_slope_metrics(reference.power, generated.power, plan.seed))
        found.update(_pair_metrics(reference, generated))
    return found


def _selection_metrics(
    reference: MapStatistics, generated: MapStatistics, selection: Selection, seed: int
) -> Iterator[tuple[Key, Metric]]:
    for all_power in (True, False):
        sides = [s.power if all_power else s.shapes for s in (reference, generated)]
        rows = [side.members(selection) for side in sides]
        n = min(int(np.count_nonzero(r)) for r in rows)
        if n < FEWEST:
            continue
        units = [side.units(r) for side, r in zip(sides, rows, strict=True)]
        scale = np.maximum(sides[0].columns["power"].mean(axis=0, dtype=np.float64), np.finfo(np.float64).tiny)
        for statistic in (s for s in STATISTICS if s.all_power == all_power):
            columns = [statistic.columns(side, r, scale) for side, r in zip(sides, rows, strict=True)]
            spreads = [Spread.of_means(columns[k], units[k], statistic.function, seed + k) for k in (0, 1)]
            if spreads[0].value.any():
                norm, quantity = statistic.norm(spreads[0].value), statistic.quantity
                metric = distance(spreads[0], spreads[1], norm, n, quantity.unit)
                yield Key(quantity, selection=selection), metric
        if not all_power and "inferred" in sides[1].columns and (selection is ALL or isinstance(selection, Quarter)):
            yield from _inferred_metrics(sides, rows, units, selection, seed)


def _inferred_metrics(
    sides: list[Ensemble], rows: list[Rows], units: list[NDArray[np.int64]], selection: Selection, seed: int
) -> Iterator[tuple[Key, Metric]]:
    n = min(int(np.count_nonzero(r)) for r in rows)
    for c, name in enumerate(sides[0].conditions):
        if name not in shared(*sides):
            continue
        moments = []
        for side, chosen in zip(sides, rows, strict=True):
            truth = side.conditions[name][chosen].astype(np.float64)
            guess = side.columns["inferred"][chosen, c]
            error = guess - truth
            moments.append(np.stack([error, error**2, guess, truth, truth**2, guess * truth], axis=1))
        functions: dict[Quantity, Callable[[Array], Array]] = {
            INFERRED_BIAS: lambda m: m[:, :1],
            INFERRED_SCATTER: lambda m: _scatter(m[:, :2]),
            INFERRED_SLOPE: lambda m: (m[:, 5:6] - m[:, 2:3] * m[:, 3:4]) / (m[:, 4:5] - m[:, 3:4] ** 2),
        }
        for quantity, function in functions.items():
            if quantity is INFERRED_SLOPE and selection is not ALL:
                continue
            spreads = [Spread.of_means(moments[k], units[k], function, seed + k) for k in (0, 1)]
            ratio = quantity is not INFERRED_BIAS
            yield Key(quantity, name, selection), difference(spreads[0], spreads[1], n, ratio=ratio)


def _slope_metrics(reference: Ensemble, generated: Ensemble, seed: int) -> Iterator[tuple[Key, Metric]]:
    names, n = shared(reference, generated), min(len(reference), len(generated))
    if not names or n < FEWEST:
        return
    spreads = [response(side, names, seed + k) for k, side in enumerate((reference, generated))]
    for c, name in enumerate(names):
        slopes = partial(lambda c, v: v.reshape(len(v), len(names), -1)[:, c, :SHELLS], c)
        mine = [_part(spread, slopes) for spread in spreads]
        means = [_part(spread, lambda v: v.mean(axis=1, keepdims=True)) for spread in mine]
        yield Key(SLOPE, name), difference(means[0], means[1], n)
        yield Key(SLOPE_RATIO, name), difference(means[0], means[1], n, ratio=True)
        yield Key(SLOPE_RMS, name), distance(mine[0], mine[1], _rms(np.ones(1)), n)


def _part(spread: Spread, function: Callable[[Array], Array]) -> Spread:
    """A linear function of a statistic, from (S, K) to (S, J)."""
    return Spread(function(spread.value[None])[0], function(spread.noise), function(spread.again))


def _pair_metrics(reference: MapStatistics, generated: MapStatistics) -> Iterator[tuple[Key, Metric]]:
    pairs = [s.pairs for s in (reference, generated) if s.pairs is not None and len(s.pairs) >= FEWEST // 2]
    if len(pairs) < 2:
        return
    n = min(map(len, pairs))
    curves = (p.curve(np.zeros(1), p.columns["alike"], p.members()) for p in pairs)
    floor, value = ((float(curve.y[0]), float(curve.error[0])) for curve in curves)
    yield Key(CROSS_POWER), Metric.of(*value, *floor, n)
    alike = [p.columns["alike"][:, 0] for p in pairs]
    limit = np.quantile(alike[0], 1 - COPIES)
    shares = [float(np.mean(a > limit)) for a in alike]
    # Two of each are added, so that none has an error as well (Agresti and Coull 1998).
    padded = [(len(a) * s + 2) / (len(a) + 4) for a, s in zip(alike, shares, strict=True)]
    errors = [float(np.sqrt(p * (1 - p) / len(a))) for a, p in zip(alike, padded, strict=True)]
    yield Key(CROSS_COPIES), Metric.of(shares[1], errors[1], shares[0], errors[0], n)
