"""The figure of a report's first screen: one familiar quantity, and how far every surrogate is in the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics.conditioning import relative_core
from ..metrics.distances import W1_SD
from ..metrics.kinds import kind_of
from ..observables.maps import wave_numbers
from ..report import Report
from ..survey.selections import ALL
from . import values as views
from .panels import FILL, REFERENCE_COLOUR, Drawing, draw_curves, draw_histograms, look_of, middle_edges, ratio_grid

_SIZE = (5.2, 4.1)  # inches
_PLACE = (0.44, 0.12, 0.54, 0.78)  # of the panel of distances: room for names on the left
_ROWS = 10  # observables listed
_LONG = 36  # letters of a name beyond which it has two lines
_SHELLS = 4  # of them values of the power spectrum: neighbours vary together


def overview(report: Report) -> Iterator[Drawing]:
    """What a reader looks at first."""
    yield _familiar(report)
    yield _farthest(report)


def _familiar(report: Report) -> Drawing:
    """Resolution of showers, or their total energy where incident energies are not known; the spectrum of maps."""
    family = report.family
    if report.maps:
        length, area = ("h/Mpc", "(Mpc/h)$^2$") if family.box_size else ("1/pixel", "pixel$^2$")
        figure, ((main, ratio),) = ratio_grid(report, 1, size=_SIZE, label=f"P(k) [{area}]")
        k = wave_numbers(family)
        draw_curves(main, ratio, middle_edges(k), views.map_curves(report, "power", k), (0.75, 1.25))
        main.set_yscale("log")
        ratio.set(xlabel=f"k [{length}]", xscale="log")
        return Drawing("overview", "Power spectrum", "Mean power spectrum of all maps.", figure)
    if family.energy is not None and report.plan.has_energy:
        factor, label = family.energy.axis
        figure, ((main, ratio),) = ratio_grid(report, 1, size=_SIZE, label="resolution: central 68 % / 2 median")
        edges, curves = views.condition_curves(report, "response", family.energy, relative_core)
        draw_curves(main, ratio, edges * factor, {t: replace(c, x=c.x * factor) for t, c in curves.items()})
        ratio.set_xlabel(label)
        return Drawing(
            "overview", "Energy resolution", "Half the central 68 % of the response over its median.", figure
        )
    name = next(o for o in report.observables if o in ("total_energy", *kind_of(family).shown))
    figure, ((main, ratio),) = ratio_grid(report, 1, size=_SIZE)
    draw_histograms(main, ratio, views.observable_histograms(report, name), report.observables[name])
    return Drawing("overview", "Deposited energy", "All showers.", figure)


def _folded(label: str) -> str:
    """A long label in two lines."""
    at = label.rfind(", ") if len(label) > _LONG and "," in label else label.find(" (") if len(label) > _LONG else -1
    return label if at < 0 else f"{label[: at + 1].rstrip()}\n{label[at + 1 :].lstrip()}"


def _farthest(report: Report) -> Drawing:
    """Distances of the observables farthest above their floors, beside these floors."""
    found = {
        title: {key.observable: m for key, m in metrics.select(W1_SD, selection=ALL).items() if m.value is not None}
        for title, metrics in report.metrics.items()
    }
    varying = {name for metrics in found.values() for name, metric in metrics.items() if not metric.exact}
    pulls = {
        name: max(m[name].far for m in found.values() if name in m) for name in report.observables if name in varying
    }
    names = sorted(pulls, key=lambda name: -pulls[name])
    shells = [name for name in names if report.observables[name].wave_number][_SHELLS:]
    names = [name for name in names if name not in shells][:_ROWS][::-1]
    figure = Figure(figsize=_SIZE)
    figure.set_layout_engine("none")
    axes: Axes = figure.add_axes(_PLACE)
    titles, places = ["reference", *report.metrics], np.arange(len(names))
    offsets = np.linspace(0.25, -0.25, len(found)) if len(found) > 1 else [0.0]
    for offset, (title, metrics) in zip(offsets, found.items(), strict=True):
        look, known = look_of(titles, title), [(k, metrics[name]) for k, name in enumerate(names) if name in metrics]
        rows = np.array([k for k, _ in known])
        value, error, floor, spread = (
            np.array([getattr(m, part) or 0.0 for _, m in known]) for part in ("value", "error", "floor", "floor_error")
        )
        if offset == offsets[0]:
            axes.barh(rows, floor, height=0.8, color=FILL, label="floor: reference against itself")
            axes.errorbar(floor, rows, xerr=spread, fmt="none", ecolor=REFERENCE_COLOUR, elinewidth=0.8)
        axes.errorbar(value, rows + offset, xerr=error, fmt=look.marker, label=title, color=look.colour, markersize=4)
    axes.set_yticks(places, [_folded(report.observables[name].label) for name in names], fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("Wasserstein distance / standard deviation")
    figure.legend(loc="upper center", ncols=2)
    caption = (
        f"The {len(names)} observables farthest above their floors in uncertainties; distances in standard deviations "
        "of the reference. Where a point reaches the end of its bar within its error, the surrogate is as near as two "
        "reference samples are to each other."
    )
    return Drawing("overview-distances", "Farthest from the reference", caption, figure)
