"""Toys: analytic showers and random fields whose mean and variance are known exactly. For tests and teaching.

Nothing here simulates physics; families, descriptions and provenance say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import betainc
from scipy.stats import gamma

from ..errors import ConfigError
from ..families import ENERGY_UNITS, Condition, Family, resolve_family
from .engine import Drawn, OneByOne, stream

Array = NDArray[np.float64]
_LEAST_ENERGY = 1e-3  # MeV
_QUANTUM = 0.002  # of the usual energy: what one independent part of a shower carries
_DEPTH = 10.0  # of the calorimeter, in scale lengths of the longitudinal profile


class Toy(OneByOne):
    """Samples of any family, drawn from known distributions.

    **Showers.** The voxels of a shower of energy E, and what leaks, share E as a Dirichlet distribution: mean fractions
    f_v(E) from a gamma profile in depth and an exponential one across, concentration K = 1 + E / w. So every voxel is
    E x Beta(K f_v, K (1 - f_v)), the sum never exceeds E, and its relative variance is f (1 - f) / (K + 1).

    **Maps.** A periodic Gaussian field g with spectrum k^-(1 + Omega_m) and standard deviation ``amplitude * sigma_8``;
    pixels are exp(g - var / 2) (``lognormal``: mean 1, variance exp(var) - 1) or 1 + g (``gaussian``).

    Conditions that a family has beyond these are drawn and have no effect.

    Attributes:
        source: The family as the user gives it: a name, or the file of one.
        model: The family resolved.
        field: Kind of map.
        amplitude: Standard deviation of g at sigma_8 = 1; none: 0.8 (lognormal) or 0.15 (gaussian).
    """

    blocks_a_piece: ClassVar[int] = 64

    source: str | Family = Field(default="calogan", alias="family")
    model: Family
    field: Literal["lognormal", "gaussian"] = "lognormal"
    amplitude: float | None = Field(default=None, gt=0, le=3)

    @model_validator(mode="before")
    @classmethod
    def _load(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "model": resolve_family(given.get("family", "calogan"))}

    @model_validator(mode="after")
    def _possible(self) -> Toy:
        if not self.model.layers and min(self.model.sample_shape) < 4:
            raise ConfigError("a toy map needs at least 4 x 4 pixels", where="family", found=self.model.sample_shape)
        _ = self.drawn
        return self

    @cached_property
    def drawn(self) -> Drawn:
        """Conditions of all samples: over their usual ranges unless said otherwise."""
        conditions = self.model.conditions
        limits = {c.name: (_LEAST_ENERGY, np.inf) for c in conditions if c.role == "energy"}
        usual = {}
        for c in conditions:
            spread = "log-uniform" if c.scale == "log" else "uniform"
            span = f":{c.low!r}:{c.high!r}{c.unit if c.unit in ENERGY_UNITS else ''}"
            usual[c.name] = "uniform" if c.labels else spread + span
        return Drawn(conditions, self.conditions, usual, limits)

    @cached_property
    def family(self) -> Family:
        """The family, called a toy."""
        conditions = tuple(self.drawn.ranged(c.name) for c in self.model.conditions)
        name, description = f"toy-{self.model.name}", f"TOY, not a simulation: {self.model.description}"
        return self.model.model_copy(update={"name": name, "description": description, "conditions": conditions})

    @cached_property
    def law(self) -> Showers | Maps:
        """What samples are drawn from."""
        return Showers(self) if self.model.kind == "calorimeter" else Maps(self)

    def describe(self) -> dict[str, Any]:
        """Engine and options."""
        return {
            "engine": "toy",
            "note": "TOY: drawn from analytic distributions, not a simulation",
            "numpy": np.__version__,
            "family": self.model.model_dump(mode="json", exclude_defaults=True),
            "conditions": self.drawn.texts,
            **self.law.options,
            "seed": self.seed,
        }

    def draw(self, index: int, conditions: Mapping[str, float]) -> Array:
        """One sample."""
        return self.law.draw(conditions, stream(self.seed, index))

    def check(self) -> str:
        """Mean and standard deviation of 400 samples at one point, beside the exact ones."""
        point = {c.name: _middle(c) for c in self.family.conditions}
        values = np.stack([self.draw(i, point) for i in range(400)]).reshape(400, -1)
        mean, variance = (moment.ravel() for moment in self.law.moments(point))
        lines = [f"TOY {self.family.name}: 400 samples at {', '.join(f'{n} = {v:g}' for n, v in point.items())}"]
        lines += ["  voxel         mean (exact)        standard deviation (exact)"]
        for v in np.argsort(-mean, kind="stable")[:: max(len(mean) // 8, 1)][:8]:
            found, spread = values[:, v].mean(), values[:, v].std()
            lines.append(f"  {v:5d} {found:12.5g} ({mean[v]:.5g})   {spread:12.5g} ({variance[v] ** 0.5:.5g})")
        return "\n".join(lines)


class Showers:
    """Toy showers; see :class:`Toy`.

    Args:
        toy: Says of which family.
    """

    def __init__(self, toy: Toy) -> None:
        self._family, self._energy = toy.model, toy.model.conditions[0]
        # Voxels below this are exactly zero; a family without a threshold is given a low one.
        self.cut = toy.model.threshold or 0.2 * toy.model.knee
        self.options = {"cut": self.cut}
        shares = []
        for layer in toy.model.layers:
            radius = np.hypot(*layer.centres.T)
            weight = layer.areas * np.exp(-radius / (0.1 * max(radius.max(), 1e-9)))
            shares.append(weight / weight.sum())
        self._lateral = np.concatenate(shares)  # share of its layer's energy in each voxel

    def moments(self, conditions: Mapping[str, float]) -> tuple[Array, Array]:
        """Mean and variance of every voxel, exactly, (V,) in the family's unit and its square."""
        energy = conditions[self._energy.name]
        total, fraction = self._concentration(energy), self._fractions(energy)
        a, b, cut = total * fraction, total * (1 - fraction), min(self.cut / energy, 1.0)
        first = a / total * (1 - betainc(a + 1, b, cut))  # of the part of Beta(a, b) above the cut
        second = a * (a + 1) / (total * (total + 1)) * (1 - betainc(a + 2, b, cut))
        return energy * first, energy**2 * (second - first**2)

    def draw(self, conditions: Mapping[str, float], random: np.random.Generator) -> Array:
        """One shower, (V,)."""
        energy = conditions[self._energy.name]
        fraction = self._fractions(energy)
        leak = max(1 - fraction.sum(), 0.0)
        parts = random.standard_gamma(self._concentration(energy) * np.append(fraction, leak))
        cells = energy * parts[:-1] / parts.sum()
        cells[cells < self.cut] = 0
        return np.asarray(cells, np.float64)

    def _fractions(self, energy: float) -> Array:
        """Mean share of the energy in each voxel before the cut, (V,); what lacks to 1 leaks out of the back."""
        shape = 4 + 0.5 * np.clip(np.log(energy / _middle(self._energy)), -4, 4)
        ends = np.linspace(0, _DEPTH, len(self._family.layers) + 1)
        return np.asarray(np.diff(gamma.cdf(ends, shape))[self._family.layer_of_voxel] * self._lateral)

    def _concentration(self, energy: float) -> float:
        return float(1 + energy / (_QUANTUM * _middle(self._energy)))


