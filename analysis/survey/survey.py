"""One streaming pass over a source of samples, and what is kept of it: everything a report needs, bounded in memory."""

from __future__ import annotations

from collections import Counter
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

from ..observables.statistics import FLOOR_PIXEL, row_counts
from .histograms import Histograms, float32_edges
from .plan import PROJECTIONS, SurveyPlan, directions, example_scale, read_out
from .selections import Selection
from .streams import Covariance, Means, Streams

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
        removed: Shares of the voxels with energy, and of the energy, that the read-out threshold took.
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
    removed: tuple[float, float] = (0.0, 0.0)

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
        self.values = np.zeros((len(plan.targets), plan.family.voxels), dtype=np.float32)
        self.conditions = np.full(plan.targets.shape, np.nan)
        self._distance = np.full(len(plan.targets), np.inf)
        self._rows = np.full(len(plan.targets), -1)  # of the samples shown, counted from the first that passed
        self._seen = 0

    def fill(self, samples: Samples) -> None:
        """Look at the next samples."""
        count = len(samples)
        mine, scale = self._places(samples)
        for t, target in enumerate(self._targets):
            away = np.sum(((mine - target) / scale) ** 2, axis=1)
            others = np.delete(self._rows, t) - self._seen
            others = others[others >= 0]
            if len(others) < count:  # the same sample twice would look like copies
                away[others] = np.inf
            best = int(np.argmin(away))
            if away[best] < self._distance[t]:
                self._distance[t], self._rows[t] = away[best], self._seen + best
                self.values[t], self.conditions[t] = samples.values[best].ravel(), mine[best]
        self._seen += count

    def _places(self, samples: Samples) -> tuple[NDArray[np.floating[Any]], Array]:
        """What the targets are of: deposited energies (N, 1), or conditions (N, C); and their scale, (C,)."""
        if not self._plan.has_energy:
            scale = np.maximum(np.abs(self._targets).mean(axis=0), 1e-30)
            return np.asarray(samples.values.sum(axis=1, dtype=np.float64)[:, None]), scale
        known = [c.name for c in samples.family.conditions if c.name in samples.conditions]
        known = known[: self._targets.shape[1]]
        columns = [samples.conditions[name] for name in known]
        places = np.stack(columns, axis=1) if columns else np.zeros((len(samples), 0))
        return places, example_scale(self._plan.family, known)


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
    count, family = len(source), plan.family
    if count == 0:
        raise ShardError("there are no samples to compare", where=title or None)
    order = np.random.default_rng([plan.seed, 1]).choice(count, size=min(count, plan.rows), replace=False)
    listed, whole = np.zeros((2, count), dtype=bool)
    listed[order], whole[order[: plan.kept]] = True, True
    basis = directions(family.voxels, PROJECTIONS, plan.seed).astype(np.float32)
    streams, examples = Streams(plan), _Examples(plan)
    columns, conditions, kept = _Buffers(len(order)), _Buffers(len(order)), list[Samples]()
    problems = Counter(nonfinite_voxels=0, nonfinite_samples=0, negative_voxels=0)
    if "response" in plan.observables:
        problems["response_too_high"] = 0
    done, taken = 0, np.zeros(4)  # voxels and energy, before and removed
    with threadpool_limits(1, "blas"):  # products here are small: more threads would wait for each other
        for chunk in source.chunks(_rows_at_once(family)):
            good = _finite(chunk, problems)
            mine = np.arange(done, done + len(chunk))[good]
            done += len(chunk)
            if len(mine):
                samples = chunk if good.all() else chunk.select(good)
                if (threshold := plan.family.threshold) > 0 or samples.family.threshold > 0:
                    cut = read_out(samples.values, threshold)
                    before, after = ((np.count_nonzero(v), v.sum(dtype=np.float64)) for v in (samples.values, cut))
                    taken += np.array([*before, *np.subtract(before, after)])
                    samples = replace(samples, family=plan.family, values=cut)  # whatever its own family says
                if family.energy is not None and not plan.has_energy:  # one side's energies are of no use alone
                    known = [name for name in samples.conditions if name != family.energy.name]
                    samples = replace(samples, conditions=samples.conditions.only(known))
                vector = vectors(samples, plan.fixed_scale)
                table = streams.fill(samples, vector).astype(np.float32)
                examples.fill(samples)
                if "response_too_high" in problems:
                    response = table[list(plan.observables).index("response")]
                    problems["response_too_high"] += int(np.count_nonzero(response > family.max_response))
                kept.append(samples.select(whole[mine]))
                rows = slice(None) if listed[mine].all() else np.flatnonzero(listed[mine])
                columns.add("whole", whole[mine][rows])
                columns.add("table", table[:, rows])
                columns.add("projections", (vector[rows] @ basis).T)
                if "realisation_id" in samples.extras:
                    columns.add("groups", np.asarray(samples.extras["realisation_id"])[rows])
                for name, values in samples.conditions.items():
                    conditions.add(name, values[rows])
            if progress is not None:
                progress(title, done, count)
    # A source opened with ``drop_bad`` has left out rows that are as unphysical as those counted here.
    problems["dropped_samples"] = getattr(source, "dropped", 0)
    if not kept:
        raise ShardError(
            "no sample of the source can be used",
            where=title or None,
            expected="at least one sample whose values are all finite",
            found=f"{count} samples, all of them bad",
        )
    found, joined = columns.arrays, Samples.concatenate(kept)
    return Survey(
        count=done,
        names=list(plan.observables),
        provenance=tuple(source.provenance),
        conditions=conditions.arrays,
        table=found["table"],
        projections=found["projections"],
        groups=found.get("groups"),
        kept=joined,
        kept_index=np.flatnonzero(found["whole"]),
        kept_spectra=_spectrum_rows(plan, joined.values),
        histograms=streams.histograms,
        means=streams.means,
        covariance=streams.covariance,
        examples=(examples.values, examples.conditions),
        problems=dict(problems),
        removed=(float(taken[2] / max(taken[0], 1)), float(taken[3] / (taken[1] or 1))),
    )


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


def _finite(samples: Samples, problems: Counter[str]) -> NDArray[np.bool_]:
    """Count what is unphysical; returns which samples are finite, (N,)."""
    flat = samples.values.reshape(len(samples), samples.family.voxels)
    if flat.size and flat.min() >= 0 and flat.max() < np.inf:  # NaN fails both; quick when all is well
        return np.ones(len(flat), dtype=bool)
    finite = np.isfinite(flat)
    good = np.asarray(finite.all(axis=1))
    problems["nonfinite_voxels"] += int(finite.size - np.count_nonzero(finite))
    problems["nonfinite_samples"] += int(len(good) - np.count_nonzero(good))
    problems["negative_voxels"] += int(np.count_nonzero(flat < 0))
    return good


def _spectrum_rows(plan: SurveyPlan, values: Columns) -> NDArray[np.int32]:
    """The voxel histogram of each sample, (n, B + 2)."""
    flat = values.reshape(len(values), -1)
    place = np.searchsorted(float32_edges(plan.axis.edges), flat, side="right")
    return row_counts(place, plan.axis.size + 2).astype(np.int32)
