"""Worker processes: each makes one shard at a time and tells its parent how far it is."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from .errors import CalogenError
from .families import Family
from .shardfiles import Samples, ShardRecord, WrittenLayout, write_shard
from .shardreader import sha256_of

PROGRESS_SECONDS = 0.1
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Maker(Protocol):
    """Makes samples; is sent to worker processes, so it can be pickled.

    Sample i depends on the maker and on i alone, whatever range it is asked for in.
    """

    @property
    def family(self) -> Family: ...  # noqa: D102

    def describe(self) -> dict[str, Any]:
        """Where the samples come from, JSON-able: two makers that differ make different samples."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop, a bounded number at a time."""
        ...


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
    """
    path, known = job.out / task.shard.name, task.known
    if known is not None and known.samples == task.shard.samples and known.index_start == task.shard.index_start:
        with suppress(OSError):
            if path.stat().st_size == known.bytes and sha256_of(path) == known.sha256:
                return known

    def pieces() -> Iterator[Samples]:
        done, first = 0, task.shard.index_start
        for piece in job.maker.pieces(first, first + task.shard.samples):
            yield piece
            done += len(piece)
            tell(done)

    return write_shard(
        path,
        pieces(),
        provenance=job.provenance,
        index_start=task.shard.index_start,
        layout=job.layout,
        count=task.shard.samples,
        pool=pool,
    )


class Worker:
    """A worker process and the shard it is at."""

    def __init__(self, job: Job) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, **_SINGLE_THREAD}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # what this process can import
        command = [sys.executable, "-c", "import sys, calogen.workers as w; w.serve(int(sys.argv[1]))"]
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
        )
        theirs.close()
        self.task: Task | None = None
        with suppress(OSError):  # it died at once: noticed when its answer is waited for
            self.connection.send_bytes(pickle.dumps(job))  # not send: torch would share memory, not copy it

    def give(self, task: Task | None) -> None:
        """Hand over a shard; nothing ends the worker."""
        self.task = task
        with suppress(OSError):
            self.connection.send(task)

    def death(self) -> str:
        """How it ended."""
        code = self.process.wait()
        with suppress(ValueError):
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"died of signal {-code}"


def serve(descriptor: int) -> None:
    """What a worker process does: make the shards it is given, until there are none or its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        try:
            job = pickle.loads(connection.recv_bytes())
            with one_thread():
                while (task := connection.recv()) is not None:
                    connection.send(make(job, task, _Teller(connection)))
        except Stopped:
            return
        except CalogenError as error:
            connection.send(error)
        except (EOFError, OSError):
            raise
        except BaseException:
            connection.send(traceback.format_exc())


class _Teller:
    """Tells the parent how far a shard is, and gives up when the parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._told = connection, 0.0

    def __call__(self, done: int) -> None:
        if self._connection.poll():  # nothing is sent to a worker at work: the other end was closed
            raise Stopped
        now = time.monotonic()
        if now - self._told > PROGRESS_SECONDS:
            self._told = now
            try:
                self._connection.send(done)
            except OSError:
                raise Stopped from None
