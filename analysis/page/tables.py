"""What a report says in rows and columns: the lines of a terminal, and surrogates side by side for a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..metrics.distances import Metric
from ..numbers import PLUS_MINUS, amount, number, with_error
from ..report import Report

_IN_QUARTERS = ("power_rms[q", "power_worst[q", "w1_sd/pixel[q", "w1_sd/peak_height[q")
SUMMARY_HEADER = ("generated", "metric", "value", "floor", "pull", "unit")
COSTS = {"parameters": "", "training_steps": "", "training_seconds": "s", "samples_per_second": "1/s"}
COUNTS = ("voxels", "samples")  # units of metrics that count what is unphysical


@dataclass(frozen=True)
class Row:
    """One line of the summary: which generated samples, which metric, and its key."""

    generated: str
    key: str
    metric: Metric

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, key, value with error, floor, pull and unit as text for a table."""
        m = self.metric
        value = number(m.value) + (f" ± {number(m.error, 2)}" if m.error is not None else "")
        return self.generated, self.key, value, number(m.floor), pull_text(m), m.unit


def pull_text(metric: Metric) -> str:
    """The pull with its sign; a dash where it is not defined."""
    return "-" if metric.pull is None else f"{metric.pull:+.1f}"


def headline(report: Report, found: Mapping[str, Metric], *, binned: bool = True) -> list[str]:
    """Keys of the metrics that matter first: of whole samples, then response and layer fractions.

    Args:
        report: The report.
        found: Metrics of one of its surrogates.
        binned: Whether response and fractions are wanted in every bin; else of all samples.
    """
    keys = [k for k in found if _first(k)]
    few = [f"fraction_{n}" for n in report.family.layer_numbers] if len(report.family.layers) <= 4 else []
    size = "response" if report.plan.has_energy else "total_energy"
    shown = [size, *few] if report.family.kind == "calorimeter" else ["mean", "std", "peaks"]
    for kind in ("mean", "spread"):
        for name in shown:
            chosen = report.plan.selections[1:] if binned else ()
            inside = [f"{kind}/{name}{s.suffix}" for s in chosen or report.plan.selections[:1]]
            keys += [key for key in inside if key in found]
    return keys


def _first(key: str) -> bool:
    """Whether a metric is of whole samples or of their voxels; in bins only P(k), pixels and peaks of quarters."""
    if key.startswith(_IN_QUARTERS):
        return True
    kind, _, where = key.partition("/")
    if where:
        return kind in ("auc", "slope", "slope_ratio") or where in ("voxel", "pixel", "peak_height")
    return "[" not in key


def worst(found: Mapping[str, Metric], count: int = 5) -> list[str]:
    """The observables farthest from the reference: keys of ``w1_sd`` over all samples with the largest pulls."""
    keys = [k for k in found if k.startswith("w1_sd/") and "[" not in k and not _first(k)]
    return sorted(keys, key=lambda k: -(math.inf if (pull := found[k].pull) is None else pull))[:count]


def summary(report: Report) -> list[Row]:
    """The lines a terminal shows: overall numbers, then response and layer fractions in every bin, then the worst.

    See :data:`SUMMARY_HEADER` and :attr:`Row.cells`.
    """
    return [
        Row(name, key, found[key])
        for name, found in report.metrics.items()
        for key in [*headline(report, found), *worst(found)]
    ]


@dataclass(frozen=True)
class SideBySide:
    """Surrogates as columns.

    Attributes:
        names: The surrogates.
        rows: Key and, by surrogate, the metric; None where it has none.
        costs: Name, unit and, by surrogate, a number; None where nothing says. Of the machines that did the work.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Metric | None, ...]], ...]
    costs: tuple[tuple[str, str, tuple[float | None, ...]], ...] = ()

    @classmethod
    def of(cls, report: Report) -> SideBySide:
        """The headline metrics of a report over all samples, and the five worst observables of each surrogate."""
        keys = {key: None for found in report.metrics.values() for key in headline(report, found, binned=False)}
        keys |= {key: None for found in report.metrics.values() for key in worst(found)}
        rows = []
        for key in keys:
            metrics = tuple(found.get(key) for found in report.metrics.values())
            known = [m for m in metrics if m is not None]
            if known[0].unit not in COUNTS or any(m.value for m in known):
                rows.append((key, metrics))
        known_costs = [
            (key, unit, tuple(getattr(report.costs.get(name), key, None) for name in report.metrics))
            for key, unit in COSTS.items()
        ]
        costs = tuple(row for row in known_costs if any(value is not None for value in row[2]))
        return cls(tuple(report.metrics), tuple(rows), costs)

    @staticmethod
    def floor(metrics: Sequence[Metric | None]) -> str:
        """The floor of a row, or its range where sample sizes make it differ."""
        floors = sorted({number(m.floor, 3) for m in metrics if m is not None and m.floor is not None}, key=float)
        return " to ".join([floors[0], floors[-1]] if len(floors) > 1 else floors) or "-"

    @staticmethod
    def unit(metrics: Sequence[Metric | None]) -> str:
        """The unit of a row, without what surrogates need not share."""
        return next(m.unit for m in metrics if m is not None).partition(",")[0]

    def to_csv(self) -> str:
        """Full precision: metric, unit, then value, error, floor and pull of every surrogate."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        parts = ("value", "error", "floor", "pull")
        writer.writerow(["metric", "unit", *(f"{name} {part}" for name in self.names for part in parts)])
        for key, metrics in self.rows:
            cells = [None if m is None else getattr(m, part) for m in metrics for part in parts]
            writer.writerow([key, self.unit(metrics), *cells])
        for key, unit, numbers in self.costs:
            writer.writerow([key, unit, *(cell for value in numbers for cell in (value, None, None, None))])
        return stream.getvalue()

    def to_latex(self) -> str:
        """A ``tabular`` with values, errors and floors; needs no package."""
        lines = [rf"\begin{{tabular}}{{ll{'r' * (len(self.names) + 1)}}}", r"\hline"]
        lines.append(" & ".join(["metric", "unit", "floor", *map(_escaped, self.names)]) + r" \\")
        lines.append(r"\hline")
        for key, metrics in self.rows:
            cells = ["--" if m is None else f"${with_error(m.value, m.error, PLUS_MINUS)}$" for m in metrics]
            floor = self.floor(metrics)
            start = [_escaped(key), _escaped(self.unit(metrics)), "--" if floor == "-" else floor]
            lines.append(" & ".join([*start, *cells]) + r" \\")
        for key, unit, numbers in self.costs:
            start = [_escaped(key), _escaped(unit), "--"]
            lines.append(" & ".join([*start, *("--" if x is None else amount(x) for x in numbers)]) + r" \\")
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


_SPECIAL = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "#": r"\#", "&": r"\&", "$": r"\$", "{": r"\{"}


def _escaped(text: str) -> str:
    special = _SPECIAL | {"}": r"\}", "^": r"\^{}", "~": r"\~{}"}
    return "".join(special.get(letter, letter) for letter in text)
