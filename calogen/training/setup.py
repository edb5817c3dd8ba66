"""What a run needs, opened and settled before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config, Reading
from ..errors import ConfigError, ShardError, require
from ..families import Family, Symmetry
from ..models.registry import build_critic, build_generator, network_name, network_of, pick_device, settled
from ..runs.checkpoint import Checkpoint
from ..runs.find import load_model
from ..shards.conditions import Conditions
from ..shards.reader import Shards
from ..shards.samples import LOW
from ..shards.sources import open_splits
from .objectives import objective_of
from .ranks import ALONE, Ranks

FEWEST = 1000
"""Training samples below which critics learn single samples by heart, and projected training is refused."""

_COPIES = 4  # of every parameter in training: itself, its gradient, Adam's two averages


@dataclass(frozen=True)
class Setup:
    """What a run needs: data that are open, and everything else settled.

    Attributes:
        config: With family, conditions and all settings of the networks filled in.
        family: What is simulated, with the symmetries to be used, or tried: showers are tested for theirs first.
        conditions: Names, in the order of the columns.
        training: Data to train on.
        validation: Data to validate on.
        device: Where to train.
        threads: CPU threads.
        prior: What the fit starts from; none: nothing.
        ranges: Of every condition in all data outside held-out ranges: lowest and highest value; numbers of labels.
        ranks: The processes that train.
    """

    config: Config
    family: Family
    conditions: tuple[str, ...]
    training: Shards
    validation: Shards
    device: torch.device
    threads: int
    prior: Checkpoint | None = None
    ranges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ranks: Ranks = ALONE

    def using(self, symmetries: Sequence[Symmetry]) -> Setup:
        """The same with these symmetries."""
        return replace(self, family=self.family.with_symmetries(symmetries))

    def describe(self) -> dict[str, Any]:
        """What a person wants to know before starting."""
        generator, critic = self.parameters()
        return {
            "family": self.family.name,
            "conditions": list(self.conditions),
            "training samples": len(self.training),
            "validation samples": len(self.validation),
            "network": self.config.generator.network,
            "objective": self.config.training.objective,
            "update": self.config.training.update,
            "steps": self.config.training.steps,
            "generator parameters": generator,
            "critic parameters": critic,
            "device": str(self.device),
            "threads": self.threads,
            **({"ranks": self.ranks.size} if self.ranks.size > 1 else {}),
        }

    def parameters(self) -> tuple[int, int]:
        """Parameters of generator and critic (0: there is none); no memory is taken for them.

        Raises:
            ConfigError: If such networks cannot make or judge samples of the family.
        """
        objective = objective_of(self.family, self.config.generator.network, self.config.training.objective)
        with torch.device("meta"):
            generator = build_generator(self.family, self.conditions, self.config.generator)
            count = sum(p.numel() for p in generator.parameters())
            if objective is None:
                return count, 0
            critic = build_critic(generator, self.config.critic, per_sample=objective.penalty is not None)
        return count, sum(p.numel() for p in critic.parameters())


def _ranges(
    sides: Sequence[Shards], names: Sequence[str], holdout: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, ...]]:
    """The range of every condition in all data outside held-out ranges; labels by their numbers."""
    parts = [side.all_conditions() for side in sides]
    table = Conditions.concatenate(parts, tuple(parts[0]))
    known = {condition.name: condition for condition in sides[0].family.conditions}
    kept = np.ones(table.rows, np.bool_)
    for name, column in table.items():
        kept &= known[name].possible(column)
        low, high = holdout.get(name, (np.inf, -np.inf))
        kept &= ~((column >= low) & (column <= high))
    found = {}
    for name in names if kept.any() else ():
        column = table[name][kept]
        ends = np.unique(column) if known[name].labels else (column.min(), column.max())
        found[name] = tuple(float(value) for value in ends)
    return found


def _require_condition(family: Family, name: str) -> None:
    try:
        family.condition(name)
    except ConfigError as error:
        if "did you mean" in (error.hint or ""):
            raise
        hint = f"{error.hint}; a label of whole files is named with their path: PATH,{name}=LABEL"
        raise ConfigError(error.what, found=error.found, hint=hint) from None


def _tried(config: Config, family: Family) -> tuple[Symmetry, ...]:
    """Symmetries to be tried on showers, or those of maps."""
    allowed = family.proposed_symmetries() if family.layers else family.symmetries
    if config.symmetries is None:
        return allowed
    if wrong := [name for name in config.symmetries if name not in allowed]:
        raise ConfigError(
            f"family '{family.name}' has no symmetry '{wrong[0]}'",
            where="symmetries",
            expected=", ".join(allowed) or "none: the layers allow none",
            found=wrong[0],
        )
    return config.symmetries


def _prior(config: Config, family: Family, names: tuple[str, ...]) -> Checkpoint:
    """The surrogate that a fit starts from."""
    found = load_model(str(config.prior))
    card = found.card
    for what, mine, other in (
        ("other layers", family.summary, card.family.summary if not family.same_samples(card.family) else ""),
        ("other conditions", ", ".join(names), ", ".join(card.config.conditions or ())),
        ("another network", network_name(family, config.generator.network), card.config.generator.network),
    ):
        if other and mine != other:
            raise ConfigError(
                f"the surrogate to start from has {what}",
                where=f"`prior` = '{config.prior}'",
                expected=mine,
                found=other,
                hint="start from one of the same geometry, conditions and network, or leave out `prior`",
            )
    return found


def _paired(config: Config, family: Family) -> Family:
    """The family of what a network makes: maps of low resolution are a part of it only where the network wants them.

    Raises:
        ConfigError: If it does, and there are none.
    """
    name = network_name(family, config.generator.network)
    if not network_of(family, name).paired:
        return family.unpaired()
    if family.low_pixels is None:
        raise ConfigError(
            f"network '{name}' learns from pairs of maps, and the data have none of low resolution",
            where="generator.network",
            expected=f"a dataset '{LOW}' beside the maps",
            found=family.summary,
            hint="simulate them with `pairs=2`, or take another network",
        )
    return family


def _update(config: Config, family: Family, names: Sequence[str], samples: int) -> str:
    """How the generator learns.

    Raises:
        ConfigError: If it cannot learn as asked.
    """
    asked, objective = config.training.update, objective_of(family, config.generator.network, config.training.objective)
    usual = network_of(family, config.generator.network).training.get("update")
    if asked == "adam" or (asked == "auto" and usual == "adam"):
        return "adam"
    with torch.device("meta"):
        refined = build_generator(family, names, config.generator).refinement is not None
    smooth = objective is not None and objective.penalty is not None
    suits = (
        (refined, "the network has no refinement", f"network '{network_name(family, config.generator.network)}'"),
        (smooth, "its critics need an objective with a penalty", f"objective '{config.training.objective}'"),
        (samples >= FEWEST, f"it takes at least {FEWEST} training samples", samples),
    )
    for holds, what, found in suits:
        if not holds and asked == "projected":
            hint = "set training.update=adam, or training.steps=0 for the fitted start alone"
            raise ConfigError(
                f"projected training is not possible: {what}", where="training.update", found=found, hint=hint
            )
    return "projected" if all(holds for holds, _, _ in suits) else "adam"


def reading_of(config: Config) -> Reading:
    """What is said of the data: of a surrogate without conditions, that they need no parameters, too."""
    return config.reading.model_copy(update={"parameters": config.conditions != ()})


def prepare(
    config: Config, data: str | Path | Sequence[str | Path], *, strict: bool = False, ranks: Ranks = ALONE
) -> Setup:
    """Open the data and settle family, conditions and device; writes nothing.

    Args:
        config: What to do.
        data: File, glob, folder of shards, or folder with ``train/`` and ``validation/``.
        strict: Refuse data of which samples are missing.
        ranks: The processes that train.

    Raises:
        ConfigError: If configuration and data do not go together, or ask for more than the machine has.
        ShardError: If the data cannot be used.
    """
    labels: dict[str, tuple[str, ...]] = dict.fromkeys(config.conditions or (), ())  # they may be what the files are of
    how: dict[str, Any] = {"family": config.resolved_family(), "drop_bad": config.drop_bad, "strict": strict}
    training, validation = open_splits(data, labels=labels, reading=reading_of(config), rule=config.split, **how)
    family = _paired(config, training.family)
    names = tuple(c.name for c in family.conditions) if config.conditions is None else config.conditions
    for name in (*names, *config.holdout):
        _require_condition(family, name)
        if name in config.holdout and family.labels(name):
            raise ConfigError("ranges are held out, not labels", where=f"holdout {name}", hint="leave out its files")
        if name not in training.condition_names:
            raise ShardError(
                f"the data lack the condition '{name}'",
                expected=name,
                found=", ".join(training.condition_names) or "no conditions",
                hint="choose other `conditions`, or train `unconditional`",
            )
    if len(set(names)) != len(names):
        raise ConfigError("a condition is named twice", where="conditions", found=", ".join(names))
    if family.energy is not None and family.energy.name not in training.condition_names:
        raise ShardError(
            "the showers have no incident energies, and validation needs them",
            found=", ".join(training.condition_names) or "no conditions",
            hint="give files with incident energies, even to train `unconditional`",
        )
    if not len(validation):
        raise ShardError("there are no validation samples", hint="add data or a validation/ folder")
    prior = None if config.prior is None else _prior(config, family, names)
    if prior is not None:
        for name in names:  # conditions on the scale that its numbers are for
            family = family.with_condition(prior.card.family.condition(name))
    objective_of(family, config.generator.network, config.training.objective)  # or it says why they do not fit
    if config.training.tensorboard:
        require("tensorboard", "tensorboard")
    config = config.updated({"training": {"update": _update(config, family, names, len(training))}})
    config = settled(config.updated({"family": family, "conditions": names}), family)
    device = pick_device(config.device)
    if config.training.update == "projected":
        device, ranks = torch.device("cpu"), ALONE  # whose rounds take a minute there, in one process
    elif config.training.objective == "matching":
        ranks = ALONE  # means over a whole batch
    else:
        ranks.share(config.training.batch_size)  # or it says why not
    threads, device = ranks.threads(config.threads), ranks.device(device)
    setup = Setup(
        config,
        family.with_symmetries(_tried(config, family)),
        names,
        training,
        validation,
        device,
        threads,
        prior,
        _ranges((training, validation), names, config.holdout),
        ranks,
    )
    needed = 4 * sum(setup.parameters()) * _COPIES
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            "the networks do not fit into memory",
            where="generator, critic",
            expected=f"at most {memory / 1e9:.0f} GB",
            found=f"{needed / 1e9:.0f} GB for weights, gradients and averages",
            hint="make generator.hidden and critic.hidden smaller (channels for maps)",
        )
    return setup
