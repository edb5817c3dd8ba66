"""What an export is, in JSON: how to call it, what its numbers mean, and how far it differs from Python."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..families import Family
from ..models.contract import Generator
from ..models.maps.zeldovich import SHEETS, ZeldovichGenerator
from ..models.showers.generator import ShowerGenerator
from ..runs.checkpoint import Card

SCHEMA = 1
LATENT = "latent"
"""Name of the input for noise."""
_DIGITS = 4  # of coordinates in mm: a tenth of a micrometre


def described(
    generator: Generator, card: Card, name: str, folder: Path, facts: dict[str, Any], licence: str
) -> dict[str, Any]:
    """The description of an export.

    Args:
        generator: What was exported.
        card: Its card.
        name: Of the format.
        folder: Holds the files.
        facts: What the format says of itself: inputs, outputs, how it was checked.
        licence: Of the surrogate; empty: not stated.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    return {
        "calogen_export": SCHEMA,
        "calogen": __version__,
        "format": name,
        "surrogate": {
            "family": card.family.name,
            "network": card.config.generator.network,
            "step": card.step,
            "model_sha256": card.model_sha256,
            "card_sha256": card.sha256,
            "licence": licence or "not stated: ask who trained it",
        },
        **facts,
        "conditions": [c.model_dump(mode="json") for c in card.conditions],
        "noise": noise(generator),
        "samples": cells(card.family),
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }


def inputs(generator: Generator, card: Card, batch: int | str) -> list[dict[str, Any]]:
    """The inputs of a graph: noise, and one for each condition."""
    noise_in: dict[str, Any] = {"name": LATENT, "shape": [batch, generator.latent_size], "type": "float32", "unit": ""}
    found = [{**noise_in, "what": "independent standard normals"}]
    for known in card.conditions:
        condition = card.family.condition(known.name)
        what: dict[str, Any] = {"role": condition.role, "trained": [known.low, known.high]}
        if known.labels:
            what = {"role": condition.role, "labels": {label: condition.code(label) for label in known.labels}}
        found.append({"name": known.name, "shape": [batch, 1], "type": "float32", "unit": known.unit, **what})
    return found


def noise(generator: Generator) -> dict[str, Any]:
    """What the latent numbers are, and how they are drawn."""
    fine = generator.latent_size - generator.coarse
    return {
        "size": generator.latent_size,
        "parts": [{"name": name, "from": a, "to": b, "what": what} for name, a, b, what in _parts(generator)],
        "how": "independent numbers from the standard normal distribution, new ones for every sample, as from "
        " CLHEP::RandGauss::shoot() or std::normal_distribution<float>(0, 1). The same numbers and conditions "
        "give the same sample.",
        "as_in_python": {
            "what": "the numbers of sample i of a seed in Python, bit for bit",
            "generator": "Philox 4x64-10 (numpy.random.Philox), key (seed, 0)",
            "fine": fine,
            "coarse": generator.coarse,
            "words": f"W = ceil({fine} / 2) + ceil({generator.coarse} / 4) words of 64 bits; with C = ceil(W / 4), the "
            "counter begins at (i C, 0, 0, 0)",
            "numbers": f"first {fine} numbers, of the 32-bit halves u (low half first) of ceil({fine} / 2) words: "
            f"ndtri((u + 0.5) / 2^32); then {generator.coarse} numbers, of the 16-bit quarters h of the words after "
            "them: ndtri((h + 0.5) / 2^16); ndtri is the inverse of the normal distribution function, in float64, and "
            "the result is rounded to float32",
        },
    }


def _parts(generator: Generator) -> list[tuple[str, int, int, str]]:
    if isinstance(generator, ShowerGenerator):
        ends = np.cumsum([0, *generator.splits]).tolist()
        meanings = (
            ("energies", "energies of the layers"),
            ("factors", "what the voxels of a shower have in common"),
            ("voxels", "each voxel's own"),
        )
        return [(name, a, b, what) for (name, what), a, b in zip(meanings, ends, ends[1:], strict=False)]
    if isinstance(generator, ZeldovichGenerator):
        size = generator.family.voxels
        names = [f"sheet {i + 1}" for i in range(SHEETS)] + ["texture"]
        what = ["white noise on the pixels, row by row: a layer of matter"] * SHEETS
        what += ["white noise on the pixels, row by row: texture"]
        return [(name, i * size, (i + 1) * size, what[i]) for i, name in enumerate(names)]
    return [("latent", 0, generator.latent_size, "all of it")]


def cells(family: Family) -> dict[str, Any]:
    """What the numbers of a sample are: unit, order, and where each is."""
    found = {"unit": family.unit, "numbers": family.voxels, "threshold": family.threshold}
    if not family.layers:
        height, width = family.sample_shape
        pixel = family.box_size / height
        where = {"shape": [height, width], "pixel": pixel, "pixel_unit": "Mpc/h", "depth": family.depth}
        return {**found, **where, "order": "row by row; maps are periodic"}
    x, y = np.round(family.centres, _DIGITS).T.tolist()
    order = "layer by layer; in a layer, the second number of its shape runs fastest: of (x, y), or of (alpha, r) with "
    depth = [None] * family.voxels
    if family.depths:
        middle = np.mean(family.depths, axis=1)[family.layer_of_voxel]
        depth = np.round(middle, _DIGITS).tolist()
    layers = []
    for number, layer, begin in zip(family.layer_numbers, family.layers, family.layer_bounds, strict=False):
        layers.append({"number": number, "first": begin, "shape": list(layer.shape), **layer.model_dump(mode="json")})
    return {
        **found,
        "order": f"{order}alpha from -pi",
        "layers": layers,
        "centres_mm": {"x": x, "y": y, "z": depth},
        "axes": "z along the particle's entry, from the plane of the impact point; x and y across",
    }
