"""Layers of a calorimeter: their cells, centres and mirror images."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .conditions import _Frozen


class CartesianLayer(_Frozen):
    """A layer read out in n_x by n_y rectangular cells; the second index (y) runs fastest.

    Attributes:
        shape: Cells along x and y.
        size: Full extent along x and y in mm, centred on the axis.
        index: The detector's own number of the layer (its position in the family when absent).
    """

    geometry: Literal["cartesian"] = "cartesian"
    shape: tuple[int, int]
    size: tuple[float, float]
    index: int | None = None

    @model_validator(mode="after")
    def _positive(self) -> CartesianLayer:
        if min(self.shape) < 1 or min(self.size) <= 0:
            raise ValueError(f"a layer needs at least one cell and a positive size, got {self.shape}, {self.size}")
        return self

    @property
    def centres(self) -> NDArray[np.float64]:
        """Cell centres (x, y) in mm, shape (V_layer, 2)."""
        axes = [(np.arange(n) + 0.5) * (s / n) - s / 2 for n, s in zip(self.shape, self.size, strict=True)]
        x, y = np.meshgrid(*axes, indexing="ij")
        return np.stack([x.ravel(), y.ravel()], axis=1)

    def mirrored(self, axis: int) -> NDArray[np.int64]:
        """Cell order after mirroring x (axis 0) or y (axis 1), shape (V_layer,)."""
        return np.flip(np.arange(math.prod(self.shape)).reshape(self.shape), axis).ravel()


class CylindricalLayer(_Frozen):
    """A layer read out in rings and sectors around the particle's axis; the radius runs fastest.

    Attributes:
        n_alpha: Sectors, equal in angle, starting at alpha = -pi.
        r_edges: Ring edges in mm, increasing.
        index: The detector's own number of the layer (its position in the family when absent).
    """

    geometry: Literal["cylindrical"] = "cylindrical"
    n_alpha: int = Field(ge=1)
    r_edges: tuple[float, ...] = Field(min_length=2)
    index: int | None = None

    @model_validator(mode="after")
    def _increasing(self) -> CylindricalLayer:
        if any(b <= a for a, b in zip(self.r_edges, self.r_edges[1:], strict=False)):
            raise ValueError(f"r_edges must increase, got {self.r_edges}")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along alpha and r."""
        return self.n_alpha, len(self.r_edges) - 1

    @property
    def polar(self) -> NDArray[np.float64]:
        """Cell centres (alpha in rad, r in mm), shape (V_layer, 2)."""
        edges = np.asarray(self.r_edges)
        alpha = (np.arange(self.n_alpha) + 0.5) * (2 * np.pi / self.n_alpha) - np.pi
        a, r = np.meshgrid(alpha, (edges[:-1] + edges[1:]) / 2, indexing="ij")
        return np.stack([a.ravel(), r.ravel()], axis=1)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Cell centres (x, y) = (r cos alpha, r sin alpha) in mm, shape (V_layer, 2)."""
        alpha, r = self.polar.T
        return np.stack([r * np.cos(alpha), r * np.sin(alpha)], axis=1)

    def mirrored(self, axis: int) -> NDArray[np.int64]:
        """Cell order after mirroring x (axis 0) or y (axis 1), shape (V_layer,)."""
        turn = 0 if axis else self.n_alpha // 2  # y -> -y is alpha -> -alpha, x -> -x is half a turn more
        sectors = np.roll(np.arange(self.n_alpha)[::-1], turn)
        return np.arange(math.prod(self.shape)).reshape(self.shape)[sectors].ravel()


Layer = Annotated[CartesianLayer | CylindricalLayer, Field(discriminator="geometry")]
