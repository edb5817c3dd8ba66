"""What the figures show, worked out from a report: histograms, curves against a condition, images, correlations.

Figures draw these and compute nothing, so the same numbers serve a page, a paper and a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calogen.families import Condition

from .histograms import ALL, Selection, condition_edges, counts, is_logarithmic, observable_edges
from .metrics import correlated, correlation_matrix
from .observables import wave_numbers

if TYPE_CHECKING:
    from .report import Report
    from .survey import Survey

Array = NDArray[np.float64]

_CURVE_BINS = 10
_FEWEST_IN_BIN = 10


@dataclass(frozen=True)
class Histogram:
    """Contents of a histogram and what follows from them.

    Attributes:
        edges: (B + 1,).
        contents: Counts with under- and overflow, (B + 2,).
        correlated_error: Statistical error of each inner bin's count if entries are not independent, (B,).
        decades: Whether densities are per decade.
    """

    edges: Array
    contents: NDArray[np.int64]
    correlated_error: Array | None = None
    decades: bool = False

    @property
    def total(self) -> int:
        """Entries, wherever they fell."""
        return int(self.contents.sum())

    @property
    def widths(self) -> Array:
        """Bin widths in the unit of the axis, or in decades, (B,)."""
        return np.asarray(np.diff(np.log10(self.edges) if self.decades else self.edges))

    @property
    def density(self) -> Array:
        """Share of all entries per unit of the axis or per decade, (B,)."""
        return np.asarray(self.contents[1:-1] / (max(self.total, 1) * self.widths))

    @property
    def error(self) -> Array:
        """Statistical uncertainty of the density, (B,)."""
        inner = self.contents[1:-1]
        error = np.sqrt(inner) if self.correlated_error is None else self.correlated_error
        return np.asarray(error / (max(self.total, 1) * self.widths))

    @property
    def outside(self) -> float:
        """Share of entries beyond the edges."""
        return float(self.contents[0] + self.contents[-1]) / max(self.total, 1)


@dataclass(frozen=True)
class Curve:
    """A quantity against a condition or a wave number.

    Attributes:
        x: Where each point is, (K,).
        y: The quantity, (K,); NaN where there are too few samples.
        error: Its statistical uncertainty, (K,).
    """

    x: Array
    y: Array
    error: Array

    def over(self, reference: Curve) -> Curve:
        """This curve divided by another at the same points, without the other's error."""
        below = np.where(reference.y != 0, reference.y, np.nan)
        return Curve(self.x, self.y / below, self.error / np.abs(below))


def sides(report: Report) -> dict[str, Survey]:
    """The reference first, then the generated samples, by the name a legend prints."""
    return {"reference": report.reference, **report.generated}


def observable_histograms(report: Report, name: str, selection: Selection = ALL) -> dict[str, Histogram]:
    """One observable's histogram for each side, on edges fixed by the reference."""
    row = report.reference.names.index(name)
    columns = {title: side.table[row, side.members(selection)] for title, side in sides(report).items()}
    edges = observable_edges(report.observables[name], columns["reference"])
    return {title: Histogram(edges, counts(column, edges)) for title, column in columns.items()}


def spectra(report: Report, selection: int = 0) -> dict[str, Histogram]:
    """Spectrum of single voxels (pixels) for each side; errors from the scatter between samples."""
    found = {}
    edges = np.asarray(report.plan.axis.edges, dtype=np.float64)
    for title, side in sides(report).items():
        contents = side.spectra.counts(selection)
        # Voxels of one shower come together: scale the scatter of the showers kept to all of them.
        per_sample = side.kept_spectra[:, 1:-1]
        scatter = per_sample.std(axis=0) * np.sqrt(side.used)
        found[title] = Histogram(edges, contents, scatter if selection == 0 else None)
    return found


