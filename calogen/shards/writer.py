"""Writing shards: one HDF5 file in a layout of the field, with attributes that say what it is."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShardError
from ..families import Family
from ..storage import write_atomic
from .hdf5 import RowWriter, hdf5_image
from .layouts.layout import INDEX_EXTRAS, SCHEMA
from .manifest import ShardRecord
from .samples import Samples

SHARD_BYTES = 128 << 20
"""Raw bytes of samples in one shard, at most."""
WrittenLayout = Literal["native", "calogan"]
_BLOCK = 1024  # generation computes in blocks of this many samples; shards hold whole blocks


def samples_per_shard(family: Family, shard_bytes: int = SHARD_BYTES) -> int:
    """How many samples go into one shard: a multiple of 1024, at least 1024.

    Args:
        family: What the samples are.
        shard_bytes: Most raw bytes in a shard.
    """
    sample_bytes = 4 * math.prod(family.sample_shape)
    return max(1, shard_bytes // (sample_bytes * _BLOCK)) * _BLOCK


def require_layout(layout: str, family: Family, conditions: Sequence[str]) -> None:
    """Refuse to write samples in a layout that cannot hold them.

    Args:
        layout: Its name.
        family: What is written.
        conditions: Names of the conditions that samples come with.

    Raises:
        ConfigError: If there is no such layout, or samples do not fit.
    """
    if layout not in ("native", "calogan"):
        raise ConfigError("unknown layout", where="layout", expected="native or calogan", found=repr(layout))
    if layout == "calogan" and family.name != "calogan":
        raise ConfigError(
            "CaloGAN's layout holds its own three layers only",
            where="--format calogan",
            found=f"family '{family.name}'",
        )
    if layout == "calogan" and "incident_energy" not in conditions:
        raise ConfigError(
            "CaloGAN's layout needs incident energies", where="--format calogan", found="an unconditional surrogate"
        )


def write_shard(
    path: Path,
    samples: Samples | Iterable[Samples],
    *,
    provenance: Mapping[str, Any],
    index_start: int = 0,
    layout: WrittenLayout = "native",
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
        ShardError: If there are no samples, or the layout cannot hold them.
        StorageError: If the file system refuses.
    """
    path = Path(path)
    pieces = iter([samples] if isinstance(samples, Samples) else samples)
    first = next(pieces, None)
    if first is None or not len(first):
        raise ShardError("a shard needs at least one sample", where=path)
    unknown = set(first.extras) - set(INDEX_EXTRAS)
    if unknown:
        raise ShardError("a shard cannot hold these extras", where=path, expected=INDEX_EXTRAS, found=sorted(unknown))
    total = len(first) if count is None else count
    columns = _native_columns if layout == "native" else _calogan_columns

    def fill(file: h5py.File) -> None:
        writers: dict[str, RowWriter] = {}
        for piece in itertools.chain([first], pieces):
            for name, rows in itertools.chain(columns(piece), piece.extras.items()):
                if name not in writers:
                    writers[name] = RowWriter(file, name, total, rows, pool)
                writers[name].append(rows)
        for writer in writers.values():
            writer.close()
        attributes = file.attrs
        if layout == "calogan":
            attributes.update(energy_unit="GeV", cell_unit="MeV", overflow="not modelled: zeros")
        attributes["calogen_schema"] = SCHEMA
        attributes["kind"] = first.kind
        attributes["family"] = first.family.model_dump_json()
        names = list(first.conditions)
        for attribute, texts in (
            ("condition_names", names),
            ("condition_units", [first.family.condition(name).unit for name in names]),
        ):
            attributes.create(attribute, np.array(texts, dtype=object), dtype=h5py.string_dtype())
        attributes["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        attributes["index_start"] = index_start

    image = hdf5_image(fill)
    write_atomic(path, image)
    return ShardRecord(path.name, total, index_start, hashlib.sha256(image).hexdigest(), len(image))


def _native_columns(samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
    if samples.family.kind == "map":
        yield "maps", samples.values
        if samples.conditions:
            yield "params", np.stack(list(samples.conditions.values()), axis=1)
        return
    yield "showers", samples.values
    first = samples.family.conditions[0].name
    for name, array in samples.conditions.items():
        yield ("incident_energies", array[:, None]) if name == first else (f"conditions/{name}", array)


def _calogan_columns(samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
    family = samples.family
    first = family.conditions[0].name if family.conditions else ""
    if family.kind != "calorimeter" or any(layer.geometry != "cartesian" for layer in family.layers):
        raise ShardError("CaloGAN's layout holds showers in layers of rectangular cells", found=family.name)
    if first not in samples.conditions:
        raise ShardError("CaloGAN's layout needs the incident energies", expected=first, found=list(samples.conditions))
    for number, layer, cells in zip(family.layer_numbers, family.layers, family.layer_slices, strict=True):
        yield f"layer_{number}", samples.values[:, cells].reshape(-1, *layer.shape)
    for name, array in samples.conditions.items():
        gev = (array.astype(np.float64) / 1e3).astype(np.float32)
        yield ("energy", gev[:, None]) if name == first else (f"conditions/{name}", array)
    yield "overflow", np.zeros((len(samples), len(family.layers)), np.float32)
