"""Philox 4x64 with ten rounds (Salmon et al. 2011), compiled, as numpy has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from ..compiling import compiled, kernel, operation

_U = np.uint64
_FIRST, _SECOND = _U(0xD2E7470EE14C6C93), _U(0xCA5A826395121157)  # multipliers
_FIRST_STEP, _SECOND_STEP = _U(0x9E3779B97F4A7C15), _U(0xBB67AE8584CAA73B)  # of the key, from round to round
_ONE, _HALF_WORD, _LOW_WORD = _U(1), _U(32), _U(0xFFFFFFFF)
_QUARTER, _LOW_QUARTER = _U(16), _U(0xFFFF)


@operation
def _high(_: Any, _a: Any, _b: Any) -> Any:
    """The upper 64 bits of the product of two numbers of 64 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        wide = [builder.zext(argument, ir.IntType(128)) for argument in arguments]
        upper = builder.lshr(builder.mul(*wide), ir.Constant(ir.IntType(128), 64))
        return builder.trunc(upper, ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@compiled
def _fill(seed: np.uint64, stream: np.uint64, counter: np.uint64, words: NDArray[np.uint64]) -> None:
    """Four words for each of the counters that follow one, (4 K,)."""
    for place in range(0, len(words), 4):
        counter += _ONE
        a, b, c, d = counter, _U(0), _U(0), _U(0)
        first, second = seed, stream
        for _ in range(10):
            high, low = _high(_FIRST, a), _FIRST * a
            other_high, other_low = _high(_SECOND, c), _SECOND * c
            a, b, c, d = other_high ^ b ^ first, other_low, high ^ d ^ second, low
            first, second = first + _FIRST_STEP, second + _SECOND_STEP
        words[place], words[place + 1], words[place + 2], words[place + 3] = a, b, c, d


@kernel
def fill_normals(
    seed: np.uint64,
    stream: np.uint64,
    start: np.uint64,
    quantiles: NDArray[np.float32],
    uniform: NDArray[np.float64],
    normals: NDArray[np.float32],
) -> None:
    """Noise of samples, each from counters of its own.

    Args:
        seed: First word of the key.
        stream: Second word.
        start: Index of the first sample.
        quantiles: Standard normals of 65,536 equal probabilities.
        uniform: Receives numbers within (0, 1), of 32 bits each, two a word, (N, fine).
        normals: Receives quantiles, of 16 bits each, four a word, after the ``fine`` first columns: (N, fine + coarse).
    """
    count, fine = uniform.shape
    coarse = normals.shape[1] - fine
    fine_words = (fine + 1) // 2
    counters = (fine_words + (coarse + 3) // 4 + 3) // 4
    words = np.empty(4 * counters, np.uint64)
    for row in range(count):
        _fill(seed, stream, (start + _U(row)) * _U(counters), words)
        for k in range(fine):
            bits = words[k // 2]
            bits = (bits >> _HALF_WORD if k % 2 else bits) & _LOW_WORD
            uniform[row, k] = (float(bits) + 0.5) / 2.0**32
        # Four numbers of every whole word, and what is left over.
        whole = coarse // 4
        for k in range(whole):
            bits, place = words[fine_words + k], fine + 4 * k
            for part in range(4):
                normals[row, place + part] = quantiles[(bits >> (_QUARTER * _U(part))) & _LOW_QUARTER]
        for k in range(4 * whole, coarse):
            bits = words[fine_words + whole] >> (_QUARTER * _U(k - 4 * whole))
            normals[row, fine + k] = quantiles[bits & _LOW_QUARTER]
