"""What figures are built of: style, panels, curves, histograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.style
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calogen.families import Condition

from ..metrics.conditioning import Curve
from ..report import Report
from ..survey.histograms import is_logarithmic
from . import values as views
from .values import Histogram

Array = NDArray[np.float64]
REFERENCE_COLOUR = "#4d4d4d"
COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#7a21dd")  # Petroff 2021: told apart by colour-blind readers
MARKERS = ("o", "s", "^", "D", "v")
LINES: tuple[Any, ...] = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 0.7)), (0, (8, 1, 1, 1)))
_RATIO_RANGE = (0.5, 1.5)
_STYLE = {
    **{k: v for k, v in mplhep.style.CMS.items() if not k.startswith(("font.", "mathtext.", "figure.", "axes.prop"))},
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "xtick.major.size": 5,
    "xtick.minor.size": 2.5,
    "ytick.major.size": 5,
    "ytick.minor.size": 2.5,
    "xtick.major.pad": 4,
    "savefig.dpi": 140,
    "pdf.fonttype": 42,
    "xtick.minor.visible": False,  # on dozens of small panels they cost seconds
    "ytick.minor.visible": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure with its name (for files), title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def style() -> AbstractContextManager[None]:
    """The style of all figures, while the context lasts."""
    return matplotlib.rc_context(_STYLE)


def encode(drawing: Drawing, kind: str) -> bytes:
    """The figure as a file, ``png``, ``pdf`` or ``svg``; equal drawings give equal bytes."""
    stream = io.BytesIO()
    dates = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with style():
        engine = drawing.figure.get_layout_engine()
        if engine is not None:  # arrange the panels once, not for every format
            engine.execute(drawing.figure)
            drawing.figure.set_layout_engine("none")
        drawing.figure.savefig(stream, format=kind, metadata=dates[kind])
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ building blocks
@dataclass(frozen=True)
class Place:
    """Where a panel goes: a rectangle in inches from the lower left corner, and its row and column."""

    row: int
    column: int
    rectangle: tuple[float, float, float, float]


def ratio_panels(figure: Figure, place: Place) -> tuple[Axes, Axes]:
    """A panel and its ratio panel right below, sharing the horizontal axis."""
    width, height = figure.get_size_inches()
    left, bottom, across, up = place.rectangle
    lower = 0.27 * up
    ratio = figure.add_axes((left / width, bottom / height, across / width, lower / height))
    main = figure.add_axes((left / width, (bottom + lower) / height, across / width, (up - lower) / height))
    main.sharex(ratio)
    main.tick_params(labelbottom=False)
    ratio.set_ylim(*_RATIO_RANGE)
    ratio.yaxis.set_major_locator(MaxNLocator(4, prune="both"))  # no label where the panels touch
    ratio.axhline(1.0, color=REFERENCE_COLOUR, linewidth=0.8)
    return main, ratio


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


def legend(figure: Figure, report: Report) -> None:
    """One legend above all panels, on as many lines as its names need."""
    sides = views.sides(report)
    titles = list(sides)
    entries: list[Any] = [Patch(facecolor="#d9d9d9", edgecolor=REFERENCE_COLOUR, label=f"{titles[0]} (band: stat.)")]
    for title in titles[1:]:
        look, seeds = look_of(titles, title), len(sides[title])
        label = title if seeds == 1 else f"{title} (band: {seeds} seeds)"
        entries.append(
            Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=4, label=label)
        )
    letters = max(len(entry.get_label()) for entry in entries) + 6
    fit = max(1, int(figure.get_size_inches()[0] / (0.085 * letters)))
    figure.legend(handles=entries, loc="upper center", ncols=min(fit, len(entries)), borderaxespad=0.1)


def legend_height(report: Report, width: float) -> float:
    """Room for the legend of a figure of some width, in inches."""
    titles = list(views.sides(report))
    fit = max(1, int(width / (0.085 * (max(len(t) for t in titles) + 22))))
    return 0.35 + 0.19 * (-(-len(titles) // fit) - 1)


def draw_histograms(
    main: Axes, ratio: Axes, histograms: Mapping[str, Histogram], label: str, *, flow: bool = True
) -> None:
    """Reference as a filled step with its uncertainty, generated as steps with error bars, ratios below.

    Args:
        main: Panel of the densities.
        ratio: Panel of the ratios to the reference.
        histograms: By side, reference first; several seeds of one surrogate become a band.
        label: Of the horizontal axis.
        flow: Whether to print the shares beyond the axis.
    """
    if label.endswith("[MeV]") and max(h.edges[-1] for h in histograms.values()) >= 1e4:
        label = label.replace("[MeV]", "[GeV]")
        histograms = {t: replace(h, edges=h.edges * 1e-3) for t, h in histograms.items()}
    titles = list(histograms)
    if is_logarithmic(histograms[titles[0]].edges):
        ratio.set_xscale("log")
        histograms = {t: replace(h, decades=True) for t, h in histograms.items()}
    reference = histograms[titles[0]]
    density, error, edges = reference.density, reference.error, reference.edges
    main.stairs(density, edges, fill=True, color="#d9d9d9")
    main.stairs(density, edges, color=REFERENCE_COLOUR, linewidth=1.0)
    main.stairs(density + error, edges, baseline=density - error, fill=True, color=REFERENCE_COLOUR, alpha=0.35)
    safe = np.where(density > 0, density, np.nan)
    low = np.nan_to_num(1 - error / safe, nan=1.0)
    high = np.nan_to_num(1 + error / safe, nan=1.0)
    ratio.stairs(high, edges, baseline=low, fill=True, color=REFERENCE_COLOUR, alpha=0.3)
    for title in titles[1:]:
        mine, look = histograms[title], look_of(titles, title)
        main.stairs(mine.density, edges, color=look.colour, linewidth=1.3, linestyle=look.line)
        centres = views.middles(edges)
        curve = Curve(centres, mine.density / safe, mine.error / safe, mine.seeds)
        if mine.seeds > 1:
            low, high = mine.density - mine.error, mine.density + mine.error
            main.stairs(high, edges, baseline=low, fill=True, color=look.colour, alpha=0.3)
            band(ratio, curve, edges, look)
        else:
            main.errorbar(centres, mine.density, mine.error, fmt="none", ecolor=look.colour, elinewidth=0.8)
            points(ratio, curve, look, 2.5)
    main.set_xlim(edges[0], edges[-1])
    if ratio.get_xscale() == "linear":
        ratio.xaxis.set_major_locator(MaxNLocator(4))
        ratio.ticklabel_format(axis="x", useOffset=False)
    _vertical_scale(main, [h.density for h in histograms.values()])
    ratio.set_xlabel(label)
    if flow:
        _flow(main, list(histograms.values()))


def _flow(main: Axes, histograms: Sequence[Histogram]) -> None:
    """Under- and overflow of every side in percent, above the ends of the axis they lie beyond."""
    below, above = ([100 * getattr(h, end) for h in histograms] for end in ("below", "above"))
    options: dict[str, Any] = {"fontsize": 6.5, "color": "#666666", "transform": main.transAxes}
    if any(below):
        main.text(0.13, 1.03, f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} {_shares(below)} %", **options)
    if any(above):
        main.text(1, 1.03, f"{_shares(above)} % \N{BLACK RIGHT-POINTING SMALL TRIANGLE}", ha="right", **options)


def _shares(percent: Sequence[float]) -> str:
    """The reference's share, then the generated one, or the range of several."""
    low, high = min(percent[1:]), max(percent[1:])
    return f"{percent[0]:.2g} | {low:.2g}" + (f"-{high:.2g}" if len(percent) > 2 else "")


