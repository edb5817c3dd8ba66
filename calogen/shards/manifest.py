"""The manifest of a folder of shards: which files it holds, with their SHA-256."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..storage import write_atomic
from .layouts.attributes import SCHEMA

MANIFEST = "manifest.json"
"""Name of the manifest of a folder made in one part."""


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
