"""What training can change about a shower's shape: patterns of its voxel normals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ...families import Family
from ..refinement import Refinement
from .voxels import Given

GROUPS = 8  # of the cells of a layer, from the hottest outwards
_SHELL = 0.4  # of the energy that is left, which a group takes at least
NEIGHBOURS = 2  # groups of each layer, the hottest, that the layers next to it may follow
FARTHEST = 4.0  # standard deviations beyond which a normal or the mean of a group counts no further
LARGEST = 1.0  # change of a voxel normal
_SMALLEST = 1e-3  # relative difference of two mean energies that is more than rounding


class ShapeRefinement(Refinement):
    """Changes of voxel normals that are the same for groups of cells.

    The cells of a layer are grouped by their mean energy, which follows rings about the axis; images under the
    symmetries share a group. Patterns of a group are functions of its cells' normals y: 1, y, y^2 - 1; the mean of a
    cell's neighbours along each axis and in depth; for each transverse axis, the cells' positions times their
    correlation with y, which is how far the group leans to one side; and in a shower frame the positions times where
    the axis crosses its cell, and how steeply. Amplitudes are linear in features of the shower: energies, depth, and
    means of y over groups, of the layer and of those beside it. All of it has the symmetries that the fit has.

    Args:
        window: What showers are in their frame.
        drivers: How many numbers the correlations of voxels change with.
        layer: Place of the layer's energy among the features of voxels.
    """

    group: Tensor  # (V,) of each voxel: numbers of all layers' groups, GROUPS for each
    means: Tensor  # (L, GROUPS) of the groups' mean normals in generated showers ...
    spreads: Tensor  # (L, GROUPS) ... and their spreads
    driver_means: Tensor  # (J,)
    beside: Tensor  # (A, 2, V) neighbours, (A, 2, V) 1 where there is one ...
    there: Tensor
    position: Tensor  # (2, V) of cells, standardised in each group
    layer_of_voxel: Tensor  # (V,)

    def __init__(self, window: Family, drivers: int, layer: int) -> None:
        self.layers, self.place = len(window.layers), layer
        neighbours = window.neighbours
        self.framed = drivers > 2
        patterns = 3 + len(neighbours) + 2 + 4 * self.framed
        squares, groups = drivers + 2, 2 * drivers + 3  # where these features begin
        # Only the plain shift of a group follows all features; a few thousand showers say little more.
        few = torch.zeros(groups + GROUPS + 2 * NEIGHBOURS, dtype=torch.bool)
        few[[0, 1, 2, drivers + 1, groups, groups + 1]] = True
        few[squares + 2 : squares + drivers] = True
        used = few.repeat(patterns * GROUPS, 1)
        used[:GROUPS] = True
        super().__init__(self.layers, used)
        layer_of_voxel = torch.from_numpy(window.layer_of_voxel)
        self.register_buffer("group", torch.zeros(window.voxels, dtype=torch.long))
        self.register_buffer("means", torch.zeros(self.layers, GROUPS))
        self.register_buffer("spreads", torch.ones(self.layers, GROUPS))
        self.register_buffer("driver_means", torch.zeros(drivers))
        there = (neighbours != np.arange(window.voxels)).astype(np.float32)
        self.register_buffer("beside", torch.from_numpy(neighbours), persistent=False)
        self.register_buffer("there", torch.from_numpy(there), persistent=False)
        self.register_buffer("layer_of_voxel", layer_of_voxel, persistent=False)
        self.register_buffer("position", torch.zeros(2, window.voxels))
        self._centres, self._parts = torch.from_numpy(window.centres).float(), window.layer_slices

    def prepare(self, mean: Tensor, driver_means: Tensor) -> None:
        """Group the cells by their mean energies (V,); drivers have means (J,)."""
        self.driver_means.copy_(driver_means)
        for i, part in enumerate(self._parts):
            self.group[part] = i * GROUPS + _shells(mean[part])
        square = self._group_means(self._centres.square().T)
        spread = square.sqrt().index_select(1, self.group).clamp(min=1e-6)
        self.position.copy_((self._centres.T / spread).clamp(-2, 2))

    def standardise(self, normals: Tensor) -> None:
        """Take means and spreads of the groups from normals (N, V) of generated showers."""
        found = self._group_means(normals).unflatten(1, (self.layers, GROUPS))
        self.means.copy_(found.mean(0))
        self.spreads.copy_(found.std(0).clamp(min=1e-3))

    def features(self, normals: Tensor, given: Given) -> Tensor:
        """What amplitudes are linear in, (B, L, F), of voxel normals (B, V)."""
        capped = normals.clamp(-FARTHEST, FARTHEST)
        groups = self._group_means(capped).unflatten(1, (self.layers, GROUPS))
        groups = ((groups - self.means) / self.spreads).clamp(-FARTHEST, FARTHEST)
        inner = groups[..., :NEIGHBOURS]
        before, after = (nn.functional.pad(inner, pad) for pad in ((0, 0, 1, 0), (0, 0, 0, 1)))
        energy = given.features[..., self.place, None]
        drivers = given.drivers - self.driver_means
        known = [torch.ones_like(energy), drivers, energy, drivers.square(), energy.square()]
        return torch.cat([*known, groups, before[:, :-1], after[:, 1:]], 2)

    def forward(self, normals: Tensor, given: Given, amplitudes: Tensor) -> Tensor:
        """Changed normals (B, V), of normals (B, V) and amplitudes (B, L, A)."""
        patterns = amplitudes.unflatten(2, (-1, GROUPS)).transpose(1, 2).flatten(2)
        capped = normals.clamp(-FARTHEST, FARTHEST)
        change = torch.zeros_like(normals)
        for amplitude, pattern in zip(patterns.unbind(1), self._patterns(capped, given), strict=True):
            change = change + amplitude.index_select(1, self.group) * pattern
        return normals + change.clamp(-LARGEST, LARGEST)

    def _patterns(self, normals: Tensor, given: Given) -> list[Tensor]:
        """Functions (B, V) of normals (B, V)."""
        found = [torch.ones_like(normals), normals, normals.square() - 1]
        for (before, after), there in zip(self.beside, self.there, strict=True):
            found.append((normals.index_select(1, before) * there[0] + normals.index_select(1, after) * there[1]) / 2)
        for position in self.position:
            found.append(position * self._group_means(normals * position).index_select(1, self.group))
        if self.framed:
            drivers = given.drivers - self.driver_means
            slopes, offsets = drivers[..., 2:4], drivers[..., -2:]
            for axis, position in enumerate(self.position):
                for where in (offsets, slopes):
                    found.append(position * where[..., axis].index_select(1, self.layer_of_voxel))
        return found

    def _group_means(self, values: Tensor) -> Tensor:
        """Means over the groups of all layers, (B, L * GROUPS), of values (B, V)."""
        zeros = values.new_zeros(len(values), self.layers * GROUPS)
        number = values.new_zeros(self.layers * GROUPS).index_add(0, self.group, torch.ones_like(values[0]))
        return zeros.index_add(1, self.group, values) / number.clamp(min=1)


def _shells(mean: Tensor) -> Tensor:
    """Groups (V,) of cells by their mean energies (V,), the hottest first; equal cells share one."""
    values, order = mean.sort(descending=True, stable=True)
    starts = [0, *((values[:-1] - values[1:] > _SMALLEST * values[:-1]).nonzero()[:, 0] + 1).tolist(), len(values)]
    found, number, left, mine = torch.zeros_like(order), 0, float(values.sum()), 0.0
    for start, stop in pairwise(starts):
        if mine >= _SHELL * left and number < GROUPS - 1:
            number, left, mine = number + 1, left - mine, 0.0
        found[order[start:stop]] = number
        mine += float(values[start:stop].sum())
    return found
