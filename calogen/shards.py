"""Data sources: what a path, a glob or a folder means, opened for reading, described and verified.

This is the room's front door: samples, collections, writer and manifests are named here too.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, combinations, pairwise
from pathlib import Path
from typing import Any

from .errors import ShardError
from .families import Family
from .formats import read_layout
from .labels import given, named_with, with_labels
from .ranges import Ranges
from .realisations import require_apart
from .shardfiles import (
    SHARD_BYTES,
    Manifest,
    Samples,
    ShardRecord,
    read_manifest,
    read_part,
    samples_per_shard,
    write_manifest,
    write_shard,
)
from .shardreader import Piece, Shards, sha256_of
from .stacks import PARAMETERS, SUFFIX

__all__ = [
    "SHARD_BYTES",
    "Manifest",
    "Samples",
    "ShardRecord",
    "Shards",
    "describe",
    "open_shards",
    "open_splits",
    "read_manifest",
    "samples_per_shard",
    "splits_of",
    "verify",
    "write_manifest",
    "write_shard",
]

_SUFFIXES = (".h5", ".hdf5", ".hdf")  # of the files that a folder is read for
_SPLITS = ("train", "validation", "test")
_PROBLEMS_SHOWN = 20

_File = tuple[Path, ShardRecord | None]
"""A data file, and what its folder's manifest says about it."""

Source = str | Path | Sequence[str | Path]


