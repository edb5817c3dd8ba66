"""What a report says in rows and columns: the lines of a terminal, and surrogates side by side for a paper."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from calogen.errors import ConfigError, did_you_mean, plain

from ..metrics.distances import MEAN, SPREAD, W1_SD
from ..metrics.kinds import kind_of
from ..metrics.maps import Quarter
from ..metrics.measure import PROBLEMS
from ..metrics.registry import Key, Metric, Metrics
from ..numbers import amount, in_brackets, number, with_error
from ..origins import chosen_checkpoint
from ..report import Report
from ..survey.selections import ALL

SUMMARY_HEADER = ("generated", "metric", "value", "floor", "pull", "unit")
COSTS = {"parameters": "", "training_steps": "", "training_seconds": "s", "samples_per_second": "1/s"}
_UNITS = {"sd": r"$\sigma_\mathrm{ref}$"}
"""Units that a paper writes otherwise: standard deviations of the reference."""


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


def value_text(metric: Metric) -> str:
    """The value with its error; a count, a share or a cost, which have none, alone; a lower limit says so."""
    text = amount(metric.value) if metric.error is None else with_error(metric.value, metric.error)
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
    return key.quantity.headline and key.selection == ALL


def absent(metrics: Iterable[tuple[Key, Metric]]) -> bool:
    """Whether these are counts of something unphysical that there is none of."""
    return all(key.quantity.name in PROBLEMS and not metric.value for key, metric in metrics)


def worst(found: Metrics, count: int = 5) -> list[Key]:
    """The observables farthest from the reference: keys of ``w1_sd`` over all samples with the largest pulls."""
    distances = {key: metric for key, metric in found.select(W1_SD, selection=ALL).items() if not metric.exact}
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
            used = chosen_checkpoint(c.best_step, c.training_steps).removeprefix("best checkpoint: ")
            rows.append((name, c.network or "-", c.objective or "-", used or "-", *costs, c.training_device or "-"))
    return ("generated", "network", "objective", "checkpoint", *titles, "trained on"), rows


@dataclass(frozen=True)
class SideBySide:
    """Surrogates as columns.

    Attributes:
        names: The surrogates.
        rows: Key and, by surrogate, the metric; None where it has none. Costs, on the machines that did the work, come
            last, as values without error and floor.
        titles: Of rows for a paper, in LaTeX, by key.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]
    titles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Report, chosen: Sequence[str] = ()) -> SideBySide:
        """A table of a report's metrics.

        Args:
            report: The report.
            chosen: Keys of metrics, or names of observables, whose Wasserstein distance is meant, in order. None: the
                headline metrics over all samples, the five worst observables of each surrogate, and costs.

        Raises:
            ConfigError: If one is neither.
        """
        if chosen:
            keys = {key: None for text in chosen for key in _keys_of(report, text)}
        else:
            keys = {key: None for found in report.metrics.values() for key in headline(report, found, binned=False)}
            keys |= {key: None for found in report.metrics.values() for key in worst(found)}
        titles = {str(key): _latex_title(key, report) for key in keys}
        metrics = [(key, tuple(found.get(key) for found in report.metrics.values())) for key in keys]
        rows = [(str(key), row) for key, row in metrics if not absent((key, m) for m in row if m is not None)]
        for key, unit in COSTS.items() if not chosen else ():
            costs = [getattr(report.costs.get(name), key, None) for name in report.metrics]
            row = tuple(None if x is None else Metric(x, None, None, None, None, 1, unit) for x in costs)
            if any(row):
                rows.append((key, row))
        return cls(tuple(report.metrics), tuple(rows), titles)

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
        """A ``tabular`` with titles, units, values with errors in brackets, and floors; it needs booktabs."""
        columns = "l" + "r" * (len(self.names) + 1)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines.append(" & ".join(["", *map(_escaped, self.names), "floor"]) + r" \\")
        lines.append(r"\midrule")
        for key, metrics in self.rows:
            unit = _UNITS.get(self.unit(metrics)) or _escaped(self.unit(metrics))
            title = self.titles.get(key) or _escaped(key.replace("_", " "))
            floor = self.floor(metrics)
            cells = ["--" if m is None or m.value is None else _latex_value(m) for m in metrics]
            start = f"{title} [{unit}]" if unit else title
            lines.append(" & ".join([start, *cells, "--" if floor == "-" else f"${floor}$"]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_value(metric: Metric) -> str:
    """The value with its error in brackets behind it, in units of the last digits."""
    text = amount(metric.value) if metric.error is None else in_brackets(metric.value, metric.error)
    mantissa, power = re.fullmatch(r"(.*?)(?:e(-?\d+))?", text).groups()  # type: ignore[union-attr]
    shown = mantissa.replace(",", r"\,") + (rf" \times 10^{{{int(power)}}}" if power else "")
    return rf"$\geq {shown}$" if metric.lower_limit else f"${shown}$"


def _latex_title(key: Key, report: Report) -> str:
    """What a metric is, of which observable, where."""
    observable = report.observables.get(key.observable)
    of = _label(observable.label) if observable else _escaped(key.observable.replace("_", " "))
    where = "" if key.selection == ALL else _escaped(f", {key.selection.title}")
    size = f" ({key.size} samples)" if key.size else ""
    # the unit stands behind the title, in brackets
    title = _escaped(key.quantity.title.removesuffix(f" ({key.quantity.unit})").removesuffix(" in standard deviations"))
    return f"{of}, {title}{size}{where}" if of else f"{title}{size}{where}"


def _label(label: str) -> str:
    """An observable's label, which is text with mathtext in it, as LaTeX."""
    parts = label.split("$")
    return "".join(f"${part}$" if k % 2 else _escaped(part) for k, part in enumerate(parts))


def _keys_of(report: Report, text: str) -> list[Key]:
    """The metrics that a text means: a key, an observable, or what is observed in all layers."""
    known = {key: None for found in report.metrics.values() for key in found}
    if text in known:
        return [key for key in known if key == text]
    every = report.observables.values()
    named = [o.name for o in every if text in (o.name, o.quantity)] or [
        o.name for o in every if o.name.startswith(f"{text}_")
    ]
    if found := [key for name in named for key in known if key == Key(W1_SD, name)]:
        return found
    candidates = [*report.observables, *known]
    raise ConfigError(
        f"there is no metric or observable '{text}'",
        where="`table`",
        expected="keys of metrics.json, as in fpd_400, or observables, as in response",
        found=text,
        hint=did_you_mean(text, candidates),
    )


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = plain(text).replace("\n", " ").replace("\t", " ")
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", **{letter: f"\\{letter}" for letter in "_%#&${}"}}
    return text.translate({ord(letter): escaped for letter, escaped in special.items()})
