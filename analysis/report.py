"""Compare generated samples with the reference: one pass over each source, and everything a figure or a table needs."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from calogen.errors import ConfigError, GateError, ShardError, did_you_mean
from calogen.families import Family
from calogen.hdf5 import write_atomic
from calogen.labels import relabelled, shared_labels
from calogen.realisations import require_apart
from calogen.shards import Samples

from .conditioning import Fits, curve_edges, fit_metrics, held_out_selections, resolution_fits
from .distances import Metric
from .downstream import calibration
from .inputs import open_side, require_same, require_settings, require_usable
from .map_metrics import MapStatistics, map_metrics, map_statistics
from .metrics import measure
from .notes import condition_notes, energy_notes, known_conditions, source_notes
from .observables import Observable
from .origins import Costs
from .survey import KEPT, Plan, Progress, Source, Survey, plan_comparison, survey
from .tables import SUMMARY_HEADER, Row, SideBySide, headline, number, worst

if TYPE_CHECKING:
    from .classifiers import Classification

__all__ = ["SCHEMA", "SCHEMA_DOCS", "SUMMARY_HEADER", "Report", "Row", "compare"]

Recipe = Literal["none", "light", "calochallenge"]
Given = Source | str | Path

SCHEMA = 1
_NEAR = 12  # metrics named when one is not known
SCHEMA_DOCS = {
    "schema": "Version of this layout; additions do not change it.",
    "docs": "This description.",
    "family": "Name of the family: geometry, units and conditions.",
    "settings": "What the comparison was asked for: bins, seed, classifier, training.",
    "bins": "Ranges of conditions in which everything is repeated, [low, high) in the condition's unit; 'name' is what "
    "keys print in square brackets; 'inside' tells a held-out range (true) from everything but it (false).",
    "notes": "Sentences to read before believing any number.",
    "reference": "provenance: one entry for each kind of file; samples: how many; resolution: fits of sigma/E = "
    "a/sqrt(E) (+) b/E (+) c, E in GeV, terms stochastic (a), noise (b), constant (c), for the half width of the "
    "central 68 % over the median (core_resolution) and standard deviation over mean (rms_resolution).",
    "training": "The same of the training samples, null if none were given.",
    "generated": "By name: provenance, samples, resolution, metrics, classifier (null if none was asked for), costs, "
    "and for several seeds of one surrogate 'seeds', each with its own; metrics are then means over seeds, and their "
    "errors contain the spread between seeds.",
    "metrics": "By key 'quantity/observable[bin]', without [bin] for all samples: value, error (one standard "
    "deviation), floor (the same for reference against reference), floor_error, pull = (value - floor) / "
    "sqrt(error^2 + floor_error^2), n (samples on each side), unit (sd: standard deviations of the reference). null: "
    "undefined.",
    "costs": "Of training and generation, as far as the files say, on the machines that did it: network, objective, "
    "parameters, training_steps, training_seconds, training_device; samples_per_second is of one process.",
    "classifier": "tell_tales: observables that give the generated samples away, most telling first; controls: what "
    "known defects of the reference give with the same classifier; notes.",
}


@dataclass(frozen=True)
class Report:
    """What a comparison found. Figures and pages are drawn from it and compute nothing themselves.

    Attributes:
        plan: Family, selections and axes that all sides share.
        reference: The reference's survey.
        generated: The survey of each set of generated samples, by name; seeds of one surrogate are ``NAME #1``, ...
        metrics: By name of the surrogate and key; :func:`calogen.analysis.metrics.measure` explains the keys. For
            several seeds their mean; the error is that of one seed and the spread between seeds, in quadrature.
        notes: Sentences a reader must know before believing any number.
        training: The survey of the training samples, if they were given.
        settings: What was asked for.
        seeds: Names in ``generated`` of the seeds of a surrogate that has several.
        seed_metrics: The metrics of every seed by its name in ``generated``.
        fits: Fits of the resolution by side, ``reference`` and names in ``generated``; empty without energies.
        classifications: What classifiers found, by names in ``generated``.
        maps: Statistics of density maps by side, like ``fits``; empty for showers.
        costs: What training and generation cost, by names in ``metrics`` and ``reference``, where the files say.
    """

    plan: Plan
    reference: Survey
    generated: Mapping[str, Survey]
    metrics: Mapping[str, Mapping[str, Metric]]
    notes: tuple[str, ...] = ()
    training: Survey | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed_metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    fits: Mapping[str, Fits] = field(default_factory=dict)
    classifications: Mapping[str, Classification] = field(default_factory=dict)
    maps: Mapping[str, MapStatistics] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """What the samples are."""
        return self.plan.family

    @property
    def observables(self) -> dict[str, Observable]:
        """The observables compared, by name."""
        return self.plan.observables

    def members(self, name: str) -> tuple[str, ...]:
        """Names in ``generated`` of one surrogate: its own, or those of its seeds."""
        return self.seeds.get(name, (name,))

    def count(self, name: str) -> int:
        """Samples of one surrogate, all its seeds together."""
        return sum(self.generated[member].count for member in self.members(name))

    def problems(self, name: str) -> dict[str, int]:
        """How many samples or voxels of one surrogate are unphysical, by kind, all its seeds together."""
        sides = [self.generated[member].problems for member in self.members(name)]
        return {kind: sum(side[kind] for side in sides) for kind in sides[0]}

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``, which :data:`SCHEMA_DOCS` describes and the file repeats under ``docs``.

        No number in it is NaN or infinite, None stands for those.
        """
        training = None if self.training is None else _source_json(self.training)
        content = {
            "schema": SCHEMA,
            "docs": SCHEMA_DOCS,
            "family": self.family.name,
            "settings": dict(self.settings),
            "bins": [asdict(s) for s in self.plan.selections[1:]],
            "notes": list(self.notes),
            "reference": {
                **_source_json(self.reference),
                "resolution": self._fits_json("reference"),
                "costs": self._costs_json("reference"),
            },
            "training": training,
            "generated": {name: self._generated_json(name) for name in self.metrics},
        }
        cleaned: dict[str, Any] = _finite(content)
        return cleaned

    def _generated_json(self, name: str) -> dict[str, Any]:
        costs = {"costs": self._costs_json(name)}
        if name not in self.seeds:
            return self._member_json(name, self.metrics[name]) | costs
        members = self.members(name)
        provenance = [entry for member in members for entry in self.generated[member].provenance]
        metrics = {key: asdict(metric) for key, metric in self.metrics[name].items()}
        seeds = {member: self._member_json(member, self.seed_metrics[member]) for member in members}
        return {"provenance": provenance, "samples": self.count(name), "metrics": metrics, "seeds": seeds, **costs}

    def _member_json(self, name: str, found: Mapping[str, Metric]) -> dict[str, Any]:
        classification = self.classifications.get(name)
        classifier = None
        if classification is not None:
            classifier = {
                "tell_tales": classification.tell_tales,
                "controls": {key: _as_json(control) for key, control in classification.controls.items()},
                "notes": classification.notes,
            }
        return {
            **_source_json(self.generated[name]),
            "resolution": self._fits_json(name),
            "classifier": classifier,
            "metrics": {key: asdict(metric) for key, metric in found.items()},
        }

    def _costs_json(self, name: str) -> dict[str, Any]:
        return self.costs[name].known() if name in self.costs else {}

    def _fits_json(self, name: str) -> dict[str, Any]:
        return {kind: None if fit is None else fit.to_json() for kind, fit in self.fits.get(name, {}).items()}

    def summary(self) -> list[Row]:
        """The lines a terminal shows: overall numbers, then response and layer fractions in every bin, then the worst.

        See :data:`SUMMARY_HEADER` and :attr:`Row.cells`.
        """
        return [
            Row(name, key, found[key])
            for name, found in self.metrics.items()
            for key in [*headline(self, found), *worst(found)]
        ]

    def side_by_side(self) -> SideBySide:
        """One table with the surrogates as columns."""
        return SideBySide.of(self)

    def check(self, limits: Mapping[str, float]) -> None:
        """Compare metrics with limits: a metric passes if its absolute value is at most the limit.

        Args:
            limits: Largest allowed value by key; a key applies to every set of generated samples.

        Raises:
            ConfigError: If a key is not a metric of this report, or a limit not a number.
            GateError: If a value is above its limit, or undefined; lists all that are.
        """
        failed = []
        for key, limit in limits.items():
            if math.isnan(limit):
                raise ConfigError(f"the limit of '{key}' is not a number", where=key, found=limit)
            for name, found in self.metrics.items():
                if key not in found:
                    raise ConfigError(f"there is no metric '{key}'", found=key, hint=_near(key, found))
                value = found[key].value
                if value is None or not abs(value) <= limit:
                    failed.append(f"{key} of {name}: {number(value)} > {limit:g}")
        if failed:
            raise GateError(
                f"{len(failed)} of {len(limits) * len(self.metrics)} limits not met",
                found="; ".join(failed),
                hint="the report shows which observables differ, and by how much more than the floor",
            )

    def save(self, folder: str | Path) -> Path:
        """Write ``metrics.json``, ``report.html``, ``table.csv``, ``table.tex`` and ``figures/*.pdf`` and ``*.png``.

        Args:
            folder: Made if absent; files of an earlier report are replaced.

        Returns:
            The path of ``report.html``.

        Raises:
            StorageError: If the file system refuses.
        """
        from .html import render
        from .plots import draw, encode

        folder = Path(folder)
        text = json.dumps(self.to_json(), indent=1, allow_nan=False, default=str)
        write_atomic(folder / "metrics.json", text.encode())
        table = self.side_by_side()
        write_atomic(folder / "table.csv", table.to_csv().encode())
        write_atomic(folder / "table.tex", table.to_latex().encode())
        figures = []
        for figure in draw(self):
            png = encode(figure, "png")
            write_atomic(folder / "figures" / f"{figure.name}.pdf", encode(figure, "pdf"))
            write_atomic(folder / "figures" / f"{figure.name}.png", png)
            figures.append((figure.name, figure.title, figure.caption, png))
        page = folder / "report.html"
        write_atomic(page, render(self, figures).encode())
        return page


