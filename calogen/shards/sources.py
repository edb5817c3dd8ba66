"""Data sources: what a path, a glob or a folder means, opened for reading."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from ..errors import ShardError
from ..families import Family
from .labels import given, named_with, with_labels
from .layouts.find import read_layout
from .layouts.stacks import PARAMETERS, SUFFIX
from .manifest import ShardRecord, read_manifest
from .pieces import Piece
from .reader import Shards
from .realisations import require_apart

_SUFFIXES = (".h5", ".hdf5", ".hdf")  # of the files that a folder is read for
_SPLITS = ("train", "validation", "test")
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
