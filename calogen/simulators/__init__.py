"""Simulators in the box: real simulations that run on the user's own machine, behind one call shape.

``geant4`` makes showers with Geant4 (extra ``calogen[geant4]``), ``nbody`` makes density maps with a particle-mesh
code (extra ``calogen[nbody]``), ``toy`` draws from distributions with known moments. Each engine makes sample i from
(options, seed, i) alone, so that any split of the work over processes gives the same samples.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean
from ..production.parts import Part
from ..production.plan import MOST_SAMPLES, Production, Progress
from ..production.run import produce, sensible_workers
from .engine import Engine

__all__ = ["ENGINES", "Engine", "build", "plan", "simulate"]

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
    engine = engine_class(name)
    if samples < 1:
        raise ConfigError("at least one sample", where="`samples`", found=samples)
    given = {key: value for key, value in options.items() if value is not None}
    if "samples" in engine.model_fields:
        given["samples"] = samples
    try:
        return engine(seed=seed, conditions=dict(conditions or {}), **given)
    except ValidationError as error:
        raise _explained(name, engine, error) from None


def engine_class(name: str) -> type[Engine]:
    """The class of an engine by its name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine '{name}'", found=name, hint=did_you_mean(name, ENGINES))
    found: type[Engine] = getattr(importlib.import_module(f".{name}", __name__), ENGINES[name])
    return found


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


def simulate(
    engine: str,
    out: str | Path,
    n: int,
    *,
    seed: int = 0,
    conditions: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    part: Part | None = None,
    workers: int | None = None,
    cluster: str | Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], int] | None = None,
    **options: Any,
) -> Path:
    """Write a folder of simulated samples, or finish one.

    Example:
        >>> simulate("toy", "showers", 100, seed=1, conditions={"energy": "uniform:1:100GeV"}, workers=1).name
        'showers'

    Args:
        engine: ``geant4``, ``nbody`` or ``toy``.
        out: Folder; empty, absent, or what an earlier call with the same arguments left.
        n: How many samples.
        seed: Seed of conditions and samples.
        conditions: Specifications by condition name.
        shard_size: Samples in a file (default: some minutes of work).
        part: Make only this part of the samples; parts may share the folder.
        workers: Processes (default: the cores this process may use).
        cluster: Instead of them a running dask cluster: the address of its scheduler, ``"tcp://host:8786"``, or its
            scheduler file. All its workers must see ``out``.
        progress: Called with (samples done, samples in all), of the part.
        should_stop: Asked all the time; a signal number stops the work, and full shards stay.
        **options: The engine's own (see its class).

    Returns:
        The folder.

    Raises:
        ConfigError: An engine, option or number that is wrong; ``out`` holds something else or is being written; a
            cluster that cannot be used.
        ConditionError: A condition cannot be simulated.
        StorageError: The disk cannot hold the result.
        ProductionError: A worker process failed again and again, or the cluster's scheduler is gone.
        Interrupted: ``should_stop`` asked for it.
    """
    workers = sensible_workers(workers, cluster)
    source = build(engine, samples=n, seed=seed, conditions=conditions, **options)
    production = plan(source, n, shard_size=shard_size, part=part)
    how: dict[str, Any] = {"progress": progress, "should_stop": should_stop}
    return produce(production, Path(out), workers=workers, cluster=cluster, **how)


def _explained(name: str, engine: type[Engine], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        known = [key for key, _, _ in engine.described().options]
        return ConfigError(f"'{name}' has no option '{option}'", found=option, hint=did_you_mean(str(option), known))
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"engine '{name}': {message}", where=option, found=first["input"] if option else None)
