"""What one streaming pass over samples keeps: a value that is bounded in memory, and that merges with others.

A source is read in ranges, in one process or many; the survey of all is that of its ranges merged, and has all that a
report needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from calogen.errors import ConfigError, ShardError, did_you_mean
from calogen.families import Family
from calogen.shards.reader import Source
from calogen.shards.samples import Samples, distinct

from ..observables.statistics import FLOOR_PIXEL, row_counts
from .histograms import Histograms, float32_edges
from .listed import Block, Buffers, Listed
from .nearest import Nearest
from .plan import PROJECTIONS, SurveyPlan, directions, read_out
from .selections import Selection
from .streams import Covariance, Means, Streams

Array = NDArray[np.float64]
Columns = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
Tell = Callable[[int], None]
_CHUNK_BYTES = 2**25
_CHUNKS = 8  # of a range: some seconds of work


@dataclass(eq=False)
class Survey:
    """What is kept of samples: of a range of a source, or of all of it. Surveys of ranges merge into that of all.

    Histograms, spectra, means, covariance and problems are of all samples that passed; ``table``, ``projections``,
    ``conditions`` and ``groups`` of those listed, n: all or, of more than ``SurveyPlan.rows``, a seeded subset;
    ``kept`` is a subset of those.

    Attributes:
        count: Samples read; those with voxels that are not finite are left out of everything below.
        names: Names of the observables, K.
        provenance: Where the samples come from.
        listed: What is kept one by one, in blocks of neighbouring samples.
        histograms: Of every observable and of single voxels in each selection.
        means: Mean sample of each selection.
        covariance: Of the voxels of samples as :func:`vectors`; None for samples of more than 1,000 voxels.
        nearest: Candidates for the samples shown as examples.
        problems: How many samples or voxels are unphysical, by kind.
        cut: Voxels with energy and their energy before the read-out threshold, then what it took of both, (4,).
    """

    count: int
    names: list[str]
    provenance: tuple[dict[str, Any], ...]
    listed: Listed
    histograms: Histograms
    means: Means
    covariance: Covariance | None
    nearest: Nearest
    problems: dict[str, int]
    cut: Array

    def merge(self, other: Survey) -> Survey:
        """The survey of the samples of both, which are different ones of the same source; in any order.

        Which samples are listed, and their order, do not depend on how a source was divided, nor do counts. Sums over
        samples are those of an undivided pass but for rounding in float64 (of the covariance: in float32).
        """
        covariance = None
        if self.covariance is not None and other.covariance is not None:
            covariance = self.covariance.merge(other.covariance)
        return Survey(
            count=self.count + other.count,
            names=self.names,
            provenance=distinct((*self.provenance, *other.provenance)),
            listed=self.listed.merge(other.listed),
            histograms=self.histograms.merge(other.histograms),
            means=self.means.merge(other.means),
            covariance=covariance,
            nearest=self.nearest.merge(other.nearest),
            problems={name: count + other.problems[name] for name, count in self.problems.items()},
            cut=self.cut + other.cut,
        )

    @property
    def conditions(self) -> dict[str, Columns]:
        """Conditions of the samples listed by name, (n,) each."""
        return self.listed.block.conditions

    @property
    def table(self) -> Columns:
        """Observables, (K, n), in the order of the catalogue."""
        return self.listed.block.columns["table"]

    @property
    def projections(self) -> Columns:
        """Each sample listed along random directions, (P, n)."""
        return self.listed.block.columns["projections"]

    @property
    def groups(self) -> NDArray[np.integer[Any]] | None:
        """Realisations, (n,), if the source has them."""
        return self.listed.block.columns.get("groups")

    @property
    def kept(self) -> Samples:
        """Whole samples in physical units, at most ``SurveyPlan.kept``."""
        return self.listed.block.kept

    @property
    def kept_index(self) -> NDArray[np.intp]:
        """Their columns in ``table``, increasing."""
        return np.flatnonzero(self.listed.block.columns["whole"])

    @property
    def kept_spectra(self) -> NDArray[np.int32]:
        """Their voxel histograms, (kept, B + 2)."""
        return self.listed.block.spectra

    @property
    def kept_groups(self) -> NDArray[np.integer[Any]] | None:
        """Realisations of the samples kept whole, if the source has them."""
        return None if self.groups is None else self.groups[self.kept_index]

    @property
    def examples(self) -> tuple[Columns, Array]:
        """Samples nearest to the plan's targets, (T, V), and their conditions, (T, C)."""
        return self.nearest.chosen

    @property
    def used(self) -> int:
        """Samples that spectra and means are of: all but those with voxels that are not finite."""
        return int(self.means.count[0])

    @property
    def removed(self) -> tuple[float, float]:
        """Shares of the voxels with energy, and of the energy, that the read-out threshold took."""
        return float(self.cut[2] / max(self.cut[0], 1)), float(self.cut[3] / (self.cut[1] or 1))

    def members(self, selection: Selection) -> NDArray[np.bool_]:
        """Which columns of the table belong to a selection, (n,)."""
        return selection.of(self.conditions, self.table.shape[1])

    def require_used(self, title: str) -> Survey:
        """The same.

        Raises:
            ShardError: If none of the samples can be used; ``title`` is what it calls them.
        """
        if self.used:
            return self
        raise ShardError(
            "no sample of the source can be used",
            where=title or None,
            expected="at least one sample whose values are all finite",
            found=f"{self.count} samples, all of them bad",
        )


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