def _vertical_scale(main: Axes, densities: Sequence[Array]) -> None:
    filled = densities[0][densities[0] > 0]
    top = max(float(d.max()) for d in densities) or 1.0
    if len(filled) > 3 and filled.max() > 25 * np.median(filled):
        main.set_yscale("log")
        main.set_ylim(max(float(filled.min()) / 3, top * 1e-6), top * 4)
    else:
        main.set_ylim(0, top * 1.2)
        main.ticklabel_format(axis="y", scilimits=(-2, 3))
        main.yaxis.get_offset_text().set_fontsize(7)


def band(axes: Axes, curve: Curve, edges: Array, look: Look) -> None:
    """The mean of several seeds as a line with a band, in bins."""
    y, error = np.nan_to_num(curve.y), np.nan_to_num(curve.error)
    axes.stairs(y + error, edges, baseline=y - error, fill=True, color=look.colour, alpha=0.3)
    axes.stairs(curve.y, edges, baseline=None, color=look.colour, linewidth=1.2, linestyle=look.line)


def points(axes: Axes, curve: Curve, look: Look, size: float = 4) -> None:
    """Points with error bars; in a ratio panel those off the scale become arrows at its edge."""
    low, high = axes.get_ylim()
    known = np.isfinite(curve.y)
    inside = known & (curve.y >= low) & (curve.y <= high)
    axes.errorbar(
        curve.x[inside],
        curve.y[inside],
        curve.error[inside],
        fmt=look.marker,
        color=look.colour,
        markersize=size,
        elinewidth=0.8,
    )
    margin = 0.03 * (high - low)
    for beyond, at, arrow in ((curve.y > high, high - margin, "^"), (curve.y < low, low + margin, "v")):
        if (beyond & known).any():
            x = curve.x[beyond & known]
            axes.plot(x, np.full(len(x), at), arrow, color=look.colour, markersize=size, fillstyle="none")


