"""A production as a job array of a real Slurm on this machine, with jobs that are requeued while they run."""

from __future__ import annotations

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

import calogen
from calogen.shards.inspect import verify

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
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
def test_a_job_array_with_a_requeued_job(tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root may run a Slurm of its own")
    out, energy = tmp_path / "out", "uniform:1:100GeV"
    line = f"{sys.executable} -m calogen simulate toy -n {SAMPLES} --energy {energy} --shard-size 1024"
    with slurm(tmp_path / "slurm") as environment:
        limit = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo"], env=environment, capture_output=True, text=True).stdout:
            assert time.monotonic() < limit, (tmp_path / "slurm" / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.5)
        script = ["--array=1-8", "--requeue", "--ntasks=1", f"--output={tmp_path}/job-%a.log", f"--chdir={tmp_path}"]
        job = asked(
            environment, "sbatch", "--parsable", *script, "--wrap", f"{line} --out {out} --part auto --workers 1"
        )
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
