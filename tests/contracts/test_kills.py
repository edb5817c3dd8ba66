"""Whatever ends a command at whatever moment: the same command again makes what an undisturbed one makes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SINGLE, command, everything_in, tiny, toy, write_folder

from calogen.runs.checkpoint import load_checkpoint
from calogen.runs.find import find_model
from calogen.shards.sources import open_shards


def forked(words: list[object], number: int = 0, after: float = 0.0) -> tuple[int, float]:
    """A command in a forked process, which a signal may end after some seconds: its exit status, and its seconds."""
    begun, child = time.monotonic(), os.fork()
    if not child:
        os.setsid()
        os._exit(command(*words).code)
    if number:
        time.sleep(after)
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun


def trained(folder: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(find_model(folder))
    tensors = {**checkpoint.model, **checkpoint.training_state()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} | {"step": checkpoint.card.step}


def shards(folder: Path) -> dict[str, Any]:
    samples = open_shards(folder, strict=True).read()
    return {"values": samples.values.tobytes(), "files": sorted(path.name for path in folder.iterdir())}


def report(folder: Path) -> dict[str, Any]:
    found = {name: content for name, content in everything_in(folder).items() if not name.endswith(".pdf")}
    assert found["metrics.json"][:1] == b"{"
    return {
        "names": sorted(found),
        "metrics": json.loads(found["metrics.json"])["generated"],
        "csv": found["table.csv"],
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kills")
    for seed in range(2):
        write_folder(home / f"data{seed}", toy(SINGLE, 400, seed=seed))
    config = tiny(training={"steps": 12, "checkpoint_every": 2, "validate_every": 4, "validation_size": 32})
    tables = config.model_dump(mode="json", exclude_none=True)
    text = (
        f'threads = 1\ndevice = "cpu"\n[generator]\n{_toml(tables["generator"])}[training]\n{_toml(tables["training"])}'
    )
    (home / "config.toml").write_text(text)
    assert command("train", home / "config.toml", "--data", home / "data0", "--out", home / "model").code == 0
    return home


def _toml(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


COMMANDS: dict[str, tuple[Callable[[Path], list[object]], Callable[[Path], dict[str, Any]]]] = {
    "train": (lambda home: ["train", home / "config.toml", "--data", home / "data0"], trained),
    "generate": (
        lambda home: [
            *("generate", home / "model", "-n", 60_000, "--energy", "uniform:1:100GeV"),
            *("--shard-size", 4096, "--workers", 1),
        ],
        shards,
    ),
    "compare": (lambda home: ["compare", home / "data0", home / "data1", "--bins", 1], report),
    "simulate": (
        lambda home: ["simulate", "toy", "-n", 40_000, "--seed", 3, "--shard-size", 2048, "--workers", 1],
        shards,
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_nothing_that_the_same_command_cannot_mend(
    name: str, world: Path, tmp_path: Path
) -> None:
    line, made = COMMANDS[name]
    assert command(*line(world), "--out", tmp_path / "first").code == 0  # brings in all modules: forks need not
    code, seconds = forked([*line(world), "--out", tmp_path / "whole"])
    assert code == 0
    right, rng, codes = made(tmp_path / "whole"), np.random.default_rng(1), []
    for number in [signal.SIGKILL] * 30 + [signal.SIGTERM] * 10:
        out = tmp_path / f"out{len(codes)}"
        codes.append(forked([*line(world), "--out", out], number, rng.uniform(0, 1.1 * seconds))[0])
        if name == "compare" and (out / "report.html").exists():
            assert report(out) == right  # a page stands beside its own tables alone
        again = [*line(world), "--out", out, *["--resume"] * (name == "train" and (out / "checkpoints").exists())]
        assert forked(again)[0] == 0
        assert made(out) == right
        assert not [path for path in out.rglob("*") if path.name.startswith(".lock") or path.name.endswith(".part")]
    ended = {code: codes.count(code) for code in sorted(set(codes))}
    print(
        f"{name}: {len(codes)} signals in {seconds:.1f} s; exit codes {ended}; all as undisturbed after the same again"
    )
