"""Reading samples from any number of files in any known layout, at constant memory."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from ..families import Family
from ..storage import sha256_of
from .checks import bad_error, bad_rows, check_conditions, check_density, check_pairs, check_response
from .conditions import Conditions
from .layouts.find import open_rows
from .layouts.layout import Layout, Opened
from .manifest import read_manifest
from .pieces import SLAB_BYTES, Piece, read_conditions, read_rows, rows_of
from .realisations import Origin, Origins, prints_of
from .samples import Samples, distinct
from .split import last_of, tenth_of

_ID = "realisation_id"
_TURN = 1024  # samples of one kind of file after another
_PRINTED = 512  # maps whose digests are taken at a time
_VALIDATION_SHARE = 10  # one in this many samples validates when the data is not split


class Shards:
    """An ordered, read-only collection of samples over one or more files; holds no data in memory.

    Attributes:
        family: What the samples are.
        kind: ``reference`` or ``generated``.
        condition_names: Physics parameters the files carry.
        files: The files, in order.
        provenance: Where the samples come from, each origin once.
        notes: Conversions done while reading, such as "incident energies converted from GeV to MeV"; what is missing.
        missing: What the folders lack: parts, samples still to be made, gaps.
        pieces: What is read of each file, in order.
        drop_bad: Whether bad rows are left out.
    """

    def __init__(self, pieces: Sequence[Piece], *, drop_bad: bool = False) -> None:
        first = pieces[0].layout
        for piece in pieces[1:]:
            _check_alike(first, pieces[0].path, piece)
            first = replace(first, family=first.family.joined(piece.layout.family))
        self.family: Family = first.family
        self.kind: str = first.kind
        self.condition_names: tuple[str, ...] = tuple(column.name for column in first.conditions)
        self.files: tuple[Path, ...] = tuple(dict.fromkeys(piece.path for piece in pieces))
        self.provenance: tuple[dict[str, Any], ...] = distinct(piece.layout.provenance for piece in pieces)
        self.missing: tuple[str, ...] = tuple(dict.fromkeys(chain.from_iterable(piece.missing for piece in pieces)))
        conversions = dict.fromkeys(chain.from_iterable(piece.layout.notes for piece in pieces))
        self.notes: tuple[str, ...] = (*conversions, *self.missing)
        self.pieces = tuple(pieces)
        self._bounds = tuple(accumulate((len(piece) for piece in pieces), initial=0))
        self.drop_bad = drop_bad
        self._bad_rows: set[int] = set()
        self._plausible: set[Path] = set()
        self._digest: str | None = None

    def __len__(self) -> int:
        """Rows in the files; with ``drop_bad``, reading may give fewer."""
        return self._bounds[-1]

    def __getitem__(self, index: int | slice) -> Samples:
        """One sample, or a slice of them, in memory."""
        rows = range(len(self))[index]
        if isinstance(rows, int):
            return self.read(rows, rows + 1)
        if not rows:
            return self.read(0, 0)
        return self.read(min(rows), max(rows) + 1)[:: rows.step]

    def __iter__(self) -> Iterator[Samples]:
        """One sample after another; :meth:`chunks` is faster."""
        return (chunk[row] for chunk in self.chunks() for row in range(len(chunk)))

    def __repr__(self) -> str:
        files = f"{len(self.files)} file{'s'[: len(self.files) > 1]}"
        return f"Shards({len(self)} {self.family.shapes}, {self.family.name}, {self.kind}, {files})"

    @property
    def dropped(self) -> int:
        """Rows left out so far because of ``drop_bad``."""
        return len(self._bad_rows)

    def read(self, start: int = 0, stop: int | None = None) -> Samples:
        """Samples start to stop (to the end when absent), in memory.

        Raises:
            ShardError: If a file is damaged or a row is bad and ``drop_bad`` is off.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        values = np.empty((max(stop - start, 0), *self.family.sample_shape), np.float32)
        parts, filled = [], 0
        for chunk in self.chunks(max(len(values), 1), start, stop):
            values[filled : filled + len(chunk)] = chunk.values
            filled += len(chunk)
            conditions = chunk.conditions.only(self.condition_names)  # files may have them in different orders
            parts.append(replace(chunk, values=values[filled - len(chunk) : filled], conditions=conditions))
        if not parts:
            with open_rows((piece := self.pieces[0]).path, piece.layout) as file:
                return replace(read_rows(file, piece, 0, 0), provenance=self.provenance)
        return Samples.concatenate(parts, values[:filled])

    @property
    def bounds(self) -> tuple[int, ...]:
        """The row with which each file begins, and how many rows there are; chunks end at these."""
        return self._bounds

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:
        """Samples start to stop in order, at most ``size`` at a time.

        Chunks end where files end, and are smaller where ``size`` samples would take more than 128 MiB.

        Raises:
            ShardError: If a file is damaged or a row is bad and ``drop_bad`` is off.
        """
        return (samples for _, samples in self.placed_chunks(size, start, stop) if len(samples))

    def placed_chunks(
        self, size: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Samples]]:
        """The same, each with the rows (N,) that its samples have here; of bad rows only, with none.

        Raises:
            ShardError: As :meth:`chunks`.
        """
        sample_bytes = 4 * self.family.voxels
        size = max(1, min(size, SLAB_BYTES // sample_bytes))
        start, stop, _ = slice(start, stop).indices(len(self))
        for number in range(max(0, bisect_right(self._bounds, start) - 1), len(self.pieces)):
            piece, offset = self.pieces[number], self._bounds[number]
            start, end = max(start, offset), min(stop, offset + len(piece))
            if start >= end:
                return
            piece.require_unchanged()
            with open_rows(piece.path, piece.layout) as file:
                for first in range(start, end, size):
                    piece.require_unchanged()  # before it is read, so that nothing worse is said of it, and after
                    found = self._checked(file, piece, offset, first, min(first + size, end))
                    piece.require_unchanged()
                    yield found

    def digest(self) -> str:
        """SHA-256 of the data's identity: file names, rows, and each file's own SHA-256, hexadecimal."""
        if self._digest is None:
            hashes: dict[Path, str] = {}
            files = set(self.files)
            for folder in dict.fromkeys(path.parent for path in self.files):
                manifest = read_manifest(folder)
                for record in manifest.records if manifest else ():
                    path = folder / record.name
                    if path in files and path.stat().st_size == record.bytes:
                        hashes[path] = record.sha256
            identity = list[list[Any]]()
            for piece in self.pieces:
                if piece.path not in hashes:
                    hashes[piece.path] = sha256_of(piece.path)
                identity.append([piece.path.name, piece.start, piece.stop, hashes[piece.path]])
                if piece.rows is not None:
                    identity.append(["rows", hashlib.sha256(piece.rows.astype("<i8").tobytes()).hexdigest()])
                identity += [[path.name, sha256_of(path)] for path in piece.layout.also]
                if piece.kinds:
                    identity.append([f"{name}={label}" for name, label in piece.kinds])
                constant = [c for c in piece.layout.conditions if not (c.dataset or c.labels)]
                identity += [[column.name, column.value] for column in constant]
                if said := piece.layout.reading.given:
                    identity.append([said])
            self._digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return self._digest

    def split_off(self, rule: str = "stratified", share: int = _VALIDATION_SHARE) -> tuple[Shards, Shards]:
        """Two parts without a common sample, for training and validation: all but 1 / ``share``, and that.

        Maps are split by simulation where anything says of which they are, so that none is on both sides.

        Args:
            rule: ``stratified``: a seeded choice that has its share of every point and of every part of the conditions'
                range, in whichever order the files hold them; ``last``: the last ones.
            share: See above.

        Raises:
            ShardError: If there is only one sample, or only one simulation.
        """
        if len(self) < 2:
            raise ShardError("one sample cannot be split into training and validation", where=self.files[0])
        kinds = list(dict.fromkeys(piece.kinds for piece in self.pieces))
        kind = np.repeat([kinds.index(piece.kinds) for piece in self.pieces], list(map(len, self.pieces)))
        if self.family.has_realisations:
            origins = self.origins()
            conditions, boxes = origins.conditions, origins.boxes
        else:
            conditions, boxes = self.all_conditions(), None
        units = np.arange(len(self)) if boxes is None else boxes
        first, unit = np.unique(units, return_index=True, return_inverse=True)[1:]
        if len(first) < 2:
            raise ShardError(
                "all maps are of one realisation, which cannot be on both sides",
                where=self.files[0],
                hint="give separate train/ and validation/ folders, or say `maps_per_simulation` where simulations "
                "share their parameters",
            )
        names = sorted(conditions, key=lambda name: not self.family.labels(name))  # labels first
        keys = np.column_stack([kind[first], *(conditions[name][first] for name in names)]).astype(np.float64)
        if rule == "last":
            chosen = last_of(keys[:, :1], share, least=1)
        elif boxes is None and self.family.has_realisations:
            chosen = last_of(keys, share)  # neighbours may be of one simulation: few of them on both sides
        else:
            chosen = tenth_of(keys, share)
        whole, validates = self, chosen[unit]
        if boxes is None and self.family.has_realisations:
            whole = self.noted(
                "nothing says which maps are of one simulation, so some may be on both sides: "
                "`maps_per_simulation` says it"
            )
        return whole.where(~validates), whole.where(validates)

    def noted(self, note: str) -> Shards:
        """The same with a note added."""
        return Shards([replace(p, layout=p.layout.noted(note)) for p in self.pieces], drop_bad=self.drop_bad)

    def thinned(self, count: int) -> Shards:
        """At most so many of the samples, spread evenly over all of them."""
        if count >= len(self):
            return self
        mask = np.zeros(len(self), np.bool_)
        mask[np.linspace(0, len(self) - 1, count).round().astype(np.intp)] = True
        return self.where(mask)

    def joined(self, other: Shards) -> Shards:
        """These samples, then the others."""
        return Shards([*self.pieces, *other.pieces], drop_bad=self.drop_bad)

    def mixed(self) -> Shards:
        """The same samples; files that differ in a label take turns, so that any part holds samples of all kinds."""
        by_kind: dict[object, list[Piece]] = {}
        for piece in self.pieces:
            by_kind.setdefault(piece.kinds, []).append(piece)
        if len(by_kind) == 1:
            return self
        turns = []
        for mine in by_kind.values():
            starts = [(piece, start) for piece in mine for start in range(0, len(piece), _TURN)]
            runs = [piece.cut(start, min(start + _TURN, len(piece))) for piece, start in starts]
            turns += [((number + 0.5) / len(runs), run) for number, run in enumerate(runs)]
        return Shards([run for _, run in sorted(turns, key=lambda turn: turn[0])], drop_bad=self.drop_bad)

    def where(self, mask: NDArray[np.bool_]) -> Shards:
        """Some of the samples, at least one; the mask (N,) is true of those."""
        bounds = zip(self.pieces, self._bounds[:-1], strict=True)
        chosen = [(piece, np.flatnonzero(mask[start : start + len(piece)])) for piece, start in bounds]
        return Shards([piece.only(places) for piece, places in chosen if len(places)], drop_bad=self.drop_bad)

    def all_conditions(self) -> Conditions:
        """The conditions of every sample; no sample is read."""
        return Conditions.concatenate(
            [read_conditions(file, piece, 0, len(piece)) for piece, file in self._opened()], self.condition_names
        )

    def origins(self) -> Origins:
        """Parameters and realisation of every map; no map is read until their digests are asked for."""
        parts = [
            Origin(
                read_conditions(file, piece, 0, len(piece)).only(self.condition_names),
                rows_of(file, piece, _ID, 0, len(piece)) if _ID in piece.layout.extras else None,
                piece.layout.counted,
            )
            for piece, file in self._opened()
        ]
        return Origins(parts, self._place, self._prints)

    def __getstate__(self) -> dict[str, Any]:
        if any(piece.layout.counted for piece in self.pieces):
            _ = self._boxes  # found once, before others get it
        return vars(self)

    @cached_property
    def _boxes(self) -> NDArray[np.int64] | None:
        return self.origins().boxes

    def _prints(self) -> NDArray[np.int64]:
        """A digest of each map as it is stored, of pixels spread over it, (N,)."""
        return np.concatenate(
            [
                prints_of(rows_of(file, piece, piece.layout.values[0], start, min(start + _PRINTED, len(piece))))
                for piece, file in self._opened()
                for start in range(0, len(piece), _PRINTED)
            ]
        )

    def _opened(self) -> Iterator[tuple[Piece, Opened]]:
        for piece in self.pieces:
            piece.require_unchanged()
            with open_rows(piece.path, piece.layout) as file:
                yield piece, file

    def _place(self, row: int) -> str:
        number = bisect_right(self._bounds, row) - 1
        piece = self.pieces[number]
        return f"{piece.path}, row {piece.row(row - self._bounds[number])}"

    def _checked(
        self, file: Opened, piece: Piece, offset: int, start: int, stop: int
    ) -> tuple[NDArray[np.int64], Samples]:
        """Samples start to stop of the collection with their rows, all of one piece, which begins at ``offset``."""
        first, rows = start - offset, np.arange(start, stop)
        samples = read_rows(file, piece, first, stop - offset)
        if piece.path not in self._plausible:
            check_response(file, piece, samples if first == 0 else None)
            check_conditions(file, piece)
            check_density(file, piece, samples)
            self._plausible.add(piece.path)
        check_pairs(piece, samples, first)
        if piece.layout.counted and self._boxes is not None:  # numbers of its own in each file
            own = {_ID: self._boxes[start:stop]} if _ID in samples.extras else {}
            samples = replace(samples, extras={**samples.extras, **own})
        bad = bad_rows(samples)
        if not bad.any():
            return rows, samples
        if not self.drop_bad:
            raise bad_error(file, piece, samples, bad, first)
        self._bad_rows.update(rows[bad].tolist())
        return rows[~bad], samples.select(~bad)


Source = Shards | Samples
"""What a comparison reads: an open folder of shards, or samples in memory."""


def _check_alike(first: Layout, path: Path, piece: Piece) -> None:
    other = piece.layout
    if other is first:
        return
    names, other_names = ([column.name for column in layout.conditions] for layout in (first, other))
    for what, mine, theirs, same in (
        ("family", first.family.summary, other.family.summary, first.family.same_samples(other.family)),
        (
            "sizes at low resolution",
            first.family.low_pixels,
            other.family.low_pixels,
            first.family.low_pixels == other.family.low_pixels,
        ),
        ("kind", first.kind, other.kind, first.kind == other.kind),
        ("conditions", names, other_names, set(names) == set(other_names)),
        *(
            (f"labels of '{name}'", first.family.labels(name), theirs, first.family.labels(name) == theirs)
            for name, theirs in ((name, other.family.labels(name)) for name in names)
        ),
    ):
        if not same:
            raise ShardError(
                f"files of different {what} cannot be read as one",
                where=piece.path,
                expected=f"{mine} (as in {path})",
                found=theirs,
            )
