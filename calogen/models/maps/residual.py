"""What a convolutional network adds to maps in latent normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..layers import SLOPE

_STRIP = 1 << 18  # pixels that the network sees at a time
IMAGES = 8  # of a square: four quarter turns of it, and of its mirror image


class Residual(nn.Module):
    """What convolutions of latent normals, noise and conditions add to the normals; nothing before training.

    Turned or mirrored maps get turned or mirrored additions: every pattern that the network looks for, it looks for in
    all eight directions. A network free to tell rows from columns learns to draw differently along them. Each layer
    looks twice as far as the one before.

    Args:
        conditions: How many there are (C).
        channels: Widths of the layers, multiples of eight.

    Raises:
        ConfigError: If they are not.

    Source: Cohen and Welling 2016, arXiv:1602.07576 (group convolutions).
    """

    def __init__(self, conditions: int, channels: Sequence[int]) -> None:
        super().__init__()
        if wrong := [width for width in channels if width % IMAGES]:
            raise ConfigError(
                "the residual network looks in eight directions",
                where="generator.channels",
                expected="multiples of 8",
                found=wrong[0],
            )
        first, *others = (width // IMAGES for width in channels)
        self.levels = nn.ModuleList([Turned(2 + conditions, first, start=True)])
        self.levels.extend(Turned(a, b, spacing=2**i) for i, (a, b) in enumerate(pairwise((first, *others)), 1))
        self.last = Turned([first, *others][-1], 1, end=True)
        nn.init.zeros_(self.last.kernel)

    def forward(self, normals: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """What to add, (B, H, W), to normals (B, H, W), from them, noise (B, H, W) and scaled conditions (B, C)."""
        planes = scaled[:, :, None, None].expand(-1, -1, *normals.shape[1:])
        grid = torch.cat([normals[:, None], noise[:, None], planes], 1)
        for i, level in enumerate(self.levels):
            made = nn.functional.leaky_relu(level(grid), SLOPE)
            grid = made + grid if i and made.shape == grid.shape else made
        added: Tensor = self.last(grid)[:, 0]
        return added

    @property
    def silent(self) -> bool:
        """Whether it adds nothing."""
        return not (self.last.kernel.any() or self.last.shift.any())

    @property
    def layers(self) -> list[Turned]:
        """All but the last."""
        return [level for level in self.levels if isinstance(level, Turned)]

    def in_strips(self, normals: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """:meth:`forward` once trained: large maps pass in strips of rows; a network that adds nothing is skipped."""
        if self.silent:
            return normals.new_zeros(())
        height, halo = normals.shape[1], 1 + sum(layer.spacing for layer in self.layers)  # rows that it sees further
        step = max(1, _STRIP // (len(normals) * normals.shape[2]))
        if step >= height:
            return self(normals, noise, scaled)  # type: ignore[no-any-return]
        strips = []
        for start in range(0, height, step):
            rows = torch.arange(start - halo, min(start + step, height) + halo) % height
            strips.append(self(normals[:, rows], noise[:, rows], scaled)[:, halo:-halo])
        return torch.cat(strips, 1)


class Turned(nn.Module):
    """A periodic 3 x 3 convolution of fields that each come in eight images, which turn as the map turns.

    Args:
        inputs: Fields that go in.
        outputs: Fields that come out.
        start: What goes in are plain maps, one channel each.
        end: So are those that come out.
        spacing: Of what it looks at, in pixels.
    """

    def __init__(self, inputs: int, outputs: int, *, start: bool = False, end: bool = False, spacing: int = 1) -> None:
        super().__init__()
        self.start, self.end, self.spacing = start, end, spacing
        inner = 1 if start or end else IMAGES
        spread = 1 / math.sqrt(9 * inner * inputs)  # as convolutions usually start
        self.kernel = nn.Parameter((2 * torch.rand(outputs, inputs, inner, 9) - 1) * spread)
        self.shift = nn.Parameter(torch.zeros(outputs))

    @property
    def weight(self) -> Tensor:
        """Of the plain convolution, (outputs * 8, inputs * 8, 3, 3): without the 8 at start and end."""
        places, relative = _images(self.kernel.device)
        if self.start:
            turned = self.kernel[..., places].movedim(3, 1)  # outputs, 8, inputs, 1, 9
        elif self.end:
            turned = self.kernel[..., places]  # outputs, inputs, 1, 8, 9
        else:
            # Image g of an output sees image h of an input through the kernel of g^-1 h, turned as g is.
            turned = torch.stack([self.kernel[:, :, relative[g]][..., places[g]] for g in range(IMAGES)], 1)
        outputs = self.kernel.shape[0] * (1 if self.end else IMAGES)
        return turned.reshape(outputs, -1, 3, 3)

    @property
    def bias(self) -> Tensor:
        """Of the plain convolution."""
        return self.shift if self.end else self.shift.repeat_interleave(IMAGES)

    def forward(self, grid: Tensor) -> Tensor:
        """Channels (B, C', H, W), of channels (B, C, H, W)."""
        wide = nn.functional.pad(grid, 4 * [self.spacing], "circular")
        return nn.functional.conv2d(wide, self.weight, self.bias, dilation=self.spacing)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)
def _images(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each image g of a 3 x 3 kernel: where its numbers are from, (8, 9), and which image g^-1 h is, (8, 8)."""
    plain = np.arange(9).reshape(3, 3)
    places = np.stack([np.rot90(k, turns).ravel() for k in (plain, plain.T) for turns in range(4)])
    number = {tuple(place): i for i, place in enumerate(places.tolist())}
    product = np.array([[number[tuple(h[g].tolist())] for h in places] for g in places])  # of g and h: h, then g
    relative = product.argsort(1)  # the h with g h = i, which is g^-1 i
    return torch.from_numpy(places.copy()).to(device), torch.from_numpy(relative).to(device)
