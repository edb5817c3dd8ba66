"""What a report comes to, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..metrics.checks import MEMORISATION_P, statements
from ..metrics.conditioning import HeldOut
from ..metrics.distances import W1_SD
from ..metrics.equivalent import EQUIVALENT, EQUIVALENT_WORST
from ..metrics.measure import PROBLEMS, SCORE
from ..metrics.multivariate import caveats
from ..metrics.permutation import OVERALL, OVERALL_P, PERMUTATIONS
from ..metrics.registry import Key, Metric, Metrics, Quantity
from ..numbers import amount, number, with_error
from ..report import Report
from ..survey.selections import ALL
from .tables import value_text, worst

NEAR_FLOOR = 3.0  # pulls below may be chance
_CLASSIFIER = "auc/worst"
_NAMED = 3  # quantities that the headline names
_LOOKED_FOR = (_CLASSIFIER, SCORE.name, EQUIVALENT.name)
_LARGE = 4  # numbers beside the headline
_REPEATS = 1e-3  # p-value of memorisation below which nobody should use the surrogate


@dataclass(frozen=True)
class Figure:
    """A number worth a large print.

    Attributes:
        value: The number with its error.
        title: What it is.
        floor: What reference against reference gives.
        far: Whether it is farther from its floor than chance allows.
    """

    value: str
    title: str
    floor: str
    far: bool


@dataclass(frozen=True)
class Verdict:
    """What one surrogate comes to, in sentences.

    Attributes:
        name: The surrogate.
        headline: One sentence.
        details: Further sentences.
        numbers: Those worth a large print, a few.
    """

    name: str
    headline: str
    details: tuple[str, ...]
    numbers: tuple[Figure, ...]


def verdict(report: Report, name: str) -> Verdict:
    """Say in plain words how one surrogate compares with the reference."""
    found = report.metrics[name]
    distances = [m for key, m in found.items() if key.quantity.counted and m.pull is not None]
    near = sum((m.pull or 0.0) < NEAR_FLOOR for m in distances)
    unphysical = {kind: count for kind, count in report.problems(name).items() if count}
    sentences = [
        f"{near} of {len(distances)} one-dimensional distances (every observable, in all samples and bins) are within "
        f"{NEAR_FLOOR:g} uncertainties of what reference against reference gives; these uncertainties are those of a "
        "distance's size; the permutation statistic below asks more sharply whether it could be chance.",
        *_worth(found),
        *_distance(found),
        *_largest(found),
        *_classifier(report, name),
        *_held_out(report, found),
        *(f"{text[0].upper()}{text[1:]}." for text in statements(found)),
        *(f"{count} {PROBLEMS[kind].title}." for kind, count in unphysical.items()),
        *caveats(found),
    ]
    share = near / max(len(distances), 1)
    return Verdict(name, _headline(found, share, unphysical), tuple(sentences), tuple(_numbers(found)))


def _headline(found: Metrics, share: float, unphysical: Mapping[str, int]) -> str:
    if any(unphysical.get(kind) for kind in ("nonfinite_samples", "negative_voxels", "dropped_samples")):
        return "Contains unphysical samples: do not use before this is understood."
    learnt = found.get(Key(MEMORISATION_P))
    if learnt is not None and (learnt.value or 1.0) < _REPEATS:
        return "Repeats samples it was trained on: do not use before this is understood."
    differing = ", ".join(_telling(found))
    if share >= 0.99 and differing:
        return f"Single distributions agree with the reference, but other quantities differ: {differing}."
    if share >= 0.99:
        return "Not distinguishable from the reference by these metrics, at this sample size."
    differing = differing or ", ".join(f"{key.observable} ({_size(found[key])})" for key in worst(found, _NAMED))
    if share >= 0.8:
        return f"Close to the reference: most observables agree within their uncertainties. Farthest off: {differing}."
    if share >= 0.4:
        return f"Partly like the reference: many observables differ by more than chance. Farthest off: {differing}."
    return f"Clearly different from the reference: most observables do. Farthest off: {differing}."


def _telling(found: Metrics) -> list[str]:
    """The headline quantities farthest above their floors, with their sizes; then what else tells the sides apart."""
    off = {
        key: metric
        for key, metric in found.items()
        if (key.quantity.headline or key.quantity.telling or key.quantity.in_quarters or key == _CLASSIFIER)
        and not key.quantity.counted
        and key.quantity != OVERALL
        and (metric.pull or 0.0) >= NEAR_FLOOR
    }
    largest: dict[Quantity, Key] = {}  # of each quantity, where it is farthest off
    for key in sorted(off, key=lambda key: -(off[key].pull or 0.0)):
        largest.setdefault(key.quantity, key)
    names = [_named(key, off[key]) for key in list(largest.values())[:_NAMED]]
    if len(largest) > _NAMED:
        names.append(f"and {len(largest) - _NAMED} more")
    if not names and _chance(found) < 0.01:
        names.append(f"{found[Key(OVERALL)].statistic} (permutations, {_bound(_chance(found))})")
    return names


def _named(key: Key, metric: Metric) -> str:
    if key == _CLASSIFIER:
        return f"a trained classifier (AUC {number(metric.value, 3)})"
    of = " of ".join(filter(None, (key.quantity.title, key.observable)))
    return f"{of}{key.selection.suffix} ({_size(metric)})"


def _size(metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{number(metric.value, 2)}{unit}, floor {number(metric.floor, 2)}"


def _bound(p: float) -> str:
    """A p-value; where permutations are too few to say more, as a bound."""
    return f"p ≤ {1 / PERMUTATIONS:g}" if p <= 1 / PERMUTATIONS else f"p = {p:.2g}"


def _distance(found: Metrics) -> Iterator[str]:
    score = found.get(Key(SCORE))
    if score is not None and score.value is not None and score.floor:
        yield (
            f"On average the observables are {number(score.value, 3)} standard deviations of the reference away "
            "(Wasserstein distance, in bins of the conditions); two independent reference samples of the same size "
            f"are {number(score.floor, 3)} apart."
        )
    far = [key for key in worst(found) if found[key].far >= NEAR_FLOOR]
    if far:
        names = ", ".join(f"{key.observable} ({number(found[key].value, 2)} sd)" for key in far)
        yield f"Farthest from the reference: {names}."


def _worth(found: Metrics) -> Iterator[str]:
    if Key(EQUIVALENT) in found:
        median, worst_tenth = (
            f"at least {amount(m.value)}" if m.lower_limit else value_text(m)
            for m in (found[Key(EQUIVALENT)], found[Key(EQUIVALENT_WORST)])
        )
        yield (
            f"By its observables this surrogate is worth {median} {found[Key(EQUIVALENT)].unit} of the reference "
            f"(median over observables; {worst_tenth} in the worst tenth)."
        )


def _chance(found: Metrics) -> float:
    """How often chance gives a larger distance than the largest; 1 if that is not known."""
    p = found[Key(OVERALL_P)].value if Key(OVERALL_P) in found else None
    return 1.0 if p is None else p


def _largest(found: Metrics) -> Iterator[str]:
    for metric in found.select(OVERALL).values():
        chance = "as large as chance gives" if _chance(found) > 0.05 else "larger than chance gives"
        yield (
            f"The permutation statistic, {number(metric.value, 3)} for {metric.statistic}, is {chance} "
            f"({_bound(_chance(found))} from exchanging which samples are called generated)."
        )


def _classifier(report: Report, name: str) -> Iterator[str]:
    for metric in report.metrics[name].select("auc/worst").values():
        auc = with_error(metric.value, metric.error)
        yield f"The best of the classifiers reaches an AUC of {auc}; 0.5 means it cannot tell them apart."
    known = [report.classifications[m] for m in report.members(name) if m in report.classifications]
    if known and known[0].tell_tales:
        telling = ", ".join(observable for observable, _ in known[0].tell_tales[:5])
        yield f"What gives the generated samples away: {telling}."


def _held_out(report: Report, found: Metrics) -> Iterator[str]:
    for gap in report.plan.selections:
        if not isinstance(gap, HeldOut):
            continue
        inside = found.select(W1_SD, selection=gap).values()
        known = [(m.value, m.floor) for m in inside if m.value is not None and m.floor is not None]
        if known:
            value, floor = np.mean(known, axis=0)
            away = f"{number(float(value), 3)} standard deviations away on average (floor {number(float(floor), 3)})"
            yield f"{gap.title[0].upper()}{gap.title[1:]} the observables are {away}."


def _numbers(found: Metrics) -> Iterator[Figure]:
    """The metrics that a reader looks for first, then what is farthest above its floor: four at most."""
    large = [key for key, m in found.items() if key.quantity.large and key.selection == ALL and m.value is not None]
    first = {quantity: rank for rank, quantity in enumerate(_LOOKED_FOR)}
    # Of one quantity at several sample sizes the largest says most.
    single = {key.quantity: key for key in sorted(large, key=lambda key: key.size)}.values()
    for key in sorted(single, key=lambda key: (first.get(key.quantity.name, len(first)), -found[key].far))[:_LARGE]:
        metric = found[key]
        of = f", {key.size} samples" if key.size else ""
        own = key.quantity == EQUIVALENT or not metric.unit or metric.unit in key.quantity.title  # said by its title
        unit = "" if own else f" {metric.unit}"
        far = not metric.lower_limit and (metric.pull or 0.0) >= NEAR_FLOOR
        yield Figure(value_text(metric), f"{key.quantity.title}{of}{unit}", number(metric.floor, 3), far)
