"""Physical units <-> network space. One object holds both directions; it is fitted once, on training data.

Network space is where numbers are of order one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..families import Family
from .conditions import codings, condition_array, scale_conditions, scaled_size, scaling
from .maps import MapTransform
from .showers import ShowerTransform

Transform = ShowerTransform | MapTransform

__all__ = [
    "MapTransform",
    "ShowerTransform",
    "Transform",
    "build_transform",
    "codings",
    "condition_array",
    "scale_conditions",
    "scaled_size",
    "scaling",
]


def build_transform(family: Family, conditions: Sequence[str]) -> Transform:
    """An unfitted transform of the right kind."""
    return ShowerTransform(family, conditions) if family.kind == "calorimeter" else MapTransform(family)
