"""Parts of a production: which range of the samples a job makes, said by the user or by the batch system."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError

ALIGNMENT = 1024
"""Parts begin at multiples of this index."""


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a production; ``index`` is 1 to ``count``.

    Raises:
        ConfigError: If there is no such part.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(
                "there is no such part",
                where="`part`",
                expected="i/n with i from 1 to n",
                found=str(self),
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Part:
        """``i/n``, or ``auto``: from the variables of torchrun, srun or a Slurm array.

        Raises:
            ConfigError: If the text is neither, or ``auto`` finds nothing to go by.
        """
        if text == "auto":
            return _part_of(environment)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise ConfigError("`part` is i/n or auto", where="`part`", found=text, hint="for example `part=3/100`")
        return cls(int(match[1]), int(match[2]))

    def bounds(self, total: int) -> tuple[int, int]:
        """First index and one past the last, of ``total``; multiples of 1024, but for the end."""
        blocks = -(-total // ALIGNMENT)
        ends = (blocks * i // self.count * ALIGNMENT for i in (self.index - 1, self.index))
        start, stop = (min(end, total) for end in ends)
        return start, stop

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What the part adds to file names: nothing for the only one."""
        width = len(str(self.count))
        return "" if self.count == 1 else f"-{self.index:0{width}d}-of-{self.count}"


def _part_of(environment: Mapping[str, str]) -> Part:
    inner = _numbers(environment, "RANK", "WORLD_SIZE")  # torchrun
    if not inner and "SLURM_STEP_ID" in environment:  # a task of srun, not the batch script itself
        inner = _numbers(environment, "SLURM_PROCID", "SLURM_NTASKS")
    array = _numbers(environment, *(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")))
    if not inner and not array:
        raise ConfigError(
            "`part=auto` finds neither torchrun nor a Slurm array or srun",
            where="`part`",
            expected="RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID and the others of an array",
            hint="give `part=i/n`",
        )
    rank, size = inner or [0, 1]
    task, first, last, count = array or [0, 0, 0, 1]
    (step,) = (array and _numbers(environment, "SLURM_ARRAY_TASK_STEP")) or [1]
    number, off = divmod(task - first, max(step, 1))
    if step < 1 or off or not first <= task <= last or (last - first) // step + 1 != count:
        raise ConfigError(
            "`part=auto` needs an unbroken Slurm array",
            where="SLURM_ARRAY_TASK_COUNT",
            expected=f"every {step}. task from {first} to {last}",
            found=f"task {task} of {count}",
            hint="to repeat some tasks of an array, give `part=$SLURM_ARRAY_TASK_ID/n`",
        )
    if not 0 <= rank < size:
        raise ConfigError(
            "the rank is not below the number of processes", where="`part=auto`", found=f"{rank} of {size}"
        )
    return Part(number * size + rank + 1, count * size)


def _numbers(environment: Mapping[str, str], *names: str) -> list[int]:
    """Variables that are numbers; none if none of them is set."""
    if not any(name in environment for name in names):
        return []
    for name in names:
        if not re.fullmatch(r"[0-9]{1,9}", environment.get(name, "")):
            found = environment.get(name)
            raise ConfigError(
                "`part=auto` needs a number", where=name, found="nothing" if found is None else found[:50]
            )
    return [int(environment[name]) for name in names]
