"""The distribution of one voxel's logarithm where it is on: its quantile function, of four increasing pieces.

Statistics of many voxels at once; no physics and no units.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from .fitting import inverse_tail

LOW, MIDDLE = -2.5, -0.7  # logarithms at which the quantile function may bend
SHAPES = 5  # numbers that describe it
_LEAST, _MOST = -9.2, 3.2  # logarithms between which it is inverted
_FLATTEST = np.array([0.1, 0.02, 0.02])  # least slopes of the logarithm below LOW, between LOW and MIDDLE, and above
_LEVELS = torch.tensor(
    [0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.16, 0.25, 0.35, 0.5, 0.65, 0.75, 0.84, 0.9, 0.95, 0.98, 0.99, 0.997, 0.999],
    dtype=torch.float64,
)  # fmt: skip


def quantile(excess: Tensor, shape: Tensor) -> Tensor:
    """Standardised log share as an increasing function of a standard exponential variable.

    Args:
        excess: (B, V), positive.
        shape: Constant, weights of the logarithm and of the root, further slopes of the logarithm below ``LOW`` and
            below ``MIDDLE``: five tensors that broadcast to (B, V).
    """
    log = torch.log(excess)
    root = shape[0] + shape[1] * log + shape[2] * torch.sqrt(excess)
    return root + shape[3] * (log - LOW).clamp(max=0) + shape[4] * (log - MIDDLE).clamp(max=0)


def exponential(residual: Tensor, shape: Tensor) -> Tensor:
    """Inverse of :func:`quantile`: bisection in the logarithm, then Newton's method inside the bracket."""
    # The quantile function has bends, where Newton's method may jump back and forth: bisection first finds the range.
    low, high = torch.full_like(residual, _LEAST), torch.full_like(residual, _MOST)
    for _ in range(8):
        middle = (low + high) / 2
        above = quantile(torch.exp(middle), shape) > residual
        high = torch.where(above, middle, high)
        low = torch.where(above, low, middle)

    # Within it, five steps reach the precision of the numbers.
    middle = (low + high) / 2
    for _ in range(5):
        excess = torch.exp(middle)
        slope = shape[1] + shape[2] * torch.sqrt(excess) / 2 + shape[3] * (middle < LOW) + shape[4] * (middle < MIDDLE)
        middle = torch.clamp(middle - (quantile(excess, shape) - residual) / slope, low, high)
    return torch.exp(middle)


def fit_shapes(residual: Tensor, on: Tensor, trust: Tensor) -> Tensor:
    """Shapes (5, V) of :func:`quantile` from standardised residuals (N, V) where voxels are ``on``.

    Args:
        residual: (N, V), float64.
        on: (N, V) bool; elsewhere residuals are ignored.
        trust: How far a voxel's own quantiles are trusted beside those of all voxels, 0 to 1, (V,).
    """
    # Each voxel's own quantiles; showers in which it is off are sorted to the end and not counted. Of voxels that are
    # rarely on they are little more than noise, and lean on the quantiles of all.
    count = on.sum(0)
    ordered = torch.where(on, residual, torch.inf).sort(0).values
    index = (_LEVELS[:, None] * (count - 1).clamp(min=0)).round().long()
    own = ordered.gather(0, index).nan_to_num(posinf=0.0) if len(ordered) else torch.zeros_like(index).double()
    pooled = residual[on]
    if len(pooled):
        pooled = torch.quantile(pooled[:: max(1, len(pooled) // 1_000_000)], _LEVELS)
    else:
        pooled = -inverse_tail(_LEVELS)
    target = (trust * own + (1 - trust) * pooled[:, None]).numpy()

    # Slopes of the logarithm in three ranges: none may be negative, so that the quantile function increases.
    excess = -torch.log1p(-_LEVELS)
    log = torch.log(excess)
    pieces = [(log - LOW).clamp(max=0), log.clamp(LOW, MIDDLE), (log - MIDDLE).clamp(min=0), torch.sqrt(excess)]
    one = torch.ones_like(log)
    design = torch.stack([one, -one, *pieces], 1).numpy()

    # Sampling variance of a quantile is F (1 - F) / density^2; the density is nearly normal.
    density = torch.exp(-inverse_tail(_LEVELS).square() / 2)
    weight = (density / torch.sqrt(_LEVELS * (1 - _LEVELS))).numpy()
    fits = np.stack([nnls(design * weight[:, None], column * weight)[0] for column in target.T], 1)

    # Strictly increasing, so that the inverse exists. Then from three slopes to one with two further ones:
    low, middle, high = np.maximum(fits[2:5], _FLATTEST[:, None])
    # log.clamp(LOW, MIDDLE) = log - (log - LOW)_- - (log - MIDDLE)_+, and (log - MIDDLE)_+ = log - MIDDLE - (...)_-
    constant = fits[0] - fits[1] + MIDDLE * (middle - high)
    return torch.from_numpy(np.stack([constant, high, fits[5], low - middle, middle - high]))


def shifted(shape: Tensor, target: Tensor, found: Tensor, trust: Tensor | float = 1.0) -> Tensor:
    """A shape (5, ...) with a part of the difference of two others added; it still increases."""
    # In constant, root and the three slopes of the logarithm, of which none may be negative.
    pieces = [torch.stack([s[0], s[2], s[1] + s[3] + s[4], s[1] + s[4], s[1]]) for s in (shape, target, found)]
    constant, root, *slopes = (pieces[0] + trust * (pieces[1] - pieces[2])).unbind(0)
    low, middle, high = (slope.clamp(min=least) for slope, least in zip(slopes, _FLATTEST.tolist(), strict=True))
    return torch.stack([constant, high, root.clamp(min=0), low - middle, middle - high])
