"""Requests: the conditions of every sample to be generated, as drawn, listed, read from a file or copied from data."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConditionError, ConfigError, ShardError, did_you_mean
from ..families import ENERGY_UNITS, LABEL, Condition, Family
from ..shards.hdf5 import checked_dataset, open_file
from ..shards.reader import Shards
from .noise import CONDITIONS, uniforms

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_KINDS = {"fixed": 1, "uniform": 2, "log-uniform": 2, "list": None}


class Spec:
    """What one condition shall be: ``fixed:50GeV``, ``uniform:1:100GeV``, ``log-uniform:1:100GeV`` or ``list:1,5GeV``.

    Of labels: ``fixed:e+``, ``list:gamma,e+`` in turn, ``uniform`` or ``uniform:gamma,e+`` at random.

    Args:
        condition: What is specified.
        text: The specification; the unit of an energy is required, other units are not written.

    Raises:
        ConditionError: If the text is not a specification, its unit is missing or wrong, or a label is unknown.
    """

    def __init__(self, condition: Condition, text: str) -> None:
        self.text = text
        kind, _, rest = text.partition(":")
        self.labels = bool(condition.labels)
        if self.labels:
            self.kind, self.values = kind, _codes(condition, text, kind, rest)
            return
        if kind not in _KINDS or not rest:
            raise _bad_spec(condition, text)
        match = re.fullmatch(rf"({_NUMBER}(?:[:,]{_NUMBER})*)\s*([A-Za-z_/]*)", rest.strip(), re.ASCII)
        if match is None:
            raise _bad_spec(condition, text)
        separator = "," if kind == "list" else ":"
        try:
            numbers = [float(part) for part in match[1].split(separator)]
        except ValueError:
            raise _bad_spec(condition, text) from None
        if len(numbers) != (_KINDS[kind] or len(numbers)):
            raise _bad_spec(condition, text)
        self.kind = kind
        self.values = np.asarray(numbers) * _unit_factor(
            condition, match[2], text, f"{text.removesuffix(match[2]).rstrip()}GeV"
        )
        if not np.all(np.abs(self.values) < np.finfo(np.float32).max):
            raise ConditionError(f"'{text}': a number is too large", where=condition.name)
        if _KINDS[kind] == 2 and not self.values[0] < self.values[1]:
            raise ConditionError(f"'{text}': the lower end must come first", where=condition.name)
        if kind == "log-uniform" and self.values[0] <= 0:
            raise ConditionError(f"'{text}': a logarithm needs numbers above 0", where=condition.name)

    def draw(self, uniform: NDArray[np.float64], index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values for samples ``index`` from one uniform number each."""
        if self.kind == "fixed":
            return np.full(len(index), self.values[0])
        low, high = float(self.values[0]), float(self.values[-1])
        if self.kind == "list":
            return np.asarray(self.values[index % len(self.values)])
        if self.labels:
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


def _unit_factor(condition: Condition, unit: str, where: object, example: str) -> float:
    if condition.unit in ENERGY_UNITS:
        if unit not in ENERGY_UNITS:
            raise ConditionError(
                f"'{unit}' is not a unit of energy" if unit else f"the unit of '{condition.name}' is missing",
                where=where,
                expected=f"one of {', '.join(ENERGY_UNITS)}, as in {example}",
                hint=did_you_mean(unit, ENERGY_UNITS) if unit else None,
            )
        return ENERGY_UNITS[unit] / ENERGY_UNITS[condition.unit]
    if unit not in ("", condition.unit):
        raise ConditionError(
            f"'{unit}' is not the unit of '{condition.name}'", where=where, expected=condition.unit or "no unit"
        )
    return 1.0


def _bad_spec(condition: Condition, text: str) -> ConditionError:
    low, high = f"{condition.low:g}", f"{condition.high:g}"
    expected = f"fixed:{high}, uniform:{low}:{high} or list:{low},{high}"
    if condition.unit in ENERGY_UNITS:
        expected = "fixed:50GeV, uniform:1:100GeV, log-uniform:1:100GeV or list:1,5,10GeV"
    if condition.labels:
        names = ",".join(condition.labels)
        expected = f"fixed:{condition.labels[0]}, list:{names}, uniform:{names} or uniform"
    return ConditionError(
        f"'{text}' is not a specification of '{condition.name}'",
        expected=expected,
        found=text,
        hint=f"for this value alone: fixed:{text}" if re.fullmatch(rf"{_NUMBER}\s*\w*", text) else None,
    )


