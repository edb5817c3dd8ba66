"""Production: a folder of shards made in parallel, atomic, resumable, verifiable; of generated and simulated samples.

A maker computes samples of any range of indices; a production cuts the indices into shards, has worker processes make
them, and keeps the folder's manifest. Whatever stops it, the same command finishes what is missing. Several parts of
one production may share a folder, each with its own range, lock and manifest.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .errors import CalogenError, ConfigError, Interrupted, ProductionError, ShardError, StorageError
from .hdf5 import require_writable
from .parts import Part
from .shardfiles import MANIFEST, ShardRecord, WrittenLayout, read_part, write_manifest
from .workers import PROGRESS_SECONDS, Job, Maker, Stopped, Task, Worker, keep_memory, make, one_thread

MOST_SAMPLES = 10**12

_STOP_SECONDS = 8.0  # that workers have to leave a shard before they are killed
_LOCK_SECONDS = 2.0  # that workers of a killed production have to let go of the folder
_MANIFEST_SHARDS = 1000  # a manifest of more is not rewritten after every shard
_ATTEMPTS = 2
_FILE_BYTES = 5000  # of a shard besides its samples


@dataclass(frozen=True)
class Plan:
    """What a production is to make.

    Attributes:
        maker: Makes the samples.
        total: Samples of all parts.
        shard_samples: Samples in a shard, at most.
        part: Which part of the production this is.
        layout: Of the files.
        threads: Compress in so many threads beside the maker; for makers on a GPU.
    """

    maker: Maker
    total: int
    shard_samples: int
    part: Part = field(default_factory=Part)
    layout: WrittenLayout = "native"
    threads: int = 0

    def provenance(self) -> dict[str, Any]:
        """What goes into the manifest and every shard; a folder may be continued only by the same."""
        facts = {"total": self.total, "parts": self.part.count, "shard_samples": self.shard_samples}
        described = {**self.maker.describe(), "production": {**facts, "layout": self.layout}}
        return dict(json.loads(json.dumps(described)))  # as it will be read back

    @property
    def samples(self) -> int:
        """Samples of this part."""
        start, stop = self.part.bounds(self.total)
        return stop - start

    def shards(self) -> list[ShardRecord]:
        """The files to be made, with no bytes yet."""
        start, stop = self.part.bounds(self.total)
        firsts = range(start, stop, self.shard_samples)
        return [
            ShardRecord(f"shard{self.part.suffix}-{k:06d}.h5", min(self.shard_samples, stop - first), first, "", 0)
            for k, first in enumerate(firsts)
        ]


@dataclass(frozen=True)
class Estimate:
    """What a production will make.

    Attributes:
        samples: How many, of this part.
        shards: Files.
        raw_bytes: Bytes before compression.
        bytes: About how many the files will take.
        free_bytes: What the file system has for them, with what earlier calls left of them.
    """

    samples: int
    shards: int
    raw_bytes: int
    bytes: int
    free_bytes: int


def room(plan: Plan, out: Path, sample_bytes: float | None = None) -> Estimate:
    """What a production needs of a disk, and what there is.

    Args:
        plan: What is to be made.
        out: The folder; may be absent.
        sample_bytes: About what a sample takes, compressed (default: as it is in memory).
    """
    family, samples, shards = plan.maker.family, plan.samples, -(-plan.samples // plan.shard_samples)
    raw = samples * 4 * (family.voxels + len(family.conditions))
    taken = raw if sample_bytes is None else int(samples * sample_bytes)
    where = out.absolute()
    while not where.exists():
        where = where.parent
    there = sum(file.stat().st_size for file in out.glob("shard*.h5")) if out.is_dir() else 0
    free = shutil.disk_usage(where).free
    return Estimate(samples, shards, raw, taken + _FILE_BYTES * shards, free + there)


def require_room(estimate: Estimate, out: Path) -> None:
    """Refuse what the disk cannot hold.

    Raises:
        StorageError: If it cannot.
    """
    if estimate.bytes > estimate.free_bytes:
        raise StorageError(
            "the samples will not fit on the disk",
            where=out,
            expected=f"about {estimate.bytes / 1e9:.3g} GB of space",
            found=f"{estimate.free_bytes / 1e9:.3g} GB free",
            hint="make fewer, or parts on other disks",
        )


def shard_times(out: Path) -> dict[str, int]:
    """When each shard of a folder was written: a production that had nothing left to make changes none."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard*.h5")} if out.is_dir() else {}


