"""Requests: the conditions of every sample to be made, as drawn, listed, read from a file or copied from data."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ConditionError, ConfigError, ShardError, did_you_mean
from ..families import LABEL, Condition, Family
from ..families.units import conversion, is_energy
from ..shards.conditions import Conditions
from ..shards.hdf5 import checked_dataset, open_file
from ..shards.reader import Shards
from ..storage import TABLE_BYTES, read_bounded
from .noise import CONDITIONS, uniforms

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_KINDS = {"fixed": 1, "uniform": 2, "log-uniform": 2, "list": None}


@dataclass(frozen=True, eq=False)
class Spec:
    """What one condition shall be: ``fixed:50GeV``, ``uniform:1:100GeV``, ``log-uniform:1:100GeV`` or ``list:1,5GeV``.

    Of labels: ``fixed:e+``, ``list:gamma,e+`` in turn, ``uniform`` or ``uniform:gamma,e+`` at random.

    Attributes:
        kind: How it is drawn; ``any`` of the values with equal probability, if they are labels.
        values: Its numbers in the condition's unit, or those of its labels.
        text: As it is written.
    """

    kind: str
    values: NDArray[np.float64]
    text: str

    @classmethod
    def parse(cls, condition: Condition, text: str) -> Spec:
        """From a text, a value alone being fixed; the unit of an energy is required, others need not be written.

        Raises:
            ConditionError: If the text is not a specification, its unit is missing or wrong, or a label is unknown.
        """
        if text in condition.labels or re.fullmatch(rf"{_NUMBER}\s*[A-Za-z_/]*", text, re.ASCII):
            text = f"fixed:{text}"
        kind, _, rest = text.partition(":")
        if condition.labels:
            return cls("any" if kind == "uniform" else kind, _codes(condition, text, kind, rest), text)
        sign = "," if kind == "list" else ":"
        match = re.fullmatch(rf"({_NUMBER}(?:{sign}{_NUMBER})*)\s*([A-Za-z_/]*)", rest.strip(), re.ASCII)
        numbers, unit = (match[1].split(sign), match[2]) if match else ([], "")
        if _KINDS.get(kind, 0) not in (None, len(numbers)) or not numbers:
            raise _bad_spec(condition, text)
        example = f"{text.removesuffix(unit).rstrip()}GeV"
        factor = conversion(unit, condition.unit, name=f"'{condition.name}'", where=text, example=example)
        values = np.array(numbers, np.float64) * factor
        if not np.all(np.abs(values) < np.finfo(np.float32).max):
            raise ConditionError(f"'{text}': a number is too large", where=condition.name)
        if _KINDS[kind] == 2 and not values[0] < values[1]:
            raise ConditionError(f"'{text}': the lower end must come first", where=condition.name)
        if kind == "log-uniform" and values[0] <= 0:
            raise ConditionError(f"'{text}': a logarithm needs numbers above 0", where=condition.name)
        return cls(kind, values, text)

    @classmethod
    def of(cls, condition: Condition, value: Any) -> Spec:
        """From a specification, a text of one value with its unit (``50GeV``), a label, or a number in that unit.

        Raises:
            ConditionError: As :meth:`parse`, or if the value is none of these.
        """
        if not isinstance(value, str):
            number = float(_numbers(condition, value))
            return cls("fixed", np.array([number]), f"fixed:{number!r}{condition.unit}")
        return cls.parse(condition, value)

    def draw(self, uniform: NDArray[np.float64], index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values for samples ``index`` from one uniform number each."""
        low, high = float(self.values[0]), float(self.values[-1])
        if self.kind in ("fixed", "list"):
            return np.asarray(self.values[index % len(self.values)])
        if self.kind == "any":
            return np.asarray(self.values[(uniform * len(self.values)).astype(np.intp)])
        if self.kind == "uniform":
            return low + (high - low) * uniform
        return np.asarray(low * (high / low) ** uniform)


def _codes(condition: Condition, text: str, kind: str, rest: str) -> NDArray[np.float64]:
    """Numbers of the labels that a specification names; all of them where it names none."""
    named = [label.strip() for label in rest.split(",")] if rest else list(condition.labels)
    counts = {"fixed": len(named) == 1, "list": bool(rest), "uniform": text == "uniform" or bool(rest)}
    if not counts.get(kind, False) or not all(re.fullmatch(LABEL, label) for label in named):
        raise _bad_spec(condition, text)
    return np.array([condition.code(label) for label in named])


