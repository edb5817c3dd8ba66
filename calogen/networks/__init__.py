"""Generators and critics, shaped by a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ..config import CriticConfig, GeneratorConfig
from ..errors import ConfigError
from ..families import Family
from ..transforms import ShowerTransform, build_transform
from .contract import Critic, Generator
from .layers import SLOPE
from .maps import MapCritic, MapGenerator
from .showers import ShowerCritic, ShowerGenerator

__all__ = [
    "SLOPE",
    "Critic",
    "Generator",
    "MapCritic",
    "MapGenerator",
    "ShowerCritic",
    "ShowerGenerator",
    "build_critic",
    "build_generator",
    "pick_device",
]


def build_generator(family: Family, conditions: Sequence[str], config: GeneratorConfig) -> Generator:
    """A generator for a family, not yet fitted.

    Raises:
        ConfigError: If the network does not suit the family.
    """
    natural = "mlp" if family.kind == "calorimeter" else "dcgan"
    if config.network not in ("auto", natural):
        raise ConfigError(
            f"network '{config.network}' does not make samples of family '{family.name}'",
            where="generator.network",
            expected=natural,
            found=config.network,
        )
    transform = build_transform(family, conditions)
    if isinstance(transform, ShowerTransform):
        return ShowerGenerator(family, transform, config.latent or 192, config.hidden)
    return MapGenerator(family, transform, conditions, config.latent or 32, config.channels)


def build_critic(generator: Generator, config: CriticConfig) -> Critic:
    """A critic for what ``generator`` makes, not yet fitted."""
    if isinstance(generator, ShowerGenerator):
        return ShowerCritic(generator.family, generator.transform, config.hidden)
    if isinstance(generator, MapGenerator):
        return MapCritic(generator.family, generator.transform, generator.conditions, config.channels)
    raise TypeError(f"no critic for a {type(generator).__name__}")


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device a configuration asks for.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no usable GPU here", where="device", found="cuda", hint="use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
