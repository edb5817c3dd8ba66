"""A production is run: a folder of shards made in parallel, atomic, resumable, verifiable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import ProductionError, StorageError
from ..shards.manifest import ShardRecord
from ..storage import locked
from .ledger import Ledger, check_folder
from .maker import Job
from .plan import Production, Progress, require_room
from .pool import Pool, Stopped, TaskError, in_turn


def produce(
    production: Production,
    out: Path,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    should_stop: Callable[[], int] | None = None,
) -> Path:
    """Make, or finish, a folder of shards.

    Args:
        production: What is to be made.
        out: The folder; absent, empty, or an earlier, unfinished or damaged run of the same production.
        workers: Processes, one shard at a time each. One means this process itself.
        progress: Called with samples done and samples in all, of this part.
        should_stop: Asked several times a second; a signal number stops the work within seconds.

    Returns:
        The folder.

    Raises:
        ConfigError: If the folder holds something else, or another production, or is being written.
        StorageError: If the disk cannot hold the samples, or the file system refuses.
        ProductionError: If a worker died twice over a shard.
        Interrupted: If ``should_stop`` asked for it; finished shards stay.
    """
    out = Path(out)
    check_folder(production, out)
    require_room(production, out)
    with locked(out / f".lock{production.part.suffix}") as lock:
        ledger = Ledger(production, out, progress, should_stop)
        threads = workers if production.threaded else 0
        job = Job(production.maker, out, ledger.provenance, production.layout, threads)
        count = 1 if production.threaded else min(workers, len(ledger.shards))
        try:
            if count > 1 or (production.isolated and count):
                # Workers hold the lock, too: nobody writes the folder before the last one of a killed parent has left.
                Pool(job, ledger, held=[lock]).run(ledger.shards, count)
            else:
                in_turn(job, ledger.shards, ledger)
        except BaseException as error:
            with suppress(StorageError):  # what is finished is known, if there is space for it
                ledger.write()
            if isinstance(error, Stopped):
                raise ledger.interrupted() from None
            raise _explained(error, out) if isinstance(error, TaskError) else error from None
        finally:
            ledger.clear()
        ledger.write()
    return out


def _explained(error: TaskError, out: Path) -> ProductionError:
    shard: ShardRecord = error.task
    where = out / shard.name
    if not error.dead:
        return ProductionError("a worker failed", where=where, found=error.why)
    return ProductionError(
        f"a worker {error.why}, twice over the same shard",
        where=where,
        found=f"samples {shard.index_start} to {shard.index_start + shard.samples - 1}",
        hint="out of memory? fewer `workers` or a smaller `shard_size`; the same command again makes the rest",
    )
