"""Training: critic steps, a generator step, an average of the generator, validation, the best so far, resume.

Everything random in step t is a function of (seed, t), so a run resumed from a checkpoint makes the same weights, bit
for bit, as one that was never stopped. Nothing here prints.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calogen.analysis import score as physics_score

from .checkpoint import (
    Card,
    Checkpoint,
    ConditionRange,
    load_optimiser,
    load_state,
    optimiser_state,
)
from .config import Config
from .dataset import Augmentation, Batches, held_out
from .errors import ConfigError, DivergenceError, Interrupted, ShardError
from .families import Family
from .networks import Critic, Generator, build_critic, build_generator, pick_device, settled
from .objectives import OBJECTIVES, gradient_penalty
from .runs import Record, RunFolder, environment, resumable
from .shards import Samples, Shards, open_splits
from .transforms import condition_array, scale_conditions

_COPIES = 4  # of every parameter in training: itself, its gradient, Adam's two averages


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before anything is written.

    Attributes:
        config: With family and conditions filled in.
        family: What is simulated.
        conditions: Names, in the order of the columns.
        training: Data to train on.
        validation: Data to validate on.
        device: Where to train.
        threads: CPU threads.
    """

    config: Config
    family: Family
    conditions: tuple[str, ...]
    training: Shards
    validation: Shards
    device: torch.device
    threads: int

    def describe(self) -> dict[str, Any]:
        """What a person wants to know before starting."""
        generator, critic = self.parameters()
        return {
            "family": self.family.name,
            "conditions": list(self.conditions),
            "training samples": len(self.training),
            "validation samples": len(self.validation),
            "objective": self.config.training.objective,
            "steps": self.config.training.steps,
            "generator parameters": generator,
            "critic parameters": critic,
            "device": str(self.device),
            "threads": self.threads,
        }

    def parameters(self) -> tuple[int, int]:
        """Parameters of generator and critic; no memory is taken for them.

        Raises:
            ConfigError: If such networks cannot make or judge samples of the family.
        """
        with torch.device("meta"):
            generator = build_generator(self.family, self.conditions, self.config.generator)
            critic = build_critic(generator, self.config.critic, self.config.training.objective)
        return sum(p.numel() for p in generator.parameters()), sum(p.numel() for p in critic.parameters())


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder, also what ``calogen generate`` takes.
        step: Generator updates done.
        score: Best validation score.
        records: The log.
    """

    folder: Path
    step: int
    score: float | None
    records: tuple[Record, ...]


def prepare(config: Config, data: str | Path | Sequence[str | Path]) -> Plan:
    """Open the data and settle family, conditions and device; writes nothing.

    Args:
        config: What to do.
        data: File, glob, folder of shards, or folder with ``train/`` and ``validation/``.

    Raises:
        ConfigError: If configuration and data do not go together.
        ShardError: If the data cannot be used.
    """
    training, validation = open_splits(data, family=config.resolved_family(), drop_bad=config.drop_bad)
    family = training.family
    names = tuple(c.name for c in family.conditions) if config.conditions is None else config.conditions
    for name in (*names, *config.holdout):
        family.condition(name)
        if name not in training.condition_names:
            raise ShardError(
                f"the data lack the condition '{name}'",
                expected=name,
                found=", ".join(training.condition_names) or "no conditions",
                hint="choose other conditions, or --unconditional",
            )
    if len(set(names)) != len(names):
        raise ConfigError("a condition is named twice", where="conditions", found=", ".join(names))
    if family.kind == "calorimeter" and "incident_energy" not in training.condition_names:
        raise ShardError(
            "the showers have no incident energies, and validation needs them",
            found=", ".join(training.condition_names) or "no conditions",
            hint="give files with incident energies, even to train --unconditional",
        )
    if not len(validation):
        raise ShardError("there are no validation samples", hint="add data or a validation/ folder")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config = settled(config.updated({"family": family, "conditions": names}), family)
    threads = config.threads or available
    plan = Plan(config, family, names, training, validation, pick_device(config.device), threads)
    needed = 4 * sum(plan.parameters()) * _COPIES
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            "the networks do not fit into memory",
            where="generator, critic",
            expected=f"at most {memory / 1e9:.0f} GB",
            found=f"{needed / 1e9:.0f} GB for weights, gradients and averages",
            hint="make generator.hidden and critic.hidden smaller (channels for maps)",
        )
    return plan


def _stream(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step."""
    words = np.random.SeedSequence((seed, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


class Trainer:
    """Networks, their average and their optimisers; :meth:`step` is one generator update.

    Args:
        plan: What to train.
        batches: Training data, in physical units.
    """

    def __init__(self, plan: Plan, batches: Batches) -> None:
        options = plan.config.training
        self.options, self.plan, self.batches = options, plan, batches
        self.objective = OBJECTIVES[options.objective]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.config.seed)
            self.generator: Generator = build_generator(plan.family, plan.conditions, plan.config.generator)
            self.critic: Critic = build_critic(self.generator, plan.config.critic, options.objective)
        self.augment = Augmentation(plan.family, plan.device)
        self.done = 0

    def fit(self) -> None:
        """Fit transform, start of the generator and standardisation of the critic to the data."""
        samples = self.batches.samples(self.plan.family)
        self.generator.fit(samples, self.plan.config.seed)
        self.critic.fit(samples, self.plan.conditions)

    def arm(self) -> None:
        """Move to the device and make average and optimisers; once fitted or loaded."""
        self.generator.to(self.plan.device)
        self.critic.to(self.plan.device)
        if not self.options.tune_transform:
            self.generator.transform.requires_grad_(False)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.trained: list[Tensor] = [p for p in self.generator.parameters() if p.requires_grad]
        self.averaged: list[Tensor] = [
            a for a, p in zip(self.average.parameters(), self.generator.parameters(), strict=True) if p.requires_grad
        ]
        sides: tuple[list[Tensor], list[Tensor]] = self.trained, list(self.critic.parameters())
        rates = (self.options.learning_rate, self.options.critic_learning_rate)
        self.generator_optimiser, self.critic_optimiser = (
            torch.optim.Adam(parameters, lr=rate, betas=self.options.betas)
            for parameters, rate in zip(sides, rates, strict=True)
        )

    def _draw(self, conditions: Tensor, stream: torch.Generator) -> Tensor:
        latent = torch.randn(len(conditions), self.generator.latent_size, generator=stream, device=conditions.device)
        samples: Tensor = self.generator(latent, conditions)
        return self.augment(samples, stream) if self.options.augment else samples

    def _set_rates(self) -> None:
        start = (1 - self.options.decay) * self.options.steps
        over = max(0.0, self.done - start) / max(1.0, self.options.steps - start)
        factor = 0.5 * (1 + math.cos(math.pi * min(over, 1.0)))
        for optimiser, rate in (
            (self.generator_optimiser, self.options.learning_rate),
            (self.critic_optimiser, self.options.critic_learning_rate),
        ):
            optimiser.param_groups[0]["lr"] = rate * factor

    def step(self) -> dict[str, Tensor]:
        """Critic steps and one generator step.

        Returns:
            Scalars on the device: losses, Wasserstein estimate, penalty, gradient norms.
        """
        stream = _stream(self.plan.config.seed, self.done, self.plan.device)
        self._set_rates()
        for i in range(self.options.critic_steps):
            reference, conditions = self.batches[self.done * self.options.critic_steps + i]
            found = self._critic_step(reference, conditions, stream)
        conditions = self.batches.sample_conditions(self.options.batch_size, stream)
        generated = self._draw(conditions, stream)
        scores = self.critic(self.critic.view(generated, conditions), self._scaled(conditions))
        loss = self.objective.generator(scores)
        self.generator_optimiser.zero_grad()
        loss.backward(inputs=self.trained)
        norm = _gradient_norm(self.trained)
        self.generator_optimiser.step()
        self.done += 1
        # A young average would remember the start for too long: shorten its memory at first.
        keep = min(self.options.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mine, live in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(live)
            torch._foreach_lerp_(self.averaged, self.trained, 1 - keep)
        return {**found, "generator_loss": loss.detach(), "generator_gradient": norm}

    def _critic_step(self, reference: Tensor, conditions: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            if self.options.augment:
                reference = self.augment(reference, stream)
            reference = self.critic.view(reference, conditions)
            generated = self.critic.view(self._draw(conditions, stream), conditions)
        scaled = self._scaled(conditions)
        scores = self.critic(reference, scaled), self.critic(generated, scaled)
        loss = self.objective.critic(*scores)
        penalty = loss.new_zeros(())
        if self.options.objective == "wgan-gp":
            penalty = gradient_penalty(self.critic, reference, generated, scaled, stream)
            loss = loss + self.options.penalty * penalty
        self.critic_optimiser.zero_grad()
        loss.backward()
        norm = _gradient_norm(self.critic.parameters())
        self.critic_optimiser.step()
        if self.options.objective == "wgan-clip":
            with torch.no_grad():
                for parameter in self.critic.parameters():
                    parameter.clamp_(-self.options.clip, self.options.clip)
        difference = (scores[0].mean() - scores[1].mean()).detach()
        return {
            "critic_loss": loss.detach(),
            "wasserstein": difference,
            "penalty": penalty.detach(),
            "critic_gradient": norm,
        }

    def _scaled(self, conditions: Tensor) -> Tensor:
        return scale_conditions(self.plan.family, self.plan.conditions, conditions)

    @torch.no_grad()
    def validate(self, reference: Samples) -> Record:
        """Physics score of the averaged generator, and how much better the critic likes data it was trained on.

        Args:
            reference: Validation samples, physical units.
        """
        device = self.plan.device
        columns = torch.from_numpy(condition_array(reference, self.plan.conditions)).to(device)
        stream = _stream(self.plan.config.seed, 2**40, device)  # the same latents at every validation
        parts = []
        for some in columns.split(500):
            latent = torch.randn(len(some), self.average.latent_size, generator=stream, device=device)
            parts.append(self.average(latent, some).cpu().numpy())
        generated = Samples(self.plan.family, np.concatenate(parts), dict(reference.conditions), kind="generated")
        trained = self.batches.samples(self.plan.family, len(reference))
        scores = [self._mean_score(samples) for samples in (trained, reference)]
        return {"score": physics_score(reference, generated), "critic_gap": scores[0] - scores[1]}

    def _mean_score(self, samples: Samples) -> float:
        total = 0.0
        for chunk in samples.chunks(500):
            values = torch.from_numpy(chunk.values).to(self.plan.device)
            conditions = torch.from_numpy(condition_array(chunk, self.plan.conditions)).to(self.plan.device)
            total += float(self.critic(self.critic.view(values, conditions), self._scaled(conditions)).sum())
        return total / len(samples)

    def state(self) -> dict[str, Tensor]:
        """Live networks and optimisers as named tensors."""
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        tensors |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        tensors |= optimiser_state(self.generator_optimiser, "generator_optimiser")
        return tensors | optimiser_state(self.critic_optimiser, "critic_optimiser")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: If it does not fit.
        """
        tensors = checkpoint.training_state()
        for module, prefix in ((self.generator, "generator."), (self.critic, "critic.")):
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            load_state(module, own, checkpoint.folder)
        self.arm()
        load_state(self.average, checkpoint.model, checkpoint.folder)
        load_optimiser(self.generator_optimiser, tensors, "generator_optimiser")
        load_optimiser(self.critic_optimiser, tensors, "critic_optimiser")
        self.done = checkpoint.card.step


def _gradient_norm(parameters: Any) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def train(
    config: Config,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    progress: Callable[[Record], None] | None = None,
    should_stop: Callable[[], int] | None = None,
) -> Run:
    """Train a surrogate.

    Args:
        config: What to do.
        data: As for :func:`prepare`.
        out: Run folder; must be empty or absent unless ``resume``.
        resume: Continue from the last checkpoint in ``out``.
        progress: Called with every log record and, between records, with ``{"step", "steps"}``.
        should_stop: Asked after every step; a signal number stops the run after a checkpoint.

    Returns:
        The finished run.

    Raises:
        ConfigError: Wrong configuration, or ``out`` not empty.
        ShardError: Unusable data.
        CheckpointError: Nothing to resume, or another run's checkpoint.
        DivergenceError: Numbers that are not finite; the last good checkpoint is kept.
        Interrupted: ``should_stop`` asked for it; the run can be resumed.
        StorageError: The disk refused.
    """
    plan = prepare(config, data)
    torch.set_num_threads(plan.threads)
    loop = TrainingLoop.start(plan, out, resume=resume, progress=progress)
    loop.run(should_stop or (lambda: 0))
    best = loop.folder.best()
    return Run(loop.folder.path, loop.trainer.done, best["score"] if best else None, tuple(loop.records))


class TrainingLoop:
    """Steps, log lines, validations and checkpoints at their intervals; made by :meth:`start`."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        card: Card,
        validation: Samples,
        progress: Callable[[Record], None] | None,
    ) -> None:
        self.trainer, self.folder, self.card, self.validation = trainer, folder, card, validation
        self.progress = progress or (lambda _: None)
        self.records: list[Record] = []
        self.sums: dict[str, Tensor] = {}
        self.begun = self.since = time.monotonic()
        self.counted = 0

    @classmethod
    def start(
        cls,
        plan: Plan,
        out: str | Path,
        *,
        resume: bool = False,
        check: bool = True,
        progress: Callable[[Record], None] | None = None,
    ) -> TrainingLoop:
        """Load the data, then fit a new run and save its start, or restore the last checkpoint.

        Args:
            plan: What to train.
            out: Run folder.
            resume: Restore.
            check: Validate and save the start of a new run.
            progress: As for :func:`train`.
        """
        folder, facts, options = RunFolder(Path(out)), _facts(plan), plan.config.training
        begun = time.monotonic()
        if resume:
            checkpoint, warning = resumable(folder, plan.config, facts)
        else:
            folder.require_empty()
        batches = Batches(
            plan.training,
            plan.conditions,
            options.batch_size,
            seed=plan.config.seed,
            device=plan.device,
            memory=options.memory,
            holdout=plan.config.holdout,
        )
        facts["dropped"] = plan.training.dropped
        trainer = Trainer(plan, batches)
        loop = cls(trainer, folder, _card(plan, batches, facts), _validation_samples(plan), progress)
        loop.begun = begun
        if resume:
            trainer.restore(checkpoint)
            folder.judge(checkpoint.card)  # the kill may have come between checkpoint and verdict
            loop.records = folder.records(trainer.done)
            folder.rewrite_log(loop.records)
            if warning:
                loop._tell({"step": trainer.done, "warning": warning})
        else:
            trainer.fit()
            trainer.arm()
            folder.create(plan.config, facts)  # only now: data that cannot be used leave nothing behind
            if plan.training.dropped:
                what = f"left out {plan.training.dropped} bad rows of {len(plan.training)} (drop_bad)"
                loop._tell({"step": 0, "warning": what})
            if check:
                facts = {"step": 0, "steps": options.steps, "seconds": round(time.monotonic() - begun, 3)}
                loop._tell(facts | trainer.validate(loop.validation))
                loop.save()  # the fitted start: the model to beat, and what is left if training diverges at once
        return loop

    def advance(self, steps: int) -> None:
        """Train for some steps, with log lines but no other interruption."""
        for _ in range(steps):
            self._step()
            if self.trainer.done % self.trainer.options.log_every == 0:
                self._log(validate=False)

    def run(self, should_stop: Callable[[], int]) -> None:
        """Train to the last step, the time limit or a signal."""
        trainer, options = self.trainer, self.trainer.options
        while trainer.done < options.steps:
            self._step()
            signal_number = should_stop() if trainer.done < options.steps else 0
            late = options.time is not None and time.monotonic() - self.begun >= options.time
            last = trainer.done == options.steps or late or bool(signal_number)
            validate = trainer.done % options.validate_every == 0 or (last and not signal_number)
            if validate or last or trainer.done % options.log_every == 0:
                self._log(validate=validate)
            else:
                self.progress({"step": trainer.done, "steps": options.steps})
            if trainer.done % options.checkpoint_every == 0 or last:
                self.save()
            if signal_number:
                raise Interrupted(
                    f"stopped by signal {signal_number} after step {trainer.done}; the run can be resumed",
                    signal_number=signal_number,
                    hint=f"calogen train ... --out {self.folder.path} --resume",
                )
            if late:
                return

    def _step(self) -> None:
        for name, value in self.trainer.step().items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counted += 1

    def _tell(self, record: Record) -> None:
        self.records.append(record)
        self.folder.log(record)
        self.progress(record)

    def _log(self, *, validate: bool) -> None:
        trainer, now = self.trainer, time.monotonic()
        values = {name: float(value) / self.counted for name, value in self.sums.items()}
        record: Record = {
            "step": trainer.done,
            "steps": trainer.options.steps,
            "seconds": round(now - self.begun, 3),
            **values,
            "steps_per_second": round(self.counted / max(now - self.since, 1e-9), 3),
        }
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        for name, weights in (("generator", trainer.trained), ("critic", trainer.critic.parameters())):
            if not wrong and not all(bool(torch.isfinite(p).all()) for p in weights):
                wrong = [f"{name} weights"]
        if wrong:
            self.folder.log({"step": trainer.done, "diverged": wrong})
            steps = self.folder.steps()
            kept = self.folder.checkpoints / f"step-{steps[-1]}" if steps else "none yet"
            raise DivergenceError(
                f"training diverged before step {trainer.done}: {', '.join(wrong)} not finite",
                where=self.folder.path,
                found=f"last good checkpoint: {kept}",
                hint="lower training.learning_rate and training.critic_learning_rate, then start again",
            )
        if validate:
            record |= trainer.validate(self.validation)
        self._tell(record)
        self.sums, self.counted, self.since = {}, 0, time.monotonic()

    def save(self) -> None:
        """Write a checkpoint of the current step, once its numbers are known to be finite."""
        if self.counted:
            self._log(validate=False)  # also checks that everything is finite
        scores = [r["score"] for r in self.records if r.get("step") == self.trainer.done and "score" in r]
        changes = {"step": self.trainer.done, "score": scores[-1] if scores else None}
        card, trainer = self.card.model_copy(update=changes), self.trainer
        self.folder.save(card, trainer.average.state_dict(), trainer.state())


def _validation_samples(plan: Plan) -> Samples:
    samples = plan.validation.read(0, plan.config.training.validation_size)
    samples = samples.select(~held_out(samples, plan.config.holdout))
    if not len(samples):
        raise ShardError("no validation samples are left outside the held-out ranges", hint="narrow --holdout")
    return samples


def _card(plan: Plan, batches: Batches, facts: Record) -> Card:
    low, high = batches.condition_range()
    ranges = []
    for i, name in enumerate(plan.conditions):
        usual = plan.family.condition(name)
        covered = usual.covered(float(low[i]), float(high[i]))
        ranges.append(ConditionRange(name=name, unit=usual.unit, low=covered[0], high=covered[1]))
    return Card(
        family=plan.family,
        conditions=tuple(ranges),
        config=plan.config,
        step=0,
        holdout=plan.config.holdout,
        provenance=facts,
    )


def _facts(plan: Plan) -> Record:
    return environment() | {
        "device": str(plan.device),
        "threads": plan.threads,
        "seed": plan.config.seed,
        "data": plan.training.digest(),
        "training_samples": len(plan.training),
        "validation_samples": len(plan.validation),
    }
