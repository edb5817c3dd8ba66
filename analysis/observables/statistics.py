"""Statistics of periodic density maps: power spectra, peaks, bispectra, Minkowski functionals, cross spectra.

Arrays in, arrays out: maps are (N, H, W) of 1 + delta, a box is the side of a map along its height in Mpc/h (0: lengths
are in pixels). Transforms run in blocks, so memory does not grow with the number of maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float64]
Maps = NDArray[np.floating[Any]]
FLOOR_PIXEL = 1e-3  # added before the logarithm of a pixel: far below the emptiest pixel of a simulated map
_BLOCK_PIXELS = 2**18  # 2 MiB in float64: stays in the cache
_BANDS = 9  # of the bispectrum


class Shells:
    """Shells of integer radius in Fourier space, 1 .. N/2-1 in units of the fundamental mode, on ``rfft2``'s grid.

    Attributes:
        k: Wave numbers, (K,), in h/Mpc (per pixel without a box).
        number: Shell of every stored mode, (H, W//2 + 1); 0 for the mean, K + 1 beyond the last shell.
        weight: How many modes each stored mode stands for, (H, W//2 + 1).
        area: Of a map, in (Mpc/h)^2 or pixels.
    """

    def __init__(self, pixels: tuple[int, ...], box_size: float) -> None:
        height, width = pixels
        side = min(pixels)
        rows = np.fft.fftfreq(height) * side  # in units of the fundamental of the shorter side
        columns = np.fft.rfftfreq(width) * side
        last = max(side // 2 - 1, 0)
        self.number = np.minimum(np.rint(np.hypot(rows[:, None], columns[None, :])).astype(np.int64), last + 1)
        self.weight = np.full(self.number.shape, 2.0)  # rfft keeps one of each conjugate pair
        self.weight[:, 0] = 1.0
        if width % 2 == 0:
            self.weight[:, -1] = 1.0
        flat = self.number.ravel()
        order = np.argsort(flat, kind="stable")
        self._order = order[(flat[order] > 0) & (flat[order] <= last)]
        self._starts = np.searchsorted(flat[self._order], np.arange(1, last + 1))
        length = box_size * side / height if box_size else float(side)
        self.area = box_size**2 * width / height if box_size else float(height * width)
        self.k = np.asarray(np.arange(1, last + 1) * (2 * np.pi / length), dtype=np.float64)

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, pixels: tuple[int, ...], box_size: float) -> Shells:
        """The shells of maps of some size, worked out once."""
        return cls(pixels, box_size)

    def mean(self, modes: Array) -> Array:
        """Mean of a real quantity over the modes of each shell, (N, H, W//2 + 1) to (N, K)."""
        chosen = (modes * self.weight).reshape(len(modes), -1)[:, self._order]
        counts = np.add.reduceat(self.weight.ravel()[self._order], self._starts)
        return np.asarray(np.add.reduceat(chosen, self._starts, axis=1) / counts)


def blocks(count: int, rows: int) -> Iterator[slice]:
    """Neighbouring rows, some at a time."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def _blocks(maps: Maps) -> Iterator[slice]:
    return blocks(len(maps), max(1, _BLOCK_PIXELS // max(1, maps[:1].size)))


def row_counts(place: NDArray[np.integer[Any]], bins: int) -> NDArray[np.int64]:
    """How often each bin is in each row of places, (N, ...) to (N, bins)."""
    shifted = place.reshape(len(place), -1) + bins * np.arange(len(place))[:, None]
    return np.bincount(shifted.ravel(), minlength=bins * len(place)).reshape(len(place), bins)


def power_spectra(maps: Maps, box_size: float) -> Array:
    """Power spectrum of each map, (N, K), in (Mpc/h)^2 or pixels^2.

    Source: P(k) = (L^2 / N^4) <|FFT(delta)|^2> over integer shells of 2 pi / L.
    """
    shells = Shells.of(maps.shape[1:], box_size)
    found = np.empty((len(maps), len(shells.k)))
    for part in _blocks(maps):
        modes = scipy.fft.rfft2(maps[part].astype(np.float64) - 1.0)
        found[part] = shells.mean(modes.real**2 + modes.imag**2)
    return found * (shells.area / maps[0].size ** 2 if len(maps) else 1.0)


def peak_mask(maps: Maps) -> NDArray[np.bool_]:
    """Pixels strictly above their eight neighbours, across the edges of the map as well, (N, H, W)."""
    sides = np.maximum(np.roll(maps, 1, axis=2), np.roll(maps, -1, axis=2))
    rows = np.maximum(maps, sides)
    neighbours = np.maximum(sides, np.maximum(np.roll(rows, 1, axis=1), np.roll(rows, -1, axis=1)))
    return np.asarray(maps > neighbours)


class LogAxis:
    """Equal bins in ln(1 + delta + 0.001), from empty pixels to a largest value; what lies beyond goes into the ends.

    Attributes:
        bins: How many.
        edges: In the logarithm, (B + 1,).
    """

    def __init__(self, largest: float, bins: int = 256) -> None:
        self.bins, self._low = bins, float(np.log(FLOOR_PIXEL))
        self._width = (float(np.log(max(largest, 1.0) + FLOOR_PIXEL)) - self._low) / bins
        self.edges = self._low + self._width * np.arange(bins + 1)

    def place(self, values: Maps) -> NDArray[np.int64]:
        """The bin of each value."""
        logarithm = np.log(np.maximum(values, 0) + np.float32(FLOOR_PIXEL))
        return np.clip((logarithm - self._low) / self._width, 0, self.bins - 1).astype(np.int64)


def pixel_histograms(maps: Maps, axis: LogAxis) -> tuple[Array, Array]:
    """How many pixels, and how many peaks, of each map are in each bin; (N, B) twice."""
    found = np.empty((2, len(maps), axis.bins))
    for part in _blocks(maps):
        block = maps[part]
        place = axis.place(block)
        found[0, part] = row_counts(place, axis.bins)
        found[1, part] = row_counts(np.where(peak_mask(block), place, axis.bins), axis.bins + 1)[:, :-1]
    return found[0], found[1]


def minkowski(maps: Maps, thresholds: Array, box_size: float) -> Array:
    """Minkowski functionals of the regions above thresholds, per unit of area, (N, 3, T).

    V0: share of the area. V1: a quarter of the length of the boundary; pixel sides are counted and multiplied by pi/4,
    exact on average over directions (Crofton). V2: Euler number, the mean of those with connected and with separate
    corners, (Q1 - Q3) / 4 with Q the 2 x 2 windows that have one and three pixels above. V1 in h/Mpc, V2 in its square.

    All thresholds are counted at once: a side or window only matters by the ranks of its pixels among them.

    Source: Gray 1971, IEEE Trans. Comput. C-20, 551; normalised as in Schmalzing and Buchert 1997, astro-ph/9702130.
    """
    count, height, width = maps.shape
    pixel = box_size / height if box_size else 1.0
    above = partial(_count_above, len(thresholds))
    found = np.empty((count, 3, len(thresholds)))
    for part in _blocks(maps):
        rank = np.searchsorted(thresholds, maps[part]).astype(np.uint8)
        right, down = np.roll(rank, -1, axis=2), np.roll(rank, -1, axis=1)
        low, high = np.minimum(rank, right), np.maximum(rank, right)  # sides between columns
        low_, high_ = np.roll(low, -1, axis=1), np.roll(high, -1, axis=1)
        sides = above(high) - above(low) + above(np.maximum(rank, down)) - above(np.minimum(rank, down))
        second, third = np.maximum(low, low_), np.minimum(high, high_)
        one = above(np.maximum(high, high_)) - above(np.maximum(second, third))
        three = above(np.minimum(second, third)) - above(np.minimum(low, low_))
        found[part, 0] = above(rank)
        found[part, 1] = np.pi / 16 * sides / pixel
        found[part, 2] = (one - three) / (4 * pixel**2)
    return np.asarray(found / (height * width))


def _count_above(thresholds: int, ranks: NDArray[np.uint8]) -> Array:
    """How many pixels of each map have a rank above each threshold's, (N, T)."""
    counts = row_counts(ranks, thresholds + 1)
    return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, -2::-1], dtype=np.float64)


def bispectrum_bands(pixels: tuple[int, ...], box_size: float) -> tuple[list[tuple[int, int]], Array]:
    """First and last shell of each band of :func:`bispectra`, and their mean wave numbers, (B,).

    The bands widen with k and end below a third of the sampling frequency, where triangles would close by aliasing.
    """
    shells = Shells.of(pixels, box_size)
    last = min((min(pixels) - 1) // 3, len(shells.k))
    starts = np.unique(np.rint(np.geomspace(1, last + 1, _BANDS + 1)).astype(int))
    bands = [(int(a), int(b) - 1) for a, b in pairwise(starts)]
    modes = np.bincount(shells.number.ravel(), shells.weight.ravel(), minlength=last + 2)[1:]
    k = [np.average(shells.k[a - 1 : b], weights=modes[a - 1 : b]) for a, b in bands]
    return bands, np.array(k)


def bispectra(maps: Maps, box_size: float) -> Array:
    """Equilateral bispectrum of each map: all closed triangles with their three sides in one band; (N, B).

    Source: Scoccimarro 2015, arXiv:1506.02729: B = (L^4 / N^6) sum D^3 / sum I^3 with D = IFFT(FFT(delta) x band) and
    I = IFFT(band). In (Mpc/h)^4 or pixels^4.
    """
    height, width = maps.shape[1:]
    shells = Shells.of((height, width), box_size)
    bands, _ = bispectrum_bands((height, width), box_size)
    masks = [((shells.number >= a) & (shells.number <= b)).astype(np.float32) for a, b in bands]
    triangles = [np.sum(scipy.fft.irfft2(mask.astype(np.float64), s=(height, width)) ** 3) for mask in masks]
    found = np.empty((len(maps), len(bands)))
    for part in _blocks(maps):
        modes = scipy.fft.rfft2(maps[part].astype(np.float32) - np.float32(1))
        for column, mask in enumerate(masks):
            filtered = scipy.fft.irfft2(modes * mask, s=(height, width))
            found[part, column] = np.sum(filtered * filtered * filtered, axis=(1, 2), dtype=np.float64)
    return np.asarray(found / np.array(triangles) * (shells.area**2 / (height * width) ** 3))


def cross_spectra(first: Maps, second: Maps, box_size: float, *, turns: bool = False) -> tuple[Array, Array]:
    """How alike pairs of maps are once one of them is shifted to fit the other best.

    Maps drawn independently are alike by chance only; a generator that has few maps to offer gives the same one again,
    shifted (or mirrored or turned, which its training taught it to be as good). Logarithms of the pixels are compared,
    in which no single peak decides.

    Args:
        first: (P, H, W).
        second: (P, H, W).
        box_size: Side in Mpc/h.
        turns: Whether to try mirrored and turned maps as well; only for square ones.

    Returns:
        The largest correlation coefficient over all shifts, (P,), and the cross spectrum at that shift over the root of
        the two power spectra in each shell, (P, K).
    """
    pixels = first.shape[1:]
    shells = Shells.of(pixels, box_size)
    best, spectra = np.empty(len(first)), np.empty((len(first), len(shells.k)))
    for part in _blocks(first):
        a, b = (_standardised(maps[part]) for maps in (first, second))
        modes = scipy.fft.rfft2(a)
        highest, fitted = np.full(len(a), -np.inf), np.empty_like(b)
        for image in _images(b, turns):
            overlap = scipy.fft.irfft2(modes * scipy.fft.rfft2(image).conj(), s=pixels).reshape(len(a), -1)
            shift = overlap.argmax(axis=1)
            value = overlap[np.arange(len(a)), shift] / overlap.shape[1]
            for i in np.flatnonzero(value > highest):
                highest[i] = value[i]
                fitted[i] = np.roll(image[i], np.unravel_index(shift[i], pixels), axis=(0, 1))
        other = scipy.fft.rfft2(fitted)
        powers = [shells.mean(np.abs(x).astype(np.float64) ** 2) for x in (modes, other)]
        scale = np.sqrt(powers[0] * powers[1])
        cross = shells.mean((modes * other.conj()).real.astype(np.float64))
        best[part] = highest
        spectra[part] = np.divide(cross, scale, out=np.zeros_like(scale), where=scale > 0)
    return best, spectra


def _standardised(maps: Maps) -> NDArray[np.float32]:
    """Logarithms of the pixels with mean 0 and mean square 1 in each map."""
    logarithm = np.log(np.maximum(maps, 0) + np.float32(FLOOR_PIXEL)).astype(np.float32)
    logarithm -= logarithm.mean(axis=(1, 2), keepdims=True)
    spread = logarithm.std(axis=(1, 2), keepdims=True)
    return np.asarray(logarithm / np.where(spread > 0, spread, 1))


def _images(maps: NDArray[np.float32], turns: bool) -> Iterator[NDArray[np.float32]]:
    for mirrored in (maps, maps[:, ::-1]) if turns else (maps,):
        for quarter in range(4 if turns else 1):
            yield np.ascontiguousarray(np.rot90(mirrored, quarter, axes=(1, 2)))
