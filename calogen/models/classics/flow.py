"""A conditional normalising flow of showers: a model with an exact likelihood, and the mark for others to reach.

Needs the extra ``calogen[flow]`` (zuko).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, require
from ...families import Family
from ...shards.samples import Samples
from ..contract import LikelihoodGenerator
from ..layers import SLOPE, mlp
from ..showers.factors import own_variance
from ..showers.fitting import normal_tail
from ..showers.generator import ShowerGenerator
from ..showers.transform import ShowerTransform
from ..streams import drawn

_MOST_VOXELS = 4096  # whose principal axes are a matrix that fits
_SWEEPS = 4  # of the Gibbs sampler behind voxels that are off
_BOUND, _BINS = 5.0, 8  # of the energies' splines: normals end at +-4
_LEAST_MASS = 1e-30


class FlowGenerator(LikelihoodGenerator):
    """Energies given the conditions, then voxels given energies and conditions, each by a flow.

    The space is that of the latent normals of :class:`ShowerTransform`. There every variable is normal on its own
    before any training; the fitted factor model of :class:`ShowerGenerator` says which value a voxel that is off would
    have had (drawn anew for every batch, so zeros become continuous), and its principal axes are
    where the flow of the voxels begins. Both flows begin as the identity: the likelihood at step 0 is that of the
    factor model with the correlations of the mean energy, and rises from there. A flow of plain voxels would first have
    to learn, from the same few showers, what half of its zeros and a thousandfold range of energies look like.

    Energies go through rational-quadratic splines; principal components are first shifted and scaled given the
    energies, then by affine couplings, whose halves alternate.

    Args:
        family: A calorimeter family of at most 4,096 voxels.
        conditions: Names of the conditions.
        latent: Factors of the factor model.
        hidden: Widths of the hidden layers behind every coupling of voxels.
        blocks: Pairs of couplings of voxels.

    Raises:
        ConfigError: If zuko is not installed, or the family has too many voxels.

    Source: Dinh et al. 2017, arXiv:1605.08803 (couplings); Durkan et al. 2019, arXiv:1906.04032 (splines); Krause and
    Shih 2021, arXiv:2106.05285 (energies first, then voxels).
    """

    transform: ShowerTransform
    loadings: Tensor  # (V, K) of the factor model ...
    noise: Tensor  # (V,) ... and what is each voxel's own
    axes: Tensor  # (V, V) principal axes of voxel normals, as columns
    deviations: Tensor  # (V,) standard deviations along them

    def __init__(
        self,
        family: Family,
        conditions: Sequence[str],
        latent: int = 192,
        hidden: Sequence[int] = (32,),
        blocks: int = 1,
    ) -> None:
        super().__init__(family, conditions)
        require("zuko.transforms", "flow")
        voxels = family.voxels
        if voxels > _MOST_VOXELS:
            raise ConfigError(
                "network 'flow' keeps all pairs of principal axes and voxels",
                where="generator.network",
                expected=f"a family of at most {_MOST_VOXELS} voxels",
                found=f"'{family.name}' with {voxels}",
                hint="take network 'copula' or 'vae'",
            )
        self.transform = ShowerTransform(family, conditions, about_axis=False)
        size = self.transform.energies.size
        self.latent_size, self.coarse = size + voxels, voxels
        self.register_buffer("loadings", torch.zeros(voxels, latent))
        self.register_buffer("noise", torch.ones(voxels))
        self.register_buffer("axes", torch.eye(voxels))
        self.register_buffer("deviations", torch.ones(voxels))
        count = self.scaled_size
        # One layer: its energy given the conditions alone. More: each in turn given all others.
        self.of_energies = nn.ModuleList(
            _Coupling([j != i for j in range(size)], count, (64, 64), _BINS) for i in [*range(size)] * 2
        )
        halves = [[j % 2 == k for j in range(voxels)] for k in (0, 1)]
        masks = [[False] * voxels, *halves * blocks]
        self.of_voxels = nn.ModuleList(_Coupling(mask, size + count, hidden) for mask in masks)

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit transform, factor model and principal axes to training samples, in MeV."""
        start = ShowerGenerator(self.family, self.conditions, self.loadings.shape[1], about_axis=False)
        start.fit(samples, seed)
        self.transform = start.transform
        # There they change with the energy; here they are those of the mean one, and couplings learn the change.
        self.loadings.copy_(start.loadings)
        self.noise.copy_(own_variance(start.loadings).sqrt())
        covariance = (self.loadings @ self.loadings.T + torch.diag(self.noise.square())).double()
        variances, axes = torch.linalg.eigh(covariance)
        self.axes.copy_(axes.flip(1))
        self.deviations.copy_(variances.flip(0).clamp(min=1e-6).sqrt())

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        return self.transform.inverse(*self.normals(latent, self.scaled(conditions)), conditions)

    def normals(self, latent: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Latent normals of energies (B, D) and voxels (B, V) from noise (B, Z) and scaled conditions (B, C)."""
        size = self.transform.energies.size
        energies, components = latent[:, :size], latent[:, size:]
        for coupling in reversed(self.of_energies):
            energies = coupling(scaled).inv(energies)
        context = torch.cat([energies, scaled], 1)
        for coupling in reversed(self.of_voxels):
            components = coupling(context).inv(components)
        return energies, (components * self.deviations) @ self.axes.T

    def log_density(self, energies: Tensor, voxels: Tensor, scaled: Tensor) -> Tensor:
        """Log density (B,) of latent normals of energies (B, D) and voxels (B, V), given scaled conditions (B, C)."""
        context = torch.cat([energies, scaled], 1)
        components = (voxels @ self.axes) / self.deviations
        logs = -self.deviations.log().sum()
        for coupling in self.of_voxels:
            components, log = coupling(context).call_and_ladj(components)
            logs = logs + log
        for coupling in self.of_energies:
            energies, log = coupling(scaled).call_and_ladj(energies)
            logs = logs + log
        squares = energies.square().sum(1) + components.square().sum(1)
        size = energies.shape[1] + components.shape[1]
        density: Tensor = logs - 0.5 * (squares + size * math.log(2 * math.pi))
        return density

    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        """Minus the log likelihood, in nats a shower; arguments as for :class:`LikelihoodGenerator`."""
        with torch.no_grad():
            energies, voxels = self.transform(samples, conditions)
            voxels = self._completed(voxels, samples == 0, self.transform.ceiling(samples, conditions), stream)
        return -self.log_density(energies, voxels, self.scaled(conditions)).mean()

    def _completed(self, normals: Tensor, off: Tensor, ceiling: Tensor, stream: torch.Generator) -> Tensor:
        """Normals (B, V) in which those of voxels that are off are drawn, below their ceiling, by the factor model.

        Gibbs sampling: factors given all normals, then normals that are off given the factors.
        """

        def below(mean: Tensor, spread: Tensor) -> Tensor:
            mass = normal_tail((mean - ceiling) / spread)
            uniform = drawn(torch.rand, mean.shape, stream, device=mean.device)
            return torch.minimum(mean + spread * torch.special.ndtri((uniform * mass).clamp(min=_LEAST_MASS)), ceiling)

        weighted = self.loadings / self.noise.square()[:, None]
        rank = self.loadings.shape[1]
        root = torch.linalg.cholesky(torch.linalg.inv(weighted.T @ self.loadings + torch.eye(rank).to(normals)))
        to_mean = weighted @ root @ root.T
        filled = torch.where(off, below(torch.zeros_like(normals), torch.ones_like(self.noise)), normals)
        for _ in range(_SWEEPS):
            draw = drawn(torch.randn, (len(normals), rank), stream, device=normals.device)
            factors = filled @ to_mean + draw @ root.T
            filled = torch.where(off, below(factors @ self.loadings.T, self.noise), normals)
        return filled


class _Coupling(nn.Module):
    """Variables that a mask leaves out, transformed given those that it keeps and a context; the identity at first.

    Args:
        kept: Which variables are kept, one entry per variable.
        context: Size of the context.
        hidden: Widths of the hidden layers.
        bins: Of rational-quadratic splines; 0: affine transformations.
    """

    kept: Tensor

    def __init__(self, kept: Sequence[bool], context: int, hidden: Sequence[int], bins: int = 0) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.sizes = [bins, bins, bins - 1] if bins else [1, 1]
        inputs, outputs = sum(kept) + context, len(kept) - sum(kept)
        # With nothing to look at there is still a constant to learn: the input is then a single zero.
        self.blind = inputs == 0
        self.network = mlp([max(inputs, 1), *hidden, outputs * sum(self.sizes)], slope=SLOPE, zero_last=True)

    def forward(self, context: Tensor) -> Any:
        """A ``torch.distributions.Transform`` of variables (B, D), given a context (B, E)."""
        zuko = require("zuko.transforms", "flow")

        def of_the_others(kept: Tensor) -> Any:
            inputs = context.new_zeros(len(kept), 1) if self.blind else torch.cat([kept, context], 1)
            parts = self.network(inputs).unflatten(1, (-1, sum(self.sizes))).split(self.sizes, 2)
            if len(parts) == 3:
                one = zuko.MonotonicRQSTransform(*parts, bound=_BOUND)
            else:
                one = zuko.MonotonicAffineTransform(*(part[..., 0] for part in parts))
            return zuko.DependentTransform(one, 1)

        return zuko.CouplingTransform(of_the_others, self.kept)
