"""Families of simulations: the only place that knows a geometry, a unit or a parameter name.

A family says what one sample is (the voxels of a calorimeter shower, the pixels of a density map), which physics
parameters condition it, and which laws it obeys. Everything else in calogen is shaped by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from .errors import ConditionError, ConfigError, did_you_mean

ENERGY_UNITS = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
"""Energy units that requests may use, in MeV."""

LABEL = r"[^\s,:;=\[\]/\\]+"
"""What a label is written with, as a regular expression: anything but the signs that texts with labels are made of."""

_POSITIVE = ("Omega_m", "sigma_8")  # no universe is without matter, or smooth

Symmetry = Literal["mirror-x", "mirror-y", "roll", "turn"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Frozen):
    """A physics parameter that samples are conditioned on.

    Attributes:
        name: The name by which data files, command line and Python match it.
        unit: Its unit in shards and in Python (``MeV`` for energies), empty when dimensionless.
        low: Lower end of the usual range, in ``unit``.
        high: Upper end of the usual range, in ``unit``.
        scale: ``log`` if the physics goes with its logarithm; decides network scaling and analysis bins.
        labels: Of a condition that is one of several names (the particle), these names; it is stored as their number,
            0, 1, ..., and low and high follow. People write the names.
    """

    name: str
    unit: str = ""
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    labels: tuple[str, ...] = ()

    @classmethod
    def labelled(cls, name: str, labels: Sequence[str]) -> Condition:
        """A condition that is one of some names."""
        return cls(name=name, low=0, high=len(labels) - 1, labels=tuple(labels))

    @model_validator(mode="before")
    @classmethod
    def _numbered(cls, given: Any) -> Any:
        labels = given.get("labels") if isinstance(given, Mapping) else None
        return {"low": 0, "high": len(labels) - 1, **given} if isinstance(labels, list | tuple) and labels else given

    @model_serializer(mode="wrap")
    def _without_labels(self, handler: Any) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)  # files of conditions without labels stay as they always were
        return found if self.labels else {key: value for key, value in found.items() if key != "labels"}

    @model_validator(mode="after")
    def _consistent(self) -> Condition:
        if self.labels:
            wrong = next((label for label in self.labels if not re.fullmatch(LABEL, label)), None)
            if wrong is not None:
                rule = "no spaces, and none of , : ; = [ ] /"
                raise ValueError(f"condition '{self.name}': '{wrong}' is not a label: {rule}")
            if len(set(self.labels)) < max(2, len(self.labels)):
                raise ValueError(f"condition '{self.name}': at least two labels, all different, got {self.labels}")
            if self.unit or self.scale == "log" or (self.low, self.high) != (0, len(self.labels) - 1):
                raise ValueError(f"condition '{self.name}': labels have no unit, no scale and no range")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"condition '{self.name}': low must be below high, got {self.low} and {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"condition '{self.name}': a logarithmic scale needs low > 0, got {self.low}")
        return self

    def possible(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which values (N,), in ``unit`` or numbers of labels, there can be at all, whatever a surrogate knows."""
        if self.labels:
            return np.isin(values, np.arange(len(self.labels)))
        return np.asarray((np.abs(values) <= self._largest) & ((values > 0) | (not self._positive)))

    @property
    def domain(self) -> str:
        """The values there can be, for messages."""
        if self.labels:
            return ", ".join(f"{number} ({label})" for number, label in enumerate(self.labels))
        most = f"{self._largest:g} {self.unit}".rstrip()
        return f"finite values above 0, at most {most}" if self._positive else f"finite values from -{most} to {most}"

    @property
    def _largest(self) -> float:  # far beyond the usual: a damaged file or a wrong unit; squares fit single precision
        return min(1000 * max(abs(self.low), abs(self.high)), 1e18)

    @property
    def _positive(self) -> bool:
        return self.scale == "log" or self.unit in ENERGY_UNITS or self.name in _POSITIVE

    def code(self, label: str) -> float:
        """The number of a label.

        Raises:
            ConditionError: If there is no such label.
        """
        if label not in self.labels:
            raise ConditionError(
                f"'{label}' is not a label of '{self.name}'",
                expected=", ".join(self.labels) or "a number: it has no labels",
                found=label,
                hint=did_you_mean(label, self.labels),
            )
        return float(self.labels.index(label))

    def covered(self, low: float, high: float) -> tuple[float, float]:
        """The range that data reaching from ``low`` to ``high`` cover: the usual one where they come within 1 % of it.

        Random data never reach the ends they were drawn between.
        """
        ends = np.array([self.low, self.high, low, high])
        if self.scale == "log" and low > 0:
            ends = np.log(ends)
        near = abs(ends[:2] - ends[2:]) <= 0.01 * (ends[1] - ends[0])
        return (self.low if near[0] else low), (self.high if near[1] else high)


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