@dataclass(frozen=True, eq=False)
class Range:
    """Neighbouring samples of a source, and which of them are kept; positions are counted from the source's first one.

    Attributes:
        source: Name of the source.
        start: Position of the first one.
        stop: Of the one behind the last.
        listed: Positions of those that are listed, increasing; None for all.
        whole: Positions of those that are kept whole as well, increasing.
    """

    source: str
    start: int
    stop: int
    listed: NDArray[np.int64] | None
    whole: NDArray[np.int64]

    @property
    def name(self) -> str:
        """What it is called among the ranges of all sources."""
        return f"{self.source}-{self.start}"

    @property
    def samples(self) -> int:
        """How many."""
        return self.stop - self.start


def ranges(source: Source, plan: SurveyPlan, title: str = "", *, size: int | None = None) -> list[Range]:
    """A source divided into ranges for :func:`survey_range`; together they list the same samples however it is divided.

    They begin where chunks of an undivided pass do, so that every sample is measured beside the same others.

    Args:
        source: Samples in physical units.
        plan: Shared by all sides of a comparison.
        title: Name of the source.
        size: Samples of a range, about (default: eight chunks).

    Raises:
        ShardError: If there are no samples.
    """
    count, rows = len(source), _rows_at_once(plan.family)
    if count == 0:
        raise ShardError("there are no samples to compare", where=title or None)
    order = np.random.default_rng([plan.seed, 1]).choice(count, size=min(count, plan.rows), replace=False)
    listed, whole = np.sort(order), np.sort(order[: plan.kept])
    begins = np.concatenate([np.arange(first, last, rows) for first, last in pairwise(source.bounds)])
    starts = begins[np.searchsorted(begins, np.arange(0, begins[-1] + 1, size or _CHUNKS * rows))]
    found = []
    for start, stop in pairwise([*np.unique(starts).tolist(), count]):
        mine, kept = (places[slice(*np.searchsorted(places, (start, stop)))] for places in (listed, whole))
        found.append(Range(title, start, stop, None if len(listed) == count else mine, kept))
    return found


def survey(source: Source, plan: SurveyPlan, *, size: int | None = None) -> Survey:
    """Read a source once, in this process, and keep what a report needs.

    Args:
        source: Samples in physical units.
        plan: Shared by all sides of a comparison.
        size: As for :func:`ranges`.

    Raises:
        ShardError: If the source is empty or unusable, or lacks a condition the plan selects by.
    """
    parts = (survey_range(source, plan, part) for part in ranges(source, plan, size=size))
    return reduce(Survey.merge, parts).require_used("")


