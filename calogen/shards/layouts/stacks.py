"""NumPy stacks of maps with their parameters in a text file, as the CAMELS Multifield Dataset distributes them."""

from __future__ import annotations

import tokenize
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import PLAIN, Reading
from ...errors import ShardError
from ...families import FAMILIES, Family
from ...storage import regular_size
from .layout import Column, Layout
from .maps import family_of_maps, plain_values
from .parameters import Name, Table, beside_of, read_table

SUFFIX = ".npy"
_MOST_HEADER = 1 << 16  # bytes of a NumPy file's header; one of plain numbers has 118
_CAMELS = FAMILIES["camels"]
_CAMELS_EACH = 15  # maps of each of CAMELS' simulations
_LOOKED_AT = 1024  # maps whose means say whether they are grouped as they are said to be
_SIMULATIONS = 64  # whose mean density is compared with Omega_m
_SCATTER = (0.03, 0.10)  # of mean density over Omega_m: what is said, and what is refused
_TOO_WIDE = 0.35  # scatter of the logarithm of map means in one simulation; slabs of one box have at most 0.25


def read_stack(
    path: Path, family: Family | None, parameters: Path | None, reading: Reading, *, assumed: bool, constant: bool
) -> Layout:
    """The layout of a NumPy stack of maps with a parameter file; unnamed, its columns are the family's, in order.

    Args:
        path: The ``.npy`` file.
        family: What the maps are; None: as their name, their box or their size says.
        parameters: The text file; None: the one beside it.
        reading: What else the user said.
        assumed: Whether nobody asked for the family.
        constant: Whether all maps are of one simulation, whose parameters are named with the path.

    Raises:
        ShardError: If a file is damaged, or they do not fit each other or the family.
    """
    name, file = Name.of(path), parameters
    if file is None and not constant:
        try:
            file = beside_of(path)
        except ShardError as error:
            if reading.parameters or "no file" not in error.what:
                raise
    stack = Stack.open(path, file, reading, constant=constant)
    length, *pixels = stack.maps.shape
    camels = bool(name.field) and assumed
    box = reading.box or (_CAMELS.box_size if camels else None)
    family = family_of_maps(path, (pixels[0], pixels[1]), box, family, depth=_CAMELS.depth if camels else 0.0)
    columns, notes = _columns(stack, family, file, reading), list(stack.notes)
    if columns and assumed and family not in FAMILIES.values():  # one of maps like these: of their own conditions
        own = {column.name for column in columns}
        family = family.model_copy(update={"conditions": tuple(c for c in family.conditions if c.name in own)})
    if file is not None:
        surplus = stack.table.rows.shape[1] - len(columns)
        row = f"map i belongs to row i // {stack.each}" if stack.each > 1 else "one row a map"
        unused = f"; {surplus} of its columns are not used" if surplus else ""
        notes.insert(0, f"parameters from {file.name}: {row}{unused}")
        stack.require_grouped(path, name, reading)
        notes += stack.require_matter(path, file, columns) if name.field == "Mtot" else []
    if reading.signed is None:
        notes.append(f"maps divided by the mean of their simulation's maps ({stack.count} simulations): 1 + delta")
    if assumed and family.box_size and reading.box is None:
        why = "its name says CAMELS" if camels else f"that of family '{family.name}'"
        notes.append(f"the file does not say its box: {why}, {family.box_size:g} Mpc/h")
    return Layout(
        name="stack",
        family=family,
        length=length,
        values=("maps",),
        conditions=columns,
        extras=("realisation_id",) if stack.grouped else (),
        provenance={"file": path.name} | ({"parameters": file.name} if file else {}),
        notes=tuple(notes),
        stack=partial(Stack.open, path, file, reading, constant=constant),
        counted=True,
        also=(file,) if file else (),
    )


