"""What figures are built of: style, panels, curves, histograms."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calogen.errors import ConfigError
from calogen.families import Condition, Family, Layer
from calogen.storage import write_atomic

from ..metrics.conditioning import Curve
from ..observables.catalogue import voxel_of
from ..observables.observable import Observable
from ..report import Report
from ..survey.histograms import is_logarithmic
from ..survey.selections import Selection
from . import values as views
from .values import Histogram

Array = NDArray[np.float64]
Values = NDArray[np.floating[Any]]
REFERENCE_COLOUR = "#4d4d4d"
COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#7a21dd")  # Petroff 2021: told apart by colour-blind readers
MARKERS = ("o", "s", "^", "D", "v")
LINES: tuple[Any, ...] = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 0.7)), (0, (8, 1, 1, 1)))
FILL = "#d9d9d9"
_RATIO_RANGE = (0.5, 1.5)
_MOST_LAYERS = 5  # drawn of a sample
_FORMATS: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
_SMALL = 3.5  # inches that a panel with few labels is narrower than
_STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("report.mplstyle"), use_default_template=False)


@dataclass(frozen=True)
class Drawing:
    """A figure with its name (for files), title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw_into(path: str | Path, drawing: Drawing) -> Path:
    """Write a figure in the format that the file's name says: ``.pdf``, ``.png`` or ``.svg``.

    Raises:
        ConfigError: If it says another.
    """
    path = Path(path)
    if (kind := path.suffix.removeprefix(".").lower()) not in _FORMATS:
        raise ConfigError("unknown format of a figure", where=path, expected=", ".join(_FORMATS), found=path.suffix)
    write_atomic(path, encode(drawing, kind))
    return path


def styled(drawings: Iterator[Drawing]) -> Iterator[Drawing]:
    """Drawings made in the style of all figures, which whoever draws in between does not see."""
    while True:
        with matplotlib.rc_context(_STYLE):
            drawing = next(drawings, None)
        if drawing is None:
            return
        yield drawing


def encode(drawing: Drawing, kind: str) -> bytes:
    """The figure as a file, ``png``, ``pdf`` or ``svg``; equal drawings give equal bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        engine = drawing.figure.get_layout_engine()
        if engine is not None:  # arrange the panels once, not for every format
            engine.execute(drawing.figure)
            drawing.figure.set_layout_engine("none")
        drawing.figure.savefig(stream, format=kind, metadata=_FORMATS[kind])
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ building blocks
Panels = list[tuple[Axes, Axes]]
"""Panels, each with the panel of its ratios right below."""


def ratio_grid(
    report: Report,
    count: int,
    columns: int = 3,
    size: tuple[float, float] = (3.7, 3.6),
    label: str = "density",
    more: Sequence[Any] = (),
) -> tuple[Figure, Panels]:
    """A figure with a legend and some panels, each with a panel of ratios that shares its horizontal axis.

    Args:
        report: What is drawn; its names decide the size of the legend, which is drawn as well.
        count: Number of panels.
        columns: Panels side by side, at most.
        size: Width and height of a panel with its labels, in inches.
        label: Of the vertical axes of the first column.
        more: What else the legend explains, as :func:`explained` makes it.
    """
    figure, places = _grid(report, count, columns, size, more)
    panels = []
    for k, (x, y, across, up) in enumerate(places):
        lower = 0.27 * up
        ratio = figure.add_axes((x, y, across, lower))
        main = figure.add_axes((x, y + lower, across, up - lower))
        main.sharex(ratio)
        main.tick_params(labelbottom=False)
        ratio.yaxis.set_major_locator(
            MaxNLocator(4, prune="both", steps=[1, 2, 2.5, 5, 10])
        )  # no label where the panels touch
        ratio.axhline(1.0, color=REFERENCE_COLOUR, linewidth=0.8)
        if k % columns == 0:
            main.set_ylabel(label)
            ratio.set_ylabel("ratio", loc="center")
        panels.append((main, ratio))
    return figure, panels


def plain_grid(report: Report, count: int, more: Sequence[Any] = ()) -> tuple[Figure, list[Axes]]:
    """A figure with a legend and some panels without ratios, three in a row; ``more`` as in :func:`ratio_grid`."""
    figure, places = _grid(report, count, 3, (3.7, 3.1), more)
    return figure, [figure.add_axes(place) for place in places]


def explained(label: str, *, band: str = "", **line: Any) -> Any:
    """An entry of a legend: a band of some colour, or a line; neither shows words alone."""
    return Patch(color=band, label=label) if band else Line2D([], [], label=label, **({"linestyle": "none"} | line))


def beyond() -> list[Any]:
    """Entries of a legend for what is off the scales of histograms."""
    arrows = "\N{BLACK LEFT-POINTING SMALL TRIANGLE} \N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
    off = explained("ratio off its scale", marker="^", fillstyle="none", color=REFERENCE_COLOUR, markersize=4)
    return [explained(f"{arrows} beyond: reference | generated"), off]


def _grid(
    report: Report, count: int, columns: int, size: tuple[float, float], more: Sequence[Any]
) -> tuple[Figure, list[tuple[float, float, float, float]]]:
    """A figure with a legend and rectangles for panels: of one size, they need no layout engine, which takes long."""
    columns, left = min(columns, count), 0.58 if size[0] < _SMALL else 0.78  # room for the labels
    rows = -(-count // columns)
    width = size[0] * columns + 0.1
    entries = [*_legend_entries(report), *more]
    fit = min(len(entries), max(1, int(width / (0.085 * (max(len(e.get_label()) for e in entries) + 6)))))
    height = size[1] * rows + 0.35 + 0.19 * (-(-len(entries) // fit) - 1)
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    figure.legend(handles=entries, loc="upper center", ncols=fit, borderaxespad=0.1)
    across, up = (size[0] - left - 0.12) / width, (size[1] - 0.48 - 0.26) / height
    corners = [(k % columns * size[0] + left, (rows - 1 - k // columns) * size[1] + 0.48) for k in range(count)]
    return figure, [(x / width, y / height, across, up) for x, y in corners]


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a side, so that none needs colours to be told apart."""

    colour: str
    marker: str = "o"
    line: Any = "-"


