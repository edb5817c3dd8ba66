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
from ..metrics.kinds import kind_of
from ..metrics.registry import Key, Metrics
from ..numbers import number, with_error
from ..origins import Costs, chosen_checkpoint
from ..report import Report
from .tables import SideBySide, cost_table, pull_text, unit_text, value_text
from .verdict import NEAR_FLOOR, verdict

_LONG = 12  # rows of a table that is folded
_OVERVIEW = "overview"  # what the names of the figures of the first screen begin with
_ROWS_SHOWN = 3000  # of one surrogate; more would make the page slow, metrics.json has them all


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
    rows: Sequence[Sequence[str]]
    caption: str

    @property
    def folded(self) -> bool:
        """Whether it is long, and unfolds when asked for."""
        return len(self.rows) > _LONG


def render(report: Report, figures: Sequence[tuple[str, str, str, bytes]]) -> str:
    """The page as HTML.

    Args:
        report: The report.
        figures: Name, title, caption and PNG of each figure.
    """
    rows = [(name, key, found[key]) for name, found in report.metrics.items() for key in _shown(found)]
    sources = {"reference": report.reference, **report.generated}
    if report.training is not None:
        sources["training"] = report.training
    drawn = [
        (name, title, caption, base64.b64encode(png).decode(), _shown_width(png))
        for name, title, caption, png in figures
    ]
    return _template().render(
        report=report,
        sides=list(_sides(report)),
        first=[figure for figure in drawn if figure[0].startswith(_OVERVIEW)],
        verdicts=[verdict(report, name) for name in report.metrics],
        tables=[table for table in _tables(report) if table.rows],
        figures=[figure for figure in drawn if not figure[0].startswith(_OVERVIEW)],
        glossary=_glossary(report),
        rows=rows,
        left_out=sum(map(len, report.metrics.values())) - len(rows),
        settings=_provenance([report.settings]),
        provenance={name: _provenance(side.provenance) for name, side in sources.items()},
        near=NEAR_FLOOR,
    )


def _sides(report: Report) -> Iterator[tuple[str, str]]:
    """Who is compared: the name of each side, and how many samples from where."""
    noun = kind_of(report.family).noun
    for name in (*report.metrics, "reference"):
        count = report.reference.count if name == "reference" else report.count(name)
        costs, seeds = report.costs.get(name, Costs()), report.seeds.get(name, ())
        facts = [f"{count:,} {noun}" + (f" of {len(seeds)} seeds" if seeds else ""), report.places.get(name, "")]
        facts += [costs.network or "", chosen_checkpoint(costs.best_step, costs.training_steps)]
        yield name, ", ".join(filter(None, facts))
    if report.training is not None:
        yield "training", f"{report.training.count:,} {noun}"


def _shown_width(png: bytes) -> int:
    """Width on the page in pixels, so that the text of small and large figures has one size; 0 if unknown."""
    return int(0.7 * int.from_bytes(png[16:20], "big"))  # the width field of the PNG header


# ------------------------------------------------------------------------------------------------ tables
def _tables(report: Report) -> Iterator[Table]:
    """All tables; those without rows are not shown."""
    if len(report.metrics) > 1:
        yield _side_by_side(SideBySide.of(report))
    caption = "Two-sample classifiers on held-out samples; the worst view counts."
    yield _metrics(report, ("auc", "auc/worst", "jsd"), "Classifiers", caption)
    controls = [
        (name, key, value_text(metric), pull_text(metric), "seen" if (metric.pull or 0) >= NEAR_FLOOR else "not seen")
        for name, found in report.classifications.items()
        for key, metric in found.controls.items()
    ]
    caption = "Reference changed on purpose against other reference samples: what these classifiers can see."
    yield Table("Positive controls", ("beside", "change/view", "AUC", "pull", ""), controls, caption)
    telling = [
        (name, observable, number(loss, 3))
        for name, found in report.classifications.items()
        for observable, loss in found.tell_tales
    ]
    caption = "AUC that the classifier on observables loses when one of them is shuffled."
    yield Table("What gives the surrogate away", ("generated", "observable", "loss"), telling, caption)
    caption = (
        "As measured by whatever machine did it: training with fitting and validations; samples that one process made "
        "and wrote in a second."
    )
    yield Table("Cost", *cost_table(report), caption)
    caption = (
        "An energy calibration made with generated showers and applied to the reference, or back: bias and resolution "
        "beside those of a calibration made with the side that it is applied to."
    )
    yield _metrics(report, ("calibration", "calibration_back"), "Downstream: calibration of the energy", caption)
    yield _resolution(report)


