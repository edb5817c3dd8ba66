"""Networks of earlier work on showers, to compare with: FastCaloGAN's perceptrons and a DCGAN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...families import Family
from ..conditions import energy_column
from ..contract import Critic, Generator
from ..layers import mlp


class Incident(nn.Module):
    """Knows the incident energies: a condition, or else the highest energy that the family knows.

    Attributes:
        column: The condition; none: it is not one.
        highest: The highest incident energy, in MeV.
        unit: A hundredth of it, in MeV.
    """

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.column, self.highest = energy_column(family, conditions), family.conditions[0].high
        self.unit = self.highest / 100

    def incident(self, conditions: Tensor) -> Tensor:
        """Incident energies (B, 1) in MeV from conditions (B, C) in their units."""
        if self.column is None:
            return conditions.new_full((len(conditions), 1), self.highest)
        return conditions[:, self.column : self.column + 1]


class _LogKnee(nn.Module):
    """Voxels in MeV to log(1 + E / knee) and back: pixels of one order of magnitude, zero where there is none."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self._knee = family.knee
        self._most = math.log1p(family.max_response * family.conditions[0].high / family.knee)

    def forward(self, showers: Tensor) -> Tensor:
        """Logarithms (B, V) from showers (B, V) in MeV."""
        return torch.log1p(showers / self._knee)

    def inverse(self, logs: Tensor) -> Tensor:
        """Showers (B, V) in MeV from logarithms (B, V), held below what the family allows."""
        return self._knee * torch.expm1(logs.clamp(max=self._most))


class MlpGenerator(Generator):
    """FastCaloGAN's generator: one perceptron from latent numbers and conditions to all voxels.

    Voxels are fractions of the incident energy, kept positive by a last ReLU, which also makes the zeros. As published,
    latent numbers are normal about 0.5 with spread 0.5.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.
        latent: Latent numbers; 50 as published.
        hidden: Widths of the hidden layers, as published.

    Source: ATLAS 2020, ATL-SOFT-PUB-2020-006; 2021, arXiv:2109.02551.
    """

    transform: Incident

    def __init__(
        self, family: Family, conditions: Sequence[str], latent: int = 50, hidden: Sequence[int] = (50, 100, 200)
    ) -> None:
        super().__init__(family, conditions)
        self.latent_size = latent
        self.transform = Incident(family, conditions)
        self.layers = mlp([latent + self.scaled_size, *hidden, family.voxels], slope=0.0)
        with torch.no_grad():  # else hundreds of voxels add up to many times the incident energy at first
            cast(nn.Linear, self.layers[-1]).weight.mul_(4 / math.sqrt(family.voxels))

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        inputs = torch.cat([0.5 + 0.5 * latent, self.scaled(conditions)], 1)
        return torch.relu(self.layers(inputs)) * self.transform.incident(conditions)


