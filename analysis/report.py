"""Compare generated samples with the reference: one pass over each source, and everything a figure or a table needs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calogen.errors import ConfigError, GateError, ShardError, did_you_mean
from calogen.families import Family
from calogen.hdf5 import write_atomic

from .distances import Draws, Metric, compare_1d, scale_of, wasserstein_1d
from .histograms import observable_edges, selections
from .metrics import FEWEST, measure
from .observables import Observable, observables
from .survey import Plan, Progress, Source, Survey, common_conditions, plan_comparison, survey

if TYPE_CHECKING:
    from calogen.shards import Samples

SCHEMA = 1


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
        pull = f"{m.pull:+.1f}" if m.pull is not None else "-"
        return self.generated, self.key, value, number(m.floor), pull, m.unit


SUMMARY_HEADER = ("generated", "metric", "value", "floor", "pull", "unit")


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Report:
    """What a comparison found. Figures and pages are drawn from it and compute nothing themselves.

    Attributes:
        plan: Family, selections and axes that all sides share.
        reference: The reference's survey.
        generated: The survey of each set of generated samples, by name.
        metrics: By name of the generated samples and key; :func:`calogen.analysis.metrics.measure` explains the keys.
        notes: Sentences a reader must know before believing any number.
    """

    plan: Plan
    reference: Survey
    generated: Mapping[str, Survey]
    metrics: Mapping[str, Mapping[str, Metric]]
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """What the samples are."""
        return self.plan.family

    @property
    def observables(self) -> dict[str, Observable]:
        """The observables compared, by name."""
        return self.plan.observables

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``: no number in it is NaN or infinite, None stands for those."""
        generated = {
            name: {
                "provenance": list(self.generated[name].provenance),
                "samples": self.generated[name].count,
                "metrics": {key: asdict(metric) for key, metric in found.items()},
            }
            for name, found in self.metrics.items()
        }
        reference = {"provenance": list(self.reference.provenance), "samples": self.reference.count}
        content = {
            "schema": SCHEMA,
            "family": self.family.name,
            "seed": self.plan.seed,
            "bins": [asdict(s) for s in self.plan.selections[1:]],
            "notes": list(self.notes),
            "reference": reference,
            "generated": generated,
        }
        cleaned: dict[str, Any] = _finite(content)
        return cleaned

    def summary(self) -> list[Row]:
        """The lines a terminal shows: overall numbers, then response and layer fractions in every bin, then the worst.

        See :data:`SUMMARY_HEADER` and :attr:`Row.cells`.
        """
        return [Row(name, key, found[key]) for name, found in self.metrics.items() for key in _headline(self, found)]

    def check(self, limits: Mapping[str, float]) -> None:
        """Compare metrics with limits: a metric passes if its absolute value is at most the limit.

        Args:
            limits: Largest allowed value by key; a key applies to every set of generated samples.

        Raises:
            ConfigError: If a key is not a metric of this report.
            GateError: If a value is above its limit, or undefined; lists all that are.
        """
        failed = []
        for key, limit in limits.items():
            for name, found in self.metrics.items():
                if key not in found:
                    raise ConfigError(f"there is no metric '{key}'", found=key, hint=did_you_mean(key, found))
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
        """Write ``metrics.json``, ``report.html`` and ``figures/*.pdf`` and ``*.png``.

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
        figures = []
        for figure in draw(self):
            png = encode(figure, "png")
            write_atomic(folder / "figures" / f"{figure.name}.pdf", encode(figure, "pdf"))
            write_atomic(folder / "figures" / f"{figure.name}.png", png)
            figures.append((figure.name, figure.title, figure.caption, png))
        page = folder / "report.html"
        write_atomic(page, render(self, figures).encode())
        return page


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


def _headline(report: Report, found: Mapping[str, Metric]) -> list[str]:
    keys = [k for k in found if "/" not in k or k.split("/")[1] in ("voxel", "pixel")]
    few = [f"fraction_{n}" for n in report.family.layer_numbers] if len(report.family.layers) <= 4 else []
    size = "response" if report.plan.has_energy else "total_energy"
    shown = [size, *few] if report.family.kind == "calorimeter" else ["mean", "std", "peaks"]
    for kind in ("mean", "spread"):
        for name in shown:
            inside = [f"{kind}/{name}{s.suffix}" for s in report.plan.selections[1:] or report.plan.selections]
            keys += [key for key in inside if key in found]
    return keys + worst(found)


def worst(found: Mapping[str, Metric], count: int = 5) -> list[str]:
    """The observables farthest from the reference: keys of ``w1_sd`` over all samples with the largest pulls."""
    keys = [k for k in found if k.startswith("w1_sd/") and "[" not in k]
    return sorted(keys, key=lambda k: -_pull(found[k]))[:count]


def _pull(metric: Metric) -> float:
    return math.inf if metric.pull is None else metric.pull


def compare(
    reference: Source | str | Path,
    generated: Source | str | Path | Mapping[str, Source | str | Path],
    *,
    bins: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Compare generated samples with the reference.

    Each source is read once, in chunks; what is kept is bounded (:class:`calogen.analysis.survey.Survey`).

    Showers of one side without incident energies (of a surrogate that is not conditioned on them) are compared without:
    no response, no bins of energy, whole showers in units of the reference's mean deposited energy.

    Args:
        reference: Shards, samples in memory, or a path that :func:`calogen.shards.open_shards` understands.
        generated: The same, or several by name.
        bins: Bins of each condition in which everything is repeated.
        seed: Decides splits, directions and sub-samples.
        progress: Called with the name of a source, samples done and samples in all.

    Raises:
        ShardError: If a source is empty, unreadable, too small, or of another family.
    """
    first = _open(reference)
    sources = generated if isinstance(generated, Mapping) else {_name_of(generated): generated}
    opened = {name: _open(source) for name, source in sources.items()}
    for name, source in opened.items():
        _require_same(first.family, source.family, name)
    plan = plan_comparison(
        first, bins=bins, seed=seed, others={name: _known_conditions(source) for name, source in opened.items()}
    )
    base = survey(first, plan, title="reference", progress=progress)
    surveys, metrics = {}, {}
    notes = _energy_notes(plan, {"reference": first, **opened}) + _source_notes("reference", first, base)
    for name, source in opened.items():
        surveys[name] = survey(source, plan, title=name, progress=progress)
        metrics[name] = measure(base, surveys[name], plan)
        notes += _source_notes(name, source, surveys[name]) + _condition_notes(name, base, surveys[name], plan)
    return Report(plan, base, surveys, metrics, tuple(notes))


