"""NumPy stacks of maps with their parameters in a text file, as the CAMELS Multifield Dataset distributes them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...families import Family
from .layout import Column, Layout
from .maps import family_of_maps


def read_stack(path: Path, family: Family | None, parameters: Path, *, assumed: bool) -> Layout:
    """The layout of a NumPy stack of maps with a parameter file; unnamed, its columns are the family's, in order.

    Args:
        path: The ``.npy`` file.
        family: What the maps are; None: the only built-in family with such maps.
        parameters: The text file.
        assumed: Whether nobody asked for the family.

    Raises:
        ShardError: If a file is damaged, or they do not fit each other or the family.
    """
    stack = Stack.open(path, parameters)
    length, *pixels = stack.maps.shape
    family = family_of_maps(path, tuple(pixels), None, family)
    known = [condition.name for condition in family.conditions]
    columns = list(stack.header or known)[: stack.parameters.shape[1]]
    if not set(columns) & set(known):
        raise ShardError(
            "no column of the parameter file is a condition of the family",
            where=parameters,
            expected=f"among its columns: {', '.join(known)} (family '{family.name}')",
            found=", ".join(columns),
        )
    surplus = stack.parameters.shape[1] - sum(name in known for name in columns)
    row = f"map i belongs to row i // {stack.each}" if stack.each > 1 else "one row a map"
    notes = [
        f"parameters from {parameters.name}: {row}" + (f"; {surplus} of its columns are not used" if surplus else ""),
        f"maps divided by the mean of their simulation's maps ({len(stack.bounds) - 1} simulations): 1 + delta",
    ]
    if assumed and family.box_size:
        notes.append(f"the file does not say its box: that of family '{family.name}', {family.box_size:g} Mpc/h")
    return Layout(
        name="stack",
        family=family,
        length=length,
        values=("maps",),
        conditions=tuple(Column(name, "params", index) for index, name in enumerate(columns) if name in known),
        extras=("realisation_id",),
        provenance={"file": path.name, "parameters": parameters.name},
        notes=tuple(notes),
        parameters=parameters,
    )


SUFFIX = ".npy"
PARAMETERS = ".txt"
_MOST_TEXT = 1 << 28  # bytes of a parameter file


@dataclass(frozen=True)
class Stack:
    """An open stack of maps: ``maps`` (N, H, W), ``params`` (N, C) and ``realisation_id`` (N,), read by name and rows.

    Attributes:
        maps: As stored, mapped into memory.
        parameters: One row a simulation, (R, C); or one a map, equal rows in sequence being one simulation.
        header: Names of the columns, where the file has them.
    """

    maps: NDArray[Any]
    parameters: NDArray[np.float64]
    header: tuple[str, ...] | None = None

    @classmethod
    def open(cls, path: Path, parameters: Path) -> Stack:
        """Open a stack.

        Args:
            path: The ``.npy`` file.
            parameters: The text file.

        Raises:
            ShardError: If a file is missing, damaged, or the two do not belong together.
        """
        maps = _mapped(path)
        table, header = _table(parameters)
        if not len(table) or len(maps) % len(table):
            raise ShardError(
                "maps and parameters do not belong together",
                where=parameters,
                expected=f"a number of rows that divides the {len(maps)} maps of {path.name}",
                found=f"{len(table)} rows",
                hint="name both files: MAPS.npy,PARAMETERS.txt",
            )
        return cls(maps, table, header)

    @property
    def each(self) -> int:
        """Maps that share a row of parameters."""
        return len(self.maps) // len(self.parameters)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """Where the maps of each simulation begin, and the end."""
        if self.each > 1:
            return np.arange(0, len(self.maps) + 1, self.each)
        changes = np.any(self.parameters[1:] != self.parameters[:-1], axis=1)
        return np.array([0, *(np.flatnonzero(changes) + 1), len(self.maps)])

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The number of each map's simulation, (N,)."""
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    def is_zero(self, row: int) -> bool:
        """Whether all maps of a row's simulation are 0 where they are finite: they have no density to be divided by."""
        first, last = self.bounds[self.ids[row] : self.ids[row] + 2]
        return bool((np.nan_to_num(self.maps[first:last]) == 0).all())

    @cached_property
    def datasets(self) -> dict[str, Densities | NDArray[Any]]:
        """What an HDF5 file of the same maps would hold."""
        params = np.repeat(self.parameters, self.each, axis=0)
        return {"maps": Densities(self), "params": params, "realisation_id": self.ids}

    def __getitem__(self, name: str) -> Densities | NDArray[Any]:
        return self.datasets[name]


