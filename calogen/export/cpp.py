"""A shower generator as one C++17 header and one file of weights.

The header, ``cpp_files/calogen_shower.hpp``, is the same for all surrogates; it says what each step is. What does not
change from shower to shower is folded here: noise tables, normalisation, and what is zero is left out.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from .. import __version__
from ..errors import ConfigError
from ..families import CartesianLayer, Family
from ..models.conditions import energy_column, scaled_size, scaling
from ..models.contract import Generator
from ..models.showers.frame import SIZE, ShowerFrame
from ..models.showers.generator import ShowerGenerator
from ..runs.checkpoint import Card
from ..storage import write_atomic

FORMAT = 1
"""Version of the weights file; headers refuse files of a newer one."""
WEIGHTS = "calogen_shower.weights"
EXPORTED = ("calogen_shower.hpp", "example.cpp", "CMakeLists.txt")
"""Files that are the same for all surrogates."""
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O2", "-march=native")
_MAGIC = b"CALOGENW"
_NAME_BYTES = 24
_KINDS = {"f": "<f4", "d": "<f8", "i": "<i4"}
_TIMED_SECONDS = 0.3


def write_cpp(generator: Generator, card: Card, out: Path, name: str | None = None) -> dict[str, Any]:
    """Write the header, the weights, an example and its CMake file into a folder.

    Args:
        generator: Of showers, ready to sample; critics that choose among candidates are not exported.
        card: Of its checkpoint.
        out: The folder; files of the same names are replaced.
        name: Of the surrogate, for people; none: that of its family.

    Returns:
        What was written: format and its version, files with their bytes, digest of the card, number of latents.

    Raises:
        ConfigError: If the generator is none of showers with the network ``copula``.
        StorageError: If the folder cannot be written.
    """
    if not isinstance(generator, ShowerGenerator):
        what = "maps" if card.family.is_density else "showers"
        raise ConfigError(
            f"network '{generator.network}', which makes {what}, cannot be exported as C++",
            where="`format`",
            expected="showers of network 'copula'",
            found=f"family '{card.family.name}', network '{generator.network}'",
            hint="choose `format` 'onnx'",
        )
    contents = {file: template(file).encode() for file in EXPORTED}
    contents[WEIGHTS] = weights_bytes(generator, card, name or card.family.name)
    for file, data in contents.items():
        write_atomic(out / file, data)
    return {
        "format": "cpp",
        "format_version": FORMAT,
        "files": {file: len(data) for file, data in contents.items()},
        "card_sha256": card.sha256,
        "latents": generator.latent_size,
    }


def template(name: str) -> str:
    """The text of one of the files that are the same for all surrogates."""
    return (files(__package__) / "cpp_files" / name).read_text(encoding="utf-8")


def compiler() -> str | None:
    """The system's C++ compiler; none if there is none."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def timer(generator: Generator, card: Card, folder: Path) -> Callable[[int], float] | None:
    """Compile what times the header, into a folder.

    Args:
        generator: As for :func:`write_cpp`.
        card: As for :func:`write_cpp`.
        folder: To work in; it has to stay until the last measurement.

    Returns:
        Microseconds of CPU time a shower, noise included, in batches of a size: each call is one round. None without a
        compiler.

    Raises:
        ConfigError: If the compiler fails; says what it said first.
    """
    command = compiler()
    if command is None:
        return None
    write_cpp(generator, card, folder)
    write_atomic(folder / "timing.cpp", template("timing.cpp").encode())
    program = folder / "timing"
    made = subprocess.run(
        [command, *_FLAGS, str(folder / "timing.cpp"), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        said = made.stderr.strip().splitlines()[:1]
        raise ConfigError("the C++ compiler cannot compile the header", where=command, found=" ".join(said))

    def microseconds(batch: int) -> float:
        words = [str(program), str(folder / WEIGHTS), str(batch), str(_TIMED_SECONDS)]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    return microseconds


def weights_bytes(generator: ShowerGenerator, card: Card, name: str) -> bytes:
    """The weights file: see ``WeightsFile`` in the header for its layout."""
    parts = [_record(key, kind, values) for key, kind, values in _arrays(generator, card, name)]
    body = b"".join(parts)
    return struct.pack("<8sIIQ", _MAGIC, FORMAT, zlib.crc32(body), len(body)) + body


def _record(name: str, kind: str, values: str | ArrayLike) -> bytes:
    """One array: name, kind (f, d, i: numbers; t: text), how many, and the numbers, filled up to 8 bytes."""
    if isinstance(values, str):
        data, count = values.encode(), len(values.encode())
    else:
        array = np.ascontiguousarray(values, _KINDS[kind])
        data, count = array.tobytes(), array.size
    head = struct.pack(f"<{_NAME_BYTES}ss7xQ", name.encode(), kind.encode(), count)
    return head + data + bytes(-len(data) % 8)


_Arrays = Iterator[tuple[str, str, str | ArrayLike]]


def _arrays(generator: ShowerGenerator, card: Card, name: str) -> _Arrays:
    """Everything the header needs: name, kind and values, in the order of its sections."""
    family, transform = generator.family, generator.transform
    window = transform.window
    yield "name", "t", name
    yield "digest", "t", card.sha256
    yield "family", "t", family.name
    yield "unit", "t", family.unit
    yield "calogen", "t", __version__
    yield from _of_conditions(card)
    yield "normals", "f", ndtri((np.arange(2**16) + 0.5) / 2**16)  # of latents made of 16 bits (production/noise.py)
    yield "layer_sizes", "i", np.diff(window.layer_bounds)
    yield "voxels_out", "i", family.voxels
    yield "places.layer", "i", family.layer_of_voxel
    yield "places.centres", "d", family.centres
    yield "places.depths", "d", family.depths or np.full((len(family.layers), 2), np.nan)
    yield "factors", "i", generator.splits[1]
    yield "knee", "d", family.knee
    yield "threshold", "d", family.threshold
    yield "unit_in_mev", "d", family.unit_in_mev
    column = energy_column(family, generator.conditions)
    yield "energy_column", "i", -1 if column is None else column
    for what, chosen in zip(("energies", "voxels"), transform.columns, strict=True):
        columns = list(range(len(generator.conditions))) if chosen is None else chosen
        yield from _of_scaling(what, family, generator.conditions, columns)
    yield from _of_networks(generator)
    yield from _of_energies(generator)
    if transform.frame is not None:
        yield from _of_frame(transform.frame)
    yield from _of_correlations(generator)
    yield from _of_voxels(generator)
    if generator.refinement.active:
        yield from _of_refinement(generator)


def _of_conditions(card: Card) -> _Arrays:
    labels = [
        [f"{card.family.condition(c.name).code(label):.0f} {label}" for label in c.labels] for c in card.conditions
    ]
    yield "condition_names", "t", "".join(f"{c.name}\n" for c in card.conditions)
    yield "condition_units", "t", "".join(f"{c.unit}\n" for c in card.conditions)
    yield "condition_labels", "t", "".join(f"{' '.join(mine)}\n" for mine in labels)
    yield "condition_ranges", "d", [(c.low, c.high) for c in card.conditions]


def _of_scaling(what: str, family: Family, names: Sequence[str], columns: list[int]) -> _Arrays:
    """How conditions are scaled: those of layer energies, or of voxels."""
    chosen = [names[i] for i in columns]
    offset, slope, logarithmic = scaling(family, chosen)
    energy = energy_column(family, chosen)
    yield f"{what}.columns", "i", columns
    yield f"{what}.offset", "d", offset
    yield f"{what}.slope", "d", slope
    yield f"{what}.logarithmic", "i", logarithmic
    yield f"{what}.labels", "i", [len(family.labels(name)) for name in chosen]
    yield f"{what}.scaled", "i", scaled_size(family, chosen)
    yield f"{what}.energy_column", "i", -1 if energy is None else energy


def _of_networks(generator: ShowerGenerator) -> _Arrays:
    """Networks whose last layer is not zero; the last layer of that for shapes apart, in units of its voxels."""
    linear = [
        [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        for network in (generator.energies, generator.shapes)
    ]
    for what, layers in zip(("energy_network", "shape_network"), linear, strict=True):
        last = layers[-1]
        if not last.weight.any() and (what == "shape_network" or not last.bias.any()):
            continue
        kept = layers[:-1] if what == "shape_network" else layers
        yield f"{what}.sizes", "i", [kept[0].in_features, *(layer.out_features for layer in kept)]
        for number, layer in enumerate(kept):
            yield f"{what}.{number}.weight", "f", _numbers(layer.weight).T
            yield f"{what}.{number}.bias", "f", _numbers(layer.bias)
    last, scale = linear[1][-1], _standardising(generator)
    if last.weight.any():
        yield "shape_network.last", "f", _numbers(last.weight).T * scale
    offset = _numbers(last.bias) - _numbers(generator.standardise.get_buffer("running_mean"))
    yield "standardise", "f", [scale, offset * scale]


def _standardising(generator: ShowerGenerator) -> NDArray[np.float64]:
    """What voxel normals are multiplied by, (V,)."""
    return 1 / np.sqrt(_numbers(generator.standardise.get_buffer("running_var")) + generator.standardise.eps)


def _of_energies(generator: ShowerGenerator) -> _Arrays:
    energies, family = generator.transform.energies, generator.family
    found = {key: _numbers(tensor) for key, tensor in energies.named_buffers()}
    yield "conserves_energy", "i", family.conserves_energy
    yield "most_response", "d", 1.0 if family.conserves_energy else family.max_response
    yield "energies.size", "i", energies.size
    yield "energies.order", "i", found["order"]
    for key in ("stations", "limits", "location", "log_scale", "empty_logits", "marginal", "residual", "levelled"):
        yield f"energies.{key}", "f", found[key]
    # What is multiplied by the same number lies side by side: (S, from, to), (from, to), (2, terms, to).
    yield "energies.linear", "f", found["linear"].transpose(0, 2, 1)
    yield "energies.direction", "f", found["direction"].T
    yield "energies.bent", "f", found["bent"].transpose(0, 2, 1)


def _of_frame(frame: ShowerFrame) -> _Arrays:
    known = [frame.family.condition(name) for name in frame.conditions]
    placed = {c.of_axis[0]: (i, c.of_axis[1]) for i, c in enumerate(known) if c.of_axis}
    columns, factors = zip(*(placed.get(which, (-1, 0.0)) for which in ("x", "y", "theta", "phi")), strict=True)
    yield "frame.layers", "i", len(frame.family.layers)
    yield "frame.columns", "i", columns
    yield "frame.factors", "d", factors
    yield "frame.periods", "d", frame.periods
    yield "frame.extent", "f", frame.family.depths
    yield "frame.pitch", "f", [layer.pitch for layer in cast("tuple[CartesianLayer, ...]", frame.family.layers)]
    yield "frame.counts", "i", [layer.shape for layer in frame.family.layers]
    yield "frame.windows", "i", [layer.shape for layer in frame.window.layers]
    for key in ("course", "spread", "depths", "steepest", "tails", "step", "contained"):
        yield f"frame.{key}", "f", _numbers(getattr(frame, key))


def _of_correlations(generator: ShowerGenerator) -> _Arrays:
    """Factors and how their loadings change with the drivers, the mixed noise of the core, noise that is shared."""
    voxels, noise = generator.transform.voxels, generator.noise
    drift = _numbers(generator.drift)
    yield "drivers", "i", len(drift)
    yield "shared_drivers", "i", voxels.drivers[0]
    yield "drifting", "i", drift.shape[2]
    yield "loadings", "f", np.concatenate([_numbers(generator.loadings).T, *drift.transpose(0, 2, 1)])
    yield "centre", "f", _numbers(generator.centre)
    yield "power", "f", _numbers(generator.power)
    yield "together", "f", _numbers(generator.together)
    yield "core_size", "i", generator.core.shape[1]
    yield "core", "i", _numbers(generator.core)
    yield "mixing", "f", _numbers(generator.mixing).transpose(0, 2, 1)
    yield "noise.levels", "f", _numbers(noise.levels)
    yield "noise.core", "i", _numbers(noise.zone) % 2
    yield "noise.shares", "f", _numbers(noise.shares)
    yield "noise.apart", "f", _numbers(noise.apart)
    yield "noise.beside", "i", _numbers(noise.beside)


def _of_voxels(generator: ShowerGenerator) -> _Arrays:
    voxels = generator.transform.voxels
    yield "voxels.products", "i", _numbers(voxels.products)
    yield "voxels.plain", "i", len(voxels.shape_centre)
    yield "voxels.layer_place", "i", voxels.places[0]
    yield "voxels.local", "i", 0 if generator.transform.frame is None else SIZE
    yield "voxels.centre", "f", _numbers(voxels.shape_centre)
    yield "voxels.spread", "f", _numbers(voxels.shape_spread)
    yield "voxels.stations", "f", _numbers(voxels.stations)
    yield "voxels.few", "f", _numbers(voxels.few)
    yield "voxels.line", "f", _numbers(voxels.line)
    yield "voxels.occupancy", "f", -_numbers(voxels.occupancy)
    yield "voxels.regressions", "f", np.stack([_numbers(voxels.location), _numbers(voxels.log_scale)], 1)
    yield "voxels.shape", "f", _numbers(voxels.shape)
    yield "counts.levels", "f", _numbers(voxels.counts.levels)
    yield "counts.limits", "f", _numbers(voxels.counts.limits)


def _of_refinement(generator: ShowerGenerator) -> _Arrays:
    refinement = generator.refinement
    yield "refinement.group", "i", _numbers(refinement.group)
    for key in ("coefficients", "means", "spreads", "driver_means", "position"):
        yield f"refinement.{key}", "f", _numbers(getattr(refinement, key))


def _numbers(tensor: torch.Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().cpu().numpy()
    return found.astype(np.float64) if found.dtype.kind == "f" else found
