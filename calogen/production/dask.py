"""Tasks on a cluster of dask.distributed: tasks in, results out, as with the processes of a pool.

Every thread of a dask worker has a process of its own to do tasks in, as the pool's workers are. So threads of one
worker do not wait for each other, a simulator that brings its process down takes no dask worker along, and numerical
libraries have one thread, whatever else the dask worker does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import pickle
import queue
import secrets
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import CalogenError, ConfigError, ProductionError, StorageError, require
from ..storage import read_bounded, write_atomic
from .pool import TaskError, Watch, Worker

_CONNECT_SECONDS = 10.0  # that a scheduler has to answer
_LISTEN_SECONDS = 0.1
_TELL_SECONDS = 1.0  # between two words from a shard that is being made: thousands may be
_GATHER_SECONDS, _GATHERED = 10.0, 32  # that results have to arrive, and how many are asked for at a time
_STOP_SECONDS = 8.0  # that workers have to leave their shards
_IDLE_SECONDS = 20.0  # after which a process without a task ends
_FEWEST_AHEAD = 1000  # tasks that the scheduler knows at a time, at least
_TRIES = 2  # of a shard
_CHECK = "check"
_LOGGERS = ("distributed", "distributed.client", "tornado.application")


class Task(Protocol):
    """Something to be done; can be pickled."""

    @property
    def name(self) -> str:
        """What it is called; no two tasks of one work have the same name."""

    @property
    def samples(self) -> int:
        """How far it is when it is done."""


class Work(Protocol):
    """Does tasks; can be pickled."""

    def __call__(self, task: Any, tell: Callable[[int], None], /) -> Any:
        """Do a task and return its result, which is not None; calls ``tell``, which may raise, with how far it is."""

    def require_ready(self) -> None:
        """Refuse a process in which results would be others.

        Raises:
            ConfigError: If this is one.
        """


Outcome = tuple[str, Any, str]
"""What became of a task, with details, and the dask worker it was on: ``finished`` with its result, ``failed`` with an
error or traceback, ``died`` with how its process ended, ``unseen`` where the file with the order cannot be read (or no
more, as all work stops), ``absent`` where calogen cannot be imported."""


# ------------------------------------------------------------------------------------------------- where the client is


@contextmanager
def connected(where: str | Path) -> Iterator[Cluster]:
    """A dask cluster that is running.

    Args:
        where: Its scheduler's address, ``tcp://host:8786``, or the scheduler file.

    Raises:
        ConfigError: If there is no such scheduler, or dask is missing or of another version than there.
    """
    distributed, address = require("distributed", "cluster"), _address(where)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # what matters of it is said by errors
        logger.setLevel(logging.CRITICAL + 1)
    client = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions that differ are refused below, where they matter
            try:
                # First without a client: one that finds nobody takes long to give up.
                kind = _identity(distributed, address)
                if kind != "Scheduler":
                    raise ConfigError("this is not the address of a dask scheduler", where=address, found=kind)
                client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False, name="calogen")
                _require_same_dask(client, address)
            except CalogenError:
                raise
            except Exception as error:
                silent = isinstance(error, TimeoutError | OSError)
                raise ConfigError(
                    f"no dask scheduler answers within {_CONNECT_SECONDS:.0f} seconds"
                    if silent
                    else "this is not a dask scheduler that can be used",
                    where=address,
                    found=None if silent else f"{type(error).__name__}: {error}"[:200],
                    hint="start one with `dask scheduler`, or give the address that it prints",
                ) from None
        yield Cluster(client, address)
    finally:
        if client is not None:
            with suppress(Exception):  # its scheduler may be gone
                client.close(timeout=_STOP_SECONDS if client.status == "running" else 1)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _address(where: str | Path) -> str:
    if "://" in str(where):
        return str(where)
    try:
        address = json.loads(read_bounded(Path(where)))["address"]
        if not isinstance(address, str):
            raise TypeError
    except OSError as error:
        expected = "tcp://host:8786, or the file that `dask scheduler --scheduler-file FILE` wrote"
        raise ConfigError("no such cluster", where=where, expected=expected, found=error.strerror) from None
    except (ValueError, KeyError, TypeError):
        expected = "JSON with the `address` of a scheduler"
        raise ConfigError("this is not the scheduler file of a dask cluster", where=where, expected=expected) from None
    return address


def _identity(distributed: Any, address: str) -> str:
    """What kind of server answers at an address."""

    async def asked() -> str:
        server = distributed.rpc(address, timeout=_CONNECT_SECONDS)
        try:
            return str((await asyncio.wait_for(server.identity(), _CONNECT_SECONDS)).get("type"))
        finally:
            await server.close_rpc()

    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop already, as in a notebook
        return thread.submit(asyncio.run, asked()).result()


def _require_same_dask(client: Any, address: str) -> None:
    """Refuse a scheduler or workers that could not understand what they are sent."""
    found = client.get_versions()
    there = {f"the scheduler, {address}": found["scheduler"]} | {
        f"the dask worker {name}": versions for name, versions in found["workers"].items()
    }

    def relevant(versions: Any) -> str:
        python = ".".join(versions["host"]["python"].split(".")[:2])
        return f"Python {python}, distributed {versions['packages']['distributed']}"

    mine = relevant(found["client"])
    for name, versions in there.items():
        if relevant(versions) != mine:
            raise ConfigError(
                "the cluster runs other versions than this process",
                where=name,
                expected=mine,
                found=relevant(versions),
                hint="start scheduler and workers from the environment of this command",
            )


class Cluster:
    """Workers of a dask cluster that do tasks, one a thread.

    Args:
        client: Is connected.
        address: Of the scheduler, for messages.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._run = secrets.token_hex(4)
        self._order, self._digest = Path(), ""
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._under_way: dict[str, tuple[Any, Task]] = {}  # futures and tasks by key
        self._again: list[Any] = []  # futures that had ended, and whose results are still to come
        self._tries: Counter[str] = Counter()

    def prepare(self, work: Work, out: Path, prefix: str) -> None:
        """Hand the work to every worker that is there, in a file in the output folder, and have them try it.

        Workers that come later read it, too. They work as long as the file is there.

        Args:
            work: Can be pickled.
            out: The output folder, which all workers must see.
            prefix: Of the file's name.

        Raises:
            ConfigError: If a worker does not see the folder, lacks calogen, or has other versions.
            StorageError: If the folder cannot be written.
            ProductionError: If a worker cannot load the work.
        """
        self._order = out.absolute() / f"{prefix}.{self._run}"  # a new name: no file system remembers its absence
        sent = pickle.dumps(Errand(work, self._order))
        self._digest = hashlib.sha256(sent).hexdigest()
        write_atomic(self._order, sent)
        try:
            self._try_everywhere()
        except BaseException:
            self._order.unlink(missing_ok=True)
            raise

    def _try_everywhere(self) -> None:
        with self._listening():
            answers = self._client.run(_ready_by_value(), str(self._order), self._digest, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, OSError):  # that worker has just died
                continue
            if isinstance(answer, BaseException):
                answer = "failed", f"{type(answer).__name__}: {answer}", address
            if refusal := self._refusal(*answer):
                raise refusal
            if answer[0] == "failed":
                raise ProductionError("a worker failed", where=f"dask worker {address}", found=answer[1])

    def run(self, tasks: Sequence[Task], watch: Watch) -> None:
        """Do all tasks.

        Args:
            tasks: In any number; so many at a time are handed over that no worker waits.
            watch: Follows them.

        Raises:
            TaskError: If a task failed, or died, on two workers.
            ConfigError: If a worker that came later is none that can be used.
            CalogenError: If a task raised it.
            ProductionError: If the scheduler is gone.
        """
        waiting = deque(tasks)
        try:
            with self._listening():
                threads = sum(self._client.nthreads().values())
                self._client.subscribe_topic(self._topic, lambda event: self._heard.put(event[1]))
            ahead = max(_FEWEST_AHEAD, 4 * threads)
            while waiting or self._under_way:
                if len(self._under_way) <= ahead // 2:
                    self._submit([waiting.popleft() for _ in range(min(len(waiting), ahead - len(self._under_way)))])
                for task, (kind, message, address) in self._hear():
                    if kind == "begun":
                        watch.begun(task, message)
                    elif kind == "finished":
                        watch.finished(task, message)
                    else:
                        watch.begun(task, 0)
                        self._once_more(task, kind, message, address)
                watch.stop_if_asked()
        finally:
            self._end(watch)

    def _end(self, watch: Watch) -> None:
        """Have workers leave their tasks, and keep what they had just finished."""
        self._order.unlink(missing_ok=True)
        limit = time.monotonic() + _STOP_SECONDS
        try:
            with suppress(ProductionError):  # without a scheduler there is nothing to wait for
                while self._under_way and time.monotonic() < limit:
                    for task, (kind, message, _) in self._hear():
                        if kind == "finished":
                            watch.finished(task, message)
        finally:
            with suppress(Exception):  # the same
                self._client.cancel([future for future, _ in self._under_way.values()], force=True)
                self._client.unsubscribe_topic(self._topic)
            self._under_way.clear()

    @property
    def _topic(self) -> str:
        return f"calogen-{self._run}"

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Says of a scheduler that is gone what dask says in many ways."""
        try:
            if self._client.status != "running":
                raise OSError
            yield
        except (OSError, RuntimeError, CancelledError) as error:  # the first: closed connections, waits too long
            if isinstance(error, RuntimeError) and self._client.status == "running":
                raise
            hint = "start it and its workers again; the same command makes the rest, with or without a cluster"
            raise ProductionError("the dask scheduler is gone", where=self._address, hint=hint) from None

    def _submit(self, tasks: Sequence[Task], **where: Any) -> None:
        if not tasks:
            return
        keys = [f"calogen-{self._run}-{task.name}-{self._tries[task.name]}" for task in tasks]
        same = [[argument] * len(tasks) for argument in (str(self._order), self._digest, self._topic)]
        with self._listening():
            sent = [pickle.dumps(task) for task in tasks]  # the scheduler needs no calogen
            futures = self._client.map(_do_task_by_value(), *same, sent, key=keys, pure=False, **where)
        for key, future, task in zip(keys, futures, tasks, strict=True):
            self._under_way[key] = future, task
            future.add_done_callback(self._heard.put)

    def _hear(self) -> list[tuple[Task, Outcome]]:
        """What has become of tasks meanwhile; ``begun`` is how far one is."""
        found, done = list[tuple[Task, Outcome]](), list[Any]()
        with suppress(queue.Empty):
            heard = self._heard.get(timeout=_LISTEN_SECONDS)
            while True:
                key, amount = heard if isinstance(heard, list | tuple) else (heard.key, None)
                if key in self._under_way and amount is None:
                    done.append(heard)
                elif key in self._under_way:
                    found.append((self._under_way[key][1], ("begun", amount, "")))
                heard = self._heard.get_nowait()
        done += [future for future in self._again if future.key in self._under_way]
        states = [(future, future.status) for future in done]
        whole = [future for future, state in states if state == "finished"][:_GATHERED]
        with self._listening():
            if any(state == "cancelled" for _, state in states):
                raise OSError
            outcomes = self._outcomes(whole) if whole else {}
        outcomes |= {future.key: _given_up(future) for future, state in states if state == "error"}
        # A result whose worker died before it was asked for is lost: dask has the task done again by itself.
        self._again = [future for future in done if future.key not in outcomes]
        for key, outcome in outcomes.items():
            future, task = self._under_way.pop(key)
            found.append((task, outcome))
            future.release()  # a worker that ends later has nothing to take along
        return found

    def _outcomes(self, whole: Sequence[Any]) -> dict[str, Outcome]:
        """Those of finished tasks by key; none where that takes too long, as a worker has died meanwhile."""

        async def gathered() -> list[Outcome]:
            return list(await self._client.gather(list(whole), asynchronous=True))

        try:
            outcomes = self._client.sync(gathered, callback_timeout=_GATHER_SECONDS)
        except TimeoutError:
            return {}
        return dict(zip((future.key for future in whole), outcomes, strict=True))

    def _once_more(self, task: Task, kind: str, message: Any, address: str) -> None:
        """Have a task that failed done on another worker, once."""
        if refusal := self._refusal(kind, message, address):
            raise refusal
        self._tries[task.name] += 1
        if self._tries[task.name] == _TRIES:
            raise message if isinstance(message, CalogenError) else TaskError(task, message, dead=kind == "died")
        with self._listening():
            others = [other for other in self._client.nthreads() if other != address]
        self._submit([task], **({"workers": others, "allow_other_workers": True} if others else {}))

    def _refusal(self, kind: str, message: Any, address: str) -> CalogenError | None:
        """The error of a worker that cannot be used, or of a task that would fail everywhere."""
        where = f"dask worker {address}"
        if kind == "unseen":
            return ConfigError(
                "a dask worker does not see the output folder",
                where=where,
                expected=f"{self._order.parent} on a file system that this process and all workers share",
                found=message,
                hint="choose an `out` there",
            )
        if kind == "absent":
            return ConfigError(
                "a dask worker has no calogen, or another version",
                where=where,
                found=message,
                hint='pip install "calogen[cluster]" in the environment that `dask worker` runs in',
            )
        if isinstance(message, CalogenError) and not isinstance(message, StorageError):
            message.where = message.where or where
            return message
        return None


def _given_up(future: Any) -> Outcome:
    """Of a task without an outcome: dask gave it up, most likely as several workers in turn had died over it."""
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return "died", "died", str(error.last_worker.address)
    return "failed", f"{type(error).__name__}: {error}", ""


# -------------------------------------------------------------------------------------------------- where workers are


def _ready_by_value() -> Callable[..., Any]:
    """:func:`ready` as it is sent to workers.

    A function inside a function travels as code, others as names: the scheduler needs no calogen, and a worker without
    one can say so.
    """

    async def sent(order: str, digest: str, dask_worker: Any) -> Any:
        import asyncio

        try:
            from calogen.production.dask import ready
        except ImportError as error:
            return "absent", str(error), dask_worker.address
        return await asyncio.to_thread(ready, order, digest, dask_worker.address)

    return sent


def _do_task_by_value() -> Callable[..., Any]:
    """:func:`do_task` as it is sent to workers."""

    def sent(order: str, digest: str, topic: str, task: bytes) -> Any:
        from distributed import get_worker

        try:
            from calogen.production.dask import do_task
        except ImportError as error:
            return "absent", str(error), get_worker().address
        return do_task(get_worker(), order, digest, topic, task)

    return sent


@dataclass(frozen=True)
class Errand:
    """Work as the processes of a cluster do it.

    Attributes:
        work: What to do.
        order: The file that said so: once it is gone, nobody waits for results any more.
    """

    work: Work
    order: Path

    def __call__(self, task: Task | str, tell: Callable[[int], None]) -> Any:
        """Do a task; none if it was given up. Or check that results here are those that the client would get.

        Raises:
            ConfigError: If they are not.
        """
        if isinstance(task, str):
            self.work.require_ready()
            return None
        looked = 0.0

        def look(done: int) -> None:
            nonlocal looked
            if done == task.samples or time.monotonic() - looked > _TELL_SECONDS:
                looked = time.monotonic()
                try:
                    self.order.open("rb").close()  # not exists(): opening asks the server of a network file system
                except FileNotFoundError:
                    raise _GivenUp from None
            tell(done)

        try:
            return self.work(task, look)
        except _GivenUp:
            return None


class _GivenUp(Exception):
    """Nobody waits for a result any more."""


class _Idle:
    """Processes that wait for the next task of their order; after a while they end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, Worker]] = []

    def take(self, order: str) -> Worker | None:
        """One that knows the order, if there is one."""
        with self._lock:
            known = next((entry for entry in self._waiting if entry[0] == order), None)
            if known:
                self._waiting.remove(known)
            return known[1] if known else None

    def keep(self, order: str, process: Worker) -> None:
        """Let one wait."""
        entry = order, process
        with self._lock:
            self._waiting.append(entry)
        timer = threading.Timer(_IDLE_SECONDS, self._end, [entry])
        timer.daemon = True
        timer.start()

    def _end(self, entry: tuple[str, Worker]) -> None:
        with self._lock:
            if entry not in self._waiting:
                return
            self._waiting.remove(entry)
        _dismissed(entry[1])


