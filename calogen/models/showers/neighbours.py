"""The voxels' own noise, shared between neighbouring cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...families import Family
from .fitting import inverse_tail

_ROOT_2PI = math.sqrt(2 * math.pi)
_LEVELS = (0.1, 0.37, 0.63, 0.9)  # quantiles of a layer's energy at which it is known how much is shared
_MOST = 0.6  # correlation of neighbours' noise
APART = (0.0, 0.5, 1.0)  # how much energies may follow a voxel's own noise
_WORTH = 0.1  # of the asymmetry: what that has to change to be used
_ENOUGH = 30.0  # pairs of hits with which data count as much as what is known before


class Pairs(NamedTuple):
    """Hits side by side in some showers, near each level of their layer's energy; (A, S, Z) each, of Z zones.

    Attributes:
        beside: Pairs of neighbours that are on, along each axis.
        all: Pairs of hits anywhere: in a layer, or, for the axis of depth, in this layer and in those next to it.
        likely: Occupancy of a voxel that is on, in the mean.
    """

    beside: Tensor
    all: Tensor
    likely: Tensor


class SharedNoise(nn.Module):
    """A voxel's own noise and part of its neighbours': a particle that is seen in one cell is often seen in the next.

    Common factors hold how regions of a shower go together, not that single hits lie side by side. Noise is smoothed
    along both axes of each layer and in depth, as much as the layer's energy asks for, in each of two zones of a layer:
    its hottest cells, and all others.

    Args:
        family: A calorimeter family.
    """

    levels: Tensor  # (S, L) log energies of each layer, increasing
    zone: Tensor  # (V,) of each voxel: twice its layer, and one more in the core
    shares: Tensor  # (A, S, Z) part of each neighbour's noise beside a voxel's own, along each axis
    apart: Tensor  # (S, Z) how much energies follow a voxel's own noise rather than what is shared
    beside: Tensor  # (A, 2, V) the neighbours
    there: Tensor  # (A, 2, V) 1 where there is one

    def __init__(self, family: Family) -> None:
        super().__init__()
        layers, beside = len(family.layers), family.neighbours
        there = (beside != np.arange(family.voxels)).astype(np.float32)
        self._parts = family.layer_slices
        self.register_buffer("levels", torch.arange(float(len(_LEVELS)))[:, None].repeat(1, layers))
        self.register_buffer("zone", torch.zeros(family.voxels, dtype=torch.long))
        self.register_buffer("shares", torch.zeros(len(beside), len(_LEVELS), 2 * layers))
        self.register_buffer("apart", torch.zeros(len(_LEVELS), 2 * layers))
        self.register_buffer("beside", torch.from_numpy(beside), persistent=False)
        self.register_buffer("there", torch.from_numpy(there), persistent=False)

    def forward(self, own: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
        """Correlated standard normals of independent ones.

        Args:
            own: Independent standard normals, (B, V).
            energies: Of the layers, (B, L), in MeV.

        Returns:
            The correlated normals, (B, V), and what to add to a voxel's standardised log share, (B, V): independent of
            its normal, and large where its own noise is larger than what its neighbours make of it.
        """
        near, noise = self._near(energies), own
        kept = torch.ones_like(own)  # correlation of a voxel's normal with its own noise
        for (before, after), there, shares in zip(self.beside, self.there, self.shares, strict=True):
            share = self._at(near, shares)
            both = noise.index_select(1, before) * there[0] + noise.index_select(1, after) * there[1]
            scale = torch.rsqrt(1 + share.square() * there.sum(0))
            noise, kept = (noise + share * both) * scale, kept * scale
        return noise, self._at(near, self.apart) * (own - kept * noise)

    def _at(self, near: Tensor, values: Tensor) -> Tensor:
        """What holds for the voxels (B, V) of values (S, Z) at the levels."""
        return torch.einsum("sbz,sz->bz", near, values).index_select(1, self.zone)

    def prepare(self, energies: Tensor, core: Tensor) -> None:
        """Take levels from the layer energies (N, L) of training showers, in MeV, and zones from their core voxels."""
        for i, layer in enumerate(energies.unbind(1)):
            logs = torch.log(layer[layer > 0]).float()
            if len(logs) >= len(_LEVELS):
                levels = torch.quantile(logs[: 1 << 20], torch.tensor(_LEVELS))
                self.levels[:, i] = levels + 1e-3 * torch.arange(len(levels))  # increasing, whatever the data
        for i, part in enumerate(self._parts):
            self.zone[part] = 2 * i
        self.zone[core] += 1

    def pairs(self, showers: Tensor, energies: Tensor, faint: Tensor) -> Pairs:
        """Hits side by side in showers (N, V) with layer energies (N, L), both in MeV.

        Args:
            faint: Layers whose core shares noise, too, (N, L): in others it has correlations of its own.
        """
        on, zones = (showers > 0).float(), self.shares.shape[2]
        near = self._near(energies.float()) * (energies > 0).repeat_interleave(2, 1)
        near[:, :, 1::2] *= faint
        hits = self._sums(on)
        layers = hits[:, ::2] + hits[:, 1::2]
        across = torch.zeros_like(layers)
        same = self.there[2, 1, [part.start for part in self._parts[:-1]]]
        across[:, 1:] += layers[:, :-1] * same
        across[:, :-1] += layers[:, 1:] * same
        others = [part.repeat_interleave(2, 1) for part in (layers - 1, layers - 1, across)]
        found = [
            self._sums(on * (on.index_select(1, before) * there[0] + on.index_select(1, after) * there[1]))
            for (before, after), there in zip(self.beside, self.there, strict=True)
        ]
        # The mean occupancy of voxels that are on.
        core, parts = self.zone % 2 == 1, enumerate(self._parts)
        sums = [torch.where(core[p], near[:, :, 2 * i + 1] @ on[:, p], near[:, :, 2 * i] @ on[:, p]) for i, p in parts]
        rows, total = near.sum(1), torch.einsum("sbz,bz->sz", near, hits)
        likely = self._sums(torch.cat(sums, 1).square()) / (rows * total).clamp(min=1e-9)
        beside = torch.einsum("sbz,abz->asz", near, torch.stack(found))
        every = torch.einsum("sbz,abz->asz", near, hits * torch.stack(others))
        return Pairs(beside, every, likely.expand(len(found), -1, zones))

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over zones, (B, Z), of values (B, V)."""
        return values.new_zeros(len(values), self.shares.shape[2]).index_add(1, self.zone, values)

    def move(self, target: Pairs, made: Pairs, most: float) -> None:
        """Share more or less noise, so that as many pairs of hits are neighbours as in the target.

        Args:
            target: Pairs in training showers.
            made: Pairs in generated showers.
            most: By how much correlations of neighbours may change.
        """
        # Of rare hits with thresholds t, the logarithm of how often both are on rises with their correlation as
        # (density(t) / tail(t))^2.
        tail = target.likely.clamp(1e-5, 0.5)
        point = inverse_tail(tail)
        slope = (torch.exp(-point.square() / 2) / (_ROOT_2PI * tail)).square()
        lack = torch.log((target.beside + 0.5) / (target.all + 0.5)) - torch.log((made.beside + 0.5) / (made.all + 0.5))
        trust = target.beside / (target.beside + _ENOUGH)
        now = 2 * self.shares / (1 + 2 * self.shares.square())
        wanted = (now + (trust * lack / slope).clamp(-most, most)).clamp(-_MOST, _MOST)
        self.shares.copy_(wanted / (1 + torch.sqrt(1 - 2 * wanted.square())))

    def asymmetries(self, showers: Tensor, energies: Tensor) -> Tensor:
        """Asymmetries of the two hottest voxels of showers, added up near each level, and their number, (2, S, L)."""
        hottest = torch.stack([showers[:, part].topk(min(2, part.stop - part.start)).values.T for part in self._parts])
        first, second = hottest[:, 0].T, hottest[:, -1].T
        near = self._near(energies.float())[:, :, ::2] * (second > 0)
        values = (first - second) / (first + second).clamp(min=1e-30)
        return torch.stack([torch.einsum("sbl,bl->sl", near, values), near.sum(1)])

    def set_apart(self, target: Tensor, found: Tensor) -> None:
        """Choose how much energies follow a voxel's own noise.

        Args:
            target: Mean asymmetries near each level, (S, L).
            found: Those of generated showers where all are :data:`APART`, (len(APART), S, L).
        """
        # Where little noise is shared, little can be done.
        found = found.cummax(0).values
        steps = ((target - found[:-1]) / found.diff(dim=0).clamp(min=1e-9)).clamp(0, 1)
        apart = (steps * torch.tensor(APART).diff()[:, None, None]).sum(0)
        apart = torch.where(found[-1] > (1 + _WORTH) * found[0], apart, 0.0)
        self.apart.copy_(apart.repeat_interleave(2, 1))

    def _near(self, energies: Tensor) -> Tensor:
        """How near each level the layers of the zones are, (S, B, Z), adding up to 1."""
        logs, gaps = torch.log(energies.clamp(min=1e-9)), self.levels.diff(dim=0)[:, None]
        ramps = ((logs - self.levels[:-1, None]) / gaps).clamp(0, 1)
        one, none = torch.ones_like(ramps[:1]), torch.zeros_like(ramps[:1])
        near = torch.cat([one, ramps]) - torch.cat([ramps, none])
        return near.repeat_interleave(2, 2)
