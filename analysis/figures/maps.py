"""Figures of density maps: maps, spectra, pixels, peaks, bispectra, Minkowski functionals, responses, cross spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calogen.shards.samples import Samples

from ..metrics.conditioning import Curve
from ..report import Report
from ..survey.selections import Selection
from . import values as views
from . import values_maps as views_maps
from .panels import (
    REFERENCE_COLOUR,
    Drawing,
    Look,
    condition_axis,
    draw_curves,
    grid_of,
    log_norm,
    look_of,
    matrices,
    ratio_panels,
)

Array = NDArray[np.float64]
_LARGE = 128  # pixels a side from which a map is worth a figure of its own
_WANTED = 0.1  # deviation that ratio panels mark


def draw_maps(report: Report) -> Iterator[Drawing]:
    """The figures that only maps have."""
    yield from _wall(report)
    yield from _field(report)
    yield from _power(report)
    yield from _responses(report)
    yield from _histograms(report)
    yield from _bispectrum(report)
    yield from _minkowski(report)
    yield from _inferred(report)
    yield from _cross(report)
    yield from _correlations(report)


def _wave_number(report: Report) -> tuple[str, str, str]:
    """Label of k, and units of an area and its square."""
    if report.family.box_size:
        return "k [h/Mpc]", "(Mpc/h)$^2$", "(Mpc/h)$^4$"
    return "k [1/pixel]", "pixel$^2$", "pixel$^4$"


def _edges(x: Array) -> Array:
    """Edges of bins around increasing positive points, (K + 1,)."""
    if len(x) < 2:
        return np.asarray(x[0] * np.array([0.9, 1.1]))
    steps = np.sqrt(x[1:] * x[:-1])
    return np.concatenate([[x[0] ** 2 / steps[0]], steps, [x[-1] ** 2 / steps[-1]]])


def _grid(
    report: Report, draw: Callable[[Selection, Axes, Axes], None], labels: tuple[str, str], log_x: bool = True
) -> Figure:
    """A panel with its ratio for all maps and for each quarter of the conditions' plane."""
    chosen = views_maps.plane(report)
    figure, places = grid_of(report, len(chosen), 3, (3.7, 3.6), left=0.78)
    for place, selection in zip(places, chosen, strict=True):
        main, ratio = ratio_panels(figure, place)
        draw(selection, main, ratio)
        if log_x:
            ratio.set_xscale("log")
        main.set_title(selection.title + (f"  ({selection.name})" if selection.name else ""), loc="left")
        ratio.set_xlabel(labels[0])
        if place.column == 0:
            main.set_ylabel(labels[1])
            ratio.set_ylabel("ratio", loc="center")
    return figure


def _power(report: Report) -> Iterator[Drawing]:
    def draw(selection: Selection, main: Axes, ratio: Axes) -> None:
        curves = views_maps.power_spectra(report, selection)
        ranges = views_maps.power_range(report, selection)
        titles, edges = list(curves), _edges(next(iter(curves.values())).x)
        low, high = ranges[titles[0]]
        main.stairs(high, edges, baseline=low, fill=True, color="#e3e3e3")
        draw_curves(main, ratio, edges, curves, (0.65, 1.35))
        for title, (low, high) in list(ranges.items())[1:]:
            look = look_of(titles, title)
            for end in (low, high):
                main.plot(curves[title].x, end, color=look.colour, linewidth=0.7, linestyle=look.line)
        for title, scatter in views_maps.scatter_ratios(report, selection).items():
            ratio.plot(curves[title].x, scatter, color=look_of(titles, title).colour, linewidth=0.9, linestyle=":")
        for end in (1 - _WANTED, 1 + _WANTED):
            ratio.axhline(end, color=REFERENCE_COLOUR, linewidth=0.5, linestyle=(0, (4, 3)))
        main.set_yscale("log")

    k, unit, _ = _wave_number(report)
    caption = (
        "Mean power spectrum of the maps' overdensity, in all of them and in the quarters of the conditions' plane. "
        "Pale band and thin lines: the central 68 % of single maps. Below: generated over reference mean (points; dark "
        "band: uncertainty of the reference, from realisations where they are known), standard deviation between maps "
        "over the reference's (dotted), and 10 % either way (dashed)."
    )
    yield Drawing("power", "Power spectrum", caption, _grid(report, draw, (k, f"P(k) [{unit}]")))


