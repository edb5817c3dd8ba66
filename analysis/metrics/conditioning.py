"""What depends on the conditions: response and resolution against the energy with their fit, and held-out ranges.

The resolution of a calorimeter is sigma/E = a/sqrt(E) (+) b/E (+) c, summed in quadrature: stochastic, noise and
constant term. Squared it is linear in a^2, b^2 and c^2, none negative, so the fit has one minimum and needs no start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.families import Condition, Family, in_mev, varies

from ..survey.selections import ALL, Selection, condition_edges, interval
from ..survey.survey import Survey
from .distances import quantile
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
Statistic = Callable[[Array], tuple[float, float]]
_CURVE_BINS = 10
_FEWEST_IN_BIN = 10
_TERMS = (
    "Terms of the fitted resolution a/\N{SQUARE ROOT}E \N{CIRCLED PLUS} b/E \N{CIRCLED PLUS} c (E in GeV), generated "
    "minus reference."
)
TERMS = (
    Quantity("stochastic", "stochastic term of the resolution", _TERMS, unit="sqrt(GeV)"),
    Quantity("noise", "noise term of the resolution", _TERMS, unit="GeV"),
    Quantity("constant", "constant term of the resolution", _TERMS),
)


@dataclass(frozen=True)
class Curve:
    """A quantity against a condition or a wave number.

    Attributes:
        x: Where each point is, (K,).
        y: The quantity, (K,); NaN where there are too few samples.
        error: Its uncertainty, (K,).
        seeds: How many seeds of one surrogate it is the mean of.
    """

    x: Array
    y: Array
    error: Array
    seeds: int = 1

    def over(self, reference: Curve) -> Curve:
        """This curve divided by another at the same points, without the other's error."""
        below = np.where(reference.y != 0, reference.y, np.nan)
        return Curve(self.x, self.y / below, self.error / np.abs(below), self.seeds)


# ------------------------------------------------------------------------------------------------ statistics
def mean_of(values: Array) -> tuple[float, float]:
    """Mean and its error."""
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def relative_core(values: Array) -> tuple[float, float]:
    """Half width of the central 68 % over the median, and its error: the resolution, blind to tails."""
    (low, low_error), (high, high_error) = (quantile(values, p) for p in (0.16, 0.84))
    scale = 2 * float(np.median(values)) or math.nan
    return (high - low) / scale, math.hypot(low_error, high_error) / abs(scale)


def relative_spread(values: Array) -> tuple[float, float]:
    """Standard deviation over the mean, and its error: the resolution, tails included."""
    mean, spread = float(values.mean()), float(values.std())
    if mean == 0 or not varies(spread, abs(mean)):
        return 0.0, 0.0
    kurtosis = float(np.mean((values - mean) ** 4)) / spread**4
    return spread / mean, spread / abs(mean) * float(np.sqrt(max(kurtosis - 1, 0.0) / (4 * len(values))))


RESOLUTIONS: Mapping[str, Statistic] = {"core_resolution": relative_core, "rms_resolution": relative_spread}


# ------------------------------------------------------------------------------------------------ curves and fits
def curve_edges(reference: Survey, condition: Condition) -> Array:
    """Bins of a condition in which curves are drawn, decided by the reference, (K + 1,)."""
    known = reference.conditions[condition.name].astype(np.float64)
    edges = condition_edges(condition, known, _CURVE_BINS)
    return edges if len(edges) > 1 else known[0] * np.array([0.99, 1.01])  # one energy only


def condition_curve(side: Survey, name: str, condition: Condition, edges: Array, statistic: Statistic) -> Curve:
    """A statistic of one observable in bins of a condition.

    Args:
        side: Reference or generated samples.
        name: Observable.
        condition: Condition on the horizontal axis.
        edges: Bins of the condition, (K + 1,).
        statistic: Gives value and error of a column of values.
    """
    values = side.table[side.names.index(name)].astype(np.float64)
    return binned_curve(side.conditions[condition.name], edges, lambda rows: statistic(values[rows]))


def binned_curve(
    condition: NDArray[np.floating], edges: Array, measure: Callable[[NDArray[np.bool_]], tuple[float, float]]
) -> Curve:
    """Value and error that ``measure`` gives of the samples in each bin of a condition (N,), where there are enough."""
    x = condition.astype(np.float64)
    place = np.searchsorted(edges, x, side="right") - 1
    place[x == edges[-1]] = len(edges) - 2
    points = np.full((3, len(edges) - 1), np.nan)
    points[0] = (edges[:-1] + edges[1:]) / 2
    for k in range(len(edges) - 1):
        inside = place == k
        if np.count_nonzero(inside) >= _FEWEST_IN_BIN:
            points[:, k] = (float(x[inside].mean()), *measure(inside))
    return Curve(*points)


@dataclass(frozen=True)
class ResolutionFit:
    """The terms of sigma/E = a/sqrt(E) (+) b/E (+) c with E in GeV.

    Attributes:
        terms: Stochastic (sqrt(GeV)), noise (GeV) and constant term, each at least 0.
        errors: Their uncertainties; of a term that is 0, the value that is one standard deviation away.
        chi2: Of the fit.
        ndf: Degrees of freedom.
    """

    terms: tuple[float, ...]
    errors: tuple[float, ...]
    chi2: float
    ndf: int

    def at(self, energies: Array) -> Array:
        """The resolution at some energies in GeV, (K,)."""
        a, b, c = self.terms
        return np.asarray(np.sqrt(a**2 / energies + (b / energies) ** 2 + c**2))

    def to_json(self) -> dict[str, Any]:
        """Terms with their errors by name."""
        named = {t.name: {"value": v, "error": e} for t, v, e in zip(TERMS, self.terms, self.errors, strict=True)}
        return {**named, "chi2": self.chi2, "ndf": self.ndf}


