"""Power spectra of maps as functions of conditions."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..transforms.scores import ridge


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def shells(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Shell of every mode of ``rfft2`` in units of the shorter side's fundamental (H, W // 2 + 1), and its weight."""
    side = min(height, width)
    with torch.device("cpu"):  # outlines of networks are built on device meta, but what is kept here must serve all
        rows, columns = torch.fft.fftfreq(height) * side, torch.fft.rfftfreq(width) * side
        weight = torch.full((height, width // 2 + 1), 2.0)  # one of each conjugate pair is stored
        weight[:, 0] = 1.0
        if width % 2 == 0:
            weight[:, -1] = 1.0
        return torch.hypot(rows[:, None], columns).round().long(), weight


def shell_power(maps: Tensor) -> Tensor:
    """Mean |F|^2 / (H W) of each map over the modes of every shell, shell 0 the mean alone, (B, H, W) to (B, K)."""
    number, weight = (t.to(maps.device) for t in shells(*maps.shape[1:]))
    modes = torch.fft.rfft2(maps)
    power = (modes.real.square() + modes.imag.square()) * (weight / maps[0].numel())
    size = int(number.max()) + 1
    total = power.new_zeros(len(maps), size).index_add_(1, number.flatten(), power.flatten(1))
    return total / weight.new_zeros(size).index_add_(0, number.flatten(), weight.flatten())


def log_mean(values: Tensor, terms: Tensor, iterations: int = 20) -> Tensor:
    """Logarithm of the mean of positive values as a linear function of features: a gamma regression.

    Averages of logarithms would be biased low, and the more the fewer modes a shell has.

    Args:
        values: (N, K), positive.
        terms: (N, F).

    Returns:
        Coefficients (F, K) in double precision.
    """
    values, terms = values.double(), terms.double()
    gram = terms.T @ terms / len(terms)
    solve = torch.linalg.solve(gram + torch.diag(ridge(terms.shape[1]).to(terms)), terms.T) / len(terms)
    mean = values.mean(0).clamp(min=1e-30)
    found = terms.new_zeros(terms.shape[1], values.shape[1])
    found[0] = mean.log()
    for _ in range(iterations):
        found = found + 0.7 * solve @ (values / (terms @ found).exp() - 1)
    return found
