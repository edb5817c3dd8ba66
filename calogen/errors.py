"""Errors: what went wrong, where, what was expected and found, and what to do.

Every error a user can cause is one of these; its ``exit_code`` is the exit status of the command line. Messages name
arguments of the Python call in backticks, `seed` or `part=3/100`; the command line writes them as its own options.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from unicodedata import category


@dataclass(eq=False, repr=False)
class CalogenError(Exception):
    """Base of all calogen errors.

    Args:
        what: One sentence that says what is wrong.
        where: File, dataset and row, or the argument or key concerned.
        expected: What would have been right.
        found: What was there instead.
        hint: What to do about it.
    """

    exit_code = 1

    what: str
    _: KW_ONLY
    where: object = None
    expected: object = None
    found: object = None
    hint: str | None = None

    def __str__(self) -> str:
        parts = (("where", self.where), ("expected", self.expected), ("found", self.found), ("do", self.hint))
        lines = [self.what, *(f"  {name:<9}{value}" for name, value in parts if value is not None)]
        return plain("\n".join(lines))


class ConfigError(CalogenError):
    """A configuration file, option or argument is wrong."""

    exit_code = 2


class ShardError(CalogenError):
    """Data files are missing, damaged or not what they should be."""

    exit_code = 2


class CheckpointError(CalogenError):
    """A model cannot be loaded or does not fit the request."""

    exit_code = 2


class DamagedError(CheckpointError):
    """A checkpoint's files are missing or not those that were written."""


class ConditionError(CalogenError):
    """Physics parameters are missing, unknown or outside the trained range."""

    exit_code = 2


class DivergenceError(CalogenError):
    """Training produced numbers that are not finite."""


class ProductionError(CalogenError):
    """A worker process died or failed, again and again."""


class RankError(CalogenError):
    """One of the processes that train together died, failed or does not answer."""


class ElsewhereError(CalogenError):
    """Processes that work together end; one of the others says why."""


class GateError(CalogenError):
    """A measured value did not meet the limit the user set."""

    exit_code = 3


class StorageError(CalogenError):
    """The file system refused a write (disk full, read-only, quota)."""

    exit_code = 74


class Interrupted(CalogenError):
    """A signal stopped the work after a clean checkpoint.

    Args:
        signal_number: The signal; the exit code is 128 plus this number.
    """

    def __init__(self, what: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.exit_code = 128 + signal_number


def plain(text: str) -> str:
    """A text without signs that a terminal obeys: they are written as ``\\x1b``; line breaks and tabs stay."""
    if text.isprintable():
        return text
    # Cc: control; Cf: what turns the direction of writing or is not seen; Cs: half of a character.
    return "".join(
        sign if sign in "\n\t" or category(sign) not in ("Cc", "Cf", "Cs") else sign.encode("unicode_escape").decode()
        for sign in text
    )


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint naming the known word nearest to ``name``, or listing all of them."""
    known = sorted(known)
    spelled = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    if near:
        return f"did you mean '{spelled[near[0]]}'?"
    return f"known: {', '.join(known)}" if known else None


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that an extra of calogen installs.

    Raises:
        ConfigError: If it is not installed, or cannot be loaded on this machine.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        raise ConfigError(
            f"the package '{error.name}' is not installed" if missing else f"the package '{module}' cannot be loaded",
            found=None if missing else str(error),
            hint=f'pip install "calogen[{extra}]"',
        ) from None
