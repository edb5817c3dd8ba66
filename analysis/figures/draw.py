"""All figures of a report, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from ..report import Report
from . import values as views
from .panels import Drawing, draw_histograms, grid_of, matrices, ratio_panels, style


def draw(report: Report) -> Iterator[Drawing]:
    """All figures of a report, one at a time."""
    common: tuple[Callable[[Report], Iterator[Drawing]], ...] = (_observables, _spectrum, _correlations, _overview)
    if report.family.kind == "map":
        from .maps import draw_maps as first
    else:
        from .showers import draw_showers as first
    from .training import draw_training as last

    for make in (first, *common, last):
        drawings = make(report)
        while True:
            with style():
                drawing = next(drawings, None)
            if drawing is None:
                break
            yield drawing


# ------------------------------------------------------------------------------------------------ for every family
def _groups(report: Report) -> Iterator[tuple[str, str, list[str]]]:
    """Observables that belong on one figure: file name, title, names."""
    family, known = report.family, report.observables
    if family.kind == "map":
        yield "observables-maps", "Map statistics", [n for n in known if not n.startswith("power_")]
        powers = [n for n in known if n.startswith("power_")]
        yield "observables-power", "Power in shells", powers[:: max(1, len(powers) // 8)][:8]
        return
    shown = [family.layer_numbers[p] for p in views.shown_layers(report)]
    whole = ["total_energy", "response", "occupancy", "depth", "shower_depth", "shower_depth_width"]
    whole += ["lateral_depth", "lateral_depth2"]
    yield "observables-shower", "Whole shower", [n for n in whole if n in known]
    for quantity, title in (("energy", "Layer energies"), ("fraction", "Layer energy fractions")):
        yield f"observables-{quantity}", title, [f"{quantity}_{n}" for n in shown]
    shapes = [f"{q}_{n}" for q in ("energy_ratio", "occupancy") for n in shown]
    yield "observables-cells", "Hottest cells and occupancy", shapes
    for quantity, title in (("centre", "Centres"), ("width", "Widths")):
        names = [f"{quantity}_{axis}_{n}" for axis in "xyr" for n in shown]
        yield f"observables-{quantity}", title, [n for n in names if n in known]


def _observables(report: Report) -> Iterator[Drawing]:
    for name, title, members in _groups(report):
        figure, places = grid_of(report, len(members), 4 if len(members) % 3 else 3)
        for member, place in zip(members, places, strict=True):
            main, ratio = ratio_panels(figure, place)
            draw_histograms(
                main, ratio, views.observable_histograms(report, member), report.observables[member].axis_label
            )
            if place.column == 0:
                main.set_ylabel("density")
                ratio.set_ylabel("ratio", loc="center")
        caption = (
            "All samples. Bins and ranges are fixed by the reference; shares beyond either end of the axis are above "
            "each panel: reference | generated. Lower panels: generated over reference; bands and bars are "
            "statistical uncertainties."
        )
        yield Drawing(name, title, caption, figure)


def _spectrum(report: Report) -> Iterator[Drawing]:
    found = views.spectra(report)
    filled = np.flatnonzero(sum(h.contents[1:-1] for h in found.values()))
    if not len(filled):
        return
    keep = slice(int(filled[0]), int(filled[-1]) + 1)
    figure, (place,) = grid_of(report, 1, size=(5.6, 4.6), left=0.75)
    main, ratio = ratio_panels(figure, place)
    word = "pixel" if report.family.kind == "map" else "voxel"
    label = r"pixel $1+\delta$" if word == "pixel" else f"voxel energy [{report.family.unit}]"
    draw_histograms(main, ratio, {t: views.rebinned(h, keep) for t, h in found.items()}, label, flow=False)
    main.set_yscale("log")
    shown = replace(views.rebinned(next(iter(found.values())), keep), decades=True).density
    shown = shown[shown > 0]
    main.set_ylim(max(shown.min() / 3, shown.max() * 1e-8), shown.max() * 5)
    main.set_ylabel(f"share of all {word}s per decade")
    ratio.set_ylabel("ratio", loc="center")
    empty = ", ".join(f"{title} {100 * h.contents[0] / max(h.total, 1):.2f} %" for title, h in found.items())
    caption = f"Spectrum of single {word}s over all samples. Zero or below the first bin: {empty}."
    yield Drawing("spectrum", f"{word.capitalize()} spectrum", caption, figure)


def _correlations(report: Report) -> Iterator[Drawing]:
    names, found = views.correlations(report)
    ticks = range(0, len(names), max(1, len(names) // 24))
    figure = matrices(found, ticks, [names[t] for t in ticks], turned=True)
    caption = "Pearson correlations between observables over all samples, and their difference."
    yield Drawing("correlations", "Correlations", caption, figure)


def _overview(report: Report) -> Iterator[Drawing]:
    for title in report.metrics:
        names, chosen, values, pulls = views.pulls(report, title)
        rows = np.arange(len(names))
        if len(names) > 50:
            rows = np.sort(np.argsort(-np.nan_to_num(np.nanmax(np.nan_to_num(pulls), axis=1)))[:40])
        figure = Figure(figsize=(2.6 + 1.15 * len(chosen), 1.2 + 0.2 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        limit = float(np.clip(np.nanmax(np.abs(pulls[rows]), initial=1.0), 5, 30))
        norm = TwoSlopeNorm(0.0, -limit, limit)
        image = axes.imshow(pulls[rows], cmap="RdBu_r", norm=norm, aspect="auto")
        for (i, j), pull in np.ndenumerate(pulls[rows]):
            colour = "white" if np.isfinite(pull) and abs(pull) > 0.6 * limit else "black"
            text = f"{values[rows[i], j]:.3f}" if np.isfinite(values[rows[i], j]) else "-"
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_yticks(np.arange(len(rows)), [names[r] for r in rows], fontsize=7)
        axes.set_xticks(np.arange(len(chosen)), [s.title for s in chosen], rotation=30, ha="right")
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="pull: (distance - floor) / uncertainty", shrink=0.6)
        note = " The 40 observables with the largest pulls." if len(rows) < len(names) else ""
        caption = (
            f"Wasserstein distance between {title} and reference in units of the reference's standard deviation "
            f"(numbers), and how far it is above the floor in uncertainties (colours).{note}"
        )
        suffix = "" if len(report.metrics) == 1 else f"-{title}"
        yield Drawing(f"distances{suffix}", f"Distances of {title}", caption, figure)
