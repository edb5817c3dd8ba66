"""What a metric is: a quantity, declared once beside the code that measures it; a key that says of what; and numbers.

Everything a reader sees of a quantity (tables, glossary, verdict, ``metrics.json``) follows from its declaration. Keys
are made of their parts, and their texts are never taken apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from ..survey.selections import ALL, Selection

_DECLARED: dict[str, Quantity] = {}


@dataclass(frozen=True)
class Quantity:
    """Something that is measured, whatever observable and bin it is measured in.

    Attributes:
        name: How keys call it; no two quantities have the same.
        title: What it is in a few words.
        meaning: What the glossary says; quantities that share a meaning share an entry.
        unit: Its unit, if that is always the same; ``sd`` is the reference's standard deviation.
        headline: Whether tables show it first, of all samples.
        in_quarters: Whether they show it in the quarters of the conditions' plane, too.
        large: Whether it is printed large beside the verdict.
        telling: Whether a pull above the floor counts as telling the two sides apart in the verdict.
        counted: Whether the verdict counts how many of its metrics are near their floor: a one-dimensional distance.

    Raises:
        ValueError: If another quantity has the name.
    """

    name: str
    title: str
    meaning: str
    unit: str = ""
    headline: bool = False
    in_quarters: bool = False
    large: bool = False
    telling: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        if _DECLARED.setdefault(self.name, self) != self:
            raise ValueError(f"the quantity '{self.name}' is declared twice")


def declared() -> tuple[Quantity, ...]:
    """All quantities of the modules imported so far, in the order in which they were declared."""
    return tuple(_DECLARED.values())


class Key(str):
    """Which metric: ``quantity/observable[bin]``, ``quantity_SIZE``.

    A key equals its text, so that either finds a metric in a mapping.

    Attributes:
        quantity: What is measured.
        observable: Of which observable, condition, view or fit; empty for whole samples.
        selection: In which selection of samples.
        size: Samples on each side, of quantities that are compared at equal sizes only; else 0.
    """

    quantity: Quantity
    observable: str
    selection: Selection
    size: int

    def __new__(cls, quantity: Quantity, observable: str = "", selection: Selection = ALL, size: int = 0) -> Key:
        """The key of these parts."""
        of = f"/{observable}" if observable else ""
        key = super().__new__(cls, f"{quantity.name}{f'_{size}' if size else ''}{of}{selection.suffix}")
        key.quantity, key.observable, key.selection, key.size = quantity, observable, selection, size
        return key

    def __getnewargs__(self) -> tuple[Any, ...]:  # a copy is made of the parts
        return self.quantity, self.observable, self.selection, self.size


@dataclass(frozen=True)
class Metric:
    """A measured comparison.

    Attributes:
        value: The distance or difference.
        error: Its statistical uncertainty (one standard deviation).
        floor: The same number for reference against reference.
        floor_error: Uncertainty of the floor.
        pull: (value - floor) / sqrt(error^2 + floor_error^2); None when that is undefined.
        n: Samples on each side.
        unit: Unit of the value; ``sd`` is the reference's standard deviation, empty is dimensionless.
        statistic: Of the largest of many pulls, which metric it is the pull of.
        lower_limit: Whether the value is a lower limit.
    """

    value: float | None
    error: float | None
    floor: float | None
    floor_error: float | None
    pull: float | None
    n: int
    unit: str = ""
    statistic: Key | None = None
    lower_limit: bool = False

    @classmethod
    def of(cls, value: float, error: float, floor: float, floor_error: float, n: int, unit: str = "") -> Metric:
        """A metric with its pull worked out, and None for whatever is not finite."""
        scale = math.hypot(error, floor_error)
        pull = (value - floor) / scale if scale > 0 else (0.0 if value == floor else math.nan)
        finite = [float(x) if math.isfinite(x) else None for x in (value, error, floor, floor_error, pull)]
        return cls(finite[0], finite[1], finite[2], finite[3], finite[4], int(n), unit)

    @classmethod
    def from_splits(cls, draws: ArrayLike, n: int, unit: str = "") -> Metric:
        """A metric from D(R1, G), D(R1, R2) and D(R1*, G*) of every split, (3, S)."""
        value, floor, resampled = np.asarray(draws, dtype=np.float64)
        floor_error = float(floor.std(ddof=1)) / math.sqrt(len(floor))
        return cls.of(float(value.mean()), float(resampled.std(ddof=1)), float(floor.mean()), floor_error, n, unit)

    @classmethod
    def from_subsamples(cls, values: ArrayLike, floors: ArrayLike, n: int, available: int, unit: str = "") -> Metric:
        """A metric from D(R1, G) and D(R1, R2) of S splits into sub-samples of n, for distances no resample can bear.

        Repeated samples are each other's nearest neighbours, so a bootstrap says nothing about such distances. The
        spread of sub-samples does: the delete-d jackknife gives the variance of the whole sample's value, n / (N - n)
        times that of the sub-samples', and 1 / S is what a finite number of them adds.

        Args:
            values: D(R1, G), (S,).
            floors: D(R1, R2), (S,).
            n: Samples on each side of each split.
            available: Samples on the smaller side, N.
            unit: Unit of the value.

        Source: Shao and Wu 1989, Annals of Statistics 17, 1176.
        """
        value, floor = np.asarray(values, dtype=np.float64), np.asarray(floors, dtype=np.float64)
        shrink = math.sqrt(min(1.0, 1 / len(value) + n / max(available - n, 1)))
        errors = float(value.std(ddof=1)) * shrink, float(floor.std(ddof=1)) / math.sqrt(len(floor))
        return cls.of(float(value.mean()), errors[0], float(floor.mean()), errors[1], n, unit)

    @property
    def far(self) -> float:
        """The pull as a number to sort by: infinite where it is undefined."""
        return math.inf if self.pull is None else self.pull

    @property
    def exact(self) -> bool:
        """Whether both sides are equal and chance cannot make them differ, as those of a constant are."""
        return not (self.value or self.error or self.floor or self.floor_error)

    def to_json(self) -> dict[str, Any]:
        """The numbers by name; ``statistic`` and ``lower_limit`` only where there is one."""
        rare = ("statistic", "lower_limit")
        return {name: value for name, value in asdict(self).items() if name not in rare or value}


class Metrics(Mapping[Key, Metric]):
    """The metrics of one surrogate in the order measured, found by key or by its text."""

    def __init__(self, found: Mapping[Key, Metric]) -> None:
        self._found = dict(found)

    def __getitem__(self, key: str) -> Metric:
        return self._found[cast(Key, key)]  # a text equals its key

    def __iter__(self) -> Iterator[Key]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def select(
        self, *quantities: Quantity | str, observable: str | None = None, selection: Selection | str | None = None
    ) -> Metrics:
        """The metrics of some quantities, of one observable, in one selection; each may be left out.

        Args:
            quantities: Declarations or names; none for all.
            observable: Empty for metrics of whole samples.
            selection: A selection or its name; empty for all samples.
        """
        names = {q if isinstance(q, str) else q.name for q in quantities}
        where = selection.name if isinstance(selection, Selection) else selection
        return Metrics(
            {
                key: metric
                for key, metric in self.items()
                if (not names or key.quantity.name in names)
                and observable in (None, key.observable)
                and where in (None, key.selection.name)
            }
        )
