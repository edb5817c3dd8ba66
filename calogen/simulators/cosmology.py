"""Linear theory of flat LCDM: matter power spectra from CAMB (extra ``nbody``), growth in first and second order."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from ..errors import require
from ..models.maps.linear import FIDUCIAL, variance_8

_AMPLITUDE = 2e-9  # A_s, before scaling to sigma_8

Power = Callable[[NDArray[Any]], NDArray[np.float64]]
"""P(k) in (Mpc/h)^3 of k in h/Mpc."""


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
    spectrum = _camb(omega_m, amplitude, True).get_matter_power_interpolator(nonlinear=True)
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
