"""Compiled code is kept in a folder of the user's alone, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from calogen import compiling

MODULE = """
from calogen.compiling import compiled, kernel

@compiled
def twice(x):
    return 2 * x

@kernel
def thrice(x):
    return x + twice(x)
"""


def run(folder: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    """A process that compiles, or loads, and calls a small kernel."""
    (folder / "small.py").write_text(MODULE)
    known = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    known |= {"PYTHONPATH": f"{ROOT}:{folder}"} | {k: str(v) for k, v in environment.items()}
    code = "import small; print(small.thrice(4.0))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known, check=True)


def test_machine_code_is_kept_for_the_next_process_and_only_compiling_is_said(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = (run(tmp_path, XDG_CACHE_HOME=cache) for _ in "ab")
    assert first.stdout == second.stdout == "12.0\n"
    assert first.stderr.count("\n") == 1
    assert "compiling for this machine" in first.stderr
    assert f"kept in {cache / 'calogen'}" in first.stderr
    assert second.stderr == ""
    assert (cache / "calogen").stat().st_mode & 0o777 == 0o700
    # A change of a file beside it, whose functions or numbers it may use, is another state of the code.
    (tmp_path / "small_constants.py").write_text("THREE = 3\n")
    assert "compiling" in run(tmp_path, XDG_CACHE_HOME=cache).stderr


def test_the_folder_of_numbas_own_variable_is_used(tmp_path: Path) -> None:
    found = run(tmp_path, NUMBA_CACHE_DIR=tmp_path / "mine")
    assert f"kept in {tmp_path / 'mine'}" in found.stderr
    assert list((tmp_path / "mine").rglob("*.nbi"))


def test_a_folder_that_others_can_write_to_is_neither_read_nor_written(tmp_path: Path) -> None:
    folder = tmp_path / "calogen"
    folder.mkdir()
    folder.chmod(0o777)
    found = run(tmp_path, XDG_CACHE_HOME=tmp_path)
    assert found.stdout == "12.0\n"
    assert f"the result cannot be kept: others may write to {folder} (chmod go-w)" in found.stderr
    assert not list(tmp_path.rglob("*.nbi"))


def test_without_a_folder_it_compiles_in_memory_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = run(tmp_path, XDG_CACHE_HOME=tmp_path / "file")
    assert found.stdout == "12.0\n"
    assert "cannot be kept: cannot use" in found.stderr
    assert "Not a directory" in found.stderr
    assert not list(tmp_path.rglob("*.nbi"))


@pytest.mark.parametrize(
    ("name", "value", "why"), [("access", False, "is read-only"), ("geteuid", 12345, "another user")]
)
def test_read_only_folders_and_those_of_others_are_not_used(
    name: str, value: object, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling._config, "CACHE_DIR", str(tmp_path))
    assert compiling._cache_folder() == (tmp_path, "")
    monkeypatch.setattr(compiling.os, name, lambda *_: value)
    folder, found = compiling._cache_folder()
    assert folder is None
    assert why in found
