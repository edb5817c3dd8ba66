"""The examples in docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
from support import ROOT


def modules() -> list[str]:
    """Names of the modules that have examples."""
    homes = {"calogen": ROOT / "calogen", "calogen.analysis": ROOT / "analysis"}
    found = []
    for name, home in homes.items():
        for path in sorted(home.rglob("*.py")):
            if ">>> " in path.read_text():
                parts = path.relative_to(home).with_suffix("").parts
                found.append(".".join([name, *(part for part in parts if part != "__init__")]))
    return found


def test_there_are_examples() -> None:
    assert {"calogen.sampling", "calogen.simulators", "calogen.runs.beside", "calogen.analysis.numbers"} <= set(
        modules()
    )


@pytest.mark.parametrize("name", modules())
def test_examples_of_docstrings_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
