"""Particles and meshes in a periodic box, compiled by numba (extra ``nbody``): deposit, force, kick, power spectrum.

Cloud-in-cell weights throughout. Positions are (P, 3) float32 in Mpc/h and need not be wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

_F = TypeVar("_F", bound=Callable[..., Any])
Field = NDArray[np.float32]


def _compiled(function: _F) -> _F:
    return cast(_F, numba.njit(cache=True, fastmath=True)(function))


@_compiled
def _cloud(position: np.float32, n: int, inverse: float) -> tuple[tuple[int, np.float32], tuple[int, np.float32]]:
    """The two cells along one axis that share a particle, each with its share."""
    place = position * inverse
    first = np.floor(place)
    share = np.float32(place - first)
    cell = int(first) % n
    return (cell, np.float32(1) - share), ((cell + 1) % n, share)


@_compiled
def deposit(x: Field, n: int, inverse: float) -> Field:
    """Particles per cell of an n^3 mesh.

    Args:
        x: Positions, (P, 3).
        n: Cells a side.
        inverse: Cells per unit of length.
    """
    mesh = np.zeros((n, n, n), np.float32)
    for p in range(x.shape[0]):
        rows, columns, depths = _cloud(x[p, 0], n, inverse), _cloud(x[p, 1], n, inverse), _cloud(x[p, 2], n, inverse)
        for i, a in rows:
            for j, b in columns:
                for k, c in depths:
                    mesh[i, j, k] += a * b * c
    return mesh


@_compiled
def force(potential: Field, inverse: float, out: NDArray[np.float32]) -> None:
    """Minus the gradient of a potential, by fourth-order centred differences.

    Args:
        potential: (n, n, n).
        inverse: Cells per unit of length.
        out: Receives the force, (n, n, n, 3).
    """
    n = potential.shape[0]
    near, far = np.float32(-8 / 12 * inverse), np.float32(1 / 12 * inverse)
    for i in range(n):
        ip, im, ip2, im2 = (i + 1) % n, i - 1, (i + 2) % n, i - 2
        for j in range(n):
            jp, jm, jp2, jm2 = (j + 1) % n, j - 1, (j + 2) % n, j - 2
            for k in range(n):
                kp, km, kp2, km2 = (k + 1) % n, k - 1, (k + 2) % n, k - 2
                out[i, j, k, 0] = near * (potential[ip, j, k] - potential[im, j, k]) + far * (
                    potential[ip2, j, k] - potential[im2, j, k]
                )
                out[i, j, k, 1] = near * (potential[i, jp, k] - potential[i, jm, k]) + far * (
                    potential[i, jp2, k] - potential[i, jm2, k]
                )
                out[i, j, k, 2] = near * (potential[i, j, kp] - potential[i, j, km]) + far * (
                    potential[i, j, kp2] - potential[i, j, km2]
                )


@_compiled
def kick(x: Field, v: Field, mesh: NDArray[np.float32], inverse: float, keep: float, gain: float) -> None:
    """v <- keep v + gain f(x), with the force gathered from a mesh.

    Args:
        x: Positions, (P, 3).
        v: Velocities, (P, 3), changed in place.
        mesh: Force, (n, n, n, 3).
        inverse: Cells per unit of length.
        keep: Weight of the old velocity.
        gain: Weight of the force.
    """
    n = mesh.shape[0]
    old, new = np.float32(keep), np.float32(gain)
    for p in range(x.shape[0]):
        (i, a), (i1, a1) = _cloud(x[p, 0], n, inverse)
        (j, b), (j1, b1) = _cloud(x[p, 1], n, inverse)
        (k, c), (k1, c1) = _cloud(x[p, 2], n, inverse)
        w0, w1, w2, w3 = a * b * c, a * b * c1, a * b1 * c, a * b1 * c1
        w4, w5, w6, w7 = a1 * b * c, a1 * b * c1, a1 * b1 * c, a1 * b1 * c1
        for d in range(3):
            total = w0 * mesh[i, j, k, d] + w1 * mesh[i, j, k1, d]
            total += w2 * mesh[i, j1, k, d] + w3 * mesh[i, j1, k1, d]
            total += w4 * mesh[i1, j, k, d] + w5 * mesh[i1, j, k1, d]
            total += w6 * mesh[i1, j1, k, d] + w7 * mesh[i1, j1, k1, d]
            v[p, d] = old * v[p, d] + new * total


def lattice(n: int, box: float) -> Field:
    """Positions of n^3 particles at rest, (n, n, n, 3)."""
    q = np.arange(n, dtype=np.float32) * np.float32(box / n)
    return np.stack(np.meshgrid(q, q, q, indexing="ij"), -1)


def wavenumbers(n: int, box: float) -> tuple[Field, Field, Field]:
    """Components of k in h/Mpc that broadcast to the rfftn of an n^3 mesh."""
    k = (2 * np.pi / box * n * np.fft.fftfreq(n)).astype(np.float32)
    kz = (2 * np.pi / box * n * np.fft.rfftfreq(n)).astype(np.float32)
    return k[:, None, None], k[None, :, None], kz[None, None, :]


def power_spectrum(density: Field, box: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(k) of a cloud-in-cell mesh over integer shells of the fundamental mode, the deposit's window divided out.

    Args:
        density: Any multiple of 1 + delta, (n, n, n).
        box: Side in Mpc/h.

    Returns:
        Mean k of each shell in h/Mpc and P in (Mpc/h)^3, (n/2 - 1,) each.
    """
    n = density.shape[0]
    components = wavenumbers(n, box)
    k = np.sqrt(sum(np.square(c) for c in components))
    modes = scipy.fft.rfftn(density / density.mean() - 1)
    for c in components:
        modes = modes / np.sinc(c * box / n / 2 / np.pi) ** 2
    weight = np.full(modes.shape, 2.0)  # half of the modes are not stored, save the planes 0 and Nyquist
    weight[..., 0] = weight[..., -1] = 1
    shell = np.rint(k * box / (2 * np.pi)).astype(np.int64).ravel()
    kept = slice(1, n // 2)
    count = np.bincount(shell, weight.ravel())[kept]
    mean_k = np.bincount(shell, (weight * k).ravel())[kept] / count
    power = np.bincount(shell, (weight * np.abs(modes) ** 2).ravel())[kept] / count
    return mean_k, power * box**3 / n**6
