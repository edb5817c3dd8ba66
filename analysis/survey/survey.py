"""One streaming pass over a source of samples, and what is kept of it: everything a report needs, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from calogen.errors import ConfigError, ShardError, did_you_mean
from calogen.families import Family
from calogen.shards.reader import Source
from calogen.shards.samples import Samples

from ..observables.statistics import FLOOR_PIXEL
from .histograms import Histograms, float32_edges
from .moments import Covariance, Means
from .plan import PROJECTIONS, SurveyPlan, directions
from .selections import Selection
from .streams import Streams

Array = NDArray[np.float64]
Columns = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
_CHUNK_BYTES = 2**25


@dataclass
class Survey:
    """What one pass keeps of a source of N samples.

    Histograms, spectra, means, covariance and problems are of all samples; ``table``, ``projections``, ``conditions``
    and ``groups`` of all or, of more than ``SurveyPlan.rows``, of a seeded subset of n; ``kept`` is a subset of those.

    Attributes:
        count: Samples read, N; those with voxels that are not finite are left out of everything below.
        names: Names of the observables, K.
        provenance: Where the samples come from.
        conditions: By name, (n,).
        table: Observables, (K, n), in the order of the catalogue.
        projections: Each sample along random directions, (P, n).
        groups: Realisations, (n,), if the source has them.
        kept: Whole samples in physical units, at most ``SurveyPlan.kept``.
        kept_index: Their columns in ``table``, increasing.
        kept_spectra: Their voxel histograms, (kept, B + 2).
        histograms: Of every observable and of single voxels in each selection.
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
        return np.log(np.maximum(flat, 0) + np.float32(FLOOR_PIXEL))
    if fixed_scale is not None:
        return np.asarray(flat / np.float32(fixed_scale), dtype=np.float32)
    incident = samples.conditions[samples.family.conditions[0].name]
    return np.asarray(flat / np.maximum(incident, np.finfo(np.float32).tiny)[:, None], dtype=np.float32)


def histogram(
    plan: SurveyPlan, sides: Mapping[str, Sequence[Survey]], name: str, selection: str = ""
) -> hist.Hist[Any]:
    """The histogram of an observable, or of single voxels, on every side: of all samples, on the reference's edges.

    Args:
        plan: Shared by all sides.
        sides: By name; several seeds of one surrogate are added.
        name: Of the observable; ``voxel`` or ``pixel`` for the spectrum.
        selection: Name of a bin of the conditions as keys print it in brackets; empty for all samples.

    Returns:
        Axes ``side`` and ``name``, with under- and overflow.

    Raises:
        ConfigError: If there is no such observable or bin.
    """
    names = [s.name for s in plan.selections]
    for what, given, known in (("observable", name, list(plan.edges)), ("bin", selection, names)):
        if given not in known:
            raise ConfigError(f"there is no {what} '{given}'", found=given, hint=did_you_mean(given, known))
    number = names.index(selection)
    axis: hist.axis.Regular | hist.axis.Variable = plan.axis
    if name != axis.name:
        label = plan.observables[name].axis_label
        axis = hist.axis.Variable(plan.edges[name][number], name=name, label=label)
    found = hist.Hist(hist.axis.StrCategory(list(sides), name="side"), axis, storage=hist.storage.Int64())
    contents = [np.sum([side.histograms.counts(name, number) for side in seeds], axis=0) for seeds in sides.values()]
    found.view(flow=True)[: len(sides)] = contents
    return found


class _Examples:
    """The samples nearest to the targets among all that pass by."""

    def __init__(self, plan: SurveyPlan) -> None:
        self._plan, self._targets = plan, plan.targets
        self._scale = np.maximum(np.abs(plan.targets).mean(axis=0), 1e-30)
        self.values = np.zeros((len(plan.targets), plan.family.voxels), dtype=np.float32)
        self.conditions = np.full(plan.targets.shape, np.nan)
        self._distance = np.full(len(plan.targets), np.inf)
        self._rows = np.full(len(plan.targets), -1)  # of the samples shown, counted from the first that passed
        self._seen = 0

    def fill(self, samples: Samples) -> None:
        """Look at the next samples."""
        count = len(samples)
        mine = self._places(samples)
        for t, target in enumerate(self._targets):
            away = np.sum(((mine - target) / self._scale) ** 2, axis=1)
            others = np.delete(self._rows, t) - self._seen
            others = others[others >= 0]
            if len(others) < count:  # the same sample twice would look like copies
                away[others] = np.inf
            best = int(np.argmin(away))
            if away[best] < self._distance[t]:
                self._distance[t], self._rows[t] = away[best], self._seen + best
                self.values[t], self.conditions[t] = samples.values[best].ravel(), mine[best]
        self._seen += count

    def _places(self, samples: Samples) -> NDArray[np.floating[Any]]:
        """What the targets are of: deposited energies (N, 1), or conditions (N, C)."""
        if not self._plan.has_energy:
            return np.asarray(samples.values.sum(axis=1, dtype=np.float64)[:, None])
        known = [c.name for c in samples.family.conditions if c.name in samples.conditions]
        columns = [samples.conditions[name] for name in known[: self._targets.shape[1]]]
        return np.stack(columns, axis=1) if columns else np.zeros((len(samples), 0))


