"""Which files a path, a glob or a folder stands for."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import ShardError
from ..families import Family
from .labels import given, named_with
from .layouts.find import read_layout
from .layouts.stacks import PARAMETERS, SUFFIX
from .manifest import Manifest, ShardRecord, read_manifest
from .pieces import Piece

SPLITS = ("train", "validation", "test")
"""Folders that split a data set."""
_SUFFIXES = (".h5", ".hdf5", ".hdf")  # of the files that a folder is read for
Source = str | Path | Sequence[str | Path]
"""What samples are read from: a file, a glob, a folder, or a list of those."""


@dataclass(frozen=True)
class DataFile:
    """A file with samples.

    Attributes:
        path: Where it is.
        record: What its folder's manifest says about it, if there is one.
        facts: Labels named with its path.
    """

    path: Path
    record: ShardRecord | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Its length; 0 of a link to nowhere."""
        return self.path.stat().st_size if self.path.exists() else 0

    def open(self, family: Family | None = None, like: Family | None = None, parameters: Path | None = None) -> Piece:
        """All of its samples; only its header is read.

        Args:
            family: What the samples are, where the file does not say; checked where it does.
            like: What the samples are, where neither ``family`` nor the file says.
            parameters: The text file with a stack's parameters.

        Raises:
            ShardError: If the file is damaged, of no known layout, or not what its manifest says.
        """
        if self.record is not None and self.bytes != self.record.bytes:
            raise ShardError(
                "the file's length is not the manifest's",
                where=self.path,
                expected=f"{self.record.bytes} bytes",
                found=f"{self.bytes} bytes",
                hint="the file is truncated or was replaced: copy or make it again",
            )
        layout = read_layout(self.path, family, parameters, like)
        if self.record is not None and layout.length != self.record.samples:
            raise ShardError(
                "the file's samples are not as many as the manifest says",
                where=self.path,
                expected=self.record.samples,
                found=layout.length,
            )
        return given(Piece(self.path, layout, 0, layout.length), self.facts)


def items_of(source: Source) -> list[str | Path]:
    """The files, globs and folders that are named.

    Raises:
        ShardError: If there are none.
    """
    items = [source] if isinstance(source, str | Path) else list(source)
    if not items or not all(str(item) for item in items):
        raise ShardError("no data is named", expected="a file, a glob or a folder")
    return items


def without_parameters(items: Sequence[str | Path]) -> tuple[list[str | Path], Path | None]:
    """The items that hold samples, and the parameter file among them or named with one: ``maps.npy,parameters.txt``.

    Raises:
        ShardError: If two parameter files are named, or nothing else.
    """
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
    return rest, at_home(found[0]) if found else None


def at_home(item: str | Path) -> Path:
    """A path, with a home folder for its ``~``; as it is where there is no such home."""
    with suppress(RuntimeError):
        return Path(item).expanduser()
    return Path(item)


def splits_of(item: str | Path) -> list[str]:
    """The folders ``train``, ``validation``, ``test`` that a folder has; none of anything else."""
    folder = at_home(named_with(item)[0])
    return [name for name in SPLITS if (folder / name).is_dir()]


def files_of(item: str | Path, split: str | None = None) -> list[DataFile]:
    """The files that an item stands for.

    Args:
        item: A file, a glob or a folder; labels may be named with it: ``eplus.hdf5,particle=e+``.
        split: Which folder to take of one with ``train/``, ``validation/``, ``test/``.

    Raises:
        ShardError: If there is no such file, folder or split, or several splits to choose from.
    """
    place, facts = named_with(item)
    return [replace(file, facts=facts) for file in _files_at(at_home(place), split)]


def _files_at(path: Path, split: str | None) -> list[DataFile]:
    if path.is_dir():
        splits = splits_of(path)
        if split is not None and split not in splits:
            raise ShardError(
                f"the folder has no split '{split}'", where=path, expected=SPLITS, found=splits or "no splits"
            )
        if split is None and folders_of(path) != [path]:
            hint = f"name one, such as {path / splits[0]}"
            raise ShardError("the folder holds several splits", where=path, found=splits, hint=hint)
        return files_in(path / split if split else path)
    if path.exists():
        if split is not None:
            raise ShardError(f"a file has no split '{split}'", where=path, expected=f"a folder with {SPLITS}")
        return [DataFile(path)]
    if glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (pathlib wants a root)
        found = [path for path in found if path.suffix in _SUFFIXES] or found
        if not found:
            raise ShardError("no file matches", where=path)
        return [file for name in found for file in _files_at(name, split)]
    near = sorted(other.name for other in path.parent.glob("*"))[:8] if path.parent.is_dir() else []
    raise ShardError(
        "the file does not exist" if path.suffix in _SUFFIXES else "there is no such file or folder",
        where=path,
        hint=f"beside it: {', '.join(near)}" if near else None,
    )


def folders_of(item: str | Path) -> list[Path]:
    """The folders that an item stands for: itself, or its splits where it holds no files; none of anything else."""
    folder = at_home(named_with(item)[0])
    splits = [folder / name for name in splits_of(folder)]
    return splits if splits and not _paths_in(folder) else [folder] * folder.is_dir()


def files_in(folder: Path, problems: list[ShardError] | None = None) -> list[DataFile]:
    """The data files of a folder, in the manifest's order where it has one.

    Args:
        folder: Where they are.
        problems: Takes what is wrong with folder or manifest, so that what is there is found all the same.

    Raises:
        ShardError: If there are none, or not those in the manifest.
    """
    paths, manifest = _paths_in(folder), None
    try:
        manifest = read_manifest(folder)
        _require_listed(folder, paths, manifest)
    except ShardError as error:
        if problems is None:
            raise
        problems.append(error)
    records = {record.name: record for record in manifest.records} if manifest else {}
    places = {name: place for place, name in enumerate(records)}
    paths.sort(key=lambda path: places.get(path.name, len(places)))
    return [DataFile(path, records.get(path.name)) for path in paths]


def _paths_in(folder: Path) -> list[Path]:
    try:
        files = [p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        raise ShardError("the folder cannot be read", where=folder, found=error.strerror) from None
    return sorted(path for path in files if not path.is_dir())


def _require_listed(folder: Path, paths: Sequence[Path], manifest: Manifest | None) -> None:
    """A folder holds the files that its manifest lists, or some where it has none."""
    if manifest is None:
        if not paths:
            stack, expected = min(folder.glob(f"*{SUFFIX}"), default=None), f"files {', '.join(_SUFFIXES)}"
            hint = f"give the stack of maps itself: {stack}" if stack else None
            raise ShardError("the folder holds no data files", where=folder, expected=expected, hint=hint)
        return
    names, listed = {path.name for path in paths}, {record.name for record in manifest.records}
    if names != listed:
        differ = (("missing", sorted(listed - names)), ("not in the manifest", sorted(names - listed)))
        raise ShardError(
            "the manifest and the folder disagree",
            where=folder,
            expected=f"{len(listed)} files as in the manifest",
            found="; ".join(
                f"{what}: {', '.join(some[:4])}{' ...' if len(some) > 4 else ''}" for what, some in differ if some
            ),
            hint="fetch or move the files, or remove the manifest to read what is there",
        )
