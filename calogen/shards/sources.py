"""What a path means: the files that a path, a glob or a folder stands for, opened for reading and for training."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..config import Reading
from ..errors import ShardError
from ..families import Family, varies
from ..storage import file_state, known_sha256, read_bounded
from .labels import given, named_with, with_labels
from .layouts.find import open_rows, read_layout
from .layouts.parameters import PARAMETERS
from .layouts.stacks import SUFFIX
from .manifest import Manifest, ShardRecord, gaps, merged, missing, read_manifest, read_parts
from .pieces import Piece, rows_of
from .reader import Shards, Source
from .realisations import require_apart

SPLITS = ("train", "validation", "test")
"""Folders that split a data set."""
LIST = ".csv"
_LONGEST = 1000  # characters of a path in such a list; part of a path may be shorter still
"""Ends the name of a file that lists others."""
WEIGHTS = "weights"
_SUFFIXES = (".h5", ".hdf5", ".hdf")  # of the files that a folder is read for
Paths = str | Path | Sequence[str | Path]
"""What samples are read from: a file, a glob, a folder, or a list of those."""


def open_shards(
    source: Paths,
    *,
    family: Family | None = None,
    like: Family | None = None,
    split: str | None = None,
    drop_bad: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
    strict: bool = False,
    reading: Reading | None = None,
) -> Shards:
    """Opens samples for reading: headers are read, and files that a manifest lists are compared with its SHA-256.

    Args:
        source: A file, a glob, a folder of shards, a folder with ``train/``, ``validation/``, ``test/`` (then give
            ``split``), or a list of those. A NumPy stack of maps brings the parameter file beside it, or is named with
            it: ``maps.npy,parameters.txt``. Files of one particle, or of one cosmology, are named with it:
            ``eplus.hdf5,particle=e+``, ``maps.npy,Omega_m=0.3,sigma_8=0.8``; a ``.csv`` file lists such names.
        family: What the samples are, where the files do not say; checked where they do.
        like: What the samples are, where neither ``family`` nor the files say.
        split: Which of the three folders to read.
        drop_bad: Leave out rows with NaN, infinite or negative values instead of raising.
        labels: Labelled conditions, by name, with all their labels (none: those that the files have): where a file
            holds no such condition, its provenance may say the one label of its samples.
        strict: Refuse folders that lack samples, by their manifests or the indices of their files; else notes say so.
        reading: What files that calogen did not write do not say of themselves.

    Raises:
        ShardError: If files are missing, damaged, of an unknown layout, or do not belong together.
    """
    pieces = _open_pieces(items_of(source), split, family, like, reading, strict=strict)
    return Shards(_whole(pieces, labels, family), drop_bad=drop_bad)


def open_splits(
    source: Paths,
    *,
    family: Family | None = None,
    drop_bad: bool = False,
    labels: Mapping[str, Sequence[str]] | None = None,
    strict: bool = False,
    reading: Reading | None = None,
    rule: str = "stratified",
) -> tuple[Shards, Shards]:
    """Opens samples for training: (training, validation); arguments as for :func:`open_shards`.

    A folder with ``train/`` and ``validation/`` gives those; ``test/`` is never read. Of a folder with ``train/``
    alone, and of unsplit data, 10 % validates, chosen by ``rule`` (:meth:`Shards.split_off`); maps are split by
    realisation. Samples of files that differ in a label take turns.

    Raises:
        ShardError: As :func:`open_shards`, and if a realisation is both in ``train/`` and in ``validation/``.
    """
    items = items_of(source)
    splits = [[split for split in ("train", "validation") if split in splits_of(item)] for item in items]
    if not any("train" in own for own in splits):
        whole = open_shards(items, family=family, drop_bad=drop_bad, labels=labels, strict=strict, reading=reading)
        require_asked([whole], reading)
        train, validation = whole.split_off(rule)
        return train.mixed(), validation.mixed()
    pieces, roles = list[Piece](), list[str]()
    for item, own in zip(items, splits, strict=True):
        for split in own if "train" in own else [None]:
            pieces += (found := _open_pieces([item], split, family, None, reading, strict=strict))
            roles += [split if split and len(own) == 2 else ""] * len(found)
    known = list(zip(roles, _whole(pieces, labels, family), strict=True))
    require_asked([Shards([piece for _, piece in known])], reading)
    opened = {role: Shards([piece for own, piece in known if own == role], drop_bad=drop_bad) for role in set(roles)}
    train, validation = opened[""].split_off(rule) if "" in opened else (opened["train"], opened["validation"])
    if len(opened) == 3:
        train, validation = train.joined(opened["train"]), validation.joined(opened["validation"])
    if "validation" in opened and train.family.has_realisations:
        require_apart(train.origins(), validation.origins())
    return train.mixed(), validation.mixed()


def _open_pieces(
    items: list[str | Path],
    split: str | None,
    family: Family | None,
    like: Family | None = None,
    reading: Reading | None = None,
    *,
    strict: bool = False,
) -> list[Piece]:
    """Every file that items stand for."""
    named, parameters = without_parameters(items)
    opened = [file.open(family, like, parameters, reading) for item in named for file in files_of(item, split)]
    pieces = with_gaps(opened)
    if not pieces:
        raise ShardError("there are no samples yet", where=", ".join(map(str, named)), hint="is it still being made?")
    if parameters is not None and not any(parameters in piece.layout.also for piece in pieces):
        raise ShardError("only a stack of maps takes a parameter file", where=parameters)
    lacking = [line for piece in pieces for line in piece.missing]
    if strict and lacking:
        hint = "make or fetch the rest, or leave out `strict`"
        raise ShardError("samples are missing", where=", ".join(map(str, named)), found=lacking[0], hint=hint)
    return pieces


def with_gaps(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with what lacks between files that no manifest lists, by the global indices in their headers."""
    found: dict[Path, list[Piece]] = {}
    for piece in pieces:
        if piece.layout.name == "calogen" and not piece.missing:
            found.setdefault(piece.path.parent, []).append(piece)
    said: dict[Path, list[str]] = {}
    for folder, some in found.items():
        if len({piece.layout.index_start for piece in some}) == len(some):  # else nobody numbered their samples
            files = [(piece.path.name, piece.layout.index_start, piece.layout.length) for piece in some]
            said[folder] = gaps(folder, files)
    return [replace(piece, missing=piece.missing or tuple(said.get(piece.path.parent, ()))) for piece in pieces]


