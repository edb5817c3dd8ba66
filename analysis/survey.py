"""One streaming pass over a source of samples, and what is kept of it: everything a report needs, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import hist
import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.families import Family
from calogen.shards import Samples

from .distances import directions
from .histograms import (
    Histograms,
    Selection,
    Spectra,
    disjoint,
    float32_edges,
    observable_edges,
    selections,
    spectrum_axis,
)
from .moments import Covariance, Means
from .observables import Observable, catalogue, observables

Array = NDArray[np.float64]
Columns = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

PROJECTIONS = 64
KEPT = 10_000  # whole samples kept for exact earth mover's distances, classifiers and the voxel spectrum's floor
_KEPT_BYTES = 2**28
_ROWS = 1_000_000  # samples whose observables are kept one by one
_ROWS_BYTES = 2**29
_CHUNK_BYTES = 2**25
_EXAMPLES = 4
_FLOOR_PIXEL = 1e-3
_PLANNED = 2**14  # reference samples that decide bins and edges
_FEWEST_PLANNED = 50  # of them in a selection, for edges of its own
_COVARIANCE_VOXELS = 1000  # largest samples whose voxel covariance is accumulated


class Source(Protocol):
    """What a comparison reads: an open folder of shards, or samples in memory."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def provenance(self) -> tuple[dict[str, Any], ...]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def read(self, start: int = 0, stop: int | None = None) -> Samples:  # noqa: D102
        ...

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:  # noqa: D102
        ...


@dataclass(frozen=True)
class Plan:
    """What every survey of one comparison must share; decided by the reference.

    Attributes:
        family: What a sample is.
        selections: All samples, then the bins of each condition.
        axis: Axis of the voxel spectrum.
        edges: By observable, histogram edges of each selection.
        targets: Conditions of the example samples, (T, C), in the family's order and units; their deposited energies,
            (T, 1), where incident energies are not known.
        seed: Decides directions and which whole samples are kept.
        fixed_scale: What whole showers are divided by where some of them have no incident energies: the reference's
            mean deposited energy. None where every shower is divided by its own incident energy.
        kept: Whole samples to keep of each side, at most.
        rows: Samples of each side whose observables are kept, at most; of more, a seeded subset.
    """

    family: Family
    selections: tuple[Selection, ...]
    axis: hist.axis.Regular
    edges: Mapping[str, tuple[Array, ...]]
    targets: Array
    seed: int
    fixed_scale: float | None = None
    kept: int = KEPT
    rows: int = _ROWS

    @property
    def has_energy(self) -> bool:
        """Whether nothing is left out for want of incident energies; true for maps."""
        return self.fixed_scale is None

    @property
    def observables(self) -> dict[str, Observable]:
        """The observables that every side has, by name."""
        return catalogue(self.family, energy=self.has_energy)


@dataclass
class Survey:
    """What one pass keeps of a source of N samples.

    Histograms, spectra, means, covariance and problems are of all samples; ``table``, ``projections``, ``conditions``
    and ``groups`` of all or, of more than ``Plan.rows``, of a seeded subset of n; ``kept`` is a subset of those.

    Attributes:
        count: Samples read, N; those with voxels that are not finite are left out of everything below.
        names: Names of the observables, K.
        provenance: Where the samples come from.
        conditions: By name, (n,).
        table: Observables, (K, n), in the order of the catalogue.
        projections: Each sample along random directions, (P, n).
        groups: Realisations, (n,), if the source has them.
        kept: Whole samples in physical units, at most ``Plan.kept``.
        kept_index: Their columns in ``table``, increasing.
        kept_spectra: Their voxel histograms, (kept, B + 2).
        histograms: Of every observable in each selection.
        spectra: Voxel spectrum of each selection.
        means: Mean sample of each selection.
        covariance: Of the voxels of samples as :func:`vectors`; None for samples of more than 1,000 voxels.
        examples: Samples nearest to the plan's targets, (T, V), and their conditions, (T, C).
        problems: How many samples or voxels are unphysical, by kind.
    """

    count: int
    names: list[str]
    provenance: tuple[dict[str, Any], ...]
    conditions: dict[str, Columns]
    table: Columns
    projections: Columns
    groups: NDArray[np.integer[Any]] | None
    kept: Samples
    kept_index: NDArray[np.intp]
    kept_spectra: NDArray[np.int32]
    histograms: Histograms
    spectra: Spectra
    means: Means
    covariance: Covariance | None
    examples: tuple[Columns, Array]
    problems: dict[str, int]

    @property
    def used(self) -> int:
        """Samples that spectra and means are of: all but those with voxels that are not finite."""
        return int(self.means.count[0])

    @property
    def kept_groups(self) -> NDArray[np.integer[Any]] | None:
        """Realisations of the samples kept whole, if the source has them."""
        return None if self.groups is None else self.groups[self.kept_index]

    def members(self, selection: Selection) -> NDArray[np.bool_]:
        """Which columns of the table belong to a selection, (n,)."""
        return selection.of(self.conditions, self.table.shape[1])