def draw_curves(
    main: Axes, ratio: Axes, edges: Array, curves: Mapping[str, Curve], limits: tuple[float, float] | None = None
) -> None:
    """A quantity in bins: the reference as a band, generated as points, ratios below, within limits if given."""
    titles = list(curves)
    reference = curves[titles[0]]
    y, error = np.nan_to_num(reference.y), np.nan_to_num(reference.error)
    main.stairs(y + error, edges, baseline=y - error, fill=True, color=REFERENCE_COLOUR, alpha=0.35)
    main.stairs(np.where(np.isfinite(reference.y), y, np.nan), edges, baseline=None, color=REFERENCE_COLOUR)
    relative = error / np.where(y != 0, np.abs(y), 1.0)
    ratio.stairs(1 + relative, edges, baseline=1 - relative, fill=True, color=REFERENCE_COLOUR, alpha=0.3)
    ratios = {title: curves[title].over(reference) for title in titles[1:]}
    ratio.set_ylim(*(limits or ratio_range([*ratios.values(), Curve(reference.x, 1 + relative, relative)])))
    main.margins(y=0.15)
    for title in titles[1:]:
        look, curve = look_of(titles, title), curves[title]
        if curve.seeds > 1:
            band(main, curve, edges, look)
            band(ratio, ratios[title], edges, look)
            continue
        main.errorbar(curve.x, curve.y, curve.error, fmt=look.marker, color=look.colour, markersize=4, elinewidth=1)
        points(ratio, ratios[title], look)
    main.set_xlim(edges[0], edges[-1])
    if is_logarithmic(edges):
        ratio.set_xscale("log")


def ratio_range(ratios: Sequence[Curve]) -> tuple[float, float]:
    """A range around 1 that shows the points of some ratios, from 0.2 % to 50 %."""
    far = [np.nanmax(np.abs(r.y - 1) + r.error) for r in ratios if np.isfinite(r.y).any()]
    half = 1.2 * float(np.clip(max(far, default=0.1), 0.002, 0.4))
    return 1 - half, 1 + half


def condition_axis(condition: Condition) -> tuple[float, str]:
    """Factor and label for a condition on an axis: energies in GeV."""
    if condition.unit == "MeV":
        return 1e-3, r"$E_\mathrm{inc}$ [GeV]"
    names = {"Omega_m": r"$\Omega_m$", "sigma_8": r"$\sigma_8$"}
    return 1.0, names.get(condition.name, condition.name) + (f" [{condition.unit}]" if condition.unit else "")


def grid_of(
    report: Report, count: int, columns: int = 4, size: tuple[float, float] = (3.0, 2.9), left: float = 0.58
) -> tuple[Figure, list[Place]]:
    """A figure with a legend and room for some panels below it, and their places.

    Panels of one size need no layout engine, which would measure every tick twice.

    Args:
        report: What is drawn; its names decide the size of the legend, which is drawn as well.
        count: Number of panels.
        columns: Panels side by side, at most.
        size: Width and height of a panel with its labels, in inches.
        left: Room for the labels of the vertical axis, in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    width = size[0] * columns + 0.1
    figure = Figure(figsize=(width, size[1] * rows + legend_height(report, width)))
    legend(figure, report)
    inner = (size[0] - left - 0.12, size[1] - 0.48 - 0.26)
    corners = [(k // columns, k % columns) for k in range(count)]
    return figure, [
        Place(i, j, (j * size[0] + left, (rows - 1 - i) * size[1] + 0.48, inner[0], inner[1])) for i, j in corners
    ]


def matrices(found: Mapping[str, Array], ticks: Sequence[int], labels: Sequence[str], *, turned: bool) -> Figure:
    """Correlation matrices of all sides and their differences from the reference.

    One row for one surrogate; of several the differences are in a second one.
    """
    titles = list(found)
    several = len(titles) > 2
    columns = len(titles) if several else 3
    height = 6.4 if turned else 5.6  # turned labels need room below
    figure = Figure(figsize=(4.3 * columns, height * (1 + several)), layout="constrained")
    panels = figure.subplots(1 + several, columns, squeeze=False)
    differences = {f"{t} - {titles[0]}": found[t] - found[titles[0]] for t in titles[1:]}
    limit = max([0.1, *(float(np.quantile(np.abs(d), 0.999)) for d in differences.values())])
    shown = [(panels[0, k], title, matrix, 1.0) for k, (title, matrix) in enumerate(found.items())]
    rest = panels[1, 1:] if several else panels[0, 2:]
    shown += [(axes, title, d, limit) for axes, (title, d) in zip(rest, differences.items(), strict=True)]
    if several:
        panels[1, 0].set_axis_off()
    for axes, title, matrix, scale in shown:
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", rasterized=True)
        axes.set_title(title)
        first = axes in (panels[0, 0], rest[0]) if several else axes is panels[0, 0]
        axes.set_xticks(ticks, labels, rotation=90 if turned else 0, fontsize=6.5)
        axes.set_yticks(ticks, labels if first else [], fontsize=6.5)
        axes.tick_params(length=0)
        extend = "neither" if title in titles else "both"
        bar = figure.colorbar(image, ax=axes, shrink=0.8, location="bottom", extend=extend)
        bar.set_label("correlation" if title in titles else "difference", loc="center")
    return figure


def log_norm(images: Sequence[Array], decades: float = 6.0) -> LogNorm:
    """A logarithmic colour scale shared by some images."""
    filled = np.concatenate([i[i > 0].ravel() for i in images])
    high = float(filled.max()) if len(filled) else 1.0
    low = max(float(filled.min()), high * 10**-decades) if len(filled) else 0.1
    return LogNorm(low, high if high > low else low * 10)
