"""Production on a dask cluster, with a real scheduler and real workers: the same bytes, whoever dies."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calogen.analysis.survey import survey
from calogen.analysis.survey.passes import surveys
from calogen.analysis.survey.plan import plan_comparison
from support import SMALL, Counted, command, everything_in, toy, write_folder

import calogen
from calogen.errors import ConfigError, Interrupted, ProductionError
from calogen.production import dask
from calogen.production.plan import Production
from calogen.production.run import produce
from calogen.shards.inspect import verify
from calogen.shards.manifest import read_manifest
from calogen.shards.sources import open_shards

TOTAL, SHARD = 8_000, 1000
SLOW = Counted(pause=0.01)  # a shard takes 0.16 s


@dataclass
class Dask:
    """A scheduler and workers, each a process.

    Attributes:
        home: Folder that they run in.
        scheduler: The scheduler.
        workers: The workers.
    """

    home: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.home / "scheduler.json"

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def start(self, *options: str, path: list[str] | None = None) -> subprocess.Popen[bytes]:
        """A worker more; ``path`` comes before what it imports from."""
        self.workers.append(_start(self.home, "worker", *options, path=path))
        return self.workers[-1]

    def wait_for(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=120)


def _start(home: Path, what: str, *options: str, path: list[str] | None = None) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "dask", what, "--scheduler-file", str(home / "scheduler.json"), "--no-dashboard"]
    line += ["--port", "0"] if what == "scheduler" else ["--nthreads", "1", "--no-nanny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*(path or []), *sys.path])}
    with (home / f"{what}.log").open("ab") as log:
        return subprocess.Popen([*line, *options], cwd=home, env=environment, stdout=log, stderr=log)


@contextmanager
def dask_cluster(home: Path, workers: int = 2, *options: str) -> Iterator[Dask]:
    home.mkdir(parents=True, exist_ok=True)
    cluster = Dask(home, _start(home, "scheduler"))
    try:
        for _ in range(workers):
            cluster.start(*options)
        limit = time.monotonic() + 120
        while not cluster.file.exists() and time.monotonic() < limit:
            time.sleep(0.05)
        cluster.wait_for(workers)
        yield cluster
    finally:
        for process in [*cluster.workers, cluster.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A scheduler and two workers; leave them as they are."""
    pytest.importorskip("distributed", reason="needs dask.distributed: pip install calogen[cluster]")
    with dask_cluster(tmp_path_factory.mktemp("dask")) as running:
        yield running


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.h5"))}


def whole(folder: Path, total: int = TOTAL, shard: int = SHARD) -> None:
    """The folder holds, byte for byte, what this process makes alone, and nothing else."""
    alone = produce(Production(Counted(), total, shard), folder.with_name(f"{folder.name}-alone"))
    assert digests(folder) == digests(alone)
    assert verify(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())
    one, two = read_manifest(folder), read_manifest(alone)
    assert one is not None
    assert two is not None
    assert (one.records, one.provenance) == (two.records, two.provenance)  # who made them is not said


