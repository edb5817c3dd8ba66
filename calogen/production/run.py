"""A production is run: a folder of shards made in parallel, atomic, resumable, verifiable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from ..cores import sensible_number
from ..errors import ConfigError, ProductionError, StorageError
from ..shards.manifest import ShardRecord
from ..storage import locked, tidied
from .dask import connected
from .ledger import Ledger, check_folder
from .maker import Job
from .plan import Production, Progress, require_room
from .pool import Pool, Stopped, TaskError, in_turn


def sensible_workers(workers: int | None, cluster: str | Path | None) -> int:
    """How many processes of this machine to use, where that is left open.

    Raises:
        ConfigError: If they would do little but wait for each other, or there is a cluster, too.
    """
    if cluster is None:
        return sensible_number(workers, "`workers`")
    if workers is not None:
        raise ConfigError(
            "`workers` are processes of this machine; those of `cluster` are its own", hint="give one of them"
        )
    return 1


def produce(
    production: Production,
    out: Path,
    *,
    workers: int = 1,
    cluster: str | Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], int] | None = None,
) -> Path:
    """Make, or finish, a folder of shards.

    Args:
        production: What is to be made.
        out: The folder; absent, empty, or an earlier, unfinished or damaged run of the same production.
        workers: Processes, one shard at a time each. One means this process itself.
        cluster: Instead of them a dask cluster: the address of its scheduler, or its scheduler file. All its workers
            must see the folder.
        progress: Called with samples done and samples in all, of this part.
        should_stop: Asked several times a second; a signal number stops the work within seconds.

    Returns:
        The folder.

    Raises:
        ConfigError: If the folder holds something else, or another production, or is being written; if the cluster
            cannot be used.
        StorageError: If the disk cannot hold the samples, or the file system refuses.
        ProductionError: If a worker died twice over a shard, or the cluster's scheduler is gone.
        Interrupted: If ``should_stop`` asked for it; finished shards stay.
    """
    out = Path(out)
    check_folder(production, out)
    require_room(production, out)
    suffix = production.part.suffix
    with ExitStack() as stack:
        stack.enter_context(tidied(out))
        dask = stack.enter_context(connected(cluster)) if cluster is not None else None
        lock = stack.enter_context(locked(out / f".lock{suffix}"))
        stack.callback(_recall, out, suffix)
        _recall(out, suffix)
        provenance, threads = production.provenance(), workers if production.threaded and not dask else 0
        job = Job(production.maker, out.absolute(), provenance, production.layout, threads)
        if dask:  # before anything is written
            dask.prepare(job, out, f".lock{suffix}")
        ledger = Ledger(production, out, progress, should_stop)
        count = 1 if production.threaded else min(workers, len(ledger.shards))
        try:
            if dask:
                dask.run(ledger.shards, ledger)
            elif count > 1 or (production.isolated and count):
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


def _recall(out: Path, suffix: str) -> None:
    """Have workers of a cluster leave the shards that they make for a client that is gone."""
    for order in out.glob(f".lock{suffix}.*"):
        order.unlink(missing_ok=True)


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
