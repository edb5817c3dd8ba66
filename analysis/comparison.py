"""Compare generated samples with the reference: read, measure, report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from calogen.errors import ConfigError, ShardError
from calogen.families import Family
from calogen.shards.labels import relabelled, shared_labels
from calogen.shards.realisations import require_apart
from calogen.shards.samples import Samples, Source

from .inputs import open_side, require_same, require_settings, require_usable
from .metrics.conditioning import Fits, curve_edges, fit_metrics, held_out_selections, resolution_fits
from .metrics.distances import Metric
from .metrics.downstream import calibration
from .metrics.maps import map_metrics, map_statistics
from .metrics.measure import measure
from .origins import Costs
from .page.notes import condition_notes, energy_notes, known_conditions, source_notes
from .report import Report
from .survey.plan import KEPT, SurveyPlan, plan_comparison
from .survey.survey import Progress, Survey, survey

if TYPE_CHECKING:
    from .metrics.classifiers import Classification

Recipe = Literal["none", "light", "calochallenge"]
Given = Source | str | Path


def compare(
    reference: Given,
    generated: Given | Mapping[str, Given | Sequence[Given]],
    *,
    bins: int = 4,
    seed: int = 0,
    training: Given | None = None,
    classifier: Recipe = "none",
    progress: Progress | None = None,
) -> Report:
    """Compare generated samples with the reference.

    Each source is read once, in chunks; what is kept is bounded (:class:`calogen.analysis.survey.Survey`).

    Showers of one side without incident energies (of a surrogate that is not conditioned on them) are compared without:
    no response, no bins of energy, whole showers in units of the reference's mean deposited energy.

    Ranges of conditions that a surrogate was trained without (``holdout`` in the provenance of its samples) are
    reported inside and outside, as selections of their own.

    Args:
        reference: Shards, samples in memory, or a path that :func:`calogen.open_shards` understands; of a folder
            with ``test/`` that one. Files that do not say what they hold are read as the generated ones.
        generated: The same, or several by name; a list stands for seeds of one surrogate, which become a band. Labels
            of conditions are matched by name; one that some side lacks is a label without samples there.
        bins: Bins of each condition in which everything is repeated: at most 1000, 0 for none.
        seed: Decides splits, directions and sub-samples; at least 0.
        training: The samples that the surrogates were trained on, to look for showers learnt by heart; of a folder with
            ``train/`` that one.
        classifier: Two-sample classifiers: ``none``, ``light`` (minutes) or ``calochallenge`` (its recipe; hours).
        progress: Called with the name of a source, samples done and samples in all.

    Raises:
        ConfigError: If names of generated samples clash, or bins or seed are out of range.
        ShardError: If a source is empty, unreadable, unusable, too small, or of another family, or if maps of one
            realisation are both in the reference and in the training samples.
    """
    require_settings(bins, seed)
    groups = _named(generated)
    given = {name: source for members in groups.values() for name, source in members.items()}
    sources = _opened(given, reference, training)
    first, opened = sources["reference"], {name: sources[name] for name in given}
    for name, source in opened.items():
        require_same(first.family, source.family, name)
    plan = _plan(first, opened, bins, seed, classifier)
    base = survey(first, plan, title="reference", progress=progress)
    notes = energy_notes(plan, {"reference": first, **opened}) + source_notes("reference", first, base)
    learnt = None
    if training is not None:
        source = sources["training"]
        require_same(first.family, source.family, "training")
        if first.family.kind == "map":
            require_apart(source.origins(), first.origins())
        learnt = survey(source, plan, title="training", progress=progress)
        notes += source_notes("training", source, learnt)
    sides, found, classified = {}, {}, {}
    fits = _fits("reference", base, base, plan)
    maps = {"reference": map_statistics(base, plan)} if first.family.kind == "map" else {}
    for name, source in opened.items():
        side = sides[name] = survey(source, plan, title=name, progress=progress)
        fits |= _fits(name, side, base, plan)
        found[name] = measure(base, side, plan, training=learnt)
        if fits:
            found[name] |= fit_metrics(fits["reference"], fits[name], min(base.count, side.count))
            with suppress(ShardError):  # too few showers to calibrate with have nothing to say
                found[name] |= calibration(base.kept, side.kept, seed=seed, bins=bins)
        if maps:
            maps[name] = map_statistics(side, plan, maps["reference"])
            found[name] |= map_metrics(maps["reference"], maps[name], plan)
        if classifier != "none":
            classified[name] = _classified(base, side, classifier, seed, progress)
            found[name] |= classified[name].metrics
            notes += [f"{name}: {note}" for note in classified[name].notes]
        notes += source_notes(name, source, side) + condition_notes(name, base, side, plan)
    return Report(
        plan=plan,
        reference=base,
        generated=sides,
        metrics={name: over_seeds([found[member] for member in members]) for name, members in groups.items()},
        notes=tuple(notes),
        training=learnt,
        settings={"bins": bins, "seed": seed, "classifier": classifier, "training": learnt is not None},
        seeds={name: tuple(members) for name, members in groups.items() if len(members) > 1},
        seed_metrics={m: found[m] for members in groups.values() if len(members) > 1 for m in members},
        fits=fits,
        classifications=classified,
        maps=maps,
        costs={"reference": Costs.of(first)}
        | {name: Costs.mean([Costs.of(opened[member]) for member in members]) for name, members in groups.items()},
    )


def _plan(first: Source, opened: Mapping[str, Source], bins: int, seed: int, classifier: Recipe) -> SurveyPlan:
    """What all sides share, with the ranges that some surrogate was trained without as selections of their own."""
    known = {name: known_conditions(source) for name, source in opened.items()}
    everywhere = set(known_conditions(first)).intersection(*known.values())
    provenances = [entry for source in opened.values() for entry in source.provenance]
    gaps = held_out_selections(first.family, provenances, everywhere)
    kept = 100_000 if classifier == "calochallenge" else KEPT
    return plan_comparison(first, bins=bins, seed=seed, others=known, kept=kept, more=gaps)


def _fits(name: str, side: Survey, base: Survey, plan: SurveyPlan) -> dict[str, Fits]:
    if plan.family.kind == "map" or not plan.has_energy:
        return {}
    condition = plan.family.conditions[0]
    return {name: resolution_fits(side, condition, curve_edges(base, condition))}


def _classified(base: Survey, side: Survey, classifier: Recipe, seed: int, progress: Progress | None) -> Classification:
    from .metrics.classifiers import classify

    recipe: Literal["light", "calochallenge"] = "light" if classifier == "light" else "calochallenge"
    return classify(base.kept, side.kept, recipe=recipe, seed=seed, progress=progress)


def over_seeds(found: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Metrics of several seeds of one surrogate as one: means, the spread between seeds part of the error.

    The error is the root mean square of the seeds' own errors and their standard deviation in quadrature: what one
    further training may give. Metrics that are undefined for a seed are left out.
    """
    if len(found) == 1:
        return dict(found[0])
    combined = {}
    for key, first in found[0].items():
        metrics = [seed[key] for seed in found if key in seed and seed[key].value is not None]
        if len(metrics) < len(found):
            continue
        values, errors, floors, floor_errors = (
            np.array([math.nan if (x := getattr(m, part)) is None else x for m in metrics])
            for part in ("value", "error", "floor", "floor_error")
        )
        error = math.hypot(float(values.std(ddof=1)), math.sqrt(float(np.mean(np.nan_to_num(errors) ** 2))))
        size = min(m.n for m in metrics)
        combined[key] = Metric.of(
            float(values.mean()), error, float(floors.mean()), float(floor_errors.mean()), size, first.unit
        )
    return combined


