"""The default networks for showers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...families import Family
from ...shards.samples import Samples
from ..contract import Generator, Inference
from ..layers import SLOPE, mlp
from .fast import FoldedShowers
from .fitting import fit_factors, own_noise
from .transform import ShowerTransform

_FACTOR_NUMBERS = 30_000_000  # voxels that the factors are fitted to: bounds memory to about 1 GB
_BLOCK = 2048  # showers at a time
_DRIFTING = 64  # factors whose loadings change with the incident energy


class ShowerGenerator(Generator):
    """Energies first, then shapes normalised to them.

    Before training it is a statistical model fitted to the data: independent energy normals and voxel normals that
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
        super().__init__(family, conditions)
        layers, count = len(family.layers), self.scaled_size
        self.transform = ShowerTransform(family, conditions)
        self.splits = (layers, latent, family.voxels)  # of the latent numbers: energies, factors, voxels' own noise
        self.latent_size, self.coarse = sum(self.splits), latent + family.voxels
        self.register_buffer("noise", torch.ones(len(self.transform.stations), family.voxels))
        self.loadings = nn.Parameter(torch.zeros(family.voxels, latent))
        # How the loadings of the first factors change with the scaled incident energy.
        self.drift = nn.Parameter(torch.zeros(family.voxels, min(latent, _DRIFTING)))
        # Normals stay standard, whatever adversarial training does: without this, the occupancy of voxels that are
        # rarely on drifts away within a thousand steps.
        self.standardise = nn.BatchNorm1d(family.voxels, affine=False, momentum=0.01)
        self.energies = mlp([layers + count, 128, 128, layers], slope=SLOPE, zero_last=True)
        self.shapes = mlp([layers + latent + count, *hidden, family.voxels], slope=SLOPE, zero_last=True)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        energies, factors, own = latent.split(self.splits, 1)
        scaled = self.scaled(conditions)
        energy_normals = energies + self.energies(torch.cat([energies, scaled], 1))
        shift = self.shapes(torch.cat([energy_normals, factors, scaled], 1))
        drifting = factors[:, : self.drift.shape[1]] * self.transform.leading(scaled)
        common = factors @ self.loadings.T + drifting @ self.drift.T
        noise = self.transform.near(conditions) @ self.noise
        voxel_normals = self.standardise(common + own * noise + shift)
        return self.transform.inverse(energy_normals, voxel_normals, conditions)

    def folded(self) -> Inference:
        """In numpy, with all that training needs folded into the weights."""
        return FoldedShowers(self.transform, self.splits, self.state_dict(), self.standardise.eps)

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit transform and factors to training samples."""
        showers, conditions = self.transform.fit(samples)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(showers), generator=generator)[: max(1000, _FACTOR_NUMBERS // self.family.voxels)]
        showers, conditions = showers[rows], conditions[rows]
        self.transform.double()
        blocks = list(zip(showers.split(_BLOCK), conditions.split(_BLOCK), strict=True))
        normals = torch.cat([self.transform(*block)[1].float() for block in blocks])
        ceiling = torch.cat([self.transform.ceiling(*block).float() for block in blocks])
        self.transform.float()
        energy = self.transform.leading(self.scaled(conditions))[:, 0].float()
        # Normals of a mirrored shower are the mirrored normals.
        mirrors = [torch.from_numpy(order) for order in self.family.mirrors]
        mirrors = mirrors[: max(1, _FACTOR_NUMBERS // max(1, showers.numel()))]
        normals, off, ceiling = (
            torch.cat([a[:, order] for order in mirrors]) for a in (normals, showers == 0, ceiling)
        )
        loadings, drift = fit_factors(
            normals, off, ceiling, self.splits[1], generator, energy.repeat(len(mirrors)), self.drift.shape[1]
        )
        self.loadings.zero_()[:, : loadings.shape[1]] = loadings
        self.drift.zero_()[:, : drift.shape[1]] = drift
        for noise, station in zip(self.noise, self.transform.stations, strict=True):
            noise.copy_(own_noise(self.loadings, self.drift, station))
