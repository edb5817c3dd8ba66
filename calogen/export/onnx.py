"""The whole generator as one ONNX graph, and ONNX Runtime as what runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, require
from ..models.contract import Generator
from ..models.maps.zeldovich import ZeldovichGenerator
from ..models.showers.generator import ShowerGenerator
from ..runs.checkpoint import Card
from ..storage import write_atomic
from .check import TRIAL, difference, in_blocks, kept, require_equal, trial
from .description import LATENT, inputs
from .graph import LOWEST, SCATTERING, Graph, Value
from .maps import map_graph
from .showers import shower_graph

MODEL = "surrogate.onnx"
"""The file of the graph."""

Array = NDArray[np.float32]


def write_onnx(generator: Generator, card: Card, out: Path, *, opset: int | None = None) -> dict[str, Any]:
    """Write ``surrogate.onnx``: noise and conditions in, samples in physical units out.

    Args:
        generator: Fitted and trained, on the CPU.
        card: Its card.
        out: A folder.
        opset: Of the operators; none: the lowest that does.

    Returns:
        What the description says of it.

    Raises:
        ConfigError: If the generator cannot be expressed, or a package is missing.
        CalogenError: If the graph does not make what Python makes.
    """
    require("onnxruntime", "export")
    made = trial(generator, card)
    model = onnx_model(generator, opset)
    engine = Engine(model, generator.conditions)
    found = difference(in_blocks(engine, made.latents, made.columns), made.samples, card.family)
    write_atomic(out / MODEL, model)
    columns = {name: made.columns[:, [i]] for i, name in enumerate(generator.conditions)}
    write_atomic(out / TRIAL, kept({LATENT: made.latents, **columns, _output(generator): made.samples}))
    output = {"name": _output(generator), "shape": ["batch", *card.family.sample_shape], "unit": card.family.unit}
    return {
        "file": MODEL,
        "opset": engine.opset,
        "inputs": inputs(generator, card, "batch"),
        "outputs": [{**output, "type": "float32"}],
        "check": {"with": engine.name, "seed": 0, **require_equal(found, generator, made)},
    }


def onnx_model(generator: Generator, opset: int | None = None) -> bytes:
    """The graph of a generator.

    Args:
        generator: Fitted and trained, on the CPU.
        opset: Of the operators; none: the lowest that does.

    Raises:
        ConfigError: If the generator cannot be expressed, the opset is too low, or onnx is missing.
    """
    lowest = lowest_opset(generator)
    graph = Graph(lowest if opset is None else opset, lowest)
    latent = graph.input(LATENT, "batch", generator.latent_size)
    conditions = [graph.input(name, "batch", 1) for name in generator.conditions]
    samples = samples_graph(graph, generator, latent, conditions)
    shape: list[int | str] = ["batch", *generator.family.sample_shape]
    return graph.model({_output(generator): (samples, shape)})


def lowest_opset(generator: Generator) -> int:
    """The lowest opset that a generator's graph can have."""
    return SCATTERING if isinstance(generator, ZeldovichGenerator) else LOWEST


def samples_graph(graph: Graph, generator: Generator, latent: Value, conditions: Sequence[Value]) -> Value:
    """Samples (B, ...) in physical units, of noise (B, Z) and one (B, 1) for each condition.

    Raises:
        ConfigError: If no graph can express the generator.
    """
    if isinstance(generator, ShowerGenerator):
        return shower_graph(graph, generator, latent, conditions)
    if isinstance(generator, ZeldovichGenerator):
        return map_graph(graph, generator, latent, conditions)
    raise ConfigError(
        f"network '{generator.network}' cannot be expressed as a graph",
        where="`model`",
        expected="network 'copula' for showers, 'zeldovich' for maps",
        found=generator.network,
        hint="train with `generator.network=auto`",
    )


def _output(generator: Generator) -> str:
    return "showers" if generator.family.layers else "maps"


class Engine:
    """ONNX Runtime on the CPU, as a :data:`calogen.models.contract.Inference`.

    Args:
        model: The graph, as bytes.
        conditions: Names of its inputs after the noise, in the order of columns.
        threads: That one call may use.
        optimise: Whether the runtime may change the graph.

    Raises:
        ConfigError: If ONNX Runtime is missing.
    """

    def __init__(self, model: bytes, conditions: Sequence[str], *, threads: int = 1, optimise: bool = True) -> None:
        runtime = require("onnxruntime", "export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        levels = runtime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        options.log_severity_level = 3  # errors
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.conditions, self.name = tuple(conditions), f"ONNX Runtime {runtime.__version__}"
        self.opset = next(o.version for o in require("onnx", "export").load_from_string(model).opset_import)

    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""
        columns = {name: np.ascontiguousarray(conditions[:, [i]]) for i, name in enumerate(self.conditions)}
        return self.run({LATENT: latent, **columns})

    def run(self, named: Mapping[str, Array]) -> Array:
        """The first output, of named inputs."""
        found: Array = self.session.run(None, dict(named))[0]
        return found


def onnx_engine(generator: Generator, *, threads: int = 1) -> Engine:
    """A generator as ONNX Runtime runs it: for measuring beside the module and the kernel.

    Raises:
        ConfigError: If a package is missing, or the generator cannot be expressed.
    """
    return Engine(onnx_model(generator), generator.conditions, threads=threads)
