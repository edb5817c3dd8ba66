"""Figures of density maps: power spectrum and walls of maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import views
from .histograms import Selection
from .plots import Drawing, draw_curves, grid_of, log_norm, ratio_panels
from .report import Report


def draw_maps(report: Report) -> Iterator[Drawing]:
    """The figures that only maps have."""
    yield from _power(report)
    yield from _wall(report)


def _power(report: Report) -> Iterator[Drawing]:
    filled = [s for s in report.plan.selections if views.filled(report, s)]
    figure, places = grid_of(report, len(filled), 3, (3.6, 3.6), left=0.75)
    box = report.family.box_size > 0
    for place, selection in zip(places, filled, strict=True):
        main, ratio = ratio_panels(figure, place)
        _power_panel(report, selection, main, ratio)
        main.set_title(selection.title, loc="left")
        ratio.set_xlabel("k [h/Mpc]" if box else "k [1/pixel]")
        main.set_ylabel("P(k) [(Mpc/h)$^2$]" if box else "P(k) [pixel$^2$]")
        ratio.set_ylabel("ratio", loc="center")
    caption = (
        "Mean power spectrum of the maps' overdensity and its ratio to the reference. Uncertainties come from "
        "the scatter between realisations where they are known, else between maps."
    )
    yield Drawing("power", "Power spectrum", caption, figure)


def _power_panel(report: Report, selection: Selection, main: Axes, ratio: Axes) -> None:
    curves = views.power_spectra(report, selection)
    k = next(iter(curves.values())).x
    steps = np.sqrt(k[1:] * k[:-1])
    edges = np.concatenate([[k[0] ** 2 / steps[0]], steps, [k[-1] ** 2 / steps[-1]]])
    draw_curves(main, ratio, edges, curves)
    main.set_yscale("log")


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
