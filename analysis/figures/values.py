"""What the figures show, worked out from a report: histograms, curves against a condition, images, correlations.

Figures draw these and compute nothing, so the same numbers serve a page, a paper and a test. Several seeds of one
surrogate are joined here: their mean, with the spread between seeds in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calogen.families import Condition, Family

from ..metrics.conditioning import Curve, ResolutionFit, Statistic, binned_curve, condition_curve, curve_edges, in_gev
from ..metrics.distances import W1_SD
from ..metrics.ensembles import shared
from ..metrics.kinds import kind_of
from ..metrics.maps import FEWEST, MapStatistics, coarse, response
from ..metrics.multivariate import correlation_matrix
from ..metrics.registry import Key
from ..numbers import with_error
from ..observables.maps import wave_numbers
from ..survey.histograms import is_logarithmic
from ..survey.selections import ALL, Selection
from ..survey.survey import vectors

if TYPE_CHECKING:
    from ..report import Report
    from ..survey.survey import Survey

Array = NDArray[np.float64]
S = TypeVar("S")
T = TypeVar("T")
_RADIUS_BINS = 12


@dataclass(frozen=True)
class Histogram:
    """Contents of a histogram and what follows from them.

    Attributes:
        edges: (B + 1,).
        contents: Counts with under- and overflow, (B + 2,).
        count_error: Error of each inner bin's count, (B,).
        seeds: How many seeds of one surrogate are joined in it.
    """

    edges: Array
    contents: NDArray[np.int64]
    count_error: Array
    seeds: int = 1

    @property
    def total(self) -> int:
        """Entries, wherever they fell."""
        return int(self.contents.sum())

    @property
    def widths(self) -> Array:
        """Bin widths in the unit of the axis, or of logarithmic bins in decades, (B,)."""
        return np.asarray(np.diff(np.log10(self.edges) if is_logarithmic(self.edges) else self.edges))

    @property
    def curve(self) -> Curve:
        """Share of all entries per unit of the axis or per decade, at the middles of the bins."""
        low, high = self.edges[:-1], self.edges[1:]
        middles = np.sqrt(low * high) if is_logarithmic(self.edges) else (low + high) / 2
        scale = max(self.total, 1) * self.widths
        return Curve(middles, self.contents[1:-1] / scale, self.count_error / scale, self.seeds)

    @property
    def flow(self) -> Array:
        """Shares of entries below the first edge and above the last, (2,)."""
        return np.asarray(self.contents[[0, -1]] / max(self.total, 1))


def _joined(histograms: Sequence[Histogram]) -> Histogram:
    """The seeds of one surrogate as one histogram: all entries, the spread between seeds in the error."""
    if len(histograms) == 1:
        return histograms[0]
    contents = np.sum([h.contents for h in histograms], axis=0)
    shares = np.array([h.contents[1:-1] / max(h.total, 1) for h in histograms])
    statistical = np.sqrt(np.sum([h.count_error**2 for h in histograms], axis=0))
    error = np.hypot(statistical, shares.std(axis=0, ddof=1) * contents.sum())
    return replace(histograms[0], contents=contents, count_error=error, seeds=len(histograms))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of the curves of several seeds, the spread between seeds in the error."""
    if len(curves) == 1:
        return curves[0]
    x, y, error = (np.array([getattr(c, part) for c in curves]) for part in ("x", "y", "error"))
    statistical = np.sqrt(np.mean(error**2, axis=0) / len(curves))
    return Curve(x.mean(axis=0), y.mean(axis=0), np.hypot(y.std(axis=0, ddof=1), statistical), len(curves))


def mean_array(arrays: Sequence[Array]) -> Array:
    """The mean of the arrays of several seeds."""
    return np.asarray(np.mean(arrays, axis=0))


def _by_side(report: Report, make: Callable[[str], S], join: Callable[[Sequence[S]], T]) -> dict[str, T]:
    """Something of every member, the seeds of one surrogate joined; the reference first."""
    members = {"reference": ("reference",), **{name: report.members(name) for name in report.metrics}}
    return {title: join([make(member) for member in names]) for title, names in members.items()}


def sides(report: Report) -> dict[str, tuple[Survey, ...]]:
    """The reference first, then the surrogates with all their seeds, by the name a legend prints."""
    surveys = {"reference": report.reference, **report.generated}
    return _by_side(report, surveys.__getitem__, tuple)


