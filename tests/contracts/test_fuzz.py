"""Damaged inputs are refused, read right, or said to be damaged; nothing crashes, hangs, or changes in silence."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import fuzz
import pytest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz.build(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_inputs_do_no_harm(count: int, world: Path, tmp_path: Path) -> None:
    found = list(fuzz.cases(world, range(count), 1, tmp_path))
    assert len(found) == count
    assert [case for case in found if case.verdict not in (*fuzz.GOOD, "silent")] == []
    assert {name for name in fuzz.KINDS if any(case.kind == name and case.verdict in fuzz.GOOD for case in found)} == {
        *fuzz.KINDS
    }
    print(count, "mutated inputs:", dict(Counter(case.verdict for case in found)))


def test_the_fuzzer_sees_what_it_must_not_let_pass(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a hang, a signal, too much memory: each has its verdict."""
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    works = {
        "traceback": lambda: 1 / 0,
        "hang": lambda: sum(0 for _ in iter(int, 1)),
        "signal": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "memory": lambda: (bytes(2 * fuzz.BYTES), False),
        "done": lambda: ("content", False),
        "refused": lambda: fuzz.read("none.h5")(world),
    }
    verdicts = {name: verdict for name, verdict, _ in fuzz.served(iter(works.items()))}
    assert verdicts == {**{name: name for name in works}, "memory": "traceback"}
