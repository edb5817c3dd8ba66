"""Density maps <-> network space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...families import Family
from ...shards.samples import Samples
from .distributions import ENDS, ConditionalDistribution, interpolate, position_in

_LARGEST = 1 - 1e-3  # largest value that is inverted
_NODES = 256  # of the tables from normals to logarithms of densities


class MapTransform(nn.Module):
    """Density maps to [-1, 1): y = 2x / (x + a) - 1, with exact inverse.

    Args:
        family: A map family.
        scale: The constant a; none: fitted.

    Source: Rodriguez et al. 2018, arXiv:1801.09070, eq. 1.
    """

    a: Tensor

    def __init__(self, family: Family, scale: float | None = None) -> None:
        super().__init__()
        self.family, self._given = family, scale
        self.register_buffer("a", torch.tensor(scale or 4.0))

    @property
    def limit(self) -> float:
        """The largest density that there is an inverse for: near 1 a small change of y would be a huge one of x."""
        return float(self.inverse(torch.ones((), device=self.a.device)))

    def fit(self, samples: Samples) -> float:
        """Choose ``a``, unless it was given, so that the pixels' 99th percentile lands at 0.5.

        Args:
            samples: In physical units.

        Returns:
            Share of their pixels above :attr:`limit`, which the inverse clips.
        """
        if self._given is None:
            bright = float(np.percentile(samples.values[:2000], 99))
            self.a.fill_(max(bright / 3, 1e-3))
        return float(np.mean(samples.values > self.limit))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, H, W), physical, to network space (B, H, W)."""
        return 2 * maps / (maps + self.a) - 1

    def inverse(self, scaled: Tensor) -> Tensor:
        """Network space to physical; values beyond that of :attr:`limit` are clipped to it."""
        scaled = scaled.clamp(-1.0, _LARGEST)
        return self.a * (1 + scaled) / (1 - scaled)


class DensityNormals(nn.Module):
    """Density maps <-> standard normals of their pixels given the conditions.

    Args:
        terms: Number of features of the conditions (F).
    """

    knee: Tensor  # added to densities before their logarithm

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.register_buffer("knee", torch.tensor(0.01))
        self.scores = ConditionalDistribution(terms)  # so called in checkpoints

    def fit(self, maps: Tensor, terms: Tensor) -> None:
        """Fit to training maps (N, H, W), physical, with features (N, F) of their conditions."""
        self.knee.fill_(max(0.01 * float(maps.double().mean()), 1e-6))
        self.scores.fit(torch.log(maps.flatten(1) + self.knee), terms)

    def forward(self, maps: Tensor, terms: Tensor) -> Tensor:
        """Normals (B, H, W) of maps (B, H, W), physical, given features (B, F)."""
        table = self.scores.quantiles(terms, _NODES)
        logs = torch.log(maps + self.knee).flatten(1)
        return (position_in(table, logs) * (2 * ENDS / (_NODES - 1)) - ENDS).view_as(maps)

    def inverse(self, normals: Tensor, terms: Tensor) -> Tensor:
        """Maps (B, H, W), physical, of normals (B, H, W); normals beyond +-5 are those of +-5."""
        position = (normals.flatten(1).clamp(-ENDS, ENDS) + ENDS) * ((_NODES - 1) / (2 * ENDS))
        logs = interpolate(self.scores.quantiles(terms, _NODES), position)
        return (logs.exp() - self.knee).clamp(min=0).view_as(normals)
