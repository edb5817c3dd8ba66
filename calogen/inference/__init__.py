"""Generators as they run on a CPU: everything foldable folded, in place, the same function to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..networks import ConvMapGenerator, Generator, ShowerGenerator
from ..networks.zeldovich import ZeldovichGenerator
from .maps import FoldedMaps
from .plain import Unfolded
from .showers import FoldedShowers
from .zeldovich import FoldedZeldovich

__all__ = ["FoldedMaps", "FoldedShowers", "FoldedZeldovich", "Unfolded", "folded"]

Array = NDArray[np.float32]


def folded(generator: Generator) -> Callable[[Array, Array], Array]:
    """The form of a trained generator that runs on a CPU: from latents (B, Z) and conditions (B, C) to samples."""
    if isinstance(generator, ShowerGenerator):
        return FoldedShowers(generator)
    if isinstance(generator, ConvMapGenerator):
        return FoldedMaps(generator)
    if isinstance(generator, ZeldovichGenerator):
        return FoldedZeldovich(generator)
    return Unfolded(generator)
