"""What makes samples, and one shard made by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import ProductionError
from ..families import Family
from ..shards.manifest import ShardRecord
from ..shards.samples import Samples
from ..shards.writer import WrittenLayout, write_shard
from ..storage import sha256_of

PROGRESS_SECONDS = 0.1


class Maker(Protocol):
    """Makes samples; is sent to worker processes, so it can be pickled.

    Sample i depends on the maker and on i alone, whatever range it is asked for in. One that clips its values has an
    attribute ``ceiling``, the largest of them: how many are there is counted, and stands in the manifest.
    """

    @property
    def family(self) -> Family: ...  # noqa: D102

    def describe(self) -> dict[str, Any]:
        """Where the samples come from, JSON-able: two makers that differ make different samples."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop, a bounded number at a time."""
        ...


@dataclass(frozen=True)
class Job:
    """What all shards of a production share.

    Attributes:
        maker: Makes the samples.
        out: The folder.
        provenance: Written into every shard.
        layout: Of the files.
    """

    maker: Maker
    out: Path
    provenance: Mapping[str, Any]
    layout: WrittenLayout = "native"


@dataclass
class Task:
    """A shard to be made, or to be checked against what the manifest knows of it.

    Attributes:
        shard: Name, samples and first index.
        known: What the manifest says.
        attempts: Workers that died over it.
    """

    shard: ShardRecord
    known: ShardRecord | None = None
    attempts: int = 0


class Stopped(Exception):
    """A shard was given up because the production stops."""


def make(job: Job, task: Task, tell: Callable[[int], None], pool: Executor | None = None) -> ShardRecord:
    """Make one shard, or find it made already.

    Args:
        job: What all shards share.
        task: The shard.
        tell: Called with the samples done; may raise :class:`Stopped` to give the shard up.
        pool: Compresses while the next samples are made.

    Raises:
        StorageError: If the file system refuses.
        ProductionError: If the maker makes fewer or more samples than asked for.
    """
    path, known, begun = job.out / task.shard.name, task.known, time.monotonic()
    if known is not None and known.samples == task.shard.samples and known.index_start == task.shard.index_start:
        with suppress(OSError):
            if path.stat().st_size == known.bytes and sha256_of(path) == known.sha256:
                return known

    ceiling: float | None = getattr(job.maker, "ceiling", None)
    clipped = 0

    def pieces() -> Iterator[Samples]:
        nonlocal clipped
        done, first = 0, task.shard.index_start
        for piece in job.maker.pieces(first, first + task.shard.samples):
            done += len(piece)
            clipped += int((piece.values >= ceiling).sum()) if ceiling is not None else 0
            if done > task.shard.samples:
                break
            yield piece
            tell(done)
        if done != task.shard.samples:
            raise ProductionError(
                "the maker made another number of samples", where=path, expected=task.shard.samples, found=done
            )

    made = write_shard(
        path,
        pieces(),
        provenance=job.provenance,
        index_start=task.shard.index_start,
        layout=job.layout,
        count=task.shard.samples,
        pool=pool,
    )
    seconds = round(time.monotonic() - begun, 3)
    return replace(made, seconds=seconds, clipped=clipped if ceiling is not None else None)
