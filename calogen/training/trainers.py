"""One generator update at a time: against a critic, or by the likelihood of the data."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.metrics.validation import judge
from ..models.conditions import inputs_of
from ..models.contract import Critic, Generator, LikelihoodGenerator
from ..models.registry import build_critic, build_generator, build_summaries
from ..models.streams import Share, Stream, drawn
from ..runs.checkpoint import Checkpoint, load_optimiser, load_state, optimiser_state
from ..runs.folder import Record
from ..shards.samples import Samples
from .batches import Augmentation, Batches
from .health import diversity
from .objectives import Objective
from .setup import Setup

_VALIDATION = 2**40  # the step whose random numbers every validation uses
_CHUNK = 500  # samples at a time outside training
_LONGEST = 1.0  # gradient in matching


class Trainer(ABC):
    """A generator and its average; :meth:`step` is one update of them.

    Everything random in step t is a function of (seed, t).

    Args:
        setup: What to train.
        batches: Training data, in physical units.

    Attributes:
        generator: As trained.
        average: The average of its weights: what is kept.
        networks: All that learns, by name.
        done: Steps so far.
        finished: Why there is nothing more to learn; empty: there may be.
    """

    average: Generator
    finished = ""

    def __init__(self, setup: Setup, batches: Batches) -> None:
        self.options, self.setup, self.batches, self.ranks = setup.config.training, setup, batches, setup.ranks
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.config.seed)
            self.generator = build_generator(setup.family, setup.conditions, setup.config.generator)
            self.networks: dict[str, nn.Module] = {"generator": self.generator, **self._others()}
        self.done = 0

    def _others(self) -> dict[str, nn.Module]:
        """Build what learns beside the generator."""
        return {}

    def fit(self) -> None:
        """Fit to the data what is not learnt by gradients."""
        samples, seed = self.batches.samples(self.setup.family), self.setup.config.seed
        if self.setup.prior is None:
            self.generator.fit(samples, seed)
        else:
            self.generator.fit_from(self.setup.prior.generator(), samples, seed)

    @abstractmethod
    def arm(self) -> None:
        """Make what training needs, the average among it; once fitted or loaded."""

    @abstractmethod
    def step(self, seconds: float = 0.0) -> dict[str, Tensor]:
        """Update every network, and the average.

        Args:
            seconds: Of the run so far; looked at only where ``time`` limits it.

        Returns:
            Scalars for the log, on the device.
        """

    @torch.no_grad()
    def validate(self, reference: Samples) -> Record:
        """Physics score and diversity of the averaged generator, and signs of learning by heart.

        Args:
            reference: Validation samples, physical units.
        """
        device = self.setup.device
        columns = torch.from_numpy(inputs_of(reference, self.setup.conditions, self.setup.family)).to(device)
        stream = stream_of(self.setup.config.seed, _VALIDATION, device)
        values = torch.zeros(reference.values.shape)
        with self.ranks.apart():
            for number, (some, made) in enumerate(zip(columns.split(_CHUNK), values.split(_CHUNK), strict=True)):
                latent = torch.randn(len(some), self.average.latent_size, generator=stream, device=device)
                if number % self.ranks.size == self.ranks.rank:
                    made.copy_(self.average(latent, some))
        self.ranks.add(values)  # each rank has made some of them
        generated = Samples(self.setup.family, values.numpy(), dict(reference.conditions), kind="generated")
        found, signs = Record(), Record()
        with self.ranks.apart():
            if self.ranks.last:
                judged = judge(reference, generated)
                found = {"score": judged.score, "diversity": diversity(reference, generated)}
                if judged.constant:  # observables without a spread: not in the score, so they are said
                    unequal = float(np.mean(list(judged.constant.values())))
                    found |= {"constant": len(judged.constant), "unequal": unequal}
            if self.ranks.first:
                signs = self._signs(self.batches.samples(self.setup.family, len(reference)), reference)
        return self.ranks.told(found, by=self.ranks.size - 1) | self.ranks.told(signs)

    def _signs(self, trained: Samples, reference: Samples) -> Record:  # noqa: ARG002
        """Signs of learning by heart, for the log, from training and validation samples."""
        return {}

    def selection(self, best: Callable[[], Generator]) -> dict[str, Tensor] | None:  # noqa: ARG002
        """Critics that choose among candidates for a sample, where there are some.

        Args:
            best: Loads the best generator of the run, by which samples are made.
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs besides the average, as named tensors."""
        tensors: dict[str, Tensor] = nn.ModuleDict(self.networks).state_dict()
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: If it does not fit.
        """
        tensors = checkpoint.training_state()
        own = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in self.networks}
        load_state(nn.ModuleDict(self.networks), own, checkpoint.folder)
        self.arm()
        load_state(self.average, checkpoint.model, checkpoint.folder)
        self.done = checkpoint.card.step


