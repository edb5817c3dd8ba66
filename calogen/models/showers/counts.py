"""How many voxels of a layer are on, where few are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...families import Family

MOST = 24  # voxels on, up to which their number is set
_MEAN = 6.0  # voxels on in the mean of layers that have few
_LEVELS = 8  # layer energies at which it is known how many are on
_ENOUGH = 100  # layers at each of them
TIE = 1e-3  # numbers this close to a limit are on it, whatever rounding says
_NEVER = -40.0  # log energy in MeV of no layer


class HitCounts(nn.Module):
    """Sets how many voxels of a layer with little energy are on.

    There, hits divide the energy among them: their number varies less than that of cells which are on or off by
    themselves. The order in which voxels come, by how far they are from being off, stays; so does the order of showers
    by their number of hits, hence its correlations.

    Args:
        family: A calorimeter family.
    """

    levels: Tensor  # (S, L) log energies of each layer, increasing
    limits: Tensor  # (S, MOST, L) of the number as the voxels have it, above which more than 1, 2, ... are to be on

    def __init__(self, family: Family) -> None:
        super().__init__()
        layers = len(family.layers)
        self.register_buffer("levels", _NEVER + torch.arange(float(_LEVELS))[:, None].repeat(1, layers) * 1e-3)
        self.register_buffer("limits", torch.arange(1.0, MOST + 1)[:, None].repeat(_LEVELS, 1, layers))

    def forward(self, excess: Tensor, energies: Tensor, layer: int) -> Tensor:
        """How far voxels are from being off, (B, V_layer), positive where on; layer energies (B,) in MeV."""
        levels, logs = self.levels[:, layer], torch.log(energies.clamp(min=1e-9))
        first = foremost(excess)
        number = natural(first)
        near = ((logs[:, None] - levels[:-1]) / levels.diff()).clamp(0, 1)
        limits = self.limits[0, :, layer] + near @ self.limits[..., layer].diff(dim=0)
        wanted = 1 + (number[:, None] > limits + TIE).sum(1)
        # What comes next in order is just off. Where the number is right, or out of reach, nothing changes.
        change = (wanted != number.ceil().clamp(min=1)) & (wanted < first.shape[1])
        change &= (number <= MOST) & (logs < levels[-1])
        shift = first.gather(1, wanted.clamp(max=first.shape[1] - 1)[:, None])
        return excess - torch.where(change[:, None], shift, 0.0)

    def fit(self, numbers: Tensor, hits: Tensor, energies: Tensor) -> None:
        """Make numbers of hits distributed as in training showers with the same layer energies.

        Args:
            numbers: As the voxels of generated showers have them (:func:`natural`), (N, L).
            hits: Of training showers, (N, L).
            energies: Of the layers, (N, L).
        """
        for i in range(hits.shape[1]):
            logs, order = torch.log(energies[:, i].clamp(min=1e-9)).sort()
            order, logs = order[energies[order, i] > 0], logs[energies[order, i] > 0]
            # From the faintest layers to where more than few are on.
            mean = hits[order, i].cumsum(0) / torch.arange(1, len(order) + 1)
            few = int((mean < _MEAN).sum())
            bins = min(_LEVELS, few // _ENOUGH)
            if bins < 2:
                continue
            rows, energy = order[:few].tensor_split(bins), logs[:few].tensor_split(bins)
            levels = torch.stack([e.mean() for e in energy])
            limits = [self._limits(numbers[r, i], hits[r, i]) for r in rows]
            limits += [limits[-1]] * (_LEVELS - bins)
            levels = torch.cat([levels, logs[few - 1] + torch.arange(1.0, _LEVELS - bins + 1) * 1e-3])
            self.levels[:, i] = levels + 1e-4 * torch.arange(_LEVELS)
            self.limits[..., i] = torch.stack(limits)

    @staticmethod
    def _limits(numbers: Tensor, hits: Tensor) -> Tensor:
        share = torch.stack([(hits <= k).float().mean() for k in range(1, MOST + 1)])
        return torch.quantile(numbers, share)


def foremost(excess: Tensor) -> Tensor:
    """The greatest distances from being off in falling order, (B, K), of all (B, V_layer)."""
    return excess.topk(min(MOST + 2, excess.shape[1]), dim=1).values


def natural(first: Tensor) -> Tensor:
    """A number of voxels on, (B,), and how nearly one more or less is: their number is this, rounded up.

    Args:
        first: The greatest distances from being off, (B, K), positive where on, in falling order.
    """
    on = (first > 0).sum(1)
    last = first.gather(1, (on - 1).clamp(min=0)[:, None])[:, 0]
    after = first.gather(1, on.clamp(max=first.shape[1] - 1)[:, None])[:, 0]
    between = on - 1 + last / (last - after).clamp(min=1e-6)
    return torch.where(on == 0, first[:, 0].clamp(min=-1e3), torch.where(on == first.shape[1], 1.0 * on, between))