def _open(source: Source | str | Path) -> Source:
    if isinstance(source, str | Path):
        from calogen.shards import open_shards

        return open_shards(source)
    return source


def _name_of(source: Source | str | Path) -> str:
    if isinstance(source, str | Path):
        path = Path(source)
        return (path.name if path.is_dir() else path.stem).replace("*", "") or "generated"
    return "generated"


def _known_conditions(source: Source) -> list[str]:
    """Names of the conditions that a source has; all of the family's for an empty one, which is refused later."""
    if not len(source):
        return [c.name for c in source.family.conditions]
    return list(source.read(0, 1).conditions)


def _energy_notes(plan: Plan, sources: Mapping[str, Source]) -> list[str]:
    if plan.has_energy:
        return []
    lacking = [name for name, source in sources.items() if "incident_energy" not in _known_conditions(source)]
    return [
        f"{' and '.join(lacking)}: the showers come without incident energies, so nothing here uses them: no response, "
        "no bins of energy, and whole showers are divided by the reference's mean deposited energy. If the two sides "
        "were made for different energies, every difference contains that."
    ]


def _source_notes(name: str, source: Source, side: Survey) -> list[str]:
    notes = [f"{name}: {note}." for note in getattr(source, "notes", ())]
    if name == "reference" and getattr(source, "kind", "reference") != "reference":
        notes.append("reference: these samples are themselves generated, not simulated.")
    words = {
        "dropped_samples": "bad samples were dropped while reading and are in no number",
        "nonfinite_samples": "samples have voxels that are not finite; they are left out of every other number",
        "negative_voxels": "voxels are negative",
        "response_too_high": "showers deposit more energy than the family allows",
    }
    notes += [f"{name}: {side.problems[key]} {text}." for key, text in words.items() if side.problems.get(key)]
    if (listed := side.table.shape[1]) < side.used:
        of_all = f"a random {listed:,} of its {side.used:,} samples"
        notes.append(f"{name}: distances use {of_all}; spectra and means use all.")
    return notes


