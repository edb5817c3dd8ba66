"""Density maps from particle-mesh N-body simulations (extra ``nbody``), conditioned on Omega_m and sigma_8.

Second-order Lagrangian initial conditions, gravity on a mesh, the BullFrog integrator (Rampf, List & Hahn 2024,
arXiv:2409.19049) in flat LCDM, with linear power spectra from CAMB; at z = 0 the box is cut into slabs along each axis
and every slab projected. A consistent truth for surrogates, not a precision P(k): :meth:`NBody.check` prints it beside
HMcode2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.integrate import solve_ivp

from ..errors import ConfigError, require
from ..families import FAMILIES, Family
from ..models.maps.linear import FIDUCIAL, variance_8
from ..shards.samples import LOW, Samples
from .engine import Drawn, Engine, checked_block, stream

if TYPE_CHECKING:
    from .mesh import Field as Mesh

Power = Callable[[NDArray[Any]], NDArray[np.float64]]
"""P(k) in (Mpc/h)^3 of k in h/Mpc."""

_AMPLITUDE = 2e-9  # A_s of linear theory, before scaling to sigma_8
_FORCE_MESH = 2  # force cells per particle, a side
_A_START = 0.05
_FEWEST_LOW = 8  # pixels a side of a map of low resolution
_LIMITS = {"Omega_m": (0.06, 1.0), "sigma_8": (0.2, 1.5)}
_STREAM_OF_DESIGN = 2**63  # no realisation has this index


class NBody(Engine):
    """Projected density of boxes of cold dark matter.

    A realisation is one box with its own cosmology and random field; it gives ``3 * slabs`` maps, axis by axis and
    slab by slab. The conditions ``Omega_m`` and ``sigma_8`` lie on a Latin hypercube over what their specifications say
    (``uniform:0.1:0.5``; ``fixed:0.3`` and ``list:`` are as elsewhere), made for the number of realisations asked for.

    Attributes:
        samples: Maps asked for; the design has as many realisations as that needs.
        pixels: Pixels a side of a map and particles a side of the box: a power of two.
        box: Side of the box in Mpc/h.
        slabs: Slabs a box is cut into along each axis.
        steps: Time steps.
        pairs: Beside each map goes, as ``low``, that of a run of the same initial conditions with so many times fewer
            particles, force cells and pixels a side; 1: there is none.
    """

    blocks_a_shard: ClassVar[int] = 20

    samples: int = Field(ge=1, le=10**9)
    pixels: Literal[16, 32, 64, 128, 256] = 64
    box: float = Field(default=64.0, ge=8, le=4000)
    slabs: int = Field(default=8, ge=1)
    steps: int = Field(default=20, ge=5, le=500)
    pairs: int = Field(default=1, ge=1, le=8)

    @model_validator(mode="before")
    @classmethod
    def _converted(cls, given: dict[str, Any]) -> dict[str, Any]:
        pixels = given.get("pixels")
        return {**given, "pixels": int(pixels)} if isinstance(pixels, str) and pixels.isdigit() else given

    @model_validator(mode="after")
    def _possible(self) -> NBody:
        if self.pixels % self.slabs:
            raise ConfigError(
                "the slabs must divide the pixels",
                where="slabs",
                expected=f"a divisor of {self.pixels}",
                found=self.slabs,
            )
        if self.pixels % (self.pairs * self.slabs) or self.pixels // self.pairs < _FEWEST_LOW:
            raise ConfigError(
                "the maps of low resolution must have whole pixels in every slab",
                where="pairs",
                expected=f"a divisor of {self.pixels} / {self.slabs}, with at least {_FEWEST_LOW} pixels a side left",
                found=self.pairs,
            )
        for module in ("numba", "camb"):
            require(module, "nbody")
        _ = self.drawn
        return self

    @cached_property
    def drawn(self) -> Drawn:
        """What the cosmologies are to be."""
        known = FAMILIES["nbody-64"].conditions
        return Drawn(known, self.conditions, {c.name: f"uniform:{c.low:g}:{c.high:g}" for c in known}, _LIMITS)

    @cached_property
    def family(self) -> Family:
        """``nbody-64``, or the same in another size."""
        usual = FAMILIES["nbody-64"]
        conditions = tuple(self.drawn.ranged(c.name) for c in usual.conditions)
        if self.pairs > 1:
            usual = usual.model_copy(update={"low_pixels": (self.pixels // self.pairs,) * 2})
        if (self.pixels, self.box, self.slabs) == (64, 64.0, 8):
            return usual.model_copy(update={"conditions": conditions})
        size = f"{self.pixels} x {self.pixels} pixels of {self.box / self.pixels:g} Mpc/h"
        deep = f"{self.box / self.slabs:g} Mpc/h deep"
        return usual.model_copy(
            update={
                "name": f"nbody-{self.pixels}",
                "description": f"Projected N-body density, {size}, {deep}, z = 0, periodic",
                "conditions": conditions,
                "pixels": (self.pixels, self.pixels),
                "box_size": self.box,
                "depth": self.box / self.slabs,
            }
        )

    @property
    def block(self) -> int:
        """Maps of one realisation."""
        return 3 * self.slabs

    @property
    def realisations(self) -> int:
        """Boxes in the design."""
        return math.ceil(self.samples / self.block)

    @cached_property
    def design(self) -> dict[str, NDArray[np.float64]]:
        """Cosmologies of all realisations by name, (realisations,) each, in random order."""
        random, count = stream(self.seed, _STREAM_OF_DESIGN), self.realisations
        found = {}
        for name, spec in self.drawn.specs.items():
            strata = (random.permutation(count) + random.random(count)) / count
            found[name] = spec.draw(strata, np.arange(count))
        return found

    def realisation_id(self, realisation: int) -> int:
        """The seed of a realisation's random field, its name in the shards: equal only where the field is."""
        return int(stream(self.seed, realisation).integers(2**53))

    def describe(self) -> dict[str, Any]:
        """Engine, versions and options."""
        return {
            "engine": "nbody",
            "method": "2LPT initial conditions, particle mesh, BullFrog; slabs projected at z = 0",
            "camb": require("camb", "nbody").__version__,
            "numba": require("numba", "nbody").__version__,
            "conditions": self.drawn.texts,
            "design": f"Latin hypercube of {self.realisations} realisations",
            "cosmology": FIDUCIAL,
            "particles": self.pixels**3,
            "box": f"{self.box:g} Mpc/h",
            "depth": f"{self.box / self.slabs:g} Mpc/h",
            "order": f"realisation, axis (3), slab ({self.slabs})",
            "realisation_id": "seed of the realisation's random field",
            "force_mesh": _FORCE_MESH * self.pixels,
            "steps": self.steps,
            **({"low": f"{(self.pixels // self.pairs) ** 3} particles, the same phases"} if self.pairs > 1 else {}),
            "a_start": _A_START,
            "deposit": "cloud in cell, particle lattice refined x2 a side",
            "seed": self.seed,
        }

    def make(self, start: int, stop: int) -> Samples:
        """Maps start to stop; both must be multiples of ``block``.

        Raises:
            ConfigError: If they are not, or lie beyond the design.
        """
        boxes = checked_block(start, stop, self.block)
        if boxes.stop > self.realisations:
            raise ConfigError(
                "the design has no such realisation",
                where="stop",
                expected=f"at most {self.realisations * self.block} maps",
                found=stop,
            )
        maps = np.zeros((len(boxes), self.block, self.pixels, self.pixels), np.float32)
        few = self.pixels // self.pairs
        low = np.zeros((len(boxes), self.block, few, few), np.float32)
        for i, realisation in enumerate(boxes):
            omega_m, sigma_8 = (float(self.design[name][realisation]) for name in ("Omega_m", "sigma_8"))
            power, seed = linear_power(omega_m, sigma_8), self.realisation_id(realisation)
            x = evolve(power, omega_m, self.pixels, self.box, seed=seed, steps=self.steps)
            maps[i] = project(x, self.pixels, self.box, self.slabs)
            if self.pairs > 1:
                x = evolve(power, omega_m, few, self.box, seed=seed, steps=self.steps, phases=self.pixels)
                low[i] = project(x, few, self.box, self.slabs, fine=self.pixels)
        rows = np.repeat(np.asarray(boxes, np.int64), self.block)
        return Samples(
            self.family,
            maps.reshape(-1, self.pixels, self.pixels),
            {name: values[rows].astype(np.float32) for name, values in self.design.items()},
            extras={
                "realisation_id": np.array([self.realisation_id(r) for r in rows.tolist()], np.int64),
                **({LOW: low.reshape(-1, few, few)} if self.pairs > 1 else {}),
            },
            kind="reference",
            provenance=(self.describe(),),
        )

    def check(self) -> str:
        """P(k) beside HMcode2020 and the growth beside linear theory, at (0.3, 0.8), in pairs of fixed amplitude."""
        omega_m, sigma_8, n = 0.3, 0.8, self.pixels
        k, power = paired_power(omega_m, sigma_8, n, self.box, self.steps)
        ratio = power / hmcode_power(omega_m, sigma_8)(k)
        lines = [f"Omega_m {omega_m}, sigma_8 {sigma_8}, z = 0: a pair of boxes of {self.box:g} Mpc/h, {n}^3 particles"]
        lines += ["  k [h/Mpc]   P [(Mpc/h)^3]   / HMcode2020"]
        shells = np.unique(np.geomspace(1, len(k), 12).astype(int)) - 1
        lines += [f"  {k[i]:9.3f}   {power[i]:13.2f}   {ratio[i]:12.3f}" for i in shells]
        wide, fraction = growth_check(omega_m, sigma_8, n, self.steps)
        lines.append(f"growth / linear theory in boxes of 512 Mpc/h at k = {wide[0]:.3f} to {wide[-1]:.3f}")
        lines.append("  " + "   ".join(f"{value:.4f}" for value in fraction))
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the simulation