def _each(report: Report, make: Callable[[Survey], S], join: Callable[[Sequence[S]], T]) -> dict[str, T]:
    return {title: join([make(side) for side in surveys]) for title, surveys in sides(report).items()}


def filled(report: Report, selection: Selection) -> bool:
    """Whether every side has samples in a selection."""
    return all(np.count_nonzero(s.members(selection)) > 1 for surveys in sides(report).values() for s in surveys)


def observable_histograms(report: Report, name: str, selection: Selection = ALL) -> dict[str, Histogram]:
    """One observable's histogram for each side, of all samples, on edges fixed by the reference."""
    number = report.plan.selections.index(selection)
    edges = report.plan.edges[name][number]

    def histogram(side: Survey) -> Histogram:
        contents = side.histograms.counts(name, number)
        return Histogram(edges, contents, np.sqrt(contents[1:-1]))

    return _each(report, histogram, _joined)


def spectra(report: Report) -> dict[str, Histogram]:
    """Spectrum of single voxels (pixels) in the bins that have any; errors from the scatter between samples."""
    name = report.plan.axis.name
    (edges, *_) = report.plan.edges[name]

    def spectrum(side: Survey) -> Histogram:
        # Voxels of one shower come together: scale the scatter of the showers kept to all of them.
        scatter = side.kept_spectra[:, 1:-1].std(axis=0) * np.sqrt(side.used)
        return Histogram(edges, side.histograms.counts(name), scatter)

    found = _each(report, spectrum, _joined)
    keep = _filled([h.contents[1:-1] for h in found.values()])
    edges = edges[keep.start : keep.stop + 1]
    for title, h in found.items():
        contents = np.concatenate([h.contents[:1], h.contents[1:-1][keep], h.contents[-1:]])
        found[title] = replace(h, edges=edges, contents=contents, count_error=h.count_error[keep])
    return found


def _filled(rows: Sequence[NDArray[Any]]) -> slice:
    """From the first to the last bin that is filled in any row; all of them where none is."""
    filled = np.flatnonzero(np.sum(rows, axis=0))
    return slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, len(rows[0]))


def condition_curves(
    report: Report, name: str, condition: Condition, statistic: Statistic
) -> tuple[Array, dict[str, Curve]]:
    """A statistic of one observable in bins of a condition, for each side.

    Args:
        report: The report.
        name: Observable.
        condition: Condition on the horizontal axis.
        statistic: Gives value and error of a column of values.

    Returns:
        The bin edges (K + 1,) and the curves by side.
    """
    edges = curve_edges(report.reference, condition)
    return edges, _each(report, lambda s: condition_curve(s, name, condition, edges, statistic), mean_curve)


def fit_curves(report: Report, kind: str, edges: Array) -> dict[str, Curve]:
    """The fitted resolution of each side that has a fit, on a fine grid over some bins of the energy.

    Args:
        report: The report.
        kind: A key of :data:`calogen.analysis.metrics.conditioning.RESOLUTIONS`.
        edges: Bins of the incident energy in its own unit, (K + 1,).
    """
    low = max(float(edges[0]), 1e-3 * float(edges[-1]))
    x = np.geomspace(low, float(edges[-1]), 200)
    energies = x * in_gev(report.family.conditions[0])
    return {
        title: mean_curve([Curve(x, fit.at(energies), np.zeros_like(x)) for fit in fits])
        for title, fits in fits_of(report, kind).items()
        if fits
    }


def fits_of(report: Report, kind: str) -> dict[str, list[ResolutionFit]]:
    """The fits of one kind of resolution for each side, one for each seed that has one."""
    return _by_side(report, lambda m: report.fits.get(m, {}).get(kind), lambda fits: [f for f in fits if f is not None])


FIT_UNITS = ("%\N{SQUARE ROOT}GeV", "%GeV", "%")
"""Units of the terms a, b and c of a resolution."""


