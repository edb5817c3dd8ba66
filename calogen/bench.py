"""What ``calogen bench`` prints: ours beside the bare minimum, measured in one run and quoted as a ratio."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .errors import ConfigError
from .objectives import gradient_penalty
from .training import TrainingLoop, prepare
from .transforms import scale_conditions

_DEFAULT = "data/calogan-gamma"


def train_ratio(
    data: Sequence[str] = (), steps: int = 30, rounds: int = 5, batch_size: int = 256, threads: int | None = None
) -> dict[str, Any]:
    """Time whole training steps and the same steps in a bare torch loop, in turn, on the same tensors.

    Ours includes what training needs around the networks: shuffled data, symmetries, the average of the generator,
    sums for the log, log lines. The bare loop has networks, loss, penalty and optimisers on one batch that never
    changes.

    Args:
        data: As for :func:`calogen.training.prepare`; empty: ``data/calogan-gamma`` of the working folder.
        steps: Steps timed in each round.
        rounds: Rounds of each; medians are quoted.
        batch_size: Samples per batch.
        threads: CPU threads.

    Returns:
        Milliseconds per step of both, and the ratio with its range over rounds.

    Raises:
        ConfigError: If no data are given and there are none to fall back on.
    """
    if not data and not Path(_DEFAULT).is_dir():
        raise ConfigError("there are no data to train on", where="--data", hint="give --data, or run in a clone")
    options = {"batch_size": batch_size, "steps": 10**9, "log_every": 10, "validate_every": 10**9}
    config = Config.build({"threads": threads, "training": {**options, "checkpoint_every": 10**9}})
    plan = prepare(config, list(data) or _DEFAULT)
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop.start(plan, Path(folder) / "run", check=False)
        bare = _BareLoop(loop)
        ours_ms, bare_ms = [], []
        for turn in range(rounds + 1):
            first, second = _time(lambda: loop.advance(steps)), _time(lambda: bare.advance(steps))
            if turn:  # the first round warms up
                ours_ms.append(1e3 * first / steps)
                bare_ms.append(1e3 * second / steps)
    ratios = sorted(a / b for a, b in zip(ours_ms, bare_ms, strict=True))
    return {
        "calogen ms/step": round(statistics.median(ours_ms), 2),
        "bare torch ms/step": round(statistics.median(bare_ms), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "family": plan.family.name,
        "batch size": batch_size,
        "critic steps": config.training.critic_steps,
        "device": str(plan.device),
        "threads": plan.threads,
        "torch": torch.__version__,
    }


def _time(work: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


class _BareLoop:
    """WGAN-GP as one would write it on an afternoon: copies of the same networks, one fixed batch."""

    def __init__(self, loop: TrainingLoop) -> None:
        trainer = loop.trainer
        self.generator = copy.deepcopy(trainer.generator)
        self.critic = copy.deepcopy(trainer.critic)
        self.options = trainer.options
        self.samples, self.conditions = trainer.batches[0]
        self.scaled = scale_conditions(trainer.plan.family, trainer.plan.conditions, self.conditions)
        self.stream = torch.Generator(self.samples.device).manual_seed(0)
        rates = (self.options.learning_rate, self.options.critic_learning_rate)
        self.trained = [p for p in self.generator.parameters() if p.requires_grad]
        self.generator_optimiser, self.critic_optimiser = (
            torch.optim.Adam(parameters, lr=rate, betas=self.options.betas)
            for parameters, rate in zip((self.trained, list(self.critic.parameters())), rates, strict=True)
        )

    def _generate(self) -> Tensor:
        shape = (len(self.samples), self.generator.latent_size)
        latent = torch.randn(shape, generator=self.stream, device=self.samples.device)
        return self.critic.view(self.generator(latent, self.conditions), self.conditions)

    def advance(self, steps: int) -> None:
        """Train for some steps."""
        for _ in range(steps):
            for _ in range(self.options.critic_steps):
                with torch.no_grad():
                    reference, generated = self.critic.view(self.samples, self.conditions), self._generate()
                difference = self.critic(generated, self.scaled).mean() - self.critic(reference, self.scaled).mean()
                penalty = gradient_penalty(self.critic, reference, generated, self.scaled, self.stream)
                self.critic_optimiser.zero_grad()
                (difference + self.options.penalty * penalty).backward()
                self.critic_optimiser.step()
            loss = -self.critic(self._generate(), self.scaled).mean()
            self.generator_optimiser.zero_grad()
            loss.backward(inputs=self.trained)
            self.generator_optimiser.step()
