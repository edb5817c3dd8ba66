"""Sentences a reader must know before believing any number of a comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calogen.families import Condition
from calogen.shards.reader import Source

from ..metrics.distances import UNEQUAL, W1, Draws, compare_1d
from ..metrics.measure import PROBLEMS
from ..metrics.registry import Key, Metric
from ..numbers import number, with_error
from ..observables.observable import Observable
from ..survey.histograms import observable_edges
from ..survey.plan import SurveyPlan
from ..survey.survey import Survey

_NO_CHANCE = 5.0  # standard errors
_FEW_REALISATIONS = 5
_LISTED = 5  # of many, how many a sentence names


def known_conditions(source: Source) -> list[str]:
    """Names of the conditions that a source has; all of the family's for an empty one, which is refused later."""
    if not len(source):
        return [c.name for c in source.family.conditions]
    return list(source.read(0, 1).conditions)


def energy_notes(plan: SurveyPlan, sources: Mapping[str, Source]) -> list[str]:
    """Say so where incident energies are missing and what that leaves out."""
    energy = plan.family.energy
    if plan.has_energy or energy is None:
        return []
    lacking = [name for name, source in sources.items() if energy.name not in known_conditions(source)]
    return [
        f"{' and '.join(lacking)}: the showers come without incident energies, so nothing here uses them: no response, "
        "no bins of energy, and whole showers are divided by the reference's mean deposited energy. If the two sides "
        "were made for different energies, every difference contains that."
    ]


def axis_notes(plan: SurveyPlan) -> list[str]:
    """Say so where showers differ in impact point or direction and nothing is measured about their axes."""
    moving = [c.name for c in plan.family.conditions if c.role in ("impact", "angle")]
    if not moving or plan.shower_axis is not None:
        return []
    return [
        f"nothing is measured about the axes of the showers, though {' and '.join(moving)} are conditions: that needs "
        "theta and phi together, on every side, and layers with depths (`z` in the family's table)."
    ]


def source_notes(name: str, source: Source, side: Survey) -> list[str]:
    """What the reader of one source noticed, what is unphysical in it, and what is a sub-sample."""
    notes = [f"{name}: {note}." for note in getattr(source, "notes", ())]
    if name in ("reference", "training") and getattr(source, "kind", "reference") != "reference":
        notes.append(f"{name}: these samples are themselves generated, not simulated.")
    found = {kind: count for kind, count in side.problems.items() if count and kind != "nonfinite_voxels"}
    notes += [f"{name}: {count} {PROBLEMS[kind].title}." for kind, count in found.items()]
    if (listed := side.table.shape[1]) < side.used:
        of_all = f"a random {listed:,} of its {side.used:,} samples"
        notes.append(f"{name}: distances use {of_all}; spectra and means use all.")
    return notes


def realisation_notes(reference: Survey) -> list[str]:
    """Say so where the reference has too few realisations to know how much they differ."""
    if reference.groups is None or (count := len(np.unique(reference.groups))) >= _FEW_REALISATIONS:
        return []
    return [
        f"the reference has {count} realisation{'s'[: count > 1]}: errors, floors and pulls come from how realisations "
        f"differ, and are rough guesses below {_FEW_REALISATIONS} of them."
    ]


def threshold_notes(name: str, side: Survey, plan: SurveyPlan) -> list[str]:
    """What the read-out threshold took from a side: a cut can hide lost energy."""
    if plan.family.threshold <= 0:
        return []
    voxels, energy = (f"{share:.2g}" for share in side.removed)
    return [
        f"{name}: the read-out threshold of {plan.family.threshold:g} {plan.family.unit}, applied to every side, "
        f"removed {voxels} of the voxels with energy, and {energy} of the energy."
    ]


def condition_notes(name: str, base: Survey, side: Survey, plan: SurveyPlan) -> list[str]:
    """Say so if the two sides were made for different conditions: then every other number is off as well."""
    notes = []
    for condition in plan.family.conditions:
        if condition.name not in base.conditions or condition.name not in side.conditions:
            continue
        differs = _other_fractions if condition.labels else _other_range
        if found := differs(condition, base, side, plan):
            notes.append(
                f"{name}: its {condition.name} is not distributed as in the reference ({found}), so part of every "
                "difference comes from that; generate at the conditions of the reference."
            )
        mine = [s.of(side.conditions, side.table.shape[1]) for s in plan.selections if s.condition == condition.name]
        if mine and (outside := ~np.any(mine, 0)).any():
            notes.append(f"{name}: {int(outside.sum())} samples lie outside all bins of {condition.name}.")
    return notes


def constant_notes(name: str, found: Mapping[Key, Metric]) -> list[str]:
    """Say which observables have no spread in the reference to measure distances by, and which of these differ."""
    keys = [key for key in found if key.quantity == UNEQUAL]
    if not keys:
        return []
    differing = [f"{_place(key)} ({number(found[key].value, 2)} of the samples)" for key in keys if found[key].value]
    said = f"the generated samples differ in {_listed(differing)}" if differing else "the generated samples are equal"
    return [
        f"{name}: the reference has {_listed([_place(key) for key in keys])} constant but for rounding; such "
        f"observables are compared for equality and left out of means: {said}."
    ]


def _place(key: Key) -> str:
    return f"{key.observable}{key.selection.suffix}"


def _listed(texts: list[str]) -> str:
    """Some of them, and how many more there are."""
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return f"{', '.join(texts[:_LISTED])}{more}"


def _other_range(condition: Condition, base: Survey, side: Survey, plan: SurveyPlan) -> str:
    """How far a condition's distribution is from the reference's, if that is no chance; else nothing."""
    r, g = base.conditions[condition.name], side.conditions[condition.name]
    draws = Draws.make(len(r), len(g), plan.seed, groups=base.groups, cap=10_000)
    metric = Metric.from_splits(compare_1d(r, g, observable_edges(Observable("", ""), r), draws)[W1], draws.n)
    if metric.pull is None or metric.pull <= _NO_CHANCE:
        return ""
    distance = f"{number(metric.value)} {condition.unit}".rstrip()
    return f"Wasserstein distance {distance}, {number(metric.floor)} expected"


def _other_fractions(condition: Condition, base: Survey, side: Survey, plan: SurveyPlan) -> str:  # noqa: ARG001
    """Labels whose fractions are not the reference's, beyond the counting error; labels have no order and no W1."""
    sides = [survey.conditions[condition.name].astype(np.intp) for survey in (base, side)]
    counts = np.stack([np.bincount(codes, minlength=len(condition.labels)) for codes in sides])
    sizes = counts.sum(axis=1)
    expected, found = counts / sizes[:, None]
    pooled = counts.sum(axis=0) / sizes.sum()
    error = np.sqrt(pooled * (1 - pooled) * np.sum(1 / sizes))
    return ", ".join(
        f"fraction of {label} {number(float(found[k]), 3)} instead of {with_error(float(expected[k]), float(error[k]))}"
        for k, label in enumerate(condition.labels)
        if abs(found[k] - expected[k]) > _NO_CHANCE * error[k]
    )
