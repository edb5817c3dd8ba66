"""Maps from displaced matter, in portions that stay in the cache and do not fill the memory."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import scale_conditions
from ..layers import SLOPE
from .distributions import features
from .zeldovich import Residual, ZeldovichGenerator

Array = NDArray[np.float32]
_PIXELS = 1 << 17  # worked on at a time
_STRIP = 1 << 18  # pixels that the network sees at a time


class FoldedZeldovich:
    """A trained :class:`ZeldovichGenerator` for the CPU: the same function to rounding.

    A few maps at a time; conditions become a bias of the network's first layer, and large maps pass it in strips.

    Args:
        generator: Trained.
    """

    def __init__(self, generator: ZeldovichGenerator) -> None:
        self._generator = generator
        self._rows = max(1, _PIXELS // generator.family.voxels)
        self._network = _Strips(generator.residual)

    @torch.inference_mode()
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        starts = range(0, max(1, len(latent)), self._rows)
        parts = [self._maps(latent[i : i + self._rows], conditions[i : i + self._rows]) for i in starts]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _maps(self, latent: Array, conditions: Array) -> Array:
        generator = self._generator
        columns = torch.from_numpy(np.ascontiguousarray(conditions))
        scaled = scale_conditions(generator.family, generator.conditions, columns)
        planes, terms = generator.planes(torch.from_numpy(latent)), features(scaled)
        scores = generator.start(planes, terms)
        if self._network.changes:
            scores += self._network(scores, planes[:, -1], scaled)
        maps: Array = generator.transform.inverse(scores, terms).numpy()
        return maps


class _Strips:
    """What the residual network adds; conditions as biases, large maps in strips of rows."""

    def __init__(self, network: Residual) -> None:
        convolutions = [*network.levels, network.last]
        self._weights = [c.weight.detach() for c in convolutions]
        self._biases = [torch.zeros(len(c.weight)) if c.bias is None else c.bias.detach() for c in convolutions]
        self._first, self._planes = self._weights[0][:, :2].contiguous(), self._weights[0][:, 2:].sum((2, 3))
        self.changes = bool(self._weights[-1].any() or self._biases[-1].any())

    def __call__(self, scores: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """What to add to scores (B, H, W), from them, noise (B, H, W) and scaled conditions (B, C)."""
        halo, height = len(self._weights), scores.shape[1]
        bias = (scaled @ self._planes.T + self._biases[0])[:, :, None, None]
        wrapped = _wrapped(torch.stack([scores, noise], 1), halo)
        step = max(1, _STRIP // (len(scores) * scores.shape[2]))
        strips = [
            self._strip(wrapped[:, :, row : min(row + step, height) + 2 * halo], bias) for row in range(0, height, step)
        ]
        return torch.cat(strips, 1) if len(strips) > 1 else strips[0]

    def _strip(self, grid: Tensor, bias: Tensor) -> Tensor:
        convolve = torch.nn.functional.conv2d
        grid = torch.nn.functional.leaky_relu_(convolve(grid, self._first).add_(bias), SLOPE)
        for weight, own in zip(self._weights[1:-1], self._biases[1:-1], strict=True):
            made = torch.nn.functional.leaky_relu_(convolve(grid, weight, own), SLOPE)
            grid = made.add_(grid[:, :, 1:-1, 1:-1]) if made.shape[1] == grid.shape[1] else made
        return convolve(grid, self._weights[-1], self._biases[-1])[:, 0]


def _wrapped(grid: Tensor, halo: int) -> Tensor:
    """The periodic grid (B, C, H, W) with ``halo`` more pixels on every side, also where it is smaller than that."""
    rows = torch.arange(-halo, grid.shape[2] + halo) % grid.shape[2]
    columns = torch.arange(-halo, grid.shape[3] + halo) % grid.shape[3]
    return grid[:, :, rows][:, :, :, columns]
