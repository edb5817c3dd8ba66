"""What a report says in rows and columns: the lines of a terminal, and surrogates side by side for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calogen.errors import plain

from ..metrics.distances import MEAN, SPREAD, W1_SD
from ..metrics.kinds import kind_of
from ..metrics.maps import Quarter
from ..metrics.measure import PROBLEMS
from ..metrics.registry import Key, Metric, Metrics
from ..numbers import PLUS_MINUS, amount, number, with_error
from ..report import Report
from ..survey.selections import ALL

SUMMARY_HEADER = ("generated", "metric", "value", "floor", "pull", "unit")
COSTS = {"parameters": "", "training_steps": "", "training_seconds": "s", "samples_per_second": "1/s"}


@dataclass(frozen=True)
class Row:
    """One line of the summary: which generated samples, which metric, and its key."""

    generated: str
    key: Key
    metric: Metric

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, key, value with error, floor, pull and unit as text for a table."""
        m = self.metric
        return self.generated, self.key, value_text(m), number(m.floor), pull_text(m), unit_text(m)


def value_text(metric: Metric, plus_minus: str = " ± ") -> str:
    """The value with its error; a count, a share or a cost, which have none, alone; a lower limit says so."""
    text = amount(metric.value) if metric.error is None else with_error(metric.value, metric.error, plus_minus)
    return f"≥ {text}" if metric.lower_limit else text


def pull_text(metric: Metric) -> str:
    """The pull with its sign; a dash where it is not defined."""
    return "-" if metric.pull is None else f"{metric.pull:+.1f}"


def unit_text(metric: Metric) -> str:
    """The unit, and of the permutation statistic which metric is the largest."""
    return metric.unit if metric.statistic is None else f"{metric.unit}, of {metric.statistic}"


def headline(report: Report, found: Metrics, *, binned: bool = True) -> list[Key]:
    """Keys of the metrics that matter first: headlines, then mean and spread of a few observables.

    Args:
        report: The report.
        found: Metrics of one of its surrogates.
        binned: Whether mean and spread are wanted in every bin; else of all samples.
    """
    shown, few = kind_of(report.family).shown, len(report.family.layers) <= 4
    if not report.plan.has_energy:
        shown = ("total_energy", *shown)
    known = report.observables.values()
    names = [o.name for o in known if o.quantity in shown and (few or o.layer is None)]
    chosen = (report.plan.selections[1:] if binned else ()) or report.plan.selections[:1]
    moments = [Key(q, name, selection) for q in (MEAN, SPREAD) for name in names for selection in chosen]
    return [*(key for key in found if _first(key)), *(key for key in moments if key in found)]


def _first(key: Key) -> bool:
    if isinstance(key.selection, Quarter):
        return key.quantity.in_quarters
    return key.quantity.headline and key.selection is ALL


def absent(metrics: Iterable[tuple[Key, Metric]]) -> bool:
    """Whether these are counts of something unphysical that there is none of."""
    return all(key.quantity.name in PROBLEMS and not metric.value for key, metric in metrics)


def worst(found: Metrics, count: int = 5) -> list[Key]:
    """The observables farthest from the reference: keys of ``w1_sd`` over all samples with the largest pulls."""
    distances = found.select(W1_SD, selection=ALL)
    return sorted(distances, key=lambda key: -distances[key].far)[:count]


def summary(report: Report) -> list[Row]:
    """The lines a terminal shows: overall numbers, then response and layer fractions in every bin, then the worst.

    See :data:`SUMMARY_HEADER` and :attr:`Row.cells`.
    """
    return [
        Row(name, key, found[key])
        for name, found in report.metrics.items()
        for key in [*headline(report, found), *worst(found)]
    ]


def cost_table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of what training and generating cost, of everything whose files say."""
    titles = [f"{key} [{unit}]".removesuffix(" []").replace("_", " ") for key, unit in COSTS.items()]
    rows = []
    for name, c in report.costs.items():
        if c.known():
            costs = (amount(getattr(c, key)) for key in COSTS)
            rows.append((name, c.network or "-", c.objective or "-", *costs, c.training_device or "-"))
    return ("generated", "network", "objective", *titles, "trained on"), rows


@dataclass(frozen=True)
class SideBySide:
    """Surrogates as columns.

    Attributes:
        names: The surrogates.
        rows: Key and, by surrogate, the metric; None where it has none. Costs, on the machines that did the work, come
            last, as values without error and floor.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]

    @classmethod
    def of(cls, report: Report) -> SideBySide:
        """The headline metrics of a report over all samples, and the five worst observables of each surrogate."""
        keys = {key: None for found in report.metrics.values() for key in headline(report, found, binned=False)}
        keys |= {key: None for found in report.metrics.values() for key in worst(found)}
        metrics = [(key, tuple(found.get(key) for found in report.metrics.values())) for key in keys]
        rows = [(str(key), row) for key, row in metrics if not absent((key, m) for m in row if m is not None)]
        for key, unit in COSTS.items():
            costs = [getattr(report.costs.get(name), key, None) for name in report.metrics]
            row = tuple(None if x is None else Metric(x, None, None, None, None, 1, unit) for x in costs)
            if any(row):
                rows.append((key, row))
        return cls(tuple(report.metrics), tuple(rows))

    @staticmethod
    def floor(metrics: Sequence[Metric | None]) -> str:
        """The floor of a row, or its range where sample sizes make it differ."""
        floors = sorted({number(m.floor, 3) for m in metrics if m is not None and m.floor is not None}, key=float)
        return " to ".join([floors[0], floors[-1]] if len(floors) > 1 else floors) or "-"

    @staticmethod
    def unit(metrics: Sequence[Metric | None]) -> str:
        """The unit of a row."""
        return next(m.unit for m in metrics if m is not None)

    def to_csv(self) -> str:
        """Full precision: metric, unit, then value, error, floor and pull of every surrogate."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        parts = ("value", "error", "floor", "pull")
        writer.writerow(["metric", "unit", *(_cell(f"{name} {part}") for name in self.names for part in parts)])
        for key, metrics in self.rows:
            cells = [None if m is None else getattr(m, part) for m in metrics for part in parts]
            writer.writerow([_cell(key), _cell(self.unit(metrics)), *cells])
        return stream.getvalue()

    def to_latex(self) -> str:
        """A ``tabular`` with values, errors and floors; needs no package."""
        lines = [rf"\begin{{tabular}}{{ll{'r' * (len(self.names) + 1)}}}", r"\hline"]
        lines.append(" & ".join(["metric", "unit", "floor", *map(_escaped, self.names)]) + r" \\")
        lines.append(r"\hline")
        for key, metrics in self.rows:
            cells = ["--" if m is None else f"${value_text(m, PLUS_MINUS)}$".replace("≥", r"\geq") for m in metrics]
            floor = self.floor(metrics)
            start = [_escaped(key), _escaped(self.unit(metrics)), "--" if floor == "-" else floor]
            lines.append(" & ".join([*start, *cells]) + r" \\")
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = plain(text).replace("\n", " ").replace("\t", " ")
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", **{letter: f"\\{letter}" for letter in "_%#&${}"}}
    return text.translate({ord(letter): escaped for letter, escaped in special.items()})
