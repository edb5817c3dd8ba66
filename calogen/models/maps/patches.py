"""A critic of maps that looks at patches of them and at their spectra."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...families import varies
from ...shards.samples import Samples
from ..contract import Critic
from ..layers import mlp
from .generator import MapGenerator
from .spectra import log_bands, shell_power

_KNEE = 0.02  # added to the density before its logarithm
_SCALE = 16.0  # a change by one unit in every pixel of a map of 64 x 64 is four units of the views


class PatchCritic(Critic):
    """Judges the average patch of a map, and its power spectra; so it cannot learn single maps by heart.

    Views are standardised logarithms of the density. Two spectra are looked at, of the logarithm and of the density
    itself, which its brightest pixels decide; their logarithms are what a network sees.

    Args:
        generator: Makes the maps.
        channels: Of the strided convolutions, from the largest grid down.

    Source: Isola et al. 2017, arXiv:1611.07004 (patches).
    """

    mean: Tensor
    spread: Tensor
    level: Tensor  # (2 bands,) usual logarithms of the spectra
    scatter: Tensor  # (2 bands,)

    def __init__(self, generator: MapGenerator, channels: Sequence[int] = (24, 32, 32)) -> None:
        super().__init__()
        self.family, count = generator.family, len(generator.conditions)
        widths = [1, *channels]
        self.levels = nn.ModuleList(
            nn.Conv2d(a + count, b, 3, stride=1 + (i > 0), padding=1, padding_mode="circular")
            for i, (a, b) in enumerate(zip(widths[:-1], channels, strict=True))
        )
        bands = log_bands(*self.family.sample_shape, torch.device("cpu"))[1]
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("level", torch.zeros(2 * bands))
        self.register_buffer("scatter", torch.ones(2 * bands))
        self.score = mlp([2 * channels[-1] + 2 * bands + count, 64, 1], slope=0.2)

    @torch.no_grad()
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:  # noqa: ARG002 - one call shape for all critics
        """Standardise the views on training samples."""
        maps = torch.from_numpy(samples.values[:: max(1, len(samples) // 2000)])
        logs = torch.log(maps + _KNEE)
        self.mean.copy_(logs.mean())
        self.spread.copy_(logs.std().clamp(min=1e-3))
        spectra = self._spectra(logs)
        self.level.copy_(spectra.mean(0))
        scatter = spectra.std(0).nan_to_num(0.0)
        known = varies(scatter, spectra.abs().amax(0))
        self.scatter.copy_(torch.where(known, scatter.clamp(min=1e-2), 1.0))

    def view(self, maps: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Views (B, H, W), dimensionless, of maps (B, H, W), 1 + delta."""
        return (torch.log(maps + _KNEE) - self.mean) / (self.spread * _SCALE)

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, H, W) with scaled conditions (B, C)."""
        field = views * _SCALE
        spectra = (self._spectra(field * self.spread + self.mean) - self.level) / self.scatter
        planes, grid = scaled[:, :, None, None], field[:, None]
        for level in self.levels:
            grid = torch.cat([grid, planes.expand(-1, -1, *grid.shape[2:])], 1)
            grid = nn.functional.leaky_relu(level(grid), 0.2)
        pooled = [grid.mean((2, 3)), grid.square().mean((2, 3)).add(1e-6).sqrt()]
        return self.score(torch.cat([*pooled, spectra, scaled], 1))[:, 0]  # type: ignore[no-any-return]

    def _spectra(self, logs: Tensor) -> Tensor:
        """Logarithms of the power in bands, of ln density and of density, (B, 2 bands)."""
        band, bands = log_bands(*self.family.sample_shape, logs.device)
        found = []
        for field in (logs, logs.exp() - 1):
            power = shell_power(field)
            total = power.new_zeros(len(power), bands).index_add(1, band, power)
            found.append(torch.log(total + 1e-6))
        return torch.cat(found, 1)
