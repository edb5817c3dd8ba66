"""The downstream test: what a user would suffer who calibrates the energy with generated showers."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError

from ..inputs import require_same
from ..survey.selections import Selection, selections
from .distances import SPLITS
from .registry import Key, Metric, Quantity

if TYPE_CHECKING:
    from calogen.shards.samples import Samples

Array = NDArray[np.float64]
FEWEST = 20  # showers of a bin on which a calibration is tried, below which the bin is left out
_MOST = 50_000  # showers a calibration is fitted to at most
_RIDGE = 1e-9  # of the mean square of a column: only keeps columns that say the same apart

_CALIBRATION = (
    "What a user suffers who calibrates the energy with generated showers and applies that to the reference, and the "
    "other way round: shift of the median, and relative loss of resolution."
)
CALIBRATION = Quantity("calibration", "calibration with generated showers", _CALIBRATION)
CALIBRATION_BACK = Quantity("calibration_back", "calibration of generated showers", _CALIBRATION)


def calibration(
    reference: Samples, generated: Samples, *, seed: int = 0, bins: int = 4, splits: int = SPLITS
) -> dict[Key, Metric]:
    """Bias and resolution of an energy calibration made with generated showers, minus those of the reference's own.

    The incident energy is regressed on the layers' energies (:func:`fit`) three times: on generated showers, and on
    two disjoint thirds of the reference; each is applied to the last third. The same test the other way round: a
    calibration made with reference showers is applied to generated ones.

    Args:
        reference: Showers in physical units (MeV).
        generated: Showers of the same family.
        seed: Decides the splits.
        bins: Bins of the incident energy, those of the report.
        splits: How often the showers are divided; the value is the mean.

    Returns:
        ``calibration/bias[B]``: difference of the medians of reconstructed over incident energy, for reference showers
        calibrated with generated ones. ``calibration/resolution[B]``: half width of the central 68 %, divided by
        that of the reference's own calibration, minus 1. ``calibration_back/...``: the other way round. The floor
        replaces the generated showers by the other third of the reference: it is 0 within its error. Errors: spread
        between bootstrap resamples of all three. Empty if a side has no incident energies.

    Raises:
        ShardError: If the families differ or there are too few showers.
    """
    require_same(reference.family, generated.family, "generated")
    energy = reference.family.energy
    if energy is None or any(energy.name not in side.conditions for side in (reference, generated)):
        return {}
    mine, other = (_columns(side, energy.name) for side in (reference, generated))
    n = min(len(mine) // 3, len(other) // 2, _MOST)
    if n < FEWEST:
        raise ShardError(
            "too few showers to calibrate with",
            expected=f"at least {3 * FEWEST} reference and {2 * FEWEST} generated showers",
            found=f"{len(mine)} and {len(other)}",
        )
    alone = reference.family.model_copy(update={"conditions": (energy,)})
    chosen = selections(alone, {energy.name: mine[:, 0].astype(np.float32)}, bins)
    rng = np.random.default_rng([seed, 7])
    draws = [_divided(mine, other, n, rng, chosen) for _ in range(splits)]
    return _metrics(np.asarray(draws), chosen, n)


def fit(showers: Array) -> Array:
    """Coefficients of the reconstructed energy in the columns of :func:`features`.

    Least squares of the relative deviation, sum over showers of (E_reco / E_inc - 1)^2.

    Args:
        showers: Incident energy, then layer energies, (N, 1 + L), in MeV.

    Returns:
        (2 L + 1,).
    """
    relative = features(showers) / showers[:, :1]
    scale = np.sqrt(np.mean(relative**2, axis=0))
    scale = np.where(scale > 0, scale, 1)
    scaled = relative / scale
    normal = scaled.T @ scaled + _RIDGE * len(scaled) * np.eye(len(scale))
    return np.asarray(np.linalg.solve(normal, scaled.sum(axis=0)) / scale)


def features(showers: Array) -> Array:
    """What the energy is reconstructed from: layer energies E_i, E_i^2 / E_tot, and a constant; (N, 2 L + 1) in MeV.

    All but the constant scale with the energy, so that weights may depend on how the energy is shared between layers.

    Args:
        showers: Incident energy, then layer energies, (N, 1 + L), in MeV.
    """
    energies = showers[:, 1:]
    total = energies.sum(axis=1, keepdims=True)
    shared = np.divide(energies**2, total, out=np.zeros_like(energies), where=total > 0)
    return np.concatenate([energies, shared, np.ones_like(total)], axis=1)


def _columns(samples: Samples, energy: str) -> Array:
    """Incident energy and layer energies of the showers that are finite and have an energy, (N, 1 + L)."""
    starts = np.asarray(samples.family.layer_bounds[:-1])
    energies = np.add.reduceat(samples.values, starts, axis=1, dtype=np.float64)
    incident = samples.conditions[energy].astype(np.float64)[:, None]
    columns = np.concatenate([incident, energies], axis=1)
    good = np.isfinite(columns).all(axis=1) & (incident[:, 0] > 0)
    return np.asarray(columns[good])


def _divided(mine: Array, other: Array, n: int, rng: np.random.Generator, chosen: tuple[Selection, ...]) -> Array:
    """One split: differences for value, floor and resample, both ways, (3, 2 ways, 2 quantities, B)."""

    def both_ways(first: Array, tested: Array, made: Array, made_tested: Array) -> list[Array]:
        return [_differences(first, made, tested, chosen), _differences(made, first, made_tested, chosen)]

    first, second, tested = (mine[rows] for rows in np.split(rng.permutation(len(mine))[: 3 * n], 3))
    made = [other[rows] for rows in np.split(rng.permutation(len(other))[: 2 * n], 2)]
    again = [x[rng.integers(n, size=n)] for x in (first, tested, *made)]
    floor = _differences(first, second, tested, chosen)
    return np.stack([both_ways(first, tested, *made), [floor, floor], both_ways(*again)])


def _differences(own: Array, foreign: Array, tested: Array, chosen: tuple[Selection, ...]) -> Array:
    """Bias and resolution on ``tested`` of a calibration made with ``foreign`` against ``own`` showers, (2, B)."""
    x, incident = features(tested), tested[:, 0]
    ours, theirs = (x @ fit(showers) / incident - 1 for showers in (own, foreign))
    found = np.full((2, len(chosen)), np.nan)
    for place, selection in enumerate(chosen):
        # All of them are bins of the incident energy, or all showers.
        members = selection.of({selection.condition: incident.astype(np.float32)}, len(incident))
        if np.count_nonzero(members) < FEWEST:
            continue
        quantiles = [np.quantile(side[members], (0.16, 0.5, 0.84)) for side in (ours, theirs)]
        (width, median), (width_, median_) = ((high - low, middle) for low, middle, high in quantiles)
        found[:, place] = median_ - median, width_ / width - 1 if width > 0 else np.nan
    return found


def _metrics(draws: Array, chosen: tuple[Selection, ...], n: int) -> dict[Key, Metric]:
    """From (splits, value / floor / resample, ways, quantities, bins)."""
    keys = [Key(*parts) for parts in product((CALIBRATION, CALIBRATION_BACK), ("bias", "resolution"), chosen)]
    differences = draws.reshape(*draws.shape[:2], -1).T  # of each key, (value / floor / resample, splits)
    return {k: Metric.from_splits(d, n) for k, d in zip(keys, differences, strict=True) if np.isfinite(d).all()}
