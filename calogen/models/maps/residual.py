"""What a convolutional network adds to maps in latent normals, as trained and as it runs on a CPU."""

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


def _circular(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")


class Strips:
    """What a trained :class:`Residual` adds, on a CPU: conditions as biases, large maps in strips of rows."""

    def __init__(self, network: Residual) -> None:
        convolutions = [*network.levels, network.last]
        self._weights = [c.weight.detach() for c in convolutions]
        self._biases = [torch.zeros(len(c.weight)) if c.bias is None else c.bias.detach() for c in convolutions]
        self._first, self._planes = self._weights[0][:, :2].contiguous(), self._weights[0][:, 2:].sum((2, 3))
        self._changes = bool(self._weights[-1].any() or self._biases[-1].any())

    def __call__(self, normals: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """What to add to normals (B, H, W), from them, noise (B, H, W) and scaled conditions (B, C)."""
        if not self._changes:
            return normals.new_zeros(())
        halo, height = len(self._weights), normals.shape[1]
        bias = (scaled @ self._planes.T + self._biases[0])[:, :, None, None]
        wrapped = _wrapped(torch.stack([normals, noise], 1), halo)
        step = max(1, _STRIP // (len(normals) * normals.shape[2]))
        strips = [
            self._strip(wrapped[:, :, row : min(row + step, height) + 2 * halo], bias) for row in range(0, height, step)
        ]
        return torch.cat(strips, 1) if len(strips) > 1 else strips[0]

    def _strip(self, grid: Tensor, bias: Tensor) -> Tensor:
        convolve = nn.functional.conv2d
        grid = nn.functional.leaky_relu_(convolve(grid, self._first).add_(bias), SLOPE)
        for weight, own in zip(self._weights[1:-1], self._biases[1:-1], strict=True):
            made = nn.functional.leaky_relu_(convolve(grid, weight, own), SLOPE)
            grid = made.add_(grid[:, :, 1:-1, 1:-1]) if made.shape[1] == grid.shape[1] else made
        return convolve(grid, self._weights[-1], self._biases[-1])[:, 0]


def _wrapped(grid: Tensor, halo: int) -> Tensor:
    """The periodic grid (B, C, H, W) with ``halo`` more pixels on every side, also where it is smaller than that."""
    rows = torch.arange(-halo, grid.shape[2] + halo) % grid.shape[2]
    columns = torch.arange(-halo, grid.shape[3] + halo) % grid.shape[3]
    return grid[:, :, rows][:, :, :, columns]
