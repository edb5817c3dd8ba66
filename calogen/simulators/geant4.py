"""Electromagnetic showers in a stack of plates, simulated by Geant4 through the wheel calzone (extra ``geant4``).

Every shower has a seed of its own, so shower i is the same whichever process makes it and after which others. What
Geant4's electromagnetic physics reads is shipped in ``calogen/data/geant4``; photonuclear reactions and hadrons are
off.

A calorimeter is a stack of plates. In a file, beside the table ``[family]`` that training takes too::

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

import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConditionError, ConfigError, did_you_mean, require
from ..families import ENERGY_UNITS, Condition, Family, resolve_family
from ..storage import read_toml
from .engine import Drawn, OneByOne, stream

Signal = Literal["all", "active"]
PARTICLES = ("gamma", "e-", "e+")
ELEMENTS = ("H", "C", "N", "O", "Al", "Si", "Ar", "Cr", "Fe", "Ni", "Cu", "Zn", "I", "Cs", "W", "Pb", "U")
"""Elements whose tables are shipped."""

_MOST_PLATES = 2000
_VACUUM = {"density": 1e-15, "state": "gas", "composition": {"Ar": 1}}
_CM = 0.1  # calzone's unit of length, from mm
_GAP = 1.0  # mm of vacuum between the gun and the front
_LIMITS = {"incident_energy": (1.0, 10 * ENERGY_UNITS["TeV"]), "theta": (0.0, 80.0), "phi": (-360.0, 360.0)}
# Of a detector in provenance: conditions and particle are said beside it, and layer_ends are the depths.
_UNSAID: dict[str, Any] = {"energy": True, "particle": True, "family": {"layers": {"__all__": {"z"}}}}
_FIXED = {"impact_x": "fixed:0", "impact_y": "fixed:0", "theta": "fixed:0", "phi": "fixed:0"}


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
        layer_ends: Depth in mm at which each read-out layer ends, the first beginning at the front; deposits beyond the
            last are not read out. The same as the layers' ``z``: either gives the other.
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
    layer_ends: tuple[float, ...] = ()
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
        if not self.layer_ends:
            if not self.family.depths:
                raise ValueError("layers need depths: layer_ends here, or z = [begin, end] in each layer of the family")
            vars(self)["layer_ends"] = tuple(end for _, end in self.family.depths)  # not by assignment: it is frozen
        if self.family.unit != "MeV":
            raise ValueError(f"the family's unit must be MeV, got '{self.family.unit}'")
        if (unit := self.family.require_energy().unit) != "MeV":
            raise ValueError(f"the unit of the incident energy must be MeV, got '{unit}'")
        if len(self.layer_ends) != len(self.family.layers):
            raise ValueError(f"{len(self.family.layers)} layers need as many layer_ends, got {len(self.layer_ends)}")
        if np.any(np.diff([0.0, *self.layer_ends]) <= 0):
            raise ValueError(f"layer_ends must increase from above 0, got {self.layer_ends}")
        if len(self.plates) > _MOST_PLATES:
            raise ValueError(f"at most {_MOST_PLATES} plates, got {len(self.plates)}")
        if self.layer_ends[-1] > self.depth + 1e-6:
            raise ValueError(f"the last layer ends at {self.layer_ends[-1]} mm, behind the plates ({self.depth} mm)")
        spans = tuple(pairwise((0.0, *self.layer_ends)))
        if not self.family.depths:
            vars(self)["family"] = self.family.with_depths(spans)
        elif not np.allclose(self.family.depths, spans, rtol=0, atol=1e-6):
            raise ValueError(f"layer_ends say that layers lie at {spans} mm, the family's z at {self.family.depths} mm")
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


GEOMETRIES = ("calogan", "2", "3")
"""Detectors in the box: files in ``calogen/data/geant4``."""


def load_detector(source: str | Path) -> Detector:
    """A detector in the box by its name, or one from a TOML file with the tables ``[family]`` and ``[detector]``.

    Args:
        source: ``calogan``, ``2``, ``3``, or a path that ends in ``.toml``.

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