_IDLE = _Idle()


def _dismissed(process: Worker) -> None:
    process.stop()
    process.connection.close()
    process.process.wait()


def ready(order: str, digest: str, here: str) -> Outcome:
    """On a dask worker: start a process for an order, and see whether it can do its tasks.

    Args:
        order: The file with the work.
        digest: Its SHA-256.
        here: Address of this worker.
    """
    process, outcome = _hired(order, digest, here)
    if process:
        _IDLE.keep(order, process)
    return outcome


def do_task(worker: Any, order: str, digest: str, topic: str, task: bytes) -> Outcome:
    """On a dask worker: have a process do a task.

    Args:
        worker: This dask worker.
        order: The file with the work.
        digest: Its SHA-256.
        topic: Under which to tell how far the task is.
        task: Pickled.
    """
    process, outcome = _hired(order, digest, worker.address)
    if process is None:
        return outcome
    key = str(worker.get_current_task())
    outcome = _done(process, pickle.loads(task), worker.address, lambda amount: worker.log_event(topic, [key, amount]))
    if outcome[0] == "died":
        return outcome
    _IDLE.keep(order, process)
    given_up = outcome[0] == "finished" and outcome[1] is None
    return ("unseen", "the file is gone", worker.address) if given_up else outcome


def _hired(order: str, digest: str, here: str) -> tuple[Worker | None, Outcome]:
    """A process that knows the order; or none, and why."""
    if known := _IDLE.take(order):
        return known, ("finished", None, here)
    try:
        sent = Path(order).read_bytes()
    except OSError as error:
        return None, ("unseen", error.strerror, here)
    if hashlib.sha256(sent).hexdigest() != digest:
        return None, ("unseen", "another file of that name", here)
    process = Worker(sent)
    outcome = _done(process, _CHECK, here)
    if outcome[0] == "failed":
        _dismissed(process)
    return (process if outcome[0] == "finished" else None), outcome


def _done(process: Worker, task: Any, here: str, tell: Callable[[int], None] | None = None) -> Outcome:
    """Have a process do a task."""
    process.give(task)
    told = time.monotonic()
    while True:
        try:
            kind, message = process.connection.recv()
        except (EOFError, OSError):
            process.connection.close()
            return "died", process.death(), here
        if kind != "begun":
            return kind, message, here
        if tell and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            tell(message)
