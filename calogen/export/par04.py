"""The graph that Geant4's example Par04 calls (examples/extended/parameterisations/Par04), with a macro that runs it.

Par04's own units: one input (1, L + 4) of latent numbers, E / 1.024 TeV, theta / 90 degrees, 0, 1; its first output is
taken as fractions of E in cells of a cylinder about the particle, z fastest, then alpha from -pi, then r. Its theta is
that of the particle in its barrel, 90 degrees at normal incidence. It draws the latent numbers from CLHEP, so Geant4's
seeds decide everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, require
from ..families import Condition, Family, in_mev
from ..models.contract import Generator
from ..runs.checkpoint import Card, ConditionRange
from ..storage import write_atomic
from .check import SAMPLES, TRIAL, difference, kept, require_equal, trial
from .graph import LOWEST, Graph, Value
from .onnx import Engine, samples_graph

MODEL, MACRO = "par04.onnx", "par04.mac"
"""The files."""
HIGHEST_ENERGY = 1_024_000.0
"""Energy in MeV that Par04 divides by."""
CONDITIONS = 4
"""Numbers behind the latent ones."""
_INPUT, _OUTPUT = "vector", "fractions"
_SAME = 1e-4  # mm
_MANUAL = "docs/into-cpp-and-geant4.md"


@dataclass(frozen=True)
class Mesh:
    """A cylinder of equal cells.

    Attributes:
        cells: Along r, alpha and z.
        r: Size of a cell along r in mm.
        z: The same along z.
    """

    cells: tuple[int, int, int]
    r: float
    z: float


def write_par04(generator: Generator, card: Card, out: Path, *, opset: int | None = None) -> dict[str, Any]:
    """Write ``par04.onnx`` and ``par04.mac``.

    Args:
        generator: Fitted and trained, on the CPU.
        card: Its card.
        out: A folder.
        opset: Of the operators: 15, which the runtimes that Par04 was built with read.

    Returns:
        What the description says of it.

    Raises:
        ConfigError: If the surrogate's cells are no such cylinder, or it has conditions that Par04 does not know.
        CalogenError: If the graph does not make what Python makes.
    """
    mesh, (energy, angle) = mesh_of(card.family), _conditions(card)
    if opset is not None and opset > LOWEST:
        raise ConfigError(f"Par04's runtimes may not know opset {opset}", where="`opset`", expected=LOWEST, found=opset)
    require("onnxruntime", "export")
    graph = Graph(LOWEST if opset is None else opset)
    size = generator.latent_size
    vector = graph.input(_INPUT, 1, size + CONDITIONS)
    given = {energy.name: _energy(vector.columns(size, size + 1), energy)}
    if angle is not None:
        given[angle.name] = _theta(vector.columns(size + 1, size + 2), angle, card.family.condition(angle.name))
    showers = samples_graph(graph, generator, vector.columns(0, size), [given[c] for c in generator.conditions])
    scale = card.family.unit_in_mev / in_mev(energy.unit)
    fractions = showers * scale / given[energy.name]
    rings, sectors, layers = mesh.cells
    fractions = fractions.shaped(layers, sectors, rings).turned(0, 3, 2, 1).shaped(math.prod(mesh.cells))
    model = graph.model({_OUTPUT: (fractions, (1, math.prod(mesh.cells)))})

    # As Par04 calls it: one shower at a time, with optimisation disabled.
    engine, made = Engine(model, (), optimise=False), trial(generator, card, SAMPLES)
    vectors = np.zeros((SAMPLES, size + CONDITIONS), np.float32)
    vectors[:, :size], vectors[:, size + 3] = made.latents, 1.0
    names = list(generator.conditions)
    energies = made.columns[:, names.index(energy.name), None] * in_mev(energy.unit)
    vectors[:, size : size + 1] = energies / HIGHEST_ENERGY
    vectors[:, size + 1] = 1.0
    if angle is not None:
        factor = _degrees(card.family.condition(angle.name))
        vectors[:, size + 1] = 1 - made.columns[:, names.index(angle.name)] * factor / 90
    found = np.concatenate([engine.run({_INPUT: row[None]}) for row in vectors])
    found = found.reshape(-1, rings, sectors, layers).transpose(0, 3, 2, 1).reshape(SAMPLES, -1)
    found = (found * (energies / card.family.unit_in_mev)).astype(np.float32)

    expected = made.samples.reshape(-1, layers, sectors, rings).transpose(0, 3, 2, 1).reshape(SAMPLES, -1)
    expected = (expected * (card.family.unit_in_mev / energies)).astype(np.float32)
    write_atomic(out / MODEL, model)
    write_atomic(out / TRIAL, kept({_INPUT: vectors, _OUTPUT: expected}))
    write_atomic(out / MACRO, _macro(mesh, size).encode())
    return {
        "file": MODEL,
        "macro": MACRO,
        "opset": engine.opset,
        "inputs": [
            {
                "name": _INPUT,
                "shape": [1, size + CONDITIONS],
                "type": "float32",
                "what": f"{size} standard normals; E / {HIGHEST_ENERGY:.0f} MeV, clipped to the trained range in the "
                "graph; theta / 90 degrees, where 1 is normal incidence; 0; 1",
            }
        ],
        "outputs": [
            {
                "name": _OUTPUT,
                "shape": [1, math.prod(mesh.cells)],
                "type": "float32",
                "unit": "of E",
                "what": "cells along r, alpha from -pi, z; z fastest",
            }
        ],
        "mesh": {"r": rings, "alpha": sectors, "z": layers, "size_r_mm": mesh.r, "size_z_mm": mesh.z},
        "check": {"with": engine.name, "optimisation": "disabled", "seed": 0}
        | require_equal(difference(found, made.samples, card.family), generator, made),
    }


def mesh_of(family: Family) -> Mesh:
    """The cylinder that a family's cells are.

    Raises:
        ConfigError: If they are none; says what to do instead.
    """
    where = "export it as `format=onnx` or `format=cpp` and make hits at the centres of the voxels, which are in "
    hint = f"{where}surrogate.json: {_MANUAL} has the code"

    def refused(what: str) -> ConfigError:
        return ConfigError(
            f"Par04's mesh is a cylinder of equal cells, and family '{family.name}' {what}",
            where="`format`",
            found=family.summary,
            hint=hint,
        )

    if not family.layers:
        raise ConfigError(
            f"Par04 makes showers, and family '{family.name}' is of density maps",
            where="`format`",
            found=family.summary,
            hint="export it as `format=onnx`",
        )
    first = family.layers[0]
    sectors, rings = first.shape
    if not all(layer.closed for layer in family.layers):
        raise refused("has rectangular cells")
    if any(layer.shape != first.shape or not np.array_equal(layer.centres, first.centres) for layer in family.layers):
        raise refused("has layers of different cells")
    radii = first.radius[:rings]
    if not np.allclose(radii, (np.arange(rings) + 0.5) * 2 * radii[0], rtol=0, atol=_SAME):
        raise refused("has rings of different widths")
    thickness = np.diff(family.depths, axis=1) if family.depths else np.zeros(0)
    if not len(thickness):
        raise refused("does not say how deep its layers are")
    if not np.allclose(thickness, thickness[0], rtol=0, atol=_SAME):
        raise refused("has layers of different depths")
    return Mesh((rings, sectors, len(family.layers)), float(2 * radii[0]), float(thickness[0, 0]))


def _conditions(card: Card) -> tuple[ConditionRange, ConditionRange | None]:
    """Incident energy and theta; Par04 knows no other conditions."""
    energy, angle = None, None
    for known in card.conditions:
        condition = card.family.condition(known.name)
        if condition.role == "energy":
            energy = known
        elif condition.of_axis and condition.of_axis[0] == "theta":
            angle = known
        else:
            raise ConfigError(
                f"Par04 does not know the condition '{known.name}'",
                where="`format`",
                expected="the incident energy, and theta",
                hint="export it as `format=onnx`",
            )
    if energy is None:
        raise ConfigError(
            "Par04 gives the incident energy, which is no condition of this surrogate",
            where="`format`",
            hint="train it with the incident energy as a condition, or export it as `format=onnx`",
        )
    return energy, angle


def _energy(number: Value, trained: ConditionRange) -> Value:
    """The incident energy (1, 1) in its unit, within the trained range: Par04 asks for any."""
    return (number * (HIGHEST_ENERGY / in_mev(trained.unit))).clipped(trained.low, trained.high)


def _theta(number: Value, trained: ConditionRange, condition: Condition) -> Value:
    """The angle to the normal (1, 1) in its unit, within the trained range, from Par04's angle to the beam."""
    degrees = (90.0 - number * 90.0).function("Abs")
    return (degrees * (1 / _degrees(condition))).clipped(trained.low, trained.high)


