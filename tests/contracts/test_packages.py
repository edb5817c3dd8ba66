"""The package from outside: what a wheel carries, and the clone whether or not calogen is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support import ROOT

EVERY_MODULE = """
import importlib, pkgutil, calogen
names = [found.name for found in pkgutil.walk_packages(calogen.__path__, "calogen.")]
print(*(importlib.import_module(name).__file__ for name in names), sep="\\n")
"""
LOAD = "import calogen.analysis, calogen; print(calogen.__file__, calogen.Surrogate.load('calogan-gamma').family.name)"


def test_pyproject_lists_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {"calogen": "calogen", **settings["package-dir"]}
    found = [
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for name, folder in places.items()
        for init in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(settings["packages"]) == sorted(found)
    assert {"calogen.analysis", "calogen.data", "calogen.families"} <= set(found)


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is installed here except calogen, whose editable install would hide what a wheel lacks."""
    folder = tmp_path_factory.mktemp("dependencies")
    for entry in reversed([Path(entry) for entry in sys.path if entry.endswith("-packages")]):
        for path in entry.iterdir():
            if "calogen" not in path.name:
                (folder / path.name).unlink(missing_ok=True)
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the clone, unpacked."""
    home = tmp_path_factory.mktemp("wheel")
    for name in ("calogen", "analysis", "data"):
        shutil.copytree(ROOT / name, home / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "clone")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(home), "."]
    subprocess.run(command, check=True, capture_output=True, cwd=home / "clone")
    (wheel,) = home.glob("calogen-*.whl")
    zipfile.ZipFile(wheel).extractall(home / "installed")
    return home / "installed"


def python(*arguments: str, path: tuple[Path, ...], folder: Path) -> list[str]:
    """Lines printed by a program run in a folder with nothing but these places to import from; it exits with 0."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", *arguments]  # without `site`, which reads the paths of editable installs
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_wheel_carries_what_it_needs_and_nothing_else(installed: Path) -> None:
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert "calogen/py.typed" in files
    assert "calogen/analysis/page/report.html" in files
    assert {f"calogen/{p.relative_to(ROOT)}" for p in (ROOT / "data/surrogates").rglob("*.safetensors")} < files
    assert not [name for name in files if name.endswith(".h5")]
    assert {name.split("/")[0].split("-")[0] for name in files} == {"calogen"}


@pytest.mark.slow
def test_a_wheel_works_in_another_folder(installed: Path, dependencies: Path, tmp_path: Path) -> None:
    here = {"path": (installed, dependencies), "folder": tmp_path}
    modules = python("-c", EVERY_MODULE, **here)
    sources = {str(path) for path in installed.rglob("*.py")} - {str(installed / "calogen" / "__init__.py")}
    assert set(modules) == sources - {str(p) for p in (installed / "calogen" / "data").glob("*/*.py")}
    options = ["-n", "100", "--energy", "fixed:50GeV", "--out", "x"]
    python("-m", "calogen", "generate", "calogan-gamma", *options, **here)
    assert (tmp_path / "x" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_clone_works_with_a_wheel_installed(installed: Path, dependencies: Path) -> None:
    (line,) = python("-c", LOAD, path=(installed, dependencies), folder=ROOT)
    assert line.split() == [str(ROOT / "calogen" / "__init__.py"), "calogan"]


def test_the_clone_works_with_nothing_installed(dependencies: Path) -> None:
    (line,) = python("-c", LOAD, path=(dependencies,), folder=ROOT)
    assert line.split() == [str(ROOT / "calogen" / "__init__.py"), "calogan"]


@pytest.mark.slow
def test_the_clone_generates_with_nothing_installed(dependencies: Path, tmp_path: Path) -> None:
    here = {"path": (dependencies,), "folder": ROOT}
    options = ["-n", "100", "--energy", "fixed:50GeV", "--out", str(tmp_path / "x"), "--workers", "1"]
    python("-m", "calogen", "generate", "calogan-gamma", *options, **here)
    assert (tmp_path / "x" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_clone_has_no_other_packages_than_the_wheel(installed: Path, dependencies: Path) -> None:
    code = "import calogen, pkgutil\nfor m in pkgutil.walk_packages(calogen.__path__, 'calogen.'): print(m.name)"
    clone, wheel = (set(python("-c", code, path=(dependencies,), folder=folder)) for folder in (ROOT, installed))
    assert clone == {name for name in wheel if name.split(".")[1] not in ("analysis", "data")}