def _histograms(report: Report) -> Iterator[Drawing]:
    def draw(kind: str) -> Callable[[Selection, Axes, Axes], None]:
        def panel(selection: Selection, main: Axes, ratio: Axes) -> None:
            edges, curves = views_maps.histograms(report, kind, selection)
            draw_curves(main, ratio, edges, curves, (0.5, 1.5))
            _logarithmic(main, curves)

        return panel

    text = "All maps, and the quarters of the conditions' plane. Errors from the scatter between realisations or maps."
    figure = _grid(report, draw("pixel"), (r"$1+\delta$", r"share of pixels per $\ln(1+\delta)$"))
    yield Drawing("pixels", "One-point distribution", f"Distribution of single pixels. {text}", figure)
    figure = _grid(report, draw("peaks"), (r"height $1+\delta$ of the peak", "peaks of a map in the bin"))
    caption = f"Peaks: pixels strictly above their eight neighbours, across the maps' edges as well. {text}"
    yield Drawing("peaks", "Peaks", caption, figure)


def _bispectrum(report: Report) -> Iterator[Drawing]:
    def draw(selection: Selection, main: Axes, ratio: Axes) -> None:
        curves = views_maps.bispectra(report, selection)
        draw_curves(main, ratio, _edges(next(iter(curves.values())).x), curves, (0.5, 1.5))
        _logarithmic(main, curves)

    k, _, unit = _wave_number(report)
    caption = (
        "Mean bispectrum of equilateral triangles: what a field has beyond its power spectrum. It is dominated by the "
        "few largest haloes, so its uncertainty is large."
    )
    yield Drawing("bispectrum", "Bispectrum", caption, _grid(report, draw, (k, f"B(k, k, k) [{unit}]")))


def _logarithmic(main: Axes, curves: Mapping[str, Curve]) -> None:
    """A logarithmic vertical axis, where the reference is positive often enough for one."""
    reference = next(iter(curves.values())).y
    if np.count_nonzero(reference > 0) > len(reference) / 2:
        positive = reference[reference > 0]
        main.set_yscale("log")
        main.set_ylim(max(float(positive.min()) / 2, float(positive.max()) * 1e-7), float(positive.max()) * 3)