def _condition_notes(name: str, base: Survey, side: Survey, plan: Plan) -> list[str]:
    """Say so if the two sides were made for different conditions: then every other number is off as well."""
    notes = []
    for condition in plan.family.conditions:
        if condition.name not in base.conditions or condition.name not in side.conditions:
            continue
        r, g = base.conditions[condition.name], side.conditions[condition.name]
        draws = Draws.make(len(r), len(g), plan.seed, groups=base.groups, cap=10_000)
        metric = Metric.from_splits(compare_1d(r, g, observable_edges(Observable("", ""), r), draws).w1, draws.n)
        if metric.pull is not None and metric.pull > 5:
            notes.append(
                f"{name}: its {condition.name} is not distributed as in the reference (Wasserstein distance "
                f"{number(metric.value)} {condition.unit}, {number(metric.floor)} expected), so part of every "
                "difference comes from that; generate with --like REFERENCE."
            )
        outside = ~np.any([s.of(side.conditions, len(g)) for s in plan.selections if s.condition == condition.name], 0)
        if len(plan.selections) > 1 and outside.any():
            notes.append(f"{name}: {int(outside.sum())} samples lie outside all bins of {condition.name}.")
    return notes


def score(reference: Samples, generated: Samples, *, bins: int = 4) -> float:
    """How far generated samples are from the reference: one number, 0 for perfect, in reference standard deviations.

    The mean over all observables and bins of the conditions of W1 over the reference's standard deviation: in the bin,
    or in the whole reference where the bin has fewer than 20 of its samples. Fast enough for validation during
    training. A finite sample gives a floor above 0.

    Args:
        reference: N samples in physical units.
        generated: M samples of the same family, with about the same conditions; rows that are not finite count as
            infinitely far.
        bins: Bins of each condition.

    Raises:
        ShardError: If a side is empty or the families differ.
    """
    _require_same(reference.family, generated.family, "generated")
    if not len(reference.values) or not len(generated.values):
        raise ShardError("a score needs samples on both sides")
    if not np.isfinite(generated.values).all():
        return math.inf
    mine, other = observables(reference), observables(generated)
    names = [name for name in mine if name in other]
    common = common_conditions(reference.family, [reference.conditions, generated.conditions])
    found: list[float] = []
    parts = selections(reference.family, {n: c for n, c in reference.conditions.items() if n in common}, bins)
    for selection in parts[1:] or parts:
        a = selection.of(reference.conditions, len(reference.values))
        b = selection.of(generated.conditions, len(generated.values))
        if a.any() and b.any():
            # A few samples may be all alike by chance: their spread is no yardstick.
            yardstick = a if np.count_nonzero(a) >= FEWEST else np.ones_like(a)
            found += [wasserstein_1d(mine[n][a], other[n][b]) / scale_of(mine[n][yardstick]) for n in names]
    return float(np.mean(found)) if found else math.inf


def _require_same(reference: Family, generated: Family, name: str) -> None:
    if not reference.same_samples(generated):
        raise ShardError(
            "samples of different families cannot be compared",
            where=name,
            expected=f"family '{reference.name}' ({reference.voxels} voxels, {len(reference.layers)} layers)",
            found=f"family '{generated.name}' ({generated.voxels} voxels, {len(generated.layers)} layers)",
        )
