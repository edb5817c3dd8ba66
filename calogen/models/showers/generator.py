"""The default networks for showers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...families import Family
from ...shards.samples import Samples
from ..conditions import scale_conditions, scaled_size
from ..contract import Generator
from ..layers import SLOPE, mlp
from .fitting import fit_factors, own_noise
from .transform import ShowerTransform

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
