"""Worker processes: each makes one shard at a time and tells its parent how far it is."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ..cores import SINGLE_THREAD, keep_memory, one_thread
from ..errors import CalogenError, ProductionError
from ..shards.manifest import ShardRecord
from .ledger import Ledger
from .maker import PROGRESS_SECONDS, Job, Stopped, Task, make

_STOP_SECONDS = 8.0  # that workers have to leave a shard before they are killed
_ATTEMPTS = 2


class Pool:
    """Worker processes and who makes what."""

    def __init__(self, job: Job, ledger: Ledger, should_stop: Callable[[], int], lock: int) -> None:
        self._job, self._ledger, self._should_stop, self._lock = job, ledger, should_stop, lock
        self._workers: list[Worker] = []

    def run(self, count: int) -> None:
        """Make all shards with ``count`` workers."""
        try:
            for worker in [self._start() for _ in range(count)]:
                self._next(worker)
            while any(worker.task for worker in self._workers):
                self._listen()
                number = self._should_stop()
                if number and any(worker.task for worker in self._workers):
                    self._end()
                    raise self._ledger.interrupted(number)
        finally:
            self._end()

    def _start(self) -> Worker:
        self._workers.append(Worker(self._job, self._lock))
        return self._workers[-1]

    def _next(self, worker: Worker) -> None:
        worker.give(self._ledger.tasks.popleft() if self._ledger.tasks else None)

    def _listen(self) -> None:
        talking = {worker.connection: worker for worker in self._workers if worker.task}
        for connection in wait(list(talking), timeout=PROGRESS_SECONDS):
            worker = talking[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            self._hear(worker, message)

    def _hear(self, worker: Worker, message: object) -> None:
        name = worker.task.shard.name if worker.task else ""
        if isinstance(message, int):
            self._ledger.begun(name, message)
        elif isinstance(message, ShardRecord):
            self._ledger.finished(message)
            self._next(worker)
        elif isinstance(message, CalogenError):
            raise message
        else:
            raise ProductionError("a worker failed", where=self._job.out / name, found=str(message))

    def _died(self, worker: Worker) -> None:
        """Give the shard of a dead worker to a new one, once."""
        task = worker.task
        self._workers.remove(worker)
        worker.connection.close()
        end = worker.death()
        if task is None:
            return
        task.attempts += 1
        self._ledger.begun(task.shard.name, 0)
        if task.attempts >= _ATTEMPTS:
            raise ProductionError(
                f"a worker {end}, twice over the same shard",
                where=self._job.out / task.shard.name,
                found=f"samples {task.shard.index_start} to {task.shard.index_start + task.shard.samples - 1}",
                hint="out of memory? fewer --workers or a smaller --shard-size; the same command again makes the rest",
            )
        self._ledger.tasks.appendleft(task)
        self._next(self._start())

    def _end(self) -> None:
        """Let workers leave their shards, keep what they had just finished; kill those that take too long."""
        for worker in self._workers:
            worker.stop()
        limit = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            with suppress(EOFError, OSError):
                while worker.connection.poll(max(0.0, limit - time.monotonic())):
                    message = worker.connection.recv()
                    if isinstance(message, ShardRecord):
                        self._ledger.records[message.name] = message
            worker.connection.close()
            try:
                worker.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for worker in self._workers:
            if worker.task:
                (self._job.out / f"{worker.task.shard.name}.part").unlink(missing_ok=True)
        self._workers = []


_SERVE = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
import sys, calogen.production.pool
calogen.production.pool.serve(int(sys.argv[1]))
"""


class Worker:
    """A worker process and the shard it is at.

    Args:
        job: What all shards share.
        lock: Descriptor of the production's lock. The worker holds it too, so that nobody else writes the folder
            before the last worker of a killed parent has left.
    """

    def __init__(self, job: Job, lock: int) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, **SINGLE_THREAD}
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