def displacements(
    power: Power, n: int, box: float, seed: int, sign: int = 0, phases: int | None = None
) -> tuple[Mesh, Mesh]:
    """First and second order Lagrangian displacements, scaled to D = 1.

    Args:
        power: Linear P(k) at z = 0.
        n: Particles a side.
        box: Side in Mpc/h.
        seed: Of the Gaussian field.
        sign: +1 or -1 fixes every amplitude at its mean and flips the field (Angulo & Pontzen 2016, arXiv:1603.05253):
            the mean of such a pair nearly cancels cosmic variance. For checks; 0 is Gaussian.
        phases: Modes are those of a run of the same seed with so many particles a side, as far as there are such here.

    Returns:
        In Mpc/h, (n^3, 3) each.
    """
    from .mesh import wavenumbers

    def inverse(modes: NDArray[Any]) -> Mesh:
        return np.asarray(scipy.fft.irfftn(modes, s=(n, n, n)), np.float32)

    def gradient(potential: NDArray[Any]) -> Mesh:
        return np.stack([inverse(1j * component * potential) for component in odd], -1).reshape(-1, 3)

    k = wavenumbers(n, box)
    odd = [np.where(np.isclose(abs(c), np.pi * n / box), 0, c) for c in k]  # an odd kernel has no Nyquist plane
    square = k[0] ** 2 + k[1] ** 2 + k[2] ** 2
    square[0, 0, 0] = 1
    amplitude = np.sqrt(power(np.sqrt(square)) * n**3 / box**3).astype(np.float32)
    amplitude[0, 0, 0] = 0
    fine = phases or n
    modes = scipy.fft.rfftn(np.random.default_rng(seed).standard_normal((fine, fine, fine), np.float32))
    if fine > n:
        modes = _coarse(modes, n)
    if sign:
        modes *= sign * n**1.5 / np.maximum(abs(modes), 1e-20)
    first = modes * amplitude / square
    tidal = {(i, j): inverse(k[i] * k[j] * first) for i in range(3) for j in range(i, 3)}
    minors = [tidal[i, i] * tidal[j, j] - tidal[i, j] ** 2 for i in range(3) for j in range(i + 1, 3)]
    return gradient(first), gradient(-scipy.fft.rfftn(minors[0] + minors[1] + minors[2]) / square)


