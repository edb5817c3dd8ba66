"""One self-contained page: verdict, figures, every metric, provenance of both sides."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from .distances import Metric
from .report import Report, number, worst

_ROWS_SHOWN = 3000  # of one set of generated samples; more would make the page slow, metrics.json has them all
_NEAR_FLOOR = 3.0


_WHOLE = {
    "sliced_w1": "sliced Wasserstein distance of whole samples",
    "correlation": "correlations between observables",
    "separation/voxel": "energy spectrum of single voxels",
    "separation/pixel": "distribution of single pixels",
}


@dataclass(frozen=True)
class Verdict:
    """What one set of generated samples comes to, in sentences.

    Attributes:
        name: The generated samples.
        headline: One sentence.
        details: Further sentences.
        numbers: Figures worth a large print: value and what it is.
    """

    name: str
    headline: str
    details: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]


def verdict(report: Report, name: str) -> Verdict:
    """Say in plain words how one set of generated samples compares with the reference."""
    found = report.metrics[name]
    distances = {k: m for k, m in found.items() if k.startswith("w1_sd/") and m.pull is not None}
    near = sum(1 for m in distances.values() if (m.pull or 0.0) < _NEAR_FLOOR)
    share = near / max(len(distances), 1)
    unphysical = {k: int(found[k].value or 0) for k in report.generated[name].problems if found[k].value}
    whole = [k for k in _WHOLE if k in found and (found[k].pull or 0.0) >= _NEAR_FLOOR]
    return Verdict(
        name,
        _headline(share, whole, unphysical),
        _details(report, name, near, len(distances), unphysical),
        _numbers(found),
    )


def _headline(share: float, whole: Sequence[str], unphysical: Mapping[str, int]) -> str:
    if any(unphysical.get(kind) for kind in ("nonfinite_samples", "negative_voxels", "dropped_samples")):
        return "Contains unphysical samples: do not use before this is understood."
    if share >= 0.99 and whole:
        names = " and ".join(f"the {_WHOLE[key]}" for key in whole)
        return f"Every observable agrees with the reference at this sample size, but not {names}."
    if share >= 0.99:
        return "Not distinguishable from the reference by these observables, at this sample size."
    if share >= 0.8:
        return "Close to the reference: most observables agree within their uncertainties, some do not."
    if share >= 0.4:
        return "Partly like the reference: many observables differ by more than chance."
    return "Clearly different from the reference: most observables differ by more than chance."


def _details(report: Report, name: str, near: int, total: int, unphysical: Mapping[str, int]) -> tuple[str, ...]:
    found = report.metrics[name]
    sentences = [
        f"{near} of {total} one-dimensional distances (every observable, in all samples and in bins) are within "
        f"{_NEAR_FLOOR:g} uncertainties of what reference against reference gives."
    ]
    score = found.get("score")
    if score is not None and score.value is not None and score.floor:
        sentences.append(
            f"On average the observables are {number(score.value, 3)} standard deviations of the reference away "
            "(Wasserstein distance, in bins of the conditions); two independent reference samples of the same size "
            f"are {number(score.floor, 3)} apart."
        )
    far = [k for k in worst(found) if (found[k].pull or math.inf) >= _NEAR_FLOOR]
    if far:
        names = ", ".join(f"{k.split('/')[1]} ({number(found[k].value, 2)} sd)" for k in far)
        sentences.append(f"Farthest from the reference: {names}.")
    sentences += [f"{count} {kind.replace('_', ' ')}." for kind, count in unphysical.items()]
    return tuple(sentences)


def _numbers(found: Mapping[str, Metric]) -> tuple[tuple[str, str], ...]:
    shown = []
    for key, title in (
        ("score", "mean distance [sd]"),
        ("sliced_w1", "sliced Wasserstein"),
        *((k, f"earth mover's distance, {k.split('_')[1]} samples") for k in found if k.startswith("emd_")),
        ("separation/voxel", "voxel spectrum, separation power"),
        ("separation/pixel", "pixel spectrum, separation power"),
        ("correlation", "correlation matrix, rms difference"),
    ):
        if key in found and found[key].value is not None:
            shown.append((f"{number(found[key].value, 3)}", f"{title}; floor {number(found[key].floor, 3)}"))
    return tuple(shown)


def render(report: Report, figures: Sequence[tuple[str, str, str, bytes]]) -> str:
    """The page as HTML.

    Args:
        report: The report.
        figures: Name, title, caption and PNG of each figure.
    """
    rows = {name: _rows(found) for name, found in report.metrics.items()}
    total = sum(len(found) for found in report.metrics.values())
    return _template().render(
        report=report,
        verdicts=[verdict(report, name) for name in report.metrics],
        figures=[
            {"name": n, "title": t, "caption": c, "image": base64.b64encode(png).decode(), "width": _shown_width(png)}
            for n, t, c, png in figures
        ],
        rows=rows,
        left_out=total - sum(len(r) for r in rows.values()),
        provenance={"reference": _provenance(report.reference.provenance)}
        | {name: _provenance(side.provenance) for name, side in report.generated.items()},
        several=len(report.metrics) > 1,
        near=_NEAR_FLOOR,
    )


def _shown_width(png: bytes) -> int:
    """Width on the page in pixels, so that the text of small and large figures has one size; 0 if unknown."""
    return int(0.7 * int.from_bytes(png[16:20], "big"))  # the width field of the PNG header


def _rows(found: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Table rows with text to read and numbers to sort by."""
    keys = sorted(found, key=lambda k: -abs(found[k].pull or 0.0))[:_ROWS_SHOWN]
    rows = []
    for key in keys:
        metric = found[key]
        kind, _, rest = key.partition("/")
        where, _, selection = rest.partition("[")
        cells = [(kind, kind), (where, where), (selection.rstrip("]") or "all",) * 2]
        numbers = (metric.value, metric.error, metric.floor, metric.floor_error)
        cells += [(number(x, 3), "" if x is None else repr(x)) for x in numbers]
        pull = metric.pull
        cells += [("-" if pull is None else f"{pull:+.1f}", "" if pull is None else repr(pull))]
        cells += [(f"{metric.n}", f"{metric.n}"), (metric.unit, metric.unit)]
        rows.append({"cells": cells, "far": pull is not None and abs(pull) >= _NEAR_FLOOR})
    return rows


def _provenance(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is common to all entries first, then how the rest varies: many files differ only by a seed."""
    if not entries:
        return []
    keys = list(dict.fromkeys(k for entry in entries for k in entry))
    merged: dict[str, str] = {}
    for key in keys:
        values = list(dict.fromkeys(_text(entry[key]) for entry in entries if key in entry))
        more = f" ... ({len(values)} values)" if len(values) > 4 else ""
        merged[key] = ", ".join(values[:4]) + more
    return [{"key": k, "value": v} for k, v in merged.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("calogen.analysis", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html")