def _columns(stack: Stack, family: Family, file: Path | None, reading: Reading) -> tuple[Column, ...]:
    """Where the family's conditions are in a table; unnamed columns are CAMELS' own six, or as many as the family's.

    Raises:
        ShardError: If unnamed columns are others, or none is the family's.
    """
    if file is None:
        return ()
    known, count = [condition.name for condition in family.conditions], stack.table.rows.shape[1]
    camels = [condition.name for condition in _CAMELS.conditions]
    names = reading.columns or stack.table.header
    if names is None:
        usual = {len(known): known, **({len(camels): camels, 2: camels[:2]} if known[:2] == camels[:2] else {})}
        if count not in usual:
            raise ShardError(
                f"the {count} columns of the parameter file have no names",
                where=file,
                expected=f"{', '.join(known)} (family '{family.name}'), or a line with names",
                found=f"{count} unnamed columns",
                hint=f"name them in order: `columns={','.join([*known, '_'])}` (_ for one that is not used)",
            )
        names = tuple(usual[count])
    if len(names) != count:
        raise ShardError(
            "the names given are not as many as the columns", where=file, expected=f"{count} names", found=len(names)
        )
    if not set(names) & set(known):
        raise ShardError(
            "no column of the parameter file is a condition of the family",
            where=file,
            expected=f"among its columns: {', '.join(known)} (family '{family.name}')",
            found=", ".join(names),
        )
    said = bool(reading.columns or stack.table.header)
    return tuple(Column(name, "params", index, said=said) for index, name in enumerate(names) if name in known)


