"""Density maps <-> latent normals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .distributions import ENDS, ConditionalDistribution, interpolate, position_in

_NODES = 256  # of the tables from normals to logarithms of densities


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