def survey(source: Source, plan: SurveyPlan, *, title: str = "", progress: Progress | None = None) -> Survey:
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
    with threadpool_limits(1, "blas"):  # products here are small: more threads would wait for each other
        for chunk in source.chunks(_rows_at_once(plan.family)):
            ongoing.add(chunk)
            if progress is not None:
                progress(title, ongoing.done, count)
    if not ongoing.used:
        raise ShardError(
            "no sample of the source can be used",
            where=title or None,
            expected="at least one sample whose values are all finite",
            found=f"{count} samples, all of them bad",
        )
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

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What has been appended, by name."""
        return {name: array[..., : self._filled[name]] for name, array in self._arrays.items()}


class _Pass:
    """A pass under way: what has been accumulated so far."""

    def __init__(self, plan: SurveyPlan, count: int) -> None:
        family = plan.family
        self.plan, self.done, self.used = plan, 0, False
        self._names = list(plan.observables)
        order = np.random.default_rng([plan.seed, 1]).choice(count, size=min(count, plan.rows), replace=False)
        self._listed, self._whole = np.zeros((2, count), dtype=bool)
        self._listed[order], self._whole[order[: plan.kept]] = True, True
        self._basis = directions(family.voxels, PROJECTIONS, plan.seed).astype(np.float32)
        self._streams = Streams(plan)
        self._examples = _Examples(plan)
        self._columns, self._conditions = _Buffers(len(order)), _Buffers(len(order))
        self._kept: list[Samples] = []
        kinds = ("nonfinite_voxels", "nonfinite_samples", "negative_voxels")
        self.problems = dict.fromkeys(kinds, 0)
        if "response" in self._names:
            self.problems["response_too_high"] = 0

    def add(self, chunk: Samples) -> None:
        """Take in the next samples."""
        if not len(chunk):
            return
        plan, family = self.plan, self.plan.family
        if family.energy is not None and not plan.has_energy:  # one side's energies are of no use without the other's
            known = [name for name in chunk.conditions if name != family.energy.name]
            chunk = replace(chunk, conditions=chunk.conditions.only(known))
        good = self._inspect(chunk)
        passed = slice(self.done, self.done + len(good))
        listed, whole = self._listed[passed][good], self._whole[passed][good]
        self.done += len(good)
        if not good.any():
            return
        self.used = True
        samples = chunk if good.all() else chunk.select(good)
        vector = vectors(samples, plan.fixed_scale)
        table = self._streams.fill(samples, vector).astype(np.float32)
        self._examples.fill(samples)
        if "response_too_high" in self.problems:
            response = table[self._names.index("response")]
            self.problems["response_too_high"] += int(np.count_nonzero(response > family.max_response))
        self._kept.append(samples.select(whole))
        self._columns.add("whole", whole[listed])
        rows = slice(None) if listed.all() else np.flatnonzero(listed)
        self._columns.add("table", table[:, rows])
        self._columns.add("projections", (vector[rows] @ self._basis).T)
        if "realisation_id" in samples.extras:
            self._columns.add("groups", np.asarray(samples.extras["realisation_id"])[rows])
        for name, values in samples.conditions.items():
            self._conditions.add(name, values[rows])

    def survey(self, provenance: tuple[dict[str, Any], ...]) -> Survey:
        """The finished survey."""
        self._streams.close()
        columns = self._columns.arrays
        kept = Samples.concatenate(self._kept)
        return Survey(
            count=self.done,
            names=self._names,
            provenance=provenance,
            conditions=self._conditions.arrays,
            table=columns["table"],
            projections=columns["projections"],
            groups=columns.get("groups"),
            kept=kept,
            kept_index=np.flatnonzero(columns["whole"]),
            kept_spectra=_spectrum_rows(self.plan, kept.values),
            histograms=self._streams.histograms,
            means=self._streams.means,
            covariance=self._streams.covariance,
            examples=(self._examples.values, self._examples.conditions),
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


def _spectrum_rows(plan: SurveyPlan, values: Columns) -> NDArray[np.int32]:
    """The voxel histogram of each sample, (n, B + 2)."""
    flat = values.reshape(len(values), -1)
    width = plan.axis.size + 2
    place = np.searchsorted(float32_edges(plan.axis.edges), flat, side="right") + width * np.arange(len(flat))[:, None]
    return np.bincount(place.ravel(), minlength=width * len(flat)).reshape(len(flat), width).astype(np.int32)
