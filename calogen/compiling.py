"""Functions compiled by numba, and where the machine code is kept.

Importing this module imports numba, which takes half a second: modules that do are imported where they are needed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import event
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

# No fast mathematics: operations stay as they are written, in loops over many numbers and in what is left over of them,
# so that a sample has the same bits whatever is computed beside it.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True}
_FOLDER = "calogen"
_njit: Any = numba.njit  # whose types do not know all of these
_config: Any = numba.config


def compiled(function: _Function) -> _Function:
    """Compile a function for use in others that are compiled, not in Python; no bounds are checked."""
    return cast(_Function, _njit(no_cpython_wrapper=True, **_OPTIONS)(function))


def operation(build: Callable[..., Any]) -> Any:
    """An operation in the compiler's own language, for use in functions that are compiled."""
    return cast(Any, intrinsic)(build)


def kernel(function: _Function) -> _Function:
    """Compile a function for use in Python, at its first call, and keep the machine code for later processes.

    It is kept in a folder of the user's alone, since what lies there is run: that of ``NUMBA_CACHE_DIR``, else
    ``calogen`` in ``XDG_CACHE_HOME`` or ``~/.cache``. Where there is no such folder, every process compiles anew. The
    first function that is compiled says so, through Python's logging.
    """
    folder, why = _cache_folder()
    found = _kept(function, folder) if folder else None
    dispatcher = found or _njit(nogil=True, **_OPTIONS)(function)
    if found:
        _announcer.known[dispatcher] = f"the result is kept in {folder}"
    else:
        _announcer.known[dispatcher] = f"the result cannot be kept: {why or f'numba does not use {folder}'}"
    return cast(_Function, dispatcher)


def _kept(function: Callable[..., Any], folder: Path) -> Any:
    """A function whose machine code is kept below a folder; none where numba would keep it elsewhere."""
    # numba looks at the file of the function alone; what it calls, and the numbers it uses, are in its neighbours.
    sources = hashlib.sha256()
    for path in sorted([Path(__file__), *Path(function.__code__.co_filename).parent.glob("*.py")]):
        sources.update(path.read_bytes())
    mine = folder / sources.hexdigest()[:16]
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(mine)  # read once, by the decorator
    try:
        dispatcher = _njit(cache=True, nogil=True, **_OPTIONS)(function)
    except (RuntimeError, OSError):
        return None
    finally:
        _config.CACHE_DIR = before
    return dispatcher if Path(dispatcher.stats.cache_path).is_relative_to(mine) else None


def _cache_folder() -> tuple[Path | None, str]:
    """The folder for machine code, or none and why."""
    chosen = _config.CACHE_DIR
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _FOLDER
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        facts = folder.stat()
    except (OSError, RuntimeError) as error:
        return None, f"cannot use {folder} ({getattr(error, 'strerror', None) or error})"
    if facts.st_uid != os.geteuid():
        return None, f"{folder} belongs to another user"
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None, f"others may write to {folder} (chmod go-w)"
    if not os.access(folder, os.W_OK | os.X_OK):
        return None, f"{folder} is read-only"
    return folder, ""


class _Announcer(event.Listener):
    """Says once, when the first kernel is compiled rather than loaded, what takes so long."""

    def __init__(self) -> None:
        self.known: dict[Any, str] = {}
        self._silent = False

    def on_start(self, event: Any) -> None:
        where = self.known.get(event.data["dispatcher"])
        if where and not self._silent:
            self._silent = True
            message = "compiling for this machine, which takes some seconds; %s"
            logging.getLogger("calogen").warning(message, where)

    def on_end(self, event: Any) -> None:
        """Nothing: what it took is no news."""


_announcer = _Announcer()
event.register("numba:compile", _announcer)