class Family(_Frozen):
    """What one sample is, what conditions it, and the laws it obeys.

    Attributes:
        name: Short name, used on the command line and in files.
        kind: ``calorimeter`` (samples are voxel energies) or ``map`` (samples are density maps).
        description: One sentence for people.
        unit: Unit of a voxel or pixel in shards and in Python.
        conditions: Physics parameters; for a calorimeter the first is ``incident_energy``.
        layers: Calorimeter layers in the order in which their voxels follow each other.
        pixels: Map size (H, W).
        box_size: Side of the map in Mpc/h (0 when it has none).
        depth: What a map is projected through, in Mpc/h (0 when nothing says).
        threshold: Read-out threshold in ``unit``; generated voxels below it are exactly zero.
        symmetries: Exact symmetries of the simulation, used as augmentation.
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
    box_size: float = Field(default=0.0, ge=0)
    depth: float = Field(default=0.0, ge=0)
    threshold: float = Field(default=0.0, ge=0)
    symmetries: tuple[Symmetry, ...] = ()
    conserves_energy: bool = False
    max_response: float = Field(default=3.0, gt=0)
    knee: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Family:
        if self.kind == "calorimeter":
            if not self.layers or self.pixels is not None:
                raise ValueError("a calorimeter family has layers and no pixels")
            if not self.conditions or self.conditions[0].name != "incident_energy" or self.conditions[0].labels:
                raise ValueError("the first condition of a calorimeter family is 'incident_energy', a number")
            if {"roll", "turn"} & set(self.symmetries):
                raise ValueError("calorimeter symmetries are 'mirror-x' and 'mirror-y'")
            odd = [i for i, la in enumerate(self.layers) if la.geometry == "cylindrical" and la.n_alpha % 2]
            if "mirror-x" in self.symmetries and odd:
                raise ValueError(f"mirror-x needs an even number of sectors in layers {odd}")
        elif self.pixels is None or self.layers:
            raise ValueError("a map family has pixels and no layers")
        if self.kind == "map" and any(c.labels for c in self.conditions):
            raise ValueError("conditions of maps are numbers: they are judged by how maps change with them")
        names = [c.name for c in self.conditions]
        if len(set(names)) != len(names):
            raise ValueError(f"condition names must differ, got {names}")
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

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Voxel centres (x, y) in mm, (V, 2)."""
        return np.concatenate([layer.centres for layer in self.layers])

    @cached_property
    def mirrors(self) -> tuple[NDArray[np.int64], ...]:
        """Voxel orders of the group a shower's mirror symmetries generate, the identity first; each (V,)."""
        group = [np.arange(self.voxels)]
        for axis, symmetry in enumerate(("mirror-x", "mirror-y")):
            if symmetry in self.symmetries and self.layers:
                parts = zip(self.layers, self.layer_bounds, strict=False)
                order = np.concatenate([layer.mirrored(axis) + start for layer, start in parts])
                group += [order[g] for g in group]
        return tuple(group)

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

    def same_samples(self, other: Family) -> bool:
        """Whether samples of the two families can be compared voxel by voxel."""
        deep = math.isclose(self.depth, other.depth) if self.depth and other.depth else True
        mine = (self.kind, self.unit, self.layers, self.pixels, self.box_size)
        return deep and mine == (other.kind, other.unit, other.layers, other.pixels, other.box_size)


def _energy(low: float, high: float) -> Condition:
    return Condition(name="incident_energy", unit="MeV", low=low, high=high, scale="log")


def _rings(layers: Mapping[int, tuple[int, tuple[float, ...]]]) -> tuple[CylindricalLayer, ...]:
    return tuple(CylindricalLayer(index=i, n_alpha=n, r_edges=edges) for i, (n, edges) in layers.items())


def _challenge(name: str, description: str, layers: tuple[CylindricalLayer, ...], **laws: Any) -> Family:
    return Family(name=name, description=f"CaloChallenge data set {name}: {description}", layers=layers, **laws)


