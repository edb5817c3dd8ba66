"""Figures of density maps: maps, spectra, pixels, peaks, bispectra, Minkowski functionals, responses, cross spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calogen.shards.samples import Samples

from ..metrics.conditioning import Curve
from ..observables.maps import wave_numbers
from ..observables.statistics import bispectrum_bands
from ..report import Report
from ..survey.selections import Selection
from . import values as views
from .panels import (
    FILL,
    REFERENCE_COLOUR,
    Drawing,
    draw_curves,
    draw_frames,
    draw_lines,
    draw_map,
    explained,
    log_norm,
    log_scale,
    look_of,
    matrices,
    middle_edges,
    plain_grid,
    ratio_grid,
    selection_title,
    value_texts,
)

Array = NDArray[np.float64]
_LARGE = 128  # pixels a side from which a map is worth a figure of its own
_SINGLE_MAPS, _DASHES = "#e3e3e3", (0, (4, 3))
_WANTED = 0.1  # deviation that ratio panels mark
_QUARTERS = "All maps, and the quarters of the conditions' plane. Errors from the scatter between realisations or maps."


def _length(report: Report) -> tuple[str, str]:
    """Unit of a length, and of a wave number."""
    return ("Mpc/h", "h/Mpc") if report.family.box_size else ("pixel", "1/pixel")


def _plane(
    report: Report, labels: tuple[str, str], more: Sequence[Any] = ()
) -> tuple[Figure, list[tuple[Selection, Axes, Axes]]]:
    """A panel with its ratio for all maps and for each quarter of the conditions' plane, both axes named."""
    chosen = views.plane(report)
    figure, panels = ratio_grid(report, len(chosen), label=labels[1], more=more)
    for (main, ratio), selection in zip(panels, chosen, strict=True):
        number = f"  ({selection.name})" if selection.name else ""
        main.set_title(selection_title(report.family, selection) + number, loc="left")
        ratio.set(xlabel=labels[0], xscale="log")
    return figure, [(selection, *axes) for selection, axes in zip(chosen, panels, strict=True)]


def _limits(lines: Iterable[Array]) -> tuple[float, float]:
    """A range of ratios in which some lines stay, from 0.65 to 1.35 to three times as wide."""
    far = max((float(np.nanmax(np.abs(line - 1))) for line in lines if np.isfinite(line).any()), default=0.0)
    half = float(np.clip(1.1 * far, 0.35, 0.95))
    return 1 - half, 1 + half


def power(report: Report) -> Iterator[Drawing]:
    """Power spectra, their scatter and their ratios."""
    k, unit = wave_numbers(report.family), "(Mpc/h)$^2$" if report.family.box_size else "pixel$^2$"
    more = [
        explained("central 68 % of maps (generated: thin lines)", band=_SINGLE_MAPS),
        explained("scatter of maps / that of the reference", linestyle=":", color="black", linewidth=0.9),
        explained("\N{PLUS-MINUS SIGN}10 %", linestyle=_DASHES, color=REFERENCE_COLOUR, linewidth=0.5),
    ]
    figure, panels = _plane(report, (f"k [{_length(report)[1]}]", f"P(k) [{unit}]"), more)
    for selection, main, ratio in panels:
        curves = views.map_curves(report, "power", k, selection)
        ranges = views.power_range(report, selection)
        titles, edges = list(curves), middle_edges(k)
        low, high = ranges[titles[0]]
        main.stairs(high, edges, baseline=low, fill=True, color=_SINGLE_MAPS)
        scatters = views.scatter_ratios(report, selection)
        limits = _limits(scatters.values())
        draw_curves(main, ratio, edges, curves, limits)
        for title, ends in list(ranges.items())[1:]:
            look = look_of(titles, title)
            main.plot(k, ends.T, color=look.colour, linewidth=0.7, linestyle=look.line)
        for title, scatter in scatters.items():
            ratio.plot(k, np.clip(scatter, *limits), color=look_of(titles, title).colour, linewidth=0.9, linestyle=":")
        for end in (1 - _WANTED, 1 + _WANTED):
            ratio.axhline(end, color=REFERENCE_COLOUR, linewidth=0.5, linestyle=_DASHES)
        main.set_yscale("log")
    caption = (
        "Mean power spectrum of the maps' overdensity, in all of them and in the quarters of the conditions' plane. "
        "Pale band and thin lines: the central 68 % of single maps. Below: generated over reference mean (points; dark "
        "band: uncertainty of the reference, from realisations where they are known), standard deviation between maps "
        "over the reference's (dotted), and 10 % either way (dashed)."
    )
    yield Drawing("power", "Power spectrum", caption, figure)


