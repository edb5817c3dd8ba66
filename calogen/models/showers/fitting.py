"""Regressions fitted for many voxels at once: what a transform knows about its data before any network is trained.

Plain statistics on tensors, in float64; no physics and no units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

SQRT2 = math.sqrt(2.0)
_LEAST_NOISE = 0.02  # variance of a voxel's own beside common factors
_FEW_ROWS = 12_000  # looked at in the first rounds
_ENERGIES, _GROUP = 8, 2000  # factors are sampled in at least so many groups of similar energy, of at most so many rows
_LOADING_RIDGE = 1e-3  # strength of the pull of loadings towards 0, in units of all observations
_ROWS = 4096  # taken at a time, so that their products stay in the cache


def _solve(design: Tensor, weights: Tensor, right: Tensor, ridge: float | Tensor) -> Tensor:
    """Solve V weighted ridge regressions that share a design; the constant term is not shrunk.

    Args: design (N, F), weights (N, V), right-hand side (V, F). Returns coefficients (F, V).
    """
    features = design.shape[1]
    normal = weights.new_zeros(weights.shape[1], features**2)
    for rows, share in zip(design.split(_ROWS), weights.split(_ROWS), strict=True):
        normal += share.T @ (rows[:, :, None] * rows[:, None, :]).reshape(len(rows), features**2)
    normal = normal.reshape(-1, features, features)
    shrink = torch.ones(features, dtype=design.dtype) * ridge
    shrink[0] = 1e-6
    solution: Tensor = torch.linalg.solve(normal + torch.diag(shrink), right)
    return solution.T


def fit_logistic(
    design: Tensor, hits: Tensor, trials: Tensor | int = 1, ridge: float | Tensor = 2.0, iterations: int = 15
) -> Tensor:
    """Occupancy of V voxels as logistic regressions, by Newton's method.

    Args:
        design: Features, (N, F), constant first.
        hits: In how many trials each voxel is on, (N, V).
        trials: How many there are for each row, (N, V) or one number.
        ridge: Strength of the pull of all but the constant towards 0, in units of observations; a number, or one for
            each feature, (F,).
        iterations: Newton steps.

    Returns:
        Coefficients of the log odds, (F, V).
    """
    mean = (hits.sum(0) + 0.5) / ((trials + torch.zeros_like(hits)).sum(0) + 1.0)  # never 0 or 1: a voxel never seen stays possible
    coefficients = torch.zeros(design.shape[1], hits.shape[1], dtype=design.dtype)
    coefficients[0] = torch.log(mean / (1 - mean))
    shrink = (torch.ones(design.shape[1], dtype=design.dtype) * ridge)[:, None]
    shrink[0] = 0.1  # half an observation each way

    def loss(candidate: Tensor) -> Tensor:
        logit = design @ candidate
        return (trials * softplus(logit) - hits * logit).sum(0) + (shrink * candidate.square()).sum(0) / 2

    best, step = loss(coefficients), torch.ones_like(mean)
    for _ in range(iterations):
        probability = torch.sigmoid(design @ coefficients)
        gradient = design.T @ (hits - trials * probability) - shrink * coefficients
        weights = trials * (probability * (1 - probability)).clamp(min=1e-4)
        direction = _solve(design, weights, gradient.T, ridge)
        candidate = coefficients + step * direction
        value = loss(candidate)
        # Newton's step overshoots where the classes nearly separate: take it only where it helps, else halve it.
        better = value <= best
        coefficients = torch.where(better, candidate, coefficients)
        best = torch.where(better, value, best)
        step = torch.where(better, (2 * step).clamp(max=1.0), step / 4)
    return coefficients


def fit_least_squares(design: Tensor, values: Tensor, weights: Tensor, ridge: float | Tensor = 2.0) -> Tensor:
    """Weighted least squares for V voxels.

    Args:
        design: Features, (N, F), constant first.
        values: (N, V); ignored where the weight is 0.
        weights: (N, V), 0 or positive.
        ridge: As in :func:`fit_logistic`.

    Returns:
        Coefficients, (F, V).
    """
    centre = (weights * values).sum(0) / weights.sum(0).clamp(min=1.0)
    right = design.T @ (weights * (values - centre))
    coefficients = _solve(design, weights, right.T, ridge)
    coefficients[0] += centre
    return coefficients


def fit_quantiles(design: Tensor, values: Tensor, levels: Tensor, iterations: int = 40) -> Tensor:
    """Quantile regressions of one quantity at many levels, by reweighted least squares.

    Args:
        design: Features, (N, F), constant first.
        values: (N,).
        levels: Probabilities between 0 and 1, (K,).
        iterations: Reweighting steps.

    Returns:
        Coefficients, (F, K); ``design @ coefficients`` are the conditional quantiles.

    Source: Koenker & Bassett 1978; the pinball loss |r| (level or 1 - level) as r^2 / |r|.
    """
    # In units of the spread, whatever the quantity; the levels' overall quantiles are where the iteration starts.
    scale = values.std().clamp(min=1e-12)
    target = (values - values.mean()) / scale
    coefficients = torch.zeros(design.shape[1], len(levels), dtype=design.dtype)
    coefficients[0] = torch.quantile(target[:: max(1, len(target) // 100_000)], levels)

    # |r| is r^2 / |r| with the |r| of the step before. Small residuals would get any weight: what they are held above
    # falls from step to step, so that early steps stay tame and late ones are exact.
    for step in range(iterations):
        residual = target[:, None] - design @ coefficients
        side = torch.where(residual > 0, levels, 1 - levels)
        weights = side / residual.abs().clamp(min=max(0.3 * 0.8**step, 2e-3))
        coefficients = _solve(design, weights, (design.T @ (weights * target[:, None])).T, 1e-3)
    coefficients *= scale
    coefficients[0] += values.mean()
    return coefficients


def normal_tail(normals: Tensor) -> Tensor:
    """Probability that a standard normal exceeds ``normals``."""
    return 0.5 * torch.erfc(normals / SQRT2)


def inverse_tail(tail: Tensor) -> Tensor:
    """Inverse of :func:`normal_tail`; tails are clamped to a range of about +-6."""
    normals: Tensor = torch.special.ndtri(tail.double().clamp(1e-9, 1 - 1e-9))
    return -normals.to(tail.dtype)


def own_noise(loadings: Tensor, drift: Tensor, energy: Tensor | float) -> Tensor:
    """Spread of each voxel's own noise beside its factors at some energy, (V,); see :func:`fit_factors`."""
    return (1 - loadings_at(loadings, drift, energy).square().sum(1)).clamp(min=_LEAST_NOISE).sqrt()


