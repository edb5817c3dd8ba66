"""Generators as they run on a CPU: everything foldable folded, in place, the same function to rounding."""

from __future__ import annotations

from ..networks import Generator, MapGenerator, ShowerGenerator
from .maps import FoldedMaps
from .showers import FoldedShowers

__all__ = ["FoldedMaps", "FoldedShowers", "folded"]


def folded(generator: Generator) -> FoldedShowers | FoldedMaps:
    """The form of a trained generator that runs on a CPU: from arrays of latents and conditions to samples."""
    if isinstance(generator, ShowerGenerator):
        return FoldedShowers(generator)
    if isinstance(generator, MapGenerator):
        return FoldedMaps(generator)
    raise TypeError(f"no folded form of a {type(generator).__name__}")