def fit_resolution(resolution: Array, error: Array, inverse: Array, inverse2: Array) -> ResolutionFit | None:
    """Fit a/sqrt(E) (+) b/E (+) c to resolutions in bins of energy.

    Args:
        resolution: Relative resolution in each bin, (K,).
        error: Its uncertainty, (K,); bins where it is not positive are left out.
        inverse: Mean of 1/E over the samples of each bin, in 1/GeV, (K,); wide bins need this, not 1/mean(E).
        inverse2: Mean of 1/E^2, in 1/GeV^2, (K,).

    Returns:
        The fit, or None with fewer than four bins.

    Source: least squares of the squared resolution in a^2, b^2, c^2 >= 0 (Lawson and Hanson 1974).
    """
    from scipy.optimize import nnls

    good = np.isfinite(resolution) & np.isfinite(error) & (error > 0) & (resolution > 0)
    if np.count_nonzero(good) < 4:
        return None
    weight = 1 / (2 * resolution[good] * error[good])
    design = np.stack([inverse[good], inverse2[good], np.ones(np.count_nonzero(good))], axis=1) * weight[:, None]
    scale = np.linalg.norm(design, axis=0)
    squares, residual = nnls(design / scale, resolution[good] ** 2 * weight)
    covariance = np.linalg.pinv((design / scale).T @ (design / scale))
    squares, widths = squares / scale, np.sqrt(np.diag(covariance)) / scale
    terms = np.sqrt(squares)
    # Exact where a term is 0, and the usual width / (2 term) where it is large.
    errors = np.sqrt(squares + widths) - terms
    return ResolutionFit(tuple(terms.tolist()), tuple(errors.tolist()), residual**2, int(good.sum()) - 3)


def resolution_of(side: Survey, condition: Condition, edges: Array, kind: str) -> ResolutionFit | None:
    """The fit to the resolution of one side against the incident energy.

    Args:
        side: Showers with incident energies.
        condition: The incident energy.
        edges: Bins of it, (K + 1,).
        kind: A key of :data:`RESOLUTIONS`.
    """
    curve = condition_curve(side, "response", condition, edges, RESOLUTIONS[kind])
    x = side.conditions[condition.name]
    energies = x.astype(np.float64) * in_gev(condition)
    inverse = binned_curve(x, edges, lambda rows: mean_of(1 / energies[rows])).y
    inverse2 = binned_curve(x, edges, lambda rows: mean_of(energies[rows] ** -2)).y
    return fit_resolution(curve.y, curve.error, inverse, inverse2)


def in_gev(condition: Condition) -> float:
    """What an energy in the condition's unit is multiplied by to be in GeV."""
    return in_mev(condition.unit) / in_mev("GeV")


Fits = dict[str, ResolutionFit | None]


def resolution_fits(sides: Mapping[str, Survey], energy: Condition) -> dict[str, Fits]:
    """The fits of every kind of resolution of every side, in bins of the energy that the reference decides."""
    edges = curve_edges(sides["reference"], energy)
    return {name: {k: resolution_of(side, energy, edges, k) for k in RESOLUTIONS} for name, side in sides.items()}


def fit_metrics(reference: Fits, generated: Fits, n: int) -> dict[Key, Metric]:
    """Differences of the fitted terms, generated minus reference, as ``TERM/KIND``; their floor is 0.

    Args:
        reference: Fits of the reference.
        generated: Fits of the generated samples.
        n: Samples on the smaller side.
    """
    found = {}
    for kind, fit in generated.items():
        base = reference[kind]
        if fit is None or base is None:
            continue
        for k, term in enumerate(TERMS):
            error = math.hypot(fit.errors[k], base.errors[k])
            found[Key(term, kind)] = Metric.of(fit.terms[k] - base.terms[k], error, 0.0, 0.0, n, term.unit)
    return found


# ------------------------------------------------------------------------------------------------ held-out ranges
@dataclass(frozen=True)
class HeldOut(Selection):
    """Samples in a range of a condition that training left out, or all the others.

    It is no bin of its condition: bins do not overlap, so ``condition`` is empty.

    Attributes:
        held: Name of the condition.
        inside: Whether the samples are those inside the range.
    """

    held: str = ""
    inside: bool = True

    def of(self, conditions: Mapping[str, NDArray[np.floating]], count: int) -> NDArray[np.bool_]:
        """Which of ``count`` samples belong to it, (N,)."""
        mine = replace(ALL, condition=self.held, low=self.low, high=self.high).of(conditions, count)
        return mine if self.inside else ~mine


def held_out_selections(
    family: Family, provenances: Iterable[Mapping[str, Any]], known: Collection[str]
) -> tuple[HeldOut, ...]:
    """Inside and outside of every range that some surrogate was trained without.

    Args:
        family: Says the conditions' units.
        provenances: Of generated samples; ``holdout`` is ranges in the conditions' units by name.
        known: Conditions that every side has.
    """
    holdouts = [holdout for p in provenances if isinstance(holdout := p.get("holdout"), Mapping)]
    ranges = [(name, float(low), float(high)) for ranges in holdouts for name, (low, high) in ranges.items()]
    found = []
    for name, low, high in dict.fromkeys(r for r in ranges if r[0] in known):
        condition = family.condition(name)
        key, title = interval(condition, low, high)
        top = float(np.nextafter(np.float32(high), np.float32(np.inf)))  # training leaves out both ends
        for word, inside in (("inside", True), ("outside", False)):
            where = f"{word} held-out {title}"
            found.append(HeldOut(f"{word}:{key}", where, low=low, high=top, held=name, inside=inside))
    return tuple(found)
