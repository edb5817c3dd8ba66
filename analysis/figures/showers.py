"""Figures of calorimeter showers: response, layers, mean and single showers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..metrics.conditioning import HeldOut, mean_of, relative_core, relative_spread
from ..report import Report
from ..survey.selections import Selection
from . import values as views
from .panels import (
    REFERENCE_COLOUR,
    Drawing,
    beyond,
    draw_curves,
    draw_frames,
    draw_histograms,
    draw_layer,
    explained,
    log_norm,
    log_scale,
    look_of,
    matrices,
    ratio_grid,
    selection_title,
    value_texts,
)

Array = NDArray[np.float64]
_HELD_OUT = "#fbf5ea"


def response(report: Report) -> Iterator[Drawing]:
    """Response and resolution against the incident energy, where every side knows it."""
    condition = report.family.energy
    if condition is None or not report.plan.has_energy:
        return
    factor, label = condition.axis
    statistics = (
        (mean_of, "", r"mean response $\langle E_\mathrm{tot}/E_\mathrm{inc} \rangle$"),
        (relative_core, "core_resolution", "resolution: central 68 % / 2 median"),
        (relative_spread, "rms_resolution", "resolution: st. dev. / mean"),
    )
    gaps = [s for s in report.plan.selections if isinstance(s, HeldOut) and s.inside and s.held == condition.name]
    more = [explained("fit: a/\u221aE \u2295 b/E \u2295 c, E in GeV", linestyle="-", color=REFERENCE_COLOUR)]
    if gaps:
        more.append(explained("held out of training", band=_HELD_OUT))
    figure, panels = ratio_grid(report, 3, 3, (4.3, 4.2), more=more)
    for (main, ratio), (statistic, kind, title) in zip(panels, statistics, strict=True):
        edges, curves = views.condition_curves(report, "response", condition, statistic)
        draw_curves(main, ratio, edges * factor, {t: replace(c, x=c.x * factor) for t, c in curves.items()})
        main.set_ylabel(title)
        main.ticklabel_format(axis="y", useOffset=False)
        if kind:
            _draw_fits(main, report, kind, edges, factor)
        for axes, gap in product((main, ratio), gaps):
            axes.axvspan(gap.low * factor, gap.high * factor, color=_HELD_OUT, linewidth=0, zorder=0)
        ratio.set_ylabel("ratio", loc="center")
        ratio.set_xlabel(label)
    caption = (
        "Response and energy resolution against the incident energy. Lines are fits of a/\u221aE \u2295 b/E \u2295 c "
        "with E in GeV, their terms in percent. The central 68 % shows the core; the standard deviation includes rare "
        "showers that lose much of their energy, so it scatters with few showers. Ranges held out of training are "
        "shaded."
    )
    yield Drawing("response", "Response and resolution", caption, figure)


def _draw_fits(main: Axes, report: Report, kind: str, edges: Array, factor: float) -> None:
    """The fitted curves, and their terms in the corner."""
    titles = list(views.sides(report))
    main.set_ylim(0, 1.45 * main.get_ylim()[1])  # room for the terms
    for title, curve in views.fit_curves(report, kind, edges).items():
        look = look_of(titles, title)
        main.plot(curve.x * factor, curve.y, color=look.colour, linewidth=1.0, linestyle=look.line)
    lines = [(title, views.fit_text(fits)) for title, fits in views.fits_of(report, kind).items() if fits][:5]
    for row, (title, text) in enumerate(lines):
        colour = look_of(titles, title).colour
        main.text(
            0.985, 0.97 - 0.055 * row, text, color=colour, fontsize=6.2, ha="right", va="top", transform=main.transAxes
        )


def by_energy(report: Report) -> Iterator[Drawing]:
    """Response and layer fractions in the bins of the conditions."""
    bins = [s for s in report.plan.selections[1:] if not isinstance(s, HeldOut)]
    labelled = [c.name for c in report.family.conditions if c.labels and any(s.condition == c.name for s in bins)]
    others = "".join(f" and for each {name}" for name in labelled)
    caption = f"Response and energy fractions of layers in bins of the incident energy{others}."
    yield from _in_selections(report, bins, "by-energy", f"In bins of incident energy{others}", caption)


def held_out(report: Report) -> Iterator[Drawing]:
    """The same inside and outside of ranges that training left out."""
    gaps = [s for s in report.plan.selections if isinstance(s, HeldOut)]
    caption = "Response and energy fractions of layers inside ranges that training left out, and outside."
    yield from _in_selections(report, gaps, "held-out", "Inside and outside held-out ranges", caption)


def _in_selections(
    report: Report, selections: Sequence[Selection], file: str, title: str, caption: str
) -> Iterator[Drawing]:
    layers = [report.family.layer_numbers[p] for p in views.shown_layers(report)][:4]
    names = ["response", *(f"fraction_{n}" for n in layers)]
    filled = [s for s in selections if views.filled(report, s)]
    if not filled or not report.plan.has_energy:
        return
    figure, panels = ratio_grid(report, len(names) * len(filled), len(filled), (2.9, 2.75), more=beyond())
    for (main, ratio), (name, selection) in zip(panels, product(names, filled), strict=True):
        draw_histograms(main, ratio, views.observable_histograms(report, name, selection), report.observables[name])
        if name == names[0]:
            main.set_title(selection_title(report.family, selection), loc="left", pad=12)
    yield Drawing(file, title, caption, figure)


def longitudinal(report: Report) -> Iterator[Drawing]:
    """Energy of the layers."""
    if len(report.family.layers) < 2:
        return
    curves = views.longitudinal(report)
    label = r"mean $E_i\,/\,E_\mathrm{tot}$"
    figure, ((main, ratio),) = ratio_grid(report, 1, size=(5.6, 4.4), label=label)
    edges = np.arange(len(report.family.layers) + 1, dtype=np.float64) - 0.5
    draw_curves(main, ratio, edges, curves)
    log_scale(main, [curve.y for curve in curves.values()])
    ratio.set_xlabel("layer")
    numbers = report.family.layer_numbers
    step = max(1, len(numbers) // 12)
    ratio.set_xticks(np.arange(0, len(numbers), step), [str(n) for n in numbers[::step]])
    caption = "Mean share of the deposited energy in each layer, all showers."
    yield Drawing("longitudinal", "Longitudinal profile", caption, figure)


def radial(report: Report) -> Iterator[Drawing]:
    """Energy by distance from the axis."""
    profiles = views.radial(report)
    label = r"$\langle \mathrm{d}E/\mathrm{d}r \rangle\,/\,E_\mathrm{inc}$ [1/mm]"
    figure, panels = ratio_grid(report, len(profiles), 3 if len(profiles) % 4 else 4, label=label)
    for (main, ratio), (title, (edges, curves)) in zip(panels, profiles.items(), strict=True):
        draw_curves(main, ratio, edges, curves)
        log_scale(main, [curve.y for curve in curves.values()])
        main.set_title(title, loc="left")
        ratio.set_xlabel("r [mm]")
    caption = (
        "Mean share of the incident energy by distance of a voxel's centre from the axis; bins follow the size of the "
        "voxels. Bands and bars are statistical uncertainties."
    )
    yield Drawing("radial", "Radial profile", caption, figure)


def voxel_correlations(report: Report) -> Iterator[Drawing]:
    """Correlations between voxels, of families small enough."""
    found = views.voxel_correlations(report)
    if not found:
        return
    starts = [cells.start for cells in report.family.layer_slices]
    figure = matrices(found, starts, [f"layer {n}" for n in report.family.layer_numbers], turned=False)
    caption = (
        "Pearson correlations between the energies of single voxels over the incident energy, and their difference; "
        "ticks are at the first voxel of each layer. Voxels that are rarely hit scatter most."
    )
    yield Drawing("voxel-correlations", "Correlations between voxels", caption, figure)


def mean_showers(report: Report) -> Iterator[Drawing]:
    """Mean energy of every voxel, layer by layer."""
    positions = views.shown_layers(report)
    titles = list(views.sides(report))
    means = titles if len(titles) <= 3 else titles[:1]  # of many surrogates only the ratios
    columns = len(means) + len(titles) - 1
    figure = Figure(figsize=(3.3 * columns, 2.7 * len(positions) + 0.2), layout="constrained")
    grid = figure.add_gridspec(len(positions), columns)
    for row, position in enumerate(positions):
        layer, number = report.family.layers[position], report.family.layer_numbers[position]
        images = views.layer_images(report, position)
        norm, reference = log_norm(list(images.values())), images[titles[0]]
        energy = f"mean energy [{report.family.unit}]"
        panels: list[tuple[str, Array, Normalize, str, str]] = [(t, images[t], norm, "viridis", energy) for t in means]
        for title in titles[1:]:
            ratio = np.divide(images[title], reference, out=np.full_like(reference, np.nan), where=(reference > 0))
            panels.append((f"{title} / {titles[0]}", ratio, TwoSlopeNorm(1.0, 0.5, 1.5), "PuOr_r", "ratio"))
        drawn: dict[str, list[Axes]] = {energy: [], "ratio": []}
        bars = {}
        for column, (title, image, scale, colours, text) in enumerate(panels):
            drawn[text].append(draw_layer(figure, grid[row, column], layer, image, scale, colours))
            drawn[text][-1].set_title(f"layer {number}: {title}")
            bars[text] = ScalarMappable(scale, colours)
        for text, together in drawn.items():  # one scale, one bar
            extend = "both" if text == "ratio" else "neither"
            figure.colorbar(bars[text], ax=together, label=text, extend=extend).minorticks_off()
    caption = "Mean energy of each voxel over all showers, on one logarithmic scale a layer, and the ratio."
    yield Drawing("mean-showers", "Mean showers", caption, figure)


def examples(report: Report) -> Iterator[Drawing]:
    """Single showers of every side."""
    sides = {title: surveys[0].examples for title, surveys in list(views.sides(report).items())[:3]}
    frames = list(product(range(len(report.plan.targets)), sides.items()))
    showers = np.stack([values[k] for k, (_, (values, _)) in frames])[None]
    known = [c for c in report.family.conditions if c.name in report.reference.conditions]
    titles = []
    for k, (title, (_, conditions)) in frames:
        deposited = [f"{energy:.3g} {report.family.unit}" for energy in conditions[k]]
        texts = value_texts(known, conditions[k]) if report.plan.has_energy else deposited
        titles.append("\n".join([title, *texts]))
    figure = draw_frames(report.family, showers, [titles], [""], views.shown_layers(report)[:5])
    matched = "incident" if report.plan.has_energy else "deposited"
    caption = (
        f"Single showers, not averages: at some {matched} energies, the nearest shower of each side. "
        "White cells are empty."
    )
    yield Drawing("examples", "Single showers", caption, figure)
