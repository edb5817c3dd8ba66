"""A real Slurm on this machine: an array of jobs makes samples, one of them requeued; a step of tasks trains."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import SINGLE, toy, write_folder

import calogen
from calogen.runs.checkpoint import load_checkpoint
from calogen.shards.inspect import verify

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONFIGURATION = """\
ClusterName=calogen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""
SAMPLES = 8 * 1024 * 3


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of commands for a Slurm of the test's own."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root may run a Slurm of its own")
    with slurm(tmp_path / "slurm") as found:
        yield found


@contextmanager
def slurm(home: Path) -> Iterator[dict[str, str]]:
    """A controller and a node with two cores; yields the environment for its commands."""
    (home / "state").mkdir(parents=True)
    (home / "spool").mkdir()
    ports = [_free_port(), _free_port()]
    host = socket.gethostname().partition(".")[0]
    (home / "slurm.conf").write_text(CONFIGURATION.format(host=host, home=home, ports=ports))
    environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    lines = (["slurmctld", "-D", "-i"], ["slurmd", "-D"])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    running = [subprocess.Popen(line, **quiet) for line in lines]  # type: ignore[call-overload]
    try:
        limit = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo"], env=environment, capture_output=True, text=True).stdout:
            assert time.monotonic() < limit, (home / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, timeout=60, check=False)
        time.sleep(2)
        for process in reversed(running):
            process.terminate()
            process.wait(60)


def asked(environment: dict[str, str], *line: str) -> str:
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_array_with_a_requeued_job(environment: dict[str, str], tmp_path: Path) -> None:
    out, energy = tmp_path / "out", "uniform:1:100GeV"
    line = f"{sys.executable} -m calogen simulate toy -n {SAMPLES} --energy {energy} --shard-size 1024"
    script = ["--array=1-8", "--requeue", "--ntasks=1", f"--output={tmp_path}/job-%a.log", f"--chdir={tmp_path}"]
    job = asked(environment, "sbatch", "--parsable", *script, "--wrap", f"{line} --out {out} --part auto --workers 1")
    limit = time.monotonic() + 900
    while not list(out.glob("shard-3-of-8-*.h5")):  # the third part is under way
        assert time.monotonic() < limit, "\n".join(path.read_text() for path in tmp_path.glob("job-*.log"))
        time.sleep(0.05)
    before = {path.name: path.stat().st_ino for path in out.glob("shard-3-of-8-*.h5")}
    asked(environment, "scontrol", "requeue", f"{job}_3")
    while asked(environment, "squeue", "--noheader"):
        assert time.monotonic() < limit, asked(environment, "squeue")
        time.sleep(0.5)
    restarts = asked(environment, "scontrol", "show", "job", f"{job}_3").partition("Restarts=")[2].split()[0]
    assert restarts == "1"
    after = {path.name: path.stat().st_ino for path in out.glob("shard-3-of-8-*.h5")}
    assert before.items() <= after.items()  # what was there is not made again
    assert len(before) < len(after)
    assert verify(out) == []
    alone = calogen.simulate("toy", tmp_path / "alone", SAMPLES, conditions={"energy": energy}, workers=1)
    one, two = (calogen.open_shards(folder).read() for folder in (out, alone))
    np.testing.assert_array_equal(one.values, two.values)
    print(
        f"Slurm: 8 parts of {SAMPLES // 8} samples, one requeued after {len(before)} of its {len(after)} shards: whole"
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tasks_of_a_step_train_together(environment: dict[str, str], tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", toy(SINGLE, 240, seed=2)), tmp_path / "out"
    options = {"update": "adam", "checkpoint_every": 2, "validate_every": 2, "log_every": 1, "batch_size": 16}
    settings = [f"--set=training.{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "calogen", "train", "--data", str(data), "--device=cpu", "--steps=4", *settings]
    begun = time.monotonic()
    meet = {**environment, "MASTER_ADDR": "127.0.0.1"}
    line = ["srun", "--ntasks=2", "--cpus-per-task=1", *command, "--out", str(out)]
    done = subprocess.run(line, env=meet, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    print(f"srun: two tasks trained 4 steps in {time.monotonic() - begun:.0f} s")
    assert done.stdout.count("trained 4 steps") == 1  # rank 0 alone says it
    assert load_checkpoint(out / "checkpoints" / "step-4").card.provenance["ranks"] == 2
    alone = [*command, "--threads=1", "--out", str(tmp_path / "alone")]
    subprocess.run(alone, env=environment, check=True, capture_output=True)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (out, tmp_path / "alone")]
    for one, two in zip(*(map(json.loads, log) for log in logs), strict=True):
        numbers = {k: v for k, v in one.items() if isinstance(v, float) and k not in ("seconds", "steps_per_second")}
        assert {k: two[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
