"""Linear theory of structure in flat LCDM, as a closed formula: where a generator of density maps starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FIDUCIAL = {"Omega_b": 0.049, "h": 0.6711, "n_s": 0.9624, "T_cmb": 2.7255}
"""What does not vary: CAMELS' cosmology (arXiv:2010.00619), massless neutrinos left out."""
_OMEGA_B, _H, _N_S, _T_CMB = FIDUCIAL.values()
_MODES = 600  # along the line of sight
_LARGEST = 12.0  # wave number in h/Mpc


def matter_power(k: Array, omega_m: float, sigma_8: float) -> Array:
    """Linear P(k) at z = 0 without baryon wiggles, scaled to sigma_8.

    Args:
        k: Wave numbers in h/Mpc, > 0, any shape.
        omega_m: Matter density.
        sigma_8: The linear rms in spheres of 8 Mpc/h.

    Returns:
        In (Mpc/h)^3, shaped like ``k``.

    Source: Eisenstein and Hu 1998, astro-ph/9709112, eqs. 26 and 28 to 31.
    """
    wide = np.geomspace(1e-4, 20, 2000)
    return np.asarray(_shape(k, omega_m) * sigma_8**2 / variance_8(wide, _shape(wide, omega_m)))


def variance_8(k: Array, power: Array) -> float:
    """The variance of the linear density in spheres of 8 Mpc/h: the square of sigma_8.

    Args:
        k: Wave numbers in h/Mpc, (K,), wide enough to hold the integral.
        power: P(k) in (Mpc/h)^3, (K,).
    """
    x = 8 * k
    window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
    return float(np.trapezoid(power * window**2 * k**3 / (2 * np.pi**2), np.log(k)))


def _shape(k: Array, omega_m: float) -> Array:
    matter, baryons = omega_m * _H**2, _OMEGA_B * _H**2
    share = _OMEGA_B / omega_m
    horizon = 44.5 * np.log(9.83 / matter) / np.sqrt(1 + 10 * baryons**0.75) * _H  # Mpc/h
    alpha = 1 - 0.328 * np.log(431 * matter) * share + 0.38 * np.log(22.3 * matter) * share**2
    gamma = omega_m * _H * (alpha + (1 - alpha) / (1 + (0.43 * k * horizon) ** 4))
    q = k * (_T_CMB / 2.7) ** 2 / gamma
    log = np.log(2 * np.e + 1.8 * q)
    transfer = log / (log + (14.2 + 731 / (1 + 62.5 * q)) * q**2)
    return np.asarray(k**_N_S * transfer**2)


def sheet_power(k: Array, conditions: Mapping[str, float], depth: float) -> Array:
    """Linear power of k . psi, psi the displacement in the plane averaged through a sheet.

    Args:
        k: Wave numbers in the plane in h/Mpc, > 0, (K,).
        conditions: ``Omega_m`` and ``sigma_8`` where they vary (else 0.3 and 0.8).
        depth: Of the sheet in Mpc/h.

    Returns:
        In (Mpc/h)^2, (K,): the integral of P(k3) (k / k3)^4 sinc^2(kz depth / 2) over kz / 2 pi, with k3 the wave
        number in space.
    """
    kz = _LARGEST * np.linspace(0, 1, _MODES) ** 2  # close where the power is
    k3 = np.hypot(k[:, None], kz)
    power = matter_power(k3, conditions.get("Omega_m", 0.3), conditions.get("sigma_8", 0.8))
    through = np.sinc(kz * depth / (2 * np.pi)) ** 2
    return np.asarray(np.trapezoid(power * (k[:, None] / k3) ** 4 * through, kz, axis=1) / np.pi)


def slab_power(k: Array, box: float, depth: float, conditions: Mapping[str, float]) -> Array:
    """Linear power of the mean density of a slab through a periodic box.

    Args:
        k: Wave numbers in the plane in h/Mpc, (K,); 0: the mean of the slab.
        box: Side of the box in Mpc/h.
        depth: Of the slab in Mpc/h.
        conditions: ``Omega_m`` and ``sigma_8`` where they vary (else 0.3 and 0.8).

    Returns:
        In (Mpc/h)^2, (K,): P(k3) sinc^2(kz depth / 2), summed over the box's modes kz along the line of sight (the mean
        of the box is none), over its side.
    """
    kz = 2 * np.pi / box * np.arange(max(2, int(_LARGEST * box / (2 * np.pi))))
    k3 = np.hypot(k[:, None], kz)
    power = matter_power(np.where(k3 > 0, k3, 1.0), conditions.get("Omega_m", 0.3), conditions.get("sigma_8", 0.8))
    both = np.where(k3 > 0, np.where(kz > 0, 2.0, 1.0), 0.0)  # modes of either sign
    return np.asarray(np.sum(both * power * np.sinc(kz * depth / (2 * np.pi)) ** 2, 1) / box)
