"""How maps depend on their conditions: the response of P(k), and what a small regression infers from single maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .distances import halves
from .ensembles import Ensemble, Spread, unit_sums

Array = NDArray[np.float64]
_FEWEST = 40  # maps to train a regression with
_RIDGE = 1e-3  # of the mean square of a summary
_STEPS = 25
_SHELLS = 16


@dataclass(frozen=True)
class PowerModel:
    """The mean power spectrum as a function of the conditions: ln <P(k)> = a(k) + sum_c b_c(k) (theta_c - mean).

    A generalised linear model with logarithmic link and gamma variance: it is the mean over maps that is modelled,
    however maps scatter and whether or not it is known which of them share a box.

    Attributes:
        names: Conditions, C.
        centre: Their means, (C,).
        scale: Mean P(k), (K,).
        slopes: a and b, of P(k) over its mean, (1 + C, K).

    Source: McCullagh and Nelder 1989, ch. 8.
    """

    names: tuple[str, ...]
    centre: Array
    scale: Array
    slopes: Array

    @classmethod
    def fit(cls, side: Ensemble, names: Sequence[str]) -> PowerModel:
        """Fit to the column ``power`` (n, K) of some maps."""
        power = side.columns["power"].astype(np.float64)
        scale = np.maximum(power.mean(axis=0), np.finfo(np.float64).tiny)
        centre = np.array([side.conditions[name].mean(dtype=np.float64) for name in names])
        model = cls(tuple(names), centre, scale, np.zeros((1 + len(names), power.shape[1])))
        design, slopes = model.design(side), model.slopes
        inverse = np.linalg.pinv(design.T @ design)
        for _ in range(_STEPS):
            slopes = slopes + np.clip(inverse @ (design.T @ (power / scale * np.exp(-design @ slopes) - 1)), -1, 1)
        return cls(tuple(names), centre, scale, slopes)

    def design(self, side: Ensemble) -> Array:
        """A constant and the conditions less their means, (n, 1 + C)."""
        columns = [
            side.conditions[name].astype(np.float64) - c for name, c in zip(self.names, self.centre, strict=True)
        ]
        return np.stack([np.ones(len(side)), *columns], axis=1)

    def expected(self, side: Ensemble) -> Array:
        """Mean power spectrum for the conditions of each map, (n, K)."""
        return np.asarray(self.scale * np.exp(self.design(side) @ self.slopes))


def response(side: Ensemble, names: Sequence[str], seed: int) -> Spread:
    """Slopes d ln P(k) / d condition of the mean power spectrum, (C * K) in the order condition, shell.

    Halves and resamples are one step of the fit's iteration from the solution of all.

    Args:
        side: Has ``power`` (n, K).
        names: Conditions, C.
        seed: Decides halves and resamples.

    Source: one-step estimators: van der Vaart 1998, Asymptotic Statistics, sec. 5.7.
    """
    model = PowerModel.fit(side, names)
    design = model.design(side)
    left = side.columns["power"] / model.expected(side) - 1
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    products = (design[:, :, None] * left[:, None, :]).reshape(len(design), -1)
    sums = unit_sums(np.concatenate([squares, products], axis=1), side.units(side.members()))
    size = design.shape[1]

    def step(weighted: Array) -> Array:
        matrix = weighted[:, : size**2].reshape(-1, size, size)
        change = np.linalg.pinv(matrix) @ weighted[:, size**2 :].reshape(len(weighted), size, -1)
        return np.asarray((model.slopes + change)[:, 1:].reshape(len(weighted), -1))

    return Spread.of(sums, step, seed)


@dataclass(frozen=True)
class Regressor:
    """Infers conditions from summaries of a single map: ridge regressions, each trained on one half of the reference.

    Attributes:
        names: The conditions inferred, C.
        first: Which reference maps trained the first regression, (n,); the others trained the second.
        centre: Mean of each summary, (F,).
        scale: Its standard deviation, (F,).
        weights: Of both regressions, (2, F + 1, C).
    """

    names: tuple[str, ...]
    first: NDArray[np.bool_]
    centre: Array
    scale: Array
    weights: Array

    @classmethod
    def fit(cls, shapes: Ensemble, seed: int) -> Regressor | None:
        """Train with reference maps, halves of whole realisations; None without conditions or of fewer than 40 maps."""
        names = tuple(shapes.conditions)
        if not names or len(shapes) < _FEWEST:
            return None
        x = _summaries(shapes)
        centre, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        x = _design(x, centre, scale)
        truth = np.stack([shapes.conditions[n] for n in names], axis=1).astype(np.float64)
        first = np.zeros(len(x), dtype=bool)
        first[halves(np.random.default_rng([seed, 10]), len(x), shapes.unit)[0]] = True
        penalty = _RIDGE * np.diag([0.0, *np.ones(x.shape[1] - 1)])
        weights = [
            np.linalg.solve(x[h].T @ x[h] + penalty * np.count_nonzero(h), x[h].T @ truth[h]) for h in (first, ~first)
        ]
        return cls(names, first, centre, scale, np.stack(weights))

    def infer(self, shapes: Ensemble, *, own: bool) -> Array:
        """Infer the conditions of each map, (n, C).

        Args:
            shapes: The maps' summaries.
            own: Whether these are the maps it was trained with: each is then left to the regression that never saw it.
                Of others each regression infers every other map.
        """
        x = _design(_summaries(shapes), self.centre, self.scale)
        by_second = self.first if own else np.arange(len(x)) % 2 == 0
        return np.asarray(np.where(by_second[:, None], x @ self.weights[1], x @ self.weights[0]))


def _summaries(shapes: Ensemble) -> Array:
    """What conditions are inferred from: ln P(k) of 16 shells, Minkowski functionals, the number of peaks; (n, F)."""
    power = np.log(np.maximum(shapes.columns["power"][:, :_SHELLS].astype(np.float64), np.finfo(np.float32).tiny))
    peaks = shapes.columns["peaks"].sum(axis=1, dtype=np.float64, keepdims=True)
    return np.concatenate([power, *(shapes.columns[f"minkowski_{v}"] for v in range(3)), peaks], axis=1)


def _design(summaries: Array, centre: Array, scale: Array) -> Array:
    """A constant, and summaries in standard deviations; of those far outside the reference's five at most."""
    standard = np.clip((summaries - centre) / scale, -5, 5)
    return np.concatenate([np.ones((len(standard), 1)), standard], axis=1)