def open_shards(
    source: Source,
    *,
    family: Family | None = None,
    like: Family | None = None,
    split: str | None = None,
    drop_bad: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Shards:
    """Opens samples for reading; only headers are read.

    Args:
        source: A file, a glob, a folder of shards, a folder with ``train/``, ``validation/``, ``test/`` (then give
            ``split``), or a list of those. A NumPy stack of maps brings the parameter file beside it, or is named with
            it: ``maps.npy,parameters.txt``. Files of one particle are named with it: ``eplus.hdf5,particle=e+``.
        family: What the samples are, where the files do not say; checked where they do.
        like: What the samples are, where neither ``family`` nor the files say.
        split: Which of the three folders to read.
        drop_bad: Leave out rows with NaN, infinite or negative values instead of raising.
        labels: Labelled conditions, by name, with all their labels (none: those that the files have): where a file
            holds no such condition, its provenance may say the one label of its samples.

    Raises:
        ShardError: If files are missing, damaged, of an unknown layout, or do not belong together.
    """
    pieces = _open_pieces(_items(source), split, family, like)
    return Shards(with_labels(_once(pieces), labels or {}, family), drop_bad=drop_bad)


def open_splits(
    source: Source,
    *,
    family: Family | None = None,
    drop_bad: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Shards, Shards]:
    """Opens samples for training: (training, validation); arguments as for :func:`open_shards`.

    A folder with ``train/`` and ``validation/`` gives those; ``test/`` is never read. Of a folder with ``train/``
    alone, and of unsplit data, the last 10 % validates; maps are split by realisation. Samples of files that differ in
    a label take turns.

    Raises:
        ShardError: As :func:`open_shards`, and if a realisation is both in ``train/`` and in ``validation/``.
    """
    items = _items(source)
    splits = [[split for split in ("train", "validation") if split in splits_of(item)] for item in items]
    if not any("train" in own for own in splits):
        train, validation = open_shards(items, family=family, drop_bad=drop_bad, labels=labels).split_off()
        return train.mixed(), validation.mixed()
    pieces, roles = list[Piece](), list[str]()
    for item, own in zip(items, splits, strict=True):
        for split in own if "train" in own else [None]:
            pieces += (found := _open_pieces([item], split, family))
            roles += [split if split and len(own) == 2 else ""] * len(found)
    known = list(zip(roles, with_labels(_once(pieces), labels or {}, family), strict=True))
    opened = {role: Shards([piece for own, piece in known if own == role], drop_bad=drop_bad) for role in set(roles)}
    train, validation = opened[""].split_off() if "" in opened else (opened["train"], opened["validation"])
    if len(opened) == 3:
        train, validation = train.joined(opened["train"]), validation.joined(opened["validation"])
    if "validation" in opened and train.family.kind == "map":
        require_apart(train.origins(), validation.origins())
    return train.mixed(), validation.mixed()


def splits_of(item: str | Path) -> list[str]:
    """The folders ``train``, ``validation``, ``test`` that a folder has; none of anything else."""
    folder = _at_home(named_with(item)[0])
    return [name for name in _SPLITS if (folder / name).is_dir()]


def _open_pieces(
    items: list[str | Path], split: str | None, family: Family | None, like: Family | None = None
) -> list[Piece]:
    """Every file that items stand for."""
    named, parameters = _named_parameters(items)
    pieces = list[Piece]()
    for item in named:
        place, facts = named_with(item)
        files = _resolve(place, split)
        pieces += [given(_open_piece(path, record, family, parameters, like), facts) for path, record in files]
    if not pieces:
        raise ShardError("there are no samples yet", where=", ".join(map(str, named)), hint="is it still being made?")
    if parameters is not None and not any(piece.layout.parameters for piece in pieces):
        raise ShardError("only a stack of maps takes a parameter file", where=parameters)
    return pieces


def _once(pieces: list[Piece]) -> list[Piece]:
    """The pieces, each of another file."""
    seen: set[Path] = set()
    for path in (piece.path for piece in pieces):
        if path.resolve() in seen:
            raise ShardError("the file is named twice", where=path)
        seen.add(path.resolve())
    return pieces


def _items(source: Source) -> list[str | Path]:
    items = [source] if isinstance(source, str | Path) else list(source)
    if not items or not all(str(item) for item in items):
        raise ShardError("no data is named", expected="a file, a glob or a folder")
    return items


def _named_parameters(items: list[str | Path]) -> tuple[list[str | Path], Path | None]:
    """Items that hold samples, and the parameter file among them."""
    rest, found = list[str | Path](), list[str | Path]()
    for item in items:
        place = str(named_with(item)[0])
        stack, _, parameters = place.partition(f"{SUFFIX},")
        if parameters and not Path(item).exists():
            rest.append(f"{stack}{SUFFIX}{str(item)[len(place) :]}")  # with the labels named
            found.append(parameters)
        else:
            (found if Path(item).suffix == PARAMETERS else rest).append(item)
    if len(found) > 1:
        raise ShardError("two parameter files are named", where=found[1], expected="one", found=found[0])
    if not rest:
        raise ShardError("this is a parameter file, not samples", where=found[0], hint=f"name MAPS{SUFFIX} with it")
    return rest, _at_home(found[0]) if found else None


def _at_home(item: str | Path) -> Path:
    """A path, with a home folder for its ``~``; as it is where there is no such home."""
    with suppress(RuntimeError):
        return Path(item).expanduser()
    return Path(item)


def _resolve(item: str | Path, split: str | None) -> list[_File]:
    """The files an item stands for, each with its manifest's record where there is one."""
    path = _at_home(item)
    if path.is_dir():
        splits = [name for name in _SPLITS if (path / name).is_dir()]
        if split is not None:
            if split not in splits:
                raise ShardError(
                    f"the folder has no split '{split}'", where=path, expected=_SPLITS, found=splits or "no splits"
                )
            return _folder_files(path / split)
        if splits and not _data_files(path):
            raise ShardError(
                "the folder holds several splits",
                where=path,
                found=splits,
                hint=f"name one, such as {path / splits[0]}",
            )
        return _folder_files(path)
    if path.exists():
        if split is not None:
            raise ShardError(f"a file has no split '{split}'", where=path, expected=f"a folder with {_SPLITS}")
        return [(path, None)]
    if glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (pathlib wants a root)
        found = [path for path in found if path.suffix in _SUFFIXES] or found
        if not found:
            raise ShardError("no file matches", where=path)
        return list(chain.from_iterable(_resolve(name, split) for name in found))
    near = sorted(other.name for other in path.parent.glob("*"))[:8] if path.parent.is_dir() else []
    raise ShardError(
        "the file does not exist" if path.suffix in _SUFFIXES else "there is no such file or folder",
        where=path,
        hint=f"beside it: {', '.join(near)}" if near else None,
    )


def _data_files(folder: Path) -> list[Path]:
    try:
        files = [p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        raise ShardError("the folder cannot be read", where=folder, found=error.strerror) from None
    return sorted(path for path in files if not path.is_dir())


def _folder_files(folder: Path) -> list[_File]:
    files = _data_files(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        if not files:
            stack, expected = min(folder.glob(f"*{SUFFIX}"), default=None), f"files {', '.join(_SUFFIXES)}"
            hint = f"a stack of maps is named itself: {stack}" if stack else None
            raise ShardError("the folder holds no data files", where=folder, expected=expected, hint=hint)
        return [(path, None) for path in files]
    names = {path.name for path in files}
    listed = {record.name for record in manifest.records}
    if names != listed:
        missing, surplus = sorted(listed - names), sorted(names - listed)
        raise ShardError(
            "the manifest and the folder disagree",
            where=folder,
            expected=f"{len(listed)} files as in the manifest",
            found="; ".join(
                f"{what}: {', '.join(some[:4])}{' ...' if len(some) > 4 else ''}"
                for what, some in (("missing", missing), ("not in the manifest", surplus))
                if some
            ),
            hint="fetch or move the files, or remove the manifest to read what is there",
        )
    return [(folder / record.name, record) for record in manifest.records]


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # a link to nowhere has none


def _open_piece(
    path: Path,
    record: ShardRecord | None,
    family: Family | None,
    parameters: Path | None = None,
    like: Family | None = None,
) -> Piece:
    if record is not None and _bytes(path) != record.bytes:
        raise ShardError(
            "the file's length is not the manifest's",
            where=path,
            expected=f"{record.bytes} bytes",
            found=f"{_bytes(path)} bytes",
            hint="the file is truncated or was replaced: copy or make it again",
        )
    layout = read_layout(path, family, parameters, like)
    if record is not None and layout.length != record.samples:
        raise ShardError(
            "the file's samples are not as many as the manifest says",
            where=path,
            expected=record.samples,
            found=layout.length,
        )
    return Piece(path, layout, 0, layout.length)


# ---------------------------------------------------------------------------------------------------- inspecting


def verify(folder_or_file: str | Path, family: Family | None = None) -> list[str]:
    """Checks every byte: SHA-256 against the manifest, every chunk decompressed, every value.

    Args:
        folder_or_file: A folder of shards, a folder of splits, or one file.
        family: What the samples are, where the files do not say.

    Returns:
        What is wrong, one line each; empty when everything is right.

    Raises:
        ShardError: If there is no such file or folder.
    """
    path = _at_home(folder_or_file)
    if not path.is_dir():
        _resolve(path, None)
        try:
            return _verify_file(path, _record_of(path), family)
        except ShardError as error:  # the manifest
            return [_line(error), *_verify_file(path, None, family)]
    splits = [path / name for name in _SPLITS if (path / name).is_dir()]
    if splits and not _data_files(path):
        return list(chain.from_iterable(verify(folder, family) for folder in splits))
    problems, files = _located(path)
    problems += [f"{part}: the file was never finished" for part in sorted(path.glob("*.part"))]
    for file, record in files:
        problems += _verify_file(file, record, family)
    problems += _unfinished(path)
    records = [record for _, record in files if record is not None]
    for one, two in pairwise(records):
        gap = two.index_start - one.index_start - one.samples
        if gap:
            what = f"{gap} samples are missing" if gap > 0 else f"{-gap} samples are there twice"
            problems.append(f"{path}: {what} between {one.name} and {two.name}")
    if not records and any(_is_native(file) for file, _ in files):
        problems.append(f"{path}: there is no manifest, so the bytes cannot be compared with what was written")
    return problems


def _unfinished(folder: Path) -> list[str]:
    """What a production still has to make."""
    manifests = sorted(folder.glob("manifest*.json"))
    matches = [re.fullmatch(r"manifest-(\d+)-of-(\d+)\.json", path.name) for path in manifests]
    counts = {int(match[2]) for match in matches if match}
    lacking = max(counts, default=len(manifests)) - len(manifests)
    problems = [f"{folder}: {lacking} of {max(counts)} parts have not begun"] if lacking > 0 else []
    for path in manifests:
        with suppress(ShardError):
            part = read_part(path)
            if part.planned is not None and part.samples < part.planned:
                missing = f"{part.planned - part.samples} of {part.planned} samples are still to be made"
                problems.append(f"{path}: {missing} (the same command again makes them)")
    return problems


def _located(folder: Path) -> tuple[list[str], list[_File]]:
    """The files of a folder that are there, and what is wrong with the folder itself."""
    try:
        return [], _folder_files(folder)
    except ShardError as error:
        problem = _line(error)
    try:
        manifest = read_manifest(folder)
    except ShardError:
        manifest = None
    records = {record.name: record for record in manifest.records} if manifest else {}
    return [problem], [(path, records.get(path.name)) for path in _data_files(folder)]


def _record_of(path: Path) -> ShardRecord | None:
    manifest = read_manifest(path.parent)
    return next((r for r in manifest.records if r.name == path.name), None) if manifest else None


def _is_native(path: Path) -> bool:
    try:
        return read_layout(path).name == "calogen"
    except ShardError:
        return False


def _verify_file(path: Path, record: ShardRecord | None, family: Family | None) -> list[str]:
    try:
        if record is not None and _bytes(path) == record.bytes and (found := sha256_of(path)) != record.sha256:
            # Other bytes than were written are not worth parsing: HDF5 can hang on damaged text attributes.
            return [f"{path}: the SHA-256 is not the manifest's (expected {record.sha256}, found {found})"]
        for _ in Shards([_open_piece(path, record, family)]).chunks():
            pass
    except ShardError as error:
        return [_line(error)]
    except OSError as error:
        return [f"{path}: {error.strerror or error}"]
    return []


def _line(error: ShardError) -> str:
    details = [f"{name} {value}" for name, value in (("expected", error.expected), ("found", error.found)) if value]
    return f"{error.where}: {error.what}" + (f" ({'; '.join(details)})" if details else "")


def describe(source: Source, family: Family | None = None) -> dict[str, Any]:
    """What data is: all that ``calogen info`` prints, as JSON-able values.

    Damage is reported under ``problems``; what can be read is described all the same.

    Args:
        source: As for :func:`open_shards`; of a folder of splits, all of them.
        family: What the samples are, where the files do not say.

    Returns:
        ``source, format, family, kind, samples, realisations, files, bytes, unit, sample_shape, splits, conditions,
        values, response, bad_rows, provenance, notes, problems``. Ranges are of good rows only, in the family's units.

    Raises:
        ShardError: If there is no such file or folder.
    """
    items, parameters = _named_parameters(_items(source))
    problems, files = _everything(items)
    ranges, opened, pieces, splits = Ranges(), list[Piece](), list[Piece](), Counter[str]()
    for (path, record), facts in files:
        try:
            opened.append(given(_open_piece(path, record, family, parameters), facts))
        except ShardError as error:
            problems.append(_line(error))
    for piece in _agreeing(opened, problems):
        try:
            Shards([*pieces[:1], piece])  # do they belong together?
            pieces.append(piece)
            if piece.path.parent.name in _SPLITS:
                splits[piece.path.parent.name] += len(piece)
            ranges.add(piece)
        except ShardError as error:
            problems.append(_line(error))
    problems += _shared_realisations(pieces)
    shown = problems[:_PROBLEMS_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    table: dict[str, Any] = {
        "source": [str(item) for item in _items(source)],
        "files": len(files),
        "bytes": sum(_bytes(path) for (path, _), _ in files),
        "samples": sum(len(piece) for piece in pieces),
        "splits": dict(splits),
        "problems": shown,
    }
    if not pieces:
        return table
    shards = Shards(pieces)
    boxes = shards.origins().boxes if shards.family.kind == "map" else None
    return table | {
        "realisations": None if boxes is None else int(boxes.max()) + 1,
        "format": ", ".join(sorted({piece.layout.name for piece in pieces})),
        "family": shards.family.name,
        "kind": shards.kind,
        "unit": shards.family.unit,
        "sample_shape": list(shards.family.sample_shape),
        **ranges.table(shards.family, shards.condition_names),
        "provenance": list(shards.provenance),
        "notes": list(shards.notes),
    }


def _shared_realisations(pieces: Sequence[Piece]) -> list[str]:
    """Realisations that are in two splits."""
    problems, sides = list[str](), dict[str, list[Piece]]()
    for piece in pieces:
        if piece.layout.family.kind == "map" and piece.path.parent.name in _SPLITS:
            sides.setdefault(piece.path.parent.name, []).append(piece)
    for one, other in combinations(sides.values(), 2):
        try:
            require_apart(Shards(one).origins(), Shards(other).origins())
        except ShardError as error:
            problems.append(_line(error))
    return problems


def _agreeing(pieces: list[Piece], problems: list[str]) -> list[Piece]:
    """The pieces with the labels of all of them; each with its own where they do not go together."""
    try:
        return with_labels(pieces, {})
    except ShardError as error:
        problems.append(_line(error))
        return [with_labels([piece], {})[0] for piece in pieces]


def _everything(items: list[str | Path]) -> tuple[list[str], list[tuple[_File, Mapping[str, str]]]]:
    """What is wrong with the items' folders, and all their files, of all splits, with the labels named with them."""
    problems, files = list[str](), list[tuple[_File, Mapping[str, str]]]()
    for item in items:
        place, facts = named_with(item)
        path = _at_home(place)
        if not path.is_dir():
            files += [(file, facts) for file in _resolve(path, None)]
            continue
        splits = [path / name for name in _SPLITS if (path / name).is_dir()]
        for folder in splits if splits and not _data_files(path) else [path]:
            found, located = _located(folder)
            problems += found
            files += [(file, facts) for file in located]
    return problems, files