def _whole(pieces: list[Piece], labels: Mapping[str, Sequence[str]] | None, family: Family | None) -> list[Piece]:
    """Pieces that can be read together: each of another file, with the labels of all, unweighted and of one angle."""
    pieces = unweighted(with_labels(_once(pieces), labels or {}, family))
    angles = {str(piece.layout.provenance.get("angle", "")) for piece in pieces if piece.layout.name == "par04"}
    if len(angles) > 1 and not any(column.name == "angle" for column in pieces[0].layout.conditions):
        raise ShardError(
            "files of several angles cannot be read as one",
            where=pieces[0].path,
            found=", ".join(sorted(angles)),
            hint="make the angle a condition, `conditions=angle`, or give files of one angle",
        )
    return pieces


def require_asked(sides: Sequence[Source], reading: Reading | None) -> None:
    """Refuse what is said of files where all files say it themselves.

    Raises:
        ShardError: If calogen wrote all of them.
    """
    pieces = [piece for side in sides if isinstance(side, Shards) for piece in side.pieces]
    if reading and set(reading.given) - {"unweight"} and all(piece.layout.name == "calogen" for piece in pieces):
        raise ShardError(
            "the files say themselves how they are to be read",
            where=pieces[0].path if pieces else "samples in memory",
            expected="files that calogen did not write",
            found="files of calogen alone",
            hint=f"leave out {', '.join(f'`{name}`' for name in reading.given)}",
        )


def unweighted(pieces: list[Piece]) -> list[Piece]:
    """Pieces without weights: where samples have some, each is kept with the probability that its weight says.

    Raises:
        ShardError: If samples are weighted and nobody asked for that, or weights are no weights.
    """
    weighted = [piece for piece in pieces if WEIGHTS in piece.layout.extras]
    if not weighted:
        return pieces
    found = []
    for piece in weighted:
        with open_rows(piece.path, piece.layout) as file:
            found.append(rows_of(file, piece, WEIGHTS, 0, len(piece)).astype(np.float64).ravel())
    together, path = np.concatenate(found), weighted[0].path
    if not (np.isfinite(together).all() and together.min() >= 0 and together.max() > 0):
        raise ShardError(
            "weights are not finite and positive", where=f"{path}, dataset {WEIGHTS}", found=together.min()
        )
    equal = not varies(float(np.ptp(together)), float(together.max())) and len(weighted) == len(pieces)
    if not equal and (len(weighted) < len(pieces) or not all(piece.layout.reading.unweight for piece in weighted)):
        raise ShardError(
            "the samples are weighted",
            where=f"{path}, dataset {WEIGHTS}",
            expected="samples of equal weight in all files",
            found=f"weights from {together.min():.4g} to {together.max():.4g}",
            hint="`unweight=True` keeps each sample with a probability in proportion to its weight",
        )
    rng, kept = np.random.default_rng(0), []
    for piece, weights in zip(weighted, found, strict=True):
        chosen = np.flatnonzero(equal | (rng.random(len(weights)) * together.max() < weights))
        note = "all weights are equal" if equal else f"{len(chosen)} of {len(weights)} samples kept by their weights"
        layout = replace(piece.layout, extras=tuple(e for e in piece.layout.extras if e != WEIGHTS)).noted(note)
        kept += [replace(piece.only(chosen), layout=layout)] if len(chosen) else []
    return kept


