"""What a report comes to, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.checks import statements
from ..metrics.conditioning import HeldOut
from ..metrics.distances import Metric
from ..metrics.multivariate import caveats
from ..numbers import number, with_error
from ..report import Report
from .notes import PROBLEMS
from .tables import worst

NEAR_FLOOR = 3.0  # pulls below may be chance
_REPEATS = 1e-3  # p-value of memorisation below which nobody should use the surrogate
_WHOLE = {
    "sliced_w1": "sliced Wasserstein distance of whole samples",
    "correlation": "correlations between observables",
    "separation/voxel": "energy spectrum of single voxels",
    "separation/pixel": "distribution of single pixels",
    "coverage": "coverage of the reference",
}


@dataclass(frozen=True)
class Verdict:
    """What one surrogate comes to, in sentences.

    Attributes:
        name: The surrogate.
        headline: One sentence.
        details: Further sentences.
        numbers: Figures worth a large print: value and what it is.
    """

    name: str
    headline: str
    details: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]


def verdict(report: Report, name: str) -> Verdict:
    """Say in plain words how one surrogate compares with the reference."""
    found = report.metrics[name]
    distances = [m for k, m in found.items() if k.startswith("w1_sd/") and m.pull is not None]
    near = sum((m.pull or 0.0) < NEAR_FLOOR for m in distances)
    unphysical = {kind: count for kind, count in report.problems(name).items() if count}
    sentences = [
        f"{near} of {len(distances)} one-dimensional distances (every observable, in all samples and bins) are within "
        f"{NEAR_FLOOR:g} uncertainties of what reference against reference gives; these uncertainties are those of a "
        "distance's size, the permutations below ask more sharply whether it could be chance.",
        *_distance(found),
        *_largest(found),
        *_classifier(report, name),
        *_held_out(report, found),
        *(f"{text[0].upper()}{text[1:]}." for text in statements(dict(found))),
        *(f"{count} {PROBLEMS.get(kind, kind.replace('_', ' '))}." for kind, count in unphysical.items()),
        *caveats(found),
    ]
    share = near / max(len(distances), 1)
    return Verdict(name, _headline(found, share, unphysical), tuple(sentences), _numbers(found))


def _headline(found: Mapping[str, Metric], share: float, unphysical: Mapping[str, int]) -> str:
    if any(unphysical.get(kind) for kind in ("nonfinite_samples", "negative_voxels", "dropped_samples")):
        return "Contains unphysical samples: do not use before this is understood."
    memorisation = found.get("memorisation_p")
    if memorisation is not None and (memorisation.value or 1.0) < _REPEATS:
        return "Repeats samples it was trained on: do not use before this is understood."
    seen = [f"the {text}" for key, text in _WHOLE.items() if key in found and abs(found[key].pull or 0) >= NEAR_FLOOR]
    if "auc/worst" in found and (found["auc/worst"].pull or 0.0) >= NEAR_FLOOR:
        seen.append(f"a trained classifier (AUC {number(found['auc/worst'].value, 3)})")
    if _chance(found) < 0.01:
        seen.append(f"{_largest_key(found)} (permutations, p = {number(_chance(found), 2)})")
    if share >= 0.99 and seen:
        listed = " and ".join([", ".join(seen[:-1]), seen[-1]] if len(seen) > 1 else seen)
        return f"Single distributions agree with the reference, but sharper tests tell the two apart: {listed}."
    if share >= 0.99:
        return "Not distinguishable from the reference by these metrics, at this sample size."
    if share >= 0.8:
        return "Close to the reference: most observables agree within their uncertainties, some do not."
    if share >= 0.4:
        return "Partly like the reference: many observables differ by more than chance."
    return "Clearly different from the reference: most observables differ by more than chance."


def _distance(found: Mapping[str, Metric]) -> list[str]:
    sentences = []
    score = found.get("score")
    if score is not None and score.value is not None and score.floor:
        sentences.append(
            f"On average the observables are {number(score.value, 3)} standard deviations of the reference away "
            "(Wasserstein distance, in bins of the conditions); two independent reference samples of the same size "
            f"are {number(score.floor, 3)} apart."
        )
    far = [k for k in worst(found) if (math.inf if (pull := found[k].pull) is None else pull) >= NEAR_FLOOR]
    if far:
        names = ", ".join(f"{k.split('/')[1]} ({number(found[k].value, 2)} sd)" for k in far)
        sentences.append(f"Farthest from the reference: {names}.")
    return sentences


def _chance(found: Mapping[str, Metric]) -> float:
    """How often chance gives a larger pull than the largest; 1 if that is not known."""
    p = found["overall_p"].value if "overall_p" in found else None
    return 1.0 if p is None else p


def _largest_key(found: Mapping[str, Metric]) -> str:
    return found["overall"].unit.rpartition("of ")[2]


def _largest(found: Mapping[str, Metric]) -> list[str]:
    if "overall" not in found:
        return []
    chance = "as large as chance gives" if _chance(found) > 0.05 else "larger than chance gives"
    return [
        f"The largest pull of all, {number(found['overall'].value, 3)} for {_largest_key(found)}, is {chance} "
        f"(p = {_chance(found):.2g} from exchanging which samples are called generated)."
    ]


def _classifier(report: Report, name: str) -> list[str]:
    found = report.metrics[name]
    if "auc/worst" not in found:
        return []
    worst_view = found["auc/worst"]
    auc = with_error(worst_view.value, worst_view.error)
    sentences = [f"The best of the classifiers reaches an AUC of {auc}; 0.5 means it cannot tell them apart."]
    known = [report.classifications[m] for m in report.members(name) if m in report.classifications]
    if known and known[0].tell_tales:
        telling = ", ".join(observable for observable, _ in known[0].tell_tales[:5])
        sentences.append(f"What gives the generated samples away: {telling}.")
    return sentences


def _held_out(report: Report, found: Mapping[str, Metric]) -> list[str]:
    sentences = []
    for gap in report.plan.selections:
        if not isinstance(gap, HeldOut):
            continue
        inside = [m for k, m in found.items() if k.startswith("w1_sd/") and k.endswith(gap.suffix)]
        known = [(m.value, m.floor) for m in inside if m.value is not None and m.floor is not None]
        if known:
            value, floor = np.mean(known, axis=0)
            away = f"{number(float(value), 3)} standard deviations away on average (floor {number(float(floor), 3)})"
            sentences.append(f"{gap.title[0].upper()}{gap.title[1:]} the observables are {away}.")
    return sentences


def _numbers(found: Mapping[str, Metric]) -> tuple[tuple[str, str], ...]:
    """The metrics that a reader looks for first."""
    shown: list[tuple[str, str]] = []
    for prefix, title in (
        ("auc/worst", "AUC of the best classifier"),
        ("score", "mean distance (sd)"),
        ("emd_", "earth mover's distance, {} samples"),
        ("fpd_", "FPD, {} samples"),
        ("kpd_", "KPD, {} samples"),
        ("coverage", "coverage"),
        ("correlation", "correlation matrix, rms difference"),
        ("separation/voxel", "voxel spectrum, separation power"),
        ("separation/pixel", "pixel spectrum, separation power"),
    ):
        for key in _starting(found, prefix):
            metric = found[key]
            if metric.value is not None:
                text = f"{title.format(key.rpartition('_')[2])}; floor {number(metric.floor, 3)}"
                shown.append((number(metric.value, 3), text))
    return tuple(shown)


def _starting(found: Mapping[str, Metric], prefix: str) -> Sequence[str]:
    return [key for key in found if (key.startswith(prefix) if prefix.endswith("_") else key == prefix)]
