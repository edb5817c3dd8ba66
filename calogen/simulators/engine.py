"""What every simulator offers, and what they share: seeds and conditions by sample index, missing extras."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..errors import ConditionError, ConfigError
from ..families import Condition, Family
from ..production.requests import Request, Spec, by_name
from ..shards.samples import Samples

_STREAM = 2  # of a seed; requests draw conditions from stream 1
_RESOLVED = ("samples", "detector", "model")  # fields that are no options: they follow from these
_EVERY_INDEX = 2**62  # specifications know no last sample


class Described(NamedTuple):
    """What an engine is, for people.

    Attributes:
        about: Paragraphs.
        options: Name, default and meaning of each option of its own.
    """

    about: list[str]
    options: list[tuple[str, str, str]]


class Engine(BaseModel, ABC):
    """A simulator with all its options, frozen and checked when built.

    Small and picklable; sample i is a function of (options, seed, i), whoever makes it and in what company.

    Attributes:
        seed: Random seed, 0 to 2^63 - 1.
        conditions: By name what they shall be (``uniform:1:100GeV``, or a number), over the engine's defaults.
        isolated: The engine may bring its process down, so that it needs one of its own.
        blocks_a_piece: Blocks made between two looks at the clock.
        blocks_a_shard: Blocks in a file, usually: minutes of work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    isolated: ClassVar[bool] = False
    blocks_a_piece: ClassVar[int] = 1
    blocks_a_shard: ClassVar[int] = 1024

    seed: int = Field(default=0, ge=0, lt=2**63)
    conditions: dict[str, str | float] = {}

    @classmethod
    def described(cls) -> Described:
        """What it does and its own options, from its docstring."""
        text = re.sub(r"`+([^`]*)`+", r"\1", inspect.cleandoc(cls.__doc__ or "")).replace("**", "")
        about, _, listed = text.partition("\nAttributes:\n")
        found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", listed, re.DOTALL | re.MULTILINE)
        meanings = {name: " ".join(meaning.split()) for name, meaning in found}
        options = []
        for name, field in cls.model_fields.items():
            if name in meanings and name not in _RESOLVED:
                usual = "..." if field.default is None else f"{field.default}"
                options.append((field.alias or name, usual, meanings[name]))
        return Described([" ".join(part.split()) for part in about.split("\n\n")], options)

    @property
    @abstractmethod
    def family(self) -> Family:
        """What one sample is."""

    @property
    def block(self) -> int:
        """Samples are made in indivisible groups of this many, aligned to the index; here every one stands alone."""
        return 1

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Engine, versions, options and seed, JSON-able: two engines that differ here make different samples."""

    @property
    @abstractmethod
    def drawn(self) -> Drawn:
        """Conditions of all samples."""

    @abstractmethod
    def make(self, start: int, stop: int) -> Samples:
        """Samples start to stop.

        Args:
            start: First index, a multiple of ``block``.
            stop: One past the last index, a multiple of ``block``.

        Raises:
            ConfigError: If they are not.
        """

    @abstractmethod
    def check(self) -> str:
        """A short simulation against what is known, as a table for people."""

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples of any range, some blocks at a time: the maker that :mod:`calogen.production` wants.

        Args:
            start: First index.
            stop: One past the last index.
        """
        end = -(-stop // self.block) * self.block
        step = self.block * self.blocks_a_piece
        for first in range(start // self.block * self.block, end, step):
            made = self.make(first, min(first + step, end))
            yield made.select(slice(max(start - first, 0), stop - first))


class OneByOne(Engine):
    """An engine that makes its samples one at a time."""

    @abstractmethod
    def draw(self, index: int, conditions: Mapping[str, float]) -> NDArray[np.floating[Any]]:
        """One sample, in the shape and unit of the family."""

    def make(self, start: int, stop: int) -> Samples:
        """See :meth:`Engine.make`."""
        count = len(checked_block(start, stop, self.block))
        drawn = self.drawn.conditions(self.drawn.names, self.seed, start, count)
        values = np.zeros((count, *self.family.sample_shape), np.float32)
        for i in range(count):
            values[i] = self.draw(start + i, drawn.row(i))
        conditions = drawn.only([c.name for c in self.family.conditions])
        return Samples(self.family, values, conditions, kind="reference", provenance=(self.describe(),))


def stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample or realisation: independent of all others, 2^128 of them.

    Args:
        seed: Seed of the engine.
        index: Which sample, from 0.
    """
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, index, 0]))


def checked_block(start: int, stop: int, block: int) -> range:
    """The blocks that make samples start to stop.

    Raises:
        ConfigError: If the ends are not multiples of the block.
    """
    if not 0 <= start <= stop or start % block or stop % block:
        raise ConfigError(
            "samples are made in whole blocks",
            where="start, stop",
            expected=f"multiples of {block}",
            found=(start, stop),
        )
    return range(start // block, stop // block)


def _span(low: float, high: float, unit: str) -> str:
    """A range for people; it may be one value, or have no upper end."""
    text = f"{low:g}" if low == high else f"{low:g} to {high:g}" if high < np.inf else f"at least {low:g}"
    return f"{text} {unit}".rstrip()


class Drawn(Request):
    """What the conditions of every sample are drawn from, checked against what an engine can simulate.

    Args:
        known: All conditions the engine has, with the usual range of each.
        given: What the user wants of them, by name: see :meth:`calogen.production.requests.Request.of`.
        defaults: The same of those not given.
        limits: The lowest and highest value the engine can do, by name.
        reasons: Why there are limits, where it is not obvious, by name.

    Raises:
        ConditionError: If a name or a specification is wrong, or a value cannot be simulated.
    """

    def __init__(
        self,
        known: Sequence[Condition],
        given: Mapping[str, str | float],
        defaults: Mapping[str, str],
        limits: Mapping[str, tuple[float, float]],
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        every = Family.model_construct(name="simulated", conditions=tuple(known))
        wanted = {c.name: defaults[c.name] for c in known} | by_name(every, given)
        super().__init__(_EVERY_INDEX, {c.name: Spec.of(c, wanted[c.name]) for c in known})
        self.texts = {name: spec.text for name, spec in self.specs.items()}
        self._known = known
        for condition in known:
            low, high = limits.get(condition.name, (-np.inf, np.inf))
            values = self.specs[condition.name].values
            if not (low <= values.min() and values.max() <= high and condition.possible(values).all()):
                raise ConditionError(
                    f"'{condition.name}' cannot be simulated there",
                    where=self.texts[condition.name],
                    expected=_span(low, high, condition.unit) if condition.name in limits else condition.domain,
                    found=_span(values.min(), values.max(), condition.unit),
                    hint=(reasons or {}).get(condition.name),
                )

    def fixed(self, name: str) -> float | None:
        """The value of a condition that is the same for all samples; None if it varies."""
        values = self.specs[name].values
        return float(values[0]) if values.min() == values.max() else None

    def ranged(self, name: str) -> Condition:
        """A condition with the range it varies over; a fixed one keeps its usual range, widened to hold its value."""
        condition = next(c for c in self._known if c.name == name)
        if condition.labels:
            return condition
        values, fixed = self.specs[name].values, self.fixed(name)
        low, high = float(values.min()), float(values.max())
        if fixed is not None:
            low, high = min(condition.low, low), max(condition.high, high)
        return condition.model_copy(update={"low": low, "high": high})
