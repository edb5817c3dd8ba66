"""What `calogen info` and `calogen verify` say of files: content, ranges, and whether every byte is as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Reading
from ..errors import ShardError
from ..families import Family
from ..storage import known_sha256
from .checks import responses
from .labels import named_with, with_labels
from .manifest import missing, read_manifest, read_parts
from .pieces import Piece
from .reader import Shards
from .realisations import require_apart
from .samples import Samples
from .sources import (
    SPLITS,
    DataFile,
    Paths,
    files_in,
    files_of,
    folders_of,
    items_of,
    require_asked,
    unweighted,
    with_gaps,
    without_parameters,
)

_PROBLEMS_SHOWN = 20


class Ranges:
    """Ranges of the good rows seen so far.

    Attributes:
        bad_rows: How many there were besides.
    """

    def __init__(self) -> None:
        self.bad_rows = 0
        self._sums = np.zeros(5)  # rows, numbers, zeros, values, responses
        self._ends: dict[str, tuple[float, float]] = {}  # of each condition by name, and of the values
        self._smallest = np.inf
        self._labels: dict[str, Counter[str]] = {}

    def add(self, piece: Piece) -> None:
        """Reads a piece to its end.

        Raises:
            ShardError: If the file is damaged or, after all its good rows were counted, if it has bad ones.
        """
        shards = Shards([piece], drop_bad=True)
        for samples in shards.chunks():
            self._add(samples)
            for name, label in piece.facts.items():
                if name not in samples.conditions:  # one label of all samples is no condition
                    self._labels.setdefault(name, Counter())[label] += len(samples)
        if shards.dropped:
            self.bad_rows += shards.dropped
            _read_through(piece)

    def _add(self, samples: Samples) -> None:
        values, found = samples.values, responses(samples)
        positive = values[values > 0]
        total, response = positive.sum(dtype=np.float64), 0.0 if found is None else found.sum()
        self._sums += len(values), values.size, values.size - positive.size, total, response
        self._smallest = min(self._smallest, float(positive.min(initial=np.inf)))
        for name, array in (("", values), *samples.conditions.items()):
            low, high = self._ends.get(name, (np.inf, -np.inf))
            self._ends[name] = min(low, float(array.min())), max(high, float(array.max()))
            for code, label in enumerate(samples.family.labels(name)):
                self._labels.setdefault(name, Counter())[label] += int(np.count_nonzero(array == code))

    def table(self, family: Family, names: Sequence[str]) -> dict[str, Any]:
        """The ranges as JSON-able values; empty ones are None."""
        conditions: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys([*names, *self._labels]):
            if name in self._labels or family.labels(name):
                conditions[name] = {"samples": dict(self._labels.get(name, {}))}
            else:
                low, high = self._ends.get(name, (None, None))
                conditions[name] = {"unit": family.condition(name).unit, "low": low, "high": high}
        rows, numbers, zeros, total, response = self._sums.tolist()
        low, high = self._ends.get("", (None, None))
        return {
            "conditions": conditions,
            "values": {
                "unit": family.unit,
                "low": low,
                "high": high,
                "mean": total / numbers if rows else None,
                "smallest_positive": self._smallest if np.isfinite(self._smallest) else None,
                "zero_fraction": zeros / numbers if rows else None,
            },
            "response": response / rows if response else None,
            "bad_rows": self.bad_rows,
        }


def verify(folder_or_file: str | Path, family: Family | None = None, reading: Reading | None = None) -> list[str]:
    """Checks every byte: SHA-256 against the manifest, every chunk decompressed, every value.

    Args:
        folder_or_file: A folder of shards, a folder of splits, or one file.
        family: What the samples are, where the files do not say.
        reading: What files that calogen did not write do not say of themselves.

    Returns:
        What is wrong, one line each; empty when everything is right.

    Raises:
        ShardError: If there is no such file or folder.
    """
    known_sha256.cache_clear()  # every byte is read again
    if folders := folders_of(folder_or_file):
        return [problem for folder in folders for problem in _verify_folder(folder, family, reading)]
    problems = list[str]()
    for file in files_of(folder_or_file):
        with _noted(problems):
            read_manifest(file.path.parent)
        problems += verify_file(file, family, reading)
    return problems


def _verify_folder(folder: Path, family: Family | None, reading: Reading | None) -> list[str]:
    problems = list[str]()
    files = files_in(folder, lambda error: problems.append(_line(error)))
    problems += [f"{part}: the file was never finished" for part in sorted(folder.glob("*.part"))]
    for file in files:
        problems += verify_file(file, family, reading)
    with suppress(ShardError):  # said already
        problems += missing(folder, read_parts(folder))
    if not any(file.record for file in files) and any(_is_native(file) for file in files):
        problems.append(f"{folder}: there is no manifest, so the bytes cannot be compared with what was written")
    return problems


def _is_native(file: DataFile) -> bool:
    with suppress(ShardError):
        return file.open().layout.name == "calogen"
    return False


def verify_file(file: DataFile, family: Family | None = None, reading: Reading | None = None) -> list[str]:
    """Checks every byte of one file; what is wrong, one line each."""
    problems = list[str]()
    try:
        with _noted(problems):
            _read_through(file.open(family, reading=reading))
    except OSError as error:
        problems.append(f"{file.path}: {error.strerror or error}")
    return problems


def _read_through(piece: Piece) -> None:
    """Reads all rows, which raises at the first bad one, naming it."""
    for _ in Shards([piece]).chunks():
        pass


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Ends what is done within at the first error in the data, which is noted and not raised."""
    try:
        yield
    except ShardError as error:
        problems.append(_line(error))


