"""Writing shards: one HDF5 file in a layout of the field, with attributes that say what it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from itertools import chain
from pathlib import Path
from typing import Any

import h5py

from ..errors import ShardError
from ..families import Family
from ..storage import write_atomic
from .hdf5 import RowWriter, hdf5_image
from .layouts.find import EXTRAS, written_format
from .layouts.header import write_attributes
from .manifest import ShardRecord
from .samples import Samples

SHARD_BYTES = 128 << 20
"""Raw bytes of samples in one shard, at most."""
"""What a format of :data:`.layouts.find.FORMATS` is called where samples are written: ``native``, ``calogan``."""
_BLOCK = 1024  # generation computes in blocks of this many samples; shards hold whole blocks


def samples_per_shard(family: Family, shard_bytes: int = SHARD_BYTES) -> int:
    """How many samples go into one shard: a multiple of 1024, at least 1024.

    Args:
        family: What the samples are.
        shard_bytes: Most raw bytes in a shard.
    """
    sample_bytes = 4 * math.prod(family.sample_shape)
    return max(1, shard_bytes // (sample_bytes * _BLOCK)) * _BLOCK


def write_shard(
    path: Path,
    samples: Samples | Iterable[Samples],
    *,
    provenance: Mapping[str, Any],
    index_start: int = 0,
    layout: str = "native",
    count: int | None = None,
    pool: Executor | None = None,
) -> ShardRecord:
    """Writes one shard; the file appears under its name only when complete.

    Args:
        path: The file to write.
        samples: At least one; stored exactly as they are. Or pieces of the shard in order, taken one at a time.
        provenance: Engine or checkpoint digest, versions, seed: JSON-able.
        index_start: Global index of the first sample.
        layout: ``native``, or ``calogan`` for CaloGAN's own datasets and units.
        count: How many samples the pieces hold in all.
        pool: Compresses while the next piece is made; none: in turn.

    Raises:
        ConfigError: If there is no such layout, or it cannot hold the samples.
        ShardError: If there are no samples, or they have extras that no shard holds.
        StorageError: If the file system refuses.
    """
    path = Path(path)
    pieces = iter([samples] if isinstance(samples, Samples) else samples)
    first = next(pieces, None)
    if first is None or not len(first):
        raise ShardError("a shard needs at least one sample", where=path)
    unknown = set(first.extras) - set(EXTRAS)
    if unknown:
        raise ShardError("a shard cannot hold these extras", where=path, expected=EXTRAS, found=sorted(unknown))
    total = len(first) if count is None else count
    chosen = written_format(layout, first.family, list(first.conditions))

    def fill(file: h5py.File) -> None:
        writers: dict[str, RowWriter] = {}
        for piece in chain([first], pieces):
            for name, rows in chain(chosen.columns(piece), piece.extras.items()):
                if name not in writers:
                    writers[name] = RowWriter(file, name, total, rows, pool)
                writers[name].append(rows)
        for writer in writers.values():
            writer.close()
        file.attrs.update(chosen.attributes(first.family))
        write_attributes(file, first, provenance, index_start)

    image = hdf5_image(fill)
    write_atomic(path, image, shared=True)  # on a cluster a shard may be made twice at a time
    return ShardRecord(path.name, total, index_start, hashlib.sha256(image).hexdigest(), len(image))
