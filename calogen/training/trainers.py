"""One generator update at a time: against a critic, or by the likelihood of the data."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.metrics.validation import score as physics_score
from ..models.conditions import scale_conditions
from ..models.contract import Critic, Generator, LikelihoodGenerator
from ..models.registry import build_critic, build_generator
from ..runs.checkpoint import Checkpoint, load_optimiser, load_state, optimiser_state
from ..runs.folder import Record
from ..shards.samples import Samples
from .batches import Augmentation, Batches
from .health import diversity
from .objectives import OBJECTIVES, gradient_penalty
from .plan import Plan

_VALIDATION = 2**40  # the step whose random numbers every validation uses
_CHUNK = 500  # samples at a time outside training


def build_trainer(plan: Plan, batches: Batches) -> Trainer:
    """What trains the plan's generator by the plan's objective."""
    likelihood = plan.config.training.objective == "likelihood"
    return LikelihoodTrainer(plan, batches) if likelihood else AdversarialTrainer(plan, batches)


class Trainer(ABC):
    """A generator, its average and its optimiser; :meth:`step` is one update of it.

    Everything random in step t is a function of (seed, t); so are the learning rates, unless ``time`` limits the run.

    Args:
        plan: What to train.
        batches: Training data, in physical units.

    Attributes:
        generator: As trained.
        average: The average of its weights: what is kept.
        networks: All that learns, by name; each has an optimiser of that name once armed.
        done: Steps so far.
    """

    average: Generator

    def __init__(self, plan: Plan, batches: Batches) -> None:
        self.options, self.plan, self.batches = plan.config.training, plan, batches
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.config.seed)
            self.generator = build_generator(plan.family, plan.conditions, plan.config.generator)
            self.networks: dict[str, nn.Module] = {"generator": self.generator, **self._others()}
        self.augment = Augmentation(plan.family, plan.device)
        self.done = 0

    def _others(self) -> dict[str, nn.Module]:
        """Build what learns beside the generator."""
        return {}

    @abstractmethod
    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        """Update every network; returns scalars on the device for the log."""

    @abstractmethod
    def _judge(self, trained: Samples, reference: Samples) -> Record:
        """How much better training data are liked than validation data, and what else the log should hold."""

    def fit(self) -> None:
        """Fit to the data what is not learnt by gradients."""
        self.generator.fit(self.batches.samples(self.plan.family), self.plan.config.seed)

    def rates(self) -> dict[str, float]:
        """Learning rates before decay, by network."""
        return {"generator": self.options.learning_rate, "critic": self.options.critic_learning_rate}

    def arm(self) -> None:
        """Move to the device and make average and optimisers; once fitted or loaded."""
        for network in self.networks.values():
            network.to(self.plan.device)
        if not self.options.tune_transform:
            self.generator.transform.requires_grad_(False)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.trained: list[Tensor] = [p for p in self.generator.parameters() if p.requires_grad]
        self.averaged: list[Tensor] = [
            a for a, p in zip(self.average.parameters(), self.generator.parameters(), strict=True) if p.requires_grad
        ]
        self.optimisers = {
            name: torch.optim.Adam(
                [p for p in network.parameters() if p.requires_grad], lr=self.rates()[name], betas=self.options.betas
            )
            for name, network in self.networks.items()
        }

    def step(self, seconds: float = 0.0) -> dict[str, Tensor]:
        """Update every network, and the average.

        Args:
            seconds: Of the run so far; looked at only where ``time`` limits it.

        Returns:
            Scalars on the device, such as losses and gradient norms; nothing here waits for it.
        """
        factor = decay_factor(self.done, self.options.steps, self.options.decay)
        if self.options.time is not None:  # whichever clock is further
            factor = min(factor, decay_factor(seconds, self.options.time, self.options.decay))
        for name, rate in self.rates().items():
            if name in self.optimisers:
                self.optimisers[name].param_groups[0]["lr"] = rate * factor
        found = self._update(_stream(self.plan.config.seed, self.done, self.plan.device))
        self.done += 1
        # A young average would remember the start for too long: shorten its memory at first.
        keep = min(self.options.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mine, live in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(live)
            torch._foreach_lerp_(self.averaged, self.trained, 1 - keep)
        return found

    def _descend(self, name: str, loss: Tensor, parameters: list[Tensor]) -> Tensor:
        """One step of a network's optimiser; returns the norm of the gradient."""
        self.optimisers[name].zero_grad()
        loss.backward(inputs=parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimisers[name].step()
        return norm

    @torch.no_grad()
    def validate(self, reference: Samples) -> Record:
        """Physics score and diversity of the averaged generator, and signs of learning by heart.

        Args:
            reference: Validation samples, physical units.
        """
        device = self.plan.device
        columns = torch.from_numpy(reference.conditions.array(self.plan.conditions)).to(device)
        stream = _stream(self.plan.config.seed, _VALIDATION, device)
        parts = []
        for some in columns.split(_CHUNK):
            latent = torch.randn(len(some), self.average.latent_size, generator=stream, device=device)
            parts.append(self.average(latent, some).cpu().numpy())
        generated = Samples(self.plan.family, np.concatenate(parts), reference.conditions, kind="generated")
        trained = self.batches.samples(self.plan.family, len(reference))
        found = {"score": physics_score(reference, generated), "diversity": diversity(reference, generated)}
        return found | self._judge(trained, reference)

    def _chunks(self, samples: Samples) -> Iterable[tuple[Tensor, Tensor]]:
        """Samples and their conditions (B, C) on the device, some at a time."""
        for chunk in samples.chunks(_CHUNK):
            values, columns = chunk.values, chunk.conditions.array(self.plan.conditions)
            yield torch.from_numpy(values).to(self.plan.device), torch.from_numpy(columns).to(self.plan.device)

    def state(self) -> dict[str, Tensor]:
        """Live networks and optimisers as named tensors."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors |= optimiser_state(optimiser, f"{name}_optimiser")
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: If it does not fit.
        """
        tensors = checkpoint.training_state()
        for name, network in self.networks.items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            load_state(network, own, checkpoint.folder)
        self.arm()
        load_state(self.average, checkpoint.model, checkpoint.folder)
        for name, optimiser in self.optimisers.items():
            load_optimiser(optimiser, tensors, f"{name}_optimiser")
        self.done = checkpoint.card.step


class AdversarialTrainer(Trainer):
    """Generator against critic: several critic steps before each of the generator's.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1; Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.
    """

    critic: Critic

    def _others(self) -> dict[str, nn.Module]:
        self.objective = OBJECTIVES[self.options.objective]
        steps = self.options.critic_steps
        self._penalty_share = steps / len(range(0, steps, self.options.penalty_every))  # rarer, so heavier
        self.critic = build_critic(self.generator, self.plan.config.critic, self.options.objective)
        return {"critic": self.critic}

    def fit(self) -> None:
        """Fit transform, start of the generator and standardisation of the critic to the data."""
        super().fit()
        self.critic.fit(self.batches.samples(self.plan.family), self.plan.conditions)

    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        found, size = {}, self.options.batch_size
        reference, generated, scaled = self._views(stream)
        for i in range(self.options.critic_steps):
            mine = slice(i * size, (i + 1) * size)
            # Lazy penalties (Karras et al. 2020, arXiv:1912.04958) spare some steps theirs, never the last one.
            lazy = (self.options.critic_steps - 1 - i) % self.options.penalty_every > 0
            found = self._critic_step(reference[mine], generated[mine], scaled[mine], stream, lazy=lazy)
        conditions = self.batches.sample_conditions(self.options.batch_size, stream)
        views = self.critic.view(self._draw(conditions, stream), conditions)
        loss = self.objective.generator(self.critic(views, self._scaled(conditions)))
        norm = self._descend("generator", loss, self.trained)
        return {**found, "generator_loss": loss.detach(), "generator_gradient": norm}

    def _draw(self, conditions: Tensor, stream: torch.Generator) -> Tensor:
        latent = torch.randn(len(conditions), self.generator.latent_size, generator=stream, device=conditions.device)
        samples: Tensor = self.generator(latent, conditions)
        return self.augment(samples, stream) if self.options.augment else samples

    @torch.no_grad()
    def _views(self, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the critic sees in all its steps, made at once: reference, generated, conditions."""
        first = self.done * self.options.critic_steps
        pairs = [self.batches[first + i] for i in range(self.options.critic_steps)]
        samples, conditions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        if self.options.augment:
            samples = self.augment(samples, stream)
        generated = self.critic.view(self._draw(conditions, stream), conditions)
        return self.critic.view(samples, conditions), generated, self._scaled(conditions)

    def _critic_step(
        self, reference: Tensor, generated: Tensor, scaled: Tensor, stream: torch.Generator, *, lazy: bool
    ) -> dict[str, Tensor]:
        scores = self.critic(reference, scaled), self.critic(generated, scaled)
        loss = self.objective.critic(*scores)
        penalty = loss.new_zeros(())
        if self.options.objective == "wgan-gp" and not lazy:
            penalty = gradient_penalty(self.critic, reference, generated, scaled, stream)
            loss = loss + self.options.penalty * self._penalty_share * penalty
        norm = self._descend("critic", loss, list(self.critic.parameters()))
        if self.options.objective == "wgan-clip":
            with torch.no_grad():
                torch._foreach_clamp_min_(list(self.critic.parameters()), -self.options.clip)
                torch._foreach_clamp_max_(list(self.critic.parameters()), self.options.clip)
        return {
            "critic_loss": loss.detach(),
            "wasserstein": (scores[0].mean() - scores[1].mean()).detach(),
            "penalty": penalty.detach(),
            "critic_gradient": norm,
        }

    def _scaled(self, conditions: Tensor) -> Tensor:
        return scale_conditions(self.plan.family, self.plan.conditions, conditions)

    def _judge(self, trained: Samples, reference: Samples) -> Record:
        scores = [self._mean_score(samples) for samples in (trained, reference)]
        return {"critic_gap": scores[0] - scores[1]}

    def _mean_score(self, samples: Samples) -> float:
        sums = [self.critic(self.critic.view(x, c), self._scaled(c)).sum() for x, c in self._chunks(samples)]
        return float(torch.stack(sums).sum()) / len(samples)


class LikelihoodTrainer(Trainer):
    """A generator with a loss of its own: minus the likelihood of the data, or a bound on it."""

    generator: LikelihoodGenerator

    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        samples, conditions = self.batches[self.done]
        if self.options.augment:
            samples = self.augment(samples, stream)
        loss = self.generator.loss(samples, conditions, stream)
        norm = self._descend("generator", loss, self.trained)
        return {"generator_loss": loss.detach(), "generator_gradient": norm}

    def _judge(self, trained: Samples, reference: Samples) -> Record:
        losses = [self._mean_loss(samples) for samples in (trained, reference)]
        return {"loss": losses[1], "loss_gap": losses[1] - losses[0]}

    def _mean_loss(self, samples: Samples) -> float:
        stream, average = _stream(self.plan.config.seed, _VALIDATION, self.plan.device), self.average
        losses = [average.loss(x, c, stream) * len(x) for x, c in self._chunks(samples)]  # type: ignore[operator]
        return float(torch.stack(losses).sum()) / len(samples)


def decay_factor(done: float, end: float, decay: float) -> float:
    """Share of the learning rate after ``done`` of ``end`` steps or seconds.

    It is 1, then a cosine to 0 over the last part ``decay``.
    """
    start = (1 - decay) * end
    over = max(0.0, done - start) / max(1.0, end - start)
    return 0.5 * (1 + math.cos(math.pi * min(over, 1.0)))


def _stream(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step."""
    words = np.random.SeedSequence((seed, step)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
