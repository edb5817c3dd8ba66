"""The command line: every command does its work, says what it did, and ends with the right exit code."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from rich.console import Console
from support import ROOT, SMALL, TINY, Outcome, Trained, command, everything_in, toy, write_folder

from calogen.bench import generation_rates
from calogen.cli.commands import cli
from calogen.cli.compare import _apart
from calogen.cli.options import as_options
from calogen.sampling import Surrogate
from calogen.shards.sources import open_shards

CONDITIONS = ["--energy", "uniform:1:100GeV", "--condition", "angle=fixed:0.5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy showers, a configuration, and a run made with them by the command line; leave it as it is."""
    folder = tmp_path_factory.mktemp("cli")
    write_folder(folder / "data", toy(SMALL, 260), 80)
    (folder / "tiny.toml").write_text(TINY)
    done = command("train", folder / "tiny.toml", "--data", folder / "data", "--out", folder / "run")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all figures takes seconds; that they can be drawn is tested with them."""
    from calogen.analysis.figures.draw import draw

    monkeypatch.setattr("calogen.analysis.page.save.draw", lambda report: islice(draw(report), 1))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Makes progress believe that it writes to a terminal."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("calogen.cli.terminal.make_console", lambda **_: console)
    return screen


def interrupted(press: Callable[[], None]) -> Callable[..., Any]:
    """Surrogate's own computing of a block, with a key pressed during it."""
    compute = Surrogate.launch

    def run(self: Surrogate, *arguments: Any) -> Any:
        press()
        return compute(self, *arguments)

    return run


def all_commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    def below(names: tuple[str, ...], found: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield names, found
        if isinstance(found, click.Group):
            for name, child in found.commands.items():
                yield from below((*names, name), child)

    yield from below((), cli)


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("names", "found"), list(all_commands()), ids=[" ".join(n) or "calogen" for n, _ in all_commands()]
)
def test_help_names_every_option_and_says_what_it_is_for(names: tuple[str, ...], found: click.Command) -> None:
    for flag in ("--help", "-h"):
        done = command(*names, flag)
        assert (done.code, done.err) == (0, "")
    assert done.out.startswith(" ".join(["Usage: calogen", *names]))
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in done.out
    if isinstance(found, click.Group):
        assert all(name in done.out and child.get_short_help_str() for name, child in found.commands.items())


def test_help_names_the_surrogates_that_there_are() -> None:
    said = command("generate", "--help").out
    assert all(folder.name in said for folder in (ROOT / "data" / "surrogates").iterdir() if folder.is_dir())


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("calogen") in command("--version").out


def shown_commands() -> list[str]:
    """Every ``calogen ...`` line of the code blocks of our pages, of help texts and of the Makefile."""
    texts = [found.help or "" for _, found in all_commands()]
    pages = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    for path in [ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "CHANGELOG.md", *sorted(pages)]:
        texts += re.findall(r"^```[^\n]*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    texts.append((ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$(DEMO)", "runs/demo"))
    lines = re.sub(r"\s*\\\n\s*", " ", "\n".join(texts)).splitlines()
    found = [m[1] for m in (re.match(r"^[\s$]*(calogen\s+[\w-].*)$", line) for line in lines) if m]
    return list(dict.fromkeys(re.split(r"\s+(?:#|\||&&|>|\s\s)", line)[0].strip() for line in found))


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_that_is_shown_can_be_given(line: str) -> None:
    words = shlex.split(line)[1:]
    found: click.Command = cli
    while isinstance(found, click.Group):
        assert words[0] in found.commands, line
        found = found.commands[words.pop(0)]
    found.make_context("calogen", words)  # raises on options and values that are not known


def test_the_commands_of_the_readme_are_among_them() -> None:
    shown = {line.split()[1] for line in shown_commands()}
    assert {"train", "generate", "compare", "info"} <= shown


# ------------------------------------------------------------------------------------------------------------ train


