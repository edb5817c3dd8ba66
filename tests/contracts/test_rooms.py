"""The house: imports point one way only, inside every folder too, and never in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest
from support import ROOT

FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)


def floors(picture: str) -> list[set[str]]:
    """Rooms of each floor, from the top, as CONTRIBUTING.md draws them: names between bars, then what they are."""
    return [set(re.split(r" {2,}", line)[0].split(" | ")) for line in picture.splitlines()]


# A room is a module or package at the top of calogen/, and analysis/. A room may import those further down, never the
# reverse; rooms on one floor do not import each other.
FLOORS, INSIDE_ANALYSIS, INSIDE_SHOWERS = (floors(picture) for language, picture in FENCES if not language)
TORCH = {
    "models",
    "training",
    "runs",
    "export",
    "sampling",
    "gallery",
    "bench",
    "analysis.metrics.classifiers",
    "analysis.metrics.inference",
}
"""Who imports torch; everything else works without it."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without ``calogen.``; packages by their own name."""
    found = {}
    for base, prefix in ((ROOT / "calogen", ()), (ROOT / "analysis", ("analysis",))):
        for path in sorted(base.rglob("*.py")):
            parts = (*prefix, *path.relative_to(base).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop(""), found.pop("__main__", None)  # public names, taken lazily from everywhere
    return found


MODULES = modules()
SHOWERS = {name: name.split(".")[2] for name in MODULES if name.startswith("models.showers.")}


def imports(name: str) -> Iterator[str]:
    """Modules that a module imports: at its top, inside functions, and for type checkers only."""
    path = MODULES[name]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["calogen", *name.split(".")][: None if path.name == "__init__.py" else -1]
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [(module, alias.name) for alias in node.names if alias.name != "__version__"]
        else:
            continue
        for module, member in names:
            if module != "calogen" and not module.startswith("calogen."):
                continue
            short = module.removeprefix("calogen").removeprefix(".")
            inner = f"{short}.{member}".removeprefix(".")
            assert inner in MODULES or short in MODULES, f"{name} imports {inner}"
            yield inner if inner in MODULES else short


GRAPH = {name: {other for other in imports(name) if other != name} for name in MODULES}


def level(floors: list[set[str]]) -> dict[str, int]:
    return {room: number for number, floor in enumerate(floors) for room in floor}


def test_every_room_has_its_place() -> None:
    assert {name.split(".")[0] for name in MODULES} == set(level(FLOORS))
    inside = {name.split(".")[1] for name in MODULES if name.startswith("analysis.")}
    assert inside == set(level(INSIDE_ANALYSIS))
    assert set(SHOWERS.values()) == set(level(INSIDE_SHOWERS))


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    rooms, inside, showers = level(FLOORS), level(INSIDE_ANALYSIS), level(INSIDE_SHOWERS)
    mine = name.split(".")
    for other in GRAPH[name]:
        theirs = other.split(".")
        if theirs[0] != mine[0]:
            assert rooms[theirs[0]] > rooms[mine[0]], f"{name} imports {other}"
        elif mine[0] == "analysis" and len(mine) > 1 and len(theirs) > 1 and theirs[1] != mine[1]:
            assert inside[theirs[1]] > inside[mine[1]], f"{name} imports {other}"
        elif {name, other} <= SHOWERS.keys():
            assert showers[SHOWERS[other]] > showers[SHOWERS[name]], f"{name} imports {other}"


def test_no_circle() -> None:
    # The public names of analysis come lazily from the files that define them.
    graph = {name: others for name, others in GRAPH.items() if name != "analysis"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_module_has_the_name_of_a_public_function() -> None:
    import calogen.analysis

    import calogen

    for package, prefix in ((calogen, ""), (calogen.analysis, "analysis.")):
        for name in package.__all__:
            if not name.startswith("_") and callable(getattr(package, name)):
                assert f"{prefix}{name}" not in MODULES, name


def test_help_is_light() -> None:
    heavy = ("torch", "h5py", "scipy", "matplotlib", "numpy", "pydantic")
    code = (
        "import sys, calogen, calogen.cli.commands\n"
        "from click.testing import CliRunner\n"
        "result = CliRunner().invoke(calogen.cli.commands.cli, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_only_making_samples_imports_numba() -> None:
    code = (
        "import sys, calogen, calogen.cli.commands, calogen.sampling, calogen.training.loop\n"
        "from click.testing import CliRunner\n"
        "for words in (['--help'], ['info', 'calogan-gamma']):\n"
        "    result = CliRunner().invoke(calogen.cli.commands.cli, words)\n"
        "    assert result.exit_code == 0, result.output\n"
        "print('numba' in sys.modules)\n"
        "calogen.Surrogate.load('calogan-gamma').latents(1)\n"
        "print('numba' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]


def test_a_configuration_needs_no_hdf5() -> None:
    code = "import sys, calogen.config; print('h5py' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_only_torch_rooms_import_torch() -> None:
    for name, path in MODULES.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        packages = {(getattr(n, "module", None) or n.names[0].name).split(".")[0] for n in nodes}
        if "torch" in packages:
            assert {name, name.split(".")[0]} & TORCH, f"{name} imports torch"


def test_no_pickle_and_no_assert_in_the_package() -> None:
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"assert in {name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                # Workers load what their own parent sends; those of a cluster, what has the digest that it sends.
                allowed = name in ("production.pool", "production.dask")
                assert allowed or "pickle" not in [alias.name for alias in node.names], name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), name


def test_only_families_formats_and_simulators_know_names_of_conditions_and_units() -> None:
    known = ("families.", "simulators.", "shards.layouts.")
    for name, path in MODULES.items():
        if name.startswith(known):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in ("incident_energy", "MeV"), f"{name}, line {node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                assert "Layer" not in ast.unparse(node.args[1]), f"{name}, line {node.lineno}"


def test_no_private_name_crosses_files() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                assert not private, f"{name} imports {private}"


def test_the_library_does_not_speak_of_options() -> None:
    from calogen.cli.commands import cli

    groups = [command for command in cli.commands.values() if isinstance(command, click.Group)]
    commands = [*cli.commands.values(), *(command for group in groups for command in group.commands.values())]
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    for name, path in MODULES.items():
        if name.split(".")[0] == "cli":
            continue
        tree = ast.parse(path.read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found = options & set(re.findall(r"(?<![\w-])--[a-z-]+", node.value))
                assert not found, f"{name}, line {node.lineno}: {node.value}"


def test_every_file_that_contributing_names_is_there() -> None:
    files = [
        str(path.relative_to(ROOT))
        for folder in ("calogen", "analysis", "docs", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 40
    assert not [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)]
