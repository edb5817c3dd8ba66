"""Faults, with real processes: whatever kills a production, the same command finishes it, and nothing is half there."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import Counted, Trained, command, counted, program, run_python

from calogen.errors import CalogenError, ProductionError, StorageError
from calogen.production.plan import Production
from calogen.production.run import produce
from calogen.sampling import Surrogate
from calogen.shards.inspect import verify
from calogen.shards.manifest import read_manifest
from calogen.shards.sources import open_shards

TOTAL, SHARD = 40_000, 1000
SLOW = Counted(pause=0.001)  # a shard takes 16 ms, so that kills come between and within them


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@contextmanager
def started(line: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own; what is left of the group is killed in the end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(line, env=environment(), start_new_session=True, **pipes)
    try:
        yield process
    finally:
        kill_group(process)
        process.communicate(timeout=30)


def kill_group(process: subprocess.Popen[str]) -> None:
    if members(process.pid):
        os.killpg(process.pid, signal.SIGKILL)


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _parent, its = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its) == group and state not in "ZX":
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def shards_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("shard*.h5")}


def whole(folder: Path, total: int = TOTAL) -> None:
    """The folder holds what an undisturbed run makes, bit for bit, and nothing else."""
    assert verify(folder) == []
    samples, expected = open_shards(folder).read(), counted(np.arange(total))
    np.testing.assert_array_equal(samples.values, expected.values)
    np.testing.assert_array_equal(samples.conditions["incident_energy"], expected.conditions["incident_energy"])
    assert not [p.name for p in folder.iterdir() if not re.fullmatch(r"shard.*\.h5|manifest\.json", p.name)]


def unfinished(folder: Path) -> None:
    """The folder lacks samples, and nothing else is wrong with it."""
    problems = verify(folder)
    assert "are still to be made" in problems[0]
    assert all("samples are missing between" in line for line in problems[1:])


def kill_again_and_again(folder: Path, kills: int, seed: int) -> None:
    """Kill a production at random moments, the group and the parent alone in turn, and check what each kill cost."""
    rng = np.random.default_rng(seed)
    for number in range(kills):
        before = shards_in(folder)
        with started(program(SLOW, folder, TOTAL, SHARD)) as process:
            enough = len(before) + 1 + int(rng.integers(3))
            assert wait_until(lambda n=enough: len(shards_in(folder)) >= n, 60), process.poll()
            time.sleep(float(rng.uniform(0, 0.02)))
            if number % 2:
                process.kill()  # workers find out by themselves
                assert wait_until(lambda: not members(process.pid), 10)
            else:
                kill_group(process)
        after = shards_in(folder)
        assert len([name for name, inode in before.items() if after.get(name) != inode]) <= 2
        manifest = read_manifest(folder)  # is never half there
        assert manifest is not None
        assert len(after) - len(manifest.records) <= 2
    before = shards_in(folder)
    produce(Production(Counted(), TOTAL, SHARD), folder)
    redone = [name for name, inode in before.items() if shards_in(folder)[name] != inode]
    assert len(redone) <= 2  # one a worker
    whole(folder)


def test_a_production_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "out", kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills(tmp_path: Path, seed: int) -> None:
    kill_again_and_again(tmp_path / "out", kills=5, seed=100 + seed)


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGINT, "group"), (signal.SIGTERM, "parent")])
def test_a_signal_ends_it_soon_with_its_own_exit_code_and_whole_shards(
    number: signal.Signals, whom: str, tmp_path: Path
) -> None:
    total = 16 * SHARD
    with started(program(Counted(pause=0.005), tmp_path, total, SHARD)) as process:
        assert wait_until(lambda: len(shards_in(tmp_path)) >= 4, 60), process.poll()
        sent = time.monotonic()
        os.killpg(process.pid, number) if whom == "group" else process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - sent < 10
        assert process.returncode == 128 + number
        assert members(process.pid) == []
    assert f"stopped by signal {int(number)} after" in err
    assert "Traceback" not in err
    unfinished(tmp_path)
    before = shards_in(tmp_path)
    produce(Production(Counted(), total, SHARD), tmp_path)
    assert before.items() <= shards_in(tmp_path).items()
    whole(tmp_path, total)


def test_workers_of_a_killed_parent_keep_the_folder_locked_until_they_have_left(tmp_path: Path) -> None:
    maker = Counted(bad=SHARD + 10, how="hang")
    with started(program(maker, tmp_path, 2 * SHARD, SHARD)) as process:
        assert wait_until(lambda: len(shards_in(tmp_path)) == 1, 60)
        process.kill()
        process.wait()
        assert members(process.pid)
        with pytest.raises(CalogenError, match="being written by another process"):
            produce(Production(Counted(), 2 * SHARD, SHARD), tmp_path)
    produce(Production(Counted(), 2 * SHARD, SHARD), tmp_path)
    whole(tmp_path, 2 * SHARD)


# ---------------------------------------------------------------------------------------------------------- workers


def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    maker = Counted(bad=2500, how="kill", once=str(tmp_path / "killed"))
    whole(produce(Production(maker, 6000, SHARD), tmp_path / "out", workers=2), 6000)
    assert (tmp_path / "killed").exists()


def test_a_worker_that_is_killed_over_the_same_shard_again_ends_it_with_the_shards_name(tmp_path: Path) -> None:
    with pytest.raises(ProductionError, match="died of SIGKILL, twice over the same shard") as raised:
        produce(Production(Counted(bad=2500, how="kill"), 6000, SHARD), tmp_path, workers=2)
    assert raised.value.exit_code == 1
    assert "shard-000002.h5" in str(raised.value)
    assert "samples 2000 to 2999" in str(raised.value)
    unfinished(tmp_path)
    produce(Production(Counted(), 6000, SHARD), tmp_path)
    whole(tmp_path, 6000)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ZeroDivisionError: the universe has no mass"),
        ("os-error", "No such file or directory: 'geant4-data'"),
    ],
)
def test_an_error_in_an_isolated_worker_is_told_with_its_traceback(how: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProductionError, match="a worker failed") as raised:
        produce(Production(Counted(bad=2500, how=how), 6000, SHARD, isolated=True), tmp_path)
    assert raised.value.exit_code == 1
    for part in ("shard-000002.h5", "Traceback", "in _misbehave", message):
        assert part in str(raised.value)
    assert len(shards_in(tmp_path)) == 2


# ------------------------------------------------------------------------------------------------------------- disks


def test_a_file_system_that_takes_no_more_ends_it_with_74_and_nothing_is_destroyed(tmp_path: Path) -> None:
    produce(Production(Counted(), 4000, 4000), tmp_path / "size")
    size = (tmp_path / "size" / "shard-000000.h5").stat().st_size
    out = tmp_path / "out"
    with started(program(Counted(), out, 10_000, 4000)) as process:
        # The last shard alone, of 2000 samples, is small enough.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size * 3 // 4, size * 3 // 4))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 74
    assert re.search(r"the file cannot be written: File too large", err), err
    assert re.search(r"out/shard-00000[01]\.h5", err), err
    assert re.search(r"\d{5,} bytes of space", err), err
    assert "Traceback" not in err
    assert not list(out.glob("*.part"))
    before = shards_in(out)
    unfinished(out)
    produce(Production(Counted(), 10_000, 4000), out)
    assert before.items() <= shards_in(out).items()
    whole(out, 10_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    options = ["-t", "tmpfs", "-o", "size=400k", "calogen-test", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_its_finished_shards_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    out, plan = small_disk / "out", Production(Counted(), 30_000, 2000)
    with pytest.raises(StorageError, match="No space left on device") as raised:
        produce(plan, out)
    assert raised.value.exit_code == 74
    assert re.search(r"shard-\d+\.h5|manifest", str(raised.value))
    assert not list(out.glob("*.part"))
    before = shards_in(out)
    assert len(before) >= 2
    assert len(verify(out)) <= 2  # unfinished, and perhaps one shard that the manifest had no space for
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    produce(plan, out)
    assert len([name for name, inode in before.items() if shards_in(out)[name] != inode]) <= 1
    whole(out, 30_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    out = produce(Production(Counted(), 1000, 1000), tmp_path / "out")
    out.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="no permission to write"):
            produce(Production(Counted(), 1000, 1000), out)
    finally:
        out.chmod(0o700)


# ------------------------------------------------------------------------------------------------- the command line


def generate(trained: Trained, out: Path, samples: int, *options: str) -> list[str]:
    line = ["generate", str(trained.folder), "-n", str(samples), "--energy", "uniform:1:100GeV", "--out", str(out)]
    return [sys.executable, "-W", "error", "-c", "from calogen.cli import main; main()", *line, *options]


def test_control_c_during_generate_and_the_same_command_again(trained: Trained, tmp_path: Path) -> None:
    line = generate(trained, tmp_path / "out", 4_000, "--shard-size", "500", "--workers", "2", "--seed", "4")
    with started(line) as process:
        assert wait_until(lambda: shards_in(tmp_path / "out"), 200), process.poll()
        sent = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 10
        ended = process.returncode
    assert ended == 130 or (ended == 0 and len(shards_in(tmp_path / "out")) == 8), err  # or it had just finished
    assert "Traceback" not in err
    before = shards_in(tmp_path / "out")
    again = command(*line[5:-4], "--workers", 1, "--seed", 4)
    assert again.code == 0, again.err
    assert before.items() <= shards_in(tmp_path / "out").items()
    assert verify(tmp_path / "out") == []
    request = {"incident_energy": "uniform:1:100GeV"}
    alone = Surrogate.load(trained.folder).generate(tmp_path / "alone", request, 4_000, seed=4, workers=1)
    one, two = (open_shards(folder).read() for folder in (alone, tmp_path / "out"))
    np.testing.assert_array_equal(one.values, two.values)  # whichever process made them


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_generations_are_finished_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    whole, out, rng = tmp_path / "whole", tmp_path / "out", np.random.default_rng(3)
    subprocess.run(generate(trained, whole, 100_000, "--shard-size", "1500"), check=True, env=environment())
    line = generate(trained, out, 100_000, "--shard-size", "1500", "--workers", "2")
    for number in range(10):
        before = len(shards_in(out))
        with started(line) as process:
            wait_until(lambda n=before: len(shards_in(out)) > n or process.poll() is not None, 120)
            time.sleep(float(rng.uniform(0, 0.1)))
            process.kill() if number % 2 else kill_group(process)
            assert wait_until(lambda: not members(process.pid), 20)
    subprocess.run(line, check=True, env=environment())
    assert verify(out) == []
    one, two = (open_shards(folder).read() for folder in (whole, out))
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.conditions["incident_energy"], two.conditions["incident_energy"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_number_of_samples(trained: Trained, tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from calogen.sampling import Surrogate
        surrogate = Surrogate.load(sys.argv[1])
        request = {"incident_energy": "uniform:1:100GeV"}
        surrogate.generate(Path(sys.argv[2]), request, int(sys.argv[3]), workers=1, shard_size=65536)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for samples in (200_000, 2_000_000):
        done = run_python(code, trained.folder, tmp_path / str(samples), samples)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        shutil.rmtree(tmp_path / str(samples))
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 1.5e6  # kB
