"""A conditional variational autoencoder of showers: the yardstick of the other family of models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...families import Family
from ...shards.samples import Samples
from ..contract import LikelihoodGenerator
from ..layers import SLOPE, mlp
from ..showers.fitting import normal_tail
from ..showers.transform import ShowerTransform
from ..streams import drawn

_LEAST_MASS = 1e-30  # of a voxel being off, in float32
_LOG_TAU = math.log(2 * math.pi)


class VaeGenerator(LikelihoodGenerator):
    """Latent values of voxels that are normal about a mean that a few latent numbers decide.

    Given latent numbers a, layer energies e and conditions c, the latent value of voxel v is normal with mean
    m_v(a, e, c) and spread sigma_v. It is on if this value exceeds the ceiling that the transform gives it, so a voxel
    that is off contributes the probability of lying below: the likelihood of a censored normal (Tobin 1958), with no
    noise put in place of zeros. The latent values of energies are standard normal by their transform and need no model.

    The space is that of :class:`ShowerTransform`, because a VAE is no better than its noise. In
    MeV, normal noise of one spread blurs voxels that differ a thousandfold and knows no zeros. In its space, noise is
    normal voxel by voxel before any training, and all that the latent numbers have to learn is what voxels have in
    common.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.
        latent: Latent numbers K.
        hidden: Widths of the hidden layers of encoder and (in reverse) decoder.

    Source: Kingma and Welling 2014, arXiv:1312.6114; Sohn et al. 2015 (conditional).
    """

    transform: ShowerTransform

    def __init__(
        self, family: Family, conditions: Sequence[str], latent: int = 64, hidden: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__(family, conditions)
        self.transform = ShowerTransform(family, conditions, about_axis=False)
        size, voxels = self.transform.energies.size, family.voxels
        self.splits = (size, latent, voxels)  # of what one shower takes: energies, latent numbers, voxels' own noise
        self.latent_size, self.coarse = sum(self.splits), latent + voxels
        known = size + self.scaled_size
        self.encoder = mlp([known + voxels, *hidden, 2 * latent], slope=SLOPE)
        self.decoder = mlp([latent + known, *reversed(hidden), voxels], slope=SLOPE, zero_last=True)
        self.log_spread = nn.Parameter(torch.zeros(voxels))

    def fit(self, samples: Samples, seed: int) -> None:  # noqa: ARG002 - one call shape for all generators
        """Fit the transform to training samples, in MeV."""
        self.transform.fit(samples)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        energies, code, own = latent.split(self.splits, 1)
        normals = self._mean(code, energies, conditions) + own * self.log_spread.exp()
        return self.transform.inverse(energies, normals, conditions)

    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        """Minus the evidence lower bound, in nats a shower; arguments as for :class:`LikelihoodGenerator`."""
        with torch.no_grad():
            energies, normals = self.transform(samples, conditions)
            ceiling, on = self.transform.ceiling(samples, conditions), samples > 0
        known = torch.cat([energies, self.scaled(conditions)], 1)
        mean, log_variance = self.encoder(torch.cat([known, normals], 1)).chunk(2, 1)
        noise = drawn(torch.randn, mean.shape, stream, device=mean.device)
        code = mean + noise * torch.exp(0.5 * log_variance)
        centre, spread = self._mean(code, energies, conditions), self.log_spread.exp()
        seen = -0.5 * (((normals - centre) / spread).square() + _LOG_TAU) - self.log_spread
        unseen = torch.log(normal_tail((centre - ceiling) / spread).clamp(min=_LEAST_MASS))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        bound: Tensor = torch.where(on, seen, unseen).sum(1) - divergence
        return -bound.mean()

    def _mean(self, code: Tensor, energies: Tensor, conditions: Tensor) -> Tensor:
        mean: Tensor = self.decoder(torch.cat([code, energies, self.scaled(conditions)], 1))
        return mean