def _named(generated: Given | Mapping[str, Given | Sequence[Given]]) -> dict[str, dict[str, Given]]:
    """Every surrogate's sources by name: one called like it, or its seeds numbered from 1."""
    if not isinstance(generated, Mapping):
        return {(name := _name_of(generated)): {name: generated}}
    groups: dict[str, dict[str, Given]] = {}
    for name, given in generated.items():
        sources = list(given) if isinstance(given, list | tuple) else [cast(Given, given)]
        numbers = [f" #{k}" for k in range(1, len(sources) + 1)] if len(sources) > 1 else [""]
        groups[name] = {f"{name}{number}": source for number, source in zip(numbers, sources, strict=False)}
    names = ["reference", "training", *(member for members in groups.values() for member in members)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(groups.values()):
        found = ", ".join(twice) or "an empty list"
        raise ConfigError("every set of generated samples needs a name of its own", found=found, hint="rename it")
    return groups


def _opened(generated: Mapping[str, Given], reference: Given, training: Given | None) -> dict[str, Source]:
    """All sides by name, their labels numbered alike."""
    given = {name: _open(source) for name, source in generated.items()}
    like = next((source.family for source in given.values()), None)  # of files that do not say what they hold
    sources = {"reference": _open(reference, "test", like)}
    if training is not None:
        sources["training"] = _open(training, "train", like)
    sources |= given
    labels = shared_labels(list(sources.values()))
    sources = {name: relabelled(source, labels) for name, source in sources.items()}
    for name, source in sources.items():
        if isinstance(source, Samples):  # files were checked when they were opened
            require_usable(source, name)
    return sources


def _open(source: Given, split: str | None = None, like: Family | None = None) -> Source:
    return open_side(source, split, like) if isinstance(source, str | Path) else source


def _name_of(source: Given) -> str:
    if isinstance(source, str | Path):
        path = Path(source)
        name = (path.name if path.is_dir() else path.stem).replace("*", "") or "generated"
        return "generated" if name in ("reference", "training") else name
    return "generated"
