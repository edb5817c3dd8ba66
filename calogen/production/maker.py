"""What makes samples, and one shard made by it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError, ProductionError
from ..families import Family
from ..shards.manifest import ShardRecord
from ..shards.samples import Samples
from ..shards.writer import write_shard
from ..storage import sha256_of


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
    """Makes the shards of a production.

    Attributes:
        maker: Makes the samples.
        out: The folder.
        provenance: Written into every shard.
        layout: Of the files.
        threads: So many compress while the next samples are made; none: in turn.
    """

    maker: Maker
    out: Path
    provenance: Mapping[str, Any]
    layout: str = "native"
    threads: int = 0

    def __call__(self, shard: ShardRecord, tell: Callable[[int], None]) -> ShardRecord:
        """Make one shard, or find it made already.

        Args:
            shard: Name, samples and first index; with the bytes and SHA-256 of the file, if it should be there.
            tell: Called with the samples done; may raise to give the shard up.

        Raises:
            StorageError: If the file system refuses.
            ProductionError: If the maker makes fewer or more samples than asked for.
        """
        begun, path = time.monotonic(), self.out / shard.name
        with suppress(OSError):
            if shard.sha256 and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256:
                return shard

        ceiling: float | None = getattr(self.maker, "ceiling", None)
        clipped = 0

        def pieces() -> Iterator[Samples]:
            nonlocal clipped
            done, first = 0, shard.index_start
            for piece in self.maker.pieces(first, first + shard.samples):
                done += len(piece)
                clipped += int((piece.values >= ceiling).sum()) if ceiling is not None else 0
                if done > shard.samples:
                    break
                yield piece
                tell(done)
            if done != shard.samples:
                raise ProductionError(
                    "the maker made another number of samples", where=path, expected=shard.samples, found=done
                )

        with ThreadPoolExecutor(self.threads) if self.threads else nullcontext() as pool:
            made = write_shard(
                path,
                pieces(),
                provenance=self.provenance,
                index_start=shard.index_start,
                layout=self.layout,
                count=shard.samples,
                pool=pool,
            )
        seconds = round(time.monotonic() - begun, 3)
        return replace(made, seconds=seconds, clipped=clipped if ceiling is not None else None)

    def require_ready(self) -> None:
        """Refuse a process whose versions would make other samples.

        Raises:
            ConfigError: If they would.
        """
        mine = json.loads(json.dumps(self.maker.describe()))
        for key, theirs in self.provenance.items():
            if key in mine and mine[key] != theirs:
                expected, found = _differing(theirs, mine[key])
                raise ConfigError(
                    "a dask worker has another version",
                    expected=f"{key}: {expected}",
                    found=f"{key}: {found}",
                    hint="start the workers from the environment of this command",
                )


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        one, other = (", ".join(f"{key} {table.get(key)}" for key in keys) for table in (one, other))
    return str(one)[:200], str(other)[:200]
