"""What every generator and every critic can do; training, checkpoints and sampling know no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..families import Family
from ..shards.samples import Samples
from .conditions import scale_conditions, scaled_size
from .refinement import Refinement, Scene, Selection

Array = NDArray[np.float32]


class Inference(Protocol):
    """A generator as it makes samples.

    Attributes:
        name: Of the code that makes them.
        version: Of that code: one more whenever the bits of a sample change.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def __call__(self, latent: Array, conditions: Array, /) -> Array:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""
        ...


class Generator(nn.Module, ABC):
    """Makes samples in physical units from latent numbers and conditions.

    A class of generators is called with the family, the names of the conditions and, by keyword, those settings of
    :class:`~calogen.config.GeneratorConfig` that it knows; their defaults are its own. It can be built on device
    ``meta``, where tensors have no values, like its critic: outlines are built there to count and check.

    Args:
        family: What is made.
        conditions: Names of the conditions, in the order of the columns given to the network.

    Attributes:
        network: Its name in :data:`calogen.models.registry.NETWORKS`.
        latent_size: Standard normals that one sample takes (Z).
        coarse: How many of them, at the end, may be of low resolution.
        shared: How many, at the start, candidates for the same sample have in common.
        scaled_size: Columns of :meth:`scaled` (D).
        transform: Between physical units and network space; fitted, and not changed by training unless
            ``tune_transform``.
        refinement: What projected training can change; none: nothing.
        passes: Steps that a sample takes, of which none can begin before the last one has ended.
        remarks: What the log should say about the fit.
    """

    network: str
    latent_size: int
    coarse: int = 0
    shared: int = 0
    passes: int = 1
    transform: nn.Module
    refinement: Refinement | None
    remarks: tuple[str, ...] = ()

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.family, self.conditions, self.refinement = family, tuple(conditions), None
        self.scaled_size = scaled_size(family, self.conditions)

    @property
    def ceiling(self) -> float | None:
        """The largest value that it makes, to which it clips larger ones; none: it clips none."""
        return None

    def scaled(self, conditions: Tensor) -> Tensor:
        """Conditions (B, D), dimensionless, from conditions (B, C) in their units."""
        return scale_conditions(self.family, self.conditions, conditions)

    def equivalent(self, conditions: Array, low: Sequence[float], high: Sequence[float]) -> Array:  # noqa: ARG002
        """Conditions (N, C) of samples that differ by exact laws only, within the trained ranges where there are such.

        Args:
            conditions: (N, C), in their units, possible ones.
            low: Lower ends of the trained ranges, C of them.
            high: Upper ends.

        Raises:
            ConditionError: If samples with some conditions cannot be, whatever was trained.
        """
        return conditions

    def fit(self, samples: Samples, seed: int) -> None:
        """Fit all that is not learnt by gradients to training samples, in physical units; nothing unless overridden."""

    def fit_from(self, prior: Generator, samples: Samples, seed: int) -> None:  # noqa: ARG002
        """Take over a fitted generator of the same family and conditions, and fit to samples what they can say.

        Raises:
            ConfigError: If this network cannot.
        """
        raise ConfigError(
            f"network '{self.network}' cannot start from another surrogate",
            where="prior",
            expected="network 'copula' or 'zeldovich'",
            hint="train without `prior`",
        )

    def scenes(self, samples: Samples) -> Sequence[Scene]:  # noqa: ARG002
        """Training samples, in physical units, and generated ones at their conditions, for projected training.

        Each scene has a refinement of its own; candidates are chosen by critics of the first one.

        Raises:
            ConfigError: If this network has no refinement.
        """
        raise ConfigError(
            f"network '{self.network}' has no refinement, which projected training computes",
            where="training.update",
            expected="a network with a refinement",
            hint="set training.update=adam",
        )

    def selection(self, critics: int) -> Selection | None:  # noqa: ARG002
        """What chooses among samples, with so many critics, whose tensors are to be loaded; none: nothing can."""
        return None

    def with_start(self, latent: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Samples, and the same without what gradients have taught: those of the fitted start.

        Raises:
            ConfigError: If this network has no fitted start.
        """
        raise ConfigError(f"network '{self.network}' has no fitted start to keep to", where="training.objective")

    @abstractmethod
    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""

    def folded(self) -> Inference:
        """The same function to rounding, as it runs on a CPU; networks that have a faster form override it.

        It is sent to worker processes, so it must be possible to pickle it.
        """
        return OnArrays(self)


@dataclass(frozen=True)
class OnArrays:
    """A function of tensors as one of numpy arrays, without gradients.

    Attributes:
        name: Of this way to make samples, and
        version: its version.
        function: Samples (B, ...) of latent numbers (B, Z) and conditions (B, C), on the CPU.
        rows: Samples made at a time, so that what is worked on stays in the cache; none: all at once.
    """

    name: ClassVar[str] = "torch"
    version: ClassVar[int] = 1

    function: Callable[[Tensor, Tensor], Tensor]
    rows: int | None = None

    @torch.inference_mode()
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""
        inputs, step = (latent, np.ascontiguousarray(conditions)), self.rows or max(1, len(latent))
        starts = range(0, max(1, len(latent)), step)
        parts = [self.function(*(torch.from_numpy(a[i : i + step]) for a in inputs)).numpy() for i in starts]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


class LikelihoodGenerator(Generator):
    """A generator that learns from reference samples alone, without a critic (objective ``likelihood``)."""

    @abstractmethod
    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        """What to minimise: minus the log likelihood, or a bound on it, averaged over the batch.

        Args:
            samples: Reference samples (B, ...), in physical units.
            conditions: (B, C), in their units.
            stream: Source of all random numbers, on the device of the samples; so a resumed run repeats itself. What is
                random in a row comes from :func:`.streams.drawn`.

        Returns:
            Scalar with gradients to the parameters, a mean over rows.
        """


class Summaries(nn.Module, ABC):
    """Judges batches of samples by summary statistics, without learning (objective ``matching``).

    A class of summaries is called with the generator.
    """

    @abstractmethod
    def fit(self, samples: Samples, scaled: Tensor) -> None:
        """Standardise the statistics on training samples, in physical units, with their scaled conditions (N, D)."""

    @abstractmethod
    def forward(self, generated: Tensor, fitted: Tensor, reference: Tensor, scaled: Tensor) -> dict[str, Tensor]:
        """Parts of what to minimise, scalars, by name.

        Args:
            generated: Samples (B, ...) in physical units; gradients go through them.
            fitted: The same without what is learnt: see :meth:`Generator.with_start`.
            reference: Training samples of the same conditions.
            scaled: Those, (B, D).
        """


class Critic(nn.Module, ABC):
    """Judges samples. :meth:`view` prepares them once; the gradient penalty is taken in the space of views.

    A class of critics is called with the generator and, by keyword, those settings of
    :class:`~calogen.config.CriticConfig` that it knows, and ``per_sample`` if it can do without that.
    """

    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Standardise the views on training samples, in physical units; nothing unless overridden."""

    @abstractmethod
    def view(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Views (B, ...), dimensionless, of samples (B, ...) and conditions (B, C), both in physical units."""

    @abstractmethod
    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,), unbounded and larger for reference, of views (B, ...) with scaled conditions (B, C)."""