def look_of(titles: Sequence[str], title: str) -> Look:
    """The look of a side: grey for the reference, then the palettes in order."""
    k = list(titles).index(title) - 1
    if k < 0:
        return Look(REFERENCE_COLOUR)
    more = k // len(COLOURS)  # colours come again, but not with the same marker and line
    return Look(COLOURS[k % len(COLOURS)], MARKERS[(k + more) % len(MARKERS)], LINES[(k + 2 * more) % len(LINES)])


def _legend_entries(report: Report) -> list[Any]:
    """A band for the reference, lines with markers for the surrogates."""
    sides = views.sides(report)
    titles = list(sides)
    entries: list[Any] = [Patch(facecolor=FILL, edgecolor=REFERENCE_COLOUR, label=f"{titles[0]} (band: stat.)")]
    for title in titles[1:]:
        look, seeds = look_of(titles, title), len(sides[title])
        label = title if seeds == 1 else f"{title} (band: {seeds} seeds)"
        entries.append(
            Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=4, label=label)
        )
    return entries


def draw_histograms(
    main: Axes, ratio: Axes, histograms: Mapping[str, Histogram], observable: Observable, *, flow: bool = True
) -> None:
    """Reference as a filled step with its uncertainty, generated as steps with error bars, ratios below.

    Args:
        main: Panel of the densities.
        ratio: Panel of the ratios to the reference.
        histograms: By side, reference first; several seeds of one surrogate become a band.
        observable: On the horizontal axis.
        flow: Whether to print the shares beyond the axis.
    """
    edges = next(iter(histograms.values())).edges
    factor, label = observable.axis(edges[-1])
    edges = edges * factor
    curves = {t: replace(h, edges=edges).curve for t, h in histograms.items()}
    draw_curves(main, ratio, edges, curves, _RATIO_RANGE, steps=True)
    if not is_logarithmic(edges):
        ratio.xaxis.set_major_locator(MaxNLocator(4))
        ratio.ticklabel_format(axis="x", useOffset=False)
    _vertical_scale(main, [c.y for c in curves.values()])
    ratio.set_xlabel(label)
    if flow:
        _flow(main, 100 * np.array([h.flow for h in histograms.values()]).T)


def _flow(main: Axes, percent: Array) -> None:
    """Under- and overflow (2, sides): the reference's share, then the generated one, or the range of several."""
    left, right = "\N{BLACK LEFT-POINTING SMALL TRIANGLE} {} %", "{} % \N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
    for shares, at, text, side in zip(percent.tolist(), (0.13, 1), (left, right), ("left", "right"), strict=True):
        if any(shares):
            low, high = min(shares[1:]), max(shares[1:])
            shown = f"{shares[0]:.2g} | {low:.2g}" + (f"-{high:.2g}" if len(shares) > 2 else "")
            main.text(at, 1.03, text.format(shown), ha=side, fontsize=6.5, color="#666666", transform=main.transAxes)


