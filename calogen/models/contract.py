"""What every generator and every critic can do; training, checkpoints and sampling know no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..families import Family
from ..shards.samples import Samples


class Generator(nn.Module, ABC):
    """Makes samples in physical units from latent numbers and conditions.

    A class of generators is called with the family, the names of the conditions and, by keyword, those settings of
    :class:`~calogen.config.GeneratorConfig` that it knows; their defaults are its own. It can be built on device
    ``meta``, where tensors have no values, like its critic: outlines are built there to count and check.

    Attributes:
        network: Its name in :data:`calogen.models.registry.NETWORKS`.
        family: What is made.
        conditions: Names of the conditions, in the order of the columns given to the network.
        transform: Between physical units and network space; fitted, and left alone by the adversary unless
            ``tune_transform``.
        remarks: What the log should say about the fit.
    """

    network: str
    remarks: tuple[str, ...] = ()
    family: Family
    conditions: tuple[str, ...]
    transform: nn.Module

    @property
    @abstractmethod
    def latent_size(self) -> int:
        """Standard normals that one sample takes (Z)."""

    @property
    def coarse(self) -> int:
        """How many of them, at the end, may be of low resolution."""
        return 0

    @property
    def ceiling(self) -> float | None:
        """The largest value that it makes, to which it clips larger ones; none: it clips none."""
        return None

    @abstractmethod
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit all that is not learnt by gradients to training samples, in physical units."""

    @abstractmethod
    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""


class LikelihoodGenerator(Generator):
    """A generator that learns from reference samples alone, without a critic (objective ``likelihood``)."""

    @abstractmethod
    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        """What to minimise: minus the log likelihood, or a bound on it, averaged over the batch.

        Args:
            samples: Reference samples (B, ...), in physical units.
            conditions: (B, C), in their units.
            stream: Source of everything random, on the device of the samples; so a resumed run repeats itself.

        Returns:
            Scalar with gradients to the parameters.
        """


class Critic(nn.Module, ABC):
    """Scores samples. :meth:`view` prepares them once; the gradient penalty is taken in the space of views.

    A class of critics is called with the generator and, by keyword, those settings of
    :class:`~calogen.config.CriticConfig` that it knows, and ``objective`` (a name) if it wants to know that.
    """

    @abstractmethod
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Standardise the views on training samples, in physical units."""

    @abstractmethod
    def view(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Views (B, ...), dimensionless, of samples (B, ...) and conditions (B, C), both in physical units."""

    @abstractmethod
    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Scores (B,), unbounded, of views (B, ...) with scaled conditions (B, C)."""
