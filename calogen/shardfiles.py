"""Samples in memory, and the shard files written from them.

A shard is one HDF5 file in a layout of the field (DESIGN: CaloChallenge's for showers, ``maps`` and ``params`` for
density maps), with attributes that say what it is. A folder of shards has a manifest with every file's SHA-256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShardError
from .families import Family
from .formats import INDEX_EXTRAS, SCHEMA
from .hdf5 import RowWriter, hdf5_image, write_atomic
from .realisations import Origins

SHARD_BYTES = 128 << 20
"""Raw bytes of samples in one shard, at most."""

WrittenLayout = Literal["native", "calogan"]

_BLOCK = 1024  # generation computes in blocks of this many samples; shards hold whole blocks
MANIFEST = "manifest.json"
"""Name of the manifest of a folder made in one part."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in memory, in physical units.

    Attributes:
        family: What the samples are.
        values: Voxel energies or pixels in the family's unit, (N, *family.sample_shape).
        conditions: Physics parameters by name in the condition's unit (MeV for energies), (N,) each.
        extras: Optional arrays by name: ``realisation_id`` (N,), ``weights`` (N,).
        kind: ``reference`` or ``generated``.
        provenance: Where the samples come from.

    Raises:
        ShardError: If shapes do not fit the family or each other.
    """

    family: Family
    values: NDArray[np.float32]
    conditions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    kind: str = "reference"
    provenance: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float32)
        conditions = {name: np.asarray(c, np.float32).reshape(-1) for name, c in self.conditions.items()}
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "conditions", conditions)
        if values.shape[1:] != self.family.sample_shape or values.ndim == 0:
            expected = ("N", *self.family.sample_shape)
            raise ShardError(
                f"samples do not have the shape of family '{self.family.name}'", expected=expected, found=values.shape
            )
        for name, array in {**conditions, **self.extras}.items():
            if len(array) != len(values):
                raise ShardError(
                    f"'{name}' and the samples differ in length", expected=len(values), found=len(array), where=name
                )

    def __len__(self) -> int:
        return len(self.values)

    def select(self, index: ArrayLike | slice) -> Samples:
        """The samples at some rows.

        Args:
            index: Rows, a mask (N,), or a slice.
        """
        rows = index if isinstance(index, slice) else np.asarray(index)
        return Samples(
            family=self.family,
            values=self.values[rows],
            conditions={name: array[rows] for name, array in self.conditions.items()},
            extras={name: array[rows] for name, array in self.extras.items()},
            kind=self.kind,
            provenance=self.provenance,
        )

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """One after another; extras that some part lacks are left out.

        Raises:
            ShardError: If there are none, or they differ in family or conditions.
        """
        if not parts:
            raise ShardError("there are no samples to concatenate")
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts[1:]:
            if not part.family.same_samples(first.family) or set(part.conditions) != set(first.conditions):
                raise ShardError(
                    "samples of different families or conditions cannot be concatenated",
                    expected=f"{first.family.name} {sorted(first.conditions)}",
                    found=f"{part.family.name} {sorted(part.conditions)}",
                )
        extras = [name for name in first.extras if all(name in part.extras for part in parts)]
        provenance: list[dict[str, Any]] = []
        for part in parts:
            provenance += [entry for entry in part.provenance if entry not in provenance]
        return Samples(
            family=first.family,
            values=np.concatenate([part.values for part in parts]),
            conditions={name: np.concatenate([part.conditions[name] for part in parts]) for name in first.conditions},
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in extras},
            kind=first.kind,
            provenance=tuple(provenance),
        )

    def origins(self) -> Origins:
        """Parameters and realisation of every map."""
        return Origins(self.conditions, self.extras.get("realisation_id"), lambda row: f"samples in memory, row {row}")

    def read(self, start: int = 0, stop: int | None = None) -> Samples:
        """Samples start to stop (to the end when absent)."""
        return self.select(slice(start, stop))

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:
        """Samples start to stop in order, ``size`` at a time."""
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(start, end, size):
            yield self.read(first, min(first + size, end))


@dataclass(frozen=True)
class ShardRecord:
    """What a manifest says about one file.

    Attributes:
        name: File name in the folder.
        samples: How many samples it holds.
        index_start: Global index of its first sample.
        sha256: SHA-256 of the file, hexadecimal.
        bytes: Length of the file.
        seconds: That one process took to make it, on the machine that did; None if nothing says. Two records that
            differ in it only are equal.
        clipped: Values in it that are the largest its maker can make; None: it has no such limit, or nothing says.
    """

    name: str
    samples: int
    index_start: int
    sha256: str
    bytes: int
    seconds: float | None = field(default=None, compare=False)
    clipped: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        records: One a file, by global index.
        provenance: Where the samples come from: one entry a manifest file.
        planned: How many samples its files will hold when the production is finished; None if nothing says.
    """

    records: tuple[ShardRecord, ...]
    provenance: tuple[dict[str, Any], ...] = ()
    planned: int | None = None

    @property
    def samples(self) -> int:
        """Samples in all files."""
        return sum(record.samples for record in self.records)


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


