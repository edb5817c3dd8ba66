"""Conditions as networks see them, in graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..families import Family
from ..models.conditions import codings, scaling
from .graph import Value


def scaled_columns(family: Family, names: Sequence[str], values: Mapping[str, Value]) -> list[Value]:
    """Conditions (B, 1) each, dimensionless: see :func:`calogen.models.conditions.scale_conditions`."""
    offset, slope, logarithmic = scaling(family, names)
    found = []
    for name, shift, factor, is_log in zip(names, offset, slope, logarithmic, strict=True):
        value = values[name].log() if is_log else values[name]
        found.append(value * float(factor) + float(shift))
    more = []
    for place, table in codings(family, names):
        label = (values[names[place]] - np.arange(float(len(table)))).function("Abs").below(0.5).number()
        codes = label @ table
        found[place], *others = (codes.columns(i, i + 1) for i in range(table.shape[1]))
        more += others
    return [*found, *more]