def _repeated(table: Mapping[str, NDArray[np.float32]], n: int | None) -> str | None:
    """How to ask for many samples of each of a few values."""
    if n is None or len(table) != 1:
        return None
    ((name, column),) = table.items()
    some = f"{{'{name}': np.repeat(values, {n})}}"
    return f"for {n} samples at each of {len(column)} values: {some}; for {n} in all, taken in turn: 'list:A,B,...'"


def _bad_spec(condition: Condition, text: str) -> ConditionError:
    low, high = f"{condition.low:g}", f"{condition.high:g}"
    expected, hint = f"fixed:{high}, uniform:{low}:{high} or list:{low},{high}", None
    if is_energy(condition.unit):
        expected = "fixed:50GeV, uniform:1:100GeV, log-uniform:1:100GeV or list:1,5,10GeV"
    if condition.labels:
        names = ",".join(condition.labels)
        expected = f"fixed:{condition.labels[0]}, list:{names}, uniform:{names} or uniform"
        hint = did_you_mean(text, condition.labels)
    return ConditionError(
        f"'{text}' is not a specification of '{condition.name}'", expected=expected, found=text, hint=hint
    )


class Request:
    """Conditions of ``samples`` samples, any row computable on its own.

    Args:
        samples: How many.
        specs: Drawn conditions by name.
        table: Explicit conditions by name, (samples,) each, in the conditions' units.
        source: Where a table came from, for provenance.
        notes: What is to be said of the data that it came from, for provenance.

    Raises:
        ConditionError: If a column of the table is not ``samples`` long.
    """

    def __init__(
        self,
        samples: int,
        specs: Mapping[str, Spec] | None = None,
        table: Mapping[str, NDArray[np.float32]] | None = None,
        source: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.samples = samples
        self.specs = dict(specs or {})
        for name, column in (table or {}).items():
            if len(column) != samples:
                raise ConditionError(
                    f"the table has not one '{name}' per sample",
                    where=source or None,
                    expected=samples,
                    found=len(column),
                )
        self._table = Conditions.of(table or {}, samples if table else 0)
        self._source, self._notes = source, list(notes)

    @classmethod
    def of(cls, family: Family, conditions: Mapping[str, Any], n: int | None = None) -> Request:
        """From what every condition shall be, by name.

        Args:
            family: Knows units and labels.
            conditions: Texts (``"uniform:1:100GeV"``, ``"50 GeV"``, ``"e+"``), numbers in the family's units, or
                arrays of one number or text per sample. ``energy`` is the incident energy, whatever its name.
            n: How many samples; needed where there are no arrays.

        Raises:
            ConfigError: If nothing says how many samples.
            ConditionError: If a name or a value is wrong, or lengths differ.
        """
        if n is None and all(isinstance(value, str) for value in conditions.values()):
            raise ConfigError("say how many samples to make", where="`n`")
        specs: dict[str, Spec] = {}
        table: dict[str, NDArray[np.float32]] = {}
        for name, value in by_name(family, conditions).items():
            condition = family.condition(name)
            if isinstance(value, str) or not np.ndim(value):
                specs[name] = Spec.of(condition, value)
            else:
                table[name] = _numbers(condition, value)
        lengths = {len(column) for column in table.values()} | ({n} if n is not None else set())
        if len(lengths) != 1 or any(column.ndim > 1 for column in table.values()):
            raise ConditionError(
                "conditions are numbers, or arrays of one length that agrees with n",
                expected="n, or one array per condition",
                found={name: column.shape for name, column in table.items()} | {"n": n},
                hint=_repeated(table, n),
            )
        return cls(lengths.pop(), specs, table)

    @classmethod
    def like(
        cls, shards: Shards, names: Sequence[str], n: int | None = None, *, family: Family | None = None
    ) -> Request:
        """The conditions of existing data, in its order.

        Args:
            shards: The data.
            names: Conditions wanted.
            n: Takes the first so many samples, or repeats them.
            family: Knows which conditions are labels, where the data do not.

        Raises:
            ShardError: If the data lack a condition.
        """
        missing = next((name for name in names if name not in shards.condition_names), None)
        if missing is not None:
            label = (family or shards.family).labels(missing)
            hint = f"where all of them have one label, name it: PATH,{missing}={label[0]}" if label else None
            found = ", ".join(shards.condition_names)
            raise ShardError(f"the data lack the condition '{missing}'", found=found, hint=hint)
        # Bad rows may be left out, so there may be fewer than len(shards).
        table = Conditions.concatenate([chunk.conditions for chunk in shards.chunks()], names)
        source = f"like {shards.files[0].name} (+{len(shards.files) - 1} more)"
        request = cls(table.rows, table=table, source=source, notes=shards.notes)
        request.samples = table.rows if n is None else n  # the table repeats
        return request

    @classmethod
    def from_file(cls, path: str | Path, family: Family, names: Sequence[str], n: int | None = None) -> Request:
        """One row per sample, in order, from a CSV file with a header or an HDF5 file with a dataset per condition.

        A CSV column is named ``incident_energy [GeV]`` (the unit of an energy is required); an HDF5 dataset has an
        attribute ``unit``. Labels are written as such, in either.

        Raises:
            ConditionError: If a column, a unit or a number is missing or wrong.
            ShardError: If an HDF5 file cannot be read, or a dataset is not a column of numbers.
        """
        path = Path(path)
        read = _csv_columns if path.suffix.lower() == ".csv" else _hdf5_columns
        try:
            table = {column[0].name: _column(path, *column) for column in read(path, family)}
        except OSError as error:
            raise ConditionError(f"cannot read the conditions: {error.strerror or error}", where=path) from None
        for name in names:
            if name not in table:
                raise ConditionError(
                    f"the file lacks the condition '{name}'", where=path, found=", ".join(table) or "nothing"
                )
        lengths = {len(column) for column in table.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ConditionError("conditions need one row per sample", where=path, found=f"lengths {sorted(lengths)}")
        count = lengths.pop()
        if n is not None and n > count:
            raise ConditionError("the file has fewer rows than samples asked for", where=path, expected=n, found=count)
        wanted = count if n is None else max(n, 0)
        return cls(wanted, table={name: table[name][:wanted] for name in names}, source=path.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Conditions the request speaks of."""
        return (*self.specs, *self._table)

    def describe(self) -> dict[str, Any]:
        """For provenance: samples, specifications or source."""
        specs = {name: spec.text for name, spec in self.specs.items()}
        known = {"source": self._source, "notes": self._notes}
        return {"samples": self.samples, **specs, **{key: value for key, value in known.items() if value}}

    def digest(self) -> str:
        """SHA-256 of everything that decides the conditions of every sample."""
        found = hashlib.sha256(repr((self.samples, sorted((n, s.text) for n, s in self.specs.items()))).encode())
        for name, column in sorted(self._table.items()):
            found.update(name.encode() + b"\0")
            found.update(np.ascontiguousarray(column, "<f4").data)
        return found.hexdigest()

    def limits(self, names: Sequence[str]) -> Conditions:
        """Every extreme or listed value that the named conditions can take; rows of tables in their order."""
        found = [
            self._table[name][: self.samples] if name in self._table else self.specs[name].values for name in names
        ]
        rows = max(map(len, found), default=1)
        with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
            columns = {n: v if len(v) == rows else np.resize(v, rows) for n, v in zip(names, found, strict=True)}
            return Conditions.of(columns, rows)

    def conditions(self, names: Sequence[str], seed: int, start: int, count: int) -> Conditions:
        """The named conditions of samples start to start + count; beyond the end the last row repeats."""
        index = np.minimum(np.arange(start, start + count), self.samples - 1)
        found = np.zeros((count, len(names)), np.float32, order="F")
        uniform = uniforms(seed, CONDITIONS, start, count, len(names)) if self.specs else None
        for i, name in enumerate(names):
            if name in self._table:
                found[:, i] = self._table[name][index % self._table.rows]
            elif uniform is not None:
                found[:, i] = self.specs[name].draw(uniform[:, i], index)
        return Conditions(names, found)


def by_name(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, by the names of the family's conditions; ``energy`` is the incident energy, whatever its name.

    Raises:
        ConditionError: If there is no such condition, or one is there twice.
    """
    found, known = dict[str, Any](), [c.name for c in family.conditions]
    for key, value in given.items():
        name = family.energy.name if key == "energy" and family.energy else key
        if name not in known:
            raise ConditionError(
                f"family '{family.name}' has no condition '{name}'", found=name, hint=did_you_mean(name, known)
            )
        if name in found:
            raise ConditionError(f"'energy' and '{name}' both name '{name}'", found=", ".join(given))
        found[name] = value
    return found


def _numbers(condition: Condition, values: Any) -> NDArray[np.float32]:
    """A number, or an array of numbers or texts, in the condition's unit, in an array of the same shape."""
    try:
        words = np.asarray(values)
        if words.dtype.kind == "U" or (condition.labels and words.dtype.kind == "O"):
            known, place = np.unique(words.astype(str), return_inverse=True)
            numbers = [Spec.of(condition, str(text)).values.item() for text in known]
            return np.array(numbers, np.float32)[place].reshape(words.shape)
        return _single(words)
    except (TypeError, ValueError):
        what = "label or an array of labels" if condition.labels else "number or an array of numbers"
        hint = ", ".join(condition.labels) or "in the family's unit"
        raise ConditionError(f"'{condition.name}' is not a {what}", found=repr(values)[:80], hint=hint) from None


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large becomes infinite, which is refused with its row
        return values.astype(np.float32)


_Cells = Sequence[str] | NDArray[np.float64]
_Column = tuple[Condition, str, str, _Cells]
"""A condition as it is in a file: where, for messages; the unit; numbers in that unit, or texts."""


def _column(path: Path, condition: Condition, place: str, unit: str, cells: _Cells) -> NDArray[np.float32]:
    """A column of a file in the condition's unit, (N,)."""
    example = "GeV" if isinstance(cells, np.ndarray) else f"{condition.name} [GeV]"
    where, labels = f"{path}, {place}", condition.labels
    factor = conversion(unit, condition.unit, name=f"'{condition.name}'", where=where, example=example)
    if isinstance(cells, np.ndarray):
        return _single(cells * factor)
    numbers = []
    for row, cell in enumerate(cells, start=1):
        try:
            numbers.append(condition.code(cell.strip()) if labels else float(cell) * factor)
        except (ValueError, ConditionError):
            raise ConditionError(
                f"not a {'label' if labels else 'number'}",
                where=f"{path}: data row {row}, {place}",
                expected=", ".join(labels) or None,
                found=cell,
                hint=did_you_mean(cell, labels),
            ) from None
    return _single(np.array(numbers))


def _csv_columns(path: Path, family: Family) -> Iterator[_Column]:
    try:
        text = io.StringIO(read_bounded(path, TABLE_BYTES).decode("utf-8-sig"), newline="")
        header, *rows = [row for row in csv.reader(text) if row]
    except (ValueError, csv.Error):
        raise ConditionError("the file is not CSV with a header", where=path) from None
    for n, row in enumerate(rows, start=1):
        if len(row) != len(header):  # one more is often a decimal comma
            raise ConditionError(
                "a row has not one cell per column",
                where=f"{path}: data row {n}",
                expected=f"{len(header)} numbers with decimal points, separated by commas",
                found=row,
            )
    known, seen = [c.name for c in family.conditions], set[str]()
    for i, title in enumerate(header):
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\[\s*(\S*)\s*\])?\s*", title)
        name = match[1] if match else title
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConditionError(f"'{title}' is not a condition of family '{family.name}'", where=path, hint=hint)
        if name in seen:
            raise ConditionError(f"the column '{name}' is there twice", where=path)
        seen.add(name)
        unit = (match[2] if match else None) or ""
        yield (family.condition(name), f"column '{title}'", unit, [row[i] for row in rows])


def _hdf5_columns(path: Path, family: Family) -> Iterator[_Column]:
    with open_file(path) as file:
        for condition in (condition for condition in family.conditions if condition.name in file):
            place, labels = f"dataset {condition.name}", condition.labels
            kinds = "OSiuf" if labels else "fiu"
            dataset = checked_dataset(file, condition.name, (None,), column=True, kinds=kinds)
            if not labels:
                unit = dataset.attrs.get("unit", "")
                unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
                cells = np.asarray(dataset[:], np.float64).reshape(-1)
                yield (condition, f"{place}, attribute unit", unit, cells)
            elif h5py.check_string_dtype(dataset.dtype) is None:
                where, expected = f"{path}, {place}", ", ".join(labels)
                raise ConditionError(
                    "labels are written as strings", where=where, expected=expected, found=dataset.dtype
                )
            else:  # what is no text is no label either
                words = dataset.asstr("utf-8", errors="replace")[:].ravel().tolist()
                yield (condition, place, "", words)
