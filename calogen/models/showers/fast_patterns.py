"""The refinement of showers in numpy, a layer at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..contract import Array
from .patterns import FARTHEST, GROUPS, LARGEST, NEIGHBOURS, ShapeRefinement

_ROOT_2 = np.float32(math.sqrt(2))


class FoldedPatterns:
    """:class:`ShapeRefinement` with its coefficients; see there for what the patterns are.

    What groups of cells have in common is worked out for groups, and given to their cells by one product a pattern.

    Args:
        refinement: A trained one.
        parts: Voxels of each layer.
    """

    def __init__(self, refinement: ShapeRefinement, parts: Sequence[slice]) -> None:
        found = {name: tensor.cpu().numpy().copy() for name, tensor in refinement.named_buffers()}
        self._parts, self._layer, self.driver_means = parts, refinement.place, found["driver_means"]
        self._coefficients = np.ascontiguousarray(found["coefficients"].transpose(0, 2, 1))  # (L, F, A)
        self._means, self._spreads = found["means"], found["spreads"]
        self._position, self._framed, axes = found["position"], refinement.framed, len(found["beside"])
        beside, there = found["beside"], found["there"]
        self._beside = np.where(there > 0, beside, beside.shape[2])  # one that is not there is 0
        patterns: NDArray[np.bool_] = np.any(
            found["coefficients"].reshape(len(parts), -1, GROUPS, self._coefficients.shape[1]), axis=(2, 3)
        )
        self._axes = [[axis for axis in range(axes) if patterns[layer, 3 + axis]] for layer in range(len(parts))]
        self._leaning = 3 + axes  # where the patterns that lean to one side begin
        # Which cells a group has, (L, G, V_layer), and its mean normal and leanings as products, (L, V_layer, 3 G).
        self._members, self._sums = [], []
        for layer, part in enumerate(parts):
            members = (found["group"][part] == layer * GROUPS + np.arange(GROUPS)[:, None]).astype(np.float32)
            means = members.T / np.maximum(members.sum(1), 1)
            self._members.append(members)
            x, y = self._position[:, part, None]
            self._sums.append(np.ascontiguousarray(np.concatenate([means, means * x, means * y], 1)))

    def __call__(self, normals: Array, features: Array, drivers: Array) -> None:
        """Change normals (B, V) over the root of 2, in place.

        Args:
            normals: Of voxels, as erfc takes them.
            features: That voxels have, (F, L, B).
            drivers: Less their means, (B, L, J).
        """
        padded = np.zeros((len(normals), normals.shape[1] + 1), np.float32)
        capped = np.multiply(normals, _ROOT_2, out=padded[:, :-1])
        np.minimum(np.maximum(capped, np.float32(-FARTHEST), out=capped), np.float32(FARTHEST), out=capped)
        sums = [capped[:, part] @ sums for part, sums in zip(self._parts, self._sums, strict=True)]
        groups = np.stack([some[:, :GROUPS] for some in sums], 1)
        groups = (groups - self._means) / self._spreads
        np.minimum(np.maximum(groups, np.float32(-FARTHEST), out=groups), np.float32(FARTHEST), out=groups)
        energy, square = features[self._layer].T[..., None], drivers * drivers
        inner = np.pad(groups[..., :NEIGHBOURS], ((0, 0), (1, 1), (0, 0)))
        known = [np.ones_like(energy), drivers, energy, square, energy * energy, groups, inner[:, :-2], inner[:, 2:]]
        rows = np.concatenate(known, 2).transpose(1, 0, 2)
        amplitudes = (rows @ self._coefficients).reshape(*rows.shape[:2], -1, GROUPS)
        for layer, part in enumerate(self._parts):
            q, amplitude, members = capped[:, part], amplitudes[layer], self._members[layer]
            leaning, driver = sums[layer][:, GROUPS:].reshape(len(q), 2, GROUPS), drivers[:, layer]
            change = amplitude[:, 2] @ members  # of 1, y and y^2 - 1, by Horner
            change *= q
            change += amplitude[:, 1] @ members
            change *= q
            change += (amplitude[:, 0] - amplitude[:, 2]) @ members
            for axis in self._axes[layer]:
                before, after = self._beside[axis, :, part]
                both = padded[:, before]
                both += padded[:, after]
                both *= (amplitude[:, 3 + axis] / 2) @ members
                change += both
            for axis, position in enumerate(self._position[:, part]):
                lean = amplitude[:, self._leaning + axis] * leaning[:, axis]
                if self._framed:
                    first = self._leaning + 2 + 2 * axis
                    lean += amplitude[:, first] * driver[:, -2 + axis, None]
                    lean += amplitude[:, first + 1] * driver[:, 2 + axis, None]
                change += (lean @ members) * position
            np.minimum(np.maximum(change, np.float32(-LARGEST), out=change), np.float32(LARGEST), out=change)
            change /= _ROOT_2
            normals[:, part] += change
