"""Every code block of README.md runs as it stands there, with smaller numbers, or says here why it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import ROOT

README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Run:
    """A block that runs in a copy of the clone.

    Attributes:
        smaller: What is replaced first; each of these texts must be in the block.
        before: Python code of the page that the block goes on from.
        slow: Whether it takes too long for ``make test``.
    """

    smaller: dict[str, str] = field(default_factory=dict)
    before: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Read:
    """A block that does not run; the shell must be able to parse it if it is one of its own."""

    why: str


IS_PICTURE = Read("a picture, no program")

BLOCKS = {
    "make demo ": Read("installs from the net and trains for minutes; the targets are tested below"),
    "pip install ": Run(smaller={"pip install -c constraints.txt .": ":", "-n 10000": "-n 200"}),
    "import calogen": Run(smaller={"20_000": "500", '"steps": 5': '"steps": 1'}, slow=True),
    "calogen simulate geant4 --set geometry=": Run(
        smaller={"-n 3000": "-n 400", "-n 1000": "-n 100", "--data own ": "--data own --steps 1 ", "-n 5000": "-n 500"},
        slow=True,  # showers take half a minute, and the fit as long
    ),
    "calogen simulate nbody -n 48 ": Run(smaller={"--size 512": "--size 128", "-n 480": "-n 48"}, slow=True),
    "maps = calogen.Surrogate": Run(smaller={"512": "128"}, before="import calogen"),
    "calogen train --data data/calogan-gamma ": Run(
        smaller={"--energy-conditioned": "--energy-conditioned --steps 1", "-n 10000": "-n 200"}, slow=True
    ),
    "# Slurm: a job array": Read("needs a Slurm cluster"),
    "# HTCondor: a submit file": Read("a file for HTCondor, not for a shell"),
    "simulation shards": IS_PICTURE,
    "calogen simulate nbody -n 28800 ": Run(smaller={"-n 28800": "-n 240", "-n 144000": "-n 480"}, slow=True),
}
"""Every block by how its first line begins."""


def blocks(kind: type = object) -> list[tuple[str, str]]:
    """Language and text of every fenced block, or of those that have one kind of entry."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if isinstance(entry(text), kind)]


def entry(text: str) -> Run | Read | None:
    return next((found for start, found in BLOCKS.items() if text.startswith(start)), None)


def begin(text: str) -> str:
    return text.split("\n")[0]


def test_the_table_has_every_block_once_and_no_other() -> None:
    assert blocks()
    for _, text in blocks():
        assert sum(text.startswith(start) for start in BLOCKS) == 1, f"no entry, or several, for {begin(text)}"
    for start in BLOCKS:
        assert sum(text.startswith(start) for _, text in blocks()) == 1, f"no block, or several, for {start}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder to work in that looks like the clone, where ``calogen`` is a command."""
    for name in ("data", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = tmp_path / "bin" / "calogen"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m calogen "$@"\n')
    program.chmod(0o755)
    return tmp_path


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("language", "text"),
    [
        pytest.param(*block, id=begin(block[1]), marks=pytest.mark.slow if entry(block[1]).slow else ())
        for block in blocks(Run)
    ],
)
def test_a_block_runs(language: str, text: str, clone: Path) -> None:
    run = entry(text)
    for shown, smaller in run.smaller.items():
        assert shown in text
        text = text.replace(shown, smaller)
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{clone / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [*programs[language], f"{run.before}\n{text}"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", [text for language, text in blocks(Read) if language == "sh"], ids=begin)
def test_a_block_that_cannot_run_can_be_read_by_the_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_what_is_to_be_made_can_be_made() -> None:
    targets = {*re.findall(r"(?:^|`)make ([a-z][a-z-]*)", README, re.MULTILINE)}
    assert {"demo", "demo-nbody", "test"} <= targets
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
