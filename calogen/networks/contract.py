"""What every generator and every critic can do; training, checkpoints and sampling know no more than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ..families import Family
from ..shards import Samples


class Generator(nn.Module, ABC):
    """Makes samples in physical units from latent numbers and conditions.

    Attributes:
        family: What is made.
        conditions: Names of the conditions, in the order of the columns given to the network.
        transform: Between physical units and network space; fitted, and left alone by the adversary unless
            ``tune_transform``.
    """

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

    @abstractmethod
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit all that is not learnt by gradients to training samples, in physical units."""

    @abstractmethod
    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""


class Critic(nn.Module, ABC):
    """Scores samples. :meth:`view` prepares them once; the gradient penalty is taken in the space of views."""

    @abstractmethod
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Standardise the views on training samples, in physical units."""

    @abstractmethod
    def view(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Views (B, ...), dimensionless, of samples (B, ...) and conditions (B, C), both in physical units."""

    @abstractmethod
    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Scores (B,), unbounded, of views (B, ...) with scaled conditions (B, C)."""
