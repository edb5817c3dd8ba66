"""Imports point one way only: a room may use those further right, never the reverse."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms in one group do not import each other, except within calogen.analysis.
ORDER = [
    {"cli"},
    {"terminal"},
    {"bench", "gallery"},
    {"training", "sampling", "simulators"},
    {"models"},
    {"runs", "requests"},
    {"checkpoint", "inference"},
    {"dataset", "networks", "objectives", "noise"},
    {"config"},
    {"transforms", "analysis"},
    {"fitting", "shards", "production"},
    {"workers", "parts", "ranges", "labels"},
    {"shardreader"},
    {"shardfiles"},
    {"formats"},
    {"hdf5", "binning", "realisations", "stacks"},
    {"families"},
    {"errors"},
]
PACKAGES = {path.parent.name for path in (ROOT / "calogen").glob("*/__init__.py")}  # rooms that are folders
LEVEL = {room: level for level, group in enumerate(ORDER) for room in group}


def imported_rooms(path: Path) -> set[str]:
    """Rooms a file imports, at its top or inside functions."""
    inside_analysis = path.parent.name == "analysis"
    own = 2 if path.parent.name in PACKAGES else 1  # dots up to the package
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == own and not inside_analysis:
                names = [module] if module else [alias.name for alias in node.names]
                found |= {name.split(".")[0] for name in names}
            elif module.startswith("calogen."):
                found.add(module.split(".")[1])
            elif module == "calogen":
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("calogen.")}
    return found


FILES = [*sorted((ROOT / "calogen").rglob("*.py")), *sorted((ROOT / "analysis").glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_imports_point_one_way(path):
    if path.name == "__init__.py" and path.parent.name == "calogen":
        return  # public names, taken lazily from everywhere
    room = path.stem if path.parent.name == "calogen" else path.parent.name
    for other in imported_rooms(path) - ({"analysis"} if room == "analysis" else set()):
        assert LEVEL[other] > LEVEL[room], f"{room} imports {other}"


def test_every_room_has_its_place():
    rooms = {path.stem for path in (ROOT / "calogen").glob("*.py")} - {"__init__"}
    assert rooms | PACKAGES | {"analysis"} == set(LEVEL)


def test_help_is_light():
    heavy = ("torch", "h5py", "scipy", "matplotlib", "numpy", "pydantic")
    code = (
        "import sys, calogen, calogen.cli\n"
        "from click.testing import CliRunner\n"
        "result = CliRunner().invoke(calogen.cli.cli, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_only_torch_rooms_import_torch():
    allowed = {"bench", "training", "sampling", "runs", "checkpoint", "dataset", "networks", "objectives"}
    allowed |= {"transforms", "fitting", "inference", "classifiers"}
    for path in FILES:
        imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
        names = [getattr(n, "module", None) or n.names[0].name for n in imports]
        if any(name.split(".")[0] == "torch" for name in names):
            assert allowed & {path.stem, path.parent.name}, f"{path.name} imports torch"


def test_no_pickle_and_no_assert_in_the_package():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), f"assert in {path.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                # Workers talk to their own parent; no file is a pickle.
                assert "pickle" not in [alias.name for alias in node.names] or path.stem == "workers", path.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), path.name
