"""The default critic of showers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...families import varies
from ...shards.samples import Samples
from ..contract import Critic
from ..layers import mlp
from .generator import ShowerGenerator


class ShowerCritic(Critic):
    """Judges standardised views of showers; has no batch statistics, since the penalty is per sample.

    The views, per voxel: log(1 + E / knee), with the knee at an absolute energy, and the root of the share of the
    layer; sums over rows and columns; per layer: energy, soft occupancy E / (E + knee) (a hard one has no gradient),
    centre, widths, share and asymmetry of the two hottest voxels; and the total and the layers' shares.

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
        size = 2 * family.voxels + sum(sum(layer.shape) for layer in family.layers) + 9 * len(family.layers) + 1
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.score = mlp([size + generator.scaled_size, *hidden, 1], slope=0.2)

    @torch.no_grad()
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:
        """Standardise the views on training samples."""
        rows = slice(0, max(256, min(len(samples), 5_000_000 // self.family.voxels)))
        values = torch.from_numpy(samples.values[rows])
        raw = self._raw(values, torch.from_numpy(samples.conditions.array(conditions)[rows]))
        self.mean.copy_(raw.mean(0))
        spread = raw.std(0).nan_to_num(0.0)
        # A view that is constant in training (a voxel never hit) keeps its own size: it has no spread to be judged by.
        known = varies(spread, raw.abs().amax(0))
        self.spread.copy_(torch.where(known, spread.clamp(min=1e-2), 1.0) / self._weights())

    def _weights(self) -> Tensor:
        """Weight of each view, (D,): groups of views weigh the same in all."""
        voxels, layers = self.family.voxels, len(self.family.layers)
        sums = sum(sum(layer.shape) for layer in self.family.layers)
        single = 9 * layers + 1
        small, middle, large = (math.sqrt(single / size) for size in (voxels, sums, single))
        parts = [torch.full((voxels,), small)]
        for layer, part in zip(self.family.layers, self.family.layer_slices, strict=True):
            sizes = (part.stop - part.start, sum(layer.shape), 8)
            parts += [torch.full((n,), w) for n, w in zip(sizes, (small, middle, large), strict=True)]
        return torch.cat([*parts, torch.full((layers + 1,), large)])

    def view(self, showers: Tensor, conditions: Tensor) -> Tensor:
        """Views (B, D), dimensionless, of showers (B, V) in MeV with conditions (B, C) in their units."""
        return ((self._raw(showers, conditions) - self.mean) / self.spread).clamp(-10, 10)

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, D) with scaled conditions (B, C)."""
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