class Maps:
    """Toy maps; see :class:`Toy`.

    Args:
        toy: Says of which family and kind.
    """

    def __init__(self, toy: Toy) -> None:
        self._shape, self._field = toy.model.sample_shape, toy.field
        self._amplitude = toy.amplitude or (0.8 if toy.field == "lognormal" else 0.15)
        self.options = {"field": self._field, "amplitude": self._amplitude}

    def moments(self, conditions: Mapping[str, float]) -> tuple[Array, Array]:
        """Mean and variance of every pixel, exactly, (H, W) each."""
        variance = self._deviation(conditions) ** 2
        pixel = np.expm1(variance) if self._field == "lognormal" else variance
        return np.ones(self._shape), np.full(self._shape, pixel)

    def draw(self, conditions: Mapping[str, float], random: np.random.Generator) -> Array:
        """One map, (H, W)."""
        height, width = self._shape
        k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
        k[0, 0] = np.inf
        power = k ** -(1 + conditions.get("Omega_m", 0.3))
        stored = np.full(power.shape, 2.0)  # half of the modes are not stored, save the planes 0 and Nyquist
        stored[:, 0] = 1
        if width % 2 == 0:
            stored[:, -1] = 1
        power *= self._deviation(conditions) ** 2 * height * width / (stored * power).sum()
        white = random.standard_normal((height, width))
        field = np.asarray(scipy.fft.irfft2(scipy.fft.rfft2(white) * np.sqrt(power), s=(height, width)))
        if self._field == "gaussian":
            return 1 + field
        return np.exp(field - self._deviation(conditions) ** 2 / 2)

    def _deviation(self, conditions: Mapping[str, float]) -> float:
        return self._amplitude * conditions.get("sigma_8", 1.0)


def _middle(condition: Condition) -> float:
    """Between the ends of a condition's range, on its own scale."""
    if condition.scale == "log":
        return float(np.sqrt(condition.low * condition.high))
    if condition.labels:
        return 0.0
    return (condition.low + condition.high) / 2
