"""Compare generated samples with the reference: read, measure, report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from calogen.config import Reading
from calogen.errors import ConfigError, ShardError
from calogen.families import Family
from calogen.shards.labels import relabelled, shared_labels
from calogen.shards.reader import Shards, Source
from calogen.shards.realisations import require_apart, require_new
from calogen.shards.samples import Samples
from calogen.shards.sources import require_asked
from calogen.stages import reporting, stage

from .inputs import open_side, require_same, require_settings, require_usable
from .metrics.conditioning import fit_metrics, held_out_selections, resolution_fits
from .metrics.downstream import calibration
from .metrics.kinds import kind_of
from .metrics.maps import MapStatistics, map_metrics, map_statistics
from .metrics.measure import measure
from .metrics.movers import energy_mover_metrics
from .metrics.registry import Key, Metric, Metrics
from .origins import Costs, place_of, trained_with
from .page.notes import (
    axis_notes,
    condition_notes,
    constant_notes,
    energy_notes,
    known_conditions,
    realisation_notes,
    source_notes,
    threshold_notes,
)
from .page.verdict import verdict
from .report import Report
from .survey.passes import surveys
from .survey.plan import KEPT, SurveyPlan, plan_comparison
from .survey.survey import Progress, Survey

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
    inference: bool = False,
    threshold: float | None = None,
    family: Family | None = None,
    reading: Reading | None = None,
    workers: int | None = None,
    cluster: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare generated samples with the reference.

    Each source is read once, in ranges; what is kept is bounded (:class:`calogen.analysis.survey.survey.Survey`) and
    does not depend on who reads them.

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
            Either adds the energy mover's distance between showers, too (seconds).
        inference: Learn posteriors of the conditions from generated maps and from simulated ones (those of
            ``training``, else half of the reference's boxes), and ask both about simulated maps, one of each box.
        threshold: Read-out threshold in the family's unit: smaller voxels of either side are taken as 0. None: the
            highest that a side's family has.
        family: What the samples of paths are, where the files do not say.
        reading: What files that calogen did not write do not say of themselves.
        workers: Processes that read files (default: all available cores). Small files, and samples in memory, are read
            by this one.
        cluster: Instead of them a dask cluster: the address of its scheduler, or its scheduler file. All its workers
            must see the files.
        out: A folder that the workers of ``cluster`` share with this process, in which they are told what to do
            (default: the current one).
        progress: Called with what is done, how much of it, and of how much (0: nobody knows): the name of a source
            with samples read and samples in all, then what is measured.

    Raises:
        ConfigError: If names of generated samples clash, bins or seed are out of range, or there are too many workers
            for this machine or no such cluster.
        ProductionError: If a worker died twice over the same samples, or the cluster's scheduler is gone.
        ShardError: If a source is empty, unreadable, unusable, too small, or of another family, or if maps of one
            realisation are both in the reference and in the training samples, or in what else was simulated.
    """
    with reporting(progress):
        how = {"family": family, "reading": reading}
        readers = {"workers": workers, "cluster": cluster, "out": out}
        return _compare(reference, generated, bins, seed, training, classifier, threshold, inference, how, readers)


