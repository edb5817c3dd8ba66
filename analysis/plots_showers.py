"""Figures of calorimeter showers: response, layers, mean and single showers."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calogen.families import CartesianLayer, Layer

from . import views
from .plots import (
    Drawing,
    condition_axis,
    draw_curves,
    draw_histograms,
    grid_of,
    legend,
    log_norm,
    ratio_panels,
)
from .report import Report

Array = NDArray[np.float64]


def draw_showers(report: Report) -> Iterator[Drawing]:
    """The figures that only showers have; those against the incident energy only where every side knows it."""
    energy = (_response, _by_energy) if report.plan.has_energy else ()
    for make in (*energy, _longitudinal, _mean_showers, _examples):
        yield from make(report)


def _response(report: Report) -> Iterator[Drawing]:
    condition = report.family.conditions[0]
    factor, label = condition_axis(condition)
    figure, places = grid_of(3, 3, (4.1, 4.2), left=0.8)
    panels = (
        (views.mean_of, r"mean response $\langle E_\mathrm{tot}/E_\mathrm{inc} \rangle$"),
        (views.relative_core, "core resolution (central 68 %)"),
        (views.relative_spread, "resolution: st. dev. / mean"),
    )
    for place, (statistic, title) in zip(places, panels, strict=True):
        main, ratio = ratio_panels(figure, place)
        edges, curves = views.condition_curves(report, "response", condition, statistic)
        scaled = {t: views.Curve(c.x * factor, c.y, c.error) for t, c in curves.items()}
        draw_curves(main, ratio, edges * factor, scaled)
        main.set_ylabel(title)
        main.ticklabel_format(axis="y", useOffset=False)
        if statistic is not views.mean_of:
            main.set_ylim(bottom=0)
        ratio.set_ylabel("ratio", loc="center")
        ratio.set_xlabel(label)
    legend(figure, list(views.sides(report)))
    caption = (
        "Response and energy resolution against the incident energy. The central 68 % shows the core; the standard "
        "deviation includes rare showers that lose much of their energy, so it scatters with few showers."
    )
    yield Drawing("response", "Response and resolution", caption, figure)


def _by_energy(report: Report) -> Iterator[Drawing]:
    bins = report.plan.selections[1:]
    layers = [report.family.layer_numbers[p] for p in views.shown_layers(report)][:4]
    names = ["response", *(f"fraction_{n}" for n in layers)]
    filled = [s for s in bins if all(side.members(s).sum() > 1 for side in views.sides(report).values())]
    if not filled:
        return
    figure, places = grid_of(len(names) * len(filled), len(filled), (2.9, 2.75))
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
    legend(figure, list(views.sides(report)))
    caption = "Response and energy fractions of layers in bins of the incident energy."
    yield Drawing("by-energy", "In bins of incident energy", caption, figure)


def _longitudinal(report: Report) -> Iterator[Drawing]:
    if len(report.family.layers) < 2:
        return
    curves = views.longitudinal(report)
    figure, (place,) = grid_of(1, size=(5.6, 4.4), left=0.75)
    main, ratio = ratio_panels(figure, place)
    edges = np.arange(len(report.family.layers) + 1, dtype=np.float64) - 0.5
    draw_curves(main, ratio, edges, curves)
    main.set_yscale("log")
    main.set_ylabel(r"mean $E_i\,/\,E_\mathrm{tot}$")
    ratio.set_ylabel("ratio", loc="center")
    ratio.set_xlabel("layer")
    numbers = report.family.layer_numbers
    step = max(1, len(numbers) // 12)
    ratio.set_xticks(np.arange(0, len(numbers), step), [str(n) for n in numbers[::step]])
    legend(figure, list(curves))
    caption = "Mean share of the deposited energy in each layer, all showers."
    yield Drawing("longitudinal", "Longitudinal profile", caption, figure)


def _mean_showers(report: Report) -> Iterator[Drawing]:
    positions = views.shown_layers(report)
    titles = list(views.sides(report))
    columns = len(titles) + len(titles) - 1
    figure = Figure(figsize=(3.3 * columns, 2.7 * len(positions) + 0.2), layout="constrained")
    grid = figure.add_gridspec(len(positions), columns)
    for row, position in enumerate(positions):
        layer, number = report.family.layers[position], report.family.layer_numbers[position]
        images = views.layer_images(report, position)
        norm = log_norm(list(images.values()))
        reference = images[titles[0]]
        panels: list[tuple[str, Array, Normalize, str]] = [(t, images[t], norm, "viridis") for t in titles]
        for title in titles[1:]:
            ratio = np.divide(images[title], reference, out=np.full_like(reference, np.nan), where=(reference > 0))
            panels.append((f"{title} / {titles[0]}", ratio, TwoSlopeNorm(1.0, 0.5, 1.5), "PuOr_r"))
        for column, (title, image, scale, colours) in enumerate(panels):
            axes = _layer_axes(figure, grid[row, column], layer)
            mesh = _draw_layer(axes, layer, image, scale, colours)
            axes.set_title(f"layer {number}: {title}")
            is_ratio = column >= len(titles)
            text = "ratio" if is_ratio else f"mean energy [{report.family.unit}]"
            figure.colorbar(mesh, ax=axes, label=text, extend="both" if is_ratio else "neither")
    caption = "Mean energy of each voxel over all showers, on one logarithmic scale a layer, and the ratio."
    yield Drawing("mean-showers", "Mean showers", caption, figure)


def _examples(report: Report) -> Iterator[Drawing]:
    sides = views.sides(report)
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
            axes = _layer_axes(figure, grid[row, column], layer)
            panels.append(axes)
            image = values[k, cells].reshape(layer.shape).astype(np.float64)
            mesh = _draw_layer(axes, layer, image, norm, "viridis")
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
    return f"{conditions[0] * factor:.3g} {'GeV' if factor != 1 else condition.unit}"


def _layer_axes(figure: Figure, place: matplotlib.gridspec.SubplotSpec, layer: Layer) -> Axes:
    return figure.add_subplot(place, projection=None if isinstance(layer, CartesianLayer) else "polar")


def _draw_layer(axes: Axes, layer: Layer, image: Array, norm: Normalize, colours: str) -> QuadMesh:
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
