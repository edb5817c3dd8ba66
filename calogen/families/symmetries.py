"""Symmetries of a calorimeter's read-out: what they do to its cells, and to impact points and directions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .conditions import Condition
from .layers import Layer

Symmetry = Literal["mirror-x", "mirror-y", "swap-xy", "turn", "roll"]
"""Names of symmetries. ``turn`` is a quarter turn of maps; of cylinders, a turn by a sector that all layers share."""

_REFLECTIONS: dict[Symmetry, list[list[float]]] = {
    "mirror-x": [[-1, 0], [0, 1]],
    "mirror-y": [[1, 0], [0, -1]],
    "swap-xy": [[0, 1], [1, 0]],
}


@dataclass(frozen=True, eq=False)
class Motion:
    """What a symmetry does to conditions, (N, C) in their units: a linear map, then azimuths within their full turn.

    Attributes:
        linear: (C, C).
        offset: (C,).
        start: Where the range of an azimuth begins, (C,).
        period: Its full turn, 0 for all other conditions, (C,).
    """

    linear: NDArray[np.float64]
    offset: NDArray[np.float64]
    start: NDArray[np.float64]
    period: NDArray[np.float64]

    @property
    def rate(self) -> NDArray[np.float64]:
        """One over the period, 0 where there is none, (C,)."""
        return np.divide(1, self.period, out=np.zeros_like(self.period), where=self.period > 0)

    @property
    def still(self) -> bool:
        """Whether it leaves every condition as it is."""
        return bool((self.linear == np.eye(len(self.linear))).all() and not self.offset.any())

    def __call__(self, conditions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The conditions (N, C) of the image of a shower with conditions (N, C)."""
        if self.still:
            return conditions
        moved = conditions @ self.linear.T + self.offset
        return np.asarray(moved - np.floor((moved - self.start) * self.rate) * self.period, np.float32)


@dataclass(frozen=True, eq=False)
class Image:
    """An element of the group that a read-out's symmetries generate.

    Attributes:
        order: Voxel order, (V,): ``showers[:, order]`` are the images of showers (N, V).
        plane: What it does to x and y, (2, 2) orthogonal.
    """

    order: NDArray[np.int64]
    plane: NDArray[np.float64]

    def motion(self, conditions: Sequence[Condition]) -> Motion | None:
        """What it does to conditions, C of them; None if that is not known.

        It is not known where an impact point has only one of the two coordinates needed, and where a condition is an
        impact or an angle, but none of ``impact_x``, ``impact_y``, ``theta`` and ``phi`` (in ``deg`` or ``rad``). The
        identity changes none.
        """
        count, names = len(conditions), [c.name for c in conditions]
        linear, (offset, start, period) = np.eye(count), np.zeros((3, count))
        if (self.plane == np.eye(2)).all():
            return Motion(linear, offset, start, period)
        turned = math.degrees(math.atan2(self.plane[1, 0], self.plane[0, 0])) / 360  # of the direction of x
        for i, condition in enumerate(conditions):
            if condition.behaviour is None:
                return None
            if condition.behaviour == "azimuth":
                linear[i, i], period[i] = round(np.linalg.det(self.plane)), condition.full_turn
                offset[i] = turned * period[i]
                start[i] = (condition.low + condition.high - period[i]) / 2
            if condition.behaviour in ("x", "y"):
                row = self.plane["xy".index(condition.behaviour)]
                for value, name in zip(row, ("impact_x", "impact_y"), strict=True):
                    if value and (name not in names or conditions[names.index(name)].unit != condition.unit):
                        return None
                linear[i] = [dict(zip(("impact_x", "impact_y"), row, strict=True)).get(name, 0.0) for name in names]
        return Motion(linear, offset, start, period)


@functools.lru_cache(maxsize=8)
def generators(layers: tuple[Layer, ...]) -> Mapping[Symmetry, Image]:
    """The symmetries that the geometry of all layers allows and that move any voxel, by name."""
    sectors = math.gcd(*(layer.sectors for layer in layers))
    angle = 2 * math.pi / max(1, sectors)
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    bounds = tuple(accumulate((math.prod(layer.shape) for layer in layers), initial=0))
    found: dict[Symmetry, Image] = {}
    planes: dict[Symmetry, list[list[float]]] = {**_REFLECTIONS, "turn": turn}
    for name, plane in planes.items():
        orders = [order for layer in layers if (order := layer.moved(name, sectors)) is not None]
        if len(orders) == len(layers):
            order = np.concatenate([start + order for start, order in zip(bounds, orders, strict=False)])
            if (order != np.arange(len(order))).any():
                found[name] = Image(order, np.array(plane, np.float64))
    if "turn" in found:  # where sectors turn onto each other, mirrors and turns exchange x and y already
        found.pop("swap-xy", None)
    return found


@functools.lru_cache(maxsize=8)
def group(layers: tuple[Layer, ...], symmetries: tuple[Symmetry, ...], voxels: int) -> tuple[Image, ...]:
    """All images that symmetries of some layers generate, the identity first; of maps that alone."""
    found = [Image(np.arange(voxels), np.eye(2))]
    steps = [image for name, image in generators(layers).items() if name in symmetries] if layers else []
    seen = {_key(found[0])}
    for image in found:  # it grows until no symmetry leads to anything new
        for step in steps:
            following = Image(image.order[step.order], step.plane @ image.plane)
            if _key(following) not in seen:
                seen.add(_key(following))
                found.append(following)
    return tuple(found)


def _key(image: Image) -> tuple[int, ...]:
    return tuple(np.rint(image.plane * 1e6).astype(int).ravel().tolist())
