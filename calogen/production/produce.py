"""Production: a folder of shards made in parallel, atomic, resumable, verifiable."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..cores import keep_memory, one_thread
from ..errors import StorageError
from .ledger import Ledger, check_folder, locked
from .maker import Job, Stopped, make
from .plan import Plan, Progress
from .pool import Pool


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
    with locked(out / f".lock{plan.part.suffix}", out) as lock:
        ledger = Ledger(plan, out, progress)
        job = Job(plan.maker, out, ledger.provenance, plan.layout)
        for leftover in out.glob(f"shard{plan.part.suffix}-[0-9]*.h5.part"):
            leftover.unlink(missing_ok=True)
        count = min(workers, len(ledger.tasks))
        try:
            if count > 1 or (isolate and count):
                Pool(job, ledger, should_stop, lock).run(count)
            else:
                _alone(job, ledger, should_stop, plan.threads)
        except BaseException:
            with suppress(StorageError):  # what is finished is known, if there is space for it
                ledger.write()
            raise
        ledger.write()
    return out


def _alone(job: Job, ledger: Ledger, should_stop: Callable[[], int], threads: int) -> None:
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
