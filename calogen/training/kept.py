"""Fits that were made before: kept in the user's cache folder, and found again by everything that decides them.

A fit is a function of (data, family, settings of the fit, code, libraries, processor, threads): the digest of all of
these is its name. What is kept are the tensors of the networks, which is all that a resumed run has of its fit, too.
Nothing here is needed: a fit that is not there, is damaged, or cannot be written is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ..errors import StorageError
from ..storage import TEXT_BYTES, cache_folder, digest_of, read_bounded, write_atomic
from .setup import Setup
from .trainers import Trainer

FEWEST_SECONDS = 20.0
"""Time of a processor below which a fit is not worth keeping."""
_MOST = 64  # fits that are kept: older ones go
_MOST_BYTES = 2**31
_LATER = frozenset({
    "steps", "time", "batch_size", "critic_steps", "penalty", "penalty_every", "clip", "learning_rate",
    "critic_learning_rate", "betas", "decay", "ema", "log_every", "validate_every", "validation_size",
    "checkpoint_every", "patience", "tensorboard", "reuse_fit", "augment",
})  # fmt: skip
"""Settings of training that begin to matter after the fit."""


def fitted(trainer: Trainer, setup: Setup) -> tuple[float, str]:
    """Fit a trainer's networks to the data, or take the fit of an earlier run with the same data and settings.

    Args:
        trainer: Built, not yet armed.
        setup: What it was built for.

    Returns:
        Seconds that an earlier run took for the fit, 0 if it was made now; and a note for the log, or nothing.
    """
    if not setup.config.training.reuse_fit:
        trainer.fit()
        return 0.0, ""
    name, folder = fit_name(setup), cache_folder("fits")
    if folder is not None and (found := _taken(trainer, folder / name)) is not None:
        return found, f"took the fit of an earlier run with the same data and settings from {folder} ({found:.0f} s)"
    begun, work = time.monotonic(), time.process_time()
    trainer.fit()
    if folder is not None and time.process_time() - work >= FEWEST_SECONDS:
        _keep(trainer, folder / name, time.monotonic() - begun)
    return 0.0, ""


def fit_name(setup: Setup) -> str:
    """The digest of everything that decides a fit."""
    config = setup.config.model_dump(mode="json", exclude={"training": set(_LATER), "threads": True, "device": True})
    prior = None if setup.prior is None else setup.prior.card
    return digest_of({
        "data": setup.training.digest(),
        "config": config,
        "family": setup.family.model_dump(mode="json"),
        "conditions": list(setup.conditions),
        "prior": None if prior is None else [prior.sha256, prior.model_sha256],
        "code": _code(),
        "versions": [platform.python_version(), np.__version__, scipy.__version__, torch.__version__],
        "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability(), setup.device.type, setup.threads],
    })  # fmt: skip


@lru_cache(maxsize=1)
def _code() -> str:
    """The digest of calogen's sources: whatever changed in them could change a fit."""
    home, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        if path.relative_to(home).parts[0] not in ("cli", "export", "production", "simulators", "analysis", "data"):
            found.update(path.read_bytes())
    return found.hexdigest()


def _taken(trainer: Trainer, path: Path) -> float | None:
    """Load what is kept under a name into the networks; the seconds that it took, or None."""
    try:
        facts: dict[str, Any] = json.loads(read_bounded(path.with_suffix(".json"), TEXT_BYTES))
        data = read_bounded(path.with_suffix(".safetensors"), _MOST_BYTES)
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise ValueError("the tensors are not those that were kept")
        nn.ModuleDict(trainer.networks).load_state_dict(load(data))
        trainer.generator.remarks = tuple(map(str, facts["remarks"]))
        path.with_suffix(".json").touch()  # those that are used stay longest
        return float(facts["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        logging.getLogger("calogen").warning("a kept fit cannot be used (%s); it is made anew: %s", error, path)
        return None


def _keep(trainer: Trainer, path: Path, seconds: float) -> None:
    """Write the networks' tensors and what says that they are whole; without space, nothing."""
    state = nn.ModuleDict(trainer.networks).state_dict()
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "seconds": seconds, "remarks": list(trainer.generator.remarks)}
    with suppress(StorageError, OSError):
        write_atomic(path.with_suffix(".safetensors"), data)
        write_atomic(path.with_suffix(".json"), json.dumps(facts).encode())
        kept = sorted(path.parent.glob("*.json"), key=lambda known: known.stat().st_mtime, reverse=True)
        for old in kept[_MOST:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)