# ---------------------------------------------------------------------------------------------------- manifests


def write_manifest(
    folder: Path,
    records: Sequence[ShardRecord],
    *,
    provenance: Mapping[str, Any],
    name: str = MANIFEST,
    planned: int | None = None,
) -> None:
    """Writes the manifest of a folder of shards.

    Args:
        folder: Where the shards are.
        records: What :func:`write_shard` returned.
        provenance: Where the samples come from: JSON-able.
        name: ``manifest.json``, or ``manifest-i-of-n.json`` for a part.
        planned: How many samples there will be when the production is finished, if it goes on.

    Raises:
        StorageError: If the file system refuses.
    """
    table = {
        "calogen_schema": SCHEMA,
        "samples": sum(record.samples for record in records),
        "planned": planned,
        "provenance": dict(provenance),
        "shards": [{k: v for k, v in asdict(record).items() if v is not None} for record in records],
    }
    write_atomic(Path(folder) / name, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())


def read_manifest(folder: Path) -> Manifest | None:
    """The manifests of a folder of shards, merged; None when there are none.

    Raises:
        ShardError: If a manifest is damaged, newer than this program, or names a file twice or outside the folder.
    """
    paths = sorted(Path(folder).glob("manifest*.json"))
    if not paths:
        return None
    parts = [read_part(path) for path in paths]
    records = [record for part in parts for record in part.records]
    names = [record.name for record in records]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ShardError("the manifest names a file twice", where=folder, found=", ".join(twice[:4]))
    planned = [part.planned for part in parts]
    return Manifest(
        tuple(sorted(records, key=lambda record: (record.index_start, record.name))),
        tuple(entry for part in parts for entry in part.provenance),
        None if None in planned else sum(n for n in planned if n is not None),
    )


def read_part(path: Path) -> Manifest:
    """One manifest file.

    Raises:
        ShardError: If it is damaged or newer than this program.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        table = json.loads(path.read_bytes())
        if table["calogen_schema"] > SCHEMA:
            raise ShardError(
                "the manifest was written by a newer calogen",
                where=path,
                expected=f"calogen_schema at most {SCHEMA}",
                found=table["calogen_schema"],
                hint="update calogen",
            )
        planned = table.get("planned")
        records = tuple(map(_record, table["shards"]))
        if planned is not None and not _is_count(planned):
            raise ValueError(f"planned must be a number, got {planned!r}")
        if not isinstance(table["provenance"], dict):
            raise ValueError("provenance must be a table")
        return Manifest(records, (dict(table["provenance"]),), planned)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ShardError(
            "the manifest is damaged",
            where=path,
            found=f"{type(error).__name__}: {error}",
            hint="delete it if the shards beside it are whole",
        ) from None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _record(entry: Mapping[str, Any]) -> ShardRecord:
    known = {one.name for one in fields(ShardRecord)}
    record = ShardRecord(**{key: value for key, value in entry.items() if key in known})  # later versions may add some
    numbers = (record.samples, record.index_start, record.bytes)
    if not all(map(_is_count, numbers)):
        raise ValueError(f"numbers must be whole and not negative, got {numbers}")
    if record.seconds is not None and not (isinstance(record.seconds, int | float) and record.seconds >= 0):
        raise ValueError(f"seconds must be a number, got {record.seconds!r}")
    if record.clipped is not None and not _is_count(record.clipped):
        raise ValueError(f"clipped must be a number, got {record.clipped!r}")
    if not isinstance(record.name, str) or Path(record.name).name != record.name or not isinstance(record.sha256, str):
        raise ValueError(f"'{record.name}' is not the name of a file in the folder")
    return record