def _compare(
    reference: Given,
    generated: Given | Mapping[str, Given | Sequence[Given]],
    bins: int,
    seed: int,
    training: Given | None,
    classifier: Recipe,
    threshold: float | None,
    inference: bool,
    how: Mapping[str, Any],
    readers: Mapping[str, Any],
) -> Report:
    """The same; stages go to whoever listens."""
    require_settings(bins, seed, threshold)
    groups = _named(generated)
    members = [member for seeds in groups.values() for member in seeds]
    stage("opening the samples")
    sources = _opened({k: v for seeds in groups.values() for k, v in seeds.items()}, reference, training, how)
    plan = _plan(sources, members, bins, seed, classifier, threshold)
    sides = surveys(sources, plan, **readers, progress=stage)
    base, learnt = sides["reference"], sides.get("training")
    measured = {title: side for title, side in sides.items() if title != "training"}
    energy = plan.family.energy if plan.has_energy else None
    fits, maps = resolution_fits(measured, energy) if energy else {}, _maps(measured, plan)
    classified = _classified(base, {name: sides[name] for name in members}, classifier, seed, stage)
    inferred = _inferred(base, {name: sides[name] for name in members}, plan, learnt) if inference else {}
    found: dict[str, dict[Key, Metric]] = {}
    for name in members:
        side = sides[name]
        found[name] = measure(base, side, plan, training=learnt)
        if fits:
            found[name] |= fit_metrics(fits["reference"], fits[name], min(base.count, side.count))
            with suppress(ShardError):  # too few showers to calibrate with have nothing to say
                found[name] |= calibration(base.kept, side.kept, seed=seed, bins=bins)
        if maps:
            stage(f"measuring the maps of {name}")
            found[name] |= map_metrics(maps["reference"], maps[name], plan)
        if inference:
            found[name] |= inferred[name][0]
        if name in classified:
            found[name] |= classified[name].metrics | energy_mover_metrics(base.kept, side.kept, plan)
    costs = {name: Costs.mean([Costs.of(sources[member]) for member in seeds]) for name, seeds in groups.items()}
    report = Report(
        plan=plan,
        reference=base,
        generated={name: sides[name] for name in members},
        metrics={name: over_seeds([found[member] for member in seeds]) for name, seeds in groups.items()},
        notes=(
            *_notes(plan, sources, sides, classified, found),
            *(f"{name}: {note}" for name, (_, notes) in inferred.items() for note in notes),
        ),
        training=learnt,
        settings={
            "bins": bins,
            "seed": seed,
            "classifier": classifier,
            "training": learnt is not None,
            **({"inference": True} if inference else {}),
        },
        seeds={name: tuple(seeds) for name, seeds in groups.items() if len(seeds) > 1},
        seed_metrics={m: Metrics(found[m]) for seeds in groups.values() if len(seeds) > 1 for m in seeds},
        fits=fits,
        classifications=classified,
        maps=maps,
        costs={"reference": Costs.of(sources["reference"]), **costs},
        painter=_paint,
        places={side: place_of(sources[side]) for side in ("reference", *groups) if side in sources},
    )
    return replace(report, verdicts={name: verdict(report, name).headline for name in report.metrics})


def _paint(report: Report, name: str, path: Path) -> Path:
    """Draw one figure; matplotlib is brought in by whoever wants it."""
    from .page.save import draw_figure

    return draw_figure(report, name, path)


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


def _name_of(source: Given) -> str:
    name = "generated"
    if isinstance(source, str | Path):
        path = Path(source)
        name = (path.name if path.is_dir() else path.stem).replace("*", "")
    return "generated" if name in ("", "reference", "training") else name


def _opened(
    generated: Mapping[str, Given], reference: Given, training: Given | None, how: Mapping[str, Any]
) -> dict[str, Source]:
    """All sides by name, the reference first, of one family and their labels numbered alike.

    Raises:
        ShardError: If they are not of one family, not usable, or share realisations that they must not.
    """
    given = {name: _open(source, how) for name, source in generated.items()}
    like = next(iter(given.values()), None)  # of files that do not say what they hold
    sources = {"reference": _open(reference, how, "test", like)}
    if training is not None:
        sources["training"] = _open(training, how, "train", like)
    sources |= given
    require_asked(list(sources.values()), how.get("reading"))
    labels = shared_labels(list(sources.values()))
    sources = {name: relabelled(source, labels) for name, source in sources.items()}
    first = sources["reference"]
    for name, source in sources.items():
        if isinstance(source, Samples):  # files were checked when they were opened
            require_usable(source, name)
        require_same(first.family, source.family, name)
    if kind_of(first.family).ensembles:
        if training is not None:
            require_apart(sources["training"].origins(), first.origins())
        for identity in (trained_with(source.provenance) for source in given.values()):
            require_new(first.origins(), identity)
        for name in generated:  # simulations themselves: the same ones again, or others, but not some of them
            source = sources[name]
            if source.kind != "reference" or _names(first) - _names(source):  # what lacks conditions is refused as such
                continue
            if not source.origins().within(first.origins()):
                require_apart(source.origins(), first.origins())
    return sources


def _names(source: Source) -> set[str]:
    return set(source.condition_names if isinstance(source, Shards) else source.conditions)


def _open(source: Given, how: Mapping[str, Any], split: str | None = None, like: Source | None = None) -> Source:
    return open_side(source, split, like, **how) if isinstance(source, str | Path) else source


