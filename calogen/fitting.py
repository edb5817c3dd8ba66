"""Regressions fitted for many voxels at once: what a transform knows about its data before any network is trained.

Plain statistics on tensors, in float64; no physics and no units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

SQRT2 = math.sqrt(2.0)
LOGISTIC_STD = math.pi / math.sqrt(3.0)  # of the standard logistic distribution


def monomials(variables: Tensor, degree: int = 2) -> Tensor:
    """All products of up to ``degree`` variables, the constant first.

    Args:
        variables: (N, D), of order one.
        degree: 2 or 3; the third degree adds pure cubes only.

    Returns:
        (N, F): 1, each variable, each product of two, and for degree 3 each cube.
    """
    count = variables.shape[1]
    rows, columns = torch.triu_indices(count, count)
    parts = [variables.new_ones(len(variables), 1), variables, variables[:, rows] * variables[:, columns]]
    if degree == 3:
        parts.append(variables**3)
    return torch.cat(parts, 1)


def _solve(design: Tensor, weights: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Solve V weighted ridge regressions that share a design; the constant term is not shrunk.

    Args: design (N, F), weights (N, V), right-hand side (V, F). Returns coefficients (F, V).
    """
    features = design.shape[1]
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), features**2)
    normal = (weights.T @ outer).reshape(-1, features, features)
    shrink = torch.full((features,), ridge, dtype=design.dtype)
    shrink[0] = 1e-6
    solution: Tensor = torch.linalg.solve(normal + torch.diag(shrink), right)
    return solution.T


def fit_logistic(design: Tensor, occupied: Tensor, ridge: float = 2.0, iterations: int = 15) -> Tensor:
    """Occupancy of V voxels as logistic regressions, by Newton's method.

    Args:
        design: Features, (N, F), constant first.
        occupied: Whether each voxel is on, (N, V), 0 or 1.
        ridge: Strength of the pull of all but the constant towards 0, in units of observations.
        iterations: Newton steps.

    Returns:
        Coefficients of the log odds, (F, V).
    """
    mean = (occupied.sum(0) + 0.5) / (len(occupied) + 1.0)  # never 0 or 1: a voxel never seen stays possible
    coefficients = torch.zeros(design.shape[1], occupied.shape[1], dtype=design.dtype)
    coefficients[0] = torch.log(mean / (1 - mean))
    shrink = torch.full((design.shape[1], 1), ridge, dtype=design.dtype)
    shrink[0] = 0.1  # half an observation each way

    def loss(candidate: Tensor) -> Tensor:
        logit = design @ candidate
        return (softplus(logit) - occupied * logit).sum(0) + (shrink * candidate.square()).sum(0) / 2

    best, step = loss(coefficients), torch.ones_like(mean)
    for _ in range(iterations):
        probability = torch.sigmoid(design @ coefficients)
        gradient = design.T @ (occupied - probability) - shrink * coefficients
        direction = _solve(design, (probability * (1 - probability)).clamp(min=1e-4), gradient.T, ridge)
        candidate = coefficients + step * direction
        value = loss(candidate)
        # Newton's step overshoots where the classes nearly separate: take it only where it helps, else halve it.
        better = value <= best
        coefficients = torch.where(better, candidate, coefficients)
        best = torch.where(better, value, best)
        step = torch.where(better, (2 * step).clamp(max=1.0), step / 4)
    return coefficients


def fit_least_squares(design: Tensor, values: Tensor, weights: Tensor, ridge: float = 2.0) -> Tensor:
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
    scale = values.std().clamp(min=1e-12)
    target = (values - values.mean()) / scale
    coefficients = torch.zeros(design.shape[1], len(levels), dtype=design.dtype)
    coefficients[0] = torch.quantile(target[:: max(1, len(target) // 100_000)], levels)
    for step in range(iterations):
        residual = target[:, None] - design @ coefficients
        side = torch.where(residual > 0, levels, 1 - levels)
        weights = side / residual.abs().clamp(min=max(0.3 * 0.8**step, 2e-3))
        coefficients = _solve(design, weights, (design.T @ (weights * target[:, None])).T, 1e-3)
    coefficients *= scale
    coefficients[0] += values.mean()
    return coefficients


def normal_tail(scores: Tensor) -> Tensor:
    """Probability that a standard normal exceeds ``scores``."""
    return 0.5 * torch.erfc(scores / SQRT2)


def normal_scores(tail: Tensor) -> Tensor:
    """Inverse of :func:`normal_tail`; tails are clamped to a range of about +-6."""
    scores: Tensor = torch.special.ndtri(tail.double().clamp(1e-9, 1 - 1e-9))
    return -scores.to(tail.dtype)


def fit_factors(
    scores: Tensor, censored: Tensor, ceiling: Tensor, rank: int, generator: torch.Generator, iterations: int = 12
) -> Tensor:
    """Factor loadings of normal scores of which some are only known to lie below a ceiling.

    Stochastic expectation maximisation: sample the factors given the scores, the censored scores given the factors
    (truncated normals), and regress scores on factors.

    Args:
        scores: Standard normal scores, (N, V); entries marked censored are ignored.
        censored: Which scores are unknown, (N, V) bool.
        ceiling: Upper bound of a censored score, (N, V).
        rank: Number of factors K, at most min(N, V) - 1.
        generator: Source of the sampled values.
        iterations: Rounds of sampling and regression.

    Returns:
        Loadings (V, K) with squared rows at most 0.98; the rest of each voxel's unit variance is its own noise.

    Source: Wei & Tanner 1990 (Monte Carlo EM).
    """
    count, voxels = scores.shape
    rank = min(rank, count - 1, voxels - 1)
    if rank < 1:
        return torch.zeros(voxels, 0, dtype=scores.dtype)

    def below(mean: Tensor, spread: Tensor) -> Tensor:
        """Truncated normals: mean + spread * noise, given that it stays below the ceiling."""
        mass = 1 - normal_tail((ceiling - mean) / spread)
        uniform = torch.rand(mean.shape, generator=generator, dtype=scores.dtype)
        draw = mean - spread * normal_scores((mass * uniform).clamp(min=1e-9))
        return torch.minimum(draw, ceiling)

    # The smallest eigenvalues of a sample correlation matrix are noise: start from half of the leading ones.
    filled = torch.where(censored, below(torch.zeros_like(scores), torch.ones((), dtype=scores.dtype)), scores)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, right = torch.svd_lowrank(filled, q=rank, niter=3)
    loadings = right * (singular / math.sqrt(count) * 0.7)
    for _ in range(iterations):
        loadings = loadings / (loadings.square().sum(1, keepdim=True) / 0.98).clamp(min=1.0).sqrt()
        noise = 1 - loadings.square().sum(1)
        precision = torch.eye(rank, dtype=scores.dtype) + (loadings.T / noise) @ loadings
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        mean = (filled / noise) @ loadings @ (root @ root.T)
        factors = mean + torch.randn(count, rank, generator=generator, dtype=scores.dtype) @ root.T
        filled = torch.where(censored, below(factors @ loadings.T, noise.sqrt()), scores)
        gram = factors.T @ factors + torch.eye(rank, dtype=scores.dtype)
        loadings = torch.linalg.solve(gram, factors.T @ filled).T
    return loadings / (loadings.square().sum(1, keepdim=True) / 0.98).clamp(min=1.0).sqrt()
