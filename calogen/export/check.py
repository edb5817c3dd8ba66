"""Whether an export makes the samples that Python makes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CalogenError
from ..families import Family
from ..models.contract import Generator
from ..production.noise import normals
from ..runs.checkpoint import Card

Array = NDArray[np.float32]
SAMPLES = 1000
"""Samples made by both, at each export."""
KEPT, TRIAL = 100, "check.npz"
"""How many of them are kept beside an export, and the file's name: so that anyone can repeat the check."""
_LARGE = 1.0  # in the unit of the samples: relative differences are of values above it
_CLOSE = 3e-4  # relative difference that rounding may make
_RARELY = 1e-4  # share of the large values, and of values that are on in one and off in the other, where it may be more
_ROUNDED = 1 - 1e-6  # a value at the threshold may be rounded to below it
_ROWS, _NUMBERS = 256, 1 << 20  # samples, and numbers, in one call


@dataclass(frozen=True)
class Trial:
    """Latent numbers and conditions, and what Python makes of them.

    Attributes:
        latents: (N, Z), those of ``Surrogate.sample(..., seed=0)``.
        columns: (N, C), evenly drawn from the trained ranges, in their units.
        samples: (N, ...), in physical units, as ``Surrogate.sample`` returns them.
    """

    latents: Array
    columns: Array
    samples: Array


def trial(generator: Generator, card: Card, count: int = SAMPLES) -> Trial:
    """What an export is checked with."""
    stream = np.random.default_rng(0)
    columns = np.zeros((count, len(card.conditions)), np.float32)
    for i, known in enumerate(card.conditions):
        numbers = known.numbers(card.family.condition(known.name))
        columns[:, i] = stream.choice(numbers, count) if known.labels else stream.uniform(known.low, known.high, count)
    latents = normals(0, 0, count, generator.latent_size - generator.coarse, generator.coarse)
    return Trial(latents, columns, in_blocks(lambda *inputs: reference(generator, *inputs), latents, columns))


@torch.inference_mode()
def reference(generator: Generator, latents: Array, columns: Array) -> Array:
    """Samples (N, ...) of the module that was trained, those below the threshold put to 0."""
    made: Array = generator(torch.from_numpy(latents), torch.from_numpy(columns)).numpy()
    made[made < generator.family.threshold] = 0
    return made


def in_blocks(make: Callable[[Array, Array], Array], latents: Array, columns: Array) -> Array:
    """Samples made in blocks that fit into memory."""
    rows = max(1, min(_ROWS, _NUMBERS // latents.shape[1]))
    starts = range(0, len(latents), rows)
    parts = [make(np.ascontiguousarray(latents[i : i + rows]), columns[i : i + rows]) for i in starts]
    return np.concatenate(parts)


def difference(made: Array, expected: Array, family: Family) -> dict[str, Any]:
    """How samples (N, ...) differ from those of Python, in words that a JSON file can hold.

    Where rounding turns a voxel on or off, its layer's other voxels have the rest of the layer's energy. So differences
    are those of layers with the same voxels on, and what is on in one only is counted by itself.
    """
    made, expected = (values.reshape(len(values), -1) for values in (made, expected))
    turned = (made > 0) != (expected > 0)
    parts = family.layer_slices or (slice(None),)
    layers = [np.repeat(~turned[:, part].any(1, keepdims=True), turned[:, part].shape[1], 1) for part in parts]
    same, higher = np.concatenate(layers, 1), np.maximum(made, expected)
    apart = np.where(same, np.abs(made.astype(np.float64) - expected), 0.0)
    large = same & (higher > _LARGE)
    relative = apart[large] / higher[large]
    return {
        "samples": len(made),
        "unit": family.unit,
        "largest": float(apart.max(initial=0.0)),
        "largest_relative_above_1": float(relative.max(initial=0.0)),
        "share_beyond_3e-4": float((relative > _CLOSE).mean()) if relative.size else 0.0,
        "on_in_one_only": float(turned.mean()) if turned.size else 0.0,
        "largest_on_in_one_only": float(np.where(turned, higher, 0.0).max(initial=0.0)),
    }


def kept(arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The first inputs and outputs of a trial as a ``.npz`` file, by their names in the graph."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{name: array[:KEPT] for name, array in arrays.items()})
    return stream.getvalue()


@torch.inference_mode()
def rounding(generator: Generator, latents: Array, columns: Array) -> dict[str, Any]:
    """:func:`difference` of a module of showers from itself in double precision: what rounding alone does."""
    exact = copy.deepcopy(generator).double()

    def doubled(*given: Array) -> Array:
        made: Array = exact(*(torch.from_numpy(array).double() for array in given)).numpy()
        made[made < generator.family.threshold * _ROUNDED] = 0
        return made.astype(np.float32)

    single = in_blocks(lambda *given: reference(generator, *given), latents, columns)
    return difference(single, in_blocks(doubled, latents, columns), generator.family)


def require_equal(found: dict[str, Any], generator: Generator, made: Trial) -> dict[str, Any]:
    """The same difference, if it is what rounding can do.

    Raises:
        CalogenError: If it is more.
    """
    more, turned = found["share_beyond_3e-4"], found["on_in_one_only"]
    if generator.family.layers and (more > _RARELY or turned > _RARELY):
        own = rounding(generator, made.latents, made.columns)  # some networks make it count for more
        more -= 3 * own["share_beyond_3e-4"]
        turned -= 3 * own["on_in_one_only"]
    if not (more <= _RARELY and turned <= _RARELY):
        raise CalogenError(
            "the export does not make the samples that Python makes, so nothing is written",
            expected=f"values above {_LARGE:g} {found['unit']} to {_CLOSE:g}, but for rounding",
            found=f"{found['share_beyond_3e-4']:.2g} differ more; {found['on_in_one_only']:.2g} are on in one only",
            hint="please report it, with the model",
        )
    return found
