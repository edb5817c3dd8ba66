"""What a report says in rows and columns: the lines of a terminal, and surrogates side by side for a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .distances import Metric

if TYPE_CHECKING:
    from .report import Report

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


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.{digits}g}"


def amount(value: float | None) -> str:
    """A count, a time or a rate for people."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def pull_text(metric: Metric) -> str:
    """The pull with its sign; a dash where it is not defined."""
    return "-" if metric.pull is None else f"{metric.pull:+.1f}"


def with_error(value: float | None, error: float | None, plus_minus: str = " ± ") -> str:
    """Value and error with as many digits as the error's two allow; powers of ten are taken out of tiny ones."""
    if value is None or error is None or error == 0 or not math.isfinite(error):
        return number(value)
    places = 1 - math.floor(math.log10(error))
    power = math.floor(math.log10(max(abs(value), error)))
    if places <= 6 or power == 0:  # nothing can be taken out of 3 and an error of rounding
        places = min(max(0, places), 15)
        return f"{value:.{places}f}{plus_minus}{error:.{places}f}"
    scaled = with_error(value * 10.0**-power, error * 10.0**-power, plus_minus)
    return f"({scaled})e{power}"


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
            cells = ["--" if m is None else f"${with_error(m.value, m.error, _PM)}$" for m in metrics]
            floor = self.floor(metrics)
            start = [_escaped(key), _escaped(self.unit(metrics)), "--" if floor == "-" else floor]
            lines.append(" & ".join([*start, *cells]) + r" \\")
        for key, unit, numbers in self.costs:
            start = [_escaped(key), _escaped(unit), "--"]
            lines.append(" & ".join([*start, *("--" if x is None else amount(x) for x in numbers)]) + r" \\")
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


_PM = r" \pm "
_SPECIAL = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "#": r"\#", "&": r"\&", "$": r"\$", "{": r"\{"}


def _escaped(text: str) -> str:
    special = _SPECIAL | {"}": r"\}", "^": r"\^{}", "~": r"\~{}"}
    return "".join(special.get(letter, letter) for letter in text)