def _once(pieces: list[Piece]) -> list[Piece]:
    """The pieces, each of another file."""
    seen: set[Path] = set()
    for path in (piece.path for piece in pieces):
        if path.resolve() in seen:
            raise ShardError("the file is named twice", where=path)
        seen.add(path.resolve())
    return pieces


@dataclass(frozen=True)
class DataFile:
    """A file with samples.

    Attributes:
        path: Where it is.
        record: What its folder's manifest says about it, if there is one.
        facts: Labels named with its path.
        missing: What its folder lacks, for people.
    """

    path: Path
    record: ShardRecord | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Its length; 0 of a link to nowhere."""
        return self.path.stat().st_size if self.path.exists() else 0

    def open(
        self,
        family: Family | None = None,
        like: Family | None = None,
        parameters: Path | None = None,
        reading: Reading | None = None,
    ) -> Piece:
        """All of its samples; its header is read, and where a manifest lists it, its bytes are compared with that.

        Args:
            family: What the samples are, where the file does not say; checked where it does.
            like: What the samples are, where neither ``family`` nor the file says.
            parameters: The text file with a stack's parameters.
            reading: What the user says of files that calogen did not write.

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
        state = file_state(self.path)
        if self.record is not None and (found := known_sha256(self.path, state)) != self.record.sha256:
            raise ShardError(
                "the file's SHA-256 is not the manifest's",
                where=self.path,
                expected=self.record.sha256,
                found=found,
                hint="the file is damaged or was replaced: copy or make it again",
            )
        constant = any(_is_number(value) for value in self.facts.values())
        layout = read_layout(self.path, family, parameters, like, reading, constant=constant)
        if self.record is not None and layout.length != self.record.samples:
            raise ShardError(
                "the file's samples are not as many as the manifest says",
                where=self.path,
                expected=self.record.samples,
                found=layout.length,
            )
        state += file_state(*layout.also)
        return given(Piece(self.path, layout, 0, layout.length, missing=self.missing, state=state), self.facts)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return bool(np.isfinite(float(text)))
    return False


def items_of(source: Paths) -> list[str | Path]:
    """The files, globs and folders that are named; those listed in a ``.csv`` file, from its own folder.

    Raises:
        ShardError: If there are none, or a list cannot be read.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    items = [item for one in given for item in (_listed(Path(one)) if str(one).endswith(LIST) else [one])]
    if not items or not all(str(item) for item in items):
        raise ShardError("no data is named", expected="a file, a glob or a folder")
    return items


def _listed(path: Path) -> list[str | Path]:
    try:
        lines = read_bounded(at_home(path)).decode().splitlines()
    except OSError as error:
        raise ShardError("the list of files cannot be read", where=path, found=error.strerror) from None
    except UnicodeDecodeError:
        raise ShardError("the list of files is not text", where=path) from None
    for line in lines:
        if len(line) > _LONGEST or not line.isprintable():
            raise ShardError(
                "the list of files names none that can be",
                where=path,
                expected=f"one path a line, of at most {_LONGEST} characters that can be printed",
                found=line[:60],
            )
    return [str(at_home(path).parent / line.strip()) for line in lines if line.strip() and not line.startswith("#")]


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
    return Path(os.path.expanduser(item))  # noqa: PTH111 (pathlib raises where there is no home)


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
        return [DataFile(path, _record_of(path))]
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


def _record_of(path: Path) -> ShardRecord | None:
    """What the manifest beside a file says of it; a damaged one says nothing."""
    with suppress(ShardError):
        manifest = read_manifest(path.parent)
        return next((record for record in manifest.records if record.name == path.name), None) if manifest else None
    return None


def folders_of(item: str | Path) -> list[Path]:
    """The folders that an item stands for: itself, or its splits where it holds no files; none of anything else."""
    folder = at_home(named_with(item)[0])
    splits = [folder / name for name in splits_of(folder)]
    return splits if splits and not _paths_in(folder) else [folder] * folder.is_dir()


def files_in(folder: Path, note: Callable[[ShardError], None] | None = None) -> list[DataFile]:
    """The data files of a folder, in the manifest's order where it has one.

    Args:
        folder: Where they are.
        note: Takes what is wrong with folder or manifest, so that what is there is found all the same.

    Raises:
        ShardError: If there are none, or not those in the manifest.
    """
    paths, manifest, lacking = _paths_in(folder), None, list[str]()
    try:
        parts = read_parts(folder)
        manifest, lacking = merged(folder, parts), missing(folder, parts)
        _require_listed(folder, paths, manifest)
    except ShardError as error:
        if note is None:
            raise
        note(error)
    records = {record.name: record for record in manifest.records} if manifest else {}
    places = {name: place for place, name in enumerate(records)}
    paths.sort(key=lambda path: places.get(path.name, len(places)))
    return [DataFile(path, records.get(path.name), missing=tuple(lacking)) for path in paths]


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