def test_training_prints_plain_lines_and_where_the_run_is(home: Path, tmp_path: Path) -> None:
    options = ["--energy-conditioned", "--holdout", "incident_energy=20:30GeV", "--steps", "2", "--batch-size", "8"]
    options += ["--seed", "5", "--device", "cpu", "--threads", "1", "--set", "training.ema=0.5"]
    out = tmp_path / "run"
    done = command("train", home / "tiny.toml", "--data", home / "data", "--out", out, *options)
    assert done.code == 0, done.err
    first, last = done.out.splitlines()
    assert first == f"trained 2 steps: {out}"
    best = json.loads((out / "best.json").read_text())
    said = f"best checkpoint: step {best['step']} of 2" if best["step"] else "step 0: the fitted start"
    assert last.startswith(f"{said}, score {best['score']:.4f}")
    lines = done.err.splitlines()
    assert lines[0].startswith("symmetries: ")
    assert [line.split()[:2] for line in lines[1:]] == [["step", "0"], ["step", "2"]]
    assert re.search(r"\d+ s  steps/s [\d.]+  W -?[\d.]+  score [\d.]+$", lines[-1])
    assert "\x1b" not in done.err + done.out
    config = json.loads((out / "config.json").read_text())
    assert config["conditions"] == ["incident_energy"]
    assert config["holdout"] == {"incident_energy": [2e4, 3e4]}
    assert (config["seed"], config["training"]["batch_size"], config["training"]["ema"]) == (5, 8, 0.5)


