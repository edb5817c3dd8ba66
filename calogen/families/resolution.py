"""What single-precision samples can resolve: the one rule of when a quantity counts as constant."""

from typing import Any

ROUNDING = 1e-6
"""Relative differences up to this are rounding: eight times the step of float32, in which samples are kept."""


def varies(spread: Any, largest: Any, resolution: Any = 0.0) -> Any:
    """Whether a spread is more than rounding; if not, the quantity counts as constant.

    Whatever divides by a spread asks this first: the root of a rounding error is no yardstick. What is constant is
    compared for equality (``spread`` is then a difference) and left out of means.

    Args:
        spread: Standard deviations, ranges or differences, arrays or tensors of one shape.
        largest: The largest absolute values of the quantities, in the same unit.
        resolution: What they can resolve besides, in that unit: for differences of large numbers, more than their own
            rounding.

    Returns:
        Truth values of the same shape.
    """
    return (spread > resolution) & (spread > ROUNDING * largest)
