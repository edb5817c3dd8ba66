"""How maps made from maps of low resolution compare with the true ones: power, and modes one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import zoom

from calogen.errors import ShardError
from calogen.shards.samples import LOW, Samples

from ..observables.statistics import Shells

Array = NDArray[np.float64]


class Fidelity(NamedTuple):
    """What :func:`fidelity` finds, (K,) each, over integer shells of the fundamental mode.

    Attributes:
        k: Wave numbers, in h/Mpc.
        power: Mean power of one output over that of the true maps.
        low_power: The same of the interpolated low maps.
        correlation: Of one output with the true map, mode by mode.
        mean_correlation: The same of the mean of all outputs.
        low_correlation: The same of the interpolated low maps.
    """

    k: Array
    power: Array
    low_power: Array
    correlation: Array
    mean_correlation: Array
    low_correlation: Array


def interpolated(low: NDArray[np.floating], factor: int) -> Array:
    """Periodic maps (N, h, w) by cubic splines, (N, f h, f w); a pixel covers f x f finer ones."""
    fine = [zoom(one.astype(np.float64), factor, order=3, mode="grid-wrap", grid_mode=True) for one in low]
    return np.stack(fine)


def fidelity(pairs: Samples, outputs: Sequence[NDArray[np.floating]]) -> Fidelity:
    """How outputs compare with the high maps of pairs.

    Args:
        pairs: N pairs of maps.
        outputs: Maps (N, H, W) made of the low ones, each with noise of its own.

    Raises:
        ShardError: If the samples are no pairs, or outputs have another shape.
    """
    family = pairs.family
    if not family.low_pixels:
        raise ShardError("these are no pairs of maps", expected=f"'{LOW}' beside the maps", found=family.summary)
    for made in outputs:
        if made.shape != pairs.values.shape:
            what = "outputs and true maps differ in shape"
            raise ShardError(what, expected=pairs.values.shape, found=made.shape)
    shells = Shells.of(family.sample_shape, family.box_size)

    def cross(a: NDArray[np.complex128], b: NDArray[np.complex128]) -> Array:
        return np.asarray(shells.mean((a * b.conj()).real).mean(0), np.float64)

    true, low, one, mean = (
        scipy.fft.rfft2(np.asarray(maps, np.float64))
        for maps in (
            pairs.values,
            interpolated(pairs.extras[LOW], family.factor),
            outputs[0],
            np.mean(outputs, axis=0, dtype=np.float64),
        )
    )
    power = cross(true, true)
    both = [(cross(side, side), cross(side, true)) for side in (one, mean, low)]
    r = [shared / np.sqrt(own * power) for own, shared in both]
    return Fidelity(shells.k, both[0][0] / power, both[2][0] / power, r[0], r[1], r[2])