def _coarse(modes: NDArray[Any], n: int) -> NDArray[Any]:
    """Modes of white noise on a coarser mesh of n^3 cells, the scatter in each cell still 1; none at its Nyquist."""
    rows = np.r_[0 : n // 2, -(n // 2) : 0]
    kept: NDArray[Any] = modes[np.ix_(rows, rows, np.arange(n // 2 + 1))] * np.float32((n / len(modes)) ** 1.5)
    kept[n // 2], kept[:, n // 2], kept[:, :, n // 2] = 0, 0, 0
    return kept


def evolve(
    power: Power,
    omega_m: float,
    n: int,
    box: float,
    *,
    seed: int,
    steps: int,
    sign: int = 0,
    phases: int | None = None,
    a_start: float = _A_START,
) -> Mesh:
    """Particles at z = 0.

    Args:
        power: Linear P(k) at z = 0.
        omega_m: Matter density.
        n: Particles a side.
        box: Side in Mpc/h.
        seed: Of the initial field.
        steps: Drift-kick-drift steps, equal in the growth factor.
        sign: See :func:`displacements`.
        phases: The same.
        a_start: Scale factor of the initial conditions.

    Returns:
        Positions in Mpc/h, (n^3, 3), not wrapped.
    """
    from . import mesh

    growth, m = Growth(omega_m), _FORCE_MESH * n
    first, second = displacements(power, n, box, seed, sign, phases)
    early = growth.first(a_start)
    x: Mesh = (
        mesh.lattice(n, box).reshape(-1, 3) + np.float32(early) * first + np.float32(growth.second(early)) * second
    )
    v = first + np.float32(growth.second_rate(early)) * second
    kx, ky, kz = mesh.wavenumbers(m, box)
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    green = (-((m / n) ** 3) / square).astype(np.float32)
    green[0, 0, 0] = 0
    force, inverse = np.empty((m, m, m, 3), np.float32), m / box
    times = np.linspace(early, 1, steps + 1)
    for before, after in pairwise(times):
        half, middle = (after - before) / 2, (before + after) / 2
        x += np.float32(half) * v
        modes = scipy.fft.rfftn(mesh.deposit(x, m, inverse))
        mesh.force(scipy.fft.irfftn(modes * green, s=(m, m, m), overwrite_x=True), inverse, force)
        # BullFrog's weights: every step is exact to second order in Lagrangian perturbation theory
        anchor = (growth.second(before) + growth.second_rate(before) * half) / middle - middle
        keep = (growth.second_rate(after) - anchor) / (growth.second_rate(before) - anchor)
        mesh.kick(x, v, force, inverse, keep, (1 - keep) / middle)
        x += np.float32(half) * v
    return x


def refine(x: Mesh, n: int, box: float) -> Mesh:
    """Eight times the particles, their displacements interpolated on the lattice.

    Follows the dark-matter sheet (Abel, Hahn & Kaehler 2012, arXiv:1111.3944). Without it voids show the comb of the
    initial lattice, which a critic learns at once.

    Args:
        x: Positions, (n^3, 3).
        n: Particles a side.
        box: Side in Mpc/h.

    Returns:
        Positions, (8 n^3, 3).
    """
    from .mesh import lattice

    moved = x.reshape(n, n, n, 3) - lattice(n, box)
    for axis in range(3):
        shape = [2 * size if i == axis else size for i, size in enumerate(moved.shape)]
        moved = np.stack([moved, (moved + np.roll(moved, -1, axis)) / 2], axis + 1).reshape(shape)
    return (moved + lattice(2 * n, box)).reshape(-1, 3)


def project(x: Mesh, pixels: int, box: float, slabs: int, fine: int | None = None) -> Mesh:
    """Surface density over the box's mean, (3 * slabs, pixels, pixels), slabs along x, then y, then z.

    Args:
        x: Positions of pixels^3 particles, (P, 3).
        pixels: Pixels a side.
        box: Side in Mpc/h.
        slabs: Slabs along each axis.
        fine: A pixel covers exactly those that it is cut into in maps of so many pixels a side.
    """
    from .mesh import deposit

    # Matter at a grid point is all in one pixel: the middle of a pixel lies there, and that of finer ones elsewhere.
    shift = (box / pixels - box / (fine or pixels)) / 2
    density = deposit(refine(x, pixels, box) - np.float32(shift), pixels, pixels / box)
    density /= density.mean(dtype=np.float64)
    split = [np.moveaxis(density, axis, 0).reshape(slabs, -1, pixels, pixels).mean(1) for axis in range(3)]
    return np.concatenate(split)


# ------------------------------------------------------------------------------------------------------- checks


def paired_power(
    omega_m: float, sigma_8: float, n: int, box: float, steps: int, seed: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(k) at z = 0, the mean of a pair of fixed amplitude.

    Args:
        omega_m: Matter density.
        sigma_8: Linear rms in 8 Mpc/h.
        n: Particles a side.
        box: Side in Mpc/h.
        steps: Time steps.
        seed: Of the phases.

    Returns:
        k in h/Mpc and P in (Mpc/h)^3, (n/2 - 1,) each.
    """
    from .mesh import deposit, power_spectrum

    power = linear_power(omega_m, sigma_8)
    pair = []
    for sign in (1, -1):
        x = evolve(power, omega_m, n, box, seed=seed, steps=steps, sign=sign)
        pair.append(power_spectrum(deposit(x, n, n / box), box))
    return pair[0][0], (pair[0][1] + pair[1][1]) / 2


def growth_check(
    omega_m: float, sigma_8: float, n: int, steps: int, box: float = 512.0, k_max: float = 0.035
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Growth of the largest modes over linear theory.

    Args:
        omega_m: Matter density.
        sigma_8: Linear rms in 8 Mpc/h.
        n: Particles a side.
        steps: Time steps.
        box: Side in Mpc/h, large enough that its first modes are linear.
        k_max: Up to this k in h/Mpc.

    Returns:
        k in h/Mpc and D / D_linear.
    """
    k, power = paired_power(omega_m, sigma_8, n, box, steps)
    linear = k < k_max
    return k[linear], np.sqrt(power[linear] / linear_power(omega_m, sigma_8)(k[linear]))


# ------------------------------------------------------------------------------------------------ linear theory


def _camb(omega_m: float, amplitude: float, nonlinear: bool) -> Any:
    """CAMB's results at z = 0 for an amplitude A_s."""
    camb = require("camb", "nbody")
    camb.config.ThreadNum = 1  # the workers are the parallelism
    h = FIDUCIAL["h"]
    settings = camb.set_params(
        H0=100 * h,
        ombh2=FIDUCIAL["Omega_b"] * h**2,
        omch2=(omega_m - FIDUCIAL["Omega_b"]) * h**2,
        mnu=0,
        ns=FIDUCIAL["n_s"],
        As=amplitude,
        TCMB=FIDUCIAL["T_cmb"],
    )
    settings.WantCls = False
    settings.set_matter_power(redshifts=[0.0], kmax=12)
    settings.NonLinear = camb.model.NonLinear_pk if nonlinear else camb.model.NonLinear_none
    if nonlinear:
        settings.NonLinearModel.set_params(halofit_version="mead2020")
    return camb.get_results(settings)


@lru_cache(maxsize=64)
def _linear_shape(omega_m: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """k and the linear P(k) at a fixed A_s, (K,) each."""
    k = np.geomspace(1e-4, 60, 1200)
    spectrum = _camb(omega_m, _AMPLITUDE, False).get_matter_power_interpolator(nonlinear=False, extrap_kmax=100)
    return k, np.asarray(spectrum.P(0, k), np.float64)


def linear_power(omega_m: float, sigma_8: float) -> Power:
    """Linear P(k) at z = 0, scaled to sigma_8.

    Args:
        omega_m: Matter density.
        sigma_8: Its rms in 8 Mpc/h.
    """
    k, power = _linear_shape(omega_m)
    log_k, log_power = np.log(k), np.log(power * (sigma_8 / np.sqrt(variance_8(k, power))) ** 2)

    def interpolated(q: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.exp(np.interp(np.log(np.maximum(q, 1e-6)), log_k, log_power)))

    return interpolated


@lru_cache(maxsize=8)
def hmcode_power(omega_m: float, sigma_8: float) -> Power:
    """Nonlinear P(k) at z = 0 of HMcode2020 (Mead et al. 2021, arXiv:2009.01858), for checks.

    Args:
        omega_m: Matter density.
        sigma_8: Its linear rms in 8 Mpc/h.
    """
    amplitude = _AMPLITUDE * (sigma_8 / np.sqrt(variance_8(*_linear_shape(omega_m)))) ** 2
    spectrum = _camb(omega_m, amplitude, True).get_matter_power_interpolator(nonlinear=True, extrap_kmax=200)
    return lambda k: np.asarray(spectrum.P(0, k), np.float64)


class Growth:
    """First and second order growth factors D, E of flat LCDM without radiation, D(z = 0) = 1.

    D'' + 2 H D' = 4 pi G rho D and E'' + 2 H E' = 4 pi G rho (E - D^2), with E -> -3/7 D^2 early on.

    Args:
        omega_m: Matter density.
    """

    def __init__(self, omega_m: float) -> None:
        early, points = 1e-3, 4000

        def slope(log_a: float, y: NDArray[np.float64]) -> list[float]:
            matter = omega_m * np.exp(-3 * log_a)
            source = 1.5 * matter / (matter + 1 - omega_m)
            drag = 2 - source
            d, d_rate, e, e_rate = y
            return [d_rate, source * d - drag * d_rate, e_rate, source * (e - d * d) - drag * e_rate]

        log_a = np.linspace(np.log(early), 0, points)
        start = [early, early, -3 / 7 * early**2, -6 / 7 * early**2]
        y = solve_ivp(slope, (log_a[0], 0), start, t_eval=log_a, rtol=1e-9, atol=1e-14).y
        today = y[0, -1]
        self._a, self._d, self._e = np.exp(log_a), y[0] / today, y[2] / today**2
        self._rate = y[3] / y[1] / today

    def first(self, a: float) -> float:
        """D at a scale factor."""
        return float(np.interp(a, self._a, self._d))

    def second(self, d: float) -> float:
        """E where the first order is ``d``."""
        return float(np.interp(d, self._d, self._e))

    def second_rate(self, d: float) -> float:
        """dE/dD where the first order is ``d``."""
        return float(np.interp(d, self._d, self._rate))
