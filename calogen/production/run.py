"""A production is run: a folder of shards made in parallel, atomic, resumable, verifiable."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from ..errors import ProductionError, StorageError
from .ledger import Ledger, check_folder, locked
from .maker import Job, ShardTask
from .plan import Production, Progress
from .pool import Pool, Stopped, TaskError, in_turn


def produce(
    production: Production,
    out: Path,
    *,
    workers: int = 1,
    isolate: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], int] | None = None,
) -> Path:
    """Make, or finish, a folder of shards.

    Args:
        production: What is to be made.
        out: The folder; absent, empty, or an earlier, unfinished or damaged run of the same production.
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
    out, part, should_stop = Path(out), production.part, should_stop or (lambda: 0)
    check_folder(production, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the output folder: {error.strerror}", where=out) from None
    with locked(out / f".lock{part.suffix}", out) as lock, ExitStack() as at_the_end:
        ledger = Ledger(production, out, progress)
        job = Job(production.maker, out, ledger.provenance, production.layout)
        clear = functools.partial(_clear, out, f"shard{part.suffix}-[0-9]*.h5.part")
        clear()
        at_the_end.callback(clear)  # a worker that was killed leaves a file behind

        def told(task: ShardTask, samples: int) -> None:
            ledger.begun(task, samples)
            if samples < task.shard.samples and (number := should_stop()):
                raise Stopped(number)

        count = min(workers, len(ledger.tasks))
        try:
            if count > 1 or (isolate and count):
                # Workers hold the lock, too: nobody writes the folder before the last one of a killed parent has left.
                Pool(job, told, ledger.finished, should_stop, held=[lock]).run(ledger.tasks, count)
            else:
                if production.threads:
                    job = replace(job, threads=at_the_end.enter_context(ThreadPoolExecutor(production.threads)))
                in_turn(job, told, ledger.finished, should_stop, ledger.tasks)
        except BaseException as error:
            with suppress(StorageError):  # what is finished is known, if there is space for it
                ledger.write()
            if isinstance(error, Stopped):
                raise ledger.interrupted(error.number) from None
            if isinstance(error, TaskError):
                raise _explained(error, out) from None
            raise
        ledger.write()
    return out


def _clear(out: Path, leftovers: str) -> None:
    for path in out.glob(leftovers):
        path.unlink(missing_ok=True)


def _explained(error: TaskError, out: Path) -> ProductionError:
    task: ShardTask = error.task
    shard, where = task.shard, out / task.shard.name
    if not error.dead:
        return ProductionError("a worker failed", where=where, found=error.why)
    return ProductionError(
        f"a worker {error.why}, twice over the same shard",
        where=where,
        found=f"samples {shard.index_start} to {shard.index_start + shard.samples - 1}",
        hint="out of memory? fewer `workers` or a smaller `shard_size`; the same call again makes the rest",
    )
