"""Whether an export makes the samples that Python makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CalogenError
from ..models.contract import Generator
from ..production.noise import normals
from ..runs.checkpoint import Card

Array = NDArray[np.float32]
SAMPLES = 1000
"""Samples made by both, at each export."""
_LARGE = 1.0  # in the unit of the samples: relative differences are of values above it
_CLOSE = 3e-4  # relative difference that rounding may make
_RARELY = 1e-4  # share of the large values, and of values that are on in one and off in the other, where it may be more
_ROWS, _NUMBERS = 256, 1 << 20  # samples, and numbers, in one call


@dataclass(frozen=True)
class Trial:
    """Latent numbers and conditions, and what Python makes of them.

    Attributes:
        latents: (N, Z), those of ``Surrogate.sample(..., seed=0)``.
        columns: (N, C), evenly drawn from the trained ranges, in their units.
        samples: (N, ...), in physical units, as ``Surrogate.sample`` returns them.
        rounding: Largest relative difference, of large values, that the same network makes in double precision.
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


def difference(made: Array, expected: Array, unit: str) -> dict[str, Any]:
    """How samples (N, ...) differ from those of Python, in words that a JSON file can hold."""
    apart = np.abs(made.astype(np.float64) - expected)
    large = np.maximum(made, expected) > _LARGE
    relative = apart[large] / np.maximum(made, expected)[large]
    return {
        "samples": len(made),
        "largest": float(apart.max(initial=0.0)),
        "unit": unit,
        f"largest_relative_above_{_LARGE:g}": float(relative.max(initial=0.0)),
        "share_beyond_3e-4": float((relative > _CLOSE).mean()) if relative.size else 0.0,
        "on_in_one_only": float(((made > 0) != (expected > 0)).mean()) if made.size else 0.0,
    }


def require_equal(found: dict[str, Any]) -> dict[str, Any]:
    """The same, if it is what rounding can do.

    Raises:
        CalogenError: If it is more.
    """
    if not (found["share_beyond_3e-4"] <= _RARELY and found["on_in_one_only"] <= _RARELY):
        raise CalogenError(
            "the export does not make the samples that Python makes, so nothing is written",
            expected=f"values above {_LARGE:g} {found['unit']} to {_CLOSE:g}, but for rounding",
            found=f"{found['share_beyond_3e-4']:.2g} of them differ more, {found['on_in_one_only']:.2g} of all are on in "
            "one only",
            hint="please report it, with the model",
        )
    return found