def vectors(samples: Samples, fixed_scale: float | None = None) -> Columns:
    """Whole samples as vectors in which distances mean something, (N, V) float32.

    Showers: voxel energies over the incident energy, or over ``fixed_scale``. Maps: ln(1 + delta + 0.001).
    """
    flat = samples.values.reshape(len(samples.values), -1)
    if samples.family.kind == "map":
        return np.log(np.maximum(flat, 0) + np.float32(_FLOOR_PIXEL))
    if fixed_scale is not None:
        return np.asarray(flat / np.float32(fixed_scale), dtype=np.float32)
    incident = np.maximum(samples.conditions["incident_energy"], np.finfo(np.float32).tiny)
    return np.asarray(flat / incident[:, None], dtype=np.float32)


def common_conditions(family: Family, sides: Sequence[Collection[str]]) -> list[str]:
    """The family's conditions that a comparison uses.

    All of them, so that a side which lacks one is noticed; but a surrogate need not be conditioned on the incident
    energy, so where showers come without it, whatever else every side has.

    Args:
        family: What the samples are.
        sides: Names of the conditions that each side has.
    """
    names = [c.name for c in family.conditions]
    if family.kind == "map" or all("incident_energy" in side for side in sides):
        return names
    return [n for n in names if all(n in side for side in sides)]


