"""Makers for tests of production: quick to import in worker processes, and misbehaving on demand.

As a program it makes a production with two workers, as ``calogen generate`` does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calogen.errors import CalogenError
from calogen.families import CartesianLayer, Condition, Family
from calogen.parts import Part
from calogen.production import Plan, produce
from calogen.shardfiles import Samples

FAMILY = Family(
    name="counted",
    layers=(CartesianLayer(shape=(2, 4), size=(20, 40)),),
    conditions=(Condition(name="incident_energy", unit="MeV", low=1e3, high=1e5, scale="log"),),
)
PIECE = 64


@dataclass(frozen=True)
class Counted:
    """Sample i is a function of the seed and i, quickly made.

    Attributes:
        seed: Decides the samples; so does nothing else here.
        pause: Seconds that a piece takes.
        bad: Index of the sample at which ``how`` happens.
        how: ``kill``, ``hang``, ``raise``, ``os-error``, ``few`` or ``many``.
        once: A file that is made then; while it exists, nothing happens.
    """

    seed: int = 0
    pause: float = 0.0
    bad: int = -1
    how: str = ""
    once: str = ""

    @property
    def family(self) -> Family:
        return FAMILY

    def describe(self) -> dict[str, Any]:
        return {"engine": "counted", "seed": self.seed}

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        for low in range(start - start % PIECE, stop, PIECE):
            index = np.arange(low, low + PIECE)[max(start - low, 0) : stop - low]
            if self.bad in index and not (self.once and Path(self.once).exists()):
                if self.once:
                    Path(self.once).touch()
                self._misbehave()
                if self.how == "few":
                    index = index[:-1]
                if self.how == "many":
                    index = np.append(index, index)
            time.sleep(self.pause)
            yield counted(index, self.seed)

    def _misbehave(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raise":
            raise ZeroDivisionError("the universe has no mass")
        if self.how == "os-error":
            raise FileNotFoundError(2, "No such file or directory", "geant4-data")
        if self.how == "hang":
            time.sleep(60)


def counted(index: np.ndarray, seed: int = 0) -> Samples:
    """What :class:`Counted` makes of some indices."""
    energy = 1e3 + index % 9973
    grid = (index[:, None].astype(np.uint64) * 8 + np.arange(8, dtype=np.uint64) + seed * 7919) * 2654435761 % 2**20
    return Samples(FAMILY, grid / 2**22 * energy[:, None], {"incident_energy": energy}, kind="generated")


def program(maker: Counted, out: Path, total: int, shard: int, workers: int = 2, part: str = "1/1") -> list[str]:
    """A command line that makes a production in a process of its own."""
    facts = {"maker": asdict(maker), "out": str(out), "total": total, "shard": shard, "workers": workers, "part": part}
    return [sys.executable, "-W", "error", str(Path(__file__)), json.dumps(facts)]


def main() -> None:
    from calogen.terminal import signals

    facts = json.loads(sys.argv[1])
    sys.modules.setdefault("makers", sys.modules["__main__"])
    Counted.__module__ = "makers"  # what a worker can import
    plan = Plan(Counted(**facts["maker"]), facts["total"], facts["shard"], Part.parse(facts["part"]))
    try:
        with signals() as should_stop:
            produce(plan, Path(facts["out"]), workers=facts["workers"], should_stop=should_stop)
    except CalogenError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