def fit_terms(fits: Sequence[ResolutionFit]) -> list[tuple[float, float]]:
    """Each fitted term with its error; of several seeds the mean, with the spread between seeds in the error."""
    terms, errors = np.array([fit.terms for fit in fits]), np.array([fit.errors for fit in fits])
    spread = terms.std(axis=0, ddof=1) if len(fits) > 1 else np.zeros(terms.shape[1])
    found = zip(terms.mean(axis=0), np.hypot(errors.mean(axis=0), spread), strict=True)
    return [(float(value), float(error)) for value, error in found]


def fit_text(fits: Sequence[ResolutionFit]) -> str:
    """The terms of a fit: a, b and c with their errors and units, E in GeV."""
    named = zip("abc", FIT_UNITS, fit_terms(fits), strict=True)
    return ",  ".join(f"{name} = {with_error(100 * value, 100 * error)} {unit}" for name, unit, (value, error) in named)


def longitudinal(report: Report) -> dict[str, Curve]:
    """Mean share of the deposited energy in each layer, for each side; x is the position of the layer."""
    rows = [report.reference.names.index(f"fraction_{n}") for n in report.family.layer_numbers]

    def profile(side: Survey) -> Curve:
        values = side.table[rows].astype(np.float64)
        error = values.std(axis=1) / np.sqrt(max(values.shape[1], 1))
        return Curve(np.arange(len(rows), dtype=np.float64), values.mean(axis=1), error)

    return _each(report, profile, mean_curve)


def radial(report: Report) -> dict[str, tuple[Array, dict[str, Curve]]]:
    """Radial profile in every layer, or in three groups of layers of deep families, by their title.

    Returns:
        Edges of the bins of radius in mm, (B + 1,), and the curves by side; y is the mean share of the incident energy
        (or of what whole showers are divided by without it) per mm, x the middle of the bin.
    """
    family, radius, found = report.family, report.family.radii, {}
    for title, positions in layer_groups(family):
        cells = np.concatenate([np.arange(family.voxels)[family.layer_slices[p]] for p in positions])
        edges = _radius_edges(radius[cells])
        rings = np.zeros((family.voxels, len(edges) - 1))
        place = np.searchsorted(edges, radius[cells], side="right") - 1
        rings[cells, place] = 1 / np.diff(edges)[place]
        make = partial(_radial_curve, report.plan.fixed_scale, edges, rings)
        found[title] = edges, _each(report, make, mean_curve)
    return found


def _radial_curve(fixed_scale: float | None, edges: Array, rings: Array, side: Survey) -> Curve:
    """Of all samples where their covariance is known, else of those kept whole."""
    x = (edges[:-1] + edges[1:]) / 2
    if side.covariance is not None:
        variance = np.einsum("vb,vb->b", rings, side.covariance.covariance @ rings)
        return Curve(x, side.covariance.mean @ rings, np.sqrt(np.maximum(variance, 0) / side.covariance.count))
    profiles = vectors(side.kept, fixed_scale) @ rings.astype(np.float32)
    return Curve(x, profiles.mean(axis=0, dtype=np.float64), profiles.std(axis=0) / np.sqrt(len(profiles)))


def layer_groups(family: Family, most: int = 7) -> list[tuple[str, list[int]]]:
    """Title and positions of every layer, or of three groups of neighbouring layers where there are more than most."""
    numbers = family.layer_numbers
    if len(numbers) <= most:
        return [(f"layer {number}", [position]) for position, number in enumerate(numbers)]
    groups = np.array_split(np.arange(len(numbers)), 3)
    return [(f"layers {numbers[g[0]]} to {numbers[g[-1]]}", [int(p) for p in g]) for g in groups]


def _radius_edges(radius: Array) -> Array:
    """Bins of radius that widen outwards, each with at least one cell."""
    rings = np.unique(np.round(radius, 6))
    if len(rings) == 1:
        return np.array([0.0, 2 * rings[0] or 1.0])
    steps = (rings[1:] + rings[:-1]) / 2
    if len(steps) >= _RADIUS_BINS:
        wanted = np.geomspace(max(steps[0], rings[-1] / 100), rings[-1], _RADIUS_BINS)[:-1]
        steps = np.unique(steps[np.clip(np.searchsorted(steps, wanted), 0, len(steps) - 1)])
    return np.concatenate([[0.0], steps, [rings[-1] + (rings[-1] - steps[-1])]])


