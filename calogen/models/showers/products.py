"""Which products of columns the regressions of a :class:`ShowerTransform` are linear in."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EARLIER = 3  # normals that the quantiles of a further energy variable depend on


def energy_products(conditions: int, layers: int, energy: int | None) -> Tensor:
    """Columns to be multiplied, (3, L, G), for all monomials of an energy variable's conditions and earlier normals.

    The columns are: one, the conditions, the normals, zero (in place of what does not exist) and the energy squared.
    """
    none = 1 + conditions + layers
    leading, square = (none, none) if energy is None else (1 + energy, none + 1)
    chosen = []
    for layer in range(layers):
        earlier = [1 + conditions + i for i in dict.fromkeys([0, layer - 1, layer - 2]) if 0 <= i < layer]
        earlier += [none] * (_EARLIER - len(earlier))
        variables = [*range(1, 1 + conditions), *earlier]
        pairs = list(itertools.combinations_with_replacement(variables, 2))
        singles = [(v, 0, 0) for v in variables]
        cubes = [*((v, v, v) for v in variables), *((leading, leading, v) for v in earlier), (square, square, 0)]
        chosen.append([(0, 0, 0), *singles, *((a, b, 0) for a, b in pairs), *cubes])
    return torch.tensor(chosen).permute(2, 0, 1)


def voxel_products(conditions: int, energy: int | None) -> NDArray[np.int64]:
    """Columns to be multiplied, (3, F), for the features of voxels; those of the conditions alone come first.

    The columns are: one, the conditions, the layer's energy, the depth, and the incident energy squared. All products
    of two; of three and four where the incident energy is one, since showers change most with it.
    """
    layer, depth, square = conditions + 1, conditions + 2, conditions + 3
    pairs = itertools.combinations_with_replacement(range(1, conditions + 3), 2)
    chosen = [(0, 0, 0), *((v, 0, 0) for v in range(1, conditions + 3)), *((a, b, 0) for a, b in pairs)]
    if energy is not None:
        chosen += itertools.combinations_with_replacement((1 + energy, layer, depth), 3)
        chosen += [(square, square, 0)]
    plain = [product for product in chosen if not {layer, depth} & set(product)]
    return np.array([*plain, *(product for product in chosen if product not in plain)]).T


def energy_orders(layers: int) -> Tensor:
    """For each leading layer, which energy variable is each layer's own, (L, L): the first is the leading layer's."""
    orders = [[0 if i == leading else i + (i < leading) for i in range(layers)] for leading in range(layers)]
    return torch.tensor(orders)
