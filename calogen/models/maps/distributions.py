"""Values, and the pixels of maps, <-> standard normals, given conditions: a regression that both directions share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ENDS = 5.0  # normals at the ends of the tables
SMALLEST = 1e-6  # least step of a table: normals increase strictly
_CLOSE = 1e-4  # change of a normal at which a fit has converged
NODES = 256  # of the tables from normals to logarithms of densities
_ROWS = 2048  # counted at a time: what that takes is several times the values
_RIDGE = (1e-6, 1e-6, 1e-4)  # of constant, linear and higher terms


def features(scaled: Tensor) -> Tensor:
    """Constant, linear and quadratic terms of scaled conditions and their cubes, (B, C) to (B, F).

    F = 1 + C + C (C + 1) / 2 + C. Products of three gain nothing for maps, squares alone are 2 % off in their power.
    """
    first, second = torch.triu_indices(scaled.shape[1], scaled.shape[1], device=scaled.device)
    return torch.cat([scaled.new_ones(len(scaled), 1), scaled, scaled[:, first] * scaled[:, second], scaled**3], 1)


def ridge(terms: int) -> Tensor:
    """Relative ridge of each term of :func:`features`, (F,): curvature is only believed where data show it."""
    count = (math.isqrt(8 * terms + 17) - 5) // 2  # F = (C^2 + 5 C + 2) / 2
    constant, linear, curved = _RIDGE
    return torch.tensor([constant] + count * [linear] + (terms - 1 - count) * [curved], dtype=torch.float64)


class ConditionalDistribution(nn.Module):
    """The standard normal of a value x given conditions, z = probit(P(x | c)), on an even grid of values.

    The probit at every threshold is a polynomial of the conditions, found by regression: mixtures over
    hidden variables (a box's random modes) stay mixtures, which averages of quantiles would not.

    Args:
        terms: Number of features of the conditions (F).
        size: Number of thresholds (T).

    Source: Foresi and Peracchi 1995, JASA 90, 451 (distribution regression).
    """

    ends: Tensor  # (2,) lowest and highest threshold
    probit: Tensor  # (F, T)

    def __init__(self, terms: int, size: int = 256) -> None:
        super().__init__()
        self.register_buffer("ends", torch.tensor([-ENDS, ENDS]))
        self.register_buffer("probit", torch.zeros(terms, size))
        self.probit[0] = torch.linspace(-ENDS, ENDS, size)

    @torch.no_grad()
    def fit(self, values: Tensor, terms: Tensor) -> None:
        """Fit to samples.

        Args:
            values: (N, M), M values of each of N samples.
            terms: Features of their conditions, (N, F).
        """
        low, high = float(values.min()), float(values.max())
        margin = max(0.02 * (high - low), 1e-6)
        self.ends.copy_(torch.tensor([low - margin, high + margin]))
        groups, share, count = self._shares(values, terms)
        self.probit.copy_(_probit_regression(groups.double(), share, count))

    def _shares(self, values: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct rows of features (R, F), share of their values below each threshold (R, T), number of samples."""
        size = self.probit.shape[1]
        groups, row = torch.unique(terms, dim=0, return_inverse=True)
        counts = row.new_zeros(len(groups) * (size + 1))
        for some, own in zip(values.split(_ROWS), row.split(_ROWS), strict=True):
            bins = self._position(some).ceil_().clamp_(0, size).long()
            bins += (own * (size + 1))[:, None]
            counts += torch.bincount(bins.flatten(), minlength=len(counts))
        counts, number = counts.unflatten(0, (-1, size + 1)), torch.bincount(row).double()
        total = counts.sum(1, keepdim=True).double()
        return groups, counts[:, :-1].cumsum(1) / total, number

    def _position(self, values: Tensor) -> Tensor:
        """Values in units of the thresholds' distance."""
        low, high = self.ends.unbind()
        return (values - low) * ((self.probit.shape[1] - 1) / (high - low))

    def table(self, terms: Tensor) -> Tensor:
        """Normals at the thresholds, strictly increasing, (B, T), given features (B, F)."""
        normals = (terms @ self.probit).clamp(-ENDS - 0.5, ENDS + 0.5)
        steps = torch.arange(normals.shape[1], device=normals.device) * SMALLEST
        return torch.cummax(normals, 1).values + steps

    def forward(self, values: Tensor, terms: Tensor) -> Tensor:
        """Normals (B, ...) of values (B, ...), given features (B, F)."""
        return interpolate(self.table(terms), self._position(values.flatten(1))).view_as(values)

    def quantiles(self, terms: Tensor, size: int) -> Tensor:
        """Values at ``size`` evenly spaced normals from -5 to 5, increasing, (B, size): the table of the inverse."""
        table = self.table(terms)
        normals = torch.linspace(-ENDS, ENDS, size, device=table.device).expand(len(table), -1).contiguous()
        first, last = self.ends.unbind()
        return first + position_in(table, normals) * ((last - first) / (table.shape[1] - 1))


class DensityNormals(nn.Module):
    """Density maps <-> standard normals of their pixels given the conditions.

    Args:
        terms: Number of features of the conditions (F).
    """

    knee: Tensor  # added to densities before their logarithm

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.register_buffer("knee", torch.tensor(0.01))
        self.scores = ConditionalDistribution(terms)  # so called in checkpoints

    def fit(self, maps: Tensor, terms: Tensor) -> None:
        """Fit to training maps (N, H, W), physical, with features (N, F) of their conditions."""
        self.knee.fill_(max(0.01 * float(maps.double().mean()), 1e-6))
        self.scores.fit(torch.log(maps.flatten(1) + self.knee), terms)

    def forward(self, maps: Tensor, terms: Tensor) -> Tensor:
        """Normals (B, H, W) of maps (B, H, W), physical, given features (B, F)."""
        table = self.scores.quantiles(terms, NODES)
        logs = torch.log(maps + self.knee).flatten(1)
        return (position_in(table, logs) * (2 * ENDS / (NODES - 1)) - ENDS).view_as(maps)

    def inverse(self, normals: Tensor, terms: Tensor) -> Tensor:
        """Maps (B, H, W), physical, of normals (B, H, W); normals beyond +-5 are those of +-5."""
        position = (normals.flatten(1).clamp(-ENDS, ENDS) + ENDS) * ((NODES - 1) / (2 * ENDS))
        logs = interpolate(self.scores.quantiles(terms, NODES), position)
        return (logs.exp() - self.knee).clamp(min=0).view_as(normals)


def _probit_regression(terms: Tensor, share: Tensor, count: Tensor, iterations: int = 25) -> Tensor:
    """Coefficients (F, T) of probit(share) on features (R, F): the fit and the data agree in sum w (share) x features.

    So the mean distribution is exactly that of the data, tail and moments included. A maximum of the likelihood would
    weigh rows by how certain single values make them, when most of their scatter is common to all values of a row.
    """
    # Start from the probits of the mean distribution, which depend on no condition.
    weight = (count / count.sum())[:, None]
    found = terms.new_zeros(terms.shape[1], share.shape[1])
    found[0] = torch.special.ndtri((weight.T @ share)[0].clamp(1e-7, 1 - 1e-7))

    # Newton's method for all thresholds at once. Their Gram matrices differ by the density at each threshold alone, so
    # the products of features are computed once.
    penalty = torch.diag(ridge(terms.shape[1]).to(terms))
    products = (terms[:, :, None] * terms[:, None]).flatten(1)
    for _ in range(iterations):
        probit = terms @ found
        missing = terms.T @ (weight * (share - torch.special.ndtr(probit)))
        density = weight * torch.exp(-0.5 * probit.square()).clamp(min=1e-12) / math.sqrt(2 * math.pi)
        gram = (density.T @ products).unflatten(1, penalty.shape) + density.sum(0)[:, None, None] * penalty
        step = torch.linalg.solve(gram, missing.T).T
        change = (terms @ step).abs().amax(0)
        found = found + step / change.clamp(min=1)  # at most one unit at a time
        if float(change.max()) < _CLOSE:
            break
    return found


def position_in(table: Tensor, values: Tensor) -> Tensor:
    """Inverse of :func:`interpolate`: where values (B, M) lie in increasing tables (B, T), 0 to T - 1, in cells."""
    right = torch.searchsorted(table, values).clamp(1, table.shape[1] - 1)
    low, high = table.gather(1, right - 1), table.gather(1, right)
    return right - 1 + ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation in a table per row; beyond the ends the last straight line goes on.

    Args:
        table: (B, T).
        position: In units of cells, 0 to T - 1, (B, M).

    Returns:
        (B, M); its gradient is the table's slope.
    """
    cell = position.detach().clamp(0, table.shape[1] - 1 - 1e-3).floor_().long()
    low = table.gather(1, cell)
    return torch.addcmul(low, position - cell, table.gather(1, cell + 1) - low)
