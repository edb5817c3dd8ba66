"""CaloGAN's towers: the first GAN of calorimeter showers, as published (arXiv:1705.02355), in PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, leaky_relu, pad

from ...families import Family
from ..conditions import scaling
from ..contract import Critic, Generator
from ..layers import OfBatch
from .networks import Incident

_SLOPE = 0.3  # of Keras' LeakyReLU
_SMALL = 1e-3  # added to variances, by Keras' batch normalisation
_KERNELS, _KERNEL_SIZE = 10, 10  # of minibatch discrimination
_SAME = nn.ZeroPad2d((0, 1, 0, 1))  # before a convolution of 2 x 2: the image keeps its size
_TOO_FAR = 5.0  # GeV between deposited and incident energy


class LocallyConnected(nn.Module):
    """A convolution whose kernel is another one at every place.

    Args:
        inputs: Channels (I).
        outputs: Channels (O).
        shape: Of the images that come in (H, W).
        kernel: Its side (K).
        stride: Along both axes.
        padding: Zeros added at every side.
        bias: Whether to add a constant per place and channel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        shape: tuple[int, int],
        kernel: int,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self._kernel, self._stride, self._padding = kernel, stride, padding
        self.shape = cast(
            tuple[int, int],
            tuple((side + 2 * padding - kernel) // step + 1 for side, step in zip(shape, stride, strict=True)),
        )
        places, seen = math.prod(self.shape), inputs * kernel**2
        # As in Keras, where a layer's fan counts its places too: towers begin with little energy, not far too much.
        self.weight = nn.Parameter(torch.randn(places, seen, outputs) * math.sqrt(2 / (places * seen)))
        self.bias = nn.Parameter(torch.zeros(places, 1, outputs)) if bias else None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, O, H', W') from images (B, I, H, W)."""
        # Places first in memory: what a place sees is then copied in long runs, and leaves in the order the next wants.
        grid = pad(images, (self._padding,) * 4).permute(2, 3, 0, 1).contiguous()
        (rows, columns), (down, right) = self.shape, self._stride
        shifts = itertools.product(range(self._kernel), repeat=2)
        seen = [grid[y : y + down * rows : down, x : x + right * columns : right] for y, x in shifts]
        patches = torch.cat(seen, 3).flatten(0, 1)
        made: Tensor = patches @ self.weight if self.bias is None else torch.baddbmm(self.bias, patches, self.weight)
        return made.unflatten(0, self.shape).permute(2, 3, 0, 1)  # type: ignore[no-any-return]


class CaloganGenerator(Generator):
    """One tower per layer, fed by latent numbers times energy; each layer may take over the image of the one before.

    A tower is a dense layer, a convolution and two locally connected layers. The image of the layer before, brought to
    the same size by repetition and averages, is mixed in voxel by voxel, with weights that a locally connected layer
    derives from both (they begin as 'own layer only'). ReLUs make the zeros. Energies are in units of a hundredth of
    the highest incident energy: GeV, for CaloGAN's own calorimeter. Conditions other than the energy are put beside the
    latent numbers.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.
        latent: Latent numbers; 1,024 as published.

    Source: Paganini, de Oliveira and Nachman 2018, arXiv:1705.02355; hep-lbdl/CaloGAN.
    """

    transform: Incident

    def __init__(self, family: Family, conditions: Sequence[str], latent: int = 1024) -> None:
        super().__init__(family, conditions)
        self.latent_size = latent
        self.transform = Incident(family, conditions)
        shapes = [layer.shape for layer in family.layers]
        others = self.scaled_size - (self.transform.column is not None)
        self.towers = nn.ModuleList(_Tower(latent + others, shape) for shape in shapes)
        self.attention = nn.ModuleList(_Attention(shape) for shape in shapes[1:])

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        others = [i for i in range(self.scaled_size) if i != self.transform.column]
        incident = self.transform.incident(conditions) / self.transform.unit
        inputs = torch.cat([latent * incident / 100, self.scaled(conditions)[:, others]], 1)
        images: list[Tensor] = [tower(inputs) for tower in self.towers]
        for i, attention in enumerate(self.attention):
            images[i + 1] = attention(images[i + 1], images[i])
        return torch.relu(torch.cat([image.flatten(1) for image in images], 1)) * self.transform.unit


class _Tower(nn.Module):
    """Images (B, 1, H, W), not yet positive, from numbers (B, N)."""

    def __init__(self, inputs: int, shape: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = shape[0] + 2, shape[1] + 2
        self._start = (36, rows, columns)
        self.dense = nn.Linear(inputs, math.prod(self._start))
        self.convolution = nn.Sequential(_SAME, nn.Conv2d(36, 16, 2))
        self.norm = nn.BatchNorm2d(16, eps=_SMALL, momentum=0.01)
        self.first = LocallyConnected(16, 6, (rows, columns), 2)
        self.second = LocallyConnected(6, 1, self.first.shape, 2, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        start = self.dense(inputs).unflatten(1, self._start)
        features = self.norm(leaky_relu(self.convolution(start), _SLOPE))
        made: Tensor = self.second(leaky_relu(self.first(features), _SLOPE))
        return made


class _Attention(nn.Module):
    """A layer's image mixed with the one of the layer before, voxel by voxel."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self._shape = shape
        self.weights = LocallyConnected(2, 2, shape, 3, padding=1)
        bias = cast(Tensor, self.weights.bias)
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias[..., 1] = -10.0

    def forward(self, own: Tensor, before: Tensor) -> Tensor:
        both = torch.cat([own, adaptive_avg_pool2d(before, self._shape)], 1)
        return (both * torch.softmax(self.weights(both), 1)).sum(1, keepdim=True)