def _near(key: str, known: Mapping[str, Metric]) -> str:
    """The metric meant, or the nearest few of the thousands that there are."""
    near = difflib.get_close_matches(key, known, n=_NEAR)
    if near:
        return did_you_mean(key, near) or ""
    some = difflib.get_close_matches(key, known, n=_NEAR, cutoff=0.0)
    return f"among {len(known)} metrics the nearest are {', '.join(some)}; metrics.json has all"


def _source_json(side: Survey) -> dict[str, Any]:
    return {"provenance": list(side.provenance), "samples": side.count}


def _as_json(value: Any) -> Any:
    return asdict(value) if isinstance(value, Metric) else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


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
        reference: Shards, samples in memory, or a path that :func:`calogen.shards.open_shards` understands; of a folder
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


def _plan(first: Source, opened: Mapping[str, Source], bins: int, seed: int, classifier: Recipe) -> Plan:
    """What all sides share, with the ranges that some surrogate was trained without as selections of their own."""
    known = {name: known_conditions(source) for name, source in opened.items()}
    everywhere = set(known_conditions(first)).intersection(*known.values())
    provenances = [entry for source in opened.values() for entry in source.provenance]
    gaps = held_out_selections(first.family, provenances, everywhere)
    kept = 100_000 if classifier == "calochallenge" else KEPT
    return plan_comparison(first, bins=bins, seed=seed, others=known, kept=kept, more=gaps)


def _fits(name: str, side: Survey, base: Survey, plan: Plan) -> dict[str, Fits]:
    if plan.family.kind == "map" or not plan.has_energy:
        return {}
    condition = plan.family.conditions[0]
    return {name: resolution_fits(side, condition, curve_edges(base, condition))}


def _classified(base: Survey, side: Survey, classifier: Recipe, seed: int, progress: Progress | None) -> Classification:
    from .classifiers import classify

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