def loadings_at(loadings: Tensor, drift: Tensor, energy: Tensor | float) -> Tensor:
    """Loadings (V, K) at an energy, from those at 0 and their slopes (V, D); see :func:`fit_factors`."""
    moved = loadings.clone()
    moved[:, : drift.shape[1]] += energy * drift
    return moved


def fit_factors(
    normals: Tensor,
    censored: Tensor,
    ceiling: Tensor,
    rank: int,
    generator: torch.Generator,
    energy: Tensor | None = None,
    drifting: int = 0,
    iterations: int = 12,
) -> tuple[Tensor, Tensor]:
    """Factor loadings of standard normals of which some are only known to lie below a ceiling.

    Stochastic expectation maximisation: sample the factors given the normals, the censored normals given the factors
    (truncated normals), and regress normals on factors.

    Args:
        normals: Latent normals of voxels, (N, V); entries marked censored are ignored.
        censored: Which normals are unknown, (N, V) bool.
        ceiling: Upper bound of a censored normal, (N, V).
        rank: Number of factors K, at most min(N, V) - 1.
        generator: Source of the sampled values.
        energy: A variable of order one, (N,), with which loadings may change; none: 0.
        drifting: How many of the first factors have loadings that change, linearly, with the energy (D).
        iterations: Rounds of sampling and regression.

    Returns:
        Loadings (V, K) at energy 0 and their slopes (V, D) in the energy. Squared loadings add up to at most 0.98 at
        every energy of the data; the rest of each voxel's unit variance is its own noise, :func:`own_noise`.

    Source: Wei & Tanner 1990 (Monte Carlo EM).
    """
    count, voxels = normals.shape
    rank = min(rank, count - 1, voxels - 1)
    if rank < 1:
        return torch.zeros(voxels, 0, dtype=normals.dtype), torch.zeros(voxels, 0, dtype=normals.dtype)
    energy = torch.zeros(count, dtype=normals.dtype) if energy is None else energy
    drifting = min(drifting, rank)

    # Start: censored normals are drawn voxel by voxel, and the leading axes of what results are the loadings.
    nothing = torch.zeros_like(normals)
    filled = torch.where(censored, _below(nothing, nothing + 1, ceiling, generator), normals)
    loadings = _leading_loadings(filled[:_FEW_ROWS], rank)
    drift = loadings.new_zeros(voxels, drifting)
    ends = energy.min(), energy.max()
    for step in range(iterations):
        rows = torch.arange(count)
        if step < iterations - 3:  # early rounds need no precision
            rows = torch.randperm(count, generator=generator)[:_FEW_ROWS]

        # The sums of a regression of normals on factors, and on factors times energy where loadings drift.
        gram = torch.eye(rank + drifting, dtype=normals.dtype) * (1 + _LOADING_RIDGE * count)
        right = normals.new_zeros(rank + drifting, voxels)
        loadings, drift = _bounded(loadings, drift, ends)

        # Loadings depend on the energy: rows of similar energy are taken together, with the loadings of their mean. For
        # them, factors given what is known; then what is hidden given the factors; both enter the sums.
        for group in rows[energy[rows].argsort()].split(max(1, min(_GROUP, len(rows) // _ENERGIES))):
            middle = energy[group].mean()
            near, noise = loadings_at(loadings, drift, middle), own_noise(loadings, drift, middle)
            known, hidden = filled[group], censored[group]
            factors = _sample_factors(known, near, noise.square(), generator)
            mean, spread = (factors @ near.T)[hidden], noise.expand_as(known)[hidden]
            known[hidden] = _below(mean, spread, ceiling[group][hidden], generator)
            filled[group] = known
            design = torch.cat([factors, factors[:, :drifting] * energy[group, None]], 1)
            gram += design.T @ design
            right += design.T @ known

        both = torch.linalg.solve(gram, right).T
        loadings, drift = both[:, :rank], both[:, rank:]
    return _bounded(loadings, drift, ends)


def _leading_loadings(normals: Tensor, rank: int) -> Tensor:
    """Loadings (V, K) to start from: half of the leading axes, since the smallest of a sample are noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, right = torch.svd_lowrank(normals, q=rank, niter=3)
    return right * (singular / math.sqrt(len(normals)) * 0.7)


def _sample_factors(normals: Tensor, loadings: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Factors (N, K) given normals (N, V), loadings (V, K) and variances of the noise (V,)."""
    precision = torch.eye(loadings.shape[1], dtype=normals.dtype) + (loadings.T / noise) @ loadings
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    mean = (normals / noise) @ loadings @ (root @ root.T)
    factors: Tensor = mean + torch.randn(mean.shape, generator=generator, dtype=normals.dtype) @ root.T
    return factors


def _below(mean: Tensor, spread: Tensor, top: Tensor, generator: torch.Generator) -> Tensor:
    """Truncated normals: mean + spread * noise, given that it stays below the top; all of one shape."""
    mass = 1 - normal_tail((top - mean) / spread)
    uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    return torch.minimum(mean - spread * inverse_tail((mass * uniform).clamp(min=1e-9)), top)


def _bounded(loadings: Tensor, drift: Tensor, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Loadings whose squares add up to at most 0.98 at both ends of the energies, hence between them."""
    power = torch.stack([loadings_at(loadings, drift, end).square().sum(1, keepdim=True) for end in ends]).amax(0)
    scale = (power / (1 - _LEAST_NOISE)).clamp(min=1.0).sqrt()
    return loadings / scale, drift / scale
