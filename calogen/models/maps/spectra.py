"""Power spectra of maps as functions of conditions."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .distributions import ridge

_BANDS = 12  # of wave numbers, at most


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
    number, weight, modes_each = _binning(*maps.shape[1:], maps.device)
    modes = torch.fft.rfft2(maps)
    power = (modes.real.square() + modes.imag.square()) * weight
    total: Tensor = power.new_zeros(len(maps), len(modes_each)).index_add_(1, number, power.flatten(1))
    return total / modes_each


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _binning(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Shell of every mode, flat, its weight over the number of pixels (H, W // 2 + 1), and modes in each shell (K,)."""
    number, weight = shells(height, width)
    modes_each = torch.bincount(number.flatten(), weight.flatten().double()).to(weight)
    return number.flatten().to(device), (weight / (height * width)).to(device), modes_each.to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def log_bands(height: int, width: int, device: torch.device) -> tuple[Tensor, int]:
    """Band of every shell, (K,), even in ln k, the mean in the first; and the number of bands.

    Kept, since asking a tensor for it would wait for a GPU.
    """
    last = int(shells(height, width)[0].max())
    edges = torch.logspace(0, math.log10(max(last, 2)), min(_BANDS, last) + 1, device="cpu")
    band = torch.bucketize(torch.arange(last + 1, device="cpu"), edges.unique()[:-1], right=True)
    return band.to(device), int(band.max()) + 1


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
