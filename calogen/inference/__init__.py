"""Generators as they run on a CPU: everything foldable folded, in place, the same function to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..networks import ConvMapGenerator, Generator, ShowerGenerator
from .maps import FoldedMaps
from .plain import Unfolded
from .showers import FoldedShowers

__all__ = ["FoldedMaps", "FoldedShowers", "Unfolded", "folded"]

Array = NDArray[np.float32]


def folded(generator: Generator) -> Callable[[Array, Array], Array]:
    """The form of a trained generator that runs on a CPU: from latents (B, Z) and conditions (B, C) to samples."""
    if isinstance(generator, ShowerGenerator):
        return FoldedShowers(generator)
    if isinstance(generator, ConvMapGenerator):
        return FoldedMaps(generator)
    return Unfolded(generator)