def pixels(report: Report) -> Iterator[Drawing]:
    """Single pixels in bins of 1 + delta."""
    labels = r"$1+\delta$", r"share of pixels per $\ln(1+\delta)$"
    figure = _in_bins(report, labels, partial(views.pixel_curves, report, "pixel"))
    yield Drawing("pixels", "One-point distribution", f"Distribution of single pixels. {_QUARTERS}", figure)


def peaks(report: Report) -> Iterator[Drawing]:
    """Peaks in bins of their height."""
    labels = r"height $1+\delta$ of the peak", "peaks of a map in the bin"
    figure = _in_bins(report, labels, partial(views.pixel_curves, report, "peaks"))
    caption = f"Peaks: pixels strictly above their eight neighbours, across the maps' edges as well. {_QUARTERS}"
    yield Drawing("peaks", "Peaks", caption, figure)


def bispectrum(report: Report) -> Iterator[Drawing]:
    """Bispectrum of equilateral triangles."""
    _, k = bispectrum_bands(report.family.sample_shape[:2], report.family.box_size)
    unit = "(Mpc/h)$^4$" if report.family.box_size else "pixel$^4$"
    labels = f"k [{_length(report)[1]}]", f"B(k, k, k) [{unit}]"
    figure = _in_bins(report, labels, lambda s: (middle_edges(k), views.map_curves(report, "bispectrum", k, s)))
    caption = (
        "Mean bispectrum of equilateral triangles: what a field has beyond its power spectrum. It is dominated by the "
        "few largest haloes, so its uncertainty is large."
    )
    yield Drawing("bispectrum", "Bispectrum", caption, figure)


def _in_bins(
    report: Report, labels: tuple[str, str], make: Callable[[Selection], tuple[Array, Mapping[str, Curve]]]
) -> Figure:
    """Curves in bins for each part of the conditions' plane; ``make`` gives the bins' edges and the curves."""
    figure, panels = _plane(report, labels)
    for selection, main, ratio in panels:
        edges, curves = make(selection)
        draw_curves(main, ratio, edges, curves, (0.5, 1.5))
        if np.mean(curves["reference"].y > 0) > 0.5:
            log_scale(main, [curve.y for curve in curves.values()])
    return figure


def minkowski(report: Report) -> Iterator[Drawing]:
    """Minkowski functionals against the threshold."""
    length, _ = _length(report)
    thresholds = report.maps["reference"].yardstick.thresholds
    labels = ("area above, $V_0$", f"boundary $V_1$ [1/({length})]", f"Euler number $V_2$ [1/({length})$^2$]")
    figure, panels = plain_grid(report, 3)
    for functional, axes in enumerate(panels):
        curves = views.map_curves(report, f"minkowski_{functional}", thresholds)
        scale = "log" if thresholds.min(initial=1.0) > 0 else "linear"
        draw_lines(axes, curves, xlabel=r"threshold in $1+\delta$", ylabel=labels[functional], xscale=scale)
        if functional == 2:
            axes.axhline(0, color=REFERENCE_COLOUR, linewidth=0.6)
    caption = (
        "Minkowski functionals per unit of area of the regions above a threshold: their area, the length of their "
        "boundary (a quarter of it), and how many more they are than their holes. Thresholds are quantiles of the "
        "reference's pixels, 5 % to 99.9 %."
    )
    yield Drawing("minkowski", "Minkowski functionals", caption, figure)


def responses(report: Report) -> Iterator[Drawing]:
    """How the power spectrum responds to each condition."""
    found = views.responses(report)
    if not found:
        return
    figure, panels = plain_grid(report, len(found))
    for axes, (name, curves) in zip(panels, found.items(), strict=True):
        slope = f"d ln P(k) / d {report.family.condition(name).axis[1]}"
        draw_lines(axes, curves, xlabel=f"k [{_length(report)[1]}]", ylabel=slope, xscale="log")
        axes.axhline(0, color=REFERENCE_COLOUR, linewidth=0.6)
    caption = (
        "How the mean power spectrum responds to each condition, the others kept: slopes of a log-linear model. "
        "Neighbouring shells vary together: whole boxes are rich or poor."
    )
    yield Drawing("response", "Response to the conditions", caption, figure)


