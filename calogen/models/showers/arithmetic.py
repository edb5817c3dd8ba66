"""Compiled arithmetic in single precision that processors do eight or sixteen numbers at a time.

Exponential and logarithm as in Cephes (Moshier 1989), erfc after Numerical Recipes (Press et al. 1992, a Chebyshev fit
of relative error 1.2e-7), the normal quantile function as Wichura's AS 241 (1988), in double precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from ...compiling import compiled, operation
from ..contract import Array

F = np.float32
I = np.int32  # noqa: E741
TILE, _LANES = 6, 16  # rows and columns of a product whose sums fit into registers
ZERO, HALF, ONE, TWO = F(0), F(0.5), F(1), F(2)
ROOT_HALF = F(math.sqrt(0.5))
_LOG2E, _LN2_HIGH, _LN2_LOW = F(1.44269504), F(0.693359375), F(2.12194440e-4)
_SHIFTER, _SHIFTER_BITS = F(12582912.0), I(0x4B400000)  # 1.5 * 2^23: adding it rounds to a whole number
_EXP_LOW, _EXP_HIGH = F(-87.0), F(88.0)
_EXP = tuple(
    map(F, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
)
_E0, _E1, _E2, _E3, _E4, _E5 = _EXP
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = map(
    F,
    (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ),
)
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9 = map(
    F,
    (
        0.17087277,
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
        -1.26551223,
    ),
)


@operation
def _bits(_: Any, _value: Any) -> Any:
    """The 32 bits of a single-precision number, as an integer."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@operation
def _number(_: Any, _bits: Any) -> Any:
    """The single-precision number of 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@operation
def fma(_: Any, _a: Any, _b: Any, _c: Any) -> Any:
    """a * b + c, rounded once where the processor can, in loops and outside them alike."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@compiled
def exp(x: F) -> F:
    """The exponential of x, which is taken within -87 to 88."""
    x = min(max(x, _EXP_LOW), _EXP_HIGH)
    shifted = fma(x, _LOG2E, _SHIFTER)
    exponent = I(_bits(shifted) - _SHIFTER_BITS)
    n = shifted - _SHIFTER
    r = fma(n, _LN2_LOW, fma(n, -_LN2_HIGH, x))
    p = fma(fma(fma(fma(fma(_E0, r, _E1), r, _E2), r, _E3), r, _E4), r, _E5)
    found: F = _number(I(_bits(fma(p, r * r, r) + ONE) + I(exponent << I(23))))
    return found


@compiled
def log(x: F) -> F:
    """The logarithm of x > 0; of 0 it is -88."""
    bits = _bits(x)
    exponent = I(I(bits - I(0x3F3504F3)) >> I(23))  # so that the mantissa is from 0.71 to 1.41
    m = _number(I(bits - I(exponent << I(23)))) - ONE
    k, z = F(exponent), m * m
    p = fma(fma(fma(fma(_L0, m, _L1), m, _L2), m, _L3), m, _L4)
    p = fma(fma(fma(fma(p, m, _L5), m, _L6), m, _L7), m, _L8)
    small = fma(m * z, p, fma(k, -_LN2_LOW, -HALF * z))
    found: F = fma(k, _LN2_HIGH, m + small)
    return found


@compiled
def erfc(x: F) -> F:
    """The complementary error function of x."""
    z = abs(x)
    t = ONE / fma(HALF, z, ONE)
    p = fma(fma(fma(fma(fma(_C0, t, _C1), t, _C2), t, _C3), t, _C4), t, _C5)
    p = fma(fma(fma(fma(p, t, _C6), t, _C7), t, _C8), t, _C9)
    tail: F = t * exp(fma(-z, z, p))
    return TWO - tail if x < ZERO else tail


@compiled
def clipped(x: F, low: F, high: F) -> F:
    """The number between two others that is nearest to x."""
    return min(max(x, low), high)


