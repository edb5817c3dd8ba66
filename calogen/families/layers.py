"""Layers of a calorimeter: their cells, centres and mirror images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .conditions import Frozen


class Outline(NamedTuple):
    """How the cells of a layer are drawn.

    Attributes:
        polar: On polar axes; else on straight ones in mm.
        across: Edges along the first axis of :attr:`CartesianLayer.shape`, increasing.
        up: Edges along the second.
        labels: What the two axes are called.
        repeat: How often each cell is drawn along the first axis, to make arcs round.
    """

    polar: bool
    across: NDArray[np.float64]
    up: NDArray[np.float64]
    labels: tuple[str, str]
    repeat: int = 1


class _Layer(Frozen, ABC):
    """What layers have in common; each says its ``shape`` and its cells' ``centres``.

    Attributes:
        z: Depth in mm, from the plane of the impact point, at which the layer begins and ends (none: not known).
    """

    rectangular: ClassVar[bool] = False
    """Whether all cells are rectangles of one size."""
    closed: ClassVar[bool] = False
    """Whether the last cells along the first axis are beside the first ones."""
    z: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.z is not None and not -math.inf < self.z[0] < self.z[1] < math.inf:
            raise ValueError(f"a layer begins before it ends, got z = {self.z} mm")
        return self

    @model_serializer(mode="wrap")
    def _without_depth(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)  # files of families without depths stay as they always were
        return found if found.get("z") else {key: value for key, value in found.items() if key != "z"}

    @property
    @abstractmethod
    def reach(self) -> tuple[float, float]:
        """How far the cells reach from the axis along x and y, in mm."""

    @property
    @abstractmethod
    def centres(self) -> NDArray[np.float64]:
        """Cell centres (x, y) in mm, shape (V_layer, 2)."""

    @property
    def radius(self) -> NDArray[np.float64]:
        """Distance of the cells' centres from the axis in mm, (V_layer,)."""
        x, y = self.centres.T
        return np.asarray(np.hypot(x, y))

    @property
    def axes(self) -> dict[str, NDArray[np.float64]]:
        """Coordinates of the cells along the axes that the layer resolves, in mm, (V_layer,) each."""
        x, y = self.centres.T
        return {"x": x, "y": y, "r": self.radius}

    @property
    @abstractmethod
    def sectors(self) -> int:
        """By how many equal turns about the axis cells fall onto cells in a full circle; 0: by any number."""

    @abstractmethod
    def moved(self, symmetry: str, sectors: int) -> NDArray[np.int64] | None:
        """Cell order (V_layer,) after a symmetry; None if it does not map cells onto cells.

        Args:
            symmetry: ``mirror-x`` (x -> -x), ``mirror-y``, ``swap-xy`` (x <-> y) or ``turn``.
            sectors: How many turns make a full circle.
        """


