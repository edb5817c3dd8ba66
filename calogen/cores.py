"""How many cores are available, and how many threads and processes use them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from threadpoolctl import threadpool_limits

from .errors import ConfigError

_EACH_CORE = 4  # threads or processes, at most
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def sensible_number(wanted: int | None, where: str) -> int:
    """How many threads or processes to use: as many as are wanted, or one per core.

    A few per core are allowed: bits depend on the number of threads, and a smaller machine may repeat a run.

    Args:
        wanted: The number (default: all available cores).
        where: What it was given as, for the message.

    Raises:
        ConfigError: If they would do little but wait for each other.
    """
    cores = usable_cores()
    if wanted is not None and wanted > _EACH_CORE * cores:
        raise ConfigError(
            "too many for this machine",
            where=where,
            expected=f"at most {_EACH_CORE * cores}, {_EACH_CORE} for each available core",
            found=wanted,
            hint="leave it out: one per core",
        )
    return wanted or cores


def keep_memory() -> None:
    """Keep freed memory for the next block instead of giving it back: page faults would cost a tenth of the time."""
    with suppress(OSError, AttributeError):  # glibc's malloc only
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 28)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 25)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for every numerical library: a sample's bits must not depend on the number of cores."""
    with threadpool_limits(1):
        torch = sys.modules.get("torch")  # imported by makers that need it
        before = torch.get_num_threads() if torch else 0
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
