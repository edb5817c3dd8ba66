"""Regressions fitted for many voxels at once: what a transform knows about its data before any network is trained.

Plain statistics on tensors, in float64; no physics and no units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

SQRT2 = math.sqrt(2.0)
_SETTLED = 1e-3  # gain of a Newton step in log likelihood, below which there are no further ones
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
    design: Tensor,
    hits: Tensor,
    trials: Tensor | int = 1,
    ridge: float | Tensor = 2.0,
    iterations: int = 15,
    start: Tensor | None = None,
) -> Tensor:
    """Occupancy of V voxels as logistic regressions, by Newton's method.

    Args:
        design: Features, (N, F), constant first.
        hits: In how many trials each voxel is on, (N, V).
        trials: How many there are for each row, (N, V) or one number.
        ridge: Strength of the pull of all but the constant towards 0, in units of observations; a number, or one for
            each feature, (F,).
        iterations: Newton steps.
        start: Coefficients to start from; none: those of the mean.

    Returns:
        Coefficients of the log odds, (F, V).
    """
    # Never 0 or 1: a voxel never seen stays possible.
    mean = (hits.sum(0) + 0.5) / ((trials + torch.zeros_like(hits)).sum(0) + 1.0)
    coefficients = torch.zeros(design.shape[1], hits.shape[1], dtype=design.dtype)
    coefficients[0] = torch.log(mean / (1 - mean))
    coefficients = coefficients if start is None else start.clone()
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
        settled = better & (best - value < _SETTLED)
        best = torch.where(better, value, best)
        if settled.all():
            break
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


def normal_tail(normals: Tensor) -> Tensor:
    """Probability that a standard normal exceeds ``normals``."""
    return 0.5 * torch.erfc(normals / SQRT2)


def inverse_tail(tail: Tensor) -> Tensor:
    """Inverse of :func:`normal_tail`; tails are clamped to a range of about +-6."""
    normals: Tensor = torch.special.ndtri(tail.double().clamp(1e-9, 1 - 1e-9))
    return -normals.to(tail.dtype)