@dataclass(frozen=True)
class Densities:
    """1 + delta of a stack's maps, computed when rows are asked for."""

    stack: Stack

    def __len__(self) -> int:
        return len(self.stack.maps)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Some maps, (n, H, W); maps with values that are not finite are left out of the mean."""
        maps, bounds = self.stack.maps, self.stack.bounds
        start, stop, _ = rows.indices(len(self))
        if stop <= start:
            return np.zeros((0, *maps.shape[1:]), np.float32)
        ids = self.stack.ids[start:stop]
        first, last = bounds[ids[0]], bounds[ids[-1] + 1]
        whole = maps[first:last]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # bad rows are found by who reads them
            means = whole.mean(axis=(1, 2), dtype=np.float64)
            known, simulation = np.isfinite(means), self.stack.ids[first:last] - ids[0]
            sums, counts = np.bincount(simulation, np.where(known, means, 0.0)), np.bincount(simulation, known)
            scale = np.abs(sums / counts)[ids - ids[0]]  # negative maps stay negative, and are refused as such
            chosen = whole[start - first : stop - first]
            return np.asarray(chosen / scale[:, None, None], dtype=np.float32)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ShardError("the file does not exist", where=path) from None
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(
            "the file is not a NumPy array, or is truncated",
            where=path,
            expected="one array of numbers, as numpy.save writes it",
            found=_contents(path, error),
        ) from None
    wrong = None
    if not isinstance(maps, np.ndarray):
        maps.close()
        wrong = "an archive of arrays"
    elif maps.dtype.kind != "f" or maps.ndim != 3 or not maps.size:
        wrong = f"{maps.shape} {maps.dtype}"
    if wrong:
        expected = "an array (N, H, W) of float32 or float64"
        raise ShardError("this is not a stack of maps", where=path, expected=expected, found=wrong)
    return np.asanyarray(maps)


def _contents(path: Path, error: Exception) -> str:
    """What a file holds that cannot be mapped; NumPy would advise to unpickle it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    kind = "text" if start.isascii() and b"\0" not in start else "something else"
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        kind = "Python objects" if "Python objects" in str(error) else "an array that is not whole"
    return f"{path.stat().st_size} bytes of {kind}"


def beside_of(path: Path) -> Path:
    """The parameter file that goes with a stack, by CAMELS' names or because there is no other.

    Raises:
        ShardError: If there is none, or it is not clear which.
    """
    words = path.stem.split("_")  # Maps, field, suite (one or two words), set, z
    suite, group = "_".join(words[2:-2]), words[-2] if len(words) > 3 else ""
    for name in (f"params_{group}_{suite}", f"params_{suite}"):
        if suite and (path.parent / f"{name}{PARAMETERS}").is_file():
            return path.parent / f"{name}{PARAMETERS}"
    found = sorted(path.parent.glob(f"*param*{PARAMETERS}")) or sorted(path.parent.glob(f"*{PARAMETERS}"))
    if len(found) == 1:
        return found[0]
    raise ShardError(
        "it is not clear which file has the maps' parameters" if found else "no file has the maps' parameters",
        where=path,
        expected=f"params_{group}_{suite}{PARAMETERS} beside it" if suite else f"one {PARAMETERS} file beside it",
        found=", ".join(p.name for p in found[:6]) or f"no {PARAMETERS} file in {path.parent}",
        hint=f"name both: {path.name},PARAMETERS{PARAMETERS}",
    )


def _table(path: Path) -> tuple[NDArray[np.float64], tuple[str, ...] | None]:
    """Numbers (R, C) and the names of the columns, of a text file with or without a header."""
    try:
        if path.stat().st_size > _MOST_TEXT:
            raise ShardError("the file is too large for a parameter file", where=path, found=path.stat().st_size)
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ShardError("the parameter file is not text", where=path) from None
    except OSError as error:
        raise ShardError("the parameter file cannot be read", where=path, found=error.strerror) from None
    header, rows = None, list[list[float]]()
    for number, line in enumerate(lines, start=1):
        words = line.lstrip("# \t").replace(",", " ").split()
        if not words or (line.lstrip().startswith("#") and rows):
            continue
        row, expected = list[float](), "numbers"
        with suppress(ValueError):
            row = [float(word) for word in words]
            expected = f"{len(rows[0])} numbers" if rows and len(row) != len(rows[0]) else "finite numbers"
        if not row and not rows:
            header = tuple(words)  # the last line before the numbers
        elif len(row) == len((rows or [row])[0]) and np.isfinite(row).all():
            rows.append(row)
        else:
            where, found = f"{path}, line {number}", line[:100]
            raise ShardError("invalid row of the parameter file", where=where, expected=expected, found=found)
    if header is not None and rows and len(header) != len(rows[0]):
        header = None  # a sentence, not names
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0), header
