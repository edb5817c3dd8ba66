"""Conditions as the networks see them: columns in a fixed order, scaled to about [-1, 1]."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ShardError
from ..families import Family
from ..shards import Samples


def scale_conditions(family: Family, names: Sequence[str], values: Tensor) -> Tensor:
    """Conditions in physical units to about [-1, 1], on each condition's own scale.

    Args:
        family: Knows the usual range of every condition.
        names: Names of the columns.
        values: (B, C), in the conditions' units.

    Returns:
        (B, C), dimensionless.
    """
    if not names:
        return values.new_zeros(len(values), 0)
    offset, slope, logarithmic = _scaling_tensors(family, tuple(names), values.dtype, values.device)
    if logarithmic is not None:
        values = torch.where(logarithmic, torch.log(values), values)
    return torch.addcmul(offset, values, slope)


def scaling(family: Family, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Offset, slope and whether it is of the logarithm, (C,) each, of :func:`scale_conditions`."""
    conditions = [family.condition(name) for name in names]
    ends = np.array([(c.low, c.high) for c in conditions]).reshape(-1, 2)
    logarithmic = np.array([c.scale == "log" for c in conditions], bool)
    ends[logarithmic] = np.log(ends[logarithmic])
    slope = 2 / (ends[:, 1] - ends[:, 0])
    return -1 - slope * ends[:, 0], slope, logarithmic


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _scaling_tensors(
    family: Family, names: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    offset, slope, logarithmic = (torch.from_numpy(a).to(device) for a in scaling(family, names))
    return offset.to(dtype), slope.to(dtype), logarithmic if logarithmic.any() else None


def condition_array(samples: Samples, names: Sequence[str]) -> NDArray[np.float32]:
    """The named conditions of some samples as columns, (N, C), in their units.

    Raises:
        ShardError: If the samples lack one of them.
    """
    missing = [name for name in names if name not in samples.conditions]
    if missing:
        raise ShardError(
            f"the data lack the condition '{missing[0]}'",
            expected=", ".join(names),
            found=", ".join(samples.conditions) or "no conditions",
        )
    columns = [np.asarray(samples.conditions[name], np.float32) for name in names]
    return np.stack(columns, 1) if columns else np.zeros((len(samples), 0), np.float32)