def condition_curves(
    report: Report, name: str, condition: Condition, statistic: Callable[[Array], tuple[float, float]]
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
    row = report.reference.names.index(name)
    known = report.reference.conditions[condition.name].astype(np.float64)
    edges = condition_edges(condition, known, _CURVE_BINS)
    if len(edges) < 2:  # one energy only
        edges = known[0] * np.array([0.99, 1.01])
    found = {}
    for title, side in sides(report).items():
        values, x = side.table[row].astype(np.float64), side.conditions[condition.name]
        place = np.searchsorted(edges, x, side="right") - 1
        place[x == edges[-1]] = len(edges) - 2
        points = np.full((3, len(edges) - 1), np.nan)
        for k in range(len(edges) - 1):
            inside = place == k
            if inside.sum() >= _FEWEST_IN_BIN:
                points[:, k] = (float(x[inside].mean()), *statistic(values[inside]))
        points[0] = np.where(np.isnan(points[0]), (edges[:-1] + edges[1:]) / 2, points[0])
        found[title] = Curve(*points)
    return edges, found


def mean_of(values: Array) -> tuple[float, float]:
    """Mean and its error."""
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def relative_core(values: Array) -> tuple[float, float]:
    """Half width of the central 68 % over the median, and its error: the resolution, blind to tails."""
    middle, size = float(np.median(values)), len(values)
    quantiles, errors = [], []
    for p in (0.16, 0.84):
        step = np.sqrt(p * (1 - p) / size)  # a quantile's rank scatters by this much
        low, at, high = np.quantile(values, np.clip([p - step, p, p + step], 0, 1))
        quantiles.append(float(at))
        errors.append(float(high - low) / 2)
    scale = 2 * middle if middle else np.nan
    return (quantiles[1] - quantiles[0]) / scale, math.hypot(*errors) / abs(scale)


def relative_spread(values: Array) -> tuple[float, float]:
    """Standard deviation over the mean, and its error: the resolution, tails included."""
    mean, spread = float(values.mean()), float(values.std())
    if mean == 0 or spread == 0:
        return 0.0, 0.0
    kurtosis = float(np.mean((values - mean) ** 4)) / spread**4
    return spread / mean, spread / abs(mean) * float(np.sqrt(max(kurtosis - 1, 0.0) / (4 * len(values))))


def longitudinal(report: Report, selection: Selection = ALL) -> dict[str, Curve]:
    """Mean share of the deposited energy in each layer, for each side; x is the position of the layer."""
    found = {}
    rows = [report.reference.names.index(f"fraction_{n}") for n in report.family.layer_numbers]
    for title, side in sides(report).items():
        values = side.table[rows][:, side.members(selection)].astype(np.float64)
        error = values.std(axis=1) / np.sqrt(max(values.shape[1], 1))
        found[title] = Curve(np.arange(len(rows), dtype=np.float64), values.mean(axis=1), error)
    return found


def power_spectra(report: Report, selection: Selection = ALL) -> dict[str, Curve]:
    """Mean P(k) of maps for each side; errors from realisations where the source has them."""
    rows = [i for i, n in enumerate(report.reference.names) if n.startswith("power_")]
    found = {}
    for title, side in sides(report).items():
        mine = side.members(selection)
        values = side.table[rows][:, mine].astype(np.float64)
        mean = values.mean(axis=1)
        if side.groups is not None and len(names := np.unique(side.groups[mine])) > 3:
            # Maps cut from one box are not independent, boxes are.
            groups = side.groups[mine]
            values = np.stack([values[:, groups == name].mean(axis=1) for name in names], axis=1)
        found[title] = Curve(wave_numbers(report.family), mean, values.std(axis=1) / np.sqrt(values.shape[1]))
    return found


def correlations(report: Report) -> tuple[list[str], dict[str, Array]]:
    """Names of the correlated observables and their correlation matrix for each side."""
    names = correlated(report.plan)
    rows = [report.reference.names.index(n) for n in names]
    return names, {title: correlation_matrix(side.table[rows]) for title, side in sides(report).items()}


def layer_images(report: Report, position: int, selection: int = 0) -> dict[str, Array]:
    """Mean voxel energies of one layer for each side, in the layer's shape."""
    family = report.family
    cells, shape = family.layer_slices[position], family.layers[position].shape
    return {title: side.means.mean[selection, cells].reshape(shape) for title, side in sides(report).items()}


def pulls(report: Report, name: str) -> tuple[list[str], list[Selection], Array, Array]:
    """Of one set of generated samples: observables, selections, and W1 in standard deviations with its pull, (K, S)."""
    found, names, chosen = report.metrics[name], list(report.observables), list(report.plan.selections)
    grids = np.full((2, len(names), len(chosen)), np.nan)
    for i, observable in enumerate(names):
        for j, selection in enumerate(chosen):
            metric = found.get(f"w1_sd/{observable}{selection.suffix}")
            if metric is not None and metric.value is not None:
                grids[:, i, j] = metric.value, np.nan if metric.pull is None else metric.pull
    return names, chosen, grids[0], grids[1]


def rebinned(histogram: Histogram, keep: slice) -> Histogram:
    """The histogram within some of its bins; the rest becomes under- and overflow."""
    first, last, _ = keep.indices(len(histogram.edges) - 1)
    inner = histogram.contents[1:-1]
    contents = np.concatenate(
        [
            [histogram.contents[0] + inner[:first].sum()],
            inner[first:last],
            [histogram.contents[-1] + inner[last:].sum()],
        ]
    )
    error = None if histogram.correlated_error is None else histogram.correlated_error[first:last]
    return replace(histogram, edges=histogram.edges[first : last + 1], contents=contents, correlated_error=error)


def middles(edges: Array) -> Array:
    """Where the points of bins are drawn: their centres on a linear or logarithmic axis."""
    if is_logarithmic(edges):
        return np.asarray(np.sqrt(edges[:-1] * edges[1:]))
    return np.asarray((edges[:-1] + edges[1:]) / 2)


def shown_layers(report: Report, most: int = 7) -> list[int]:
    """Positions of the layers that figures show: all of them, or a few spread over the shower's energy."""
    layers = len(report.family.layers)
    if layers <= most:
        return list(range(layers))
    share = np.cumsum(longitudinal(report)["reference"].y)
    return sorted({int(np.searchsorted(share, q * share[-1])) for q in (0.02, 0.25, 0.5, 0.75, 0.98)})
