"""The default networks for showers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..families import Family
from ..fitting import fit_factors, own_noise
from ..shards import Samples
from ..transforms import ShowerTransform, condition_array, scale_conditions, scaled_size
from .contract import Critic, Generator
from .layers import SLOPE, mlp

_FACTOR_NUMBERS = 30_000_000  # voxels that the factors are fitted to: bounds memory to about 1 GB
_BLOCK = 2048  # showers at a time
_DRIFTING = 64  # factors whose loadings change with the incident energy


class ShowerGenerator(Generator):
    """Energies first, then shapes normalised to them.

    Before training it is a statistical model fitted to the data: independent energy scores and voxel scores that
    follow a linear factor model. Two networks with zero last layers add what training finds.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.
        latent: Number of factors K.
        hidden: Widths of the hidden layers of the shape network.
    """

    transform: ShowerTransform
    noise: Tensor  # (3, V) spread of each voxel's own noise at the transform's stations of energy

    def __init__(
        self, family: Family, conditions: Sequence[str], latent: int = 192, hidden: Sequence[int] = (256, 128)
    ) -> None:
        super().__init__()
        layers, count = len(family.layers), scaled_size(family, conditions)
        self.family, self.conditions = family, tuple(conditions)
        self.transform = ShowerTransform(family, conditions)
        self.splits = (layers, latent, family.voxels)
        self.register_buffer("noise", torch.ones(len(self.transform.stations), family.voxels))
        self.loadings = nn.Parameter(torch.zeros(family.voxels, latent))
        # How the loadings of the first factors change with the scaled incident energy.
        self.drift = nn.Parameter(torch.zeros(family.voxels, min(latent, _DRIFTING)))
        # Scores stay standard, whatever the adversary does: without this, the occupancy of voxels that are rarely on
        # drifts away within a thousand steps.
        self.standardise = nn.BatchNorm1d(family.voxels, affine=False, momentum=0.01)
        self.energies = mlp([layers + count, 128, 128, layers], slope=SLOPE, zero_last=True)
        self.shapes = mlp([layers + latent + count, *hidden, family.voxels], slope=SLOPE, zero_last=True)

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
        drifting = factors[:, : self.drift.shape[1]] * self.transform.leading(scaled)
        common = factors @ self.loadings.T + drifting @ self.drift.T
        noise = self.transform.near(conditions) @ self.noise
        voxel_scores = self.standardise(common + own * noise + shift)
        return self.transform.inverse(energy_scores, voxel_scores, conditions)

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit transform and factors to training samples."""
        showers, conditions = self.transform.fit(samples)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(showers), generator=generator)[: max(1000, _FACTOR_NUMBERS // self.family.voxels)]
        showers, conditions = showers[rows], conditions[rows]
        self.transform.double()
        blocks = list(zip(showers.split(_BLOCK), conditions.split(_BLOCK), strict=True))
        scores = torch.cat([self.transform(*block)[1].float() for block in blocks])
        ceiling = torch.cat([self.transform.ceiling(*block).float() for block in blocks])
        self.transform.float()
        energy = self.transform.leading(scale_conditions(self.family, self.conditions, conditions))[:, 0].float()
        # Scores of a mirrored shower are the mirrored scores.
        mirrors = [torch.from_numpy(order) for order in self.family.mirrors]
        mirrors = mirrors[: max(1, _FACTOR_NUMBERS // max(1, showers.numel()))]
        scores, off, ceiling = (torch.cat([a[:, order] for order in mirrors]) for a in (scores, showers == 0, ceiling))
        loadings, drift = fit_factors(
            scores, off, ceiling, self.splits[1], generator, energy.repeat(len(mirrors)), self.drift.shape[1]
        )
        self.loadings.zero_()[:, : loadings.shape[1]] = loadings
        self.drift.zero_()[:, : drift.shape[1]] = drift
        for noise, station in zip(self.noise, self.transform.stations, strict=True):
            noise.copy_(own_noise(self.loadings, self.drift, station))


class ShowerCritic(Critic):
    """Scores standardised views of showers; has no batch statistics, since the penalty is per sample.

    The views, per voxel: log(1 + E / knee), with the knee at an absolute energy, and the root of the share of the
    layer; sums over rows and columns; per layer: energy, soft occupancy E / (E + knee) (a hard one has no gradient),
    centre, widths, share and asymmetry of the two hottest voxels; and the total and relative layer energies.

    Views come in groups (voxels, sums, layers) of very different size; each group is given the same total weight, or
    a critic bound to slope 1 would look at little but single voxels, and learn the training showers by heart.

    Args:
        generator: Its transform gives the energy variables.
        hidden: Widths of the hidden layers.
    """

    mean: Tensor  # (D,)
    spread: Tensor  # (D,)
    position: Tensor  # (V, 2) voxel centres in units of the largest one

    def __init__(self, generator: ShowerGenerator, hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        family, transform = generator.family, generator.transform
        self.family = family
        self.energy_variables = transform.energy_variables
        centres = torch.as_tensor(family.centres, dtype=torch.float32)
        self.register_buffer("position", centres / centres.abs().max().clamp(min=1e-6))
        size = 2 * family.voxels + sum(sum(layer.shape) for layer in family.layers) + 9 * len(family.layers)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.score = mlp([size + scaled_size(family, transform.conditions), *hidden, 1], slope=0.2)

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