class GradientTrainer(Trainer):
    """Networks that learn by Adam.

    Learning rates are a function of the step, too, unless ``time`` limits the run.

    Attributes:
        rates: Learning rates before decay, by network.
        optimisers: By network, once armed.
    """

    def __init__(self, setup: Setup, batches: Batches) -> None:
        super().__init__(setup, batches)
        self.rates = {"generator": self.options.learning_rate, "critic": self.options.critic_learning_rate}
        self.augment = Augmentation(setup.family, setup.conditions, setup.device)
        self.share = self.ranks.share(self.options.batch_size)

    @abstractmethod
    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        """Update every network; returns scalars on the device for the log."""

    def _total(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:  # noqa: ARG002
        """What the networks make of samples with conditions, both in physical units: a sum over them."""
        return samples.new_zeros(())

    def _judged(self, trained: float, reference: float) -> Record:  # noqa: ARG002
        """What the log should hold of the mean of :meth:`_total` over training and over validation samples."""
        return {}

    def arm(self) -> None:
        """Move to the device and make average and optimisers; once fitted or loaded."""
        for network in self.networks.values():
            network.to(self.setup.device)
            self.ranks.join(network)
        if not self.options.tune_transform:
            self.generator.transform.requires_grad_(False)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.trained: list[Tensor] = [p for p in self.generator.parameters() if p.requires_grad]
        self.averaged: list[Tensor] = [
            a for a, p in zip(self.average.parameters(), self.generator.parameters(), strict=True) if p.requires_grad
        ]
        self.optimisers = {
            name: torch.optim.Adam(
                [p for p in network.parameters() if p.requires_grad], lr=self.rates[name], betas=self.options.betas
            )
            for name, network in self.networks.items()
            if any(p.requires_grad for p in network.parameters())
        }

    def step(self, seconds: float = 0.0) -> dict[str, Tensor]:
        """Update every network, and the average; nothing here waits for the device."""
        factor = decay_factor(self.done, self.options.steps, self.options.decay)
        if self.options.time is not None:  # whichever clock is further
            factor = min(factor, decay_factor(seconds, self.options.time, self.options.decay))
        for name, optimiser in self.optimisers.items():
            optimiser.param_groups[0]["lr"] = self.rates[name] * factor
        found = self._update(stream_of(self.setup.config.seed, self.done, self.setup.device, self.share))
        self.done += 1
        # A young average would remember the start for too long: shorten its memory at first.
        keep = min(self.options.ema, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for mine, live in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                mine.copy_(live)
            torch._foreach_lerp_(self.averaged, self.trained, 1 - keep)
        return found

    def _augmented(self, stream: torch.Generator, conditions: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
        return self.augment(stream, conditions, *samples) if self.options.augment else (conditions, *samples)

    def _descend(self, name: str, loss: Tensor, parameters: list[Tensor], longest: float = math.inf) -> Tensor:
        """One step of a network's optimiser, its gradient no longer than ``longest``; returns its norm before that."""
        self.optimisers[name].zero_grad()
        loss.backward(inputs=parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.ranks.mean_gradients(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if longest < math.inf:
            torch._foreach_mul_(gradients, (longest / norm.clamp(min=1e-12)).clamp(max=1.0))
        self.optimisers[name].step()
        return norm

    def _signs(self, trained: Samples, reference: Samples) -> Record:
        return self._judged(self._mean(trained), self._mean(reference))

    def _mean(self, samples: Samples) -> float:
        """The mean of :meth:`_total`, with the same random numbers in every validation."""
        device, sums = self.setup.device, []
        stream = stream_of(self.setup.config.seed, _VALIDATION, device)
        for chunk in samples.chunks(_CHUNK):
            values, columns = chunk.values, inputs_of(chunk, self.setup.conditions, self.setup.family)
            sums.append(self._total(torch.from_numpy(values).to(device), torch.from_numpy(columns).to(device), stream))
        return float(torch.stack(sums).sum()) / len(samples)

    def state(self) -> dict[str, Tensor]:
        """Live networks and optimisers as named tensors."""
        tensors = super().state()
        for name, optimiser in self.optimisers.items():
            tensors |= optimiser_state(optimiser, f"{name}_optimiser")
        return tensors

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        super().restore(checkpoint)
        tensors = checkpoint.training_state()
        for name, optimiser in self.optimisers.items():
            load_optimiser(optimiser, tensors, f"{name}_optimiser")


class AdversarialTrainer(GradientTrainer):
    """Generator against critic: several critic steps before each of the generator's.

    Source: Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1; Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.
    """

    critic: Critic

    def __init__(self, setup: Setup, batches: Batches, objective: Objective) -> None:
        self.objective, steps = objective, setup.config.training.critic_steps
        self._penalty_share = steps / len(range(0, steps, setup.config.training.penalty_every))  # rarer, so heavier
        super().__init__(setup, batches)

    def _others(self) -> dict[str, nn.Module]:
        per_sample = self.objective.penalty is not None
        self.critic = build_critic(self.generator, self.setup.config.critic, per_sample=per_sample)
        return {"critic": self.critic}

    def fit(self) -> None:
        """Fit transform, start of the generator and standardisation of the critic to the data."""
        super().fit()
        self.critic.fit(self.batches.samples(self.setup.family), self.setup.conditions)

    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        found, size = {}, self.share.rows
        reference, generated, scaled = self._views(stream)
        for i in range(self.options.critic_steps):
            mine = slice(i * size, (i + 1) * size)
            # Lazy penalties (Karras et al. 2020, arXiv:1912.04958) spare some steps theirs, never the last one.
            lazy = (self.options.critic_steps - 1 - i) % self.options.penalty_every > 0
            found = self._critic_step(reference[mine], generated[mine], scaled[mine], stream, lazy=lazy)
        conditions = self.batches.sample_conditions(size, stream)
        conditions, generated = self._augmented(stream, conditions, self._draw(conditions, stream))
        views = self.critic.view(generated, conditions)
        loss = self.objective.generator(self.critic(views, self.generator.scaled(conditions)))
        norm = self._descend("generator", loss, self.trained)
        return {**found, "generator_loss": loss.detach(), "generator_gradient": norm}

    def _draw(self, conditions: Tensor, stream: torch.Generator) -> Tensor:
        shape = (len(conditions), self.generator.latent_size)
        latent = drawn(torch.randn, shape, stream, device=conditions.device)
        samples: Tensor = self.generator(latent, conditions)
        return samples

    @torch.no_grad()
    def _views(self, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the critic sees in all its steps, made at once: reference, generated, conditions."""
        first = self.done * self.options.critic_steps
        pairs = [self.batches[first + i] for i in range(self.options.critic_steps)]
        samples, conditions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        # Both are moved alike: the critic compares them, and takes its penalty between them, at equal conditions.
        conditions, *both = self._augmented(stream, conditions, samples, self._draw(conditions, stream))
        reference, generated = (self.critic.view(side, conditions) for side in both)
        return reference, generated, self.generator.scaled(conditions)

    def _critic_step(
        self, reference: Tensor, generated: Tensor, scaled: Tensor, stream: torch.Generator, *, lazy: bool
    ) -> dict[str, Tensor]:
        values = self.critic(reference, scaled), self.critic(generated, scaled)
        loss = self.objective.critic(*values)
        penalty = loss.new_zeros(())
        if self.objective.penalty and not lazy:
            penalty = self.objective.penalty(self.critic, reference, generated, scaled, stream)
            weight = self.objective.weight if self.options.penalty is None else self.options.penalty
            loss = loss + weight * self._penalty_share * penalty
        norm = self._descend("critic", loss, list(self.critic.parameters()))
        if self.objective.bound:
            self.objective.bound(self.critic, self.options)
        return {
            "critic_loss": loss.detach(),
            "wasserstein": (values[0].mean() - values[1].mean()).detach(),
            "penalty": penalty.detach(),
            "critic_gradient": norm,
        }

    def _total(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:  # noqa: ARG002
        total: Tensor = self.critic(self.critic.view(samples, conditions), self.generator.scaled(conditions)).sum()
        return total

    def _judged(self, trained: float, reference: float) -> Record:
        return {"critic_gap": trained - reference}


class LikelihoodTrainer(GradientTrainer):
    """A generator with a loss of its own: minus the likelihood of the data, or a bound on it."""

    generator: LikelihoodGenerator
    average: LikelihoodGenerator

    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        samples, conditions = self.batches[self.done]
        conditions, samples = self._augmented(stream, conditions, samples)
        loss = self.generator.loss(samples, conditions, stream)
        norm = self._descend("generator", loss, self.trained)
        return {"generator_loss": loss.detach(), "generator_gradient": norm}

    def _total(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        return self.average.loss(samples, conditions, stream) * len(samples)

    def _judged(self, trained: float, reference: float) -> Record:
        return {"loss": reference, "loss_gap": reference - trained}


class MatchingTrainer(GradientTrainer):
    """A generator whose batches are to have the summary statistics of the data: see :class:`Summaries`."""

    def _others(self) -> dict[str, nn.Module]:
        self.summaries = build_summaries(self.generator)
        return {"summaries": self.summaries}

    def fit(self) -> None:
        """Fit the start of the generator and the standardisation of the statistics to the data."""
        super().fit()
        samples = self.batches.samples(self.setup.family)
        columns = torch.from_numpy(samples.conditions.array(self.setup.conditions))
        self.summaries.fit(samples, self.generator.scaled(columns))

    def _update(self, stream: torch.Generator) -> dict[str, Tensor]:
        reference, conditions = self.batches[self.done]
        latent = torch.randn(len(conditions), self.generator.latent_size, generator=stream, device=conditions.device)
        generated, fitted = self.generator.with_start(latent, conditions)
        parts = self.summaries(generated, fitted, reference, self.generator.scaled(conditions))
        loss = torch.stack(list(parts.values())).sum()
        norm = self._descend("generator", loss, self.trained, _LONGEST)  # single batches differ much
        found = {name: part.detach() for name, part in parts.items()}
        return {**found, "generator_loss": loss.detach(), "generator_gradient": norm}


def decay_factor(done: float, end: float, decay: float) -> float:
    """Share of the learning rate after ``done`` of ``end`` steps or seconds.

    It is 1, then a cosine to 0 over the last part ``decay``.
    """
    start = (1 - decay) * end
    over = max(0.0, done - start) / max(1.0, end - start)
    return 0.5 * (1 + math.cos(math.pi * min(over, 1.0)))


def stream_of(seed: int, step: int, device: torch.device, share: Share | None = None) -> torch.Generator:
    """The random numbers of one step, and which rows of its batches are wanted (none: all)."""
    words = np.random.SeedSequence((seed, step)).generate_state(2, np.uint32)
    stream = torch.Generator(device)
    if share is not None and share.ranks > 1:
        stream = Stream(device)
        stream.share = share
    return stream.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