def _plan(
    sources: Mapping[str, Source],
    members: Sequence[str],
    bins: int,
    seed: int,
    classifier: Recipe,
    threshold: float | None,
) -> SurveyPlan:
    """What all sides share, with the ranges that some surrogate was trained without as selections of their own."""
    first, known = sources["reference"], {name: known_conditions(sources[name]) for name in members}
    everywhere = set(known_conditions(first)).intersection(*known.values())
    provenances = [entry for name in members for entry in sources[name].provenance]
    gaps = held_out_selections(first.family, provenances, everywhere)
    kept = 100_000 if classifier == "calochallenge" else KEPT
    if threshold is None:
        threshold = max(source.family.threshold for source in sources.values())
    return plan_comparison(first, bins=bins, seed=seed, others=known, kept=kept, more=gaps, threshold=threshold)


def _maps(sides: Mapping[str, Survey], plan: SurveyPlan) -> dict[str, MapStatistics]:
    """What is measured on the maps of every side, with the reference's yardstick; nothing of showers."""
    found: dict[str, MapStatistics] = {}
    for title, side in sides.items() if kind_of(plan.family).ensembles else ():
        stage(f"statistics of the maps of {title}")
        found[title] = map_statistics(side, plan, found.get("reference"))
    return found


def _classified(
    base: Survey, sides: Mapping[str, Survey], recipe: Recipe, seed: int, progress: Progress | None
) -> dict[str, Classification]:
    if recipe == "none":
        return {}
    from .metrics.classifiers import classify

    return {
        name: classify(base.kept, side.kept, recipe=recipe, seed=seed, progress=progress)
        for name, side in sides.items()
    }


def _inferred(
    base: Survey, sides: Mapping[str, Survey], plan: SurveyPlan, learnt: Survey | None
) -> dict[str, tuple[dict[Key, Metric], list[str]]]:
    """Metrics of posteriors and what must be said of them, by names of generated samples.

    Raises:
        ConfigError: If the samples are showers, or there are too few boxes.
    """
    if not kind_of(plan.family).ensembles:
        raise ConfigError("inference is of maps", where="`inference`", found=f"family '{plan.family.name}'")
    from .metrics.inference import inference

    return {name: inference(base, side, plan, learnt, seed=plan.seed) for name, side in sides.items()}


def _notes(
    plan: SurveyPlan,
    sources: Mapping[str, Source],
    surveys: Mapping[str, Survey],
    classified: Mapping[str, Classification],
    found: Mapping[str, Mapping[Key, Metric]],
) -> Iterable[str]:
    """What a reader must know, side by side."""
    yield from energy_notes(plan, {name: source for name, source in sources.items() if name != "training"})
    yield from axis_notes(plan)
    yield from realisation_notes(surveys["reference"])
    for name, side in surveys.items():
        yield from (f"{name}: {note}" for note in (classified[name].notes if name in classified else ()))
        yield from source_notes(name, sources[name], side)
        yield from threshold_notes(name, side, plan)
        if name not in ("reference", "training"):
            yield from condition_notes(name, surveys["reference"], side, plan)
            yield from constant_notes(name, found[name])


def over_seeds(found: Sequence[Mapping[Key, Metric]]) -> Metrics:
    """Metrics of several seeds of one surrogate as one: means, the spread between seeds part of the error.

    The error is the root mean square of the seeds' own errors and their standard deviation in quadrature: what one
    further training may give. Metrics that are undefined for a seed are left out.
    """
    if len(found) == 1:
        return Metrics(found[0])
    combined = {}
    for key, first in found[0].items():
        metrics = [seed[key] for seed in found if key in seed and seed[key].value is not None]
        if len(metrics) < len(found):
            continue
        values, errors, floors, floor_errors = (
            np.array([getattr(m, part) for m in metrics], dtype=np.float64)  # None becomes NaN
            for part in ("value", "error", "floor", "floor_error")
        )
        error = math.hypot(float(values.std(ddof=1)), math.sqrt(float(np.mean(np.nan_to_num(errors) ** 2))))
        floor, size = (float(floors.mean()), float(floor_errors.mean())), min(m.n for m in metrics)
        metric = Metric.of(float(values.mean()), error, *floor, size, first.unit)
        limit = all(m.lower_limit for m in metrics)
        combined[key] = replace(metric, statistic=first.statistic, lower_limit=limit)
    return Metrics(combined)
