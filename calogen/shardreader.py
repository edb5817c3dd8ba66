"""Reading samples from any number of files in any known layout, at constant memory.

Physical units throughout: voxels and incident energies come out in the family's units whatever the file holds. Every
row is checked as it is read.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .errors import ShardError
from .families import Family
from .formats import Layout, open_rows
from .realisations import Origins
from .shardfiles import Samples, read_manifest
from .stacks import Stack

_SLAB_BYTES = 128 << 20
_VALIDATION_SHARE = 10  # one in this many samples validates when the data is not split
_LOWEST_RESPONSE = 0.003  # far below any sampling fraction: a factor 1000 in the units
_HIGHEST_LOOSE_RESPONSE = 30.0  # a bad model or a few showers may be far off, but not by a factor 1000
_RESPONSE_ROWS = 1024
_TURN = 1024  # samples of one kind of file after another
_DENSITIES = (0.1, 10.0)  # mean 1 + delta of a typical map: a thin slab of a small box may be half as dense as the box


@dataclass(frozen=True)
class Piece:
    """A contiguous run of rows, start to stop, of one file; ``facts`` are labels named with its path."""

    path: Path
    layout: Layout
    start: int
    stop: int
    facts: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Conditions whose label is the same in the whole file, by name."""
        return tuple((column.name, column.labels[0]) for column in self.layout.conditions if not column.dataset)


