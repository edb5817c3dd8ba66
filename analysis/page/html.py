"""One self-contained page: verdict, tables, figures, every metric, settings and provenance of both sides."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..figures import values as views
from ..metrics.conditioning import RESOLUTIONS
from ..metrics.distances import Metric
from ..numbers import amount, number, with_error
from ..origins import Costs
from ..report import Report
from .tables import SideBySide, pull_text
from .verdict import NEAR_FLOOR, verdict

_ROWS_SHOWN = 3000  # of one surrogate; more would make the page slow, metrics.json has them all
GLOSSARY = {
    "w1, w1_sd": "Wasserstein-1 distance of one observable, in its unit and in standard deviations of the reference.",
    "separation, separation_flow": "Separation power of two histograms as in the CaloChallenge: 0 equal, 1 disjoint; "
    "blind beyond the axis, or with under- and overflow as two more bins.",
    "chi2": "Chi-square per degree of freedom of the same histograms, with under- and overflow.",
    "mean, spread, core": "Generated over reference mean, standard deviation and half width of the central 68 %, minus "
    "1; for signed observables the difference of means in standard deviations.",
    "stochastic, noise, constant": "Terms of the fitted resolution a/\N{SQUARE ROOT}E \N{CIRCLED PLUS} b/E "
    "\N{CIRCLED PLUS} c (E in GeV), generated minus reference.",
    "score": "Mean of w1_sd over all observables and bins of the conditions.",
    "sliced_w1, emd_N": "Distances of whole samples: over random directions, and exact between sub-samples of N.",
    "correlation": "Root mean square difference of the correlation matrices of observables.",
    "fpd_N, kpd_N": "Fr\u00e9chet and kernel distance of observables (jetnet's definitions) with N samples a side.",
    "density, coverage": "How crowded with reference samples the generated ones lie, and how much of the reference has "
    "a generated neighbour (Naeem et al. 2020); 1 would be perfect.",
    "auc": "Area under the ROC curve of classifiers trained to tell generated from reference samples: 0.5 they cannot, "
    "1 they always can.",
    "jsd": "Jensen-Shannon divergence in bits as those classifiers estimate it: 0 equal, 1 disjoint.",
    "calibration, calibration_back": "What a user suffers who calibrates the energy with generated showers and applies "
    "that to the reference, and the other way round: shift of the median, and relative loss of resolution.",
    "duplicates, near_duplicates": "Share of generated samples that repeat another one, exactly or nearly.",
    "training_copies, memorisation": "Share of generated samples that are training samples, and that are nearer to "
    "training samples than 99 % of held-out ones; memorisation_p is the p-value of being no nearer.",
    "tail_low, tail_high, quantile_low, quantile_high": "Share beyond the reference's 0.1 % and 99.9 % quantiles, and "
    "how far those quantiles differ, in standard deviations.",
    "early_conversion, late_conversion": "Share of showers shallower or deeper than 99 % of the reference's.",
    "power_rms, power_worst, power_scatter": "Generated over reference mean P(k) minus 1, root mean square over the "
    "first 16 shells and the largest of them, and the same of the scatter of P(k) between maps; [q1] to [q4] are the "
    "quarters of the conditions' plane.",
    "power_correlation, power_covariance": "Difference of P(k)'s correlation and covariance matrices over the norm of "
    "the reference's.",
    "peak_counts, bispectrum_rms": "Relative deviation of the number of peaks in bins of height, and of the "
    "equilateral bispectrum, root mean square.",
    "minkowski_N": "Area (0), boundary (1) and Euler number (2) of the regions above thresholds: deviation over the "
    "largest value.",
    "slope, slope_ratio, slope_rms": "How ln P(k) depends on a condition: difference of the slope, ratio minus 1, and "
    "root mean square over shells.",
    "inferred_bias, inferred_scatter, inferred_slope": "A condition inferred from single generated maps by a "
    "regression trained with reference maps: shift, relative scatter, and relative response to the true value, "
    "against the reference's own.",
    "cross_power, cross_copies": "How alike two generated maps are once shifted to fit, beside two reference maps; "
    "share of pairs more alike than 99 % of the reference's.",
    "overall": "The largest of all pulls; overall_p how often chance gives a larger one.",
}


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title: Above it.
        header: Names of the columns.
        rows: Cells as text.
        caption: Below it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


def render(report: Report, figures: Sequence[tuple[str, str, str, bytes]]) -> str:
    """The page as HTML.

    Args:
        report: The report.
        figures: Name, title, caption and PNG of each figure.
    """
    rows = [row for name, found in report.metrics.items() for row in _rows(name, found)]
    total = sum(len(found) for found in report.metrics.values())
    sources = {"reference": report.reference, **report.generated}
    if report.training is not None:
        sources["training"] = report.training
    return _template().render(
        report=report,
        verdicts=[verdict(report, name) for name in report.metrics],
        tables=list(_tables(report)),
        figures=[
            {"name": n, "title": t, "caption": c, "image": base64.b64encode(png).decode(), "width": _shown_width(png)}
            for n, t, c, png in figures
        ],
        glossary=_glossary(report),
        header=("generated", "metric", "observable", "bin", *_NUMBERS, "pull", "n", "unit"),
        rows=rows,
        left_out=total - len(rows),
        settings=_provenance([report.settings]),
        provenance={name: _provenance(side.provenance) for name, side in sources.items()},
        several=len(report.metrics) > 1,
        near=NEAR_FLOOR,
    )


def _shown_width(png: bytes) -> int:
    """Width on the page in pixels, so that the text of small and large figures has one size; 0 if unknown."""
    return int(0.7 * int.from_bytes(png[16:20], "big"))  # the width field of the PNG header


# ------------------------------------------------------------------------------------------------ tables
def _tables(report: Report) -> Iterator[Table]:
    if len(report.metrics) > 1:
        yield _side_by_side(SideBySide.of(report))
    if any(key.startswith("auc/") for found in report.metrics.values() for key in found):
        yield from _classifiers(report)
    yield from _costs(report)
    yield from _calibration(report)
    if report.fits:
        yield _resolution(report)


def _side_by_side(table: SideBySide) -> Table:
    rows = []
    for key, metrics in table.rows:
        unit = table.unit(metrics)
        cells = ["-" if m is None else f"{with_error(m.value, m.error)} ({pull_text(m)})" for m in metrics]
        rows.append((f"{key} [{unit}]" if unit else key, table.floor(metrics), *cells))
    for key, unit, numbers in table.costs:
        rows.append((f"{key} [{unit}]" if unit else key, "-", *map(amount, numbers)))
    caption = "All samples: values with errors, pulls in brackets. The same table is in table.csv and table.tex."
    return Table("Side by side", ("metric", "floor", *table.names), tuple(rows), caption)


def _costs(report: Report) -> Iterator[Table]:
    known = {name: costs for name, costs in report.costs.items() if costs.known()}
    rows = [
        (name, c.network or "-", c.objective or "-", *map(amount, _numbers_of(c)), c.training_device or "-")
        for name, c in known.items()
    ]
    if rows:
        header = ("generated", "network", "objective", "parameters", "steps", "training [s]", "samples/s", "trained on")
        caption = (
            "As measured by whatever machine did it: training with fitting and validations; samples that one process "
            "made and wrote in a second."
        )
        yield Table("Cost", header, tuple(rows), caption)


def _numbers_of(costs: Costs) -> tuple[float | None, ...]:
    return costs.parameters, costs.training_steps, costs.training_seconds, costs.samples_per_second


def _classifiers(report: Report) -> Iterator[Table]:
    rows: list[tuple[str, ...]] = []
    for name, found in report.metrics.items():
        for key, metric in found.items():
            kind, _, view = key.partition("/")
            if kind in ("auc", "jsd"):
                values = (with_error(metric.value, metric.error), with_error(metric.floor, metric.floor_error))
                rows.append((name, kind, view.replace("_", " "), *values, pull_text(metric), f"{metric.n:,}"))
    header = ("generated", "quantity", "view", "value", "reference against reference", "pull", "n")
    caption = "Two-sample classifiers on held-out samples; the worst view counts."
    yield Table("Classifiers", header, tuple(rows), caption)
    controls: list[tuple[str, ...]] = []
    telling: list[tuple[str, ...]] = []
    for name, found_by in report.classifications.items():
        telling += [(name, observable, number(value, 3)) for observable, value in found_by.tell_tales]
        for key, metric in found_by.controls.items():
            cells = (key, with_error(metric.value, metric.error), pull_text(metric))
            controls.append((name, *cells, "seen" if (metric.pull or 0) >= NEAR_FLOOR else "not seen"))
    if controls:
        caption = "Reference changed on purpose against other reference samples: what these classifiers can see."
        yield Table("Positive controls", ("beside", "change/view", "AUC", "pull", ""), tuple(controls), caption)
    if telling:
        caption = "AUC that the classifier on observables loses when one of them is shuffled."
        yield Table("What gives the surrogate away", ("generated", "observable", "loss"), tuple(telling), caption)


def _calibration(report: Report) -> Iterator[Table]:
    rows = [
        (name, key, with_error(m.value, m.error), number(m.floor, 3), pull_text(m), m.unit)
        for name, found in report.metrics.items()
        for key, m in found.items()
        if key.startswith("calibration")
    ]
    if rows:
        caption = (
            "An energy calibration made with generated showers and applied to the reference, or back: bias and "
            "resolution beside those of a calibration made with the side that it is applied to."
        )
        header = ("generated", "metric", "value", "floor", "pull", "unit")
        yield Table("Downstream: calibration of the energy", header, tuple(rows), caption)


def _resolution(report: Report) -> Table:
    words = {"core_resolution": "central 68 % / 2 median", "rms_resolution": "standard deviation / mean"}
    rows = []
    for kind in RESOLUTIONS:
        for title, fits in views.fits_of(report, kind).items():
            if fits:
                terms = [with_error(100 * value, 100 * error) for value, error in views.fit_terms(fits)]
                quality = ", ".join(f"{fit.chi2:.1f}/{fit.ndf}" for fit in fits)
                rows.append((words[kind], title, *terms, quality))
    header = ("resolution", "side", "a [% \N{SQUARE ROOT}GeV]", "b [% GeV]", "c [%]", "chi2/ndf")
    caption = (
        "Fits of a/\N{SQUARE ROOT}E \N{CIRCLED PLUS} b/E \N{CIRCLED PLUS} c to the resolution in bins of the incident "
        "energy. The error of a term at 0 is what one standard deviation allows."
    )
    return Table("Resolution", header, tuple(rows), caption)


def _glossary(report: Report) -> dict[str, str]:
    """The entries of quantities that this report has."""
    known = {_quantity(key) for found in report.metrics.values() for key in found}
    return {names: text for names, text in GLOSSARY.items() if known.intersection(names.split(", "))}


def _quantity(key: str) -> str:
    kind = key.partition("/")[0]
    stem, _, size = kind.partition("[")[0].rpartition("_")
    return f"{stem}_N" if size.isdigit() else kind.partition("[")[0]


_NUMBERS = ("value", "error", "floor", "floor_error")


def _rows(name: str, found: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Rows of the table of all metrics: text to read and numbers to sort by."""
    keys = sorted(found, key=lambda k: -abs(found[k].pull or 0.0))[:_ROWS_SHOWN]
    rows = []
    for key in keys:
        metric = found[key]
        quantity, _, selection = key.partition("[")
        kind, _, where = quantity.partition("/")
        words = (name, kind, where, selection.rstrip("]") or "all")
        values = [getattr(metric, part) for part in _NUMBERS]
        cells = [{"text": word} for word in words]
        cells += [{"text": number(x, 3), "value": "" if x is None else f"{x:.6g}"} for x in values]
        pull = metric.pull
        cells += [{"text": pull_text(metric), "value": "" if pull is None else f"{pull:.3f}"}]
        cells += [{"text": f"{metric.n}", "value": f"{metric.n}"}, {"text": metric.unit}]
        rows.append({"cells": cells, "far": pull is not None and abs(pull) >= NEAR_FLOOR})
    return rows


# ------------------------------------------------------------------------------------------------ provenance
def _provenance(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is common to all entries first, then how the rest varies: many files differ only by a seed."""
    # The history is drawn; hundreds of numbers would only hide the rest.
    flat = [dict(_flattened({k: v for k, v in entry.items() if k != "history"})) for entry in entries]
    merged: dict[str, str] = {}
    for key in dict.fromkeys(k for entry in flat for k in entry):
        values = list(dict.fromkeys(entry[key] for entry in flat if key in entry))
        more = f" ... ({len(values)} values)" if len(values) > 4 else ""
        merged[key] = ", ".join(values[:4]) + more
    return [{"key": k, "value": v} for k, v in merged.items()]


def _flattened(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in entry.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("calogen.analysis.page", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html")
