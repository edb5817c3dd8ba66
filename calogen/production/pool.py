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
from typing import Any, Generic, TypeVar

from ..cores import SINGLE_THREAD, keep_memory, one_thread
from ..errors import CalogenError

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[[int], None]
"""Tells how far a task is; may raise :class:`Stopped` to have it given up."""

_TELL_SECONDS = 0.1
_STOP_SECONDS = 8.0  # that workers have to leave a task before they are killed
_ATTEMPTS = 2


class Stopped(Exception):
    """Tasks were given up because the signal ``number`` asked for it."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.number = number


class TaskError(Exception):
    """A task could not be done: ``why`` is the traceback of its work, or how its ``dead`` worker ended."""

    def __init__(self, task: Any, why: str, *, dead: bool) -> None:
        super().__init__(why)
        self.task, self.why, self.dead = task, why, dead


class Pool(Generic[Task, Result]):
    """Worker processes and who does what.

    Args:
        work: Does a task; can be pickled, and is sent to every worker once.
        told: Called with a task and how far it is, 0 when its worker died; may raise :class:`Stopped`.
        done: Called with a task and its result.
        should_stop: Asked all the time; a signal number stops the work.
        held: Descriptors that workers hold open, too.
    """

    def __init__(
        self,
        work: Callable[[Task, Tell], Result],
        told: Callable[[Task, int], None],
        done: Callable[[Task, Result], None],
        should_stop: Callable[[], int],
        held: Sequence[int] = (),
    ) -> None:
        self._work, self._told, self._done, self._should_stop, self._held = work, told, done, should_stop, held
        self._tasks: deque[tuple[Task, int]] = deque()
        self._workers: list[_Worker] = []

    def run(self, tasks: Iterable[Task], count: int) -> None:
        """Do all tasks with ``count`` workers.

        Raises:
            Stopped: If ``should_stop`` asked for it; what was being finished is done.
            TaskError: If a task failed, or two workers died over it.
            CalogenError: If a task raised it.
        """
        self._tasks.extend((task, 0) for task in tasks)
        try:
            for worker in [self._start() for _ in range(count)]:
                self._next(worker)
            while any(worker.task for worker in self._workers):
                self._listen()
                number = self._should_stop()
                if number and any(worker.task for worker in self._workers):
                    raise Stopped(number)
        finally:
            self._end()

    def _start(self) -> _Worker:
        self._workers.append(_Worker(self._work, self._held))
        return self._workers[-1]

    def _next(self, worker: _Worker) -> None:
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
            task = worker.task[0] if worker.task else None
            if kind == "told":
                self._told(task, message)
            elif kind == "done":
                self._done(task, message)
                self._next(worker)
            else:
                raise message if isinstance(message, CalogenError) else TaskError(task, message, dead=False)

    def _died(self, worker: _Worker) -> None:
        """Give the task of a dead worker to a new one, once."""
        self._workers.remove(worker)
        worker.connection.close()
        end = worker.death()
        if worker.task:
            task, attempts = worker.task
            self._told(task, 0)
            if attempts + 1 == _ATTEMPTS:
                raise TaskError(task, end, dead=True)
            self._tasks.appendleft((task, attempts + 1))
            self._next(self._start())

    def _end(self) -> None:
        """Let workers leave their tasks, keep what they had just finished; kill those that take too long."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop()
        limit, finished = time.monotonic() + _STOP_SECONDS, []
        for worker in workers:
            with suppress(EOFError, OSError):
                while worker.connection.poll(max(0.0, limit - time.monotonic())):
                    kind, message = worker.connection.recv()
                    if kind == "done" and worker.task:
                        finished.append((worker.task[0], message))
            worker.connection.close()
            try:
                worker.process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for task, message in finished:
            self._done(task, message)


def in_turn(
    work: Callable[[Task, Tell], Result],
    told: Callable[[Task, int], None],
    done: Callable[[Task, Result], None],
    should_stop: Callable[[], int],
    tasks: Sequence[Task],
) -> None:
    """Do all tasks in this process; arguments as of :class:`Pool`.

    Raises:
        Stopped: If ``told`` raised it, or ``should_stop`` asked for it between two tasks.
    """
    keep_memory()
    with one_thread():
        for place, task in enumerate(tasks, start=1):
            done(task, work(task, functools.partial(told, task)))
            if place < len(tasks) and (number := should_stop()):
                raise Stopped(number)


_SERVE = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the parent decides
import sys, calogen.production.pool
calogen.production.pool.serve(int(sys.argv[1]))
"""


class _Worker:
    """A worker process and the task it is at, with the workers that died over it."""

    def __init__(self, work: Callable[..., Any], held: Sequence[int]) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, **SINGLE_THREAD}
        environment["PYTHONPATH"] = os.pathsep.join(
            path or str(Path.cwd()) for path in sys.path
        )  # what this one imports
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *held],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.task: tuple[Any, int] | None = None
        self._work: Callable[..., Any] | None = work

    def give(self, task: tuple[Any, int] | None) -> None:
        """Hand over a task, the first with the work; nothing ends the worker."""
        self.task = task
        with suppress(OSError):  # it died: noticed when its answer is waited for
            if self._work:  # not in the constructor: large work waits for the worker to be up, workers start together
                self.connection.send_bytes(pickle.dumps(self._work))  # not send: torch would share memory, not copy it
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
    connection = Connection(descriptor)
    with suppress(EOFError, OSError, Stopped), ExitStack() as limits:  # the parent is gone, or wants no more
        sent, work = connection.recv_bytes(), None
        keep_memory()
        while (task := connection.recv()) is not None:
            try:
                if work is None:
                    work = pickle.loads(sent)
                    limits.enter_context(one_thread())  # of the libraries that the work has brought in
                answer: tuple[str, object] = "done", work(task[0], _Teller(connection))
            except Stopped:
                raise
            except CalogenError as error:
                answer = "failed", error
            except BaseException:
                answer = "failed", traceback.format_exc()
            connection.send(answer)


class _Teller:
    """Tells the parent how far a task is; gives up when the parent says so or is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._last = connection, 0.0

    def __call__(self, amount: int) -> None:
        if self._connection.poll():  # nothing is sent to a worker at work but that it shall stop
            raise Stopped
        now = time.monotonic()
        if now - self._last > _TELL_SECONDS:
            self._last = now
            try:
                self._connection.send(("told", amount))
            except OSError:
                raise Stopped from None