class Geant4(OneByOne):
    """Single particles shot at a calorimeter.

    Conditions: ``incident_energy`` (kinetic), the impact point ``impact_x``, ``impact_y`` on the front face in mm from
    the axis of the read-out, and the direction ``theta`` (from the normal) and ``phi`` (of the motion, from x) in
    degrees. Those that vary become conditions of the samples; so does ``particle`` where there are several.

    Attributes:
        geometry: ``calogan``, ``2`` or ``3`` (CaloChallenge), or a TOML file with ``[family]`` and ``[detector]``.
        particle: ``gamma``, ``e-`` or ``e+``, or several (``gamma,e+``) as probable as each other; none: the
            detector's usual one.
        signal: ``all`` deposits or those in ``active`` plates only; none: the detector's usual one.
        physics: Geant4's constructor, ``option1`` or ``standard``; none: ``option1`` for ``all`` (right, and twice as
            fast), ``standard`` for ``active`` (the only right one).
        cut: Production cut in mm.
        detector: The geometry, resolved when the engine is built: later changes of a file do not matter.
    """

    isolated: ClassVar[bool] = True
    blocks_a_piece: ClassVar[int] = 4
    blocks_a_shard: ClassVar[int] = 256

    geometry: str = "calogan"
    particle: str | None = None
    signal: Signal | None = None
    physics: Literal["option1", "standard"] | None = None
    cut: float = Field(default=0.7, ge=0.01, le=10)
    detector: Detector

    @model_validator(mode="before")
    @classmethod
    def _load(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "detector" in given:
            raise ValueError("name the detector by 'geometry'")
        detector = load_detector(given.get("geometry", "calogan"))
        signal = given.get("signal") or detector.signal
        physics = given.get("physics") or ("standard" if signal == "active" else "option1")
        usual = {"particle": detector.particle}
        return {**usual, **given, "detector": detector, "signal": signal, "physics": physics}

    @field_validator("particle")
    @classmethod
    def _electromagnetic(cls, particles: str) -> str:
        names = [name.strip() for name in particles.split(",")]
        if "" in names:
            raise ConfigError("a particle has no name", where="particle", expected="such as gamma,e+", found=particles)
        if len(set(names)) != len(names):
            raise ConfigError("a particle is named twice", where="particle", found=particles)
        for particle in (name for name in names if name not in PARTICLES):
            raise ConfigError(
                f"'{particle}' cannot be simulated: hadrons and nuclei need evaluated neutron and nuclear data, which "
                "are not freely packaged, and Geant4 aborts without them",
                where="particle",
                expected=", ".join(PARTICLES),
                found=particle,
                hint=did_you_mean(particle, PARTICLES),
            )
        return ",".join(names)

    @model_validator(mode="after")
    def _possible(self) -> Geant4:
        if self.signal == "active":
            if self.physics == "option1":
                raise ConfigError(
                    "'option1' is wrong for deposits in active plates alone (argon: 0.160 of the energy, not 0.189)",
                    where="physics",
                    expected="standard",
                    found="option1",
                )
            if not any(plate.active for plate in self.detector.plates):
                raise ConfigError("no plate of the detector is active", where="signal", hint="`signal=all`")
        _check_elements(self.detector)
        self._require_axis_inside()
        return self

    def _require_axis_inside(self) -> None:
        """Refuse showers whose axis may leave the plates through a side."""
        specs, half, depth = self.drawn.specs, self.detector.width / 2, self.detector.depth
        phi = specs["phi"]
        few = phi.kind in ("fixed", "list")
        turns = np.radians(phi.values if few else np.linspace(phi.values[0], phi.values[-1], 3601))
        for axis, along in (("x", np.cos(turns)), ("y", np.sin(turns))):
            shift, impact = depth * math.tan(math.radians(specs["theta"].values.max())), specs[f"impact_{axis}"].values
            low, high = impact.min() + shift * min(along.min(), 0), impact.max() + shift * max(along.max(), 0)
            if low < -half or high > half:
                raise ConditionError(
                    "the axis of a shower would leave the plates through their side",
                    where="theta",
                    expected=f"{axis} from {-half:g} to {half:g} mm at the back, {depth:g} mm deep",
                    found=f"{axis} from {low:.0f} to {high:.0f} mm",
                    hint="a smaller theta or impact, or wider plates (`width` of the detector)",
                )

    @property
    def particles(self) -> tuple[str, ...]:
        """What is shot."""
        return tuple(str(self.particle).split(","))

    @cached_property
    def drawn(self) -> Drawn:
        """Energies, impact points, directions and, of several, particles of all samples."""
        several = len(self.particles) > 1
        if "particle" in self.conditions and not several:
            raise ConfigError("name the particles with `particle`, as in gamma,e+", where="condition particle")
        usual, width = self.detector.family.conditions[0], self.detector.width
        x, y = (
            min(width / 2, max(ends)) for ends in zip(*(la.reach for la in self.detector.family.layers), strict=True)
        )
        sides = {"impact_x": (-x, x), "impact_y": (-y, y)}
        face = f"choose points on the cells, {2 * x:g} mm by {2 * y:g} mm in the middle of plates {width:g} mm wide"
        known = (
            usual,
            *(Condition(name=name, unit="mm", low=low, high=high) for name, (low, high) in sides.items()),
            Condition(name="theta", unit="deg", low=0, high=80),
            Condition(name="phi", unit="deg", low=-180, high=180),
            *([Condition.labelled("particle", self.particles)] if several else []),
        )
        specs = {usual.name: self.detector.energy, **_FIXED, "particle": "uniform"}
        return Drawn(known, self.conditions, specs, {**_LIMITS, **sides}, dict.fromkeys(sides, face))

    @cached_property
    def family(self) -> Family:
        """The detector's family, with the energy, whatever else varies, and the symmetries that remain."""
        family, drawn = self.detector.family, self.drawn
        energy, *others = drawn.texts
        varying = (energy, *(name for name in others if name == "particle" or drawn.fixed(name) is None))
        straight = drawn.fixed("theta") == 0
        symmetric = {f"mirror-{axis}": straight and drawn.fixed(f"impact_{axis}") == 0 for axis in "xy"}
        description = family.description
        if self.signal != self.detector.signal:
            description = f"{description.partition(';')[0]}; deposits in {self.signal} plates"
        return family.model_copy(
            update={
                "description": description,
                "conditions": tuple(drawn.ranged(name) for name in varying),
                "symmetries": tuple(s for s in family.symmetries if symmetric.get(s, False)),
            }
        )

    @property
    def scale(self) -> float:
        """Factor on the deposits."""
        return self.detector.scale if self.signal == "active" else 1.0

    def describe(self) -> dict[str, Any]:
        """Engine, versions and options; a detector is described in full, so that a shard outlives its TOML file."""
        calzone = require("calzone", "geant4")
        return {
            "engine": "geant4",
            "geant4": calzone.GEANT4_VERSION,
            "calzone": calzone.VERSION,
            "physics": self.physics,
            "cut": f"{self.cut:g} mm",
            "particle": self.particle,
            "signal": self.signal,
            "scale": self.scale,
            "photonuclear": "off",
            "conditions": self.drawn.texts,
            "geometry": Path(self.geometry).name,
            "detector": self.detector.model_dump(mode="json", exclude_defaults=True, exclude=_UNSAID),
            "seed": self.seed,
        }

    def draw(self, index: int, conditions: Mapping[str, float]) -> NDArray[np.float64]:
        """The voxels of one shower in MeV, (V,).

        Raises:
            ConfigError: If this process already simulated with other physics: Geant4 has one set a process.
        """
        return self._read_out(self._deposited(index, conditions))

    def _deposited(self, index: int, conditions: Mapping[str, float]) -> NDArray[np.float64]:
        """Deposits of one shower in each voxel, and last those outside all of them, in MeV, (V + 1,)."""
        seed = int.from_bytes(stream(self.seed, index).bytes(16), "little")
        particle = self.particles[int(conditions.get("particle", 0))]
        x, y, z, plate, energy = _deposits(_simulation(self), particle, seed, conditions, self.detector)
        return np.bincount(self.detector.voxel(x, y, z, plate), energy, self.family.voxels + 1).astype(np.float64)

    def _read_out(self, deposited: NDArray[np.float64]) -> NDArray[np.float64]:
        """Voxels (..., V) from deposits (..., V + 1): scaled, those below the threshold zero."""
        cells = deposited[..., :-1] * self.scale
        return np.where(cells < self.family.threshold, 0, cells)

    def check(self) -> str:
        """Response, resolution, sampling fraction and longitudinal shape of 50 showers of 20 GeV of each particle."""
        specs = {name: text for name, text in self.drawn.texts.items() if name != "particle"}
        specs[self.drawn.names[0]] = "fixed:20GeV"
        given = {**self.model_dump(exclude={"detector", "particle"}), "conditions": specs}
        return "\n".join(Geant4(**given, particle=particle)._checked() for particle in self.particles)

    def _checked(self) -> str:
        """What :meth:`check` says of one particle, of the first 50 showers."""
        drawn = self.drawn.conditions(self.drawn.names, self.seed, 0, 50)
        deposited = np.stack([self._deposited(i, drawn.row(i)) for i in range(50)])
        showers = self._read_out(deposited)
        layers = np.stack([showers[:, cells].sum(1) for cells in self.family.layer_slices], 1)
        total, mid = layers.sum(1), (np.array([0.0, *self.detector.layer_ends[:-1]]) + self.detector.layer_ends) / 2
        rows = {
            "response": total / 20e3,
            "mean depth [mm]": layers @ mid / total,
            "fraction of the first layer": layers[:, 0] / total,
            "voxels hit": (showers > 0).mean(1),
        }
        if self.signal == "active":
            rows["sampling fraction"] = deposited.sum(1) / 20e3
        lines = [f"50 showers of {self.particle} at 20 GeV, {self.physics}, signal {self.signal}"]
        lines += [f"  {name:<28}{a.mean():10.5g} +- {a.std(ddof=1) / 50**0.5:.2g}" for name, a in rows.items()]
        spread = total.std(ddof=1) / total.mean()
        lines.append(f"  {'resolution':<28}{spread:10.4f} = {100 * spread * 20**0.5:.2f} % / sqrt(E/GeV)")
        if self.signal == "active":
            fraction, error = rows["sampling fraction"].mean(), rows["sampling fraction"].std(ddof=1) / 50**0.5
            lines.append(f"  {'scale = 1 / fraction':<28}{1 / fraction:10.5g} +- {error / fraction**2:.2g}")
            about = "deposits in active plates / incident energy"
            lines.append(f"  (fraction: {about}; the detector has scale = {self.scale:g})")
        if self.geometry == "calogan" and self.particle == "gamma":
            known = {"all": "response 0.996, first layer 0.178", "active": "response 0.188, resolution 7 % / sqrt(E)"}
            lines.append(f"  known for photons on the axis: {known[str(self.signal)]}")
        return "\n".join(lines)


def _check_elements(detector: Detector) -> None:
    """Geant4 aborts the process when a table is missing, so it is found before."""
    calzone = require("calzone", "geant4")
    for name in dict.fromkeys(plate.material for plate in detector.plates):
        if name in detector.materials:
            elements = list(detector.materials[name].formula)
        else:
            found = calzone.describe(material=name)
            if found is None:
                hint = "names of Geant4's NIST list look like G4_Pb; others need [detector.materials.NAME]"
                raise ConfigError(f"unknown material '{name}'", where="detector.modules", found=name, hint=hint)
            elements = [element for element, _ in found.composition]
        lacking = sorted(set(elements) - set(ELEMENTS))
        if lacking:
            raise ConfigError(
                f"no evaluated tables for {', '.join(lacking)} in '{name}'",
                where="detector.modules",
                expected=f"elements {' '.join(ELEMENTS)}",
                found=" ".join(elements),
            )


# ------------------------------------------------------------------------------------------ Geant4 in this process

_physics_here: dict[str, Any] = {}  # Geant4 keeps one physics list and cut a process


def _simulation(engine: Geant4) -> Any:
    physics = {"physics": engine.physics, "cut": engine.cut}
    if _physics_here and _physics_here != physics:
        raise ConfigError(
            "Geant4 has one set of physics a process",
            expected=_physics_here,
            found=physics,
            hint="simulate the other one in a process of its own",
        )
    _physics_here.update(physics)
    return _initialised(engine.detector.model_dump_json(), str(engine.physics), engine.cut, engine.signal == "active")


@lru_cache(maxsize=4)
def _initialised(detector_json: str, physics: str, cut: float, active: bool) -> Any:
    """A simulation that has read all its tables, which exist on disk only meanwhile."""
    calzone = require("calzone", "geant4")
    detector = Detector.model_validate_json(detector_json)
    with _tables():
        simulation = calzone.Simulation(calzone.Geometry(_volumes(detector, active)))
        simulation.physics = calzone.Physics(physics, default_cut=cut * _CM)
        simulation.sample_deposits = "detailed"
        gun = {"incident_energy": 1.0, "impact_x": 0.0, "impact_y": 0.0, "theta": 0.0, "phi": 0.0}
        for particle in PARTICLES:  # the first particle makes Geant4 read
            _deposits(simulation, particle, 1, gun, detector)
    return simulation


@lru_cache(maxsize=1)
def _data_here() -> Path:
    return Path(tempfile.mkdtemp(prefix="calogen-geant4-"))


@contextmanager
def _tables() -> Iterator[None]:
    """Geant4's data on disk, always in the same place: Geant4 never looks elsewhere once it has read."""
    folder = _data_here()
    os.environ["GEANT4_DATA_DIR"] = str(folder)
    archive = files("calogen.data").joinpath("geant4", "tables.tar.xz")
    try:
        with as_file(archive) as path, tarfile.open(path) as tables:
            tables.extractall(folder, filter="data")
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _volumes(detector: Detector, active: bool) -> dict[str, Any]:
    """Calzone's description: plates side by side in a box of vacuum, the depth along z, in cm."""
    side, depth = detector.width * _CM, detector.depth * _CM
    plates: dict[str, Any] = {}
    for i, plate in enumerate(detector.plates):
        low, high = detector.edges[i : i + 2] * _CM
        plates[f"Plate{i}"] = {
            "box": [side, side, float(high - low)],
            "position": [0.0, 0.0, float((low + high - depth) / 2)],
            "material": plate.material,
            **({"role": "record_deposits"} if plate.active or not active else {}),
        }
    own = {
        name: {"density": m.density, "state": m.state, "composition": m.formula}
        for name, m in detector.materials.items()
    }
    return {
        "World": {
            "box": [side + 20 * _GAP * _CM, side + 20 * _GAP * _CM, depth + 4 * _GAP * _CM],
            "material": "CalogenVacuum",
            "Stack": {"box": [side, side, depth], "material": "CalogenVacuum", **plates},
        },
        "materials": {"molecules": {"CalogenVacuum": _VACUUM, **own}},
    }


def _deposits(
    simulation: Any, particle: str, seed: int, gun: Mapping[str, float], detector: Detector
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Position (x, y, depth) in mm, plate and energy in MeV of every deposit of one shower, (D,) each.

    A step's energy counts where the step begins, as in CaloGAN.
    """
    theta, phi = math.radians(gun["theta"]), math.radians(gun["phi"])
    direction = [math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)]
    back = _GAP / direction[2]
    start = [gun["impact_x"] - back * direction[0], gun["impact_y"] - back * direction[1], -detector.depth / 2 - _GAP]
    simulation.random.seed = seed  # PCG: all of its bits must be random, seeds 2 and 3 are the same stream
    particles = simulation.particles().pid(particle).energy(gun["incident_energy"])
    particles = particles.position([a * _CM for a in start]).direction(direction).generate(1)
    positions, energies, plates = [np.zeros((0, 3))], [np.zeros(0)], [np.zeros(0, np.int64)]
    for path, found in simulation.run(particles).deposits.items():
        plate = int(path.rpartition("Plate")[2])
        for deposits, place in ((found.line, "start"), (found.point, "position")):
            positions.append(deposits[place])
            energies.append(deposits["value"])
            plates.append(np.full(len(deposits), plate))
    x, y, z = np.concatenate(positions).T / _CM
    return x, y, z + detector.depth / 2, np.concatenate(plates), np.concatenate(energies)
