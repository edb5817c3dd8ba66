"""Generators and critics, shaped by a family: which there are, and how one is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch

from ..config import Config, CriticConfig, GeneratorConfig
from ..errors import ConfigError, did_you_mean
from ..families import Family
from .contract import Critic, Generator, Summaries


class Network(NamedTuple):
    """A network: where its classes are, imported when it is built, and how it is best trained.

    Attributes:
        generator: ``module.Class`` in this package.
        critic: The same; none: it learns by its likelihood, as a :class:`LikelihoodGenerator`.
        training: Settings of the training that suit it, where none are given.
        summaries: ``module.Class`` of what judges batches by statistics; none: it cannot learn by ``matching``.
        paired: It makes maps from those of low resolution that come with them; others make no use of these.
    """

    generator: str
    critic: str | None = None
    training: Mapping[str, Any] = MappingProxyType({})
    summaries: str | None = None
    paired: bool = False

    @property
    def generator_class(self) -> type[Generator]:
        """What makes samples."""
        found: type[Generator] = _class(self.generator)
        return found

    @property
    def critic_class(self) -> type[Critic]:
        """What judges them.

        Raises:
            ConfigError: If there is none.
        """
        if self.critic is None:
            raise ConfigError("the network has no critic", where="generator.network", found=self.generator)
        found: type[Critic] = _class(self.critic)
        return found


NETWORKS: dict[str, dict[str, Network]] = {
    "calorimeter": {
        "copula": Network("showers.generator.ShowerGenerator", "showers.critic.ShowerCritic"),
        "mlp": Network("classics.networks.MlpGenerator", "classics.networks.MlpCritic"),
        "calogan": Network("classics.calogan.CaloganGenerator", "classics.calogan.CaloganCritic"),
        "dcgan": Network("classics.networks.ConvGenerator", "classics.networks.ConvCritic"),
        "vae": Network("classics.vae.VaeGenerator"),
        "flow": Network("classics.flow.FlowGenerator"),
        "pixelcnn": Network("classics.pixelcnn.PixelCnnGenerator"),
    },
    "map": {
        "zeldovich": Network(
            "maps.zeldovich.ZeldovichGenerator",
            "maps.patches.PatchCritic",
            {
                "objective": "matching",
                "update": "adam",
                "steps": 800,
                "batch_size": 48,
                "learning_rate": 2e-3,
                "betas": (0.8, 0.99),
                "ema": 0.98,
                "decay": 0.9,
            },
            "maps.summaries.MapSummaries",
        ),
        "dcgan": Network("maps.conv.ConvMapGenerator", "maps.conv.MapCritic"),
        "pixelcnn": Network("classics.pixelcnn.PixelCnnGenerator"),
        "super-resolution": Network(
            "maps.translation.Translator",
            "maps.translation.PairCritic",
            {"update": "adam", "batch_size": 16, "steps": 0, "critic_steps": 3},
            paired=True,
        ),
    },
}
"""Networks by the kind of family they serve and by name. To add one is to add an entry here, and its file."""
PROJECTED = MappingProxyType({"steps": 12, "log_every": 1, "validate_every": 1, "checkpoint_every": 1})
"""Settings that suit projected training, whose steps are rounds of a minute."""
DEFAULTS = {"calorimeter": "copula", "map": "zeldovich"}
"""What ``auto`` means, by kind of family."""
RENAMED = {"scores": "copula"}
"""Names that networks had in earlier checkpoints."""


def network_name(family: Family, name: str) -> str:
    """The name of a network, where ``auto`` stands for the default of the family."""
    return DEFAULTS[family.kind] if name == "auto" else name


def network_of(family: Family, name: str) -> Network:
    """The network of a name, for a family.

    Raises:
        ConfigError: If there is none of that name that makes samples of the family.
    """
    known, name = NETWORKS[family.kind], network_name(family, name)
    if name not in known:
        raise ConfigError(
            f"network '{name}' does not make samples of family '{family.name}'",
            where="generator.network",
            expected=", ".join(known),
            found=name,
            hint=did_you_mean(name, known),
        )
    return known[name]


def settled(config: Config, family: Family) -> Config:
    """The configuration with its network named, every size of generator and critic filled in, and what suits it.

    This is what a checkpoint keeps: it must not change its meaning when defaults do.

    Raises:
        ConfigError: If there is no such network, or it has no use for a setting that is given.
    """
    name = network_name(family, config.generator.network)
    network = network_of(family, name)
    classes = {"generator": network.generator_class, "critic": network.critic_class if network.critic else None}
    sections = {section: _filled(kind, section, getattr(config, section), name) for section, kind in classes.items()}
    given = config.training.model_fields_set
    suits = PROJECTED if config.training.update == "projected" else network.training
    if config.training.objective != suits.get("objective", config.training.objective) and "objective" in given:
        suits = {"update": "adam"}  # the others are for its usual objective
    if "time" in given:  # what ends the run is said
        suits = {key: value for key, value in suits.items() if key != "steps"}
    training = {key: value for key, value in suits.items() if key not in given}
    return config.updated({**sections, "generator": {"network": name, **sections["generator"]}, "training": training})


def build_generator(family: Family, conditions: Sequence[str], config: GeneratorConfig) -> Generator:
    """A generator for a family, not yet fitted.

    Raises:
        ConfigError: If the network does not suit the family.
    """
    kind = network_of(family, config.network).generator_class
    generator = kind(family, conditions, **_options(kind, config))
    generator.network = network_name(family, config.network)
    return generator


def build_critic(generator: Generator, config: CriticConfig, *, per_sample: bool = True) -> Critic:
    """A critic for what ``generator`` makes, not yet fitted.

    Args:
        generator: Of the samples to be judged.
        config: Shape of the critic.
        per_sample: The objective needs values that depend on their own sample alone, not on the rest of the batch.

    Raises:
        ConfigError: If the generator has none.
    """
    kind = network_of(generator.family, generator.network).critic_class
    return kind(generator, **_options(kind, config, per_sample=per_sample))


def build_summaries(generator: Generator) -> Summaries:
    """What judges batches of what ``generator`` makes by statistics, not yet fitted.

    Raises:
        ConfigError: If there is nothing.
    """
    place = network_of(generator.family, generator.network).summaries
    if place is None:
        raise ConfigError(f"network '{generator.network}' has no summaries", where="training.objective")
    found: Summaries = _class(place)(generator)
    return found


def _class(place: str) -> Any:
    module, name = place.rsplit(".", 1)
    with torch.device("cpu"):  # outlines are built on device meta, but constants of the file must serve all
        return getattr(importlib.import_module(f".{module}", __package__), name)


def _options(kind: type, config: GeneratorConfig | CriticConfig, **others: Any) -> dict[str, Any]:
    """The settings that a class takes and that are given."""
    taken = inspect.signature(kind).parameters
    return {key: value for key, value in (*config, *others.items()) if key in taken and value is not None}


def _filled(kind: type | None, section: str, config: GeneratorConfig | CriticConfig, network: str) -> dict[str, Any]:
    """Every setting of a section: as given, else as the class has it, else (it takes none of that name) absent."""
    taken = inspect.signature(kind).parameters if kind else {}
    given = {key: value for key, value in config if key != "network"}
    known = [key for key in given if key in taken]
    for key, value in given.items():
        if value is not None and key not in known:
            raise ConfigError(
                f"network '{network}' has no {section if kind is None else f'setting {key!r} of its {section}'}",
                where=f"{section}.{key}",
                found=value,
                hint=did_you_mean(key, known) or f"leave [{section}] out",
            )
    return {key: taken[key].default if value is None and key in taken else value for key, value in given.items()}


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device a configuration asks for.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "there is no usable GPU here", where="device", found="cuda", hint="`device=cpu` or `device=auto`"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