class MlpCritic(Critic):
    """FastCaloGAN's critic: one perceptron on the voxels as fractions of the incident energy.

    Args:
        generator: Of the showers to be judged.
        hidden: Widths of the hidden layers; as published (when absent) three as wide as the shower.
    """

    def __init__(self, generator: MlpGenerator, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        self.energies = generator.transform
        voxels = generator.family.voxels
        widths = [voxels] * 3 if hidden is None else hidden
        self.score = mlp([voxels + generator.scaled_size, *widths, 1], slope=0.0)

    def view(self, showers: Tensor, conditions: Tensor) -> Tensor:
        """Fractions (B, V) of the incident energy, of showers (B, V) in MeV."""
        return showers / self.energies.incident(conditions)

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, V) with scaled conditions (B, C)."""
        return self.score(torch.cat([views, scaled], 1))[:, 0]  # type: ignore[no-any-return]


class ConvGenerator(Generator):
    """A DCGAN for showers: per layer, transposed convolutions from a small grid up, each doubling both sides.

    A grid ends at least as large as its layer and is cut to it. Pixels are log(1 + E / knee), since one kernel serves
    core and halo alike; a last ReLU makes the zeros.

    Args:
        family: A calorimeter family of cartesian layers.
        conditions: Names of the conditions.
        latent: Latent numbers.
        channels: Channels from the smallest grid up; every entry doubles the sides.

    Raises:
        ConfigError: If a layer is not cartesian.

    Source: Radford et al. 2016, arXiv:1511.06434; conditions beside the latent numbers: Mirza and Osindero 2014,
    arXiv:1411.1784.
    """

    transform: _LogKnee

    def __init__(
        self, family: Family, conditions: Sequence[str], latent: int = 64, channels: Sequence[int] = (64, 32)
    ) -> None:
        numbered = zip(family.layer_numbers, family.layers, strict=True)
        round_layers = [number for number, layer in numbered if not layer.rectangular]
        if round_layers:
            raise ConfigError(
                "network 'dcgan' slides one kernel over a layer, and voxels of rings differ in size",
                where="generator.network",
                expected="cartesian layers",
                found=f"cylindrical layers {', '.join(map(str, round_layers))} of family '{family.name}'",
                hint="take network 'copula', 'mlp' or 'calogan'",
            )
        super().__init__(family, conditions)
        self.latent_size = latent
        self.transform = _LogKnee(family)
        factor = 2 ** len(channels)
        self.grids = [(channels[0], *(-(-side // factor) for side in layer.shape)) for layer in family.layers]
        inputs = latent + self.scaled_size
        self.seeds = nn.ModuleList(nn.Linear(inputs, math.prod(grid)) for grid in self.grids)
        self.towers = nn.ModuleList(_rising(channels) for _ in self.grids)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        inputs = torch.cat([latent, self.scaled(conditions)], 1)
        parts = []
        for layer, grid, seed, tower in zip(self.family.layers, self.grids, self.seeds, self.towers, strict=True):
            image = tower(seed(inputs).unflatten(1, grid))[:, 0]
            parts.append(image[:, : layer.shape[0], : layer.shape[1]].flatten(1))
        return self.transform.inverse(torch.relu(torch.cat(parts, 1)))


class ConvCritic(Critic):
    """The DCGAN's critic: per layer, strided convolutions on log(1 + E / knee); no batch norm.

    Args:
        generator: Of the showers to be judged.
        channels: Channels from the largest grid down.
    """

    def __init__(self, generator: ConvGenerator, channels: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        self.family, self.logs = generator.family, generator.transform
        self.towers = nn.ModuleList(_falling(channels) for _ in self.family.layers)
        factor = 2 ** len(channels)
        cells = sum(math.prod(-(-side // factor) for side in layer.shape) for layer in self.family.layers)
        self.last = nn.Linear(channels[-1] * cells + generator.scaled_size, 1)

    def view(self, showers: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Logarithms (B, V) of showers (B, V) in MeV."""
        return self.logs(showers)  # type: ignore[no-any-return]

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, V) with scaled conditions (B, C)."""
        images = [
            tower(views[:, None, part].unflatten(2, layer.shape)).flatten(1)
            for layer, part, tower in zip(self.family.layers, self.family.layer_slices, self.towers, strict=True)
        ]
        return self.last(torch.cat([*images, scaled], 1))[:, 0]  # type: ignore[no-any-return]


def _rising(channels: Sequence[int]) -> nn.Sequential:
    """Batch norm, ReLU and a transposed convolution that doubles both sides, for every entry; ends in one channel."""
    steps: list[nn.Module] = []
    for inputs, outputs in zip(channels, [*channels[1:], 1], strict=True):
        steps += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
    return nn.Sequential(*steps)


def _falling(channels: Sequence[int]) -> nn.Sequential:
    """Convolutions that halve both sides, odd ones rounded up."""
    steps: list[nn.Module] = []
    for inputs, outputs in zip([1, *channels[:-1]], channels, strict=True):
        steps += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*steps)
