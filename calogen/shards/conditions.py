"""Conditions of samples: the one form that they have between the command line and the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ShardError

Labels = Mapping[str, Sequence[str]]


class Conditions(Mapping[str, NDArray[np.float32]]):
    """Physics parameters of N samples, in the units of their family; labels as their numbers.

    A mapping of names to columns, ``conditions["sigma_8"]`` (N,), that can be sliced by rows: ``conditions[3:9]``.

    Args:
        names: Of the C columns.
        array: (N, C).
        labels: Of conditions that are one of several names, by name.
    """

    def __init__(self, names: Iterable[str], array: ArrayLike, labels: Labels | None = None) -> None:
        self._names = tuple(names)
        # Column by column in memory, so that arithmetic on one condition runs over neighbours.
        self._array = np.asarray(array, np.float32, order="F")
        self.labels = {name: tuple(known) for name, known in (labels or {}).items() if name in self._names}

    @classmethod
    def of(cls, columns: Mapping[str, ArrayLike], count: int, labels: Labels | None = None) -> Conditions:
        """From one column per name.

        Args:
            columns: (N,) or (N, 1) each.
            count: N.
            labels: As in the constructor.

        Raises:
            ShardError: If a column is not ``count`` long.
        """
        array = np.empty((count, len(columns)), np.float32, order="F")
        for place, (name, values) in enumerate(columns.items()):
            column = np.asarray(values, np.float32).reshape(-1)
            if len(column) != count:
                raise ShardError(
                    f"'{name}' and the samples differ in length", expected=count, found=len(column), where=name
                )
            array[:, place] = column
        return cls(columns, array, labels)

    @property
    def rows(self) -> int:
        """How many samples (N)."""
        return len(self._array)

    @overload
    def __getitem__(self, key: str) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any]) -> Conditions: ...
    def __getitem__(self, key: str | slice | NDArray[Any]) -> NDArray[np.float32] | Conditions:
        """A column (N,) by its name; or the conditions of some rows, from a slice, a mask (N,) or indices."""
        if not isinstance(key, str):
            return Conditions(self._names, self._array[key], self.labels)
        if key not in self._names:
            raise KeyError(key)
        return self._array[:, self._names.index(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        """How many conditions (C), as of every mapping."""
        return len(self._names)

    def __repr__(self) -> str:
        return f"Conditions({', '.join(self._names) or 'none'}; {self.rows} samples)"

    def only(self, names: Sequence[str]) -> Conditions:
        """The named ones, in that order.

        Raises:
            ShardError: If one of them is not here.
        """
        if tuple(names) == self._names:
            return self
        missing = next((name for name in names if name not in self._names), None)
        if missing is not None:
            raise ShardError(
                f"the data lack the condition '{missing}'",
                expected=", ".join(names),
                found=", ".join(self._names) or "no conditions",
            )
        return Conditions(names, self._array[:, [self._names.index(name) for name in names]], self.labels)

    def array(self, names: Sequence[str] | None = None) -> NDArray[np.float32]:
        """The named columns in that order (all when absent), (N, C), for the network; errors as :meth:`only`."""
        return np.array((self if names is None else self.only(names))._array, order="C")

    def row(self, index: int) -> dict[str, float]:
        """The conditions of one sample."""
        return dict(zip(self._names, self._array[index].tolist(), strict=True))

    def relabelled(self, labels: Labels) -> Conditions:
        """The same labels as they are numbered among others, which they all are; NaN where a number is of no label."""
        columns = {
            name: decoded(column, self.labels[name], labels[name]) if name in labels else column
            for name, column in self.items()
        }
        return Conditions.of(columns, self.rows, {**self.labels, **labels})

    @staticmethod
    def concatenate(parts: Sequence[Conditions], names: Sequence[str] | None = None) -> Conditions:
        """One after another, at least one; names in the order given, or that of the first."""
        names = parts[0]._names if names is None else names
        return Conditions(names, np.concatenate([part.array(names) for part in parts]), parts[0].labels)


def decoded(stored: NDArray[Any], labels: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float64]:
    """Numbers of labels to those wanted; NaN where a number stands for no label."""
    table = np.array([wanted.index(label) for label in labels], np.float64)
    known = np.isin(stored, np.arange(len(table)))
    return np.where(known, table[np.where(known, stored, 0).astype(np.intp)], np.nan)