def _vertical_scale(main: Axes, densities: Sequence[Array]) -> None:
    filled = densities[0][densities[0] > 0]
    if len(filled) > 3 and filled.max() > 25 * np.median(filled):
        log_scale(main, densities, 6)
    else:
        main.set_ylim(0, 1.2 * (max(float(d.max()) for d in densities) or 1.0))
        main.ticklabel_format(axis="y", scilimits=(-2, 3))
        main.yaxis.get_offset_text().set_fontsize(7)


def log_scale(axes: Axes, values: Sequence[Array], decades: float = 7) -> None:
    """A logarithmic vertical axis with room around the positive values, of which it shows some decades at most."""
    axes.set_yscale("log")
    positive = np.concatenate([v[v > 0] for v in values])
    if len(positive):
        axes.set_ylim(max(positive.min() / 3, positive.max() * 10**-decades), positive.max() * 4)


def band(axes: Axes, curve: Curve, edges: Array, look: Look) -> None:
    """The mean of several seeds as a line with a band, in bins."""
    y, error = np.nan_to_num(curve.y), np.nan_to_num(curve.error)
    axes.stairs(y + error, edges, baseline=y - error, fill=True, color=look.colour, alpha=0.3)
    axes.stairs(curve.y, edges, baseline=None, color=look.colour, linewidth=1.2, linestyle=look.line)


def points(axes: Axes, curve: Curve, look: Look, size: float, *, arrows: bool = False) -> None:
    """Points with error bars; those off the scale become arrows at its edge if wanted."""
    low, high = axes.get_ylim() if arrows else (-np.inf, np.inf)
    inside = (curve.y >= low) & (curve.y <= high)
    x, y, error = curve.x[inside], curve.y[inside], curve.error[inside]
    axes.errorbar(x, y, error, fmt=look.marker, color=look.colour, markersize=size, elinewidth=0.8)
    margin = 0.03 * (high - low)
    for beyond, at, arrow in ((curve.y > high, high - margin, "^"), (curve.y < low, low + margin, "v")):
        if beyond.any():
            x = curve.x[beyond]
            axes.plot(x, np.full(len(x), at), arrow, color=look.colour, markersize=size, fillstyle="none")


def draw_curves(
    main: Axes,
    ratio: Axes,
    edges: Array,
    curves: Mapping[str, Curve],
    limits: tuple[float, float] | None = None,
    *,
    steps: bool = False,
) -> None:
    """A quantity in bins: the reference as a band, generated as points, ratios below.

    Args:
        main: Panel of the quantity.
        ratio: Panel of the ratios to the reference.
        edges: Of the bins, (K + 1,).
        curves: By side, reference first; several seeds of one surrogate become a band.
        limits: Of the ratios (default: what shows them).
        steps: Draw histograms: the reference filled, generated as steps with error bars.
    """
    titles = list(curves)
    reference = curves[titles[0]]
    y, error = np.nan_to_num(reference.y), np.nan_to_num(reference.error)
    if steps:
        main.stairs(y, edges, fill=True, color=FILL)
    else:
        main.margins(y=0.15)
    main.stairs(y + error, edges, baseline=y - error, fill=True, color=REFERENCE_COLOUR, alpha=0.35)
    line: dict[str, Any] = {"linewidth": 1.0} if steps else {"baseline": None}
    main.stairs(reference.y, edges, color=REFERENCE_COLOUR, **line)
    relative = error / np.where(y != 0, np.abs(y), 1.0)
    ratio.stairs(1 + relative, edges, baseline=1 - relative, fill=True, color=REFERENCE_COLOUR, alpha=0.3)
    ratios = {title: curves[title].over(reference) for title in titles[1:]}
    ratio.set_ylim(*(limits or ratio_range([*ratios.values(), Curve(reference.x, 1 + relative, relative)])))
    for title, quotient in ratios.items():
        look, curve = look_of(titles, title), curves[title]
        if steps:
            main.stairs(curve.y, edges, color=look.colour, linewidth=1.3, linestyle=look.line)
        if curve.seeds > 1:
            band(main, curve, edges, look)
            band(ratio, quotient, edges, look)
        else:
            points(main, curve, look, 0 if steps else 4)
            points(ratio, quotient, look, 2.5 if steps else 4, arrows=True)
    main.set_xlim(edges[0], edges[-1])
    if is_logarithmic(edges):
        ratio.set_xscale("log")