def survey_range(
    source: Source, plan: SurveyPlan, part: Range, *, threads: int | None = None, tell: Tell | None = None
) -> Survey:
    """Read a range of a source once and keep what a report needs.

    Args:
        source: Samples in physical units.
        plan: Shared by all sides of a comparison.
        part: The range.
        threads: As for :class:`Streams`.
        tell: Called with the samples done; may raise to end the pass.

    Raises:
        ShardError: If the source cannot be read or lacks a condition the plan selects by.
    """
    family = plan.family
    basis = directions(family.voxels, PROJECTIONS, plan.seed).astype(np.float32)
    streams, nearest = Streams(plan, threads=threads), Nearest(plan)
    size = part.samples if part.listed is None else len(part.listed)
    columns, conditions, kept = Buffers(size), Buffers(size), list[Samples]()
    problems = Counter(nonfinite_voxels=0, nonfinite_samples=0, negative_voxels=0)
    if "response" in plan.observables:
        problems["response_too_high"] = 0
    count, cut = 0, np.zeros(4)  # voxels and energy, before and removed
    with threadpool_limits(1, "blas"):  # products here are small: more threads would wait for each other
        for places, chunk in source.placed_chunks(_rows_at_once(family), part.start, part.stop):
            count += len(chunk)
            good = _finite(chunk, problems)
            mine = places[good]
            if len(mine):
                samples = chunk if good.all() else chunk.select(good)
                if (threshold := plan.family.threshold) > 0 or samples.family.threshold > 0:
                    left = read_out(samples.values, threshold)
                    before, after = ((np.count_nonzero(v), v.sum(dtype=np.float64)) for v in (samples.values, left))
                    cut += np.array([*before, *np.subtract(before, after)])
                    samples = replace(samples, family=plan.family, values=left)  # whatever its own family says
                if family.energy is not None and not plan.has_energy:  # one side's energies are of no use alone
                    known = [name for name in samples.conditions if name != family.energy.name]
                    samples = replace(samples, conditions=samples.conditions.only(known))
                vector = vectors(samples, plan.fixed_scale)
                table = streams.fill(samples, vector).astype(np.float32)
                nearest.fill(samples, mine)
                if "response_too_high" in problems:
                    response = table[list(plan.observables).index("response")]
                    problems["response_too_high"] += int(np.count_nonzero(response > family.max_response))
                whole = np.isin(mine, part.whole, assume_unique=True)
                kept.append(samples.select(whole))
                rows = slice(None) if part.listed is None else np.isin(mine, part.listed, assume_unique=True)
                columns.add("position", mine[rows])
                columns.add("whole", whole[rows])
                columns.add("table", table[:, rows])
                columns.add("projections", (vector[rows] @ basis).T)
                if "realisation_id" in samples.extras:
                    columns.add("groups", np.asarray(samples.extras["realisation_id"])[rows])
                for name, values in samples.conditions.items():
                    conditions.add(name, values[rows])
            if tell is not None:
                tell(int(places[-1]) + 1 - part.start if len(places) else count)
    # A source opened with ``drop_bad`` has left out rows that are as unphysical as those counted here.
    problems["dropped_samples"] = part.samples - count
    blocks = []
    if kept:
        whole_samples = Samples.concatenate(kept)
        spectra = _spectrum_rows(plan, whole_samples.values)
        blocks.append(Block(columns.arrays, conditions.arrays, whole_samples, spectra))
    return Survey(
        count=count,
        names=list(plan.observables),
        provenance=tuple(source.provenance),
        listed=Listed(blocks),
        histograms=streams.histograms,
        means=streams.means,
        covariance=streams.covariance,
        nearest=nearest,
        problems=dict(problems),
        cut=cut,
    )


def _rows_at_once(family: Family) -> int:
    return max(1, min(4096, _CHUNK_BYTES // (4 * family.voxels)))


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
    if not len(values):
        return np.zeros((0, plan.axis.size + 2), dtype=np.int32)
    flat = values.reshape(len(values), -1)
    place = np.searchsorted(float32_edges(plan.axis.edges), flat, side="right")
    return row_counts(place, plan.axis.size + 2).astype(np.int32)
