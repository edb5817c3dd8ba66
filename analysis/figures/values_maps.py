"""What the figures of density maps show, worked out from a report's statistics: curves by side and selection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family

from ..metrics.conditioning import Curve, curve_edges
from ..metrics.ensembles import shared
from ..metrics.inferred import response
from ..metrics.maps import FEWEST, MapStatistics, coarse
from ..observables.maps import wave_numbers
from ..observables.statistics import bispectrum_bands
from ..survey.selections import ALL, Selection
from .values import mean_array, mean_curve

if TYPE_CHECKING:
    from ..report import Report

Array = NDArray[np.float64]
T = TypeVar("T")


def _each(report: Report, make: Callable[[MapStatistics], T], join: Callable[[Sequence[T]], T]) -> dict[str, T]:
    """Something of every side, the seeds of one surrogate joined; the reference first."""
    members = {"reference": ("reference",), **{name: report.members(name) for name in report.metrics}}
    return {title: join([make(report.maps[name]) for name in names]) for title, names in members.items()}


def plane(report: Report) -> list[Selection]:
    """All maps, and the quarters of the conditions' plane in which every side has enough."""
    sides, quarters = report.maps.values(), report.maps["reference"].yardstick.quarters
    return [ALL, *(q for q in quarters if all(np.count_nonzero(m.shapes.members(q)) >= FEWEST for m in sides))]


def power_spectra(report: Report, selection: Selection = ALL) -> dict[str, Curve]:
    """Mean P(k) of each side; errors from realisations where the source has them."""
    k = wave_numbers(report.family)
    return _each(report, lambda m: m.power.curve(k, m.power.columns["power"], m.power.members(selection)), mean_curve)


def power_range(report: Report, selection: Selection = ALL) -> dict[str, Array]:
    """P(k) between which the central 68 % of single maps lie, (2, K), of each side."""

    def between(side: MapStatistics) -> Array:
        chosen = side.power.columns["power"][side.power.members(selection)].astype(np.float64)
        return np.asarray(np.quantile(chosen, (0.16, 0.84), axis=0))

    return _each(report, between, mean_array)


def scatter_ratios(report: Report, selection: Selection = ALL) -> dict[str, Array]:
    """Standard deviation of P(k) between maps over the reference's, (K,), of each surrogate."""

    def deviation(side: MapStatistics) -> Array:
        return np.asarray(side.power.columns["power"][side.power.members(selection)].std(axis=0, dtype=np.float64))

    found = _each(report, deviation, mean_array)
    reference = found.pop("reference")
    return {title: np.asarray(d / np.where(reference > 0, reference, np.nan)) for title, d in found.items()}


def histograms(report: Report, kind: str, selection: Selection = ALL) -> tuple[Array, dict[str, Curve]]:
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

    found = _each(report, make, mean_curve)
    filled = np.flatnonzero(np.sum([c.y for c in found.values()], axis=0))
    if not len(filled):
        return np.exp(logarithms), found
    keep = slice(int(filled[0]), int(filled[-1]) + 1)
    cut = {t: Curve(c.x[keep], c.y[keep], c.error[keep], c.seeds) for t, c in found.items()}
    return np.exp(logarithms[keep.start : keep.stop + 1]), cut


def bispectra(report: Report, selection: Selection = ALL) -> dict[str, Curve]:
    """Mean equilateral bispectrum of each side."""
    _, k = bispectrum_bands(_pixels(report.family), report.family.box_size)
    return _each(
        report, lambda m: m.shapes.curve(k, m.shapes.columns["bispectrum"], m.shapes.members(selection)), mean_curve
    )


def minkowski(report: Report, functional: int, selection: Selection = ALL) -> dict[str, Curve]:
    """A Minkowski functional of each side against the threshold in 1 + delta."""
    x, name = report.maps["reference"].yardstick.thresholds, f"minkowski_{functional}"
    return _each(report, lambda m: m.shapes.curve(x, m.shapes.columns[name], m.shapes.members(selection)), mean_curve)


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

    found = _each(report, slopes, lambda all_: tuple(mean_curve(c) for c in zip(*all_, strict=True)))
    return {name: {title: curves[c] for title, curves in found.items()} for c, name in enumerate(names)}


def inferred(report: Report) -> dict[str, tuple[Array, dict[str, Curve]]]:
    """Mean of each condition as inferred from single maps, in bins of its true value: edges and curves by side."""
    found: dict[str, tuple[Array, dict[str, Curve]]] = {}
    sides = [m.shapes for m in report.maps.values()]
    for c, condition in enumerate(report.family.conditions):
        if not all("inferred" in s.columns and condition.name in shared(sides[0], s) for s in sides):
            continue
        edges = curve_edges(report.reference, condition)
        found[condition.name] = edges, _each(report, _Inferred(c, condition.name, edges), mean_curve)
    return found


class _Inferred:
    """The curve of one side."""

    def __init__(self, number: int, name: str, edges: Array) -> None:
        self.number, self.name, self.edges = number, name, edges

    def __call__(self, side: MapStatistics) -> Curve:
        truth = side.shapes.conditions[self.name].astype(np.float64)
        column = side.shapes.columns["inferred"][:, self.number : self.number + 1]
        points = np.full((3, len(self.edges) - 1), np.nan)
        points[0] = (self.edges[1:] + self.edges[:-1]) / 2
        for k, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            rows = (truth >= low) & ((truth < high) | ((truth == high) & (k == len(self.edges) - 2)))
            if np.count_nonzero(rows) >= FEWEST // 2:
                curve = side.shapes.curve(truth[rows].mean(keepdims=True), column, rows)
                points[:, k] = curve.x[0], curve.y[0], curve.error[0]
        return Curve(*points)


def coherences(report: Report) -> dict[str, Curve]:
    """Cross spectrum of different maps, shifted to fit best, over the root of their power spectra; of each side."""
    if any(m.pairs is None for m in report.maps.values()):
        return {}
    k = wave_numbers(report.family)

    def make(side: MapStatistics) -> Curve:
        pairs = side.pairs
        return Curve(k, k * 0, k * 0) if pairs is None else pairs.curve(k, pairs.columns["coherence"], pairs.members())

    return _each(report, make, mean_curve)


def alikeness(report: Report) -> dict[str, Array]:
    """Largest correlation over all shifts of each pair of maps, (P,), of each side."""
    empty = np.zeros(0)

    def make(side: MapStatistics) -> Array:
        return empty if side.pairs is None else np.asarray(side.pairs.columns["alike"][:, 0], dtype=np.float64)

    return _each(report, make, lambda parts: np.concatenate(list(parts)))


def power_correlations(report: Report, selection: Selection = ALL) -> dict[str, Array]:
    """Correlation matrix of P(k) between shells, (K, K), of each side."""

    def make(side: MapStatistics) -> Array:
        power = side.power.columns["power"][side.power.members(selection)].astype(np.float64)
        return np.asarray(np.nan_to_num(np.corrcoef(power.T)))

    return _each(report, make, mean_array)


def _pixels(family: Family) -> tuple[int, int]:
    return family.pixels or (0, 0)
