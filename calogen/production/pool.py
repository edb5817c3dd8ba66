"""Worker processes that do tasks, one at a time each: tasks in, results out, whatever they are of.

A worker that is killed costs one task, which another one does again, once.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from ..cores import SINGLE_THREAD, keep_memory, one_thread
from ..errors import CalogenError

Work = Callable[[Any, Callable[[int], None]], Any]
"""Does a task and returns its result; calls its second argument with how far it is, which may raise to end it."""

_TELL_SECONDS = 0.1
_STOP_SECONDS = 8.0  # that workers have to leave a task before they are killed


class Stopped(Exception):
    """Tasks were given up because all work stops."""


class TaskError(Exception):
    """A task could not be done: ``why`` is the traceback of its work, or how its ``dead`` worker ended."""

    def __init__(self, task: Any, why: str, *, dead: bool) -> None:
        super().__init__(why)
        self.task, self.why, self.dead = task, why, dead


class Watch(Protocol):
    """Who follows the tasks; each of its methods may raise :class:`Stopped` or another error to end all work."""

    def begun(self, task: Any, amount: int) -> None:
        """So much of a task is done; 0 when its worker died."""

    def finished(self, task: Any, result: Any) -> None:
        """A task is done."""

    def stop_if_asked(self) -> None:
        """Asked several times a second."""


def in_turn(work: Work, tasks: Iterable[Any], watch: Watch) -> None:
    """Do all tasks in this process."""
    keep_memory()
    with one_thread():
        for number, task in enumerate(tasks):
            if number:
                watch.stop_if_asked()
            watch.finished(task, work(task, functools.partial(watch.begun, task)))


class Pool:
    """Worker processes and who does what.

    Args:
        work: Can be pickled; is sent to every worker once.
        watch: Follows the tasks.
        held: Descriptors that workers hold open, too.
    """

    def __init__(self, work: Work, watch: Watch, held: Sequence[int] = ()) -> None:
        self._work, self._watch, self._held = pickle.dumps(work), watch, held  # by pickle: torch would share memory
        self._tasks: deque[Any] = deque()
        self._lost: list[Any] = []
        self._workers: list[Worker] = []

    def run(self, tasks: Iterable[Any], count: int) -> None:
        """Do all tasks with ``count`` workers.

        Raises:
            TaskError: If a task failed, or two workers died over it.
            CalogenError: If a task raised it.
        """
        self._tasks.extend(tasks)
        try:
            for worker in [self._start() for _ in range(count)]:
                self._next(worker)
            while any(worker.task for worker in self._workers):
                self._listen()
                if any(worker.task for worker in self._workers):
                    self._watch.stop_if_asked()
        finally:
            self._end()

    def _start(self) -> Worker:
        self._workers.append(Worker(self._work, self._held))
        return self._workers[-1]

    def _next(self, worker: Worker) -> None:
        worker.give(self._tasks.popleft() if self._tasks else None)

    def _listen(self) -> None:
        talking = {worker.connection: worker for worker in self._workers if worker.task}
        for connection in wait(list(talking), timeout=_TELL_SECONDS):
            worker = talking[connection]  # type: ignore[index]
            try:
                kind, message = worker.connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            if kind == "begun":
                self._watch.begun(worker.task, message)
            elif kind == "finished":
                self._watch.finished(worker.task, message)
                self._next(worker)
            else:
                raise message if isinstance(message, CalogenError) else TaskError(worker.task, message, dead=False)

    def _died(self, worker: Worker) -> None:
        """Give the task of a dead worker to a new one, once."""
        self._workers.remove(worker)
        worker.connection.close()
        end = worker.death()
        self._watch.begun(worker.task, 0)
        if worker.task in self._lost:
            raise TaskError(worker.task, end, dead=True)
        self._lost.append(worker.task)
        self._tasks.appendleft(worker.task)
        self._next(self._start())

    def _end(self) -> None:
        """Let workers leave their tasks, keep what they had just finished; kill those that take too long."""
        for worker in self._workers:
            worker.stop()
        limit, results = time.monotonic() + _STOP_SECONDS, []
        for worker in self._workers:
            with suppress(EOFError, OSError):
                while worker.connection.poll(max(0.0, limit - time.monotonic())):
                    kind, message = worker.connection.recv()
                    if kind == "finished":
                        results.append((worker.task, message))
            worker.connection.close()
            try:
                worker.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []
        for task, result in results:
            self._watch.finished(task, result)


_SERVE = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
import sys, calogen.production.pool
calogen.production.pool.serve(int(sys.argv[1]))
"""


class Worker:
    """A worker process and the task it is at.

    Args:
        work: Pickled.
        held: Descriptors that it holds open, too.
    """

    def __init__(self, work: bytes, held: Sequence[int] = ()) -> None:
        self.connection, theirs = Pipe()
        # It imports what this process imports.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *held],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **SINGLE_THREAD, "PYTHONPATH": path},
        )
        theirs.close()
        self.task: Any = None
        self._work: bytes | None = work

    def give(self, task: Any) -> None:
        """Hand over a task, the first with the work; nothing ends the worker."""
        self.task = task
        with suppress(OSError):  # it died: noticed when its answer is waited for
            if self._work:  # not in the constructor: large work waits for the worker to be up, workers start together
                self.connection.send_bytes(self._work)
                self._work = None
            self.connection.send(task)

    def stop(self) -> None:
        """Have it leave its task and end; what it has just finished can still be received."""
        with suppress(OSError):
            self.connection.send(None)

    def death(self) -> str:
        """How it ended."""
        code = self.process.wait()
        with suppress(ValueError):
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"died of signal {-code}"


def serve(descriptor: int) -> None:
    """What a worker process does: the tasks it is given, until there are none or its parent is gone."""
    connection, last = Connection(descriptor), 0.0

    def tell(amount: int) -> None:
        nonlocal last
        if connection.poll():  # nothing is sent to a worker at work but that it shall stop
            raise Stopped
        if time.monotonic() - last > _TELL_SECONDS:
            last = time.monotonic()
            try:
                connection.send(("begun", amount))
            except OSError:
                raise Stopped from None

    with suppress(EOFError, OSError, Stopped), ExitStack() as limits:  # the parent is gone, or wants no more
        sent, work = connection.recv_bytes(), None
        keep_memory()
        while (task := connection.recv()) is not None:
            try:
                if work is None:
                    work = pickle.loads(sent)
                    limits.enter_context(one_thread())  # of the libraries that the work has brought in
                answer: tuple[str, object] = "finished", work(task, tell)
            except Stopped:
                raise
            except CalogenError as error:
                answer = "failed", error
            except BaseException:
                answer = "failed", traceback.format_exc()
            connection.send(answer)