class Shards:
    """An ordered, read-only collection of samples over one or more files; holds no data in memory.

    Attributes:
        family: What the samples are.
        kind: ``reference`` or ``generated``.
        condition_names: Physics parameters the files carry.
        files: The files, in order.
        provenance: Where the samples come from, each origin once.
        notes: Conversions done while reading, such as "incident energies converted from GeV to MeV".
        pieces: What is read of each file, in order.
        drop_bad: Whether bad rows are left out.
    """

    def __init__(self, pieces: Sequence[Piece], *, drop_bad: bool = False) -> None:
        first = pieces[0].layout
        for piece in pieces[1:]:
            _check_alike(first, pieces[0].path, piece)
        self.family: Family = first.family
        self.kind: str = first.kind
        self.condition_names: tuple[str, ...] = tuple(column.name for column in first.conditions)
        self.files: tuple[Path, ...] = tuple(dict.fromkeys(piece.path for piece in pieces))
        self.provenance: tuple[dict[str, Any], ...] = _distinct(piece.layout.provenance for piece in pieces)
        self.notes: tuple[str, ...] = tuple(dict.fromkeys(chain.from_iterable(piece.layout.notes for piece in pieces)))
        self.pieces = tuple(pieces)
        self._bounds = tuple(accumulate((len(piece) for piece in pieces), initial=0))
        self.drop_bad = drop_bad
        self._bad_rows: set[int] = set()
        self._plausible: set[Path] = set()
        self._digest: str | None = None

    def __len__(self) -> int:
        """Rows in the files; with ``drop_bad``, reading may give fewer."""
        return self._bounds[-1]

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
            parts.append(replace(chunk, values=values[filled - len(chunk) : filled]))
        if not parts:
            return self._empty()
        names = [name for name in parts[0].extras if all(name in part.extras for part in parts)]
        return Samples(
            family=self.family,
            values=values[:filled],
            conditions={name: np.concatenate([p.conditions[name] for p in parts]) for name in self.condition_names},
            extras={name: np.concatenate([p.extras[name] for p in parts]) for name in names},
            kind=self.kind,
            provenance=_distinct(entry for part in parts for entry in part.provenance),
        )

    def chunks(self, size: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[Samples]:
        """Samples start to stop in order, at most ``size`` at a time.

        Chunks end where files end, and are smaller where ``size`` samples would take more than 128 MiB.

        Raises:
            ShardError: If a file is damaged or a row is bad and ``drop_bad`` is off.
        """
        sample_bytes = 4 * self.family.voxels
        start, stop, _ = slice(start, stop).indices(len(self))
        yield from self._slabs(start, stop, max(1, min(size, _SLAB_BYTES // sample_bytes)))

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
            identity = []
            for piece in self.pieces:
                if piece.path not in hashes:
                    hashes[piece.path] = sha256_of(piece.path)
                identity.append([piece.path.name, piece.start, piece.stop, hashes[piece.path]])
                if piece.layout.parameters is not None:
                    identity.append([piece.layout.parameters.name, sha256_of(piece.layout.parameters)])
                if piece.kinds:
                    identity.append([f"{name}={label}" for name, label in piece.kinds])
            self._digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return self._digest

    def split_off(self, share: int = _VALIDATION_SHARE) -> tuple[Shards, Shards]:
        """Two parts without a common sample: all but the last 1 / ``share``, and that; of each kind of file, where they
        differ in a label.

        Maps are split by realisation where the files say which there are, so that none is on both sides.

        Raises:
            ShardError: If there is only one sample, or only one realisation.
        """
        boxes = self.origins().boxes if self.family.kind == "map" else None
        if boxes is not None:
            count = int(boxes.max()) + 1
            if count < 2:
                raise ShardError(
                    "all maps are of one realisation, which cannot be on both sides",
                    where=self.files[0],
                    hint="give separate train/ and validation/ folders",
                )
            validates = boxes >= count - max(1, count // share)
        else:
            if len(self) < 2:
                raise ShardError("one sample cannot be split into training and validation", where=self.files[0])
            validates = np.zeros(len(self), np.bool_)
            kinds = list(dict.fromkeys(piece.kinds for piece in self.pieces))
            each = np.repeat([kinds.index(piece.kinds) for piece in self.pieces], list(map(len, self.pieces)))
            for kind in range(len(kinds)):
                rows = np.flatnonzero(each == kind)
                validates[rows[len(rows) - max(1, len(rows) // share) :]] = True
        return self._where(~validates), self._where(validates)

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
            starts = [(piece, start) for piece in mine for start in range(piece.start, piece.stop, _TURN)]
            runs = [replace(piece, start=start, stop=min(start + _TURN, piece.stop)) for piece, start in starts]
            turns += [((number + 0.5) / len(runs), run) for number, run in enumerate(runs)]
        return Shards([run for _, run in sorted(turns, key=lambda turn: turn[0])], drop_bad=self.drop_bad)

    def _where(self, mask: NDArray[np.bool_]) -> Shards:
        pieces = []
        for piece, offset in zip(self.pieces, self._bounds, strict=False):
            inside = mask[offset : offset + len(piece)].astype(np.int8)
            edges = np.flatnonzero(np.diff(inside, prepend=0, append=0))
            for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                pieces.append(replace(piece, start=piece.start + start, stop=piece.start + stop))
        return Shards(pieces, drop_bad=self.drop_bad)

    def origins(self) -> Origins:
        """Parameters and realisation of every map; no map is read."""
        conditions: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.condition_names}
        ids = list[NDArray[np.integer]]()
        for piece in self.pieces:
            with open_rows(piece.path, piece.layout) as file:
                for name, values in _read_conditions(file, piece, piece.start, piece.stop).items():
                    conditions[name].append(values)
                if "realisation_id" in piece.layout.extras:
                    ids.append(_rows(file, piece, "realisation_id", piece.start, piece.stop))
        known = len(ids) == len(self.pieces)
        columns = {name: np.concatenate(parts) for name, parts in conditions.items()}
        return Origins(columns, np.concatenate(ids) if known else None, self._place)

    def _place(self, row: int) -> str:
        number = bisect_right(self._bounds, row) - 1
        piece = self.pieces[number]
        return f"{piece.path}, row {row - self._bounds[number] + piece.start}"

    def _empty(self) -> Samples:
        return Samples(
            family=self.family,
            values=np.empty((0, *self.family.sample_shape), np.float32),
            conditions={name: np.empty(0, np.float32) for name in self.condition_names},
            kind=self.kind,
            provenance=self.provenance,
        )

    def _slabs(self, start: int, stop: int, size: int) -> Iterator[Samples]:
        number = max(0, bisect_right(self._bounds, start) - 1)
        while start < stop and number < len(self.pieces):
            piece, offset = self.pieces[number], self._bounds[number]
            end = min(stop, offset + len(piece))
            with open_rows(piece.path, piece.layout) as file:
                while start < end:
                    until = min(start + size, end)
                    samples = self._checked(file, piece, offset, start, until)
                    if len(samples):
                        yield samples
                    start = until
            number += 1

    def _checked(self, file: h5py.File | Stack, piece: Piece, offset: int, start: int, stop: int) -> Samples:
        """Samples start to stop of the collection, which all lie in one piece; it begins at ``offset``."""
        first = start - offset + piece.start
        samples = _read_rows(file, piece, first, stop - offset + piece.start)
        if piece.path not in self._plausible:
            _check_response(file, piece, samples if first == piece.start else None)
            _check_density(piece, samples)
            self._plausible.add(piece.path)
        bad = _bad_rows(samples)
        if not bad.any():
            return samples
        if not self.drop_bad:
            raise _bad_error(file, piece, samples, bad, first)
        self._bad_rows.update((np.flatnonzero(bad) + start).tolist())
        return samples.select(~bad)


def _distinct(entries: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    seen = {json.dumps(entry, sort_keys=True, default=str): dict(entry) for entry in entries}
    return tuple(entry for entry in seen.values() if entry)


def _check_alike(first: Layout, path: Path, piece: Piece) -> None:
    other = piece.layout
    if other is first:
        return
    names, other_names = ([column.name for column in layout.conditions] for layout in (first, other))
    for what, mine, theirs, same in (
        ("family", _sized(first.family), _sized(other.family), first.family.same_samples(other.family)),
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


def _sized(family: Family) -> str:
    """Name and size of a family: files of one name may hold maps of several boxes."""
    if family.kind == "map":
        return f"{family.name}, {family.pixels} pixels, box {family.box_size:g} Mpc/h, {family.depth:g} Mpc/h deep"
    return f"{family.name}, {family.voxels} voxels in {len(family.layers)} layers"


# ---------------------------------------------------------------------------------------------------- rows


def _rows(file: h5py.File | Stack, piece: Piece, name: str, start: int, stop: int) -> NDArray[Any]:
    try:
        dataset = file[name]
        if len(dataset) != piece.layout.length:
            raise ShardError("the file changed while it was in use", where=piece.path)
        return np.asarray(dataset[start:stop])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ShardError(
            "the file is damaged: rows cannot be read",
            where=f"{piece.path}, dataset {name}, rows {start} to {stop - 1}",
            found=str(error),
            hint="copy or make the file again",
        ) from None


def _read_conditions(file: h5py.File | Stack, piece: Piece, start: int, stop: int) -> dict[str, NDArray[np.float32]]:
    conditions = {}
    with np.errstate(over="ignore"):  # too large for float32 becomes Inf, which is reported as such
        for column in piece.layout.conditions:
            if not column.dataset:
                stored: NDArray[Any] = np.zeros(stop - start, np.float32)
            else:
                stored = _rows(file, piece, column.dataset, start, stop)
                stored = stored.reshape(stop - start) if column.column is None else stored[:, column.column]
            if column.labels:
                stored = decoded(stored, column.labels, piece.layout.family.labels(column.name))
            conditions[column.name] = _scaled(stored, column.factor)
    return conditions


def decoded(stored: NDArray[Any], labels: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float64]:
    """Numbers of labels to those wanted; NaN where a number stands for no label."""
    table = np.array([wanted.index(label) for label in labels], np.float64)
    known = np.isin(stored, np.arange(len(table)))
    return np.where(known, table[np.where(known, stored, 0).astype(np.intp)], np.nan)


def _read_rows(file: h5py.File | Stack, piece: Piece, start: int, stop: int) -> Samples:
    layout, family, count = piece.layout, piece.layout.family, stop - start
    with np.errstate(over="ignore"):
        parts = [_scaled(_rows(file, piece, name, start, stop), layout.factor) for name in layout.values]
    values = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(count, -1) for part in parts], axis=1)
    return Samples(
        family=family,
        values=values,
        conditions=_read_conditions(file, piece, start, stop),
        extras={name: _rows(file, piece, name, start, stop) for name in layout.extras},
        kind=layout.kind,
        provenance=(dict(layout.provenance),) if layout.provenance else (),
    )


def _scaled(stored: NDArray[Any], factor: float) -> NDArray[np.float32]:
    if factor != 1.0:  # in double precision: one rounding, not two
        stored = stored.astype(np.float64) * factor
    return stored.astype(np.float32, copy=False)


def _bad_rows(samples: Samples) -> NDArray[np.bool_]:
    """Rows with a value that is not finite or negative, (N,)."""
    bad = np.zeros(len(samples), np.bool_)
    if not len(samples):
        return bad
    values = samples.values
    if not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both; one cheap pass when all is well
        flat = values.reshape(len(values), -1)
        bad |= ~((flat.min(axis=1) >= 0) & (flat.max(axis=1) < np.inf))
    for name, array in samples.conditions.items():
        bad |= ~samples.family.condition(name).possible(array)
    return bad


def _bad_error(
    file: h5py.File | Stack, piece: Piece, samples: Samples, bad: NDArray[np.bool_], start: int
) -> ShardError:
    row = int(np.flatnonzero(bad)[0])
    one = samples.select(slice(row, row + 1))
    known = {column.name: one.family.condition(column.name) for column in piece.layout.conditions}
    column = next((c for c in piece.layout.conditions if not known[c.name].possible(one.conditions[c.name])[0]), None)
    wrong: float | str
    if column is not None:
        dataset, wrong = column.dataset, float(one.conditions[column.name][0])
        expected = f"{column.name}: {known[column.name].domain}"
        if column.labels:  # the file's own
            wrong = float(_rows(file, piece, dataset, start + row, start + row + 1).ravel()[0])
            expected = ", ".join(f"{number} ({label})" for number, label in enumerate(column.labels))
    else:
        voxel = int(np.flatnonzero(~((one.values >= 0) & (one.values < np.inf)))[0])
        several = len(piece.layout.values) > 1
        dataset = piece.layout.values[int(samples.family.layer_of_voxel[voxel]) if several else 0]
        wrong, expected = float(one.values.ravel()[voxel]), "finite values that are not negative"
    what = "NaN, infinite, negative or absurd values"
    if column is not None and column.labels:
        what = "numbers that stand for no label"
    elif column is None and isinstance(file, Stack) and file.is_zero(start + row):
        what, wrong = "maps without any matter", "a simulation whose maps are all 0"
    size = max(1, _SLAB_BYTES // (4 * samples.family.voxels))
    count = 0
    for first in range(piece.start, piece.stop, size):
        count += int(_bad_rows(_read_rows(file, piece, first, min(first + size, piece.stop))).sum())
    return ShardError(
        f"{count} bad {'row' if count == 1 else 'rows'} of {len(piece)}: {what}",
        where=f"{piece.path}, dataset {dataset}, row {start + row}",
        expected=expected,
        found=wrong,
        hint="repair the file, or leave such rows out with --drop-bad (drop_bad=True)",
    )


def _check_response(file: h5py.File | Stack, piece: Piece, head: Samples | None) -> None:
    """Refuses showers whose deposited and incident energies cannot be in the units the layout says.

    Args:
        file: The open file.
        piece: The rows of it that are read.
        head: The first of them, where they have been read already.
    """
    family, layout = piece.layout.family, piece.layout
    if family.kind != "calorimeter" or family.conditions[0].name not in [c.name for c in layout.conditions]:
        return
    # The median of a few showers is noise, so the first rows decide whichever are asked for.
    rows = min(len(piece), _RESPONSE_ROWS, max(32, _SLAB_BYTES // (4 * family.voxels)))
    enough = head is not None and len(head) >= rows
    samples = head.read(0, rows) if head and enough else _read_rows(file, piece, piece.start, piece.start + rows)
    samples = samples.select(~_bad_rows(samples))
    if not len(samples):
        return
    responses = samples.values.sum(axis=1, dtype=np.float64) / samples.conditions[family.conditions[0].name]
    filled = responses[responses > 0]  # an empty shower is empty in any unit
    if not len(filled):
        if layout.kind == "generated":
            return
        raise ShardError(
            f"all of the first {len(samples)} showers are empty",
            where=piece.path,
            expected="showers that deposit energy",
            found="voxels that are all 0",
            hint="check how the file was written; showers may be empty, but a simulation of nothing else is of no use",
        )
    response = float(np.median(filled))
    strict = layout.kind == "reference" and len(filled) >= 32
    highest = family.max_response if strict else _HIGHEST_LOOSE_RESPONSE
    if _LOWEST_RESPONSE <= response <= highest:
        return
    guess = (
        "probably the incident energies are in GeV (or the voxels in keV) but were taken for MeV"
        if response > highest
        else "probably the incident energies are in MeV (or the voxels in GeV) although the layout says otherwise"
    )
    raise ShardError(
        "the deposited and the incident energies are not in the same units",
        where=piece.path,
        expected=f"a median deposited / incident energy of {_LOWEST_RESPONSE:g} to {highest:g}",
        found=f"{response:.4g} in {layout.name} layout ({'; '.join(layout.notes) or 'nothing converted'})",
        hint=f"{guess}: set the file's attributes energy_unit and cell_unit to what they are",
    )


def _check_density(piece: Piece, samples: Samples) -> None:
    """Refuses reference maps that are no densities over their mean, as they should be, or the same everywhere."""
    layout = piece.layout
    if layout.family.kind != "map" or layout.family.unit != "1+delta" or layout.kind != "reference":
        return
    good = samples.values[~_bad_rows(samples)]
    typical = float(np.median(good.mean(axis=(1, 2), dtype=np.float64))) if len(good) else 1.0
    if not _DENSITIES[0] <= typical <= _DENSITIES[1]:
        raise ShardError(
            "the maps are not densities over the mean density of their box",
            where=f"{piece.path}, dataset {layout.values[0]}",
            expected=f"1 + delta: a typical map has a mean of {_DENSITIES[0]:g} to {_DENSITIES[1]:g}",
            found=f"{typical:.4g}",
            hint="divide the maps of each simulation by its mean density; of a .npy stack that is done when it is read",
        )
    if len(good) and not np.ptp(good.reshape(len(good), -1), axis=1).any():
        what = f"all of the first {len(good)} maps are the same everywhere"
        raise ShardError(what, where=f"{piece.path}, dataset {layout.values[0]}", expected="structure in the maps")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
