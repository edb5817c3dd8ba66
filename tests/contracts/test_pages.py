"""Every code block of README.md and docs/ runs as it stands there, with smaller numbers, or says here why it cannot.

Blocks of one page run in order in one folder, as a reader would type them. Cells (``{code-cell}``) run when the site is
built: `make docs`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from support import ROOT

from calogen.cli.commands import cli


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


PHOTONS = {"--data data/calogan-gamma --energy-conditioned": "--data data/calogan-eplus --energy-conditioned --steps 0"}
"""Fits a quarter of the showers, and plays no round: rounds take a minute, and have tests of their own."""

PAGES: dict[str, dict[str, Run | Read]] = {
    "README.md": {
        "make demo ": Read("installs from the net and trains for minutes; the targets are tested below"),
        "pip install ": Run(smaller={"pip install -c constraints.txt .": ":", "-n 10000": "-n 200"}),
        "calogen info data/calogan-gamma": Run(
            smaller={**PHOTONS, "-n 100000": "-n 300", "firefox": "test -s"}, slow=True
        ),
        "import calogen": Run(smaller={'"showers"': '"from-python"', "20_000": "500"}, slow=True),
    },
    "docs/start.md": {
        "pip install ": Run(smaller={"pip install -c constraints.txt .": ":"}),
        "calogen generate calogan-gamma -n ": Run(smaller={"-n 10000": "-n 200"}),
        "calogen generate calogan-gamma --like ": Run(smaller={"--like": "-n 300 --like"}, slow=True),
        "calogen train ": Run(smaller={**PHOTONS, "-n 10000": "-n 200"}, slow=True),
    },
    "docs/your-detector.md": {
        "calogen simulate geant4 --set geometry=configs/own-calorimeter.toml --check": Run(slow=True),
        "calogen simulate geant4 --set geometry=configs/own-calorimeter.toml -n 3000": Run(
            smaller={
                "-n 3000": "-n 400",
                "-n 1000": "-n 100",
                "--data own ": "--data own --steps 1 ",
                "-n 5000": "-n 500",
            },
            slow=True,  # showers take half a minute, and the fit as long
        ),
        "calogen simulate geant4 --set geometry=configs/own-calorimeter.toml -n 12000": Run(
            smaller={"-n 12000": "-n 300", "--data angled ": "--data angled --steps 0 ", "-n 1000": "-n 50"}, slow=True
        ),
        "calogen train --data data/calogan-gamma ": Run(
            smaller={"--energy-conditioned": "--energy-conditioned --steps 0", "-n 10000": "-n 200"}, slow=True
        ),
        "calogen train --data data/calogan-eplus ": Run(
            smaller={"--energy-conditioned": "--energy-conditioned --steps 0"}, slow=True
        ),
    },
    "docs/your-files.md": {
        "calogen info ": Run(),
        "from pathlib ": Run(),
        "printf ": Run(),
    },
    "docs/your-maps.md": {
        "calogen simulate nbody -n 48 ": Run(smaller={"--size 512": "--size 128", "-n 480": "-n 48"}, slow=True),
        "import calogen": Run(smaller={"512": "128"}),
        "calogen simulate nbody --pairs -n 384": Run(
            smaller={"-n 384": "--set pixels=16 --set box=16 --set slabs=2 -n 60"}, slow=True
        ),
        "calogen simulate nbody --pairs -n 4320": Run(
            smaller={
                "-n 4320": "--set pixels=16 --set box=16 --set slabs=4 -n 120",
                "-n 480 ": "--set pixels=16 --set box=16 --set slabs=4 -n 24 ",
                "--out finer": "--out finer --steps 2",
            },
            slow=True,
        ),
        "calogen generate nbody-256 ": Run(),
        "calogen simulate nbody -n 2880 ": Run(
            smaller={
                "-n 2880": "-n 120",
                "pixels=128": "pixels=16",
                "box=256": "box=32",
                "slabs=16": "slabs=4",
                "--out run": "--out run --steps 0",
                "-n 96": "-n 4",
            },
            slow=True,
        ),
        "import numpy": Run(),
        "import torch\n\nimport calogen": Run(slow=True),
        "import torch\nfrom sbi": Read("sbi is not among calogen's dependencies, and learns for minutes"),
        "calogen simulate nbody -n 9600": Run(
            smaller={"-n 9600": "-n 480", "-n 10000": "-n 300"},
            slow=True,  # 20 boxes
        ),
        "calogen train --data Maps_": Read(
            "needs a file of CAMELS, hundreds of megabytes; one like it is in test_foreign.py"
        ),
        "calogen train configs/own-maps.toml": Read("needs maps of one's own; test_map_files.py reads some"),
    },
    "docs/cookbook.md": {
        "calogen generate calogan-gamma --like data/calogan-gamma/test --out": Run(
            smaller={"--like": "-n 2000 --like"}, slow=True
        ),
        "import awkward ": Read("pandas and awkward are not among calogen's dependencies"),
        "import calogen\nfrom calogen.runs": Run(
            smaller={
                "(1e-4, 3e-4, 1e-3)": "(1e-4,)",
                '"steps": 300, "validate_every": 100': '"steps": 4, "validate_every": 2',
                "data/calogan-gamma": "data/calogan-eplus",
            },
            slow=True,
        ),
        "calogen train --data data/calogan-gamma --energy-conditioned --steps 2": Run(
            smaller={"calogan-gamma": "calogan-eplus", "--steps 2": "--steps 0"}, slow=True
        ),
        "calogen train --data data/calogan-gamma --energy-conditioned --holdout": Run(
            smaller={"--data data/calogan-gamma": "--data data/calogan-eplus", "--like": "-n 500 --like"}, slow=True
        ),
        "calogen train --data data/calogan-gamma --energy-conditioned --set training.tensorboard": Read(
            "tensorboard serves until it is stopped; tests/runs/test_beside.py reads the events"
        ),
        'eval "$(calogen completion': Run(),
        "calogen generate calogan-gamma --like data/calogan-gamma/test -n 2000": Run(
            smaller={"-n 2000": "-n 200", "--table": "--bins 1 --table"}, slow=True
        ),
    },
    "docs/training-well.md": {
        "simulation shards": Read("a picture, no program"),
        "calogen train --data ": Run(smaller=PHOTONS, slow=True),
        "torchrun --nproc-per-node 4": Read("starts four processes; tests/training/test_ranks.py starts two"),
        "#!/bin/bash": Read("needs a Slurm cluster"),
        "calogen train configs/classics/vae.toml": Run(
            smaller={"--data data/calogan-gamma": "--data data/calogan-eplus --steps 2"}, slow=True
        ),
    },
    "docs/millions-and-billions.md": {
        "calogen generate ": Run(smaller={"-n 1000000": "-n 2000"}),
        "# Slurm: a job array": Read("needs a Slurm cluster"),
        "# HTCondor: a submit file": Read("a file for HTCondor, not for a shell"),
        "dask scheduler ": Read("starts servers; tests/production/test_cluster.py does so"),
        "calogen compare ": Read("needs a cluster and a million showers; tests/analysis/test_passes.py compares fewer"),
        "# Slurm: 100 jobs of 4 cores": Read("needs a Slurm cluster"),
        "# HTCondor: needs a file system": Read("needs HTCondor"),
        "calogen train ": Run(
            smaller={"data/calogan-gamma": "data/calogan-eplus", "--steps 4": "--steps 1", "-n 10000": "-n 100"},
            slow=True,
        ),
        "calogen bench ": Run(smaller={"-n 20000": "-n 2000"}, slow=True),
    },
    "docs/into-cpp-and-geant4.md": {
        "calogen export calogan-gamma --format onnx": Run(slow=True),
        "import numpy ": Run(slow=True),
        "Ort::Env ": Read("needs ONNX Runtime's headers; tests/export/test_runtimes.py calls its library"),
        "// Members: ": Read("needs Geant4"),
        "g++ ": Run(before="calogen export calogan-gamma --format cpp --out c", slow=True),
        "// members: ": Read("needs Geant4"),
        "void make_hits": Read("needs Geant4"),
    },
    "docs/how-good-is-it.md": {
        "calogen simulate nbody -n 576 ": Read("six boxes of 256^3 particles; tests/blind/fields.py is not installed"),
        "calogen simulate nbody -n 9600 ": Read("half an hour of a core; tests/blind/maps.py is not installed"),
    },
    "docs/reference/configuration.md": {"family = ": Run()},
    "docs/reference/files.md": {"import h5py": Run()},
}
"""Every block of every page by how its first line begins."""

PROGRAMS = {
    "sh": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
    "toml": [sys.executable, "-c", "import sys, tomllib, calogen; calogen.Config.build(tomllib.loads(sys.argv[1]))"],
}
OTHERS = {  # options of Slurm, torchrun, dask, TensorBoard, ONNX Runtime's tools and the blind scripts
    *(
        "--logdir",
        "--seeds",
        "--array",
        "--cpus-per-task",
        "--wrap",
        "--nproc-per-node",
        "--no-python",
        "--ntasks-per-node",
        "--nodes",
        "--time",
    ),
    *("--signal", "--kill-on-bad-exit", "--gpus-per-task", "--gpus-per-node", "--max-restarts", "--scheduler-file"),
    *("--nthreads", "--lifetime", "--lifetime-stagger", "--dim"),
}
INCLUDED = re.compile(r"^```\{include\}", re.MULTILINE)  # of such a page nothing is its own


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block that is code; directives of the site are not."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if not language.startswith("{")]


def pages() -> list[str]:
    """README.md and all pages of the site with a text of their own."""
    found = [
        str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts
    ]
    return ["README.md", *(page for page in found if not INCLUDED.search(text_of(page)))]


def entry(page: str, text: str) -> Run | Read | None:
    return next((found for start, found in PAGES.get(page, {}).items() if text.startswith(start)), None)


def begin(text: str) -> str:
    return text.split("\n")[0]


@pytest.mark.parametrize("page", pages())
def test_the_table_has_every_block_once_and_no_other(page: str) -> None:
    starts = PAGES.get(page, {})
    for _, text in blocks(page):
        assert sum(text.startswith(start) for start in starts) == 1, f"no entry, or several, for {begin(text)}"
    for start in starts:
        assert sum(text.startswith(start) for _, text in blocks(page)) == 1, f"no block, or several, for {start}"


@pytest.mark.parametrize("page", pages())
def test_cells_are_on_pages_that_the_site_runs(page: str) -> None:
    assert ("{code-cell}" in text_of(page)) == text_of(page).startswith("---\nfile_format: mystnb\n")


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


def runs(*, slow: bool) -> list[str]:
    """Pages with blocks of that kind."""
    found = {page: [entry(page, text) for _, text in blocks(page)] for page in PAGES}
    return [page for page, entries in found.items() if any(isinstance(e, Run) and e.slow == slow for e in entries)]


def check(page: str, clone: Path, *, slow: bool) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{clone / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    for language, text in blocks(page):
        run = entry(page, text)
        if not isinstance(run, Run) or run.slow > slow:
            continue
        for shown, smaller in run.smaller.items():
            assert shown in text, f"{shown} is not in {begin(text)}"
            text = text.replace(shown, smaller)
        done = subprocess.run(
            [*PROGRAMS[language], f"{run.before}\n{text}"],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", runs(slow=False))
def test_the_quick_blocks_of_a_page_run(page: str, clone: Path) -> None:
    check(page, clone, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", runs(slow=True))
def test_all_blocks_of_a_page_run(page: str, clone: Path) -> None:
    check(page, clone, slow=True)


READ = [
    text
    for page in PAGES
    for language, text in blocks(page)
    if language == "sh" and isinstance(entry(page, text), Read)
]


@pytest.mark.parametrize("text", READ, ids=begin)
def test_a_block_that_cannot_run_can_be_read_by_the_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def options(command: click.Command) -> Iterator[str]:
    """All options of a command and those below it."""
    for parameter in command.params:
        yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        yield from options(child)


@pytest.mark.parametrize("page", pages())
def test_options_that_pages_name_exist(page: str) -> None:
    known = {"--help", "--version", *options(cli), *OTHERS}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text_of(page))) <= known


def test_what_is_to_be_made_can_be_made() -> None:
    targets = {found for page in pages() for found in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text_of(page), re.M)}
    assert {"demo", "demo-nbody", "docs", "test"} <= targets
    subprocess.run(["make", "--dry-run", *sorted(targets)], cwd=ROOT, check=True, capture_output=True)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
