"""Opening samples for reading and for training, from the paths that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ShardError
from ..families import Family
from .files import Source, files_of, items_of, splits_of, without_parameters
from .labels import with_labels
from .pieces import Piece
from .reader import Shards
from .realisations import require_apart


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
    pieces = _open_pieces(items_of(source), split, family, like)
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
    items = items_of(source)
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
    if "validation" in opened and train.family.has_realisations:
        require_apart(train.origins(), validation.origins())
    return train.mixed(), validation.mixed()


def _open_pieces(
    items: list[str | Path], split: str | None, family: Family | None, like: Family | None = None
) -> list[Piece]:
    """Every file that items stand for."""
    named, parameters = without_parameters(items)
    pieces = [file.open(family, like, parameters) for item in named for file in files_of(item, split)]
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
