"""Families of simulations: the only room that knows a geometry, a unit or a parameter name.

A family says what one sample is (the voxels of a calorimeter shower, the pixels of a density map), which physics
parameters condition it, and which laws it obeys. Everything else in calogen is shaped by it.
"""

from .builtin import FAMILIES
from .conditions import LABEL, Condition
from .family import Family
from .layers import CartesianLayer, CylindricalLayer, Layer
from .resolution import ROUNDING, varies
from .resolve import resolve_family
from .symmetries import Image, Motion, Symmetry
from .units import ENERGY_UNITS, conversion, in_mev, is_energy, readable

__all__ = [
    "ENERGY_UNITS",
    "FAMILIES",
    "LABEL",
    "ROUNDING",
    "CartesianLayer",
    "Condition",
    "CylindricalLayer",
    "Family",
    "Image",
    "Layer",
    "Motion",
    "Symmetry",
    "conversion",
    "in_mev",
    "is_energy",
    "readable",
    "resolve_family",
    "varies",
]
