"""Labels of data: which particle a file is of, as the file says it or as it is named with the path.

Labels are matched by name. A file's own numbers stand for its own labels; where several files are read as one, or
compared, every number becomes that of the family they are given. One label alone is no condition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..errors import ConditionError, ShardError, did_you_mean
from ..families import LABEL, Condition, Family, conversion
from .layouts.layout import Column
from .pieces import Piece
from .reader import Shards, Source

_FACT = rf",[\w-]+={LABEL}"


def named_with(item: str | Path) -> tuple[str | Path, dict[str, str]]:
    """A path apart from the labels named with it: ``eplus.hdf5,particle=e+``."""
    match = re.fullmatch(rf"(.+?)((?:{_FACT})+)", str(item), re.ASCII)
    if match is None or Path(item).exists():
        return item, {}
    pairs = (fact.partition("=") for fact in match[2][1:].split(","))
    return match[1], {name: label for name, _, label in pairs}


def given(piece: Piece, facts: Mapping[str, str]) -> Piece:
    """A piece whose samples all have the labels, or the values of conditions, named with its path.

    Raises:
        ShardError: If the file itself says what each sample has, or a value is no number in the condition's unit.
    """
    layout, labels = piece.layout, dict(facts)
    numbers = {condition.name: condition for condition in layout.family.conditions if not condition.labels}
    for name, label in facts.items():
        if any(column.name == name for column in layout.conditions):
            raise ShardError(f"the file itself says the '{name}' of each sample", where=piece.path, found=label)
        if name in numbers:
            column = Column(name, "", value=_value(numbers[name], labels.pop(name), piece.path), said=True)
            layout = replace(layout, conditions=(*layout.conditions, column))
        elif (said := layout.provenance.get(name, label)) != label:
            layout = replace(layout, notes=(*layout.notes, f"{name} {label}, as named; the file says {said}"))
    return replace(piece, layout=layout, facts=labels)


def _value(condition: Condition, text: str, path: Path) -> float:
    """A number with its unit, ``0.3`` or ``50GeV``, in the condition's own."""
    match = re.fullmatch(r"([-+]?[\d.]+(?:e[-+]?\d+)?)([A-Za-z]*)", text)
    try:
        return float(match[1]) * conversion(match[2], condition.unit, name=condition.name) if match else float(text)
    except (ValueError, ConditionError):
        unit = f" and its unit, such as {condition.unit}" if condition.unit else ""
        raise ShardError(
            f"this is no value of '{condition.name}'", where=path, expected=f"a number{unit}", found=text
        ) from None


def with_labels(
    pieces: Sequence[Piece], wanted: Mapping[str, Sequence[str]], family: Family | None = None
) -> list[Piece]:
    """Pieces that agree on the labels of their conditions; files of one kind have theirs from path or provenance.

    Args:
        pieces: As they were opened.
        wanted: Labelled conditions that the samples shall have, by name, with their labels (none: those found). Where
            no other is in the files, and only one label is named with their paths, they have no such condition.
        family: Where it has labels, they are those wanted.

    Raises:
        ShardError: If a label is not among those wanted, or a file does not say which it has.
    """
    pieces = list(pieces)
    found = [name for piece in pieces for name in _labelled(piece)]
    known = {**wanted, **(family.labelled if family else {})}
    for name in dict.fromkeys([*known, *found]):
        if any(c.name == name and not c.labels for piece in pieces for c in piece.layout.family.conditions):
            if name in found:
                raise ShardError(f"'{name}' is a number, not a label", where=pieces[0].path)
            continue
        sources = [_column_of(piece, name) for piece in pieces]
        columns = [column for column in sources if column is not None]
        if not columns:
            continue
        if None in sources:
            raise _unlabelled(pieces[sources.index(None)].path, name, columns)
        labels = tuple(known.get(name) or dict.fromkeys(label for column in columns for label in column.labels))
        if len(labels) == 1 and name not in known:
            continue
        pieces = [_with_column(piece, column, labels) for piece, column in zip(pieces, columns, strict=True)]
    return pieces


def shared_labels(sides: Sequence[Source]) -> dict[str, tuple[str, ...]]:
    """Conditions that are labels on any side of a comparison, with the labels of all sides, those seen first first.

    Args:
        sides: Shards, or samples in memory.
    """
    named = [[side.family.labelled, *(piece.facts for piece in _pieces_of(side))] for side in sides]
    names = dict.fromkeys(chain.from_iterable(chain.from_iterable(named)))
    found = {name: tuple(dict.fromkeys(label for side in sides for label in _labels_of(side, name))) for name in names}
    return {name: labels for name, labels in found.items() if len(labels) > 1}


def relabelled(side: Source, labels: Mapping[str, tuple[str, ...]]) -> Source:
    """The same samples, with the numbers that their labels have among those given; NaN in memory for one of none.

    Args:
        side: Shards, or samples in memory.
        labels: From :func:`shared_labels`, of this side among others.

    Raises:
        ShardError: If some files say which label their samples have, and others do not.
    """
    if all(side.family.labels(name) == wanted for name, wanted in labels.items()):
        return side
    if isinstance(side, Shards):
        return Shards(with_labels(side.pieces, labels), drop_bad=side.drop_bad)
    family, wanted = side.family, {name: labels[name] for name in labels.keys() & side.family.labelled.keys()}
    for name, known in wanted.items():
        family = family.with_condition(Condition.labelled(name, known))
    return replace(side, family=family, conditions=side.conditions.relabelled(wanted))


def _pieces_of(side: Source) -> Sequence[Piece]:
    return side.pieces if isinstance(side, Shards) else ()


def _labels_of(side: Source, name: str) -> Sequence[str]:
    columns = [_column_of(piece, name) for piece in _pieces_of(side)]
    return side.family.labels(name) or [label for column in columns if column for label in column.labels]


def _labelled(piece: Piece) -> list[str]:
    """Names of the conditions that are labels in a file, or are named with its path."""
    return [*(column.name for column in piece.layout.conditions if column.labels), *piece.facts]


def _column_of(piece: Piece, name: str) -> Column | None:
    """Where the label of each sample is: in a dataset, or one for all is named or in the provenance; else None."""
    own = next((column for column in piece.layout.conditions if column.name == name), None)
    label = piece.facts.get(name) or piece.layout.provenance.get(name)
    return own or (Column(name, "", labels=(label,)) if isinstance(label, str) and label else None)


def _unlabelled(path: Path, name: str, others: Sequence[Column]) -> ShardError:
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
        maps = piece.layout.family.kind == "map"
        raise ShardError(
            f"'{name}' cannot be a condition of these samples",
            where=piece.path,
            expected="a number: maps have no labels" if maps else "at least two labels, of letters, digits and signs",
            found=", ".join(labels),
        ) from None
    others = [c for c in piece.layout.conditions if c.name != name]
    return replace(piece, layout=replace(piece.layout, family=family, conditions=(*others, column)))