def _degrees(condition: Condition) -> float:
    """One of a condition's unit in degrees."""
    return math.degrees(condition.of_axis[1]) if condition.of_axis else 1.0


def _macro(mesh: Mesh, latent: int) -> str:
    """A macro for Par04 of Geant4 11.3 and later; see the remarks in it for earlier ones."""
    rings, sectors, layers = mesh.cells
    return f"""\
# Showers of a calogen surrogate in Geant4's example Par04: run it in Par04's build folder, with {MODEL} beside it,
#     ./examplePar04 -m {MACRO}
# The detector is that of Par04's examplePar04.mac: 90 layers of tungsten and silicon. Geant4's seeds decide everything.
/process/had/verbose 0
/Par04/detector/setDetectorInnerRadius 80 cm
/Par04/detector/setDetectorLength 2 m
/Par04/detector/setNbOfLayers 90
/Par04/detector/setAbsorber 0 G4_W 1.4 mm true
/Par04/detector/setAbsorber 1 G4_Si 0.3 mm true
# The mesh of the read-out is that of the surrogate.
/Par04/mesh/setSizeOfRhoCells {mesh.r:g} mm
/Par04/mesh/setSizeOfZCells {mesh.z:g} mm
/Par04/mesh/setNbOfRhoCells {rings}
/Par04/mesh/setNbOfPhiCells {sectors}
/Par04/mesh/setNbOfZCells {layers}

/run/initialize

/gun/energy 10 GeV
/gun/position 0 0 0
/gun/direction 0 1 0

/Par04/inference/setSizeLatentVector {latent}
/Par04/inference/setSizeConditionVector {CONDITIONS}
/Par04/inference/setModelPathName {MODEL}
# The type comes before the library. Geant4 before 11.3 has one type only: leave the next line out.
/Par04/inference/setModelType VAE
/Par04/inference/setProfileFlag 0
/Par04/inference/setOptimizationFlag 0
/Par04/inference/setInferenceLibrary ONNX
/Par04/inference/setSizeOfRhoCells {mesh.r:g} mm
/Par04/inference/setSizeOfZCells {mesh.z:g} mm
/Par04/inference/setNbOfRhoCells {rings}
/Par04/inference/setNbOfPhiCells {sectors}
/Par04/inference/setNbOfZCells {layers}

/analysis/setFileName calogen.root
# defineMesh comes first: it turns the mesh along the particle.
/param/ActivateModel defineMesh
/param/ActivateModel inferenceModel
/run/beamOn 100
"""