def _curve(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """The reference as a line with a band, generated as points, without ratios."""
    titles = list(curves)
    for title, curve in curves.items():
        look = look_of(titles, title)
        if title == titles[0] or curve.seeds > 1:
            axes.fill_between(curve.x, curve.y - curve.error, curve.y + curve.error, color=look.colour, alpha=0.3, lw=0)
            axes.plot(curve.x, curve.y, color=look.colour, linewidth=1.0, linestyle=look.line)
        else:
            _points(axes, curve, look)


def _points(axes: Axes, curve: Curve, look: Look) -> None:
    x, y, error = curve.x, curve.y, curve.error
    axes.errorbar(x, y, error, fmt=look.marker, color=look.colour, markersize=3.5, elinewidth=0.8)


def _panels(report: Report, count: int, columns: int = 3) -> Iterator[Axes]:
    """Panels without ratios, on one figure."""
    figure, places = grid_of(report, count, columns, (3.7, 3.1), left=0.78)
    width, height = figure.get_size_inches()
    for place in places:
        left, bottom, across, up = place.rectangle
        yield figure.add_axes((left / width, bottom / height, across / width, up / height))


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    return figure if isinstance(figure, Figure) else Figure()


def _minkowski(report: Report) -> Iterator[Drawing]:
    length = "Mpc/h" if report.family.box_size else "pixel"
    labels = ("area above, $V_0$", f"boundary $V_1$ [1/({length})]", f"Euler number $V_2$ [1/({length})$^2$]")
    axes = None
    for functional, axes in enumerate(_panels(report, 3)):
        _curve(axes, views_maps.minkowski(report, functional))
        axes.set_xscale("log" if report.maps["reference"].yardstick.thresholds.min(initial=1.0) > 0 else "linear")
        axes.set_xlabel(r"threshold in $1+\delta$")
        axes.set_ylabel(labels[functional])
        if functional == 2:
            axes.axhline(0, color=REFERENCE_COLOUR, linewidth=0.6)
    if axes is not None:
        caption = (
            "Minkowski functionals per unit of area of the regions above a threshold: their area, the length of their "
            "boundary (a quarter of it), and how many more they are than their holes. Thresholds are quantiles of the "
            "reference's pixels, 5 % to 99.9 %."
        )
        yield Drawing("minkowski", "Minkowski functionals", caption, _figure(axes))


def _responses(report: Report) -> Iterator[Drawing]:
    found = views_maps.responses(report)
    names = {c.name: condition_axis(c)[1] for c in report.family.conditions}
    axes = None
    for axes, (name, curves) in zip(_panels(report, len(found)), found.items(), strict=True) if found else ():
        _curve(axes, curves)
        axes.axhline(0, color=REFERENCE_COLOUR, linewidth=0.6)
        axes.set_xscale("log")
        axes.set_xlabel(_wave_number(report)[0])
        axes.set_ylabel(f"d ln P(k) / d {names[name]}")
    if axes is not None:
        caption = (
            "How the mean power spectrum responds to each condition, the others kept: slopes of a log-linear model. "
            "Neighbouring shells vary together: whole boxes are rich or poor."
        )
        yield Drawing("response", "Response to the conditions", caption, _figure(axes))


def _inferred(report: Report) -> Iterator[Drawing]:
    found = views_maps.inferred(report)
    axes = None
    for axes, (name, (edges, curves)) in zip(_panels(report, len(found)), found.items(), strict=True) if found else ():
        label = condition_axis(report.family.condition(name))[1]
        _curve(axes, curves)
        axes.plot(edges[[0, -1]], edges[[0, -1]], color=REFERENCE_COLOUR, linewidth=0.6, linestyle="--")
        axes.set_xlabel(f"true {label}")
        axes.set_ylabel(f"mean inferred {label}")
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if axes is not None:
        caption = (
            "Conditions inferred from single maps by a regression on their summaries, trained with reference maps. One "
            "map says little (cosmic variance), so the mean stays near the middle; what matters is that generated maps "
            "(points) give what reference maps that did not train the regression do (band)."
        )
        yield Drawing("inferred", "Inferred conditions", caption, _figure(axes))


def _cross(report: Report) -> Iterator[Drawing]:
    curves, alike = views_maps.coherences(report), views_maps.alikeness(report)
    if not curves:
        return
    first, second = _panels(report, 2)
    _curve(first, curves)
    first.set_xscale("log")
    first.set_xlabel(_wave_number(report)[0])
    first.set_ylabel(r"cross spectrum / $\sqrt{P_a P_b}$")
    titles = list(alike)
    edges = np.linspace(0, max(0.5, *(float(a.max(initial=0.0)) for a in alike.values())) * 1.02, 52)
    for title, values in alike.items():
        look, density = look_of(titles, title), np.histogram(values, edges)[0] / max(len(values), 1)
        if title == titles[0]:
            second.stairs(density, edges, fill=True, color="#d9d9d9")
        second.stairs(density, edges, color=look.colour, linestyle=look.line)
    second.set_yscale("log")
    second.set_xlabel("largest correlation over all shifts")
    second.set_ylabel("share of pairs of maps")
    caption = (
        "Are generated maps alike? Pairs of different maps (of different realisations), one shifted (mirrored, turned) "
        "to fit the other best, in the logarithm of the density. A surrogate that repeats itself has pairs near 1."
    )
    yield Drawing("cross", "Different maps", caption, _figure(first))


def _correlations(report: Report) -> Iterator[Drawing]:
    found = views_maps.power_correlations(report)
    size = len(next(iter(found.values())))
    ticks = range(0, size, max(1, size // 8))
    caption = (
        "Correlations of P(k) between shells (numbered from the fundamental mode) over all maps, and their difference."
    )
    figure = matrices(found, ticks, [str(t + 1) for t in ticks], turned=False)
    yield Drawing("power-correlations", "Correlations of P(k)", caption, figure)


def _wall(report: Report) -> Iterator[Drawing]:
    sides = {title: surveys[0] for title, surveys in views.sides(report).items()}
    count = len(report.plan.targets)
    figure = Figure(figsize=(2.3 * count, 2.25 * len(sides) + 0.3), layout="constrained")
    panels = figure.subplots(len(sides), count, squeeze=False)
    shape = report.family.sample_shape
    norm = log_norm([np.asarray(side.examples[0], dtype=np.float64) for side in sides.values()], 3.5)
    names = [c.name for c in report.family.conditions]
    image = None
    for row, (title, side) in zip(panels, sides.items(), strict=True):
        values, conditions = side.examples
        for k, axes in enumerate(row):
            shown = np.maximum(values[k].reshape(shape).astype(np.float64), norm.vmin or 1e-9)
            image = axes.imshow(shown, norm=norm, cmap="inferno", origin="lower")
            axes.set_xticks([])
            axes.set_yticks([])
            known = zip(names, conditions[k], strict=False)
            text = ", ".join(f"{n} {v:.3g}" for n, v in known if np.isfinite(v))
            axes.set_title(text, fontsize=7)
        row[0].set_ylabel(title, loc="center")
    if image is not None:
        figure.colorbar(image, ax=panels, label=r"$1+\delta$", fraction=0.02, pad=0.01)
    caption = "Single maps, reference above generated, at matching conditions and on one logarithmic scale."
    yield Drawing("maps", "Wall of maps", caption, figure)


def _field(report: Report) -> Iterator[Drawing]:
    if min(report.family.sample_shape) < _LARGE:
        return
    for name in report.metrics:
        drawing = field(report.generated[report.members(name)[0]].kept.read(0, 1))
        suffix = "" if len(report.metrics) == 1 else f"-{name}"
        yield Drawing(f"field{suffix}", f"A field of {name}", drawing.caption, drawing.figure)


def field(samples: Samples) -> Drawing:
    """One large map, the first of some samples, with a scale in Mpc/h where the family has a box."""
    family, values = samples.family, np.asarray(samples.values[0], dtype=np.float64)
    height, width = family.sample_shape
    unit, side = ("Mpc/h", family.box_size) if family.box_size else ("pixels", float(height))
    figure = Figure(figsize=(7.4, 6.6 * height / width + 0.4), layout="constrained")
    axes = figure.add_subplot()
    norm = log_norm([values], 3.5)
    extent = (0.0, side * width / height, 0.0, side)
    image = axes.imshow(np.maximum(values, norm.vmin or 1e-9), norm=norm, cmap="inferno", origin="lower", extent=extent)
    axes.set_xlabel(unit)
    axes.set_ylabel(unit)
    axes.set_title(", ".join(f"{n} {float(v[0]):.3g}" for n, v in samples.conditions.items()))
    figure.colorbar(image, ax=axes, label=r"$1+\delta$", fraction=0.045, pad=0.02)
    caption = f"One map of {height} x {width} pixels, periodic: its opposite edges continue each other."
    return Drawing("field", "A large field", caption, figure)
