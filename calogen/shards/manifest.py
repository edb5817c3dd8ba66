"""The manifest of a folder of shards: which files it holds, with their SHA-256, and what is not there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, Strict, TypeAdapter, ValidationError

from ..errors import ShardError
from ..storage import TABLE_BYTES, digest_of, read_bounded, write_atomic
from .layouts.header import SCHEMA

MANIFEST = "manifest.json"
"""Name of the manifest of a folder made in one part."""
_SHOWN = 6  # ranges of parts that a line names


def _is_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("it is not the name of a file in the folder")
    return name


_Count = Annotated[int, Strict(), Field(ge=0)]


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

    name: Annotated[str, AfterValidator(_is_name)]
    samples: _Count
    index_start: _Count
    sha256: str
    bytes: _Count
    seconds: NonNegativeFloat | None = field(default=None, compare=False)
    clipped: _Count | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        records: One a file, by global index.
        provenance: Where the samples come from: one entry a manifest file.
        planned: How many samples its files will hold when the production is finished; None if nothing says.
    """

    records: Annotated[tuple[ShardRecord, ...], Field(validation_alias="shards")]
    provenance: Annotated[tuple[dict[str, Any], ...], BeforeValidator(lambda one: (one,))]
    planned: _Count | None = None

    @property
    def samples(self) -> int:
        """Samples in all files."""
        return sum(record.samples for record in self.records)


_FILE = TypeAdapter(Manifest)  # one manifest file; keys that later versions add are left out


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
    table: dict[str, Any] = {
        "calogen_schema": SCHEMA,
        "samples": sum(record.samples for record in records),
        "planned": planned,
        "provenance": dict(provenance),
        "shards": [{k: v for k, v in asdict(record).items() if v is not None} for record in records],
    }
    table["sha256"] = digest_of(json.loads(json.dumps(table)))  # as it will be read back
    write_atomic(Path(folder) / name, (json.dumps(table, indent=1, sort_keys=True) + "\n").encode())


def read_manifest(folder: Path) -> Manifest | None:
    """The manifests of a folder of shards, merged; None when there are none.

    Raises:
        ShardError: If a manifest is damaged, newer than this program, or names a file twice or outside the folder.
    """
    return merged(folder, read_parts(folder))


def read_parts(folder: Path) -> dict[Path, Manifest]:
    """Every manifest file of a folder of shards, by its path; errors as :func:`read_part`."""
    return {path: read_part(path) for path in sorted(Path(folder).glob("manifest*.json"))}


def merged(folder: Path, found: Mapping[Path, Manifest]) -> Manifest | None:
    """The manifest files of a folder as one; None when there are none.

    Raises:
        ShardError: If they name a file twice.
    """
    if not found:
        return None
    parts = list(found.values())
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


def missing(folder: Path, found: Mapping[Path, Manifest]) -> list[str]:
    """What a production still has to make, and what lacks between its files, one line each.

    Args:
        folder: Where the shards are.
        found: Its manifest files.
    """
    parts = [match for path in found if (match := re.fullmatch(r"manifest-(\d+)-of-(\d+)\.json", path.name))]
    count = max((int(match[2]) for match in parts), default=0)
    lacking = sorted(set(range(1, count + 1)) - {int(match[1]) for match in parts})
    said = [f"{folder}: {len(lacking)} of {count} parts have not begun: {_ranges(lacking)}"] if lacking else []
    for path, part in found.items():
        if part.planned is not None and part.samples < part.planned:
            still = f"{part.planned - part.samples} of {part.planned} samples are still to be made"
            said.append(f"{path}: {still} (the same command again makes them)")
    records = [record for part in found.values() for record in part.records]
    return said + gaps(folder, [(record.name, record.index_start, record.samples) for record in records])


def _ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as ranges, ``2, 5-9``, the first of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}-{last}" if first < last else f"{first}" for first, last in runs[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(runs) > _SHOWN else [])])


def gaps(folder: Path, files: Sequence[tuple[str, int, int]]) -> list[str]:
    """Global indices that files leave out between them, or have twice.

    Args:
        folder: Where they are.
        files: Of each its name, first index and samples.
    """
    said = []
    for one, two in pairwise(sorted(files, key=lambda file: file[1])):
        if gap := two[1] - one[1] - one[2]:
            what = f"{gap} samples are missing" if gap > 0 else f"{-gap} samples are there twice"
            said.append(f"{folder}: {what} between {one[0]} and {two[0]}")
    return said


_OF_OLD = {"calogen_schema", "samples", "planned", "provenance", "shards"}  # keys of manifests without a digest


def read_part(path: Path) -> Manifest:
    """One manifest file.

    Raises:
        ShardError: If it is damaged or newer than this program.
    """
    try:
        table = json.loads(read_bounded(path, TABLE_BYTES))
        if table["calogen_schema"] > SCHEMA:
            raise ShardError(
                "the manifest was written by a newer calogen",
                where=path,
                expected=f"calogen_schema at most {SCHEMA}",
                found=table["calogen_schema"],
                hint="update calogen",
            )
        if table["sha256"] != digest_of(table, ("sha256",)) if "sha256" in table else table.keys() - _OF_OLD:
            raise ValueError("it is not as it was written: its digest is another")
        return _FILE.validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r:.100}"
    except OSError as error:
        found = str(error.strerror or error)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
    hint = "if the shards beside it are whole, make it again with `rebuild=True`"
    raise ShardError("the manifest is damaged", where=path, found=found, hint=hint)
