"""A manifest made again from whole shards: where it was lost or damaged, or was written before it had a digest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..shards.inspect import verify_file
from ..shards.manifest import MANIFEST, Manifest, ShardRecord, merged, read_part, read_parts, write_manifest
from ..shards.pieces import Piece
from ..shards.sources import DataFile, folders_of
from ..storage import known_sha256
from .parts import Part
from .plan import planned_shards

_SHARD = re.compile(r"shard(?:-(\d+)-of-(\d+))?-\d+\.h5")


def rebuild(place: str | Path) -> list[Path]:
    """Write the manifests of a folder of shards, or of its splits, from its shards.

    Where a manifest can be read, its files must be as it says; what it says of them is kept. How long shards took, and
    how many values were clipped, only it knows.

    Returns:
        The manifests written.

    Raises:
        ShardError: If a shard is not whole, not as a manifest says, or not of the same production as the others.
        StorageError: If the file system refuses.
    """
    folders = folders_of(place)
    if not folders:
        raise ShardError("this is not a folder of shards", where=place)
    return [path for folder in folders for path in _rebuild(folder)]


def _rebuild(folder: Path) -> list[Path]:
    parts: dict[Part, list[Path]] = {}
    for path in sorted(folder.glob("*.h5")):
        match = _SHARD.fullmatch(path.name)
        if match is None:
            raise ShardError("this is not the name of a shard", where=path, expected="shard-000000.h5")
        parts.setdefault(Part(int(match[1] or 1), int(match[2] or 1)), []).append(path)
    if not parts:
        raise ShardError("there are no shards to make a manifest of", where=folder, expected="shard-000000.h5, ...")
    known_sha256.cache_clear()  # every byte is read again
    made = {_place(folder, part): _manifest(_place(folder, part), part, paths) for part, paths in parts.items()}
    for place, manifest in made.items():
        facts, planned = manifest.provenance[0], manifest.planned
        write_manifest(folder, manifest.records, provenance=facts, name=place.name, planned=planned)
    merged(folder, read_parts(folder))  # or it says what does not go together
    return list(made)


def _place(folder: Path, part: Part) -> Path:
    return folder / (f"manifest{part.suffix}.json" if part.count > 1 else MANIFEST)


def _manifest(place: Path, part: Part, paths: Sequence[Path]) -> Manifest:
    """What there is to say of the shards of a part, once every byte of them has been read."""
    pieces, records = list[Piece](), list[ShardRecord]()
    for path in paths:
        file = DataFile(path)
        if problems := verify_file(file):
            raise ShardError("a shard is not whole", where=path, found=problems[0], hint="make or copy it again")
        pieces.append(piece := file.open())
        digest = known_sha256(path, piece.state)
        records.append(ShardRecord(path.name, len(piece), piece.layout.index_start, digest, file.bytes))
    there = None
    with suppress(ShardError):
        there = read_part(place) if place.exists() else None
    if there is None:
        provenance = _one_origin(pieces)
        return Manifest(tuple(records), (provenance,), _planned(provenance, part, records))
    if differ := {record.name for record in set(there.records) ^ set(records)}:
        what, hint = "the shards are not those of their manifest", "make them again with the command that made them"
        raise ShardError(what, where=place, found=", ".join(sorted(differ)[:4]), hint=f"{hint}, or fetch them")
    return there


def _one_origin(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The provenance that shards of one production share."""
    first = dict(pieces[0].layout.provenance)
    for piece in pieces:
        native = piece.layout.name == "calogen"
        if not native or dict(piece.layout.provenance) != first:
            what = "the shards are of different origins" if native else "calogen did not write this file"
            raise ShardError(what, where=piece.path, hint="move what does not belong there")
    return first


def _planned(provenance: dict[str, Any], part: Part, records: Sequence[ShardRecord]) -> int | None:
    """How many samples the production says it has; its files must be among those that it would make."""
    facts = provenance.get("production")
    if not isinstance(facts, dict):
        return None
    try:
        if facts["parts"] != part.count:
            raise ValueError(f"{facts['parts']} parts")
        shards = planned_shards(int(facts["total"]), int(facts["shard_samples"]), part)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError("the shards do not say how they were made", found=str(error)) from None
    known = {(shard.name, shard.samples, shard.index_start) for shard in shards}
    for record in records:
        if (record.name, record.samples, record.index_start) not in known:
            what = "a shard is not one of its production"
            raise ShardError(what, where=record.name, found=f"{record.samples} samples from {record.index_start}")
    return sum(shard.samples for shard in shards)