class CartesianLayer(_Layer):
    """A layer read out in n_x by n_y rectangular cells; the second index (y) runs fastest.

    Attributes:
        shape: Cells along x and y.
        size: Full extent along x and y in mm, centred on the axis.
        index: The detector's own number of the layer (its position in the family when absent).
        z: Depth in mm at which the layer begins and ends.
    """

    rectangular = True
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
    def reach(self) -> tuple[float, float]:
        """How far the cells reach from the axis along x and y, in mm."""
        return self.size[0] / 2, self.size[1] / 2

    @property
    def pitch(self) -> tuple[float, float]:
        """Extent of a cell along x and y in mm."""
        return self.size[0] / self.shape[0], self.size[1] / self.shape[1]

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas of the cells in units that they share, (V_layer,)."""
        return np.ones(math.prod(self.shape))

    @property
    def outline(self) -> Outline:
        """How the cells are drawn: x to the right and y up, in mm."""
        x, y = (np.linspace(-s / 2, s / 2, n + 1) for n, s in zip(self.shape, self.size, strict=True))
        return Outline(False, x, y, ("x [mm]", "y [mm]"))

    def cell_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell at each position (N,) in mm, -1 outside."""
        (n, m), (a, b) = self.shape, self.size
        i = np.floor((x + a / 2) * (n / a)).astype(np.int64)
        j = np.floor((y + b / 2) * (m / b)).astype(np.int64)
        return np.where((i >= 0) & (i < n) & (j >= 0) & (j < m), i * m + j, -1)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Cell centres (x, y) in mm, shape (V_layer, 2)."""
        axes = [(np.arange(n) + 0.5) * (s / n) - s / 2 for n, s in zip(self.shape, self.size, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)

    @property
    def sectors(self) -> int:
        """By how many equal turns about the axis cells fall onto cells in a full circle."""
        return 1  # quarter turns of squares are mirror images with x and y exchanged

    def moved(self, symmetry: str, sectors: int) -> NDArray[np.int64] | None:  # noqa: ARG002
        """Cell order (V_layer,) after a symmetry; None if it does not map cells onto cells."""
        cells = np.arange(math.prod(self.shape)).reshape(self.shape)
        if symmetry in ("mirror-x", "mirror-y"):
            return np.flip(cells, 0 if symmetry == "mirror-x" else 1).ravel()
        square = len(set(self.shape)) == len(set(self.size)) == 1
        return cells.T.ravel() if symmetry == "swap-xy" and square else None


class CylindricalLayer(_Layer):
    """A layer read out in rings and sectors around the particle's axis; the radius runs fastest.

    Attributes:
        n_alpha: Sectors, equal in angle, starting at alpha = -pi.
        r_edges: Ring edges in mm, increasing.
        index: The detector's own number of the layer (its position in the family when absent).
        z: Depth in mm at which the layer begins and ends.
    """

    closed = True
    geometry: Literal["cylindrical"] = "cylindrical"
    n_alpha: int = Field(ge=1)
    r_edges: tuple[float, ...] = Field(min_length=2)
    index: int | None = None

    @model_validator(mode="after")
    def _increasing(self) -> CylindricalLayer:
        if self.r_edges[0] < 0 or any(b <= a for a, b in zip(self.r_edges, self.r_edges[1:], strict=False)):
            raise ValueError(f"r_edges must increase from 0 or more, got {self.r_edges}")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along alpha and r."""
        return self.n_alpha, len(self.r_edges) - 1

    @property
    def reach(self) -> tuple[float, float]:
        """How far the cells reach from the axis along x and y, in mm."""
        return self.r_edges[-1], self.r_edges[-1]

    @property
    def axes(self) -> dict[str, NDArray[np.float64]]:
        """Coordinates of the cells along the axes that the layer resolves, in mm, (V_layer,) each."""
        if self.n_alpha == 1:  # one sector has no direction: its cell centres are not where the energy is
            return {"r": self.radius}
        return super().axes

    @property
    def radius(self) -> NDArray[np.float64]:
        """Distance of the cells' centres from the axis in mm, (V_layer,)."""
        return self.polar[:, 1]

    @property
    def areas(self) -> NDArray[np.float64]:
        """Areas of the cells in units that they share, (V_layer,)."""
        return np.tile(np.diff(np.square(self.r_edges)), self.n_alpha)

    @property
    def outline(self) -> Outline:
        """How the cells are drawn: sectors, and rings of equal width whatever their radii."""
        repeat = max(1, 60 // self.n_alpha)  # straight edges would make few sectors a polygon
        alpha = np.linspace(-np.pi, np.pi, self.n_alpha * repeat + 1)
        rings = np.arange(self.shape[1] + 1, dtype=np.float64)
        return Outline(True, alpha, rings, (f"rings to r = {self.r_edges[-1]:g} mm", ""), repeat)

    def cell_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell at each position (N,) in mm, -1 outside."""
        n, m = self.shape
        turn = (np.arctan2(y, x) + math.pi) * (n / (2 * math.pi))
        sector = np.minimum(turn.astype(np.int64), n - 1)
        ring = np.searchsorted(self.r_edges, np.hypot(x, y), side="right") - 1
        return np.where((ring >= 0) & (ring < m), sector * m + ring, -1)

    @property
    def polar(self) -> NDArray[np.float64]:
        """Cell centres (alpha in rad, r in mm), shape (V_layer, 2)."""
        edges = np.asarray(self.r_edges)
        alpha = (np.arange(self.n_alpha) + 0.5) * (2 * np.pi / self.n_alpha) - np.pi
        return np.stack(np.meshgrid(alpha, (edges[:-1] + edges[1:]) / 2, indexing="ij"), axis=-1).reshape(-1, 2)

    @property
    def centres(self) -> NDArray[np.float64]:
        """Cell centres (x, y) = (r cos alpha, r sin alpha) in mm, shape (V_layer, 2)."""
        alpha, r = self.polar.T
        return np.stack([r * np.cos(alpha), r * np.sin(alpha)], axis=1)

    @property
    def sectors(self) -> int:
        """By how many equal turns about the axis cells fall onto cells in a full circle; 0: by any number."""
        return 0 if self.n_alpha == 1 else self.n_alpha

    def moved(self, symmetry: str, sectors: int) -> NDArray[np.int64] | None:
        """Cell order (V_layer,) after a symmetry; None if it does not map cells onto cells."""
        cells, n = np.arange(math.prod(self.shape)).reshape(self.shape), self.n_alpha
        if n == 1:  # one sector has no direction
            return cells.ravel()
        if symmetry == "turn":
            return np.roll(cells, n // sectors, 0).ravel() if sectors > 1 and n % sectors == 0 else None
        # Sectors start at -pi. y -> -y is alpha -> -alpha; the others are a quarter and half a turn more.
        quarters = ("mirror-y", "swap-xy", "mirror-x").index(symmetry)
        return None if quarters * n % 4 else np.roll(cells[::-1], quarters * n // 4, 0).ravel()


Layer = Annotated[CartesianLayer | CylindricalLayer, Field(discriminator="geometry")]


def beside(layer: Layer) -> NDArray[np.int64]:
    """The cells before and after each one along both axes of a layer, (2, 2, V_layer); itself where there is none."""
    cells = np.arange(math.prod(layer.shape)).reshape(layer.shape)
    found = np.array([[np.roll(cells, step, axis) for step in (1, -1)] for axis in (0, 1)])
    found[1, 0, :, 0], found[1, 1, :, -1] = cells[:, 0], cells[:, -1]
    if not layer.closed:
        found[0, 0, 0], found[0, 1, -1] = cells[0], cells[-1]
    return found.reshape(2, 2, -1)
