"""CONTRIBUTING.md's example of a new observable is all it takes: applied to a copy, it is found wherever it belongs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, SMALL, toy, write_folder

COMPARE = """
import sys
import calogen.analysis.figures.draw as figures
import calogen.analysis.page.save as page
from calogen.analysis import compare

makers = figures.FIGURES["calorimeter"]
figures.FIGURES = {"calorimeter": {name: make for name, make in makers.items() if name.startswith("observables")}}

def noted(report, draw=page.draw):
    for drawing in draw(report):
        print(*(axes.get_xlabel() for axes in drawing.figure.axes), sep="\\n")
        yield drawing

page.draw = noted
page.save(compare(sys.argv[1], {"made": sys.argv[2]}, bins=1), sys.argv[3])
"""


def example() -> str:
    """The diff that follows the heading, as it is shown."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(r"^#+ Add an observable$.*?^```diff\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found, "no block ```diff after the heading 'Add an observable'"
    return found[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with the example applied."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("calogen", "analysis"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "data").symlink_to(ROOT / "data")
    subprocess.run(["git", "apply", "--verbose", "-"], input=example(), text=True, cwd=tree, check=True)
    return tree


def run(tree: Path, *arguments: object) -> str:
    """What a program prints that imports calogen from the copy."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def added(tree: Path) -> tuple[str, str]:
    """Name and axis label of the observable that the copy has and this package has not."""
    code = (
        "from calogen.families import FAMILIES; from calogen.analysis import catalogue\n"
        "for found in catalogue(FAMILIES['calogan']).values(): print(found.name, found.label, sep='\\t')"
    )
    (line,) = set(run(tree, "-c", code).splitlines()) - set(run(ROOT, "-c", code).splitlines())
    name, label = line.split("\t")
    return name, label


def test_the_example_is_a_few_lines_of_one_file() -> None:
    lines = example().splitlines()
    assert sum(line.startswith("+++ ") for line in lines) == 1
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert 1 <= len(changed) <= 6
    assert not any(line.startswith("-") for line in changed)


def test_a_new_observable_is_in_metrics_glossary_figures_and_bench(tree: Path, tmp_path: Path) -> None:
    name, label = added(tree)
    reference, made = (write_folder(tmp_path / str(seed), toy(SMALL, 100, seed)) for seed in (0, 1))
    labels = run(tree, "-c", COMPARE, reference, made, tmp_path / "report").splitlines()
    assert any(label in shown for shown in labels)

    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())["generated"]["made"]["metrics"]
    assert metrics[f"w1_sd/{name}"]["value"] is not None

    page = (tmp_path / "report" / "report.html").read_text()
    glossary = re.findall(r"<dt>(.*?)</dt>", page, re.DOTALL)
    assert any(f"<code>{name}</code>" in entry for entry in glossary)

    many = write_folder(tmp_path / "many", toy(SMALL, 1000))
    options = ["--data", many, "-n", 1000, "--rounds", 1, "--threads", 1, "--json"]
    assert name in json.dumps(json.loads(run(tree, "-m", "calogen", "bench", "analysis", *options)))
