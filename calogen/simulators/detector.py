"""Calorimeters as Geant4 sees them: a stack of plates, and the read-out that turns deposits into a family's voxels.

In a file, beside the table ``[family]`` that training takes too::

    [detector]
    width = 300.0                                                   # mm, along x and y
    layer_ends = [45.0, 150.0]                                      # depth in mm at which each layer of the family ends
    materials = { Tile = { density = 1.03, formula = { C = 9, H = 10 } } }  # others are Geant4's: G4_Pb, G4_lAr, ...
    [[detector.modules]]
    repeat = 30
    plates = [
        { material = "G4_Fe", thickness = 2.0 },
        { material = "Tile", thickness = 3.0, active = true },
    ]
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, did_you_mean
from ..families import Family, resolve_family
from .engine import read_toml

Signal = Literal["all", "active"]
_MOST_PLATES = 2000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Material(_Frozen):
    """A material that is not in the NIST list of Geant4.

    Attributes:
        density: In g/cm3.
        formula: Atoms of each element in a molecule, ``{Pb = 1, W = 1, O = 4}``.
        state: ``solid``, ``liquid`` or ``gas``.
    """

    density: float = Field(gt=0, le=30)
    formula: dict[str, int] = Field(min_length=1)
    state: Literal["solid", "liquid", "gas"] = "solid"


class Plate(_Frozen):
    """One plate.

    Attributes:
        material: A name of the detector's own ``materials``, or of Geant4's NIST list (``G4_Pb``).
        thickness: In mm.
        active: Whether its deposits are read out when the signal is ``active``.
    """

    material: str = Field(min_length=1)
    thickness: float = Field(gt=0, le=1e4)
    active: bool = False


class Module(_Frozen):
    """Plates that follow each other, several times over.

    Attributes:
        plates: From the front to the back.
        repeat: How often.
    """

    plates: tuple[Plate, ...] = Field(min_length=1)
    repeat: int = Field(default=1, ge=1, le=_MOST_PLATES)


class Detector(_Frozen):
    """A calorimeter of plates in vacuum, hit from the front; z is the depth, x = y = 0 the axis of the read-out.

    Attributes:
        family: Voxels and their layers.
        width: Extent of the plates along x and y in mm.
        modules: The plates from the front to the back.
        layer_ends: Depth in mm at which each read-out layer ends; deposits beyond the last are not read out.
        materials: Materials of its own.
        particle: What it is usually shot with.
        signal: Deposits that are summed by default: in ``all`` plates, or in the ``active`` ones.
        scale: Factor on ``active`` deposits, 1 / (sampling fraction) where the data are so calibrated.
        energy: Usual specification of the incident energy.
        note: What people should know.
    """

    family: Family
    width: float = Field(gt=0, le=1e5)
    modules: tuple[Module, ...] = Field(min_length=1)
    layer_ends: tuple[float, ...]
    materials: dict[str, Material] = {}
    particle: Literal["gamma", "e-", "e+"] = "gamma"
    signal: Signal = "all"
    scale: float = Field(default=1.0, gt=0)
    energy: str = "uniform:1:100GeV"
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Detector:
        if not self.family.layers:
            raise ValueError("the family must be a calorimeter")
        if self.family.unit != "MeV":
            raise ValueError(f"the family's unit must be MeV, got '{self.family.unit}'")
        if len(self.layer_ends) != len(self.family.layers):
            raise ValueError(f"{len(self.family.layers)} layers need as many layer_ends, got {len(self.layer_ends)}")
        if np.any(np.diff([0.0, *self.layer_ends]) <= 0):
            raise ValueError(f"layer_ends must increase from above 0, got {self.layer_ends}")
        if len(self.plates) > _MOST_PLATES:
            raise ValueError(f"at most {_MOST_PLATES} plates, got {len(self.plates)}")
        if self.layer_ends[-1] > self.depth + 1e-6:
            raise ValueError(f"the last layer ends at {self.layer_ends[-1]} mm, behind the plates ({self.depth} mm)")
        return self

    @cached_property
    def plates(self) -> tuple[Plate, ...]:
        """Every plate from the front to the back."""
        return tuple(plate for module in self.modules for _ in range(module.repeat) for plate in module.plates)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Depths in mm between which the plates lie, (plates + 1,); rounded, so that sums meet layer ends exactly."""
        return np.round(np.cumsum([0.0, *(plate.thickness for plate in self.plates)]), 6)

    @property
    def depth(self) -> float:
        """Thickness of the whole stack in mm."""
        return float(self.edges[-1])

    def voxel(
        self, x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64], plate: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The voxel that holds each deposit, and V for those outside all of them.

        Args:
            x: Positions in mm, (D,).
            y: Positions in mm, (D,).
            z: Depths in mm, (D,).
            plate: The plate each lies in, which decides where a depth falls on a boundary, (D,).

        Returns:
            Indices into the family's voxel axis, (D,).
        """
        family = self.family
        inside = np.clip(z, self.edges[plate], np.nextafter(self.edges[plate + 1], 0))
        layer = np.searchsorted(self.layer_ends, inside, side="right")
        found = np.full(len(x), family.voxels)
        for kind in set(family.layers):
            alike = np.array([*(la == kind for la in family.layers), False])
            mine = np.flatnonzero(alike[layer])
            cell = kind.cell_at(x[mine], y[mine])
            start = np.asarray(family.layer_bounds)[layer[mine]]
            found[mine] = np.where(cell >= 0, start + cell, family.voxels)
        return found


GEOMETRIES = ("calogan", "2")
"""Detectors in the box: files in ``calogen/data/geant4``."""


def load_detector(source: str | Path) -> Detector:
    """A detector in the box by its name, or one from a TOML file with the tables ``[family]`` and ``[detector]``.

    Args:
        source: ``calogan``, ``2``, or a path that ends in ``.toml``.

    Raises:
        ConfigError: If there is no such detector, or the file does not describe one.
    """
    path = Path(source)
    if str(source) in GEOMETRIES:
        path = Path(str(files("calogen.data").joinpath("geant4", f"{source}.toml")))
    if path.suffix != ".toml":
        hint = did_you_mean(str(source), GEOMETRIES)
        raise ConfigError("unknown geometry", found=source, expected="a name, or a .toml file", hint=hint)
    table = read_toml(path)
    if not isinstance(table.get("detector"), dict) or not isinstance(table.get("family"), dict | str):
        raise ConfigError(
            "a detector needs the tables [family] and [detector]", where=path, found=", ".join(table) or "nothing"
        )
    family = resolve_family(table["family"])
    try:
        return Detector(family=family, **table["detector"])
    except (ValidationError, TypeError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError("the family belongs in its own table [family]", where=path) from None
        first = error.errors()[0]
        raise ConfigError(
            f"the detector is not valid: {first['msg'].removeprefix('Value error, ')}",
            where=f"{path}: {'.'.join(['detector', *(str(part) for part in first['loc'])])}",
            found=first["input"] if first["loc"] else None,
        ) from None
