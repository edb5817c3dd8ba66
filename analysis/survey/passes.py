"""One pass over each side of a comparison: in this process, in worker processes, or on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calogen import __version__
from calogen.cores import usable_cores
from calogen.errors import ConfigError, ProductionError
from calogen.production.dask import connected
from calogen.production.pool import Pool, TaskError
from calogen.production.run import sensible_workers
from calogen.shards.reader import Shards, Source
from calogen.storage import tidied

from .plan import SurveyPlan
from .survey import Progress, Range, Survey, ranges, survey_range

_FEWEST = 2  # ranges for each worker process, which takes about as long to start as one takes


@dataclass(frozen=True, eq=False)
class Surveyor:
    """Surveys ranges; is sent to worker processes.

    Attributes:
        plan: Shared by all sides.
        sources: By name.
        threads: As for :class:`calogen.analysis.survey.streams.Streams`.
        versions: Of what decides numbers, by name.
    """

    plan: SurveyPlan
    sources: Mapping[str, Source]
    threads: int = 1
    versions: Mapping[str, str] | None = None

    def __call__(self, task: Range, tell: Callable[[int], None]) -> Survey:
        """The survey of a range; ``tell`` is called with the samples done and may raise to end it."""
        return survey_range(self.sources[task.source], self.plan, task, threads=self.threads, tell=tell)

    def require_ready(self) -> None:
        """Refuse a process that would find other numbers, or does not see the files.

        Raises:
            ConfigError: If it is such.
        """
        if self.versions is not None and (found := _versions()) != self.versions:
            expected, found_ = (", ".join(f"{k} {v}" for k, v in both.items()) for both in (self.versions, found))
            hint = "start the workers from the environment of this command"
            raise ConfigError("a dask worker has another version", expected=expected, found=found_, hint=hint)
        for source in self.sources.values():
            for path in {file.parent: file for file in source.files}.values() if isinstance(source, Shards) else ():
                if not path.exists():
                    expected = "a file system that this process and all workers share"
                    raise ConfigError("a dask worker does not see the samples", expected=expected, found=f"no {path}")


def _versions() -> dict[str, str]:
    return {"calogen": __version__, "numpy": np.__version__}


def surveys(
    sources: Mapping[str, Source],
    plan: SurveyPlan,
    *,
    workers: int | None = None,
    cluster: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Survey]:
    """Read every source once and keep what a report needs; the same to the bit, whoever does it.

    Args:
        sources: Samples in physical units, by name.
        plan: Shared by all of them.
        workers: Processes that read files, as far as there is work for them; samples in memory are surveyed in this one
            (default: all available cores).
        cluster: Instead of them a dask cluster: the address of its scheduler, or its scheduler file. All its workers
            must see the files.
        out: A folder that they share with this process, in which they are told what to do (default: the current one).
        progress: Called with the name of a source, samples done and samples in all.

    Raises:
        ShardError: If a source is empty or unusable, or lacks a condition the plan selects by.
        ConfigError: If there are too many workers for this machine, or the cluster cannot be used.
        ProductionError: If a worker died twice over a range, or the cluster's scheduler is gone.
    """
    workers = sensible_workers(workers, cluster)
    parts = [part for title, source in sources.items() for part in ranges(source, plan, title)]
    merging = _Merging(parts, progress)
    files = {title: source for title, source in sources.items() if isinstance(source, Shards)}
    here, there = [part for part in parts if part.source not in files], [part for part in parts if part.source in files]
    count = min(workers, len(there) // _FEWEST)
    try:
        if cluster is not None and there:
            with tidied(folder := Path(out or "")), connected(cluster) as dask:
                dask.prepare(Surveyor(plan, files, versions=_versions()), folder, ".survey")
                dask.run(there, merging)
        elif count > 1:
            Pool(Surveyor(plan, files), merging).run(there, count)
        else:
            here = parts
    except TaskError as error:
        raise _explained(error) from None
    mine = Surveyor(plan, sources, threads=min(2, usable_cores(), workers if cluster is None else 2))
    for part in here:
        merging.finished(part, mine(part, partial(merging.begun, part)))
    return {title: merging.found[title].require_used(title) for title in sources}


class _Merging:
    """Merges surveys of ranges in the order of the ranges, so that sums do not depend on who was quick.

    Attributes:
        found: Of each source, the survey of its first ranges; in the end, of all.
    """

    def __init__(self, parts: Sequence[Range], progress: Progress | None) -> None:
        self.found: dict[str, Survey] = {}
        self._progress = progress
        self._total = Counter[str]()
        for part in parts:
            self._total[part.source] += part.samples
        self._done, self._told = dict.fromkeys(self._total, 0), dict[str, int]()
        self._under_way: dict[str, dict[int, int]] = {source: {} for source in self._total}
        self._waiting: dict[tuple[str, int], tuple[Range, Survey]] = {}
        self._next = dict.fromkeys(self._total, 0)

    def begun(self, task: Range, amount: int) -> None:
        """So many samples of a range are read."""
        self._under_way[task.source][task.start] = amount
        self._tell(task.source)

    def finished(self, task: Range, result: Survey) -> None:
        """A range is surveyed."""
        source = task.source
        self._under_way[source].pop(task.start, None)
        self._done[source] += task.samples
        self._waiting[source, task.start] = task, result
        while following := self._waiting.pop((source, self._next[source]), None):
            part, found = following
            self.found[source] = self.found[source].merge(found) if source in self.found else found
            self._next[source] = part.stop
        self._tell(source)

    def stop_if_asked(self) -> None:
        """Nothing: a signal is an exception."""

    def _tell(self, source: str) -> None:
        done = self._done[source] + sum(self._under_way[source].values())
        if self._progress is not None and done != self._told.get(source):
            self._told[source] = done
            self._progress(source, done, self._total[source])


def _explained(error: TaskError) -> ProductionError:
    part: Range = error.task
    where = f"{part.source}, samples {part.start} to {part.stop - 1}"
    if not error.dead:
        return ProductionError("a worker failed", where=where, found=error.why)
    hint = "out of memory? use fewer `workers`"
    return ProductionError(f"a worker {error.why}, twice over the same samples", where=where, hint=hint)