class Request:
    """Conditions of ``samples`` samples, any row computable on its own.

    Args:
        samples: How many.
        specs: Drawn conditions by name.
        table: Explicit conditions by name, (samples,) each, in the conditions' units.
        source: Where a table came from, for provenance.

    Raises:
        ConditionError: If a column of the table is not ``samples`` long.
    """

    def __init__(
        self,
        samples: int,
        specs: Mapping[str, Spec] | None = None,
        table: Mapping[str, NDArray[np.float32]] | None = None,
        source: str = "",
    ) -> None:
        self.samples = samples
        self._specs = dict(specs or {})
        self._table = dict(table or {})
        self._source = source
        for name, column in self._table.items():
            if len(column) != samples:
                raise ConditionError(
                    f"the table has not one '{name}' per sample",
                    where=source or None,
                    expected=samples,
                    found=len(column),
                )

    @classmethod
    def from_specs(cls, family: Family, specs: Mapping[str, Any], n: int | None) -> Request:
        """From specifications by condition name.

        Raises:
            ConfigError: If ``n`` is missing.
            ConditionError: If a name or a specification is wrong.
        """
        if n is None:
            raise ConfigError("say how many samples to generate", where="-n", hint="or --like PATH, --conditions FILE")
        known = [c.name for c in family.conditions]
        for name in specs:
            if name not in known:
                raise ConditionError(
                    f"family '{family.name}' has no condition '{name}'", found=name, hint=did_you_mean(name, known)
                )
        return cls(n, {name: Spec(family.condition(name), str(text)) for name, text in specs.items()})

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
        columns: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        for name in names:
            if name not in shards.condition_names:
                label = (family or shards.family).labels(name)
                hint = f"where all of them have one label, name it: PATH,{name}={label[0]}" if label else None
                found = ", ".join(shards.condition_names)
                raise ShardError(f"the data lack the condition '{name}'", found=found, hint=hint)
        rows = 0  # bad rows may be left out, so fewer than len(shards)
        for chunk in shards.chunks():
            rows += len(chunk)
            for name in names:
                columns[name].append(chunk.conditions[name])
        table = {name: np.concatenate(parts) for name, parts in columns.items()}
        request = cls(rows, table=table, source=f"like {shards.files[0].name} (+{len(shards.files) - 1} more)")
        request.samples = rows if n is None else n  # the table goes round
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
        try:
            table = _read_csv(path, family) if path.suffix.lower() == ".csv" else _read_hdf5(path, family)
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
        return (*self._specs, *self._table)

    def describe(self) -> dict[str, Any]:
        """For provenance: samples, specifications or source."""
        specs = {name: spec.text for name, spec in self._specs.items()}
        return {"samples": self.samples, **specs, **({"source": self._source} if self._source else {})}

    def digest(self) -> str:
        """SHA-256 of everything that decides the conditions of every sample."""
        found = hashlib.sha256(repr((self.samples, sorted((n, s.text) for n, s in self._specs.items()))).encode())
        for name, column in sorted(self._table.items()):
            found.update(name.encode() + b"\0")
            found.update(np.ascontiguousarray(column, "<f4").data)
        return found.hexdigest()

    def limits(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Every extreme or listed value that conditions can take, (rows, C); rows of tables in their order."""
        found = [
            self._table[name][: self.samples] if name in self._table else self._specs[name].values for name in names
        ]
        rows = max(map(len, found), default=1)
        columns = [np.resize(values, rows) for values in found]
        return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((1, 0), np.float32)

    def columns(self, names: Sequence[str], seed: int, start: int, count: int) -> NDArray[np.float32]:
        """Conditions of samples start to start + count, (count, C); beyond the end the last row repeats."""
        index = np.minimum(np.arange(start, start + count), self.samples - 1)
        found = np.zeros((count, len(names)), np.float32)
        uniform = uniforms(seed, CONDITIONS, start, count, len(names)) if self._specs else None
        for i, name in enumerate(names):
            if name in self._table:
                found[:, i] = self._table[name][index % len(self._table[name])]
            elif uniform is not None:
                found[:, i] = self._specs[name].draw(uniform[:, i], index)
        return found


def explicit_columns(
    conditions: Mapping[str, ArrayLike], wanted: Sequence[Condition], n: int | None
) -> NDArray[np.float32]:
    """Conditions given in memory as columns (n, C).

    Args:
        conditions: By name: a number or a label, or one per sample.
        wanted: Those wanted, in the order of the columns.
        n: How many samples; needed when every condition is a number.

    Raises:
        ConditionError: Something else than numbers, an unknown label, or lengths that differ.
    """
    arrays = {condition.name: _numbers(condition, conditions[condition.name]) for condition in wanted}
    lengths = {array.size for array in arrays.values() if array.ndim}
    if n is not None:
        lengths.add(n)
    if len(lengths) != 1 or any(array.ndim > 1 for array in arrays.values()):
        raise ConditionError(
            "conditions are numbers, or arrays of one length that agrees with n",
            expected="n, or one array per condition",
            found={name: array.shape for name, array in arrays.items()} | {"n": n},
        )
    count = lengths.pop()
    if count < 0:
        raise ConditionError("the number of samples cannot be negative", found=count)
    columns = [np.broadcast_to(array.reshape(-1) if array.ndim else array, (count,)) for array in arrays.values()]
    return np.stack(columns, 1) if columns else np.zeros((count, 0), np.float32)


def _numbers(condition: Condition, values: ArrayLike) -> NDArray[np.float32]:
    try:
        if condition.labels and (words := np.asarray(values)).dtype.kind in "UO":
            return _of_labels(condition, words.astype(str))
        with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
            return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        what = "label or an array of labels" if condition.labels else "number or an array of numbers"
        hint = ", ".join(condition.labels) or "in the family's unit"
        raise ConditionError(f"'{condition.name}' is not a {what}", found=repr(values)[:80], hint=hint) from None


def _of_labels(condition: Condition, words: NDArray[np.str_]) -> NDArray[np.float32]:
    """Numbers of labels, in an array of the same shape."""
    known, place = np.unique(words, return_inverse=True)
    codes = np.array([condition.code(str(label)) for label in known], np.float32)
    return codes[place].reshape(words.shape)


def _read_csv(path: Path, family: Family) -> dict[str, NDArray[np.float32]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            header, *rows = [row for row in csv.reader(file) if row]
        except (ValueError, UnicodeDecodeError, csv.Error):
            raise ConditionError("the file is not CSV with a header", where=path) from None
    for n, row in enumerate(rows, start=1):
        if len(row) != len(header):  # one more is often a decimal comma
            raise ConditionError(
                "a row has not one cell per column",
                where=f"{path}: data row {n}",
                expected=f"{len(header)} numbers with decimal points, separated by commas",
                found=row,
            )
    table: dict[str, NDArray[np.float32]] = {}
    for i, title in enumerate(header):
        match = re.fullmatch(r"\s*([\w-]+)\s*(?:\[\s*(\S*)\s*\])?\s*", title)
        known = [c.name for c in family.conditions]
        if match is None or match[1] not in known:
            hint = did_you_mean(match[1] if match else title, known)
            raise ConditionError(f"'{title}' is not a condition of family '{family.name}'", where=path, hint=hint)
        if match[1] in table:
            raise ConditionError(f"the column '{match[1]}' is there twice", where=path)
        place = f"{path}, column '{title}'"
        condition = family.condition(match[1])
        factor = _unit_factor(condition, match[2] or "", place, f"{match[1]} [GeV]")
        if condition.labels:
            table[match[1]] = _named_in(place, condition, [row[i].strip() for row in rows])
            continue
        try:
            table[match[1]] = _single(np.array([float(row[i]) for row in rows]) * factor)
        except ValueError:
            bad = next(n for n, row in enumerate(rows) if not _is_number(row, i))
            raise ConditionError(
                "not a number", where=f"{path}: data row {bad + 1}, column '{title}'", found=rows[bad]
            ) from None
    return table


def _words(file: h5py.File, path: Path, condition: Condition) -> tuple[str, Condition, list[str]]:
    """Where labels are read from, what they are of, and the labels as they are written."""
    place = f"{path}, dataset {condition.name}"
    dataset = checked_dataset(file, path, condition.name, (None,), column=True, kinds="OSiuf")
    if h5py.check_string_dtype(dataset.dtype) is None:
        expected = ", ".join(condition.labels)
        raise ConditionError("labels are written as strings", where=place, expected=expected, found=dataset.dtype)
    words = dataset.asstr("utf-8", errors="replace")[:].ravel().tolist()  # what is no text is no label either
    return place, condition, words


def _named_in(place: str, condition: Condition, words: Sequence[str]) -> NDArray[np.float32]:
    """Numbers of labels read from a file."""
    for row, word in enumerate(words, start=1):
        if word not in condition.labels:
            hint, expected = did_you_mean(word, condition.labels), ", ".join(condition.labels)
            raise ConditionError("not a label", where=f"{place}, row {row}", expected=expected, found=word, hint=hint)
    return _of_labels(condition, np.array(words, str))


def _single(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large becomes infinite, which is refused with its row
        return values.astype(np.float32)


def _is_number(row: Sequence[str], column: int) -> bool:
    try:
        float(row[column])
    except ValueError:
        return False
    return True


def _read_hdf5(path: Path, family: Family) -> dict[str, NDArray[np.float32]]:
    table = {}
    with open_file(path) as file:
        for condition in family.conditions:
            if condition.name not in file:
                continue
            if condition.labels:
                table[condition.name] = _named_in(*_words(file, path, condition))
                continue
            dataset = checked_dataset(file, path, condition.name, (None,), column=True, kinds="fiu")
            unit = dataset.attrs.get("unit", "")
            unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
            place = f"{path}, dataset {condition.name}, attribute unit"
            factor = _unit_factor(condition, unit, place, "GeV")
            table[condition.name] = _single(np.asarray(dataset[:], np.float64).reshape(-1) * factor)
    return table