def draw_lines(axes: Axes, curves: Mapping[str, Curve], **labels: Any) -> None:
    """A quantity at some points without ratios: the reference as a line with a band, generated as points.

    Args:
        axes: The panel.
        curves: By side, reference first.
        **labels: What else to set of the panel: ``xlabel``, ``ylabel``, ``xscale``.
    """
    titles = list(curves)
    for title, curve in curves.items():
        look = look_of(titles, title)
        if title == titles[0] or curve.seeds > 1:
            axes.fill_between(curve.x, curve.y - curve.error, curve.y + curve.error, color=look.colour, alpha=0.3, lw=0)
            axes.plot(curve.x, curve.y, color=look.colour, linewidth=1.0, linestyle=look.line)
        else:
            points(axes, curve, look, 3.5)
    axes.set(**labels)


def middle_edges(x: Array) -> Array:
    """Edges of bins around increasing positive points, (K + 1,)."""
    if len(x) < 2:
        return np.asarray(x[0] * np.array([0.9, 1.1]))
    steps = np.sqrt(x[1:] * x[:-1])
    return np.concatenate([[x[0] ** 2 / steps[0]], steps, [x[-1] ** 2 / steps[-1]]])


def ratio_range(ratios: Sequence[Curve]) -> tuple[float, float]:
    """A range around 1 that shows the points of some ratios, from 0.2 % to 50 %."""
    far = [np.nanmax(np.abs(r.y - 1) + r.error) for r in ratios if np.isfinite(r.y).any()]
    half = 1.2 * float(np.clip(max(far, default=0.1), 0.002, 0.4))
    return 1 - half, 1 + half


def matrices(found: Mapping[str, Array], ticks: Sequence[int], labels: Sequence[str], *, turned: bool) -> Figure:
    """Correlation matrices of all sides and their differences from the reference.

    One row for one surrogate; of several the differences are in a second one.
    """
    titles = list(found)
    several = len(titles) > 2
    columns = len(titles) if several else 3
    height = 6.9 if turned else 5.6  # turned labels need room below
    figure = Figure(figsize=(4.3 * columns, height * (1 + several)), layout="constrained")
    panels = list(figure.subplots(1 + several, columns, squeeze=False).flat)
    if several:
        panels.pop(columns).set_axis_off()
    differences = {f"{t} - {titles[0]}": found[t] - found[titles[0]] for t in titles[1:]}
    limit = max([0.1, *(float(np.quantile(np.abs(d), 0.999)) for d in differences.values())])
    shown = [(*item, "correlation", 1.0, "neither") for item in found.items()]
    shown += [(*item, "difference", limit, "both") for item in differences.items()]
    for axes, (title, matrix, label, scale, extend) in zip(panels, shown, strict=True):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", rasterized=True)
        axes.set_title(title)
        first = axes is panels[0] or (several and axes is panels[columns])
        axes.set_xticks(ticks, labels, rotation=90 if turned else 0, fontsize=6.5)
        axes.set_yticks(ticks, labels if first else [], fontsize=6.5)
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, location="bottom", extend=extend)
        bar.set_label(label, loc="center")
    return figure


def symbol(condition: Condition) -> str:
    """What stands for a condition in figures, in mathtext."""
    return condition.axis[1].removesuffix(f" [{condition.shown(math.inf)[1]}]")


def selection_title(family: Family, selection: Selection) -> str:
    """Which samples, as figures say it: conditions by their symbols."""
    title = selection.title
    for condition in family.conditions:
        name = re.compile(rf"(?<![\w$]){re.escape(condition.name)}(?!\w)")
        title = symbol(condition).join(name.split(title))
    return title


def value_text(condition: Condition, value: float) -> str:
    """A condition's value as figures say it: ``E_inc = 20 GeV``, energies in GeV."""
    factor, unit = condition.shown(math.inf)
    text = condition.labels[int(value)] if condition.labels else f"{value * factor:.3g} {unit}".rstrip()
    return f"{symbol(condition)} = {text}"


def value_texts(conditions: Sequence[Condition], values: Sequence[float] | Array) -> list[str]:
    """The same of all conditions that a sample has."""
    return [value_text(c, value) for c, value in zip(conditions, values, strict=False) if np.isfinite(value)]


def bare(axes: Axes) -> None:
    """Take away labels and ticks."""
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])


