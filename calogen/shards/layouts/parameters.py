"""Text files with the parameters of maps: which one belongs to a stack by its name, and what is in it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ShardError
from ...storage import read_bounded

PARAMETERS = ".txt"
_MOST_TEXT = 1 << 28  # bytes of a parameter file
_SUITES = r"IllustrisTNG|SIMBA|Astrid|EAGLE|Swift-EAGLE|Magneticum|Ramses|Enzo|Gadget|CROCODILE|Obsidian|GIZMO"
_SETS = r"LH|CV|1P|EX|BE|GZ|BTS|\w*SB\d+"


@dataclass(frozen=True)
class Name:
    """What the name of one of CAMELS' files says: ``Maps_Mtot_IllustrisTNG_LH_z=0.00.npy``; empty of other files.

    Attributes:
        field: What is mapped: ``Mtot``, ``Mcdm``, ``T``.
        suite: Which code simulated it; N-body runs bear the name of the suite that has their parameters.
        group: The set of simulations: ``LH``, ``CV``.
    """

    field: str = ""
    suite: str = ""
    group: str = ""

    @classmethod
    def of(cls, path: Path) -> Name:
        """What a name says."""
        words = path.stem.split("_")
        suite = next((word for word in words if re.fullmatch(_SUITES, word, re.IGNORECASE)), "")
        group = next((word for word in words if re.fullmatch(_SETS, word)), "")
        return cls(words[1] if words[0] == "Maps" and suite and len(words) > 3 else "", suite.lower(), group)


@dataclass(frozen=True)
class Table:
    """Parameters, a row a simulation or a row a map.

    Attributes:
        rows: Numbers, (R, C).
        header: Names of the columns, where the file has them.
        names: The name of each row, where the file has them.
    """

    rows: NDArray[np.float64]
    header: tuple[str, ...] | None = None
    names: list[str] = field(default_factory=list)


def beside_of(path: Path) -> Path:
    """The parameter file that goes with a stack, by CAMELS' names or because there is no other.

    Raises:
        ShardError: If there is none, it is not clear which, or the only one is another suite's or set's.
    """
    words = path.stem.split("_")  # Maps, field, suite (one or two words), set, z
    suite, group = "_".join(words[2:-2]), words[-2] if len(words) > 3 else ""
    wanted = [f"params_{group}_{suite}", f"params_{suite}"] if suite else []
    for name in wanted:
        if (path.parent / f"{name}{PARAMETERS}").is_file():
            return path.parent / f"{name}{PARAMETERS}"
    patterns = ("*param*", "CosmoAstroSeed_*", "*")
    found = next(filter(None, (sorted(path.parent.glob(f"{p}{PARAMETERS}")) for p in patterns)), [])
    mine, known = Name.of(path), [(other, Name.of(other)) for other in found]
    fits = [other for other, its in known if not _differ(mine.suite, its.suite) and not _differ(mine.group, its.group)]
    if len(fits) == 1:
        return fits[0]
    what = "no file has the maps' parameters"
    if found:
        what = "it is not clear which file has the maps' parameters" if fits else "the parameters are of another suite"
    raise ShardError(
        what,
        where=path,
        expected=f"{wanted[0]}{PARAMETERS} beside it" if wanted else f"one {PARAMETERS} file beside it",
        found=", ".join(p.name for p in fits[:6] or found[:6]) or f"no {PARAMETERS} file in {path.parent}",
        hint=f"name both: {path.name},PARAMETERS{PARAMETERS}; or a file's own parameters: {path.name},Omega_m=0.3",
    )


def _differ(mine: str, other: str) -> bool:
    return bool(mine and other and mine != other)


def read_table(path: Path, group: str = "") -> Table:
    """What a parameter file holds, with or without a header, with or without a column of names.

    Args:
        path: The file.
        group: The set of simulations wanted, of a file whose rows are named ``LH_0``, ..., ``CV_0``.

    Raises:
        ShardError: If it cannot be read, or is no table of numbers.
    """
    try:
        lines = read_bounded(path, _MOST_TEXT).decode().splitlines()
    except UnicodeDecodeError:
        raise ShardError("the parameter file is not text", where=path) from None
    except OSError as error:
        raise ShardError("the parameter file cannot be read", where=path, found=error.strerror) from None
    header, rows, names = None, list[list[float]](), list[str]()
    for number, line in enumerate(lines, start=1):
        words = line.lstrip("# \t").replace(",", " ").split()
        if not words or (line.lstrip().startswith("#") and rows):
            continue
        row, expected, name = list[float](), "numbers", ""
        if (names or not rows) and len(words) > 1 and re.fullmatch(rf"({_SETS})_\w+", words[0]):
            name, words = words[0], words[1:]
        with suppress(ValueError):
            row = [float(word) for word in words]
            expected = f"{len(rows[0])} numbers" if rows and len(row) != len(rows[0]) else "finite numbers"
        if not row and not rows:
            header = tuple(line.lstrip("# \t").replace(",", " ").split())  # the last line before the numbers
        elif len(row) == len((rows or [row])[0]) and np.isfinite(row).all() and (not rows or bool(name) == bool(names)):
            rows.append(row)
            names += [name] if name else []
        else:
            where, found = f"{path}, line {number}", line[:100]
            raise ShardError("invalid row of the parameter file", where=where, expected=expected, found=found)
    if header is not None and names and len(header) == len(rows[0]) + 1:
        header = header[1:]
    if header is not None and rows and len(header) != len(rows[0]):
        header = None  # a sentence, not names
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)
    mine = [number for number, name in enumerate(names) if name.startswith(f"{group}_")] if group else []
    return Table(table[mine], header, [names[k] for k in mine]) if mine else Table(table, header, names)
