"""Figures of calorimeter showers: response, layers, mean and single showers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calogen.families import CartesianLayer, Layer

from ..metrics.conditioning import HeldOut, mean_of, relative_core, relative_spread
from ..report import Report
from ..survey.selections import Selection
from . import values as views
from .panels import (
    Drawing,
    condition_axis,
    draw_curves,
    draw_histograms,
    grid_of,
    log_norm,
    look_of,
    matrices,
    ratio_panels,
)

Array = NDArray[np.float64]


def draw_showers(report: Report) -> Iterator[Drawing]:
    """The figures that only showers have; those against the incident energy only where every side knows it."""
    energy = (_response, _by_energy, _held_out) if report.plan.has_energy else ()
    for make in (*energy, _longitudinal, _radial, _mean_showers, _examples, _voxel_correlations):
        yield from make(report)


def _response(report: Report) -> Iterator[Drawing]:
    condition = report.family.conditions[0]
    factor, label = condition_axis(condition)
    figure, places = grid_of(report, 3, 3, (4.1, 4.2), left=0.8)
    panels = (
        (mean_of, "", r"mean response $\langle E_\mathrm{tot}/E_\mathrm{inc} \rangle$"),
        (relative_core, "core_resolution", "resolution: central 68 % / 2 median"),
        (relative_spread, "rms_resolution", "resolution: st. dev. / mean"),
    )
    for place, (statistic, kind, title) in zip(places, panels, strict=True):
        main, ratio = ratio_panels(figure, place)
        edges, curves = views.condition_curves(report, "response", condition, statistic)
        draw_curves(main, ratio, edges * factor, {t: replace(c, x=c.x * factor) for t, c in curves.items()})
        main.set_ylabel(title)
        main.ticklabel_format(axis="y", useOffset=False)
        if kind:
            _draw_fits(main, report, kind, edges, factor)
        for gap in [
            s for s in report.plan.selections if isinstance(s, HeldOut) and s.inside and s.held == condition.name
        ]:
            for axes in (main, ratio):
                axes.axvspan(gap.low * factor, gap.high * factor, color="#c98a00", alpha=0.08, linewidth=0)
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
            0.97, 0.96 - 0.062 * row, text, color=colour, fontsize=7, ha="right", va="top", transform=main.transAxes
        )


def _by_energy(report: Report) -> Iterator[Drawing]:
    bins = [s for s in report.plan.selections[1:] if not isinstance(s, HeldOut)]
    labelled = [c.name for c in report.family.conditions if c.labels and any(s.condition == c.name for s in bins)]
    others = "".join(f" and for each {name}" for name in labelled)
    caption = f"Response and energy fractions of layers in bins of the incident energy{others}."
    yield from _in_selections(report, bins, "by-energy", f"In bins of incident energy{others}", caption)


def _held_out(report: Report) -> Iterator[Drawing]:
    gaps = [s for s in report.plan.selections if isinstance(s, HeldOut)]
    caption = "Response and energy fractions of layers inside ranges that training left out, and outside."
    yield from _in_selections(report, gaps, "held-out", "Inside and outside held-out ranges", caption)


def _in_selections(
    report: Report, selections: Sequence[Selection], file: str, title: str, caption: str
) -> Iterator[Drawing]:
    layers = [report.family.layer_numbers[p] for p in views.shown_layers(report)][:4]
    names = ["response", *(f"fraction_{n}" for n in layers)]
    filled = [s for s in selections if views.filled(report, s)]
    if not filled:
        return
    figure, places = grid_of(report, len(names) * len(filled), len(filled), (2.9, 2.75))
    for k, place in enumerate(places):
        name, selection = names[k // len(filled)], filled[k % len(filled)]
        main, ratio = ratio_panels(figure, place)
        found = views.observable_histograms(report, name, selection)
        draw_histograms(main, ratio, found, report.observables[name].axis_label)
        if k < len(filled):
            main.set_title(selection.title, loc="left", pad=12)
        if k % len(filled) == 0:
            main.set_ylabel("density")
            ratio.set_ylabel("ratio", loc="center")
    yield Drawing(file, title, caption, figure)


def _longitudinal(report: Report) -> Iterator[Drawing]:
    if len(report.family.layers) < 2:
        return
    curves = views.longitudinal(report)
    figure, (place,) = grid_of(report, 1, size=(5.6, 4.4), left=0.75)
    main, ratio = ratio_panels(figure, place)
    edges = np.arange(len(report.family.layers) + 1, dtype=np.float64) - 0.5
    draw_curves(main, ratio, edges, curves)
    main.set_yscale("log")
    shares = np.concatenate([curve.y[curve.y > 0] for curve in curves.values()])
    main.set_ylim(0.4 * shares.min(), 2.5 * shares.max())  # no point on the frame
    main.set_ylabel(r"mean $E_i\,/\,E_\mathrm{tot}$")
    ratio.set_ylabel("ratio", loc="center")
    ratio.set_xlabel("layer")
    numbers = report.family.layer_numbers
    step = max(1, len(numbers) // 12)
    ratio.set_xticks(np.arange(0, len(numbers), step), [str(n) for n in numbers[::step]])
    caption = "Mean share of the deposited energy in each layer, all showers."
    yield Drawing("longitudinal", "Longitudinal profile", caption, figure)


def _radial(report: Report) -> Iterator[Drawing]:
    profiles = views.radial(report)
    figure, places = grid_of(report, len(profiles), 3 if len(profiles) % 4 else 4, (3.7, 3.6), left=0.75)
    for profile, place in zip(profiles, places, strict=True):
        main, ratio = ratio_panels(figure, place)
        draw_curves(main, ratio, profile.edges, profile.curves)
        main.set_yscale("log")
        if len(shown := np.concatenate([c.y[c.y > 0] for c in profile.curves.values()])):
            main.set_ylim(shown.min() / 3, shown.max() * 4)
        main.set_title(profile.title, loc="left")
        ratio.set_xlabel("r [mm]")
        if place.column == 0:
            main.set_ylabel(r"$\langle \mathrm{d}E/\mathrm{d}r \rangle\,/\,E_\mathrm{inc}$ [1/mm]")
            ratio.set_ylabel("ratio", loc="center")
    caption = (
        "Mean share of the incident energy by distance of a voxel's centre from the axis; bins follow the size of the "
        "voxels. Bands and bars are statistical uncertainties."
    )
    yield Drawing("radial", "Radial profile", caption, figure)


def _voxel_correlations(report: Report) -> Iterator[Drawing]:
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


def _mean_showers(report: Report) -> Iterator[Drawing]:
    positions = views.shown_layers(report)
    titles = list(views.sides(report))
    means = titles if len(titles) <= 3 else titles[:1]  # of many surrogates only the ratios
    columns = len(means) + len(titles) - 1
    figure = Figure(figsize=(3.3 * columns, 2.7 * len(positions) + 0.2), layout="constrained")
    grid = figure.add_gridspec(len(positions), columns)
    for row, position in enumerate(positions):
        layer, number = report.family.layers[position], report.family.layer_numbers[position]
        images = views.layer_images(report, position)
        norm = log_norm(list(images.values()))
        reference = images[titles[0]]
        panels: list[tuple[str, Array, Normalize, str]] = [(t, images[t], norm, "viridis") for t in means]
        for title in titles[1:]:
            ratio = np.divide(images[title], reference, out=np.full_like(reference, np.nan), where=(reference > 0))
            panels.append((f"{title} / {titles[0]}", ratio, TwoSlopeNorm(1.0, 0.5, 1.5), "PuOr_r"))
        drawn: dict[str, tuple[QuadMesh, list[Axes]]] = {}
        for column, (title, image, scale, colours) in enumerate(panels):
            axes = layer_axes(figure, grid[row, column], layer)
            mesh = draw_layer(axes, layer, image, scale, colours)
            axes.set_title(f"layer {number}: {title}")
            text = "ratio" if column >= len(means) else f"mean energy [{report.family.unit}]"
            drawn.setdefault(text, (mesh, []))[1].append(axes)
        for text, (mesh, together) in drawn.items():  # one scale, one bar
            extend = "both" if text == "ratio" else "neither"
            figure.colorbar(mesh, ax=together, label=text, extend=extend).minorticks_off()
    caption = "Mean energy of each voxel over all showers, on one logarithmic scale a layer, and the ratio."
    yield Drawing("mean-showers", "Mean showers", caption, figure)


def _examples(report: Report) -> Iterator[Drawing]:
    sides = {title: surveys[0] for title, surveys in views.sides(report).items()}
    titles = list(sides)[:3]
    positions = views.shown_layers(report)[:5]
    count = len(report.plan.targets)
    columns = count * len(titles)
    figure = Figure(figsize=(max(1.55 * columns, 6.0), 1.75 * len(positions) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(positions), columns)
    family = report.family
    for row, position in enumerate(positions):
        layer, cells = family.layers[position], family.layer_slices[position]
        shown = [sides[t].examples[0][:, cells] for t in titles]
        norm = log_norm([np.asarray(s, dtype=np.float64) for s in shown], 5.0)
        mesh = None
        panels: list[Axes] = []
        for column in range(columns):
            title, k = titles[column % len(titles)], column // len(titles)
            values, conditions = sides[title].examples
            axes = layer_axes(figure, grid[row, column], layer)
            panels.append(axes)
            image = values[k, cells].reshape(layer.shape).astype(np.float64)
            mesh = draw_layer(axes, layer, image, norm, "viridis")
            axes.set_xlabel("")
            axes.set_ylabel("")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"{title}\n{_energy(report, conditions[k])}", fontsize=7.5)
        panels[0].set_ylabel(f"layer {family.layer_numbers[position]}", loc="center")
        if mesh is not None:
            figure.colorbar(mesh, ax=panels, label=f"energy [{family.unit}]", fraction=0.02, pad=0.01)
    matched = "incident" if report.plan.has_energy else "deposited"
    caption = (
        f"Single showers, not averages: at some {matched} energies, the nearest shower of each side. "
        "White cells are empty."
    )
    yield Drawing("examples", "Single showers", caption, figure)


def _energy(report: Report, conditions: Array) -> str:
    if not len(conditions) or not np.isfinite(conditions[0]):
        return ""
    if not report.plan.has_energy:
        return f"{conditions[0]:.3g} {report.family.unit}"
    condition = report.family.conditions[0]
    factor, _ = condition_axis(condition)
    known = [c for c in report.family.conditions if c.name in report.reference.conditions]
    labels = [f" {c.labels[int(code)]}" for c, code in zip(known, conditions, strict=False) if c.labels]
    return f"{conditions[0] * factor:.3g} {'GeV' if factor != 1 else condition.unit}{''.join(labels)}"


def layer_axes(figure: Figure, place: matplotlib.gridspec.SubplotSpec, layer: Layer) -> Axes:
    """A panel for one layer."""
    return figure.add_subplot(place, projection=None if isinstance(layer, CartesianLayer) else "polar")


def draw_layer(axes: Axes, layer: Layer, image: Array, norm: Normalize, colours: str) -> QuadMesh:
    """One layer's cells where they are: x to the right and y up in mm, or sectors and (equally wide) rings."""
    palette = matplotlib.colormaps[colours].with_extremes(bad="white")
    if isinstance(norm, LogNorm):
        image = np.where(image > 0, image, np.nan)
    masked = np.ma.masked_invalid(image)
    if isinstance(layer, CartesianLayer):
        x, y = (np.linspace(-s / 2, s / 2, n + 1) for n, s in zip(layer.shape, layer.size, strict=True))
        mesh = axes.pcolormesh(x, y, masked.T, norm=norm, cmap=palette, rasterized=True)
        axes.set_aspect("equal")
        axes.set_xlabel("x [mm]")
        axes.set_ylabel("y [mm]")
        return mesh
    repeat = max(1, 60 // layer.n_alpha)  # straight edges would make few sectors a polygon
    alpha = np.linspace(-np.pi, np.pi, layer.n_alpha * repeat + 1)
    rings = np.arange(layer.shape[1] + 1)
    mesh = axes.pcolormesh(alpha, rings, np.repeat(masked, repeat, axis=0).T, norm=norm, cmap=palette, rasterized=True)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel(f"rings to r = {layer.r_edges[-1]:g} mm", fontsize=7, loc="center")
    return mesh
