"""Showers as projected training sees them: a few physical numbers of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...families import Family
from ..refinement import whitening
from .patterns import GROUPS
from .voxels import Given

VIEWS = 16 + 2 * GROUPS
"""Of each layer."""
_BRIGHTEST = 5  # cells
_SOFT = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of the energies of cells that are on, at which hits are counted
_MANY = 100_000  # of them
_FARTHEST = 6.0  # standard deviations
_MOST = 4.0  # of a view in the end
_LEAST, _NEVER = 1e-5, 1e9  # spread of a view; what makes one 0
_SHRINK = (3.0, 1e-4)  # of regressions: so many showers, and a part of all


class ShowerViews(nn.Module):
    """Views of the layers of showers, at given layer energies; all even under the mirrors of a layer.

    Of each layer: how far its centre lies from where it should, along both axes, and from that of the next layer; its
    widths and fourth moment; contrast and share of the hottest cells; how many cells lie above each of five energies,
    softly; and, of each group of cells that the refinement knows, its share of the energy and how many are on, or what
    the patterns change there would not be seen. What conditions and layer energies say of mean and spread is taken out
    by regressions on the features that voxels have; then the views of a layer are made uncorrelated.

    Args:
        window: What showers are in their frame.
        features: How many voxels have (F).
    """

    members: Tensor  # (V, GROUPS) 1 where a cell belongs to a group of its layer
    width: Tensor  # (L,) of a mean shower, in mm
    soft: Tensor  # (L, 5) energies of cells at which hits are counted
    centre: Tensor  # (L, F, 2) of mean centres ...
    away: Tensor  # (L, 2) ... and how far from them they are
    mean: Tensor  # (L, F, D)
    log_spread: Tensor  # (L, F, D)
    scale: Tensor  # (L, D)
    whitening: Tensor  # (L, D, D)
    position: Tensor  # (V, 2) of the cells, in mm

    def __init__(self, window: Family, features: int) -> None:
        super().__init__()
        self._parts, layers = window.layer_slices, len(window.layers)
        shapes: dict[str, tuple[int, ...]] = {
            "members": (window.voxels, GROUPS),
            "width": (layers,),
            "soft": (layers, len(_SOFT)),
            "centre": (layers, features, 2),
            "away": (layers, 2),
            "mean": (layers, features, VIEWS),
            "log_spread": (layers, features, VIEWS),
            "scale": (layers, VIEWS),
            "whitening": (layers, VIEWS, VIEWS),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.ones(shape))
        self.register_buffer("position", torch.from_numpy(window.centres).float(), persistent=False)

    def fit(self, group: Tensor, showers: Tensor, given: Given) -> None:
        """Standardise by training showers.

        Args:
            group: Numbers of the voxels' groups in their layers, (V,).
            showers: (N, V), in the family's unit, in their frame.
            given: What their voxels depend on.
        """
        self.members.copy_(nn.functional.one_hot(group, GROUPS))
        layers = len(self._parts)
        for i, part in enumerate(self._parts):
            mean, square = showers[:, part].mean(0), self.position[part].square().sum(1)
            self.width[i] = ((mean @ square) / mean.sum().clamp(min=1e-30) / 2).sqrt().clamp(min=1e-6)
            on = showers[:, part].flatten()
            on = on[on > 0]
            if len(on):
                self.soft[i] = torch.quantile(on[:: max(1, math.ceil(len(on) / _MANY))], torch.tensor(_SOFT))
        lit = given.energies > 0

        def regression(target: Tensor) -> Tensor:
            return torch.stack([_ridge(given.features[lit[:, i], i], target[lit[:, i], i]) for i in range(layers)])

        self.centre.copy_(regression(self._centres(showers, given.energies)))
        off = (self._centres(showers, given.energies) - _predicted(given, self.centre)).square() * lit[..., None]
        self.away.copy_((off.sum(0) / lit.sum(0).clamp(min=1)[:, None]).sqrt().clamp(min=1e-6))
        raw = self._raw(showers, given)
        self.mean.copy_(regression(raw))
        rest = raw - _predicted(given, self.mean)
        self.log_spread.copy_(regression(torch.log(rest.abs() + 1e-3 * rest.std(0) + 1e-6)))
        rest = rest / torch.exp(_predicted(given, self.log_spread)).clamp(min=1e-6)
        square = (rest.square() * lit[..., None]).sum(0) / lit.sum(0).clamp(min=1)[:, None]
        # What never changes, as that of a group with no cells, is no view.
        self.scale.copy_(torch.where(raw.std(0) > _LEAST, square.sqrt().clamp(min=1e-3), _NEVER))
        whole = (rest / self.scale).clamp(-_FARTHEST, _FARTHEST) * lit[..., None]
        self.whitening.copy_(torch.stack([whitening(whole[lit[:, i], i]) for i in range(layers)]))

    def forward(self, showers: Tensor, given: Given) -> Tensor:
        """Views (B, L, D) of showers (B, V) in the family's unit, in their frame; 0 of layers without energy."""
        rest = self._raw(showers, given) - _predicted(given, self.mean)
        rest = rest / torch.exp(_predicted(given, self.log_spread)).clamp(min=1e-6) / self.scale
        views = torch.einsum("bld,lde->ble", rest.clamp(-_FARTHEST, _FARTHEST), self.whitening)
        return limited(views) * (given.energies > 0)[..., None]

    def _centres(self, showers: Tensor, energies: Tensor) -> Tensor:
        """Of the energy in each layer, (B, L, 2), in mm."""
        shares = self._shares(showers, energies)
        return torch.stack([share @ self.position[part] for share, part in zip(shares, self._parts, strict=True)], 1)

    def _shares(self, showers: Tensor, energies: Tensor) -> Iterator[Tensor]:
        """Of the cells of each layer in its energy."""
        return (showers[:, part] / (energies[:, i, None] + 1e-9) for i, part in enumerate(self._parts))

    def _raw(self, showers: Tensor, given: Given) -> Tensor:
        centres, found = self._centres(showers, given.energies), []
        away = ((centres - _predicted(given, self.centre)) / self.away).clamp(-_FARTHEST, _FARTHEST)
        following = torch.cat([away[:, 1:], away[:, -2:-1] if away.shape[1] > 1 else torch.zeros_like(away)], 1)
        together = away * following / 2
        for i, (part, share) in enumerate(zip(self._parts, self._shares(showers, given.energies), strict=True)):
            # Logarithms of what is positive, since it spans decades; constants keep them finite.
            position = self.position[part] / self.width[i]
            radius = position.square().sum(1)
            variance = (share @ position.square() - (centres[:, i] / self.width[i]).square()).clamp(min=0)
            fourth, members = share @ radius.square(), self.members[part]
            brightest = share.topk(min(_BRIGHTEST, share.shape[1]), 1).values.T
            first, second, last = brightest[0], brightest[min(1, len(brightest) - 1)], brightest[-1]
            ratio = (showers[:, part, None] / self.soft[i]).square()
            single = [
                torch.log(fourth + 1e-2),
                (first - second) / (first + second + 1e-6),
                first,
                torch.log(last + 1e-3),
                torch.log(brightest[1:].sum(0) + 1e-3),
            ]
            pairs = [torch.log(away[:, i].square() + 0.05), torch.log(variance + 1e-2), together[:, i]]
            soft = ratio / (1 + ratio)
            groups = [torch.log(share @ members + 1e-3)]
            groups += [torch.sqrt(soft[..., 0] @ members / members.sum(0).clamp(min=1) + 1e-5)]
            found.append(torch.cat([*pairs, torch.stack(single, 1), torch.sqrt(soft.mean(1) + 1e-5), *groups], 1))
        return torch.stack(found, 1)


def _predicted(given: Given, coefficients: Tensor) -> Tensor:
    """Regressions (L, F, D) on the features of voxels, (B, L, D)."""
    return torch.einsum("blf,lfd->bld", given.features, coefficients)


def _ridge(features: Tensor, target: Tensor) -> Tensor:
    """Coefficients (F, D) of targets (N, D) in features (N, F), the constant first."""
    features, target = features.double(), target.double()
    shrink = torch.full((features.shape[1],), _SHRINK[0] + _SHRINK[1] * len(features), dtype=torch.float64)
    shrink[0] = 1e-6
    found: Tensor = torch.linalg.solve(features.T @ features + torch.diag(shrink), features.T @ target)
    return found.float()


def limited(views: Tensor) -> Tensor:
    """Views whose largest values are moderate."""
    # Rare showers far out must not outweigh all others: a critic of bounded slope would look at little else.
    return _MOST * torch.tanh(views / _MOST)
