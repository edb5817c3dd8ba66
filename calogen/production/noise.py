"""Counter-based random numbers: sample i of a seed has its own numbers, whoever asks for them and in what order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

LATENTS, CONDITIONS = 0, 1
"""Independent streams of one seed."""
_WORDS_PER_COUNTER = 4  # Philox 4x64 makes four 64-bit words for every value of its counter
_NORMALS = ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def _words(seed: int, stream: int, start: int, count: int, words: int) -> NDArray[np.uint64]:
    """Raw bits of samples start to start + count, (count, words); every sample starts on a counter of its own."""
    counters = -(-words // _WORDS_PER_COUNTER)
    bits = np.random.Philox(key=[seed, stream], counter=[start * counters, 0, 0, 0])
    raw = bits.random_raw(count * counters * _WORDS_PER_COUNTER)
    return raw.astype("<u8", copy=False).reshape(count, counters * _WORDS_PER_COUNTER)


def uniforms(seed: int, stream: int, start: int, count: int, size: int) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) of samples start to start + count, (count, size)."""
    raw = _words(seed, stream, start, count, size)[:, :size]
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def normals(seed: int, start: int, count: int, fine: int, coarse: int) -> NDArray[np.float32]:
    """Standard normals of samples start to start + count.

    Args:
        seed: Seed, 0 to 2^63 - 1.
        start: Global index of the first sample.
        count: Samples.
        fine: Numbers per sample made of 32 bits each.
        coarse: Numbers per sample made of 16 bits each (quantiles of 65,536 equal probabilities, at most 4.3): four
            times cheaper, and enough where only the sum of many matters.

    Returns:
        (count, fine + coarse), the fine ones first.
    """
    from .philox import fill_normals  # imports numba, which takes half a second

    uniform, out = np.empty((count, fine)), np.empty((count, fine + coarse), np.float32)
    fill_normals(np.uint64(seed), np.uint64(LATENTS), np.uint64(start), _NORMALS, uniform, out)
    out[:, :fine] = ndtri(uniform)
    return out
