"""Generators as they run on a CPU: everything foldable folded, in place, the same function to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .contract import Generator
from .maps.conv import ConvMapGenerator
from .maps.fast_conv import FoldedMaps
from .maps.fast_zeldovich import FoldedZeldovich
from .maps.zeldovich import ZeldovichGenerator
from .plain import Unfolded
from .showers.fast import FoldedShowers
from .showers.generator import ShowerGenerator

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
