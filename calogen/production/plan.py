"""What a production will make, and whether there is room for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StorageError
from ..shards.manifest import ShardRecord
from .maker import Maker
from .parts import Part

MOST_SAMPLES = 10**12
MANIFEST_SHARDS = 1000  # a manifest of more is not rewritten after every shard
_FILE_BYTES = 5000  # of a shard besides its samples


Progress = Callable[[int, int], None]
"""Told how many samples are done, of how many."""


@dataclass(frozen=True)
class Production:
    """A folder of shards to be made.

    Attributes:
        maker: Makes the samples.
        total: Samples of all parts.
        shard_samples: Samples in a shard, at most.
        part: Which part of the production this is.
        layout: Of the files.
        threads: Compress in so many threads beside the maker; for makers on a GPU.
    """

    maker: Maker
    total: int
    shard_samples: int
    part: Part = field(default_factory=Part)
    layout: str = "native"
    threads: int = 0

    def provenance(self) -> dict[str, Any]:
        """What goes into the manifest and every shard; a folder may be continued only by the same."""
        facts = {"total": self.total, "parts": self.part.count, "shard_samples": self.shard_samples}
        described = {**self.maker.describe(), "production": {**facts, "layout": self.layout}}
        return dict(json.loads(json.dumps(described)))  # as it will be read back

    @property
    def samples(self) -> int:
        """Samples of this part."""
        start, stop = self.part.bounds(self.total)
        return stop - start

    def shards(self) -> list[ShardRecord]:
        """The files to be made, with no bytes yet."""
        start, stop = self.part.bounds(self.total)
        firsts = range(start, stop, self.shard_samples)
        return [
            ShardRecord(f"shard{self.part.suffix}-{k:06d}.h5", min(self.shard_samples, stop - first), first, "", 0)
            for k, first in enumerate(firsts)
        ]


@dataclass(frozen=True)
class Estimate:
    """What a production will make.

    Attributes:
        samples: How many, of this part.
        shards: Files.
        raw_bytes: Bytes before compression.
        bytes: About how many the files will take.
        free_bytes: What the file system has for them, with what earlier calls left of them.
    """

    samples: int
    shards: int
    raw_bytes: int
    bytes: int
    free_bytes: int


def room(production: Production, out: Path, sample_bytes: float | None = None) -> Estimate:
    """What a production needs of a disk, and what there is.

    Args:
        production: What is to be made.
        out: The folder; may be absent.
        sample_bytes: About what a sample takes, compressed (default: as it is in memory).
    """
    family, samples = production.maker.family, production.samples
    shards = -(-samples // production.shard_samples)
    raw = samples * 4 * (family.voxels + len(family.conditions))
    taken = raw if sample_bytes is None else int(samples * sample_bytes)
    where = out.absolute()
    while not where.exists():
        where = where.parent
    there = sum(file.stat().st_size for file in out.glob("shard*.h5")) if out.is_dir() else 0
    free = shutil.disk_usage(where).free
    return Estimate(samples, shards, raw, taken + _FILE_BYTES * shards, free + there)


def require_room(estimate: Estimate, out: Path) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        StorageError: If it cannot.
    """
    if estimate.bytes > estimate.free_bytes:
        raise StorageError(
            "the samples will not fit on the disk",
            where=out,
            expected=f"about {estimate.bytes / 1e9:.3g} GB of space",
            found=f"{estimate.free_bytes / 1e9:.3g} GB free",
            hint="make fewer, or parts on other disks",
        )


def shard_times(out: Path) -> dict[str, int]:
    """When each shard of a folder was written: a production that had nothing left to make changes none."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard*.h5")} if out.is_dir() else {}
