"""ONNX graphs written as arithmetic: values with operators, and the functions that ONNX lacks.

Only operators of the standard's opset 15 are used (:data:`SCATTERING` adds one of 16), so that old runtimes read the
graphs, and only tensors of float32 with the batch as first axis, so that its size stays open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, require

LOWEST, HIGHEST = 15, 21
"""Opsets that graphs can be written for."""
SCATTERING = 16
"""The first opset in which numbers can be added up at places that are computed."""
_NEW_AXES = 18  # from here on the axes of all reductions are an input
_IR = 8  # of ONNX 1.10: later opsets do not need a later one
_HUGE = 1e30
_EXACT = 64.0  # parts of 1, whose squares up to 8 are exact in float32
# erfc(z) = t exp(P(t) - z^2), t = 1 / (1 + z / 2): coefficients of P, highest first. Numerical Recipes, erfcc.
_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip
# erfinv(x) = x P(w), w = -log(1 - x^2), for w < 5 in w - 2.5 and else in sqrt(w) - 3. Giles 2010, GPU Gems 4, ch. 10.
_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_TAILS = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip

Number = float | NDArray[Any]


class Graph:
    """An ONNX graph that grows as its values are computed with.

    Args:
        opset: Of the standard operators.

    Raises:
        ConfigError: If graphs cannot be written for that opset, or onnx is not installed.
    """

    def __init__(self, opset: int, lowest: int = LOWEST) -> None:
        if not lowest <= opset <= HIGHEST:
            raise ConfigError(
                f"the graph cannot be written with operators of opset {opset}",
                where="`opset`",
                expected=f"{lowest} to {HIGHEST}",
                found=opset,
            )
        self.opset = opset
        self._onnx = require("onnx", "export")
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._tensors: list[Any] = []
        self._inputs: list[Any] = []

    def input(self, name: str, *shape: int | str) -> Value:
        """A named input; a side that is a text has any length."""
        self._inputs.append(self._typed(name, shape))
        return Value(self, name)

    def constant(self, number: Number) -> Value:
        """A tensor of the graph: arrays of whole numbers as int64, for indices and shapes, all else as float32."""
        whole = isinstance(number, np.ndarray) and number.dtype.kind in "iu"
        array = np.array(number, np.int64 if whole else np.float32, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._tensors.append(self._onnx.numpy_helper.from_array(array, name))
            self._constants[key] = Value(self, name)
        return self._constants[key]

    def apply(self, operator: str, *inputs: Value | Number, **attributes: Any) -> Value:
        """The output of an operator."""
        return self.first(operator, *inputs, outputs=1, **attributes)

    def first(self, operator: str, *inputs: Value | Number, outputs: int, **attributes: Any) -> Value:
        """The first of several outputs of an operator."""
        values = [value if isinstance(value, Value) else self.constant(value) for value in inputs]
        names = [f"v{len(self._nodes)}{'_' * i}" for i in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, [v.name for v in values], names, **attributes))
        return Value(self, names[0])

    def reduced(self, operator: str, value: Value, axis: int) -> Value:
        """A reduction along an axis, which stays with length 1."""
        if operator == "ReduceSum" or self.opset >= _NEW_AXES:
            return self.apply(operator, value, np.array([axis]), keepdims=1)
        return self.apply(operator, value, axes=[axis], keepdims=1)

    def model(self, outputs: dict[str, tuple[Value, Sequence[int | str]]]) -> bytes:
        """The checked model, as its file holds it.

        Args:
            outputs: Values by the names of outputs, with their shapes.
        """
        helper = self._onnx.helper
        named = [helper.make_node("Identity", [value.name], [name]) for name, (value, _) in outputs.items()]
        typed = [self._typed(name, shape) for name, (_, shape) in outputs.items()]
        graph = helper.make_graph([*self._nodes, *named], "calogen", self._inputs, typed, self._tensors)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="calogen", ir_version=_IR)
        self._onnx.checker.check_model(model, full_check=True)
        made: bytes = model.SerializeToString(deterministic=True)
        return made

    def _typed(self, name: str, shape: Sequence[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, list(shape))


class Value:
    """A tensor that a graph computes.

    Args:
        graph: Where it belongs.
        name: Its name there.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __add__(self, other: Value | Number) -> Value:
        return self.graph.apply("Add", self, other)

    def __radd__(self, other: Number) -> Value:
        return self.graph.apply("Add", other, self)

    def __sub__(self, other: Value | Number) -> Value:
        return self.graph.apply("Sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return self.graph.apply("Sub", other, self)

    def __mul__(self, other: Value | Number) -> Value:
        return self.graph.apply("Mul", self, other)

    def __rmul__(self, other: Number) -> Value:
        return self.graph.apply("Mul", other, self)

    def __truediv__(self, other: Value | Number) -> Value:
        return self.graph.apply("Div", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.graph.apply("Div", other, self)

    def __matmul__(self, other: Value | Number) -> Value:
        return self.graph.apply("MatMul", self, other)

    def __rmatmul__(self, other: Number) -> Value:
        return self.graph.apply("MatMul", other, self)

    def __neg__(self) -> Value:
        return self.graph.apply("Neg", self)

    __array_ufunc__ = None  # arrays leave arithmetic with values to the methods above

    def above(self, other: Value | Number) -> Value:
        """Where it is greater: a tensor of truths."""
        return self.graph.apply("Greater", self, other)

    def below(self, other: Value | Number) -> Value:
        """Where it is less: a tensor of truths."""
        return self.graph.apply("Less", self, other)

    def __and__(self, other: Value) -> Value:
        return self.graph.apply("And", self, other)

    def number(self) -> Value:
        """Truths as 1, and what is not true as 0."""
        return self.graph.apply("Cast", self, to=1)

    def where(self, truth: Value, other: Value | Number) -> Value:
        """Itself where something is true, else another."""
        return self.graph.apply("Where", truth, self, other)

    def at_least(self, low: Value | Number) -> Value:
        """The greater of the two."""
        return self.graph.apply("Max", self, low)

    def at_most(self, high: Value | Number) -> Value:
        """The less of the two."""
        return self.graph.apply("Min", self, high)

    def clipped(self, low: Value | Number, high: Value | Number) -> Value:
        """Between two limits."""
        return self.at_least(low).at_most(high)

    def function(self, name: str) -> Value:
        """An operator of one input, by its name in ONNX."""
        return self.graph.apply(name, self)

    def exp(self) -> Value:
        """Exponential."""
        return self.function("Exp")

    def log(self) -> Value:
        """Natural logarithm."""
        return self.function("Log")

    def sqrt(self) -> Value:
        """Square root."""
        return self.function("Sqrt")

    def square(self) -> Value:
        """Square."""
        return self * self

    def sum(self, axis: int) -> Value:
        """Sum along an axis, which stays."""
        return self.graph.reduced("ReduceSum", self, axis)

    def largest(self, axis: int) -> Value:
        """Largest along an axis, which stays."""
        return self.graph.reduced("ReduceMax", self, axis)

    def columns(self, start: int, stop: int, axis: int = 1) -> Value:
        """A part of an axis."""
        ends = (np.array([number]) for number in (start, stop, axis))
        return self.graph.apply("Slice", self, *ends)

    def take(self, index: Sequence[int] | NDArray[np.int64], axis: int = 1) -> Value:
        """Some places of an axis, in that order."""
        return self.graph.apply("Gather", self, np.asarray(index, np.int64), axis=axis)

    def shaped(self, *sides: int) -> Value:
        """Another shape of the same numbers, behind the batch."""
        return self.graph.apply("Reshape", self, np.array([-1, *sides]))

    def turned(self, *axes: int) -> Value:
        """The axes in another order."""
        return self.graph.apply("Transpose", self, perm=list(axes))

    def among(self, parts: Sequence[int], axis: int = 1) -> list[Value]:
        """Parts of an axis that follow each other, of these lengths."""
        ends = np.cumsum([0, *parts]).tolist()
        return [self.columns(a, b, axis) for a, b in pairwise(ends)]


def joined(values: Sequence[Value], axis: int = 1) -> Value:
    """Values one after the other along an axis."""
    return values[0] if len(values) == 1 else values[0].graph.apply("Concat", *values, axis=axis)


def polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    """A polynomial by Horner's rule, the highest power first."""
    found: Value | float = coefficients[0]
    for coefficient in coefficients[1:]:
        found = x * found + coefficient
    return found if isinstance(found, Value) else x * 0.0 + found


def upper_tail(x: Value) -> Value:
    """Probability that a standard normal exceeds x, which is not negative.

    To a few 1e-7 of itself, where 1 - Erf(x) would be 0 from 4 on. The square of x is taken in two parts, the first of
    which is exact.
    """
    z = x * math.sqrt(0.5)
    t = 1.0 / (z * 0.5 + 1.0)
    whole = (z * _EXACT).function("Floor") * (1.0 / _EXACT)
    rest = (z - whole) * (z + whole)
    return t * (polynomial(t, _ERFC) - rest).exp() * (-whole.square()).exp() * 0.5


def normal_tail(x: Value) -> Value:
    """Probability that a standard normal exceeds x."""
    upper = upper_tail(x.function("Abs"))
    return (1.0 - upper).where(x.below(0.0), upper)


def inverse_tail(tail: Value, other: Value) -> Value:
    """The standard normal that is exceeded with the probability ``tail``, which is 1 - ``other``: both, to be exact."""
    w = -(tail * other * 4.0).log()
    factor = polynomial(w - 2.5, _CENTRE).where(w.below(5.0), polynomial(w.at_least(0.0).sqrt() - 3.0, _TAILS))
    return factor * (other - tail) * math.sqrt(2.0)


def log_sigmoid(x: Value) -> Value:
    """Logarithm of 1 / (1 + exp(-x))."""
    return x.at_most(0.0) - ((-x.function("Abs")).exp() + 1.0).log()


def looked_up(table: Value | Number, position: Value, size: int) -> Value:
    """Straight lines between the points of a table, (..., 1).

    As a sum of hat functions: no place has to be computed, and all runtimes have what it takes.

    Args:
        table: (..., size).
        position: In units of points, 0 to size - 1, (..., 1).
        size: Points.
    """
    hats = (1.0 - (position - np.arange(float(size))).function("Abs")).at_least(0.0)
    return (hats * table).sum(-1)


def increasing(x: Value, size: int) -> Value:
    """The largest number up to each place of the last of two axes, of that size."""
    # Each pass takes the maximum with what lies twice as far away.
    step = 1
    while step < size:
        x = joined([x.columns(0, step), x.columns(step, size).at_least(x.columns(0, size - step))])
        step *= 2
    return x


def ramps(x: Value, knots: NDArray[Any]) -> Value:
    """How far x (..., 1) has come from each of K knots (..., K) to the next, (..., K - 1), 0 to 1."""
    return ((x - knots[..., :-1]) / np.diff(knots)).clipped(0.0, 1.0)


def ratio(above: Value, below: Value | Number, empty: float = 0.0) -> Value:
    """Ratios of numbers that are not negative; a constant where the lower is 0."""
    graph = above.graph
    below = below if isinstance(below, Value) else graph.constant(below)
    return (above / below.at_least(1e-30)).where(below.above(0.0), empty)


def nearest(x: Value) -> Value:
    """1 at the largest of the last axis, else 0."""
    there = 1.0 - x.below(x.largest(-1)).number()
    return there / there.sum(-1)


def lowest_of(x: Value, allowed: NDArray[Any]) -> Value:
    """The lowest along the last axis, where it is allowed (1, else 0)."""
    return -(-(x + (1.0 - allowed) * _HUGE)).largest(-1)
