"""Labels of data: which particle a file is of, as the file says it or as it is named with the path.

Labels are matched by name. A file's own numbers stand for its own labels; where several files are read as one, every
number becomes that of the family they are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .errors import ShardError, did_you_mean
from .families import LABEL, Condition, Family
from .formats import Column
from .shardreader import Piece

_FACT = rf",[\w-]+={LABEL}"


def named_with(item: str | Path) -> tuple[str | Path, dict[str, str]]:
    """A path apart from the labels named with it: ``eplus.hdf5,particle=e+``."""
    match = re.fullmatch(rf"(.+?)((?:{_FACT})+)", str(item), re.ASCII)
    if match is None or Path(item).exists():
        return item, {}
    pairs = (fact.partition("=") for fact in match[2][1:].split(","))
    return match[1], {name: label for name, _, label in pairs}


def given(piece: Piece, facts: Mapping[str, str]) -> Piece:
    """A piece whose samples all have the labels named with its path.

    Raises:
        ShardError: If the file itself says what each sample has.
    """
    layout = piece.layout
    for name, label in facts.items():
        if any(column.name == name for column in layout.conditions):
            raise ShardError(f"the file itself says the '{name}' of each sample", where=piece.path, found=label)
        if (said := layout.provenance.get(name, label)) != label:
            layout = replace(layout, notes=(*layout.notes, f"{name} {label}, as named; the file says {said}"))
    columns = tuple(Column(name, "", labels=(label,)) for name, label in facts.items())
    return replace(piece, layout=replace(layout, conditions=(*layout.conditions, *columns)))


def with_labels(
    pieces: Sequence[Piece], wanted: Mapping[str, Sequence[str]], family: Family | None = None
) -> list[Piece]:
    """Pieces that agree on the labels of their conditions; those of files of one kind are taken from their provenance.

    Args:
        pieces: As they were opened.
        wanted: Labelled conditions that the samples shall have, by name, with their labels (none: those found).
        family: Where it has labels, they are those wanted.

    Raises:
        ShardError: If a label is not among those wanted, or a file does not say which it has.
    """
    pieces = list(pieces)
    found = [c.name for piece in pieces for c in piece.layout.conditions if c.labels]
    known = {**wanted, **(family.labelled if family else {})}
    for name in dict.fromkeys([*known, *found]):
        if any(c.name == name and not c.labels for piece in pieces for c in piece.layout.family.conditions):
            if name in found:
                raise ShardError(f"'{name}' is a number, not a label", where=pieces[0].path)
            continue
        told = [_column_of(piece, name) for piece in pieces]
        columns = [column for column in told if column is not None]
        if not columns:
            continue
        if None in told:
            raise _untold(pieces[told.index(None)].path, name, columns)
        labels = tuple(known.get(name) or dict.fromkeys(label for column in columns for label in column.labels))
        pieces = [_with_column(piece, column, labels) for piece, column in zip(pieces, columns, strict=True)]
    return pieces


def _column_of(piece: Piece, name: str) -> Column | None:
    """Where a file says which labels its samples have: in a dataset, or its provenance has one for all; else None."""
    own = next((column for column in piece.layout.conditions if column.name == name), None)
    label = piece.layout.provenance.get(name)
    return own or (Column(name, "", labels=(label,)) if isinstance(label, str) and label else None)


def _untold(path: Path, name: str, others: Sequence[Column]) -> ShardError:
    labels = list(dict.fromkeys(label for column in others for label in column.labels))
    return ShardError(
        f"nothing says which '{name}' these samples are of",
        where=path,
        expected=f"a label, as the other files have: {', '.join(labels)}",
        hint=f"name it with the path: {path},{name}={labels[0]}",
    )


def _with_column(piece: Piece, column: Column, labels: tuple[str, ...]) -> Piece:
    name = column.name
    unknown = [label for label in column.labels if label not in labels]
    if unknown:
        raise ShardError(
            f"'{unknown[0]}' is not a label of '{name}'",
            where=piece.path,
            expected=", ".join(labels),
            found=", ".join(column.labels),
            hint=did_you_mean(unknown[0], labels),
        )
    try:
        family = piece.layout.family.with_condition(Condition.labelled(name, labels))
    except ValueError:  # pydantic's, of a single label too
        raise ShardError(
            f"'{name}' cannot be a condition of these samples",
            where=piece.path,
            expected="at least two labels, of letters, digits and signs",
            found=", ".join(labels),
        ) from None
    others = [c for c in piece.layout.conditions if c.name != name]
    return replace(piece, layout=replace(piece.layout, family=family, conditions=(*others, column)))