def plan_comparison(
    reference: Source,
    *,
    bins: int,
    seed: int,
    others: Mapping[str, Collection[str]] | None = None,
    kept: int = KEPT,
    more: Sequence[Selection] = (),
) -> Plan:
    """Selections, axes and example energies, from reference samples spread evenly over the source.

    Args:
        reference: The reference.
        bins: Bins of each condition.
        seed: See :class:`Plan`.
        others: Names of the conditions of the sides to be compared with it.
        kept: Whole samples to keep of each side; fewer if they would take more than 256 MiB.
        more: Selections to be added to the bins.

    Raises:
        ShardError: If the reference is empty.
    """
    family, glance = reference.family, _glance(reference)
    common = common_conditions(family, [glance.conditions, *(others or {}).values()])
    conditions = {name: values for name, values in glance.conditions.items() if name in common}
    fixed_scale, targets = None, _example_targets(family, conditions)
    if family.kind == "calorimeter" and "incident_energy" not in common:
        deposited = glance.table["total_energy"]
        fixed_scale = (float(deposited.mean()) if len(deposited) else 0.0) or 1.0
        targets = np.quantile(deposited, _example_quantiles())[:, None] if len(deposited) else np.zeros((_EXAMPLES, 1))
    chosen = (*selections(family, conditions, bins), *more)
    kept = max(1, min(kept, _KEPT_BYTES // (4 * family.voxels)))
    rows = max(kept, min(_ROWS, _ROWS_BYTES // (4 * (len(glance.table) + PROJECTIONS))))
    return Plan(
        family=family,
        selections=chosen,
        axis=spectrum_axis(max(glance.low, glance.high * 1e-9), 2 * glance.high),
        edges=_edges(catalogue(family, energy=fixed_scale is None), chosen, glance),
        targets=targets,
        seed=seed,
        fixed_scale=fixed_scale,
        kept=kept,
        rows=rows,
    )


@dataclass(frozen=True)
class _Glance:
    """Some reference samples, spread evenly over the source: their observables and conditions by name, (n,) each.

    Those with voxels that are not finite are left out; ``low`` and ``high`` are the smallest and largest voxel above 0.
    """

    table: dict[str, Array]
    conditions: dict[str, NDArray[np.floating[Any]]]
    low: float
    high: float


def _glance(reference: Source) -> _Glance:
    count, voxels = len(reference), reference.family.voxels
    if count == 0:
        raise ShardError("the reference has no samples", hint="give a file or folder with samples")
    width = max(1, min(256, _CHUNK_BYTES // (4 * voxels)))
    parts = max(16, _PLANNED // (256 * max(1, voxels // 1000)))  # fewer of large samples
    starts = np.arange(0, count, width)
    if count > parts * width:
        starts = np.linspace(0, count - width, parts).astype(int)
    tables: list[dict[str, Array]] = []
    conditions: dict[str, list[NDArray[np.float32]]] = {}
    low, high = np.inf, 0.0
    for start in starts.tolist():
        part = reference.read(start, min(start + width, count))
        part = part.select(np.isfinite(part.values.reshape(len(part), -1)).all(axis=1))
        positive = part.values[part.values > 0]
        if len(positive):
            low, high = min(low, float(positive.min())), max(high, float(positive.max()))
        tables.append(observables(part))
        for name, values in part.conditions.items():
            conditions.setdefault(name, []).append(values)
    joined = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    low, high = (low, high) if high else (0.1, 1.0)
    return _Glance(joined, {name: np.concatenate(c) for name, c in conditions.items()}, low, high)


def _edges(
    known: Mapping[str, Observable], chosen: Sequence[Selection], glance: _Glance
) -> dict[str, tuple[Array, ...]]:
    """Histogram edges of every observable in each selection; those of all samples where there are too few."""
    count = len(next(iter(glance.table.values())))
    members = [selection.of(glance.conditions, count) for selection in chosen]
    own = [mine if np.count_nonzero(mine) >= _FEWEST_PLANNED else np.ones(count, dtype=bool) for mine in members]
    return {
        name: tuple(observable_edges(observable, glance.table[name][mine].astype(np.float32)) for mine in own)
        for name, observable in known.items()
    }


def _deposited(samples: Samples) -> Array:
    """Energy in all voxels of each shower, (N,)."""
    return np.asarray(samples.values.reshape(len(samples.values), -1).sum(axis=1, dtype=np.float64))


def _example_quantiles() -> Array:
    return np.asarray((np.arange(_EXAMPLES) + 0.5) / _EXAMPLES)


def _example_targets(family: Family, conditions: Mapping[str, NDArray[np.floating[Any]]]) -> Array:
    """Conditions at which samples are shown: quantiles of the first, medians of the others; (T, C)."""
    quantiles = _example_quantiles()
    columns = [
        np.quantile(conditions[c.name], quantiles if position == 0 else np.full(_EXAMPLES, 0.5))
        for position, c in enumerate(c for c in family.conditions if c.name in conditions)
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((_EXAMPLES, 0))


class _Examples:
    """The samples nearest to the targets among all that pass by."""

    def __init__(self, plan: Plan, names: list[str]) -> None:
        self._targets, self._names, self._by_conditions = plan.targets, names, plan.has_energy
        self._scale = np.maximum(np.abs(plan.targets).mean(axis=0), 1e-30)
        self.values = np.zeros((len(plan.targets), plan.family.voxels), dtype=np.float32)
        self.conditions = np.full(plan.targets.shape, np.nan)
        self._distance = np.full(len(plan.targets), np.inf)
        self._seen = 0

    def fill(self, samples: Samples) -> None:
        """Look at the next samples."""
        count = len(samples.values)
        if not count:
            return
        mine: NDArray[np.floating[Any]] | None = None
        if not self._by_conditions:
            mine = _deposited(samples)[:, None]
        elif self._names:
            mine = np.stack([samples.conditions[n] for n in self._names], axis=1)
        for t, target in enumerate(self._targets):
            if mine is None:  # nothing to match: the first samples
                if self._seen <= t < self._seen + count:
                    self.values[t] = samples.values[t - self._seen].ravel()
                continue
            away = np.sum(((mine - target) / self._scale) ** 2, axis=1)
            best = int(np.argmin(away))
            if away[best] < self._distance[t]:
                self._distance[t] = away[best]
                self.values[t], self.conditions[t] = samples.values[best].ravel(), mine[best]
        self._seen += count


def survey(source: Source, plan: Plan, *, title: str = "", progress: Progress | None = None) -> Survey:
    """Read a source once and keep what a report needs.

    Args:
        source: Samples in physical units.
        plan: Shared by all sides of a comparison.
        title: Name of the source for ``progress``.
        progress: Called with title, samples done and samples in all.

    Raises:
        ShardError: If the source is empty or lacks a condition the plan selects by.
    """
    count = len(source)
    if count == 0:
        raise ShardError("there are no samples to compare", where=title or None)
    ongoing = _Pass(plan, count)
    for chunk in source.chunks(_rows_at_once(plan.family)):
        ongoing.add(chunk)
        if progress is not None:
            progress(title, ongoing.done, count)
    if not ongoing.done:
        raise ShardError("no sample of the source can be used", where=title or None)
    # A source opened with ``drop_bad`` has left out rows that are as unphysical as those counted here.
    ongoing.problems["dropped_samples"] = getattr(source, "dropped", 0)
    return ongoing.survey(tuple(source.provenance))


def _rows_at_once(family: Family) -> int:
    return max(1, min(4096, _CHUNK_BYTES // (4 * family.voxels)))


class _Buffers:
    """Arrays filled from the left and allocated once: to concatenate parts would hold everything twice."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrays: dict[str, NDArray[Any]] = {}
        self._filled: dict[str, int] = {}

    def add(self, name: str, part: NDArray[Any]) -> None:
        """Append along the last axis."""
        if name not in self._arrays:
            self._arrays[name] = np.empty((*part.shape[:-1], self._size), part.dtype)
        start = self._filled.get(name, 0)
        self._filled[name] = stop = start + part.shape[-1]
        self._arrays[name][..., start:stop] = part

    def get(self, name: str) -> NDArray[Any]:
        """What has been appended."""
        return self._arrays[name][..., : self._filled[name]]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays


class _Pass:
    """A pass under way: what has been accumulated so far."""

    def __init__(self, plan: Plan, count: int) -> None:
        family = plan.family
        self.plan, self.done = plan, 0
        order = np.random.default_rng([plan.seed, 1]).choice(count, size=min(count, plan.rows), replace=False)
        self._listed, self._whole = np.zeros((2, count), dtype=bool)
        self._listed[order], self._whole[order[: plan.kept]] = True, True
        self._basis = directions(family.voxels, PROJECTIONS, plan.seed).astype(np.float32)
        self._spectra = Spectra(plan.axis, plan.selections)
        self._histograms = Histograms(plan.edges)
        self._means = Means(family.voxels, plan.selections)
        self._covariance = Covariance(family.voxels) if family.voxels <= _COVARIANCE_VOXELS else None
        self._examples: _Examples | None = None
        self._columns = _Buffers(len(order))
        self._conditions: list[str] = []
        self._kept: list[Samples] = []
        kinds = ("nonfinite_voxels", "nonfinite_samples", "negative_voxels")
        self.problems = dict.fromkeys(kinds, 0)
        if family.kind == "calorimeter" and plan.has_energy:
            self.problems["response_too_high"] = 0

    def add(self, chunk: Samples) -> None:
        """Take in the next samples."""
        plan, family = self.plan, self.plan.family
        if not plan.has_energy:  # one side's energies are of no use without the other's
            known = {name: c for name, c in chunk.conditions.items() if name != "incident_energy"}
            chunk = replace(chunk, conditions=known)
        good = self._inspect(chunk)
        rows = slice(self.done, self.done + len(good))
        listed, whole = self._listed[rows][good], self._whole[rows][good]
        self.done += len(good)
        samples = chunk if good.all() else chunk.select(good)
        members = np.stack([s.of(samples.conditions, len(samples.values)) for s in plan.selections])
        parts = disjoint(members)
        self._spectra.fill(samples.values, parts)
        self._means.fill(samples.values, members)
        if self._examples is None:
            names = [c.name for c in family.conditions if c.name in chunk.conditions]
            self._examples = _Examples(plan, names[: plan.targets.shape[1]])
        self._examples.fill(samples)
        measured = observables(samples)
        if "response" in measured:
            self.problems["response_too_high"] += int(np.count_nonzero(measured["response"] > family.max_response))
        table = np.stack(list(measured.values())).astype(np.float32)
        self._histograms.fill(table, parts)
        vector = vectors(samples, plan.fixed_scale)
        if self._covariance is not None:
            self._covariance.fill(vector)
        self._list(samples, table, vector, listed)
        self._columns.add("whole", whole[listed])
        self._kept.append(samples.select(whole))

    def _list(self, samples: Samples, table: Columns, vector: Columns, listed: NDArray[np.bool_]) -> None:
        """Keep the observables, projections and conditions of some samples."""
        rows = slice(None) if listed.all() else np.flatnonzero(listed)
        self._columns.add("table", table[:, rows])
        self._columns.add("projections", (vector[rows] @ self._basis).T)
        if "realisation_id" in samples.extras:
            self._columns.add("groups", np.asarray(samples.extras["realisation_id"])[rows])
        self._conditions = list(samples.conditions)
        for name, values in samples.conditions.items():
            self._columns.add(f"condition {name}", values[rows])

    def survey(self, provenance: tuple[dict[str, Any], ...]) -> Survey:
        """The finished survey."""
        columns = self._columns
        examples = self._examples or _Examples(self.plan, [])
        kept = Samples.concatenate(self._kept)
        return Survey(
            count=self.done,
            names=list(self.plan.observables),
            provenance=provenance,
            conditions={name: columns.get(f"condition {name}") for name in self._conditions},
            table=columns.get("table"),
            projections=columns.get("projections"),
            groups=columns.get("groups") if "groups" in columns else None,
            kept=kept,
            kept_index=np.flatnonzero(columns.get("whole")),
            kept_spectra=_spectrum_rows(self.plan, kept.values),
            histograms=self._histograms,
            spectra=self._spectra,
            means=self._means,
            covariance=self._covariance,
            examples=(examples.values, examples.conditions),
            problems=self.problems,
        )

    def _inspect(self, samples: Samples) -> NDArray[np.bool_]:
        """Count what is unphysical; returns which samples are finite, (N,)."""
        flat = samples.values.reshape(len(samples.values), -1)
        if flat.size and flat.min() >= 0 and flat.max() < np.inf:  # NaN fails both; quick when all is well
            return np.ones(len(flat), dtype=bool)
        finite = np.isfinite(flat)
        good = np.asarray(finite.all(axis=1))
        self.problems["nonfinite_voxels"] += int(finite.size - np.count_nonzero(finite))
        self.problems["nonfinite_samples"] += int(len(good) - np.count_nonzero(good))
        self.problems["negative_voxels"] += int(np.count_nonzero(flat < 0))
        return good


def _spectrum_rows(plan: Plan, values: Columns) -> NDArray[np.int32]:
    """The voxel histogram of each sample, (n, B + 2)."""
    flat = values.reshape(len(values), -1)
    width = plan.axis.size + 2
    place = np.searchsorted(float32_edges(plan.axis.edges), flat, side="right") + width * np.arange(len(flat))[:, None]
    return np.bincount(place.ravel(), minlength=width * len(flat)).reshape(len(flat), width).astype(np.int32)
