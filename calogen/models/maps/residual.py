"""What a convolutional network adds to maps in latent normals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..layers import SLOPE

_STRIP = 1 << 18  # pixels that the network sees at a time


class Residual(nn.Module):
    """What convolutions of latent normals, noise and conditions add to the normals; nothing before training.

    Args:
        conditions: How many there are (C).
        channels: Widths of the layers.
    """

    def __init__(self, conditions: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [2 + conditions, *channels]
        self.levels = nn.ModuleList(_circular(a, b) for a, b in pairwise(widths))
        self.last = _circular(widths[-1], 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, normals: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """What to add, (B, H, W), to normals (B, H, W), from them, noise (B, H, W) and scaled conditions (B, C)."""
        planes = scaled[:, :, None, None].expand(-1, -1, *normals.shape[1:])
        grid = torch.cat([normals[:, None], noise[:, None], planes], 1)
        for i, level in enumerate(self.levels):
            made = nn.functional.leaky_relu(level(grid), SLOPE)
            grid = made + grid if i and made.shape == grid.shape else made
        added: Tensor = self.last(grid)[:, 0]
        return added

    def in_strips(self, normals: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """:meth:`forward` once trained: large maps pass in strips of rows; a network that adds nothing is skipped."""
        if not (self.last.weight.any() or self.last.bias.any()):  # type: ignore[union-attr]
            return normals.new_zeros(())
        height, halo = normals.shape[1], len(self.levels) + 1  # each convolution sees one row further
        step = max(1, _STRIP // (len(normals) * normals.shape[2]))
        if step >= height:
            return self(normals, noise, scaled)  # type: ignore[no-any-return]
        strips = []
        for start in range(0, height, step):
            rows = torch.arange(start - halo, min(start + step, height) + halo) % height
            strips.append(self(normals[:, rows], noise[:, rows], scaled)[:, halo:-halo])
        return torch.cat(strips, 1)


def _circular(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")