def _line(error: ShardError) -> str:
    details = [f"{name} {value}" for name, value in (("expected", error.expected), ("found", error.found)) if value]
    details += [error.hint] if error.hint else []
    return f"{error.where}: {error.what}" + (f" ({'; '.join(details)})" if details else "")


def describe(source: Paths, family: Family | None = None, reading: Reading | None = None) -> dict[str, Any]:
    """What data is: all that ``calogen info`` prints, as JSON-able values.

    Damage is reported under ``problems``; what can be read is described all the same.

    Args:
        source: As for :func:`open_shards`; of a folder of splits, all of them.
        family: What the samples are, where the files do not say.
        reading: What files that calogen did not write do not say of themselves.

    Returns:
        ``source, format, family, kind, samples, realisations, files, bytes, unit, sample_shape, splits, conditions,
        values, response, bad_rows, provenance, notes, missing, problems``. Ranges are of good rows only, in the
        family's units.

    Raises:
        ShardError: If there is no such file or folder.
    """
    items, parameters = without_parameters(items_of(source))
    problems, files = _everything(items)
    ranges, opened, pieces, splits = Ranges(), list[Piece](), list[Piece](), dict[str, list[Piece]]()
    for file in files:
        with _noted(problems):
            opened.append(file.open(family, parameters=parameters, reading=reading))
    for piece in _agreeing(with_gaps(opened), problems):
        with _noted(problems):
            Shards([*pieces[:1], piece])  # do they belong together?
            pieces.append(piece)
            if piece.path.parent.name in SPLITS:
                splits.setdefault(piece.path.parent.name, []).append(piece)
            ranges.add(piece)
    for one, other in combinations(splits.values(), 2):
        if pieces[0].layout.family.has_realisations:
            with _noted(problems):
                require_apart(Shards(one).origins(), Shards(other).origins())
    shown = problems[:_PROBLEMS_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    table: dict[str, Any] = {
        "source": [str(item) for item in items_of(source)],
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "samples": sum(len(piece) for piece in pieces),
        "splits": {name: sum(map(len, own)) for name, own in splits.items()},
        "problems": shown,
    }
    if not pieces:
        return table
    shards = Shards(pieces)
    require_asked([shards], reading)
    boxes = shards.origins().boxes if shards.family.has_realisations else None
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
        "missing": list(shards.missing),
    }


def _agreeing(pieces: list[Piece], problems: list[str]) -> list[Piece]:
    """The pieces with the labels of all of them, unweighted; each with its own where they do not go together."""
    with _noted(problems):
        pieces = unweighted(pieces)
    with _noted(problems):
        return with_labels(pieces, {})
    return [with_labels([piece], {})[0] for piece in pieces]


def _everything(items: list[str | Path]) -> tuple[list[str], list[DataFile]]:
    """What is wrong with the items' folders, and all their files, of all splits."""
    problems, files = list[str](), list[DataFile]()
    for item in items:
        folders = folders_of(item)
        files += [] if folders else files_of(item)
        for folder in folders:
            found = files_in(folder, lambda error: problems.append(_line(error)))
            files += [replace(file, facts=named_with(item)[1]) for file in found]
    return problems, files
