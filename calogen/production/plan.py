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
        sample_bytes: About what a sample takes in a file, or the least that it may; 0 if nothing says.
        threaded: Workers are threads that compress beside the maker in this process: for makers on a GPU.
        isolated: Use a worker process even for one: the maker may bring its process down.
    """

    maker: Maker
    total: int
    shard_samples: int
    part: Part = field(default_factory=Part)
    layout: str = "native"
    sample_bytes: float = 0.0
    threaded: bool = False
    isolated: bool = False

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

    @property
    def files(self) -> int:
        """How many shards."""
        return -(-self.samples // self.shard_samples)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the samples before compression."""
        family = self.maker.family
        return self.samples * 4 * (family.voxels + len(family.conditions))

    @property
    def bytes(self) -> int:
        """About how many the files will take."""
        return int(self.samples * self.sample_bytes) + _FILE_BYTES * self.files

    def shards(self) -> list[ShardRecord]:
        """The files to be made, with no bytes yet."""
        return planned_shards(self.total, self.shard_samples, self.part)


def planned_shards(total: int, shard_samples: int, part: Part) -> list[ShardRecord]:
    """The files of a part of a production, with no bytes yet."""
    start, stop = part.bounds(total)
    firsts = range(start, stop, shard_samples)
    return [
        ShardRecord(f"shard{part.suffix}-{k:06d}.h5", min(shard_samples, stop - first), first, "", 0)
        for k, first in enumerate(firsts)
    ]


def free_bytes(out: Path) -> int:
    """What the file system has for a folder, which may be absent, with what earlier calls left of its shards."""
    where = out.absolute()
    while not where.exists():
        where = where.parent
    there = sum(file.stat().st_size for file in out.glob("shard*.h5")) if out.is_dir() else 0
    return shutil.disk_usage(where).free + there


def require_room(production: Production, out: Path) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        StorageError: If it cannot.
    """
    needed, free = production.bytes, free_bytes(out)
    if needed > free:
        raise StorageError(
            "the samples will not fit on the disk",
            where=out,
            expected=f"about {needed / 1e9:.3g} GB of space",
            found=f"{free / 1e9:.3g} GB free",
            hint="make fewer, or parts on other disks",
        )


def shard_times(out: Path) -> dict[str, int]:
    """When each shard of a folder was written: a production that had nothing left to make changes none."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard*.h5")} if out.is_dir() else {}
