"""Sums over, and products within, the layers of showers, in graphs; tensors as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..families import Family
from .graph import Value, joined

Array = NDArray[Any]


def array(tensor: Tensor | None) -> Array:
    """A fitted tensor as an array."""
    return np.zeros(0) if tensor is None else tensor.detach().cpu().numpy()


class Layers:
    """Sums over, and products within, the layers of showers (B, V).

    Args:
        family: What the showers are.
    """

    def __init__(self, family: Family) -> None:
        self.voxel = family.layer_of_voxel
        sizes = np.diff(family.layer_bounds).tolist()
        # Runs of layers of one size: (B, V) becomes (B, l, n) for each.
        self.runs = [(len(list(group)), size) for size, group in itertools.groupby(sizes)]
        bounds = np.cumsum([0, *(count for count, _ in self.runs)]).tolist()
        self.layers = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        starts = [family.layer_bounds[bound] for bound in bounds]
        self.voxels = [slice(a, b) for a, b in itertools.pairwise(starts)]

    def cut(self, showers: Value) -> list[Value]:
        """Showers (B, V) as (B, l, n), for each run of layers of one size."""
        parts = showers.among([count * size for count, size in self.runs]) if len(self.runs) > 1 else [showers]
        return [part.shaped(*run) for part, run in zip(parts, self.runs, strict=True)]

    def of_layers(self, values: Value) -> list[Value]:
        """Values of the layers (B, L, ...) for each run."""
        return values.among([count for count, _ in self.runs]) if len(self.runs) > 1 else [values]

    def whole(self, parts: Sequence[Value]) -> Value:
        """The inverse of :meth:`cut`."""
        return joined([part.shaped(count * size) for part, (count, size) in zip(parts, self.runs, strict=True)])

    def sums(self, showers: Value) -> Value:
        """Energies of the layers, (B, L)."""
        return joined([part.sum(2).shaped(run[0]) for part, run in zip(self.cut(showers), self.runs, strict=True)])

    def spread(self, values: Value) -> Value:
        """Values of the layers (B, L) for each of their voxels, (B, V)."""
        return values.take(self.voxel)

    def regressed(self, features: Value, table: Array) -> Value:
        """Values (B, V) that are linear in features of the layers (B, L, F), with coefficients (F, V)."""
        # Layers first: one product of matrices for each.
        parts = []
        for part, (count, size), where in zip(self.of_layers(features), self.runs, self.voxels, strict=True):
            matrices = table[:, where].reshape(-1, count, size).transpose(1, 0, 2)
            parts.append((part.turned(1, 0, 2) @ matrices).turned(1, 0, 2).shaped(count * size))
        return joined(parts)

    def within(self, showers: Value, tables: Array) -> Value:
        """Sums (B, L, G) over the voxels of each layer, weighted with tables (V, G)."""
        parts = []
        for part, (count, size), where in zip(self.cut(showers), self.runs, self.voxels, strict=True):
            parts.append((part.turned(1, 0, 2) @ tables[where].reshape(count, size, -1)).turned(1, 0, 2))
        return joined(parts)