class CaloganCritic(Critic):
    """One stream per layer and the features that its authors gave it: energies, their sum and its miss, occupancy.

    Where the critic may look at whole batches, the published minibatch discrimination (of features, occupancies and
    energies) and batch normalisation are there too. Under an objective with a gradient penalty they are left out: its
    penalty is on the slope of a value with respect to its own shower, which has no meaning where the value depends on
    the rest of the batch.
    The published term 0.05 |sum - E| of the losses is not there: the critic sees that number.

    Args:
        generator: Of the showers to be judged.
        per_sample: Judge every shower by itself alone.
    """

    def __init__(self, generator: CaloganGenerator, *, per_sample: bool = False) -> None:
        super().__init__()
        self.family, self.conditions = generator.family, generator.conditions
        self.energies = generator.transform
        batches = not per_sample
        shapes = [layer.shape for layer in self.family.layers]
        self.streams = nn.ModuleList(_Stream(shape, norm=batches) for shape in shapes)
        sizes = [cast(_Stream, stream).size for stream in self.streams]
        layers = len(shapes)
        self.of_features, self.of_occupancy = (
            nn.ModuleList(_Minibatch(size) for size in widths) if batches else None for widths in (sizes, [1] * layers)
        )
        self.of_energies = _Minibatch(layers) if batches else None
        others = generator.scaled_size - (self.energies.column is not None)
        more = (2 * layers + 1) * _KERNELS if batches else 0
        self.last = nn.Linear(sum(sizes) + 2 * layers + 3 + others + more, 1)

    def view(self, showers: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Showers (B, V) in the network's unit from MeV."""
        return showers / self.energies.unit

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, V) with scaled conditions (B, C)."""
        incident, others = self._incident(scaled)
        parts, energies = [others], []
        for i, (layer, part) in enumerate(zip(self.family.layers, self.family.layer_slices, strict=True)):
            voxels = views[:, part]
            features = self.streams[i](voxels[:, None].unflatten(2, layer.shape))
            occupancy = (voxels > 0).to(voxels).mean(1, keepdim=True)
            parts += [features, occupancy]
            if self.of_features is not None and self.of_occupancy is not None:
                parts += [self.of_features[i](features), self.of_occupancy[i](occupancy)]
            energies.append(voxels.sum(1, keepdim=True))
        by_layer = torch.cat(energies, 1)
        total = by_layer.sum(1, keepdim=True)
        miss = (total - incident).abs()
        parts += [by_layer / 10, total / 100, miss, 10 * (miss > _TOO_FAR).to(miss)]
        if self.of_energies is not None:
            parts.append(self.of_energies(by_layer))
        return self.last(torch.cat(parts, 1))[:, 0]  # type: ignore[no-any-return]

    def _incident(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Incident energies (B, 1) in the network's unit, and the other conditions, from scaled conditions (B, C)."""
        column, unit = self.energies.column, self.energies.unit
        if column is None:
            return self.energies.incident(scaled) / unit, scaled
        offset, slope, logarithmic = (values[column] for values in scaling(self.family, self.conditions))
        energies = (scaled - float(offset)) / float(slope)
        others = [i for i in range(scaled.shape[1]) if i != column]
        return self.energies.incident(energies.exp() if logarithmic else energies) / unit, scaled[:, others]


class _Stream(nn.Module):
    """Features (B, ``size``) of the images (B, 1, H, W) of one layer."""

    def __init__(self, shape: tuple[int, int], *, norm: bool) -> None:
        super().__init__()
        first = LocallyConnected(64, 16, shape, 3, stride=(1, 2), padding=1)
        second = LocallyConnected(16, 8, first.shape, 2, padding=1)
        third = LocallyConnected(8, 8, second.shape, 2, stride=(1, 2), padding=1)
        steps: list[nn.Module] = [_SAME, nn.Conv2d(1, 64, 2), nn.LeakyReLU(_SLOPE)]
        for layer, channels in ((first, 16), (second, 8), (third, 8)):
            steps += [layer, nn.LeakyReLU(_SLOPE)]
            if norm:
                steps.append(nn.BatchNorm2d(channels, eps=_SMALL, momentum=0.01))
        self.steps = nn.Sequential(*steps, nn.Flatten())
        self.size = 8 * math.prod(third.shape)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.steps(images)
        return features


class _Minibatch(OfBatch):
    """How near each sample (B, D) lies to the others of its batch, in ``_KERNELS`` learnt measures, (B, _KERNELS).

    Source: Salimans et al. 2016, arXiv:1606.03498, sec. 3.2.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.kernels = nn.Linear(inputs, _KERNELS * _KERNEL_SIZE)

    def forward(self, features: Tensor) -> Tensor:
        placed = self.kernels(features).unflatten(1, (_KERNELS, _KERNEL_SIZE))
        own, others = placed.transpose(0, 1), self.gathered(placed).transpose(0, 1)
        return torch.tanh(torch.exp(-torch.cdist(own, others, p=1)).sum(2)).T
