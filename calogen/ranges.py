"""Ranges of samples, as `calogen info` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .families import Family
from .shardfiles import Samples
from .shardreader import Piece, Shards


@dataclass
class Ranges:
    """Ranges of the good rows seen so far."""

    rows: int = 0
    bad_rows: int = 0
    zeros: int = 0
    numbers: int = 0
    total: float = 0.0
    response: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    smallest: float = np.inf
    conditions: dict[str, tuple[float, float]] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        """Reads a piece to its end.

        Raises:
            ShardError: If the file is damaged or, after all its good rows were counted, if it has bad ones.
        """
        shards = Shards([piece], drop_bad=True)
        for samples in shards.chunks():
            self._add(samples)
            for name, label in piece.facts.items():
                if name not in samples.conditions:  # one label of all samples is no condition
                    self.labels.setdefault(name, Counter())[label] += len(samples)
        if shards.dropped:
            self.bad_rows += shards.dropped
            for _ in Shards([piece]).chunks():  # raises at the first bad row, naming it
                pass

    def _add(self, samples: Samples) -> None:
        values = samples.values
        positive = values[values > 0]
        self.rows += len(samples)
        self.numbers += values.size
        self.zeros += values.size - positive.size
        self.total += float(positive.sum(dtype=np.float64))
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.smallest = min(self.smallest, float(positive.min(initial=np.inf)))
        for name, array in samples.conditions.items():
            low, high = self.conditions.get(name, (np.inf, -np.inf))
            self.conditions[name] = min(low, float(array.min())), max(high, float(array.max()))
            for code, label in enumerate(samples.family.labels(name)):
                self.labels.setdefault(name, Counter())[label] += int(np.count_nonzero(array == code))
        if "incident_energy" in samples.conditions and samples.family.kind == "calorimeter":
            deposited = values.sum(axis=1, dtype=np.float64)
            self.response += float((deposited / samples.conditions["incident_energy"]).sum())

    def table(self, family: Family, names: Sequence[str]) -> dict[str, Any]:
        """The ranges as JSON-able values; empty ones are None."""
        conditions: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys([*names, *self.labels]):
            if name in self.labels or family.labels(name):
                conditions[name] = {"samples": dict(self.labels.get(name, {}))}
                continue
            low, high = self.conditions.get(name, (None, None))
            conditions[name] = {"unit": family.condition(name).unit, "low": low, "high": high}
        rows, numbers = self.rows or 1, self.numbers or 1
        return {
            "conditions": conditions,
            "values": {
                "unit": family.unit,
                "low": self.low if self.rows else None,
                "high": self.high if self.rows else None,
                "mean": self.total / numbers if self.rows else None,
                "smallest_positive": self.smallest if np.isfinite(self.smallest) else None,
                "zero_fraction": self.zeros / numbers if self.rows else None,
            },
            "response": self.response / rows if self.response else None,
            "bad_rows": self.bad_rows,
        }