def test_training_for_a_time_stops_by_itself(home: Path, tmp_path: Path) -> None:
    options = ["--time", "0.1", "--steps", "1000000", "--condition", "angle"]
    done = command("train", home / "tiny.toml", "--data", home / "data", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert "trained" in done.out


def test_a_dry_run_of_training_writes_nothing(home: Path, tmp_path: Path) -> None:
    done = command("train", home / "tiny.toml", "--data", home / "data", "--out", tmp_path / "run", "--dry-run")
    assert done.code == 0, done.err
    for fact in ("would train", "small", "incident_energy, angle", "234", "26", "wgan-gp", str(tmp_path / "run")):
        assert fact in done.out
    assert list(tmp_path.iterdir()) == []


def test_resuming_by_the_command_line_goes_on(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    line = ["train", home / "tiny.toml", "--data", home / "data", "--out", tmp_path / "run", "--resume"]
    done = command(*line, "--steps", "6")
    assert done.code == 0, done.err
    assert "trained 6 steps" in done.out
    assert [line.split()[1] for line in done.err.splitlines()] == ["6"]
    assert command(*line, "--steps", "6").out.startswith("trained 6 steps")  # nothing left to do


def test_dropped_rows_are_counted_on_the_terminal_and_in_the_run_folder(home: Path, tmp_path: Path) -> None:
    samples = toy(SMALL, 120)
    samples.values[[3, 7], 0] = np.nan
    write_folder(tmp_path / "data", samples)
    line = ["train", home / "tiny.toml", "--data", tmp_path / "data", "--out", tmp_path / "run", "--steps", "1"]
    assert command(*line).code == 2
    assert not (tmp_path / "run").exists()
    done = command(*line, "--drop-bad")
    assert done.code == 0, done.err
    assert done.err.startswith("warning: left out 2 bad rows of 120")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dropped"] == 2


def test_a_terminal_shows_live_progress(home: Path, tmp_path: Path, terminal: io.StringIO) -> None:
    done = command("train", home / "tiny.toml", "--data", home / "data", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "4 of 4" in terminal.getvalue()
    assert "score" in terminal.getvalue()
    done = command("generate", tmp_path / "run", "-n", 2000, *CONDITIONS, "--out", tmp_path / "showers")
    assert done.code == 0, done.err
    assert "2,000 of 2,000" in terminal.getvalue()


def test_a_signal_ends_training_soon_after_a_checkpoint_that_can_be_resumed(home: Path, tmp_path: Path) -> None:
    line = ["train", str(home / "tiny.toml"), "--data", str(home / "data"), "--out", str(tmp_path / "run")]
    program = [sys.executable, "-W", "error", "-c", "from calogen.cli import main; main()"]
    with subprocess.Popen(
        [*program, *line, "--steps", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 2 "):
            assert process.poll() is None
        process.terminate()
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 143
    stopped = re.search(r"calogen: stopped by signal 15 after step (\d+); the run can be resumed", err)
    assert stopped is not None, err
    assert "--resume" in err
    assert "Traceback" not in out + err
    last = int(stopped[1])
    done = command(*line, "--resume", "--steps", last + 1)
    assert done.code == 0, done.err
    assert f"trained {last + 1} steps" in done.out


def test_control_c_ends_training_and_generating_with_its_own_exit_code(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*given: object) -> None:
        # Not while the start is fitted or the samples are planned; and a second time would end the process at once.
        fitting = any(isinstance(record, dict) and "stage" in record for record in given)
        if not fitting and signal.getsignal(signal.SIGINT) not in (before, signal.SIG_DFL):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("calogen.cli.terminal._plain_record", press)
    done = command("train", home / "tiny.toml", "--data", home / "data", "--out", tmp_path / "run")
    assert done.code == 130
    assert "after step 1; the run can be resumed" in done.err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr("calogen.sampling.Surrogate.launch", interrupted(press))
    line = ["generate", home / "run", "-n", 3000, *CONDITIONS, "--shard-size", 1024, "--workers", 1]
    done = command(*line, "--out", tmp_path / "made")
    assert done.code == 130
    assert "the same command again makes the rest" in done.err
    assert "after 1024 of 3000 samples" in done.err
    assert len(open_shards(tmp_path / "made")) == 1024


def test_control_c_while_the_program_is_still_starting_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Starting(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "calogen.cli.commands", Starting("calogen.cli.commands"))
    assert command("info", "anything") == Outcome(130, "", "")


# --------------------------------------------------------------------------------------------------------- generate


def test_generating_writes_shards_that_info_and_verify_understand(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "showers"
    line = ["generate", home / "run", "-n", 50, *CONDITIONS, "--seed", 3, "--shard-size", 30, "--workers", 1]
    line += ["--out", out]
    done = command(*line)
    assert (done.code, done.out, done.err) == (0, f"generated 50 samples: {out}\n", "")
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "shard-000000.h5", "shard-000001.h5"]
    assert command("verify", out).out == f"{out}: every byte is as it was written\n"
    facts = json.loads(command("info", out, "--json").out)
    assert (facts["samples"], facts["kind"], facts["family"]) == (50, "generated", "small")
    assert facts["provenance"][0]["request"] == {"samples": 50, "incident_energy": "uniform:1:100GeV",
                                                 "angle": "fixed:0.5"}  # fmt: skip
    assert open_shards(out).read().conditions["angle"].tolist() == [0.5] * 50


def test_conditions_like_data_or_from_a_file_keep_their_order(home: Path, tmp_path: Path) -> None:
    done = command("generate", home / "run", "--like", home / "data", "-n", 270, "--out", tmp_path / "like")
    assert done.code == 0, done.err
    wanted = open_shards(home / "data").read().conditions
    made = open_shards(tmp_path / "like").read().conditions
    for name in wanted:
        np.testing.assert_array_equal(made[name], np.concatenate([wanted[name], wanted[name][:10]]))
    (tmp_path / "c.csv").write_text("angle,incident_energy [GeV]\n0.5,50\n-0.5,2\n0,20\n")
    done = command("generate", home / "run", "--conditions", tmp_path / "c.csv", "--out", tmp_path / "file")
    assert done.code == 0, done.err
    made = open_shards(tmp_path / "file").read().conditions
    assert made["incident_energy"].tolist() == [5e4, 2e3, 2e4]
    assert made["angle"].tolist() == [0.5, -0.5, 0.0]


def test_a_dry_run_of_generating_writes_nothing(home: Path, tmp_path: Path) -> None:
    line = ["generate", home / "run", "-n", 10**6, *CONDITIONS, "--out", tmp_path / "showers", "--dry-run"]
    done = command(*line)
    assert done.code == 0, done.err
    for fact in ("would generate", "1000000", "0.112 GB", "uniform:1:100GeV", str(tmp_path / "showers")):
        assert fact in done.out
    line[3] = 10**12
    done = command(*line, "--part", "2/1000")
    assert done.code == 0, done.err
    for fact in ("2 of 1000", "112.0 GB before compression", "free"):
        assert fact in done.out
    assert list(tmp_path.iterdir()) == []


def test_parts_share_a_folder_and_auto_finds_its_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["generate", home / "run", "-n", 3000, *CONDITIONS, "--seed", 3, "--workers", 1, "--out"]
    assert command(*line, tmp_path / "whole").code == 0
    for task in (0, 2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        for name, value in (("MIN", "0"), ("MAX", "2"), ("COUNT", "3")):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        done = command(*line, tmp_path / "parts", "--part", "auto")
        assert done.code == 0, done.err
    done = command("verify", tmp_path / "parts")
    assert done.code == 2
    assert "1 of 3 parts have not begun: 2" in done.err
    done = command(*line, tmp_path / "parts", "--part", "2/3")
    assert done.out == f"generated part 2/3 of 3000 samples: {tmp_path / 'parts'}\n"
    assert command("verify", tmp_path / "parts").code == 0
    whole, parts = (open_shards(tmp_path / name).read() for name in ("whole", "parts"))
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.conditions["incident_energy"], whole.conditions["incident_energy"])


def test_the_same_command_again_repairs_and_another_is_refused(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "showers"
    line = ["generate", home / "run", "-n", 100, *CONDITIONS, "--shard-size", 40, "--workers", 1, "--out", out]
    assert command(*line).code == 0
    before = everything_in(out)
    with (out / "shard-000001.h5").open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    assert "shard-000001.h5: the file's SHA-256 is not the manifest's" in command("verify", out).err
    assert command(*line).code == 0
    assert everything_in(out) == before
    done = command(*line, "--seed", 1)
    assert done.code == 2
    for part in ("another production: its seed differs", "expected 0", "found    1", "choose another --out"):
        assert part in done.err
    assert everything_in(out) == before


def test_extrapolation_and_calogans_layout_are_there_for_who_asks(trained: Trained, tmp_path: Path) -> None:
    line = ["generate", trained.folder, "-n", 4, "--energy", "fixed:200GeV", "--out", tmp_path / "far"]
    assert command(*line).code == 2
    assert not (tmp_path / "far").exists()
    assert command(*line, "--extrapolate", "--format", "calogan", "--device", "cpu").code == 0
    shards = open_shards(tmp_path / "far")
    assert any("GeV" in note for note in shards.notes)
    assert shards.read().conditions["incident_energy"].tolist() == [2e5] * 4


def test_an_unconditional_surrogate_needs_a_number_only(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["train", home / "tiny.toml", "--data", home / "data", "--steps", 1, "--unconditional", "--out", run]
    assert command(*line).code == 0
    done = command("generate", run, "-n", 5, "--out", tmp_path / "showers")
    assert done.code == 0, done.err
    assert json.loads(command("info", run, "--json").out)["conditions"] == {}
    assert open_shards(tmp_path / "showers").condition_names == ()


def test_the_same_command_again_says_when_nothing_was_left_to_make(home: Path, tmp_path: Path) -> None:
    for line, verb in (
        (["generate", home / "run", "-n", 30, *CONDITIONS], "generated"),
        (["simulate", "toy", "--set", f"family={ROOT / 'configs' / 'own-calorimeter.toml'}", "-n", 30], "simulated"),
    ):
        out = tmp_path / verb
        line = [*line, "--shard-size", 20, "--workers", 1, "--out", out]
        assert command(*line).out == f"{verb} 30 samples: {out}\n"
        assert command(*line).out == f"nothing left to make, 30 samples are there: {out}\n"
        next(iter(sorted(out.glob("*.h5")))).unlink()
        assert command(*line).out == f"{verb} 30 samples: {out}\n"


def test_bad_rows_of_data_that_are_followed_can_be_left_out_as_the_message_says(home: Path, tmp_path: Path) -> None:
    samples = toy(SMALL, 20)
    samples.values[3, 0] = np.nan
    line = ["generate", home / "run", "--like", write_folder(tmp_path / "bad", samples), "--out", tmp_path / "made"]
    done = command(*line)
    assert done.code == 2
    assert "--drop-bad" in done.err
    assert command(*line, "--drop-bad", "--workers", 1).out == f"generated 19 samples: {tmp_path / 'made'}\n"


def test_a_simulation_that_no_disk_can_hold_is_refused_and_a_dry_run_tells_its_size(tmp_path: Path) -> None:
    line = ["simulate", "toy", "--set", "family=calogan", "--out", tmp_path / "out", "-n"]
    done = command(*line, 1000, "--dry-run")
    assert done.code == 0, done.err
    for fact in ("1000", "at most 0.002 GB, before compression", "free"):
        assert fact in done.out
    done = command(*line, 10**11, "--shard-size", 10**6)
    assert done.code == 74
    assert "will not fit on the disk" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_home_wherever_a_path_is_given(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "data", tmp_path / "data")
    done = command("generate", "~/run", "--like=~/data", "-n", 5, "--workers", 1, "--out=~/made")
    assert done.out == f"generated 5 samples: {tmp_path / 'made'}\n", done.err
    for line in (["info", "~/run"], ["info", "~/made"], ["verify", "~/made"]):
        assert command(*line).code == 0
    done = command("train", "--data=~/data", "--out=~/made")
    assert f"where    {tmp_path / 'made'}" in done.err
    assert command("compare", "~/data", "x=~/nothing", "--out=~/report").err.count(str(tmp_path / "nothing")) == 1
    for line in (["info", "~nobody-of-that-name/x"], ["generate", "~nobody-of-that-name", "--out", "x"]):
        assert command(*line).code == 2


# ---------------------------------------------------------------------------------------------------------- compare


def test_comparing_writes_a_report_and_gates_set_the_exit_code(home: Path, tmp_path: Path, one_figure: None) -> None:
    out = tmp_path / "report"
    line = ["compare", home / "data", f"mine={home / 'data'}", "--out", out, "--bins", 1, "--seed", 2]
    done = command(*line, "--fail-above", "w1_sd/response=1e9")
    assert done.code == 0, done.err
    assert done.out.endswith(f"report: {out / 'report.html'}\n")
    assert {"metrics.json", "report.html", "table.csv", "table.tex", "figures"} == {p.name for p in out.iterdir()}
    metrics = json.loads((out / "metrics.json").read_text())["generated"]["mine"]["metrics"]
    key, value = next((k, m["value"]) for k, m in metrics.items() if k.startswith("w1/") and m["value"])
    done = command(*line, "--fail-above", f"{key}={value / 2}")  # into an earlier report's folder
    assert done.code == 3
    assert f"{key} of mine" in done.err
    assert (out / "report.html").exists()


def test_the_test_split_is_compared_with_and_two_names_are_told_apart(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO
) -> None:
    asked: dict[str, Any] = {}

    def note(reference: Any, generated: Any, **options: Any) -> None:
        asked.update(reference=reference, generated=generated, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("calogen.analysis.compare", note)
    samples = toy(SMALL, 60)
    for name in ("train", "validation", "test"):
        write_folder(tmp_path / "split" / name, samples)
    done = command("compare", tmp_path / "split", home / "data", f"b={home / 'data'}", "--out", tmp_path / "report")
    assert done.code == 130  # Control-C is no error to explain
    assert "Traceback" not in done.err
    assert [path.parent.name for path in asked["reference"].files] == ["test"]
    assert list(asked["generated"]) == ["data", "b"]
    assert asked["bins"] == 4
    assert "comparing" in terminal.getvalue()
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("made", "", "made"),
        ("gan=made", "gan", "made"),
        ("gan 2=made", "gan 2", "made"),
        ("gan=~/made", "gan", str(Path.home() / "made")),
        ("made,particle=gamma", "", "made,particle=gamma"),
        ("gan=made,particle=gamma", "gan", "made,particle=gamma"),
        ("some/made,particle=e+,material=W", "", "some/made,particle=e+,material=W"),
        ("some/a=b", "", "some/a=b"),
        ("some/rate=1/*.h5", "", "some/rate=1/*.h5"),
        ("gan=a=b", "gan", "a=b"),
        ("is=there", "", "is=there"),
    ],
)
def test_names_of_sets_are_told_from_labels_and_paths(
    text: str, name: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "is=there").mkdir()
    assert _apart(text) == (name, path)


def test_settings_of_a_comparison_are_looked_at_before_files(tmp_path: Path) -> None:
    done = command("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "report", "--bins", 10**6)
    assert done.code == 2
    assert "invalid number of bins" in done.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["={data}"], "a name before the '='"),
        (["{data}", "--fail-above", "score=nan"], "--fail-above takes KEY=NUMBER"),
        (["{empty}"], "there are no samples yet"),
        (["a,b={data}"], "the name of a set holds no comma and no slash"),
        (["a/b={empty}/none"], "no such file or folder"),
        (["{data}", "b={data},angle=x"], "the file itself says the 'angle' of each sample"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(more: list[str], message: str, home: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    line = ["generate", home / "run", "-n", 3, *CONDITIONS, "--part", "1/3", "--workers", 1, "--out", empty]
    assert command(*line).code == 0  # a part without samples
    words = [word.format(data=home / "data", empty=empty) for word in more]
    done = command("compare", home / "data", *words, "--out", tmp_path / "report")
    assert done.code == 2
    assert message in done.err


def test_no_name_is_no_model_and_a_seed_has_63_bits(home: Path, tmp_path: Path) -> None:
    assert command("generate", "", "-n", 3, "--out", tmp_path / "a").code == 2
    done = command("gallery", home / "run", "--seed", 2**63, "--out", tmp_path / "b")
    assert done.code == 2
    assert "2^63" in done.err


def test_names_that_are_not_utf8_are_written_down_in_ascii(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("calogen.analysis.compare", lambda *given, **_: asked.update(given[1]) or exit(0))
    odd = os.fsdecode(b"odd\xff")
    shutil.copytree(home / "data", tmp_path / odd)
    command("compare", home / "data", tmp_path / odd, f"{odd}2={home / 'data'}", "--out", tmp_path / "report")
    assert list(asked) == ["odd\\xff", "odd\\xff2"]


# --------------------------------------------------------------------------------------------- info, verify, bench


def test_info_describes_data_of_any_layout(home: Path, trained: Trained) -> None:
    for path, layout, family in (
        (home / "data", "calogen", "small"),
        (ROOT / "tests" / "oracles" / "calogan_gamma_64.h5", "calogan", "calogan"),
        (ROOT / "tests" / "oracles" / "calochallenge_1-photons_32.h5", "calochallenge", "1-photons"),
    ):
        facts = json.loads(command("info", path, "--json").out)
        assert (facts["format"], facts["family"], facts["problems"]) == (layout, family, [])
        text = command("info", path).out
        assert layout in text
        assert str(facts["samples"]) in text


def test_info_describes_runs_and_checkpoints(home: Path) -> None:
    facts = json.loads(command("info", home / "run", "--json").out)
    assert facts["family"] == "small"
    assert facts["conditions"] == {"incident_energy": "1000 to 100000 MeV", "angle": "-1 to 1 rad"}
    assert len(facts["sha256"]) == 64
    text = command("info", home / "run" / "checkpoints" / "step-4").out
    for fact in ("step-4", "incident_energy", "wgan-gp"):
        assert fact in text


def test_info_prints_how_a_run_went_and_leaves_that_out_of_samples(home: Path, tmp_path: Path) -> None:
    facts = json.loads(command("info", home / "run", "--json").out)
    assert [one["step"] for one in facts["history"]] == [0, 2, 4]
    text = command("info", home / "run").out
    assert re.search(r"step +seconds +score +floor", text)
    assert command("generate", home / "run", "-n", 3, *CONDITIONS, "--workers", 1, "--out", tmp_path / "a").code == 0
    assert "history" in json.loads(command("info", tmp_path / "a", "--json").out)["provenance"][0]
    assert "history" not in command("info", tmp_path / "a").out


def test_info_on_what_cannot_be_read_says_so_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "no.h5").write_bytes(b"no data")
    done = command("info", tmp_path / "no.h5")
    assert done.code == 2
    assert "the file is not HDF5" in done.out
    assert "nothing of it can be read" in done.err
    done = command("info", tmp_path / "no.h5", "--json")
    assert done.code == 2
    assert json.loads(done.out)["problems"]


def test_verify_finds_one_wrong_byte(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    file = tmp_path / "data" / "shard-000001.h5"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    done = command("verify", tmp_path / "data")
    assert done.code == 2
    assert f"{file}: the file's SHA-256 is not the manifest's" in done.err
    assert "1 problem(s) found" in done.err
    assert command("verify", home / "data").code == 0


def test_bench_quotes_a_ratio(home: Path) -> None:
    line = ["bench", "train", "--data", home / "data", "--steps", 1, "--rounds", 1, "--batch-size", 8, "--threads", 1]
    before = everything_in(home)
    facts = json.loads(command(*line, "--json").out)
    assert facts["ratio"] > 0
    assert facts["batch size"] == 8
    assert "ratio" in command(*line).out
    assert everything_in(home) == before


@pytest.mark.slow
def test_bench_measures_generation_in_samples_of_its_kind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calogen.bench._FORWARD_SECONDS", 1e-4)
    monkeypatch.setattr("calogen.bench._BATCH_SECONDS", 1e-4)
    monkeypatch.setattr("calogen.bench._forward_everywhere", lambda *_: 1e6)  # processes are slow to start
    facts = generation_rates(str(home / "run"), samples=1024, workers=1)
    assert facts["showers written"] == 1024
    assert facts["to disk, 1 worker"].split(",")[0] != "0 showers/s"
    assert "ms per shower in memory, batch 10000" not in facts  # it would take too long
    assert "published, ms per shower" in facts


def test_looking_changes_nothing(home: Path) -> None:
    before = everything_in(home)
    for line in (["info", home / "data"], ["verify", home / "data"], ["info", home / "run"]):
        assert command(*line).code == 0
    assert everything_in(home) == before


def test_what_to_do_is_an_option_of_the_engine_as_the_command_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("calzone")
    text = (ROOT / "configs" / "own-calorimeter.toml").read_text().replace(", active = true", "")
    path = tmp_path / "lead.toml"
    path.write_text(text)
    done = command("simulate", "geant4", "--set", f"geometry={path}", "-n", 1, "--out", tmp_path / "x")
    assert done.code == 2
    assert re.search(r"do +--set signal=all$", done.err, re.MULTILINE)
    assert not (tmp_path / "x").exists()


def test_arguments_of_the_library_become_options_of_the_command_that_runs() -> None:
    options = {"shard_size": "--shard-size", "extrapolate": "--extrapolate", "n": "-n", "signal": "--set signal"}
    for text, expected in (
        ("a smaller `shard_size`", "a smaller --shard-size"),
        ("repeat `shard_size=5`", "repeat --shard-size 5"),
        ("`extrapolate=True` allows it", "--extrapolate allows it"),
        ("`n=3` samples of `model`", "-n 3 samples of model"),
        ("`signal=all`, or another `signal`", "--set signal=all, or another --set signal"),
    ):
        assert as_options(text, options) == expected


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_set_3_is_simulated_trained_generated_and_compared_within_8_gb(tmp_path: Path) -> None:
    """40,500 voxels in 45 layers: 600 toy showers, the fit and one step."""
    steps = [
        ["simulate", "toy", "--set", "family=3", "-n", "600", "--workers", "1", "--out", "toys"],
        ["train", "--data", "toys", "--energy-conditioned", "--steps", "1", "--threads", "1", "--out", "run"],
        ["generate", "run", "--like", "toys", "--workers", "1", "--out", "made"],
        ["compare", "toys", "made", "--out", "report"],
    ]
    for step in steps:
        start = time.monotonic()
        process = subprocess.run([sys.executable, "-m", "calogen", *step], cwd=tmp_path, capture_output=True)
        assert process.returncode == 0, process.stderr.decode()
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # of all children so far, in GB
        print(f"\nset 3, {step[0]}: {time.monotonic() - start:.0f} s, at most {most:.1f} GB")
        assert most < 8