@dataclass(frozen=True)
class Stack:
    """An open stack of maps: ``maps`` (N, H, W), ``params`` (N, C) and ``realisation_id`` (N,), read by name and rows.

    Attributes:
        maps: As stored, mapped into memory.
        table: Parameters, one row a simulation or one a map; rows that are equal are one simulation wherever they are.
        block: Maps that follow each other and are of one simulation; 0: as the parameters say.
        reading: What the user said of the maps.
        notes: What is to be said of it.
    """

    maps: NDArray[Any]
    table: Table
    block: int = 0
    reading: Reading = PLAIN
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, path: Path, parameters: Path | None, reading: Reading | None = None, *, constant: bool = False
    ) -> Stack:
        """Open a stack.

        Args:
            path: The ``.npy`` file.
            parameters: The text file; None: there are no parameters.
            reading: What the user said of it.
            constant: Whether all maps are of one simulation.

        Raises:
            ShardError: If a file is missing, damaged, or the two do not belong together.
        """
        reading, maps, name = reading or Reading(), _mapped(path), Name.of(path)
        count, said = len(maps), reading.maps_per_simulation
        if parameters is None:
            table = Table(np.zeros((1, 0)))
            block = said or (count if constant else 0)
            notes = [] if constant else ["there are no parameters: only a surrogate without conditions can be trained"]
            if not block:
                notes += ["nothing says which maps are of one simulation: all are divided by their common mean"]
            return cls(maps, table, block, reading, tuple(notes))
        table = read_table(parameters, name.group)
        rows, each = len(table.rows), said or (_CAMELS_EACH if name.field else 0)
        if not rows or count % rows or (rows < count and each and rows * each != count):
            expected = f"a number of rows that divides the {count} maps of {path.name}"
            if each:
                expected = f"{count / each:g} rows for the {count} maps of {path.name}, {each} a simulation; or {count}"
            raise ShardError(
                "maps and parameters do not belong together",
                where=parameters,
                expected=expected,
                found=f"{rows} rows",
                hint="give the rows of these maps alone, or say `maps_per_simulation`; name both files: "
                "MAPS.npy,PARAMETERS.txt",
            )
        if rows < count:
            return cls(maps, table, count // rows, reading)
        blocks = table.rows.reshape(count // each, each, -1) if each and count % each == 0 else None
        whole = blocks is not None and bool((blocks == blocks[:, :1]).all())
        if said and not whole:
            what = f"maps that follow each other have other parameters, though {said} shall be of one simulation"
            raise ShardError(
                what, where=parameters, hint="leave out `maps_per_simulation`: equal rows are one simulation"
            )
        found = cls(maps, table, each if whole else 0, reading)
        if not found.block and 1 < found.count < min(10, count):
            note = f"rows that are equal are taken for one simulation ({found.count}), unless `maps_per_simulation`"
            return cls(maps, table, 0, reading, (note,))
        return found

    @property
    def each(self) -> int:
        """Maps that share a row of parameters."""
        return len(self.maps) // len(self.table.rows)

    @property
    def grouped(self) -> bool:
        """Whether anything says which maps are of one simulation."""
        return bool(self.block or self.table.rows.shape[1])

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The number of each map's simulation, in order of appearance, (N,)."""
        if self.block:
            return np.arange(len(self.maps)) // self.block
        if len(self.table.rows) == 1:
            return np.zeros(len(self.maps), np.int64)
        _, first, inverse = np.unique(self.table.rows, axis=0, return_index=True, return_inverse=True)
        order = np.empty(len(first), np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        return order[inverse.ravel()]

    @property
    def count(self) -> int:
        """How many simulations there are."""
        return int(self.ids[-1]) + 1 if self.block else int(self.ids.max()) + 1

    @cached_property
    def _order(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows simulation by simulation, and where each begins."""
        return np.argsort(self.ids, kind="stable"), np.r_[0, np.cumsum(np.bincount(self.ids))]

    def rows(self, simulation: int) -> NDArray[np.intp]:
        """The rows of a simulation's maps."""
        order, bounds = self._order
        return order[bounds[simulation] : bounds[simulation + 1]]

    @cached_property
    def _means(self) -> dict[int, float]:
        return {}  # filled when rows are read

    def values(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Some maps as stored, but for their logarithm."""
        first, last = int(rows.min()), int(rows.max()) + 1
        stored = self.maps[first:last][rows - first] if last - first < 2 * len(rows) else self.maps[rows]
        return plain_values(stored, self.reading)

    def mean(self, simulation: int) -> float:
        """Mean of a simulation's maps as stored; those with values that are not finite are left out."""
        if simulation not in self._means:
            rows = self.rows(simulation)
            parts = [self.values(part) for part in np.array_split(rows, -(-len(rows) // 256))]
            with np.errstate(invalid="ignore", over="ignore"):
                means = np.concatenate([part.mean(axis=(1, 2), dtype=np.float64) for part in parts])
            good = np.isfinite(means)
            self._means[simulation] = float(means[good].mean()) if good.any() else np.nan
        return self._means[simulation]

    def is_zero(self, row: int) -> bool:
        """Whether all maps of a row's simulation are 0 where they are finite: they have no density to be divided by."""
        return bool((np.nan_to_num(self.maps[self.rows(int(self.ids[row]))]) == 0).all())

    @cached_property
    def datasets(self) -> dict[str, Densities | NDArray[Any]]:
        """What an HDF5 file of the same maps would hold."""
        params = np.repeat(self.table.rows, self.each, axis=0)
        return {"maps": Densities(self), "params": params, "realisation_id": self.ids}

    def __getitem__(self, name: str) -> Densities | NDArray[Any]:
        return self.datasets[name]

    # ------------------------------------------------------------------------------------------------ plausible
    def require_grouped(self, path: Path, name: Name, reading: Reading) -> None:
        """Refuse maps whose means say that others belong together than it is taken for.

        Only where a file of parameters has fewer rows than there are maps, and neither its name nor the user says how
        many belong to a row: then the order is a guess.

        Raises:
            ShardError: If the means of maps jump within what is taken for one simulation, hardly where one shall end,
                or scatter more than slabs of one box do.
        """
        if self.each < 2 or name.field or reading.maps_per_simulation or reading.signed:
            return
        means = plain_values(self.maps[:_LOOKED_AT], reading).mean(axis=(1, 2), dtype=np.float64)
        means = np.log(means[: len(means) // self.each * self.each]) if (means > 0).all() else means[:0]
        if not np.isfinite(means).all() or len(means) < 4 * self.each or len(means) < 16:
            return
        blocks, steps = means.reshape(-1, self.each), np.abs(np.diff(means))
        noise = max(float(np.median(steps)) / 0.954, 1e-6)  # of one map: the median step within a simulation
        jumps = steps > 7 * noise
        border = np.arange(1, len(means)) % self.each == 0
        clear = float(means.std()) > 10 * noise
        wide = float(np.sqrt(blocks.var(axis=1).mean())) > _TOO_WIDE
        if wide or (clear and (jumps[~border].mean() > 0.01 or jumps[border].mean() < 0.5)):
            raise ShardError(
                f"the maps' means do not go with {self.each} maps a simulation, one simulation after another",
                where=path,
                expected=f"map i of simulation i // {self.each}, since there are {len(self.table.rows)} rows",
                found=f"means that jump {jumps[~border].sum()} times within simulations, and at {jumps[border].sum()} "
                f"of {border.sum()} borders",
                hint="give one row of parameters a map, or `maps_per_simulation` with the rows of these maps alone",
            )

    def require_matter(self, path: Path, file: Path, columns: tuple[Column, ...]) -> list[str]:
        """Notes on how total matter follows Omega_m, which says whether these are the maps' own parameters.

        Raises:
            ShardError: If it does not.
        """
        place = next((column.column for column in columns if column.name == "Omega_m"), None)
        if place is None or self.reading.log10:
            return []
        scatter, count = self._scatter_of_matter(place)
        if scatter > _SCATTER[1]:
            powers = replace(self, reading=self.reading.model_copy(update={"log10": True}))
            meant, known = powers._scatter_of_matter(place)
            if self.reading.log10 is None and known == count and meant <= _SCATTER[1]:
                raise ShardError(
                    "the maps look like logarithms of densities",
                    where=path,
                    expected=f"mean density / Omega_m that scatters by at most {_SCATTER[1]:g}",
                    found=f"{scatter:.2g} over {count} simulations; {meant:.2g} of 10 to the power of the maps",
                    hint="`log10=True` reads logarithms to base 10",
                )
            raise ShardError(
                "these are not the parameters of these maps: total matter does not follow Omega_m",
                where=f"{path}, {file}",
                expected=f"mean density / Omega_m that scatters by less than {_SCATTER[0]:g} (at most {_SCATTER[1]:g})",
                found=f"{scatter:.2g} over {count} simulations",
                hint=f"name the right file: {path.name},PARAMETERS.txt",
            )
        much = f"mean density / Omega_m scatters by {scatter:.2g}: are these the parameters of these maps?"
        return [much] if scatter > _SCATTER[0] else []

    def _scatter_of_matter(self, place: int) -> tuple[float, int]:
        """How mean density over Omega_m, a column of the table, scatters, and over how many simulations; 0 over few."""
        chosen = np.linspace(0, self.count - 1, min(_SIMULATIONS, self.count)).astype(np.intp)
        omega = self["params"][:][[self.rows(k)[0] for k in chosen], place]
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = np.array([self.mean(k) for k in chosen.tolist()]) / omega
        ratio = ratio[np.isfinite(ratio) & (ratio != 0)]
        return (float(ratio.std() / abs(ratio.mean())), len(ratio)) if len(ratio) >= 3 else (0.0, len(ratio))


@dataclass(frozen=True)
class Densities:
    """1 + delta of a stack's maps, computed when rows are asked for."""

    stack: Stack

    def __len__(self) -> int:
        return len(self.stack.maps)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W)."""
        return self.stack.maps.shape

    dtype = np.dtype(np.float32)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Some maps, (n, H, W)."""
        stack = self.stack
        start, stop, _ = rows.indices(len(self))
        if stop <= start:
            return np.zeros((0, *self.shape[1:]), np.float32)
        chosen = plain_values(stack.maps[start:stop], stack.reading)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # bad rows are found by who reads them
            if stack.reading.signed is not None:
                return np.asarray(chosen, dtype=np.float32)
            own, place = np.unique(stack.ids[start:stop], return_inverse=True)
            scale = np.abs([stack.mean(k) for k in own.tolist()])[place]  # negative maps stay negative
            return np.asarray(chosen / scale[:, None, None], dtype=np.float32)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        _require_header(path)
        maps = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(maps, np.ndarray) and (maps.ndim and min(maps.shape) < 0):
            raise ValueError("negative lengths")
    except FileNotFoundError:
        raise ShardError("the file does not exist", where=path) from None
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, OverflowError, tokenize.TokenError) as error:
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


def _require_header(path: Path) -> None:
    """Refuse what is no plain file, and a header that claims to be longer than any is: NumPy would read all of it."""
    regular_size(path)
    with path.open("rb") as file:
        start = file.read(12)
    lengths = {1: start[8:10], 2: start[8:12], 3: start[8:12]}
    length = int.from_bytes(lengths.get(start[6], b""), "little") if len(start) == 12 else 0
    if start.startswith(np.lib.format.MAGIC_PREFIX) and length > _MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")


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