def draw_map(axes: Axes, pixels: Values, norm: LogNorm, **options: Any) -> AxesImage:
    """One map in logarithmic colours; what is below the scale has its lowest colour."""
    shown = np.maximum(pixels, norm.vmin or 1e-9)
    return axes.imshow(shown, norm=norm, cmap="inferno", origin="lower", **options)


def draw_layer(
    figure: Figure, place: SubplotSpec, layer: Layer, energies: Values, norm: Normalize, colours: str = "viridis"
) -> Axes:
    """One layer's cells (V_layer,) where they are: x to the right and y up in mm, or sectors and equally wide rings."""
    outline = layer.outline
    axes = figure.add_subplot(place, projection="polar" if outline.polar else None)
    image = energies.reshape(layer.shape).astype(np.float64)
    if isinstance(norm, LogNorm):
        image = np.where(image > 0, image, np.nan)
    cells = np.repeat(np.ma.masked_invalid(image), outline.repeat, axis=0).T
    palette = matplotlib.colormaps[colours].with_extremes(bad="white")
    axes.pcolormesh(outline.across, outline.up, cells, norm=norm, cmap=palette, rasterized=True)
    axes.set(xlabel=outline.labels[0], ylabel=outline.labels[1])
    if outline.polar:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_xlabel(outline.labels[0], fontsize=7, loc="center")
    else:
        axes.set_aspect("equal")
    return axes


def log_norm(images: Sequence[Array], decades: float = 6.0) -> LogNorm:
    """A logarithmic colour scale shared by some images."""
    filled = np.concatenate([i[i > 0].ravel() for i in images])
    high = float(filled.max()) if len(filled) else 1.0
    low = max(float(filled.min()), high * 10**-decades) if len(filled) else 0.1
    return LogNorm(low, high if high > low else low * 10)


def draw_frames(
    family: Family,
    values: NDArray[np.float32],
    titles: Sequence[Sequence[str]],
    rows: Sequence[str],
    layers: Sequence[int] | None = None,
) -> Figure:
    """Samples side by side, on one logarithmic scale of colours; panels by hand, since a layout engine takes seconds.

    Args:
        family: What they are.
        values: Rows of frames, (R, T, *sample_shape), in the family's unit; of showers each layer has a row of panels.
        titles: Of the frames, T, for each row or only the first.
        rows: Of the rows, R; empty where there is nothing to say.
        layers: Positions of the layers to draw (default: five, evenly spaced).
    """
    if layers is None:
        layers = range(0, len(family.layers), -(-len(family.layers) // _MOST_LAYERS) or 1)
    numbers: Sequence[int | None] = layers or [None]
    lines = list(product(range(len(values)), numbers))
    norm = log_norm([values.astype(np.float64)], 5.0 if family.layers else 3.5)
    bar = ScalarMappable(norm, "viridis" if family.layers else "inferno")
    # Equal square panels and a bar of colours, in inches.
    above = 0.14 * (1 + titles[0][0].count("\n")) + 0.16
    apart = 0.06 + (above / 1.65 if len(titles) > 1 else 0)
    width, height = 1.65 * values.shape[1] + 1.3, (1.59 + 1.59 * apart) * len(lines) + above
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    edges = {"left": 0.4 / width, "right": 1 - 0.9 / width, "bottom": 0.1 / height, "top": 1 - above / height}
    grid = figure.add_gridspec(len(lines), values.shape[1], wspace=0.06, hspace=apart, **edges)
    tall = min(0.6, 3.5 / height)
    place = (1 - 0.8 / width, 0.5 - tall / 2, 0.14 / width, tall)
    figure.colorbar(bar, cax=figure.add_axes(place), label=voxel_of(family).axis_label)
    for (line, (i, number)), j in product(enumerate(lines), range(values.shape[1])):
        row = rows[i]
        if number is None:
            axes = figure.add_subplot(grid[line, j])
            draw_map(axes, values[i, j], norm)
        else:
            cells = values[i, j, family.layer_slices[number]]
            axes = draw_layer(figure, grid[line, j], family.layers[number], cells, norm)
            row = f"{row}\nlayer {family.layer_numbers[number]}".strip()
        bare(axes)
        titled = i < len(titles) and line % (len(lines) // len(values)) == 0
        axes.set_title(titles[i][j] if titled else "", fontsize=8)
        axes.set_ylabel(row if j == 0 else "", loc="center", fontsize=8)
    return figure
