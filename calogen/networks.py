"""Generators and critics, shaped by a family. A generator makes samples in physical units from latent numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from .config import CriticConfig, GeneratorConfig
from .errors import ConfigError
from .families import Family
from .fitting import fit_factors
from .shards import Samples
from .transforms import MapTransform, ShowerTransform, build_transform, condition_array, scale_conditions


def _mlp(sizes: Sequence[int], *, slope: float, zero_last: bool = False) -> nn.Sequential:
    """Linear layers with LeakyReLU between them; a zero last layer makes the network start as the constant 0."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(slope)]
    layers.pop()
    if zero_last:
        last = layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


SLOPE = 0.1
"""Of the generators' LeakyReLUs."""

_FACTOR_ROWS = 12_000  # showers that the factors are fitted to


class ShowerGenerator(nn.Module):
    """Energies first, then shapes normalised to them.

    Before training it is a statistical model fitted to the data: independent energy scores and voxel scores that
    follow a linear factor model. Two networks with zero last layers add what training finds.

    Args:
        family: A calorimeter family.
        transform: From normal scores to MeV.
        latent: Number of factors K.
        hidden: Widths of the hidden layers of the shape network.
    """

    noise: Tensor  # (V,) spread of each voxel's own noise

    def __init__(self, family: Family, transform: ShowerTransform, latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        layers, count = len(family.layers), len(transform.conditions)
        self.family = family
        self.transform = transform
        self.splits = (layers, latent, family.voxels)
        self.register_buffer("noise", torch.ones(family.voxels))
        self.loadings = nn.Parameter(torch.zeros(family.voxels, latent))
        # Scores stay standard, whatever the adversary does: without this, the occupancy of voxels that are rarely on
        # drifts away within a thousand steps.
        self.standardise = nn.BatchNorm1d(family.voxels, affine=False, momentum=0.01)
        self.energies = _mlp([layers + count, 128, 128, layers], slope=SLOPE, zero_last=True)
        self.shapes = _mlp([layers + latent + count, *hidden, family.voxels], slope=SLOPE, zero_last=True)

    @property
    def latent_size(self) -> int:
        """Standard normals that one shower takes: L for energies, K factors, V of the voxels' own."""
        return sum(self.splits)

    @property
    def coarse(self) -> int:
        """How many of them, at the end, may be of low resolution: factors and the voxels' own noise."""
        return self.splits[1] + self.splits[2]

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        energies, factors, own = latent.split(self.splits, 1)
        scaled = scale_conditions(self.family, self.transform.conditions, conditions)
        energy_scores = energies + self.energies(torch.cat([energies, scaled], 1))
        shift = self.shapes(torch.cat([energy_scores, factors, scaled], 1))
        voxel_scores = self.standardise(factors @ self.loadings.T + own * self.noise + shift)
        return self.transform.inverse(energy_scores, voxel_scores, conditions)

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit transform and factors to training samples."""
        showers, conditions = self.transform.fit(samples)
        rows = torch.randperm(len(showers), generator=torch.Generator().manual_seed(seed))[:_FACTOR_ROWS]
        showers, conditions = showers[rows], conditions[rows]
        self.transform.double()
        _, voxel_scores = self.transform(showers, conditions)
        ceiling = self.transform.ceiling(showers, conditions)
        self.transform.float()
        latent = self.splits[1]
        generator = torch.Generator().manual_seed(seed)
        loadings = fit_factors(voxel_scores.float(), showers == 0, ceiling.float(), latent, generator)
        self.loadings.zero_()[:, : loadings.shape[1]] = loadings.float()
        self.noise.copy_((1 - loadings.square().sum(1)).sqrt())


class ShowerCritic(nn.Module):
    """Scores standardised views of showers; has no batch statistics, since the penalty is per sample.

    The views, per voxel: log(1 + E / knee), with the knee at an absolute energy, and the root of the share of the
    layer; sums over rows and columns; per layer: energy, soft occupancy E / (E + knee) (a hard one has no gradient),
    centre, widths, share and asymmetry of the two hottest voxels; and the total and relative layer energies.

    Views come in groups (voxels, sums, layers) of very different size; each group is given the same total weight, or
    a critic bound to slope 1 would look at little but single voxels, and learn the training showers by heart.

    Args:
        family: A calorimeter family.
        transform: Gives the energy variables.
        hidden: Widths of the hidden layers.
    """

    mean: Tensor  # (D,)
    spread: Tensor  # (D,)
    position: Tensor  # (V, 2) voxel centres in units of the largest one

    def __init__(self, family: Family, transform: ShowerTransform, hidden: Sequence[int]) -> None:
        super().__init__()
        self.family = family
        self.energy_variables = transform.energy_variables
        centres = torch.as_tensor(family.centres, dtype=torch.float32)
        self.register_buffer("position", centres / centres.abs().max().clamp(min=1e-6))
        size = 2 * family.voxels + sum(sum(layer.shape) for layer in family.layers) + 9 * len(family.layers)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.score = _mlp([size + len(transform.conditions), *hidden, 1], slope=0.2)

    @torch.no_grad()
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Standardise the views on training samples."""
        rows = slice(0, max(256, min(len(samples), 5_000_000 // self.family.voxels)))
        values = torch.from_numpy(samples.values[rows])
        raw = self._raw(values, torch.from_numpy(condition_array(samples, conditions)[rows]))
        self.mean.copy_(raw.mean(0))
        self.spread.copy_(raw.std(0).nan_to_num(0.0).clamp(min=1e-2) / self._weights())

    def _weights(self) -> Tensor:
        """Weight of each view, (D,): groups of views weigh the same in all."""
        voxels, layers = self.family.voxels, len(self.family.layers)
        sums = sum(sum(layer.shape) for layer in self.family.layers)
        small, middle, large = (math.sqrt(9 * layers / size) for size in (voxels, sums, 9 * layers))
        parts = [torch.full((voxels,), small)]
        for layer, part in zip(self.family.layers, self.family.layer_slices, strict=True):
            sizes = (part.stop - part.start, sum(layer.shape), 8)
            parts += [torch.full((n,), w) for n, w in zip(sizes, (small, middle, large), strict=True)]
        return torch.cat([*parts, torch.full((layers,), large)])

    def view(self, showers: Tensor, conditions: Tensor) -> Tensor:
        """Views (B, D), dimensionless, of showers (B, V) in MeV with conditions (B, C) in their units."""
        return ((self._raw(showers, conditions) - self.mean) / self.spread).clamp(-10, 10)

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Scores (B,) of views (B, D) with scaled conditions (B, C)."""
        return self.score(torch.cat([views, scaled], 1))[:, 0]  # type: ignore[no-any-return]

    def _raw(self, showers: Tensor, conditions: Tensor) -> Tensor:
        knee, parts, energies = self.family.knee, [torch.log1p(showers / self.family.knee)], []
        soft = showers / (showers + knee)
        for layer, part in zip(self.family.layers, self.family.layer_slices, strict=True):
            voxels, position = showers[:, part], self.position[part]
            total = voxels.sum(1, keepdim=True)
            share = voxels / (total + knee)
            centre = share @ position
            width = torch.sqrt((share @ position.square() - centre.square()).clamp(min=0) + 1e-6)
            grid = voxels.unflatten(1, layer.shape)
            hottest = share.topk(2, 1).values if share.shape[1] > 1 else share.expand(-1, 2)
            asymmetry = (hottest[:, :1] - hottest[:, 1:]) / (hottest.sum(1, keepdim=True) + 1e-3)
            parts += [
                torch.sqrt(share + 1e-6),
                torch.log1p(grid.sum(2) / knee),
                torch.log1p(grid.sum(1) / knee),
                torch.log1p(total / knee),
                soft[:, part].mean(1, keepdim=True),
                centre,
                width,
                hottest[:, :1],
                asymmetry,
            ]
            energies.append(total)
        parts.append(self.energy_variables(torch.cat(energies, 1), conditions))
        return torch.cat(parts, 1)


class _Planes(nn.Module):
    """A circular 3 x 3 convolution that sees the conditions as constant planes."""

    def __init__(self, inputs: int, outputs: int, conditions: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs + conditions, outputs, 3, stride=stride, padding=1, padding_mode="circular")

    def forward(self, grid: Tensor, scaled: Tensor) -> Tensor:
        planes = scaled[:, :, None, None].expand(-1, -1, *grid.shape[2:])
        return self.convolution(torch.cat([grid, planes], 1))  # type: ignore[no-any-return]


class MapGenerator(nn.Module):
    """Periodic density maps from a grid of latent numbers (DCGAN with circular padding).

    Args:
        family: A map family; its sides must be divisible by 2 for every entry of ``channels``.
        transform: From [-1, 1) to densities.
        conditions: Names of the conditions.
        latent: Latent channels of the smallest grid.
        channels: Channels from the smallest grid up; every entry doubles the side.

    Raises:
        ConfigError: If a side cannot be halved often enough.

    Source: Radford et al. 2016, arXiv:1511.06434; Rodriguez et al. 2018, arXiv:1801.09070.
    """

    def __init__(
        self,
        family: Family,
        transform: MapTransform,
        conditions: Sequence[str],
        latent: int,
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.family = family
        self.transform = transform
        self.conditions = tuple(conditions)
        self.grid = (latent, *_halved(family, channels))
        count = len(self.conditions)
        widths = [latent, *channels]
        self.levels = nn.ModuleList(_Planes(a, b, count) for a, b in pairwise(widths))
        self.last = _Planes(widths[-1], 1, count)

    @property
    def latent_size(self) -> int:
        """Standard normals that one map takes."""
        return math.prod(self.grid)

    @property
    def coarse(self) -> int:
        """None of them may be of low resolution."""
        return 0

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        scaled = scale_conditions(self.family, self.conditions, conditions)
        grid = latent.unflatten(1, self.grid)
        for level in self.levels:
            grid = nn.functional.leaky_relu(level(nn.functional.interpolate(grid, scale_factor=2.0), scaled), SLOPE)
        return self.transform.inverse(torch.tanh(self.last(grid, scaled))[:, 0])

    @staticmethod
    def parts(layer: _Planes, conditions: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (O, I, 3, 3) for the grid and (O, C, 3, 3) for the conditions' planes, and bias (O,), of a layer."""
        weight, bias = layer.convolution.weight.detach(), layer.convolution.bias
        grid, planes = weight.split((weight.shape[1] - conditions, conditions), 1)
        return grid, planes, torch.zeros(len(weight)) if bias is None else bias.detach()

    def resized(self, size: int) -> MapGenerator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights.

        Raises:
            ConfigError: If the size is not a multiple of the coarsest cell.
        """
        cell = self.family.sample_shape[0] // self.grid[1]
        if size % cell:
            raise ConfigError("the map size does not fit", where="--size", expected=f"a multiple of {cell}", found=size)
        scale = size / self.family.sample_shape[0]
        changes = {"pixels": (size, size), "box_size": self.family.box_size * scale}
        other = copy.copy(self)
        other.family = Family.model_validate({**self.family.model_dump(), **changes})
        other.grid = (self.grid[0], size // cell, size // cell)
        return other

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:  # noqa: ARG002 - one call shape for all generators
        """Fit the transform to training samples."""
        self.transform.fit(samples)


class MapCritic(nn.Module):
    """Scores maps; strided circular convolutions, no batch norm.

    Args: as for :class:`MapGenerator`, with ``channels`` from the largest grid down.
    """

    def __init__(
        self, family: Family, transform: MapTransform, conditions: Sequence[str], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self._scale = transform.forward
        count = len(conditions)
        widths = [1, *channels]
        self.levels = nn.ModuleList(_Planes(a, b, count, stride=2) for a, b in pairwise(widths))
        self.last = nn.Linear(channels[-1] * math.prod(_halved(family, channels)) + count, 1)

    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Nothing to fit: the transform already scales maps."""

    def view(self, maps: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Maps (B, H, W), physical, in network space (B, 1, H, W)."""
        return self._scale(maps)[:, None]

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Scores (B,) of views (B, 1, H, W) with scaled conditions (B, C)."""
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


Generator = ShowerGenerator | MapGenerator
Critic = ShowerCritic | MapCritic


def build_generator(family: Family, conditions: Sequence[str], config: GeneratorConfig) -> Generator:
    """A generator for a family, not yet fitted.

    Raises:
        ConfigError: If the network does not suit the family.
    """
    natural = "mlp" if family.kind == "calorimeter" else "dcgan"
    if config.network not in ("auto", natural):
        raise ConfigError(
            f"network '{config.network}' does not make samples of family '{family.name}'",
            where="generator.network",
            expected=natural,
            found=config.network,
        )
    transform = build_transform(family, conditions)
    if isinstance(transform, ShowerTransform):
        return ShowerGenerator(family, transform, config.latent or 192, config.hidden)
    return MapGenerator(family, transform, conditions, config.latent or 32, config.channels)


def build_critic(generator: Generator, config: CriticConfig) -> Critic:
    """A critic for what ``generator`` makes, not yet fitted."""
    if isinstance(generator, ShowerGenerator):
        return ShowerCritic(generator.family, generator.transform, config.hidden)
    return MapCritic(generator.family, generator.transform, generator.conditions, config.channels)


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device a configuration asks for.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no usable GPU here", where="device", found="cuda", hint="use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
