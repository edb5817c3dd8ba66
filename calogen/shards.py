"""Data sources: what a path, a glob or a folder means, opened for reading, described and verified.

This is the room's front door: samples, collections, writer and manifests are named here too.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from .errors import ShardError
from .families import Family
from .formats import read_layout
from .shardfiles import (
    SHARD_BYTES,
    Manifest,
    Samples,
    ShardRecord,
    read_manifest,
    samples_per_shard,
    write_manifest,
    write_shard,
)
from .shardreader import Piece, Shards

__all__ = [
    "SHARD_BYTES",
    "Manifest",
    "Samples",
    "ShardRecord",
    "Shards",
    "open_shards",
    "open_splits",
    "read_manifest",
    "samples_per_shard",
    "write_manifest",
    "write_shard",
]

_SUFFIXES = (".h5", ".hdf5", ".hdf")
_SPLITS = ("train", "validation", "test")


def open_shards(
    source: str | Path | Sequence[str | Path],
    *,
    family: Family | None = None,
    split: str | None = None,
    drop_bad: bool = False,
) -> Shards:
    """Opens samples for reading; only headers are read.

    Args:
        source: A file, a glob, a folder of shards, a folder with ``train/``, ``validation/``, ``test/`` (then give
            ``split``), or a list of those.
        family: What the samples are, where the files do not say.
        split: Which of the three folders to read.
        drop_bad: Leave out rows with NaN, infinite or negative values instead of raising.

    Raises:
        ShardError: If files are missing, damaged, of an unknown layout, or do not belong together.
    """
    files: list[tuple[Path, ShardRecord | None]] = []
    for item in _items(source):
        files += _resolve(item, split)
    return Shards([_open_piece(path, record, family) for path, record in files], drop_bad=drop_bad)


def open_splits(
    source: str | Path | Sequence[str | Path], *, family: Family | None = None, drop_bad: bool = False
) -> tuple[Shards, Shards]:
    """Opens samples for training: (training, validation).

    A folder with ``train/`` and ``validation/`` gives those; ``test/`` is never read. Of a folder with ``train/``
    alone, and of unsplit data, the last 10 % validates; maps are split by realisation.

    Raises:
        ShardError: As :func:`open_shards`.
    """
    items = _items(source)
    folder = Path(items[0])
    if len(items) == 1 and (folder / "train").is_dir():
        train = open_shards(folder, family=family, split="train", drop_bad=drop_bad)
        if (folder / "validation").is_dir():
            return train, open_shards(folder, family=family, split="validation", drop_bad=drop_bad)
        return train.split_off()
    return open_shards(items, family=family, drop_bad=drop_bad).split_off()


def _items(source: str | Path | Sequence[str | Path]) -> list[str | Path]:
    items = [source] if isinstance(source, str | Path) else list(source)
    if not items or not all(str(item) for item in items):
        raise ShardError("no data is named", expected="a file, a glob or a folder")
    return items


def _resolve(item: str | Path, split: str | None) -> list[tuple[Path, ShardRecord | None]]:
    """The files an item stands for, each with its manifest's record where there is one."""
    path = Path(item).expanduser()
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
        return [(path, None)]
    if glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (pathlib wants a root)
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
    return sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))


def _folder_files(folder: Path) -> list[tuple[Path, ShardRecord | None]]:
    files = _data_files(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        if not files:
            raise ShardError("the folder holds no data files", where=folder, expected=f"files {', '.join(_SUFFIXES)}")
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


def _open_piece(path: Path, record: ShardRecord | None, family: Family | None) -> Piece:
    if record is not None and path.stat().st_size != record.bytes:
        raise ShardError(
            "the file's length is not the manifest's",
            where=path,
            expected=f"{record.bytes} bytes",
            found=f"{path.stat().st_size} bytes",
            hint="the file is truncated or was replaced: copy or make it again",
        )
    layout = read_layout(path, family)
    if record is not None and layout.length != record.samples:
        raise ShardError(
            "the file's samples are not as many as the manifest says",
            where=path,
            expected=record.samples,
            found=layout.length,
        )
    return Piece(path, layout, 0, layout.length)
