"""What one sample is, what conditions it, and the laws it obeys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..errors import ConfigError, did_you_mean
from .conditions import Condition, Frozen
from .layers import Layer, beside
from .symmetries import Image, Motion, Symmetry, generators, group
from .units import DENSITY, in_mev

_MOST_NUMBERS = 1 << 24  # a sample of 64 MiB: more is a slip, and would fill the memory
_SAME_DEPTH = 1e-6  # mm: sums of thicknesses are rounded


class Family(Frozen):
    """What one sample is, what conditions it, and the laws it obeys.

    Attributes:
        name: Short name, used on the command line and in files.
        kind: ``calorimeter`` (samples are voxel energies) or ``map`` (samples are density maps).
        description: One sentence for people.
        unit: Unit of a voxel or pixel in shards and in Python.
        conditions: Physics parameters; for a calorimeter the first is the incident energy (role ``energy``).
        layers: Calorimeter layers in the order in which their voxels follow each other.
        pixels: Map size (H, W).
        box_size: Side of the map in Mpc/h (0 when it has none).
        low_pixels: Size (h, w) of the map of the same box at low resolution that each map comes with, pixels of which
            cover several of its own; none: maps are no pairs.
        depth: What a map is projected through, in Mpc/h (0 when nothing says).
        threshold: Read-out threshold in ``unit``; generated voxels below it are exactly zero.
        symmetries: Of maps: exact symmetries of the simulation. Of showers: those that are used. Training replaces
            them by the ones that the layers allow (:meth:`proposed_symmetries`) and its showers do not reject, whatever
            a table says; ``compare`` takes images by those given for copies.
        conserves_energy: Whether a shower's voxels add up to at most the incident energy.
        max_response: Largest plausible deposited / incident energy; more is an error in the data's units.
        knee: Energy scale (in ``unit``) at which the critic's voxel scale bends from linear to logarithmic.
    """

    name: str
    kind: Literal["calorimeter", "map"] = "calorimeter"
    description: str = ""
    unit: str = "MeV"
    conditions: tuple[Condition, ...] = ()
    layers: tuple[Layer, ...] = ()
    pixels: tuple[int, int] | None = None
    low_pixels: tuple[int, int] | None = None
    box_size: float = Field(default=0.0, ge=0)
    depth: float = Field(default=0.0, ge=0)
    threshold: float = Field(default=0.0, ge=0)
    symmetries: tuple[Symmetry, ...] = ()
    conserves_energy: bool = False
    max_response: float = Field(default=3.0, gt=0)
    knee: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Family:
        if self.voxels > _MOST_NUMBERS:
            raise ValueError(f"a sample has at most {_MOST_NUMBERS} numbers, got {self.voxels}")
        if self.kind == "calorimeter":
            if not self.layers or self.pixels is not None:
                raise ValueError("a calorimeter family has layers and no pixels")
            if not self.conditions or self.conditions[0].role != "energy":
                raise ValueError("the first condition of a calorimeter family is the incident energy, a number")
            allowed = list(generators(self.layers))
            if set(self.symmetries) - set(allowed):
                raise ValueError(f"the layers allow the symmetries {allowed}, got {list(self.symmetries)}")
            if 0 < len(self.depths) < len(self.layers):
                raise ValueError("either all layers have a depth z, or none")
            crossing = [i for i, (a, b) in enumerate(pairwise(self.depths)) if b[0] < a[1] - _SAME_DEPTH]
            if crossing:
                raise ValueError(f"layer {crossing[0] + 1} begins (z) before layer {crossing[0]} ends")
        elif self.pixels is None or self.layers:
            raise ValueError("a map family has pixels and no layers")
        elif "swap-xy" in self.symmetries:
            raise ValueError("symmetries of maps are 'mirror-x', 'mirror-y', 'roll' and 'turn'")
        if self.kind == "map" and any(c.labels for c in self.conditions):
            raise ValueError("conditions of maps are numbers: they are judged by how maps change with them")
        if self.low_pixels is not None:
            if self.pixels is None:
                raise ValueError("only maps come in pairs of low and high resolution")
            rest = [high % low if low > 0 else 1 for high, low in zip(self.pixels, self.low_pixels, strict=True)]
            if any(rest) or self.pixels[0] * self.low_pixels[1] != self.pixels[1] * self.low_pixels[0]:
                raise ValueError(f"maps of {self.pixels} pixels are no multiple of those of {self.low_pixels}")
        names = [c.name for c in self.conditions]
        if len(set(names)) != len(names):
            raise ValueError(f"condition names must differ, got {names}")
        if sum(c.role == "energy" for c in self.conditions) > 1:
            raise ValueError("at most one condition is the incident energy (role 'energy')")
        return self

    def __eq__(self, other: object) -> bool:
        # By fields: pydantic would compare cached arrays too, which have no truth value.
        return isinstance(other, Family) and all(getattr(self, n) == getattr(other, n) for n in Family.model_fields)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.unit, self.layers, self.pixels))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample in memory: (V,) for showers, (H, W) for maps."""
        return self.pixels if self.pixels is not None else (self.voxels,)

    @property
    def voxels(self) -> int:
        """Numbers in one sample (V)."""
        return math.prod(self.pixels) if self.pixels else sum(math.prod(layer.shape) for layer in self.layers)

    @cached_property
    def layer_bounds(self) -> tuple[int, ...]:
        """Where each layer starts in the voxel axis, and the end: L + 1 numbers."""
        return tuple(accumulate((math.prod(layer.shape) for layer in self.layers), initial=0))

    @cached_property
    def layer_slices(self) -> tuple[slice, ...]:
        """The voxels of each layer."""
        return tuple(slice(a, b) for a, b in zip(self.layer_bounds, self.layer_bounds[1:], strict=False))

    @cached_property
    def layer_of_voxel(self) -> NDArray[np.int64]:
        """Position of the layer each voxel belongs to, (V,)."""
        return np.repeat(np.arange(len(self.layers)), np.diff(self.layer_bounds))

    @cached_property
    def layer_numbers(self) -> tuple[int, ...]:
        """The detector's own layer numbers, L of them."""
        return tuple(i if layer.index is None else layer.index for i, layer in enumerate(self.layers))

    @property
    def depths(self) -> tuple[tuple[float, float], ...]:
        """Depth in mm at which each layer begins and ends, L pairs; empty where it is not known."""
        return tuple(layer.z for layer in self.layers if layer.z is not None)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Voxel centres (x, y) in mm, (V, 2)."""
        return np.concatenate([layer.centres for layer in self.layers])

    @property
    def neighbours(self) -> NDArray[np.int64]:
        """Voxels before and after each one along both axes of its layer and in depth, (3, 2, V); itself where none is.

        In depth, those of the layers before and after with cells at the same places.
        """
        found = np.empty((3, 2, self.voxels), dtype=np.int64)
        found[2] = np.arange(self.voxels)
        for layer, part in zip(self.layers, self.layer_slices, strict=True):
            found[:2, :, part] = beside(layer) + part.start
        for i, (a, b) in enumerate(pairwise(self.with_depths(()).layers)):
            if a.model_copy(update={"index": None}) == b.model_copy(update={"index": None}):
                here, behind = self.layer_slices[i : i + 2]
                found[2, 1, here], found[2, 0, behind] = np.r_[behind], np.r_[here]
        return found

    @property
    def images(self) -> tuple[Image, ...]:
        """The group that a shower's symmetries generate, the identity first."""
        return group(self.layers, self.symmetries, self.voxels)

    def motion(self, image: Image, conditions: Sequence[str]) -> Motion | None:
        """What an image does to the named conditions; None if that is not known."""
        return image.motion([self.condition(name) for name in conditions])

    def proposed_symmetries(self, conditions: Sequence[str] = ()) -> tuple[Symmetry, ...]:
        """Symmetries of showers that the layers allow, and for which it is known what they do to the named conditions.

        They are mirror images, the exchange of x and y where all layers are square, and a turn by the sector that all
        layers with sectors share. They are the read-out's; whether they are the showers' is for showers to say.
        """
        found = generators(self.layers) if self.layers else {}
        return tuple(name for name, image in found.items() if self.motion(image, conditions) is not None)

    def with_symmetries(self, symmetries: Sequence[Symmetry]) -> Family:
        """The family with these symmetries."""
        return Family.model_validate({**self.model_dump(), "symmetries": tuple(symmetries)})

    def lines(self, conditions: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64] | None:
        """The straight line that each particle enters on, from conditions with the roles ``impact`` and ``angle``.

        Args:
            conditions: Of N showers by name, in the family's units.

        Returns:
            Impact point (x, y) in mm, and tangents of the direction along x and y, (2, 2, N); what is no condition is
            0. None if there is neither, or if they are others than ``impact_x``, ``impact_y``, ``theta`` with ``phi``.
        """
        known = {c.name: c for c in self.conditions if c.name in conditions and c.role in ("impact", "angle")}
        angles = {name for name, condition in known.items() if condition.role == "angle"}
        if not known or angles not in (set(), {"theta", "phi"}) or not set(known) - angles <= {"impact_x", "impact_y"}:
            return None
        columns = {name: np.asarray(conditions[name], dtype=np.float64) for name in known}
        nothing = np.zeros_like(next(iter(columns.values())))
        impact = [columns.get(name, nothing) for name in ("impact_x", "impact_y")]
        theta, phi = (
            columns.get(name, nothing) * (1.0 if name in known and known[name].unit == "rad" else math.pi / 180)
            for name in ("theta", "phi")
        )
        return np.array([impact, [np.tan(theta) * np.cos(phi), np.tan(theta) * np.sin(phi)]])

    def condition(self, name: str) -> Condition:
        """The condition of that name.

        Raises:
            ConfigError: If the family has none of that name.
        """
        known = {condition.name: condition for condition in self.conditions}
        if name in known:
            return known[name]
        raise ConfigError(f"family '{self.name}' has no condition '{name}'", found=name, hint=did_you_mean(name, known))

    @property
    def energy(self) -> Condition | None:
        """The incident energy of showers; None of maps."""
        return next((c for c in self.conditions if c.role == "energy"), None) if self.kind == "calorimeter" else None

    def require_energy(self) -> Condition:
        """The incident energy.

        Raises:
            ConfigError: If samples have none.
        """
        return self.energy or self.condition("incident_energy")

    @property
    def has_realisations(self) -> bool:
        """Whether several samples may be cut from one simulated box, and show the same structures."""
        return self.kind == "map"

    @property
    def is_density(self) -> bool:
        """Whether samples are densities over the mean density of their box."""
        return self.kind == "map" and self.unit == DENSITY

    @property
    def factor(self) -> int:
        """How many pixels a side one of low resolution covers; 1 where there are no pairs."""
        return self.pixels[0] // self.low_pixels[0] if self.pixels and self.low_pixels else 1

    def unpaired(self) -> Family:
        """The family of the maps alone."""
        return self if self.low_pixels is None else self.model_copy(update={"low_pixels": None})

    @property
    def low(self) -> Family:
        """The family of the maps of low resolution alone.

        Raises:
            ConfigError: If there are none.
        """
        if self.low_pixels is None:
            raise ConfigError(
                f"family '{self.name}' has no maps of low resolution",
                expected="a family of pairs, each map with one of low resolution beside it",
            )
        return self.model_copy(update={"pixels": self.low_pixels, "low_pixels": None, "name": f"{self.name}-low"})

    @property
    def summary(self) -> str:
        """Name and size: families of one name may differ in their layers, or in the box of their maps."""
        if self.kind == "map":
            return f"{self.name}, {self.pixels} pixels, box {self.box_size:g} Mpc/h, {self.depth:g} Mpc/h deep"
        depth = f", {self.depths[-1][1]:g} mm deep" if self.depths else ""
        return f"{self.name}, {self.voxels} voxels in {len(self.layers)} layers{depth}"

    @property
    def shapes(self) -> str:
        """What one sample is, as ``showers 3x96+12x12+12x6`` or ``maps 64x64``; equal layers are counted."""
        if self.kind == "map":
            return f"maps {'x'.join(map(str, self.sample_shape))}"
        sizes = itertools.groupby("x".join(map(str, layer.shape)) for layer in self.layers)
        counted = ((size, len(list(equal))) for size, equal in sizes)
        return f"showers {'+'.join(size if n == 1 else f'{n}*({size})' for size, n in counted)}"

    def __repr__(self) -> str:
        return f"Family({self.name}: {self.shapes}; {', '.join(c.name for c in self.conditions) or 'no conditions'})"

    __str__ = __repr__

    @property
    def unit_in_mev(self) -> float:
        """The unit of voxels in MeV; 1 for any other unit."""
        return in_mev(self.unit)

    @cached_property
    def radii(self) -> NDArray[np.float64]:
        """Distance of every voxel's centre from the axis in mm, (V,)."""
        return np.concatenate([layer.radius for layer in self.layers])

    @property
    def labelled(self) -> dict[str, tuple[str, ...]]:
        """The labels of the conditions that have some, by name."""
        return {c.name: c.labels for c in self.conditions if c.labels}

    def labels(self, name: str) -> tuple[str, ...]:
        """The labels of a condition; none if it has none, or the family no such condition."""
        return self.labelled.get(name, ())

    def with_condition(self, condition: Condition) -> Family:
        """The family with a condition added, or put in the place of the one of its name."""
        if condition in self.conditions:
            return self
        conditions = {c.name: c for c in self.conditions} | {condition.name: condition}
        return Family.model_validate({**self.model_dump(), "conditions": tuple(conditions.values())})

    def with_depths(self, depths: Sequence[tuple[float, float]]) -> Family:
        """The family with layers from and to these depths in mm, L pairs that follow each other, or none."""
        if tuple(depths) == self.depths:
            return self
        pairs: Sequence[tuple[float, float] | None] = depths or [None] * len(self.layers)
        layers = zip(self.layers, pairs, strict=True)
        return self.model_copy(update={"layers": tuple(layer.model_copy(update={"z": z}) for layer, z in layers)})

    def joined(self, other: Family) -> Family:
        """The family of samples of both, which have the same cells: its ranges of conditions hold both's."""
        family = self.with_depths(other.depths) if other.depths and not self.depths else self
        theirs = {c.name: c for c in other.conditions if not c.labels}
        for mine in (c for c in self.conditions if c.name in theirs and c.unit == theirs[c.name].unit):
            low, high = min(mine.low, theirs[mine.name].low), max(mine.high, theirs[mine.name].high)
            if (low, high) != (mine.low, mine.high) and (low > 0 or mine.scale == "linear"):
                family = family.with_condition(mine.model_copy(update={"low": low, "high": high}))
        return family

    def same_cells(self, other: Family) -> bool:
        """Whether the layers of the two families have the same cells, whatever their depths."""
        return self.layers == other.layers or self.with_depths(()).layers == other.with_depths(()).layers

    def same_samples(self, other: Family) -> bool:
        """Whether samples of the two families can be compared voxel by voxel; depths count where both know theirs."""
        mine = (self.kind, self.unit, self.pixels, self.box_size)
        if mine != (other.kind, other.unit, other.pixels, other.box_size) or not self.same_cells(other):
            return False
        if self.depths and other.depths:
            return np.allclose(self.depths, other.depths, rtol=0, atol=_SAME_DEPTH)
        return math.isclose(self.depth, other.depth) if self.depth and other.depth else True
