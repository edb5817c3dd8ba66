"""Density maps <-> network space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..families import Family
from ..shards import Samples


class MapTransform(nn.Module):
    """Density maps to [-1, 1): y = 2x / (x + a) - 1, with exact inverse.

    Args:
        family: A map family.

    Source: Rodriguez et al. 2018, arXiv:1801.09070, eq. 1.
    """

    a: Tensor

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family
        self.register_buffer("a", torch.tensor(4.0))

    def fit(self, samples: Samples) -> None:
        """Choose ``a`` so that the pixels' 99th percentile lands at 0.5; samples in physical units."""
        bright = float(np.percentile(samples.values[:2000], 99))
        self.a.fill_(max(bright / 3, 1e-3))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, H, W), physical, to network space (B, H, W)."""
        return 2 * maps / (maps + self.a) - 1

    def inverse(self, scaled: Tensor) -> Tensor:
        """Network space to physical; values at or beyond 1 are clipped to the largest invertible one."""
        scaled = scaled.clamp(-1.0, 1 - 1e-3)
        return self.a * (1 + scaled) / (1 - scaled)