def correlations(report: Report) -> tuple[list[str], dict[str, Array]]:
    """Names of the correlated observables and their correlation matrix for each side."""
    names = kind_of(report.family).correlated(report.plan)
    rows = [report.reference.names.index(n) for n in names]
    finest = report.plan.resolutions[rows]
    return names, _each(report, lambda side: correlation_matrix(side.table[rows], finest), mean_array)


def voxel_correlations(report: Report) -> dict[str, Array]:
    """Correlations between voxels in units of the incident energy, (V, V), of all samples of each side.

    Empty for families of more than 1,000 voxels.
    """
    found = {}
    for title, surveys in sides(report).items():
        known = [side.covariance.correlation for side in surveys if side.covariance is not None]
        if known:
            found[title] = mean_array(known)
    return found


def layer_images(report: Report, position: int) -> dict[str, Array]:
    """Mean voxel energies of one layer for each side, (V_layer,)."""
    cells = report.family.layer_slices[position]
    return _each(report, lambda side: side.means.mean[0, cells], mean_array)


def pulls(report: Report, name: str) -> tuple[list[str], list[Selection], Array, Array]:
    """Of one set of generated samples: observables, selections, and W1 in standard deviations with its pull, (K, S)."""
    found, names, chosen = report.metrics[name], list(report.observables), list(report.plan.selections)
    grids = np.full((2, len(names), len(chosen)), np.nan)
    for i, observable in enumerate(names):
        for j, selection in enumerate(chosen):
            metric = found.get(Key(W1_SD, observable, selection))
            if metric is not None and metric.value is not None:
                grids[:, i, j] = metric.value, np.nan if metric.pull is None else metric.pull
    return names, chosen, grids[0], grids[1]


def shown_layers(report: Report, most: int = 7) -> list[int]:
    """Positions of the layers that figures show: all of them, or a few spread over the shower's energy."""
    layers = len(report.family.layers)
    if layers <= most:
        return list(range(layers))
    share = np.cumsum(longitudinal(report)["reference"].y)
    return sorted({int(np.searchsorted(share, q * share[-1])) for q in (0.02, 0.25, 0.5, 0.75, 0.98)})


# ------------------------------------------------------------------------------------------------ density maps
def _of_maps(report: Report, make: Callable[[MapStatistics], S], join: Callable[[Sequence[S]], T]) -> dict[str, T]:
    return _by_side(report, lambda member: make(report.maps[member]), join)


def plane(report: Report) -> list[Selection]:
    """All maps, and the quarters of the conditions' plane in which every side has enough."""
    sides, quarters = report.maps.values(), report.maps["reference"].yardstick.quarters
    return [ALL, *(q for q in quarters if all(np.count_nonzero(m.shapes.members(q)) >= FEWEST for m in sides))]


def map_curves(report: Report, column: str, x: Array, selection: Selection = ALL) -> dict[str, Curve]:
    """The mean of a column of map statistics against ``x`` on each side; errors from realisations where there are some.

    The power spectrum is of all maps listed, everything else of the maps kept whole.
    """

    def make(side: MapStatistics) -> Curve:
        maps = side.power if column == "power" else side.shapes
        return maps.curve(x, maps.columns[column], maps.members(selection))

    return _of_maps(report, make, mean_curve)


def power_range(report: Report, selection: Selection = ALL) -> dict[str, Array]:
    """P(k) between which the central 68 % of single maps lie, (2, K), of each side."""
    return _of_maps(report, lambda m: np.quantile(_powers(m, selection), (0.16, 0.84), axis=0), mean_array)


def scatter_ratios(report: Report, selection: Selection = ALL) -> dict[str, Array]:
    """Standard deviation of P(k) between maps over the reference's, (K,), of each surrogate."""
    found = _of_maps(report, lambda m: _powers(m, selection).std(axis=0), mean_array)
    reference = found.pop("reference")
    return {title: np.asarray(d / np.where(reference > 0, reference, np.nan)) for title, d in found.items()}


def power_correlations(report: Report) -> dict[str, Array]:
    """Correlation matrix of P(k) between shells, (K, K), of each side."""
    return _of_maps(report, lambda m: np.asarray(np.nan_to_num(np.corrcoef(_powers(m, ALL).T))), mean_array)


