"""Simulators in the box: real simulations that run on the user's own machine, behind one call shape.

``geant4`` makes showers with Geant4 (extra ``calogen[geant4]``), ``nbody`` makes density maps with a particle-mesh
code (extra ``calogen[nbody]``), ``toy`` draws from distributions with known moments. Each engine makes sample i from
(options, seed, i) alone, so that any split of the work over processes gives the same samples.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean
from ..production.parts import Part
from ..production.plan import MOST_SAMPLES, Production
from .engine import Engine

__all__ = ["ENGINES", "Engine", "build", "plan"]

_MOST_FILES = 1_000_000
_BEST_RATIO = 8  # no samples compress better
_FILES = 16  # at least, where there are samples enough: work for many processes

ENGINES = {"geant4": "Geant4", "nbody": "NBody", "toy": "Toy"}
"""The class of each engine, in the module of its name."""


def build(
    name: str, *, samples: int, seed: int = 0, conditions: Mapping[str, str] | None = None, **options: Any
) -> Engine:
    """An engine, its options checked, ready for :mod:`calogen.production`.

    Args:
        name: ``geant4``, ``nbody`` or ``toy``.
        samples: How many samples will be asked for; a Latin hypercube is designed for so many.
        seed: Seed of conditions and samples.
        conditions: Specifications by condition name, ``{"incident_energy": "uniform:1:100GeV"}``.
        **options: The engine's own options (see its class); text is converted, None leaves the default.

    Raises:
        ConfigError: If the engine or an option is unknown or wrong, or the engine's extra is not installed.
        ConditionError: If a condition cannot be simulated.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine '{name}'", found=name, hint=did_you_mean(name, ENGINES))
    if samples < 1:
        raise ConfigError("at least one sample", where="`samples`", found=samples)
    engine: type[Engine] = getattr(importlib.import_module(f".{name}", __name__), ENGINES[name])
    given = {key: value for key, value in options.items() if value is not None}
    if "samples" in engine.model_fields:
        given["samples"] = samples
    try:
        return engine(seed=seed, conditions=dict(conditions or {}), **given)
    except ValidationError as error:
        raise _explained(name, engine, error) from None


def plan(engine: Engine, samples: int, *, shard_size: int | None = None, part: Part | None = None) -> Production:
    """What :func:`calogen.production.run.produce` needs to know.

    Args:
        engine: From :func:`build`.
        samples: How many, of all parts.
        shard_size: Samples in a file (default: minutes of work, but enough files for many workers); rounded up to the
            engine's whole blocks.
        part: Make only this part.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise ConfigError("the number of samples is 1 to 10^12", where="`samples`", found=samples)
    block = engine.block
    usual = min(engine.blocks_a_shard * block, -(-samples // _FILES))
    size = -(-(shard_size or usual) // block) * block
    if -(-samples // size) > _MOST_FILES:
        raise ConfigError(
            "that would be too many files",
            where="`samples`",
            expected=f"at most {_MOST_FILES:,}",
            found=f"{samples} samples in files of {size}",
            hint="a larger `shard_size`, or fewer `samples`",
        )
    least = 4 * (engine.family.voxels + len(engine.family.conditions)) / _BEST_RATIO
    return Production(engine, samples, size, part or Part(), sample_bytes=least, isolated=engine.isolated)


def _explained(name: str, engine: type[Engine], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        inner = ("seed", "conditions", "samples", "detector", "model")
        known = [field.alias or key for key, field in engine.model_fields.items() if key not in inner]
        return ConfigError(f"'{name}' has no option '{option}'", found=option, hint=did_you_mean(str(option), known))
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"engine '{name}': {message}", where=option, found=first["input"] if option else None)