# Edges in mm, from the binning files of the CaloChallenge (arXiv:2410.21611).
_PHOTONS = {
    0: (1, (0, 5, 10, 30, 50, 100, 200, 400, 600)),
    1: (10, (0, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 50, 70, 90, 120, 150, 200)),
    2: (10, (0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 250, 300, 350, 400)),
    3: (1, (0, 50, 100, 200, 400, 600)),
    12: (1, (0, 100, 200, 400, 1000, 2000)),
}  # fmt: skip
_PIONS = {
    0: (1, (0, 5, 10, 30, 50, 100, 200, 400, 600)),
    1: (10, (0, 1, 4, 7, 10, 15, 30, 50, 90, 150, 200)),
    2: (10, (0, 5, 10, 20, 30, 50, 80, 130, 200, 300, 400)),
    3: (1, (0, 50, 100, 200, 400, 600)),
    12: (10, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 1000, 2000)),
    13: (10, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 600, 1000, 2000)),
    14: (1, (0, 50, 100, 150, 200, 250, 300, 400, 600, 1000, 2000)),
}  # fmt: skip
_REGULAR_2 = {i: (16, tuple(round(4.65 * k, 3) for k in range(10))) for i in range(45)}
_REGULAR_3 = {i: (50, tuple(round(2.325 * k, 3) for k in range(19))) for i in range(45)}

_CAMELS = (  # in the order of the columns of CAMELS' own params_*.txt
    Condition(name="Omega_m", low=0.1, high=0.5),
    Condition(name="sigma_8", low=0.6, high=1.0),
    *(Condition(name=name, low=0.25, high=4.0, scale="log") for name in ("A_SN1", "A_AGN1")),
    *(Condition(name=name, low=0.5, high=2.0, scale="log") for name in ("A_SN2", "A_AGN2")),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="calogan",
            description="CaloGAN's three-layer lead / liquid-argon calorimeter (arXiv:1705.02355); "
            "deposits of absorber and active material summed",
            conditions=(_energy(1e3, 100e3),),
            layers=(
                CartesianLayer(shape=(3, 96), size=(480, 480)),
                CartesianLayer(shape=(12, 12), size=(480, 480)),
                CartesianLayer(shape=(12, 6), size=(480, 480)),
            ),
            threshold=0.0,  # the simulation records every deposit; 0.3 % of the cells hold less than 15 keV
            symmetries=("mirror-x", "mirror-y"),
            conserves_energy=True,
            max_response=1.01,
        ),
        _challenge(
            "1-photons",
            "photons in the ATLAS calorimeter, 368 voxels",
            _rings(_PHOTONS),
            conditions=(_energy(256, 4_194_304),),
            threshold=1.0,
        ),
        _challenge(
            "1-pions",
            "charged pions in the ATLAS calorimeter, 533 voxels",
            _rings(_PIONS),
            conditions=(_energy(256, 4_194_304),),
            threshold=1.0,
        ),
        _challenge(
            "2",
            "electrons in a silicon-tungsten cylinder, 45 x 16 x 9 voxels",
            _rings(_REGULAR_2),
            conditions=(_energy(1e3, 1e6),),
            threshold=0.01515,
        ),
        _challenge(
            "3",
            "electrons in a silicon-tungsten cylinder, 45 x 50 x 18 voxels",
            _rings(_REGULAR_3),
            conditions=(_energy(1e3, 1e6),),
            threshold=0.01515,
        ),
        Family(
            name="nbody-64",
            kind="map",
            description="Projected N-body density, 64 x 64 pixels of 1 Mpc/h, 8 Mpc/h deep, z = 0, periodic",
            unit="1+delta",
            conditions=(
                Condition(name="Omega_m", low=0.1, high=0.5),
                Condition(name="sigma_8", low=0.6, high=1.0),
            ),
            pixels=(64, 64),
            box_size=64.0,
            depth=8.0,
            symmetries=("mirror-x", "mirror-y", "roll", "turn"),
        ),
        Family(
            name="camels",
            kind="map",
            description="CAMELS Multifield maps (arXiv:2109.10915): 25 Mpc/h wide, 5 Mpc/h deep, periodic",
            unit="1+delta",
            conditions=_CAMELS,
            pixels=(256, 256),
            box_size=25.0,
            depth=5.0,
            symmetries=("mirror-x", "mirror-y", "roll", "turn"),
        ),
    )
}


def resolve_family(source: str | Mapping[str, Any] | Family) -> Family:
    """The family a name or a ``[family]`` table stands for.

    Args:
        source: Name of a built-in family, a mapping with the fields of :class:`Family`, or a family.

    Raises:
        ConfigError: If the name is unknown or the table does not describe a family.
    """
    if isinstance(source, Family):
        return source
    if isinstance(source, str):
        if source in FAMILIES:
            return FAMILIES[source]
        raise ConfigError(f"unknown family '{source}'", found=source, hint=did_you_mean(source, FAMILIES))
    try:
        return Family.model_validate(source)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["family", *(str(part) for part in first["loc"])])
        hint = did_you_mean(str(first["loc"][-1]), Family.model_fields) if first["type"] == "extra_forbidden" else None
        raise ConfigError(
            f"the family table is not valid: {first['msg']}", where=where, found=first.get("input"), hint=hint
        ) from None
