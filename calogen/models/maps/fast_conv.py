"""Maps: half the arithmetic of the network as trained."""

from __future__ import annotations

import itertools
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import scale_conditions
from ..layers import SLOPE
from .conv import ConvMapGenerator, Film

Array = NDArray[np.float32]
_MAP_CACHED = 1 << 18  # pixels worked on at a time


class FoldedMaps:
    """A trained :class:`ConvMapGenerator` for the CPU: half the arithmetic, the same function to rounding.

    Doubling the side before a 3 x 3 convolution becomes four 2 x 2 convolutions of the small grid, one for each of the
    four pixels that a cell turns into.

    Args:
        generator: Trained; its tensors are copied.
    """

    def __init__(self, generator: ConvMapGenerator) -> None:
        self._generator = generator
        self._levels = cast("list[Film]", list(generator.levels))
        self._kernels = [_doubling(level.convolution.weight.detach()) for level in self._levels]
        self._last = generator.last.convolution.weight.detach().contiguous()
        self._rows = max(1, _MAP_CACHED // generator.family.voxels)

    @torch.inference_mode()
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        parts = [self._maps(latent[i : i + self._rows], conditions[i : i + self._rows]) for i in self._starts(latent)]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def _starts(self, latent: Array) -> range:
        return range(0, max(1, len(latent)), self._rows)

    def _maps(self, latent: Array, conditions: Array) -> Array:
        generator = self._generator
        scaled = scale_conditions(generator.family, generator.conditions, torch.from_numpy(conditions))
        grid = torch.from_numpy(latent).unflatten(1, generator.grid)
        for level, kernel in zip(self._levels, self._kernels, strict=True):
            factor, shift = level.modulation(scaled)
            grid = torch.nn.functional.leaky_relu_(_doubled(grid, kernel).mul_(factor).add_(shift), SLOPE)
        factor, shift = generator.last.modulation(scaled)
        image = torch.nn.functional.conv2d(_wrapped(grid), self._last).mul_(factor).add_(shift)
        maps: Array = generator.transform.inverse(image.tanh_()[:, 0]).numpy()
        return maps


def _wrapped(grid: Tensor) -> Tensor:
    return torch.nn.functional.pad(grid, (1, 1, 1, 1), mode="circular")


def _doubling(weight: Tensor) -> Tensor:
    """Kernels (4 O, I, 2, 2) of the four pixels of a doubled cell, from one (O, I, 3, 3) of the doubled grid."""
    outputs, inputs = weight.shape[:2]
    kernels = weight.new_zeros(2, 2, outputs, inputs, 2, 2)
    for down, right, y, x in itertools.product((0, 1), (0, 1), range(3), range(3)):
        # Pixel (down, right) sees cell (down + y - 1) // 2 of the small grid, counted from its own.
        kernels[down, right, :, :, (down + y - 1) // 2 + 1 - down, (right + x - 1) // 2 + 1 - right] += weight[
            ..., y, x
        ]
    return kernels.flatten(0, 2)


def _doubled(grid: Tensor, kernels: Tensor) -> Tensor:
    """The grid doubled and convolved: (B, O, 2 H, 2 W) from (B, I, H, W)."""
    (count, _, height, width), outputs = grid.shape, len(kernels) // 4
    made = torch.nn.functional.conv2d(_wrapped(grid), kernels).unflatten(1, (2, 2, outputs))
    doubled = grid.new_empty(count, outputs, height, 2, width, 2)
    for down, right in itertools.product((0, 1), (0, 1)):
        doubled[:, :, :, down, :, right] = made[:, down, right, :, down : down + height, right : right + width]
    return doubled.reshape(count, outputs, 2 * height, 2 * width)
