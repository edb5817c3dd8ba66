"""Convolutional networks for periodic maps, and the transform that they were published with."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...families import Family
from ...shards.samples import Samples
from ..contract import Critic, Inference, OnArrays
from ..layers import SLOPE
from .generator import MapGenerator

_CACHED = 1 << 18  # pixels worked on at a time
_LARGEST = 1 - 1e-3  # largest value that is inverted
_HIDDEN = 32  # units between conditions and what they scale and shift


class Film(nn.Module):
    """A circular 3 x 3 convolution whose outputs the conditions scale and shift, channel by channel.

    Args:
        inputs: Channels of the grid that comes in (I).
        outputs: Channels of what it becomes (O).
        conditions: How many there are (C).

    Source: Perez et al. 2018, arXiv:1709.07871 (feature-wise linear modulation).
    """

    def __init__(self, inputs: int, outputs: int, conditions: int) -> None:
        super().__init__()  # the shift is the bias
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)
        self.first = nn.Linear(conditions + 1, _HIDDEN, bias=False)  # one input is always 1: there may be no conditions
        self.last = nn.Linear(_HIDDEN, 2 * outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, grid: Tensor, scaled: Tensor) -> Tensor:
        """(B, O, H, W) of a grid (B, I, H, W) and scaled conditions (B, C)."""
        hidden = nn.functional.leaky_relu(self.first(nn.functional.pad(scaled, (0, 1), value=1.0)), SLOPE)
        factor, shift = self.last(hidden)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, self.convolution(grid), 1 + factor)


class _Planes(nn.Module):
    """A circular 3 x 3 convolution, of half the side, that sees the conditions as constant planes."""

    def __init__(self, inputs: int, outputs: int, conditions: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs + conditions, outputs, 3, stride=2, padding=1, padding_mode="circular")

    def forward(self, grid: Tensor, scaled: Tensor) -> Tensor:
        planes = scaled[:, :, None, None].expand(-1, -1, *grid.shape[2:])
        return self.convolution(torch.cat([grid, planes], 1))  # type: ignore[no-any-return]


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


class ConvMapGenerator(MapGenerator):
    """Periodic density maps from a grid of latent numbers (DCGAN with circular padding).

    Args:
        family: A map family; its sides must be divisible by 2 for every entry of ``channels``.
        conditions: Names of the conditions.
        latent: Latent channels of the smallest grid.
        channels: Channels from the smallest grid up; every entry doubles the side.
        scale: Constant of the transform; none: fitted.

    Raises:
        ConfigError: If a side cannot be halved often enough.

    Source: Radford et al. 2016, arXiv:1511.06434; Rodriguez et al. 2018, arXiv:1801.09070.
    """

    transform: MapTransform

    def __init__(
        self,
        family: Family,
        conditions: Sequence[str],
        latent: int = 32,
        channels: Sequence[int] = (128, 64, 32, 16),
        scale: float | None = None,
    ) -> None:
        super().__init__(family, conditions)
        self.transform = MapTransform(family, scale)
        self.grid = (latent, *_halved(family, channels))
        self.latent_size = math.prod(self.grid)
        count = len(self.conditions)
        widths = [latent, *channels]
        self.levels = nn.ModuleList(Film(a, b, count) for a, b in itertools.pairwise(widths))
        self.last = Film(widths[-1], 1, count)

    @property
    def ceiling(self) -> float:
        """The density at which maps are clipped."""
        return self.transform.limit

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        scaled = self.scaled(conditions)
        grid = latent.unflatten(1, self.grid)
        for level in self.levels:
            grid = nn.functional.leaky_relu(level(nn.functional.interpolate(grid, scale_factor=2.0), scaled), SLOPE)
        return self.transform.inverse(torch.tanh(self.last(grid, scaled))[:, 0])

    def folded(self) -> Inference:
        """A few maps at a time: all channels of a large one take much memory."""
        return OnArrays(self, max(1, _CACHED // self.family.voxels))

    def resized(self, size: int) -> ConvMapGenerator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights.

        Raises:
            ConfigError: If the size is not a multiple of the coarsest cell.
        """
        cell = self.family.sample_shape[0] // self.grid[1]
        if size % cell:
            raise ConfigError("the map size does not fit", where="`size`", expected=f"a multiple of {cell}", found=size)
        other = copy.copy(self)
        other.family = self._grown(size)
        other.grid = (self.grid[0], size // cell, size // cell)
        other.latent_size = math.prod(other.grid)
        return other

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:  # noqa: ARG002 - one call shape for all generators
        """Fit the transform to training samples."""
        clipped = self.transform.fit(samples)
        if clipped:
            self.remarks = (
                f"{clipped:.2g} of the training pixels exceed {self.transform.limit:.4g}, the most that this generator "
                "makes: a larger generator.scale would hold them",
            )


class MapCritic(Critic):
    """Judges maps; strided circular convolutions, no batch norm.

    Args:
        generator: Its transform scales the maps.
        channels: Channels from the largest grid down; every entry halves the side.
    """

    def __init__(self, generator: MapGenerator, channels: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self._scale = generator.transform.forward
        family, count = generator.family, len(generator.conditions)
        widths = [1, *channels]
        self.levels = nn.ModuleList(_Planes(a, b, count) for a, b in itertools.pairwise(widths))
        self.last = nn.Linear(channels[-1] * math.prod(_halved(family, channels)) + count, 1)

    def view(self, maps: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Maps (B, H, W), physical, in network space (B, 1, H, W)."""
        return self._scale(maps)[:, None]  # type: ignore[no-any-return]

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, 1, H, W) with scaled conditions (B, C)."""
        for level in self.levels:
            views = nn.functional.leaky_relu(level(views, scaled), 0.2)
        return self.last(torch.cat([views.flatten(1), scaled], 1))[:, 0]  # type: ignore[no-any-return]


def _halved(family: Family, channels: Sequence[int]) -> tuple[int, int]:
    height, width = family.sample_shape
    factor = 2 ** len(channels)
    if height % factor or width % factor:
        raise ConfigError(
            f"maps of {height} x {width} cannot be halved {len(channels)} times",
            where="generator.channels, critic.channels",
            expected=f"at most {int(math.log2(math.gcd(height, width) & -math.gcd(height, width)))} entries",
            found=len(channels),
        )
    return height // factor, width // factor
