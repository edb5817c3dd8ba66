"""All figures of a report: one list for showers, one for maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from calogen.errors import ConfigError, did_you_mean
from calogen.stages import counted

from ..observables.catalogue import voxel_of
from ..report import Report
from ..survey.selections import Selection
from . import maps, overview, showers, training
from . import values as views
from .panels import Drawing, beyond, draw_histograms, log_scale, matrices, ratio_grid, selection_title, styled

_TITLES = {  # of figures of observables, by what the observables name as their figure
    "shower": "Whole shower",
    "energy": "Layer energies",
    "fraction": "Layer energy fractions",
    "cells": "Hottest cells and occupancy",
    "centre": "Centres",
    "width": "Widths",
    "offset": "Centres from the axis",
    "hottest": "Hottest cells from the axis",
    "about-axis": "Energy about the axis",
    "maps": "Map statistics",
    "power": "Power in shells",
}


def draw(report: Report) -> Iterator[Drawing]:
    """All figures of a report, one at a time."""
    makers = FIGURES[report.family.kind].values()
    for make in counted("drawing", makers, len(makers)):
        yield from styled(make(report))


def draw_one(report: Report, name: str) -> Drawing:
    """One figure: the histograms of an observable with their ratio, or a figure of the report.

    Args:
        report: The report.
        name: Of the observable, ``response``, with a bin if wanted, ``response[1:25.75GeV]``; or of a figure, as its
            file is called.

    Raises:
        ConfigError: If there is neither.
    """
    observable, _, where = name.partition("[")
    bins = {selection.name: selection for selection in report.plan.selections}
    if observable in report.observables and (selection := bins.get(where.removesuffix("]"))) is not None:
        return next(styled(_single(report, observable, selection)))
    makers = FIGURES[report.family.kind]
    for make in [make for begin, make in makers.items() if name.startswith(begin)]:
        for drawing in styled(make(report)):
            if drawing.name == name:
                return drawing
    raise ConfigError(
        f"there is no observable or figure '{name}'",
        where="`figures`",
        expected="an observable, as in response, or a figure by the name of its file",
        found=name,
        hint=did_you_mean(observable, {*report.observables, *makers}),
    )


def _single(report: Report, name: str, selection: Selection) -> Iterator[Drawing]:
    """Histograms of one observable."""
    figure, ((main, ratio),) = ratio_grid(report, 1, size=(4.6, 4.0), more=beyond())
    draw_histograms(main, ratio, views.observable_histograms(report, name, selection), report.observables[name])
    if selection.name:
        main.set_title(selection_title(report.family, selection), loc="left", pad=12)
    caption = "Histograms on edges fixed by the reference, and generated over reference; statistical uncertainties."
    file = re.sub(r"[^\w.-]+", "-", f"{name}{selection.suffix}").strip("-")  # a name that every system allows
    yield Drawing(file, report.observables[name].axis_label, caption, figure)


def _observables(report: Report) -> Iterator[Drawing]:
    """Histograms of the observables, those of one figure together."""
    shown = {None, *(report.family.layer_numbers[p] for p in views.shown_layers(report))}
    known = [o for o in report.observables.values() if o.figure and o.layer in shown]
    for name in dict.fromkeys(o.figure for o in known):
        mine = [o for o in known if o.figure == name]
        # All layers of one quantity, then the next: of centres and widths first every x, then y, then r.
        quantities = list(dict.fromkeys(o.quantity for o in mine))
        mine.sort(key=lambda o, order=quantities: order.index(o.quantity))  # type: ignore[misc]
        figure, panels = ratio_grid(report, len(mine), 4 if len(mine) % 3 else 3, (3.0, 2.9), more=beyond())
        for (main, ratio), observable in zip(panels, mine, strict=True):
            draw_histograms(main, ratio, views.observable_histograms(report, observable.name), observable)
        caption = (
            "All samples. Bins and ranges are fixed by the reference; shares beyond either end of the axis are above "
            "each panel: reference | generated. Lower panels: generated over reference; bands and bars are "
            "statistical uncertainties."
        )
        yield Drawing(f"observables-{name}", _TITLES.get(name, name.capitalize()), caption, figure)


def _spectrum(report: Report) -> Iterator[Drawing]:
    """Spectrum of single voxels or pixels."""
    found, voxel = views.spectra(report), voxel_of(report.family)
    if not any(h.contents[1:-1].any() for h in found.values()):
        return
    label = f"share of all {voxel.name}s per decade"
    figure, ((main, ratio),) = ratio_grid(report, 1, size=(5.6, 4.6), label=label)
    draw_histograms(main, ratio, found, voxel, flow=False)
    log_scale(main, [h.curve.y for h in found.values()], 8)
    empty = ", ".join(f"{title} {100 * h.flow[0]:.2f} %" for title, h in found.items())
    caption = f"Spectrum of single {voxel.name}s over all samples. Zero or below the first bin: {empty}."
    yield Drawing("spectrum", f"{voxel.name.capitalize()} spectrum", caption, figure)


def _correlations(report: Report) -> Iterator[Drawing]:
    """Correlations between observables."""
    names, found = views.correlations(report)
    ticks = range(0, len(names), max(1, len(names) // 24))
    figure = matrices(found, ticks, [report.observables[names[t]].label for t in ticks], turned=True)
    caption = "Pearson correlations between observables over all samples, and their difference."
    yield Drawing("correlations", "Correlations", caption, figure)


def _distances(report: Report) -> Iterator[Drawing]:
    """Every observable's distance in every selection, as a table in colours."""
    for title in report.metrics:
        names, chosen, values, pulls = views.pulls(report, title)
        rows = np.arange(len(names))
        if len(names) > 50:
            rows = np.sort(np.argsort(-np.nan_to_num(np.nanmax(np.nan_to_num(pulls), axis=1)))[:40])
        size = (3.6 + 1.15 * len(chosen), 1.4 + 0.2 * len(rows))
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12))
        axes = figure.add_subplot()
        limit = float(np.clip(np.nanmax(np.abs(pulls[rows]), initial=1.0), 5, 30))
        norm = TwoSlopeNorm(0.0, -limit, limit)
        image = axes.imshow(pulls[rows], cmap="RdBu_r", norm=norm, aspect="auto")
        for (i, j), pull in np.ndenumerate(pulls[rows]):
            colour = "white" if np.isfinite(pull) and abs(pull) > 0.6 * limit else "black"
            text = f"{values[rows[i], j]:.3f}" if np.isfinite(values[rows[i], j]) else "-"
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_yticks(np.arange(len(rows)), [report.observables[names[r]].label for r in rows], fontsize=7)
        axes.set_title("in the cells: distance [standard deviations of the reference]", loc="left", fontsize=8)
        axes.set_xticks(
            np.arange(len(chosen)), [selection_title(report.family, s) for s in chosen], rotation=30, ha="right"
        )
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="pull: (distance - floor) / uncertainty", shrink=0.6)
        note = " The 40 observables with the largest pulls." if len(rows) < len(names) else ""
        caption = (
            f"Wasserstein distance between {title} and reference in units of the reference's standard deviation "
            f"(numbers), and how far it is above the floor in uncertainties (colours).{note}"
        )
        suffix = "" if len(report.metrics) == 1 else f"-{title}"
        yield Drawing(f"distances{suffix}", f"Distances of {title}", caption, figure)


Figures = Mapping[str, Callable[[Report], Iterator[Drawing]]]
_COMMON: Figures = {
    "observables": _observables,
    "spectrum": _spectrum,
    "correlations": _correlations,
    "distances": _distances,
    "training-history": training.history,
}
FIGURES: Mapping[str, Figures] = {
    "calorimeter": {
        "overview": overview.overview,
        "response": showers.response,
        "by-energy": showers.by_energy,
        "held-out": showers.held_out,
        "longitudinal": showers.longitudinal,
        "radial": showers.radial,
        "mean-showers": showers.mean_showers,
        "examples": showers.examples,
        "voxel-correlations": showers.voxel_correlations,
        **_COMMON,
    },
    "map": {
        "overview": overview.overview,
        "maps": maps.wall,
        "field": maps.fields,
        "power": maps.power,
        "response": maps.responses,
        "pixels": maps.pixels,
        "peaks": maps.peaks,
        "bispectrum": maps.bispectrum,
        "minkowski": maps.minkowski,
        "inferred": maps.inferred,
        "cross": maps.cross,
        "power-correlations": maps.correlations,
        **_COMMON,
    },
}
"""Every figure of a report, in order, by what the names of its files begin with; to add one, add the function here."""