def inferred(report: Report) -> Iterator[Drawing]:
    """Conditions as inferred from single maps, against the true ones."""
    found = views.inferred(report)
    if not found:
        return
    more = [explained("inferred = true", linestyle="--", color=REFERENCE_COLOUR, linewidth=0.6)]
    figure, panels = plain_grid(report, len(found), more)
    for axes, (name, (edges, curves)) in zip(panels, found.items(), strict=True):
        _, label = report.family.condition(name).axis
        draw_lines(axes, curves, xlabel=f"true {label}", ylabel=f"mean inferred {label}")
        axes.plot(edges[[0, -1]], edges[[0, -1]], color=REFERENCE_COLOUR, linewidth=0.6, linestyle="--")
        axes.yaxis.set_major_locator(MaxNLocator(5))
    caption = (
        "Conditions inferred from single maps by a regression on their summaries, trained with reference maps. One "
        "map says little (cosmic variance), so the mean stays near the middle; what matters is that generated maps "
        "(points) give what reference maps that did not train the regression do (band)."
    )
    yield Drawing("inferred", "Inferred conditions", caption, figure)


def cross(report: Report) -> Iterator[Drawing]:
    """How alike different maps are."""
    curves, alike = views.pairs(report)
    if not curves:
        return
    figure, (first, second) = plain_grid(report, 2)
    labels = {"xlabel": f"k [{_length(report)[1]}]", "ylabel": r"cross spectrum / $\sqrt{P_a P_b}$"}
    draw_lines(first, curves, xscale="log", **labels)
    titles = list(alike)
    edges = np.linspace(0, max(0.5, *(float(a.max(initial=0.0)) for a in alike.values())) * 1.02, 52)
    for title, values in alike.items():
        look, density = look_of(titles, title), np.histogram(values, edges)[0] / max(len(values), 1)
        if title == titles[0]:
            second.stairs(density, edges, fill=True, color=FILL)
        second.stairs(density, edges, color=look.colour, linestyle=look.line)
    second.set(yscale="log", xlabel="largest correlation over all shifts", ylabel="share of pairs of maps")
    caption = (
        "Are generated maps alike? Pairs of different maps (of different realisations), one shifted (mirrored, turned) "
        "to fit the other best, in the logarithm of the density. A surrogate that repeats itself has pairs near 1."
    )
    yield Drawing("cross", "Different maps", caption, figure)


def correlations(report: Report) -> Iterator[Drawing]:
    """Correlations of P(k) between shells."""
    found = views.power_correlations(report)
    size = len(next(iter(found.values())))
    ticks = range(0, size, max(1, size // 8))
    caption = (
        "Correlations of P(k) between shells (numbered from the fundamental mode) over all maps, and their difference."
    )
    figure = matrices(found, ticks, [str(t + 1) for t in ticks], turned=False)
    yield Drawing("power-correlations", "Correlations of P(k)", caption, figure)


def wall(report: Report) -> Iterator[Drawing]:
    """Single maps of every side at matching conditions."""
    sides = {title: surveys[0].examples for title, surveys in views.sides(report).items()}
    maps = np.stack([values.reshape(-1, *report.family.sample_shape) for values, _ in sides.values()])
    titles = [["\n".join(value_texts(report.family.conditions, row)) for row in rows] for _, rows in sides.values()]
    figure = draw_frames(report.family, maps, titles, list(sides))
    caption = "Single maps, reference above generated, at matching conditions and on one logarithmic scale."
    yield Drawing("maps", "Wall of maps", caption, figure)


def fields(report: Report) -> Iterator[Drawing]:
    """A map of each surrogate, where maps are large."""
    if min(report.family.sample_shape) < _LARGE:
        return
    for name in report.metrics:
        drawing = field(report.generated[report.members(name)[0]].kept.read(0, 1))
        suffix = "" if len(report.metrics) == 1 else f"-{name}"
        yield Drawing(f"field{suffix}", f"A field of {name}", drawing.caption, drawing.figure)


def field(samples: Samples) -> Drawing:
    """One large map, the first of some samples, with a scale in Mpc/h where the family has a box."""
    family, values = samples.family, samples.values[0].astype(np.float64)
    height, width = family.sample_shape
    unit, side = ("Mpc/h", family.box_size) if family.box_size else ("pixels", float(height))
    figure = Figure(figsize=(7.4, 6.6 * height / width + 0.4), layout="constrained")
    axes = figure.add_subplot()
    image = draw_map(axes, values, log_norm([values], 3.5), extent=(0.0, side * width / height, 0.0, side))
    axes.set(xlabel=unit, ylabel=unit)
    columns = (samples.conditions.get(c.name, [np.nan]) for c in family.conditions)
    axes.set_title(", ".join(value_texts(family.conditions, [column[0] for column in columns])))
    figure.colorbar(image, ax=axes, label=r"$1+\delta$", fraction=0.045, pad=0.02)
    caption = f"One map of {height} x {width} pixels, periodic: its opposite edges continue each other."
    return Drawing("field", "A large field", caption, figure)