Progress = Callable[[int, int], None]


def produce(
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    isolate: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], int] | None = None,
) -> Path:
    """Make, or finish, a folder of shards.

    Args:
        plan: What is to be made.
        out: The folder; absent, empty, or an earlier, unfinished or damaged production of the same plan.
        workers: Processes, one shard at a time each. One means this process itself.
        isolate: Use a worker process even for one: the maker may bring its process down.
        progress: Called with samples done and samples in all, of this part.
        should_stop: Asked several times a second; a signal number stops the work within seconds.

    Returns:
        The folder.

    Raises:
        ConfigError: If the folder holds something else, or another production, or is being written.
        StorageError: If the file system refuses.
        ProductionError: If a worker died twice over a shard.
        Interrupted: If ``should_stop`` asked for it; finished shards stay.
    """
    out = Path(out)
    check_folder(plan, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the output folder: {error.strerror}", where=out) from None
    should_stop = should_stop or (lambda: 0)
    with _locked(out / f".lock{plan.part.suffix}", out) as lock:
        ledger = _Ledger(plan, out, progress)
        job = Job(plan.maker, out, ledger.provenance, plan.layout)
        for leftover in out.glob(f"shard{plan.part.suffix}-[0-9]*.h5.part"):
            leftover.unlink(missing_ok=True)
        count = min(workers, len(ledger.tasks))
        try:
            if count > 1 or (isolate and count):
                _Pool(job, ledger, should_stop, lock).run(count)
            else:
                _alone(job, ledger, should_stop, plan.threads)
        except BaseException:
            with suppress(StorageError):  # what is finished is known, if there is space for it
                ledger.write()
            raise
        ledger.write()
    return out


def check_folder(plan: Plan, out: Path) -> None:
    """Refuse a folder that the plan may not write into.

    Raises:
        ConfigError: If it holds something else than this production.
        StorageError: If it could not be written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError("the output folder is not empty", where=out, found="a file", hint="choose another --out")
    mine = plan.provenance()
    manifests = sorted(out.glob("manifest*.json"))
    strangers = [p.name for p in out.iterdir() if not _FILES.fullmatch(p.name)] if out.is_dir() else []
    if not manifests and out.is_dir():
        strangers += [p.name for p in out.glob("*.h5")]
    if strangers:
        raise ConfigError(
            "the output folder is not empty",
            where=out,
            found=", ".join(sorted(strangers)[:4]),
            hint="choose another --out, or that of an unfinished production of the same samples",
        )
    for path in manifests:
        _require_same(mine, read_part(path).provenance[0], path)  # a damaged one says nothing: it is refused
    require_writable(out)


_FILES = re.compile(r"\.lock.*|manifest.*\.json(\.part)?|shard-[0-9of-]*\.h5(\.part)?")


def _manifest_name(part: Part) -> str:
    return f"manifest{part.suffix}.json" if part.count > 1 else MANIFEST


def _require_same(mine: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
    loose = {"versions", "history", "network", "objective", "parameters"}  # the checkpoint's digest says it all
    keys = sorted((mine.keys() | theirs.keys()) - loose)
    different = next((key for key in keys if mine.get(key) != theirs.get(key)), None)
    if different is None:
        return
    ours, other = mine.get(different), theirs.get(different)
    if different == "production" and isinstance(ours, dict) and isinstance(other, dict):
        begun = [str(_OPTIONS.get(key, key)).format(value) for key, value in other.items() if ours.get(key) != value]
        raise ConfigError(
            "the output folder was begun with other options",
            where=path,
            expected=", ".join(begun),
            hint="repeat them to finish it, or choose another --out",
        )
    if isinstance(ours, dict) and isinstance(other, dict):
        ours, other = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((ours, other), (other, ours)))
    raise ConfigError(
        f"the output folder holds another production: its {different.replace('_', ' ')} differs",
        where=path,
        expected=f"{str(other)[:200]} (what is there)",
        found=f"{str(ours)[:200]} (what is asked for)",
        hint="choose another --out, or repeat the command that began this one",
    )


_OPTIONS = {
    "total": "{} samples (-n)",
    "parts": "--part i/{}",
    "shard_samples": "--shard-size {}",
    "layout": "--format {}",
}


def begun_with(out: Path, total: int, part: Part) -> int | None:
    """Samples in a shard of what is in a folder already, if it is of as many samples and parts."""
    for path in sorted(out.glob("manifest*.json")) if out.is_dir() else []:
        with suppress(ShardError):
            facts = read_part(path).provenance[0].get("production")
            if isinstance(facts, dict) and (facts.get("total"), facts.get("parts")) == (total, part.count):
                size = facts.get("shard_samples")
                return size if isinstance(size, int) and size > 0 else None
    return None


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[int]:
    """Hold a lock file, as a descriptor; the kernel lets go of it when all who have that end, however they end."""
    limit = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise StorageError(f"cannot write the output folder: {error.strerror}", where=out) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
                break
            os.close(handle)
            if time.monotonic() < limit:
                time.sleep(0.1)
                continue
            raise ConfigError(
                "the output folder is being written by another process",
                where=path,
                hint="wait for it, or give each process its own --part",
            ) from None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # its last holder removed the file just before we locked it
    try:
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


class _Ledger:
    """What is done and what is to do; keeps the manifest."""

    def __init__(self, plan: Plan, out: Path, progress: Progress | None) -> None:
        self._out, self._name, self._progress = out, _manifest_name(plan.part), progress
        self.provenance = plan.provenance()
        shards = plan.shards()
        self.total = sum(shard.samples for shard in shards)
        known = {record.name: record for record in self._known()}
        # A shard the manifest knows is checked before it is believed.
        self.tasks = deque(Task(shard, known.get(shard.name)) for shard in shards)
        self.records: dict[str, ShardRecord] = {t.shard.name: t.known for t in self.tasks if t.known}
        self._under_way: dict[str, int] = {}
        self._done = 0
        self._written, self._cost = 0.0, 0.0
        self.write()

    def _known(self) -> Sequence[ShardRecord]:
        path = self._out / self._name
        try:
            return read_part(path).records if path.exists() else ()
        except ShardError:
            return ()

    def begun(self, name: str, samples: int) -> None:
        """So many samples of a shard are made."""
        self._under_way[name] = samples
        if self._progress:
            self._progress(self._done + sum(self._under_way.values()), self.total)

    def finished(self, record: ShardRecord) -> None:
        """A shard is on the disk."""
        self._under_way.pop(record.name, None)
        self._done += record.samples
        changed = self.records.get(record.name) != record
        if changed:  # a shard that was repaired keeps its record, with the time that it first took
            self.records[record.name] = record
        now = time.monotonic()
        if changed and (len(self.records) <= _MANIFEST_SHARDS or now - self._written > 20 * self._cost):
            self.write()
        if self._progress:
            self._progress(self._done + sum(self._under_way.values()), self.total)

    def write(self) -> None:
        """Write the manifest."""
        begun = time.monotonic()
        records = sorted(self.records.values(), key=lambda record: record.index_start)
        write_manifest(self._out, records, provenance=self.provenance, name=self._name, planned=self.total)
        self._written = time.monotonic()
        self._cost = self._written - begun

    def interrupted(self, signal_number: int) -> Interrupted:
        """The error for a stop that was asked for."""
        done = sum(record.samples for record in self.records.values())
        return Interrupted(
            f"stopped by signal {signal_number} after {done} of {self.total} samples",
            signal_number=signal_number,
            hint="the finished shards are complete; the same command again makes the rest",
        )


def _alone(job: Job, ledger: _Ledger, should_stop: Callable[[], int], threads: int) -> None:
    """Make all shards in this process."""

    def tell(done: int) -> None:
        ledger.begun(task.shard.name, done)
        if done < task.shard.samples and should_stop():
            raise Stopped

    keep_memory()
    pool = ThreadPoolExecutor(threads) if threads else None
    try:
        with one_thread():
            while ledger.tasks:
                task = ledger.tasks.popleft()
                try:
                    ledger.finished(make(job, task, tell, pool))
                except Stopped:
                    raise ledger.interrupted(should_stop()) from None
                if ledger.tasks and should_stop():
                    raise ledger.interrupted(should_stop())
    finally:
        if pool:
            pool.shutdown()


class _Pool:
    """Worker processes and who makes what."""

    def __init__(self, job: Job, ledger: _Ledger, should_stop: Callable[[], int], lock: int) -> None:
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
