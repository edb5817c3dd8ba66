"""Ranks: several processes train what one would; whichever dies, hangs, fails or differs, all end and say why.

As a program, this is what each rank runs: ``torchrun --nproc-per-node 2 test_ranks.py HOME``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import MAPS, SINGLE, SMALL, tiny, toy, write_folder
from torch import Tensor

from calogen.config import Config
from calogen.errors import CalogenError, ConfigError, ElsewhereError, RankError
from calogen.families import FAMILIES, Family
from calogen.models.registry import NETWORKS
from calogen.models.streams import Share, Stream, drawn
from calogen.runs.checkpoint import load_checkpoint
from calogen.training import Ranks, joined, prepare, train
from calogen.training.batches import Batches
from calogen.training.loop import build_trainer
from calogen.training.ranks import ALONE

STEPS, BATCH, CRITIC = 20, 16, 2
PERSONAL = ("seconds", "steps_per_second", "steps")  # entries of a log that no two runs share


@dataclass(frozen=True)
class Case:
    """What is trained: one network by one objective."""

    family: Family
    network: str
    objective: str
    double: bool = True
    batch_size: int = BATCH

    @property
    def name(self) -> str:
        return f"{self.network}-{self.objective}-{self.family.kind}{'' if self.double else '-single'}"

    @property
    def config(self) -> Config:
        options = {"steps": STEPS, "batch_size": self.batch_size, "critic_steps": CRITIC, "update": "adam"}
        return tiny(
            self.family.kind, generator={"network": self.network}, training={**options, "objective": self.objective}
        )


CASES = [
    Case(SMALL, "copula", "wgan-gp"),
    Case(SMALL, "copula", "wgan-gp", double=False),
    Case(SMALL, "mlp", "wgan-clip"),
    Case(SINGLE, "calogan", "non-saturating"),  # statistics of batches: norms, and distances between its samples
    Case(SINGLE, "dcgan", "logistic"),
    Case(SINGLE, "vae", "likelihood"),
    Case(MAPS, "dcgan", "wgan-gp"),
    Case(MAPS, "dcgan", "non-saturating"),
]
FLOW = Case(SINGLE, "flow", "likelihood")


def trajectory(case: Case, data: Path, ranks: Ranks) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What every step says, and all numbers at the end."""
    setup = prepare(case.config, data / case.family.name, ranks=ranks)
    batches = Batches(
        setup.training, setup.conditions, case.batch_size, seed=1, device=setup.device, ranks=setup.ranks
    )
    trainer = build_trainer(setup, batches)
    if ranks.first:
        trainer.fit()
    ranks.copy(trainer.networks)
    if case.double:
        for network in trainer.networks.values():
            network.double()
        batches._values, batches._conditions = batches._values.double(), batches._conditions.double()
        torch.set_default_dtype(torch.float64)
    try:
        trainer.arm()
        said = [ranks.mean(trainer.step()) for _ in range(STEPS)]
    finally:
        torch.set_default_dtype(torch.float32)
    state = trainer.state() | {f"average.{name}": t for name, t in trainer.average.state_dict().items()}
    return said, {name: tensor.double() for name, tensor in state.items()}


def furthest(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference of numbers of the same names, relative to what is above 1."""
    assert one.keys() == two.keys()
    found = 0.0
    for name, value in one.items():
        a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (value, two[name]))
        assert bool(torch.isfinite(a).all()), name
        if a.numel():
            found = max(found, float(((a - b).abs() / b.abs().clamp(min=1)).max()))
    return found


# ------------------------------------------------------------------------------------------- what each rank runs


@contextmanager
def counted() -> Iterator[list[int]]:
    """Sizes of what is summed over ranks meanwhile."""
    real, sizes = dist.all_reduce, list[int]()

    def note(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return real(tensor, *arguments, **options)

    dist.all_reduce = note
    try:
        yield sizes
    finally:
        dist.all_reduce = real


def refusal(work: Callable[[], object]) -> str:
    """The error that some work ends in, by its kind and text."""
    try:
        work()
    except CalogenError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    return ""


def checks(home: Path, ranks: Ranks, cases: list[Case]) -> None:
    """Train all cases, be refused what is wrong, and write down what happened; then a run that is never finished."""
    said: dict[str, Any] = {}
    for case in cases:
        with counted() as sizes:
            log, state = trajectory(case, home, ranks)
        sums = torch.cat([t.flatten() for name, t in state.items() if not name.startswith("average.")])
        same = ranks.most(float(sums.abs().sum())) == -ranks.most(-float(sums.abs().sum()))
        said[case.name] = {"log": log, "same": same, "sizes": [sizes.count(n) for n in sorted(set(sizes), reverse=True)]}
        said[case.name]["most"] = sorted(set(sizes), reverse=True)
        said[case.name]["state"] = {name: t.tolist() for name, t in state.items()}
    options, data = {"update": "adam", "log_every": 1, "validate_every": 4, "checkpoint_every": 4}, home / "small"

    def tried(name: str, config: Config, folder: Path = data) -> None:
        said[name] = refusal(lambda: train(config, folder, home / name, ranks=ranks))
        said[f"{name} left"] = (home / name).exists()

    tried("other-seed", tiny(seed=ranks.rank, training=options))
    tried("other-data", tiny(training=options), home / ("small" if ranks.first else "other"))
    tried("no-data", tiny(training=options), home / ("small" if ranks.first else "nowhere"))
    tried("odd-batch", tiny(training={**options, "batch_size": 17}))

    run = train(tiny(training=options), data, home / "run", ranks=ranks)
    said["run"] = [str(run.folder), run.step, run.score, len(run.records)]
    said["again"] = train(tiny(training={**options, "steps": 6}), data, home / "run", resume=True, ranks=ranks).step
    asked = iter([0, signal.SIGTERM if ranks.rank == 1 else 0])
    stop = {"should_stop": lambda: next(asked), "ranks": ranks}
    said["signal"] = refusal(lambda: train(tiny(training=options), data, home / "stopped", **stop))
    (home / f"said-{ranks.rank}.json").write_text(json.dumps(said))

    def die(record: dict[str, Any]) -> None:
        (home / "killed-at").write_text(str(time.time()))

    def ask() -> int:
        if ranks.rank == 1 and (home / "killed" / "checkpoints" / "step-4").exists():
            (home / "killed-at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    endless = tiny(training={**options, "steps": 10**6})
    found = refusal(lambda: train(endless, data, home / "killed", should_stop=ask, ranks=ranks))
    (home / "killed.json").write_text(json.dumps([found, time.time()]))
    raise RankError(found)


def main() -> None:
    home, single = Path(sys.argv[1]), len(sys.argv) > 2
    torch.set_num_threads(1)
    with joined() as ranks:
        if single:
            timing(home, ranks)
        else:
            checks(home, ranks, CASES)


if __name__ == "__main__":
    main()
