"""Reports are swapped in whole: signals, full disks and kills leave the earlier one, or none. Text stays text."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from calogen.analysis import compare, save
from calogen.analysis.page import save as saving
from calogen.analysis.page.tables import SideBySide
from calogen.analysis.report import Report
from support import SINGLE, SMALL, command, everything_in, no_file_beyond, toy, write_folder

from calogen.errors import StorageError, plain


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    sides = [toy(SINGLE, 300, seed=seed) for seed in range(3)]
    return [compare(sides[0], {"=one": sides[1]}, bins=0), compare(sides[0], {"@SUM(1)": sides[2]}, bins=0)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "draw", lambda report: [])


@pytest.mark.usefixtures("undrawn")
def test_a_new_report_replaces_an_old_one_and_leaves_what_is_not_its_own(reports: list[Report], tmp_path: Path) -> None:
    save(reports[0], tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "figures").mkdir()
    (tmp_path / "out" / "figures" / "of-the-old-report.png").touch()
    save(reports[1], tmp_path / "out")
    save(reports[1], tmp_path / "fresh")
    assert everything_in(tmp_path / "out").pop("notes.txt") == b"mine"
    found = everything_in(tmp_path / "out")
    del found["notes.txt"]
    assert found == everything_in(tmp_path / "fresh")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("where", range(12))
def test_an_interrupt_at_any_rename_leaves_the_old_report_or_the_new_one(
    where: int, reports: list[Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(reports[0], tmp_path / "out")
    old = everything_in(tmp_path / "out")
    save(reports[1], tmp_path / "new")
    rename, count = Path.replace, iter(range(10**6))

    def interrupted(path: Path, target: Path) -> Any:
        if next(count) == where:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    try:
        save(reports[1], tmp_path / "out")
    except KeyboardInterrupt:
        pass
    else:
        assert next(count) <= where  # there were not so many
    assert everything_in(tmp_path / "out") in (old, everything_in(tmp_path / "new"))


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_the_old_report(reports: list[Report], tmp_path: Path) -> None:
    save(reports[0], tmp_path / "out")
    old = everything_in(tmp_path / "out")
    with no_file_beyond(20_000), pytest.raises(StorageError, match="ulimit"):
        save(reports[1], tmp_path / "out")
    assert everything_in(tmp_path / "out") == old


@pytest.mark.usefixtures("undrawn")
def test_a_signal_ends_a_comparison_with_143_and_the_old_report_is_whole(reports: list[Report], tmp_path: Path) -> None:
    for seed in range(2):
        write_folder(tmp_path / str(seed), toy(SINGLE, 300, seed=seed))
    old = everything_in(save(reports[0], tmp_path / "out").parent)
    code = """
import sys, time
from calogen.cli import main
import calogen.analysis.page.save as saving
def slow(report):
    print("drawing", flush=True)
    time.sleep(20)
saving.draw = slow
main()
"""
    options = ["--bins", "1", "--out", tmp_path / "out"]
    line = [sys.executable, "-c", code, "compare", tmp_path / "0", tmp_path / "1", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "drawing\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert (process.returncode, said.strip()) == (143, "calogen: interrupted")
    assert everything_in(tmp_path / "out") == old


@pytest.mark.usefixtures("undrawn")
def test_what_a_killed_writer_left_is_used_by_the_next(reports: list[Report], tmp_path: Path) -> None:
    for seed in range(2):
        write_folder(tmp_path / str(seed), toy(SINGLE, 300, seed=seed))
    line = ["compare", tmp_path / "0", tmp_path / "1", "--bins", 1, "--out", tmp_path / "out"]
    assert command(*line).code == 0
    whole = everything_in(tmp_path / "out")
    for name in ("report.html", "metrics.json"):  # it was killed between two renames
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / saving.STAGE).mkdir()
    assert command(*line).code == 0
    assert everything_in(tmp_path / "out").keys() == whole.keys()


# ------------------------------------------------------------------------------------------------------ text is text


def test_no_spreadsheet_takes_a_name_for_a_formula(reports: list[Report]) -> None:
    for report, name in zip(reports, ("'=one value", "'@SUM(1) value"), strict=True):
        rows = list(csv.reader(SideBySide.of(report).to_csv().splitlines()))
        assert rows[0][2] == name
        assert not [cell for cell in rows[0] if cell.startswith(("=", "@", "+", "-"))]
        assert any(float(cell) < 0 for row in rows[1:] for cell in row[2:] if cell)  # numbers stay numbers


@pytest.mark.usefixtures("undrawn")
def test_signs_that_a_terminal_obeys_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    assert plain("a\x1b[2Jb\r\u202ec\x9b\n\td é\u00a0") == "a\\x1b[2Jb\\r\\u202ec\\x9b\n\td é\u00a0"
    family = SINGLE.model_copy(update={"name": "single\x1b[31m"})
    folder = write_folder(tmp_path / "x\x1b]0;title\x07", toy(family, 120))
    (tmp_path / "a\x1b[2J.toml").write_text("x = ")
    for words in (
        ["info", folder],
        ["verify", folder],
        ["compare", folder, f"new\x1b[5m={folder}", "--bins", 1, "--out", tmp_path / "report"],
        ["train", tmp_path / "a\x1b[2J.toml", "--data", folder, "--out", tmp_path / "run"],
        ["train", "--data", folder, "--out", tmp_path / "run", "--dry-run"],
    ):
        done = command(*words)
        said = done.out + done.err
        assert "\\x1b" in said, words
        assert not {"\x1b", "\x07"} & set(said), words
    done = command("info", folder, "--json")
    assert json.loads(done.out)["family"] == family.name
    assert "\x1b" not in done.out


def test_figures_do_not_depend_on_the_layout_that_a_notebook_asks_for(tmp_path):
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        found = compare(toy(SMALL, 60), toy(SMALL, 60, seed=1), bins=0)
        found.figure("response", tmp_path / "response.pdf")
    assert (tmp_path / "response.pdf").read_bytes().startswith(b"%PDF")