def test_the_same_bytes_as_without_a_cluster(cluster: Dask, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = Production(SLOW, 4 * TOTAL, 4 * SHARD)
    produce(plan, tmp_path / "out", cluster=cluster.file, progress=lambda *done: seen.append(done))
    whole(tmp_path / "out", 4 * TOTAL, 4 * SHARD)
    assert seen[-1] == (4 * TOTAL, 4 * TOTAL)
    assert all(one <= two for one, two in itertools.pairwise(seen))
    before = everything_in(tmp_path / "out")
    produce(plan, tmp_path / "out", cluster=cluster.address)  # workers check what is there
    assert everything_in(tmp_path / "out") == before


def test_progress_within_a_shard_is_heard(cluster: Dask, tmp_path: Path) -> None:
    seen: list[int] = []
    plan = Production(Counted(pause=0.1), 1500, 1500)  # a shard of 2.4 s
    produce(plan, tmp_path / "out", cluster=cluster.address, progress=lambda done, total: seen.append(done))
    assert [done for done in seen if 0 < done < 1500]


def test_simulate_on_a_cluster(cluster: Dask, tmp_path: Path) -> None:
    options = ["-n", 600, "--seed", 3, "--shard-size", 200, "--energy", "uniform:1:100GeV"]
    made = command("simulate", "toy", *options, "--out", tmp_path / "one", "--cluster", cluster.address)
    assert made.code == 0, made.err
    request = {"energy": "uniform:1:100GeV"}
    calogen.simulate("toy", tmp_path / "two", 600, seed=3, shard_size=200, conditions=request, workers=1)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_compare_on_a_cluster(cluster: Dask, tmp_path: Path) -> None:
    reference = write_folder(tmp_path / "reference", toy(SMALL, 500, seed=1), each=250)
    generated = write_folder(tmp_path / "generated", toy(SMALL, 300, seed=2))
    one = calogen.compare(reference, generated, bins=0, workers=1)
    many = calogen.compare(reference, generated, bins=0, cluster=cluster.file, out=tmp_path / "shared")
    assert one.to_json() == many.to_json()
    assert not (tmp_path / "shared").exists()
    gone, plan = open_shards(generated), plan_comparison(open_shards(reference), bins=0, seed=0)
    (generated / "shard-000000.h5").unlink()
    with pytest.raises(ConfigError, match="a dask worker does not see the samples"):
        surveys({"gone": gone}, plan, cluster=cluster.address, out=tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    options = ["--out", tmp_path / "report", "--cluster", tmp_path / "nowhere.json"]
    done = command("compare", reference, f"twin={reference}", *options)
    assert done.code == 2
    assert "no such cluster" in done.err
    assert not (tmp_path / "report").exists()


def test_a_worker_that_is_killed_costs_a_comparison_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(survey, "_CHUNKS", 1)  # ranges of 4096 showers
    sides = {
        name: open_shards(write_folder(tmp_path / name, toy(SMALL, 20_000, seed=5))) for name in ("first", "second")
    }
    plan = plan_comparison(sides["first"], bins=2, seed=0)
    alone = surveys(sides, plan, workers=1)
    with dask_cluster(tmp_path / "dask") as own:

        def kill_once(*_: Any) -> None:
            if own.workers[0].poll() is None:
                own.workers[0].kill()

        found = surveys(sides, plan, cluster=own.file, out=tmp_path, progress=kill_once)
        assert own.workers[0].wait() == -signal.SIGKILL
    for name, side in alone.items():
        np.testing.assert_array_equal(found[name].table, side.table)
        np.testing.assert_array_equal(found[name].means.mean, side.means.mean)
        np.testing.assert_array_equal(found[name].kept.values, side.kept.values)
        assert found[name].problems == side.problems
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dask", "first", "second"]


def test_generate_on_a_cluster(cluster: Dask, tmp_path: Path) -> None:
    from calogen.sampling import Surrogate

    options = ["-n", 1500, "--seed", 3, "--shard-size", 500, "--energy", "uniform:1:100GeV"]
    made = command("generate", "calogan-gamma", *options, "--out", tmp_path / "one", "--cluster", cluster.file)
    assert made.code == 0, made.err
    request = {"energy": "uniform:1:100GeV"}
    Surrogate.load("calogan-gamma").generate(tmp_path / "two", request, 1500, seed=3, shard_size=500, workers=1)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


# ------------------------------------------------------------------------------------------------------- who may die


def test_a_process_that_dies_costs_nothing_but_time(cluster: Dask, tmp_path: Path) -> None:
    maker = Counted(bad=2500, how="kill", once=str(tmp_path / "killed"))
    produce(Production(maker, TOTAL, SHARD), tmp_path / "out", cluster=cluster.address)
    assert (tmp_path / "killed").exists()
    whole(tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "message"),
    [("kill", "died of SIGKILL, twice over the same shard"), ("raise", "ZeroDivisionError: the universe has no mass")],
)
def test_a_shard_that_fails_on_two_workers_ends_it_with_its_name(
    how: str, message: str, cluster: Dask, tmp_path: Path
) -> None:
    with pytest.raises(ProductionError, match="worker") as raised:
        produce(Production(Counted(bad=2500, how=how), TOTAL, SHARD), tmp_path / "out", cluster=cluster.address)
    assert message in str(raised.value)
    assert "shard-000002.h5" in str(raised.value)
    assert not [path.name for path in (tmp_path / "out").iterdir() if ".part" in path.name or ".lock" in path.name]
    produce(Production(Counted(), TOTAL, SHARD), tmp_path / "out")
    whole(tmp_path / "out")


def test_a_dask_worker_that_is_killed_costs_nothing_but_time(cluster: Dask, tmp_path: Path) -> None:
    kill_a_worker(cluster, tmp_path / "out", after=3 * SHARD)


def kill_a_worker(cluster: Dask, out: Path, after: int = 2 * TOTAL, seconds: float = 60.0) -> None:
    """Kill a worker of its own once so many samples are made, or after so many seconds."""
    victim = cluster.start()
    cluster.wait_for(3)
    timer = threading.Timer(seconds, victim.kill)
    timer.start()

    def progress(done: int, total: int) -> None:
        if done >= after:
            victim.kill()

    produce(Production(SLOW, 2 * TOTAL, SHARD), out, cluster=cluster.address, progress=progress)
    timer.cancel()
    assert victim.wait(10) == -signal.SIGKILL
    whole(out, 2 * TOTAL)


def test_a_stop_leaves_a_folder_that_any_engine_finishes(cluster: Dask, tmp_path: Path) -> None:
    out, done = tmp_path / "out", [0]
    maker = Counted(pause=0.1)  # a shard takes 1.6 s
    with pytest.raises(Interrupted, match="stopped by signal 2") as raised:
        produce(
            Production(maker, TOTAL, SHARD),
            out,
            cluster=cluster.address,
            progress=lambda made, total: done.__setitem__(0, made),
            should_stop=lambda: signal.SIGINT if done[0] else 0,
        )
    assert raised.value.exit_code == 130
    left = everything_in(out)
    assert not [name for name in left if ".part" in name or ".lock" in name]
    time.sleep(1.5)  # nobody goes on
    assert everything_in(out) == left
    assert len(digests(out)) < TOTAL // SHARD
    produce(Production(Counted(), TOTAL, SHARD), out, workers=2)
    whole(out)


def test_a_scheduler_that_is_killed_ends_it_with_a_sentence(cluster: Dask, tmp_path: Path) -> None:
    kill_the_scheduler(tmp_path, after=2 * SHARD)


def kill_the_scheduler(home: Path, after: int) -> float:
    """Kill a scheduler once so many samples are made; how long it takes to notice, in seconds."""
    killed = list[float]()
    with dask_cluster(home / "dask", 1) as running:

        def progress(done: int, total: int) -> None:
            if done >= after and not killed:
                running.scheduler.kill()
                killed.append(time.monotonic())

        with pytest.raises(ProductionError, match="the dask scheduler is gone") as raised:
            produce(Production(SLOW, TOTAL, SHARD), home / "out", cluster=running.address, progress=progress)
    assert "the same command makes the rest" in str(raised.value)
    took = time.monotonic() - killed[0]
    assert took < 15
    assert not [path for path in (home / "out").iterdir() if path.name.startswith(".lock")]
    produce(Production(Counted(), TOTAL, SHARD), home / "out")
    whole(home / "out")
    return took


# --------------------------------------------------------------------------------------------------------- bad input


def refused(what: str, out: Path, where: str | Path, maker: Any = SLOW) -> str:
    """A cluster that cannot be used leaves no trace of the production."""
    with pytest.raises(ConfigError, match=what) as raised:
        produce(Production(maker, TOTAL, SHARD), out, cluster=where)
    assert not out.exists()
    return str(raised.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "_CONNECT_SECONDS", 1.0)


@contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """The address of something that is no scheduler."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(20)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                stack.enter_context(connection)
                if answer:
                    connection.recv(100)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_an_address_where_nobody_answers(cluster: Dask, tmp_path: Path, impatient: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    assert "no dask scheduler answers within 1 second" in refused("no dask scheduler", tmp_path / "out", closed)
    with listening(b"") as silent:
        refused("no dask scheduler answers", tmp_path / "out", silent)


def test_what_is_no_scheduler(cluster: Dask, tmp_path: Path, impatient: None) -> None:
    with listening(b"HTTP/1.0 400 Bad Request\r\n\r\n" + b" " * 200) as web:
        refused("this is not a dask scheduler that can be used", tmp_path / "out", web)
    for address in ("tcp://127.0.0.1", "ftp://127.0.0.1:21", "tcp://"):
        refused("scheduler", tmp_path / "out", address)
    for worker in json_of(cluster)["workers"]:
        assert "Worker" in refused("not the address of a dask scheduler", tmp_path / "out", worker)
    assert "No such file" in refused("no such cluster", tmp_path / "out", tmp_path / "scheduler.json")
    assert "tcp://host:8786" in refused("no such cluster", tmp_path / "out", "127.0.0.1:8786")
    for text in ("{", "[]", "{}", '{"address": 1}', "\xff"):
        (tmp_path / "file").write_text(text, "latin-1")
        refused("not the scheduler file", tmp_path / "out", tmp_path / "file")


def json_of(cluster: Dask) -> dict[str, Any]:
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        return dict(client.scheduler_info(n_workers=-1))


@dataclass(frozen=True)
class Versioned(Counted):
    """Says which version of a program there is, wherever it runs."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "versions": {"program": os.environ.get("CALOGEN_TEST_VERSION", "1")}}


def test_workers_with_another_version(cluster: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOGEN_TEST_VERSION", "2")
    message = refused("a dask worker has another version", tmp_path / "out", cluster.address, Versioned())
    for part in ("dask worker tcp://", "program 2", "program 1", "the environment of this command"):
        assert part in message


def test_folders_that_are_not_shared(cluster: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("/proc/self/cwd/out")  # another folder for every process, as a local disk is for every computer
    with pytest.raises(ConfigError, match="a dask worker does not see the output folder") as raised:
        produce(Production(SLOW, TOTAL, SHARD), here, cluster=cluster.address)
    assert "dask worker tcp://" in str(raised.value)
    assert "on a file system that this process and all workers share" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_worker_without_calogen(cluster: Dask, tmp_path: Path) -> None:
    (tmp_path / "path" / "calogen").mkdir(parents=True)
    reason = "No module named 'calogen'"
    (tmp_path / "path" / "calogen" / "__init__.py").write_text(f'raise ModuleNotFoundError("{reason}", name="calogen")')
    bare = cluster.start(path=[str(tmp_path / "path")])
    try:
        cluster.wait_for(3)
        message = refused("a dask worker has no calogen, or another version", tmp_path / "out", cluster.address)
        assert reason in message
        assert 'pip install "calogen[cluster]"' in message
    finally:
        bare.terminate()
        bare.wait()


def test_workers_of_this_machine_and_a_cluster(tmp_path: Path) -> None:
    options = ["-n", 100, "--energy", "uniform:1:100GeV", "--out", tmp_path / "out"]
    made = command("simulate", "toy", *options, "--cluster", "tcp://127.0.0.1:1", "--workers", 2)
    assert made.code == 2
    assert "--workers are processes of this machine; those of --cluster are its own" in made.err
    with pytest.raises(ConfigError, match="`workers` are processes of this machine"):
        calogen.simulate("toy", tmp_path / "out", 100, cluster="tcp://127.0.0.1:1", workers=2)
    assert not (tmp_path / "out").exists()


def test_without_dask_the_line_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = refused("the package 'distributed' is not installed", tmp_path / "out", "tcp://127.0.0.1:1")
    assert 'pip install "calogen[cluster]"' in message


# -------------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_dask_workers_killed_at_random_moments(cluster: Dask, tmp_path: Path) -> None:
    rng = np.random.default_rng(19)
    moments, seconds = np.sort(rng.integers(0, 2 * TOTAL, 14)), np.sort(rng.uniform(0, 2, 6))
    for number, after in enumerate(moments):
        kill_a_worker(cluster, tmp_path / f"after-{number}", after=int(after))
    for number, wait in enumerate(seconds):  # as workers get ready, too
        kill_a_worker(cluster, tmp_path / f"seconds-{number}", seconds=float(wait))
    print(
        f"dask workers killed after {moments.tolist()} of {2 * TOTAL} samples and {seconds.round(2).tolist()} seconds"
    )
    print("all 20 productions completed, byte-identical")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_schedulers_killed_at_random_moments(cluster: Dask, tmp_path: Path) -> None:
    moments = np.random.default_rng(20).integers(0, TOTAL - 2 * SHARD, 5)
    took = [kill_the_scheduler(tmp_path / str(number), int(after)) for number, after in enumerate(moments)]
    print(f"5 schedulers killed: noticed within {max(took):.1f} s, all 5 finished byte-identical")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cluster_takes_hardly_longer_than_processes_of_this_machine(cluster: Dask, tmp_path: Path) -> None:
    from calogen.sampling import Surrogate

    surrogate, request, ratios = Surrogate.load("calogan-gamma"), {"energy": "uniform:1:100GeV"}, []

    def seconds(name: str, **how: Any) -> float:
        begun = time.monotonic()
        surrogate.generate(tmp_path / name, request, 200_000, **how)
        return time.monotonic() - begun

    seconds("first", cluster=cluster.address)  # the cluster is up, and what it needs is loaded
    for number in range(3):
        own, theirs = seconds(f"own-{number}", workers=2), seconds(f"dask-{number}", cluster=cluster.address)
        ratios.append(theirs / own)
        assert digests(tmp_path / f"own-{number}") == digests(tmp_path / f"dask-{number}")
    print(f"dask / local pool, 200,000 showers, two processes: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    assert np.median(ratios) <= 1.15