def _side_by_side(table: SideBySide) -> Table:
    rows = []
    for key, metrics in table.rows:
        cells = ["-" if m is None else f"{value_text(m)} ({pull_text(m)})" for m in metrics]
        rows.append((key, table.unit(metrics), table.floor(metrics), *cells))
    caption = "All samples: values with errors, pulls in brackets. The same table is in table.csv and table.tex."
    return Table("Side by side", ("metric", "unit", "floor", *table.names), rows, caption)


def _metrics(report: Report, quantities: Sequence[str], title: str, caption: str) -> Table:
    """All metrics of some quantities."""
    rows = [
        (name, key, value_text(m), with_error(m.floor, m.floor_error), pull_text(m), f"{m.n:,}", m.unit)
        for name, found in report.metrics.items()
        for key, m in found.select(*quantities).items()
    ]
    return Table(title, ("generated", "metric", "value", "floor", "pull", "n", "unit"), rows, caption)


def _resolution(report: Report) -> Table:
    words = {"core_resolution": "central 68 % / 2 median", "rms_resolution": "standard deviation / mean"}
    rows = []
    for kind, word in words.items():
        for title, fits in views.fits_of(report, kind).items():
            if fits:
                terms = [with_error(100 * value, 100 * error) for value, error in views.fit_terms(fits)]
                rows.append((word, title, *terms, ", ".join(f"{fit.chi2:.1f}/{fit.ndf}" for fit in fits)))
    header = ("resolution", "side", *(f"{name} [{unit}]" for name, unit in zip("abc", views.FIT_UNITS, strict=True)))
    header += ("chi2/ndf",)
    caption = (
        "Fits of a/\N{SQUARE ROOT}E \N{CIRCLED PLUS} b/E \N{CIRCLED PLUS} c to the resolution in bins of the incident "
        "energy. The error of a term at 0 is what one standard deviation allows."
    )
    return Table("Resolution", header, rows, caption)


def _glossary(report: Report) -> dict[str, dict[str, None]]:
    """By meaning, the names of what was measured; quantities that share a meaning share an entry."""
    entries: dict[str, dict[str, None]] = {}
    for key in (key for found in report.metrics.values() for key in found):
        name = f"{key.quantity.name}_N" if key.size else key.quantity.name
        entries.setdefault(key.quantity.meaning, {})[name] = None
    observables = reversed(report.observables.values())
    for observable in reversed({o.quantity: o for o in observables}.values()):  # the first layer stands for all
        entries.setdefault(observable.axis_label, {})[observable.name] = None
    return entries


def _shown(found: Metrics) -> list[Key]:
    """The keys in the table of all metrics, the largest pulls first."""
    return sorted(found, key=lambda key: -abs(found[key].pull or 0.0))[:_ROWS_SHOWN]


# ------------------------------------------------------------------------------------------------ provenance
def _provenance(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is common to all entries first, then how the rest varies: many files differ only by a seed."""
    # The history is drawn; hundreds of numbers would only hide the rest.
    flat = [dict(_flattened({k: v for k, v in entry.items() if k != "history"})) for entry in entries]
    merged: dict[str, str] = {}
    for key in dict.fromkeys(k for entry in flat for k in entry):
        values = list(dict.fromkeys(entry[key] for entry in flat if key in entry))
        more = f" ... ({len(values)} values)" if len(values) > 4 else ""
        merged[key] = ", ".join(values[:4]) + more
    return merged


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
    environment.globals |= {"number": number, "pull_text": pull_text, "unit_text": unit_text, "Key": Key}
    return environment.get_template("report.html")