def _powers(side: MapStatistics, selection: Selection) -> Array:
    """Power spectra of single maps, (N, K)."""
    return side.power.columns["power"][side.power.members(selection)].astype(np.float64)


def pixel_curves(report: Report, kind: str, selection: Selection = ALL) -> tuple[Array, dict[str, Curve]]:
    """Pixels or peaks of a map in bins of 1 + delta.

    Args:
        report: The report.
        kind: ``pixel`` (share of all per unit of ln(1 + delta)) or ``peaks`` (number on one map in each bin).
        selection: Which maps.

    Returns:
        The bin edges in 1 + delta, (B + 1,), and the curves by side.
    """
    axis = report.maps["reference"].yardstick.axis
    bins = len(coarse(np.zeros((1, axis.bins)))[0])
    logarithms = axis.edges[:: axis.bins // bins]
    scale = report.family.voxels * float(np.diff(logarithms)[0]) if kind == "pixel" else 1.0
    middle = np.exp((logarithms[1:] + logarithms[:-1]) / 2)

    def make(side: MapStatistics) -> Curve:
        return side.shapes.curve(middle, coarse(side.shapes.columns[kind]) / scale, side.shapes.members(selection))

    found = _of_maps(report, make, mean_curve)
    keep = _filled([c.y for c in found.values()])
    cut = {t: Curve(c.x[keep], c.y[keep], c.error[keep], c.seeds) for t, c in found.items()}
    return np.exp(logarithms[keep.start : keep.stop + 1]), cut


def responses(report: Report) -> dict[str, dict[str, Curve]]:
    """Slope d ln P(k) / d C against k for every condition C that varies on all sides, of each side."""
    sides = [m.power for m in report.maps.values()]
    names = [n for n in shared(sides[0], sides[0]) if all(n in shared(sides[0], side) for side in sides)]
    k = wave_numbers(report.family)
    if not names or min(map(len, sides)) < FEWEST:
        return {}

    def slopes(side: MapStatistics) -> tuple[Curve, ...]:
        spread = response(side.power, names, 0)
        value, error = spread.value.reshape(len(names), -1), spread.again.std(axis=0, ddof=1).reshape(len(names), -1)
        return tuple(Curve(k, v, e) for v, e in zip(value, error, strict=True))

    found = _of_maps(report, slopes, lambda all_: tuple(mean_curve(c) for c in zip(*all_, strict=True)))
    return {name: {title: curves[c] for title, curves in found.items()} for c, name in enumerate(names)}


def inferred(report: Report) -> dict[str, tuple[Array, dict[str, Curve]]]:
    """Mean of each condition as inferred from single maps, in bins of its true value: edges and curves by side."""
    found: dict[str, tuple[Array, dict[str, Curve]]] = {}
    sides = [m.shapes for m in report.maps.values()]
    for c, condition in enumerate(report.family.conditions):
        if all("inferred" in s.columns and condition.name in shared(sides[0], s) for s in sides):
            edges = curve_edges(report.reference, condition)
            make = partial(_inferred_curve, c, condition.name, edges)
            found[condition.name] = edges, _of_maps(report, make, mean_curve)
    return found


def _inferred_curve(number: int, name: str, edges: Array, side: MapStatistics) -> Curve:
    def mean(rows: NDArray[np.bool_]) -> tuple[float, float]:
        curve = side.shapes.curve(edges[:1], side.shapes.columns["inferred"][:, [number]], rows)
        return float(curve.y[0]), float(curve.error[0])

    return binned_curve(side.shapes.conditions[name], edges, mean)


def pairs(report: Report) -> tuple[dict[str, Curve], dict[str, Array]]:
    """Of pairs of different maps of each side, shifted to fit best: cross spectrum and largest correlation.

    Returns:
        The cross spectrum over the root of the two power spectra, and the correlation of each pair, (P,); both empty
        where some side has no pairs.
    """
    known = {member: m.pairs for member, m in report.maps.items() if m.pairs is not None}
    if len(known) < len(report.maps):
        return {}, {}
    k = wave_numbers(report.family)
    curves = _by_side(
        report, lambda m: known[m].curve(k, known[m].columns["coherence"], known[m].members()), mean_curve
    )
    return curves, _by_side(report, lambda m: known[m].columns["alike"][:, 0].astype(np.float64), np.concatenate)
