"""Worker processes: each makes one shard at a time and tells its parent how far it is."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from .errors import CalogenError, ConfigError, ProductionError
from .families import Family
from .shardfiles import Samples, ShardRecord, WrittenLayout, write_shard
from .shardreader import sha256_of

PROGRESS_SECONDS = 0.1
_EACH_CORE = 4  # threads or processes, at most
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SERVE = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
import sys, calogen.workers
calogen.workers.serve(int(sys.argv[1]))
"""
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Maker(Protocol):
    """Makes samples; is sent to worker processes, so it can be pickled.

    Sample i depends on the maker and on i alone, whatever range it is asked for in. One that clips its values has an
    attribute ``ceiling``, the largest of them: how many are there is counted, and stands in the manifest.
    """

    @property
    def family(self) -> Family: ...  # noqa: D102

    def describe(self) -> dict[str, Any]:
        """Where the samples come from, JSON-able: two makers that differ make different samples."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop, a bounded number at a time."""
        ...


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def sensible_number(wanted: int | None, where: str) -> int:
    """How many threads or processes to use: as many as are wanted, or one a core.

    A few on each core are allowed: bits depend on the number of threads, and a smaller machine may repeat a run.

    Args:
        wanted: The number (default: the cores this process may use).
        where: What it was given as, for the message.

    Raises:
        ConfigError: If they would do little but wait for each other.
    """
    cores = usable_cores()
    if wanted is not None and wanted > _EACH_CORE * cores:
        raise ConfigError(
            "more than this machine has a use for",
            where=where,
            expected=f"at most {_EACH_CORE * cores}, {_EACH_CORE} for each core that may be used",
            found=wanted,
            hint="leave it out: one a core",
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
    """One thread for every numerical library: a sample's bits must not depend on how many cores there are."""
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


@dataclass(frozen=True)
class Job:
    """What all shards of a production share.

    Attributes:
        maker: Makes the samples.
        out: The folder.
        provenance: Written into every shard.
        layout: Of the files.
    """

    maker: Maker
    out: Path
    provenance: Mapping[str, Any]
    layout: WrittenLayout = "native"


@dataclass
class Task:
    """A shard to be made, or to be checked against what the manifest knows of it.

    Attributes:
        shard: Name, samples and first index.
        known: What the manifest says.
        attempts: Workers that died over it.
    """

    shard: ShardRecord
    known: ShardRecord | None = None
    attempts: int = 0


class Stopped(Exception):
    """A shard was given up because the production stops."""


def make(job: Job, task: Task, tell: Callable[[int], None], pool: Executor | None = None) -> ShardRecord:
    """Make one shard, or find it made already.

    Args:
        job: What all shards share.
        task: The shard.
        tell: Called with the samples done; may raise :class:`Stopped` to give the shard up.
        pool: Compresses while the next samples are made.

    Raises:
        StorageError: If the file system refuses.
        ProductionError: If the maker makes fewer or more samples than asked for.
    """
    path, known, begun = job.out / task.shard.name, task.known, time.monotonic()
    if known is not None and known.samples == task.shard.samples and known.index_start == task.shard.index_start:
        with suppress(OSError):
            if path.stat().st_size == known.bytes and sha256_of(path) == known.sha256:
                return known

    ceiling: float | None = getattr(job.maker, "ceiling", None)
    clipped = 0

    def pieces() -> Iterator[Samples]:
        nonlocal clipped
        done, first = 0, task.shard.index_start
        for piece in job.maker.pieces(first, first + task.shard.samples):
            done += len(piece)
            clipped += int((piece.values >= ceiling).sum()) if ceiling is not None else 0
            if done > task.shard.samples:
                break
            yield piece
            tell(done)
        if done != task.shard.samples:
            raise ProductionError(
                "the maker made another number of samples", where=path, expected=task.shard.samples, found=done
            )

    made = write_shard(
        path,
        pieces(),
        provenance=job.provenance,
        index_start=task.shard.index_start,
        layout=job.layout,
        count=task.shard.samples,
        pool=pool,
    )
    seconds = round(time.monotonic() - begun, 3)
    return replace(made, seconds=seconds, clipped=clipped if ceiling is not None else None)


class Worker:
    """A worker process and the shard it is at.

    Args:
        job: What all shards share.
        lock: Descriptor of the production's lock. The worker holds it too, so that nobody else writes the folder
            before the last worker of a killed parent has left.
    """

    def __init__(self, job: Job, lock: int) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, **_SINGLE_THREAD}
        environment["PYTHONPATH"] = os.pathsep.join(
            path or str(Path.cwd()) for path in sys.path
        )  # what this one imports
        descriptors = [theirs.fileno(), lock]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.task: Task | None = None
        self._job: Job | None = job

    def give(self, task: Task | None) -> None:
        """Hand over a shard, the first with the job; nothing ends the worker."""
        self.task = task
        with suppress(OSError):  # it died: noticed when its answer is waited for
            if self._job:  # not in the constructor: large jobs wait for the worker to be up, workers start side by side
                self.connection.send_bytes(pickle.dumps(self._job))  # not send: torch would share memory, not copy it
                self._job = None
            self.connection.send(task)

    def stop(self) -> None:
        """Have it leave its shard and end; what it has just finished can still be received."""
        with suppress(OSError):
            self.connection.send(None)

    def death(self) -> str:
        """How it ended."""
        code = self.process.wait()
        with suppress(ValueError):
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"died of signal {-code}"


def serve(descriptor: int) -> None:
    """What a worker process does: make the shards it is given, until there are none or its parent is gone."""
    connection = Connection(descriptor)
    with suppress(EOFError, OSError, Stopped), ExitStack() as limits:  # the parent is gone, or wants no more
        sent, job = connection.recv_bytes(), None
        keep_memory()
        while (task := connection.recv()) is not None:
            try:
                if job is None:
                    job = pickle.loads(sent)
                    limits.enter_context(one_thread())  # of the libraries that the job has brought in
                answer: object = make(job, task, _Teller(connection))
            except Stopped:
                raise
            except CalogenError as error:
                answer = error
            except BaseException:
                answer = traceback.format_exc()
            connection.send(answer)


class _Teller:
    """Tells the parent how far a shard is; gives up when the parent says so or is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._told = connection, 0.0

    def __call__(self, done: int) -> None:
        if self._connection.poll():  # nothing is sent to a worker at work but that it shall stop
            raise Stopped
        now = time.monotonic()
        if now - self._told > PROGRESS_SECONDS:
            self._told = now
            try:
                self._connection.send(done)
            except OSError:
                raise Stopped from None