@compiled
def normal_quantile(p: float) -> float:
    """The standard normal number below which a share p of all lie, 0 < p < 1; in double precision."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        above = r * 2509.0809287301226727 + 33430.575583588128105
        above = ((above * r + 67265.770927008700853) * r + 45921.953931549871457) * r + 13731.693765509461125
        above = ((above * r + 1971.5909503065514427) * r + 133.14166789178437745) * r + 3.387132872796366608
        below = r * 5226.495278852545925 + 28729.085735721942674
        below = ((below * r + 39307.89580009271061) * r + 21213.794301586595867) * r + 5394.1960214247511077
        below = ((below * r + 687.1870074920579083) * r + 42.313330701600911252) * r + 1.0
        return q * above / below
    r = math.sqrt(-math.log(p if q < 0 else 1 - p))
    if r <= 5:
        r -= 1.6
        above = r * 7.7454501427834140764e-4 + 0.0227238449892691845833
        above = ((above * r + 0.24178072517745061177) * r + 1.27045825245236838258) * r + 3.64784832476320460504
        above = ((above * r + 5.7694972214606914055) * r + 4.6303378461565452959) * r + 1.42343711074968357734
        below = r * 1.05075007164441684324e-9 + 5.475938084995344946e-4
        below = ((below * r + 0.0151986665636164571966) * r + 0.14810397642748007459) * r + 0.68976733498510000455
        below = ((below * r + 1.6763848301838038494) * r + 2.05319162663775882187) * r + 1.0
    else:
        r -= 5
        above = r * 2.01033439929228813265e-7 + 2.71155556874348757815e-5
        above = ((above * r + 0.0012426609473880784386) * r + 0.026532189526576123093) * r + 0.29656057182850489123
        above = ((above * r + 1.7848265399172913358) * r + 5.4637849111641143699) * r + 6.6579046435011037772
        below = r * 2.04426310338993978564e-15 + 1.4215117583164458887e-7
        below = ((below * r + 1.8463183175100546818e-5) * r + 7.868691311456132591e-4) * r + 0.0148753612908506148525
        below = ((below * r + 0.13692988092273580531) * r + 0.59983220655588793769) * r + 1.0
    return -above / below if q < 0 else above / below


@operation
def _multiply_tile(_: Any, rows: Any, weights: Any, out: Any, row: Any, column: Any) -> Any:
    """Six rows and sixteen columns of a product, from (row, column) on, whose sums stay in registers.

    In the language of the compiler, which finds no such loop by itself: for each k, a row of sixteen weights is
    multiplied with a number of each of the six rows.
    """
    if any(kind.layout != "C" for kind in (rows, weights, out)):
        return None  # which is an error: no such function
    signature = types.void(rows, weights, out, row, column)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        single, whole = ir.FloatType(), ir.IntType(64)
        lanes = ir.VectorType(single, _LANES)
        x, w, y = (
            make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments[:3], strict=False)
        )
        first, column = arguments[3:]
        inner, stride, width = (builder.extract_value(part.shape, 1) for part in (x, w, y))
        kind, name = ir.FunctionType(lanes, [lanes] * 3), f"llvm.fmuladd.v{_LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)

        def place(array: Any, row: Any, stride: Any, column: Any) -> Any:
            return builder.gep(array.data, [builder.add(builder.mul(row, stride), column)])

        numbers = [builder.add(first, whole(i)) for i in range(TILE)]
        sums = [cgutils.alloca_once(builder, lanes) for _ in numbers]
        for total in sums:
            builder.store(ir.Constant(lanes, [0.0] * _LANES), total)
        with cgutils.for_range(builder, inner) as loop:
            row_of_weights = builder.bitcast(place(w, loop.index, stride, column), lanes.as_pointer())
            weight = builder.load(row_of_weights, align=4)
            for number, total in zip(numbers, sums, strict=True):
                value = builder.load(place(x, number, inner, loop.index))
                one = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
                every = builder.shuffle_vector(
                    one, one, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
                )
                builder.store(builder.call(function, [every, weight, builder.load(total)]), total)
        for number, total in zip(numbers, sums, strict=True):
            target = builder.bitcast(place(y, number, width, column), lanes.as_pointer())
            builder.store(builder.load(total), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@compiled
def multiply(rows: Array, weights: Array, out: Array) -> None:
    """The product of rows (R, K) and weights (K, N) into ``out``, (R, N).

    Every element is summed in the order of k, in tiles and in what is left over: libraries choose their order, and bits
    with it, by the number of rows.
    """
    inner, width = weights.shape
    tiled, whole = len(rows) - len(rows) % TILE if width >= _LANES else 0, inner - inner % 4
    for start in range(0, width, _LANES):
        for row in range(0, tiled, TILE):
            _multiply_tile(rows, weights, out, row, min(start, width - _LANES))  # the last one may do some again
    for r in range(tiled, len(rows)):
        for v in range(width):
            out[r, v] = ZERO
        for k in range(0, whole, 4):
            a, b, c, d = rows[r, k], rows[r, k + 1], rows[r, k + 2], rows[r, k + 3]
            for v in range(width):
                so_far = fma(b, weights[k + 1, v], fma(a, weights[k, v], out[r, v]))
                out[r, v] = fma(d, weights[k + 3, v], fma(c, weights[k + 2, v], so_far))
        for k in range(whole, inner):
            a = rows[r, k]
            for v in range(width):
                out[r, v] = fma(a, weights[k, v], out[r, v])


@compiled
def total(values: Array, lanes: Array) -> F:
    """The sum of values (N,): in sixteen lanes, as processors add, whose sums are then added in order."""
    width = 16
    for i in range(width):
        lanes[i] = ZERO
    whole = len(values) - len(values) % width
    for start in range(0, whole, width):
        for i in range(width):
            lanes[i] += values[start + i]
    found = ZERO
    for i in range(width):
        found += lanes[i]
    for v in range(whole, len(values)):
        found += values[v]
    return found


@compiled
def multiply_each(values: Array, factor: F) -> None:
    """Multiply values (N,) with a number, in place."""
    for v in range(len(values)):
        values[v] *= factor


@compiled
def of_layer(matrices: Array, inputs: int, low: int, width: int) -> Array:
    """The matrix (inputs, V_layer) of one layer, whose first voxel is ``low``."""
    return matrices[inputs * low : inputs * (low + width)].reshape(inputs, width)


@compiled
def widest_of(bounds: NDArray[np.int64]) -> int:
    """The largest number of voxels of a layer, of bounds (L + 1,)."""
    widest = 0
    for layer in range(len(bounds) - 1):
        widest = max(widest, bounds[layer + 1] - bounds[layer])
    return widest
