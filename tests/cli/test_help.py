"""What the command line says while it works, and when one does not know how to go on."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from support import SMALL, command, tiny, toy, write_folder

from calogen.cli import terminal
from calogen.cli.terminal import sample_progress, stage_progress
from calogen.config import Config
from calogen.errors import ConfigError
from calogen.simulators import ENGINES, engine_class
from calogen.stages import counted, reporting, stage
from calogen.training.loop import train


@pytest.mark.parametrize("name", ENGINES)
def test_help_after_an_engine_is_about_that_engine(name: str) -> None:
    done = command("simulate", name, "--help")
    assert done.code == 0
    assert f"Usage: calogen simulate {name} [OPTIONS]" in done.out
    mine = {option for option, _, _ in engine_class(name).described().options}
    assert (
        mine
        == {
            "geant4": {"geometry", "particle", "signal", "physics", "cut"},
            "nbody": {"pixels", "box", "slabs", "steps", "pairs"},
            "toy": {"family", "field", "amplitude"},
        }[name]
    )
    assert all(f"  {option}=" in done.out for option in mine)
    assert "--shard-size" in done.out
    assert "ENGINE" in command("simulate", "--help").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_every_shell(shell: str) -> None:
    done = command("completion", shell)
    assert done.code == 0
    assert f"_CALOGEN_COMPLETE={shell}_complete" in done.out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.out, text=True, check=True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning.lr=1", "training.learning_rate"),
        ("lr=1", "training.learning_rate"),
        ("training.epochs=3", "training.steps"),
        ("training.n_critic=3", "training.critic_steps"),
        ("generator.latent_dim=3", "generator.latent"),
        ("optimizer.lambda_gp=3", "training.penalty"),
        ("training.learnin_rate=3", "learning_rate"),
    ],
)
def test_settings_by_their_names_elsewhere_are_understood(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        Config.load(None, [typed])


def test_another_number_of_samples_is_said_as_it_was_typed(tmp_path: Path) -> None:
    options = ("simulate", "toy", "--seed", 1, "--workers", 1, "--out", tmp_path / "out")
    assert command(*options, "-n", 40).code == 0
    done = command(*options, "-n", 400)
    assert done.code == 2
    assert "-n 40 samples (what is there)" in done.err
    assert "-n 400 samples (what is asked for)" in done.err
    assert "shard-size" not in done.err


def test_stages_reach_whoever_listens_and_nobody_else() -> None:
    heard: list[tuple[str, int, int]] = []

    def work() -> Iterator[int]:
        stage("opening")
        yield from counted("fitting", iter([5, 6]), 2)

    assert list(work()) == [5, 6]
    with reporting(lambda *said: heard.append(said)), reporting(None):
        assert list(work()) == [5, 6]
    stage("afterwards")
    assert heard == [("opening", 0, 0), ("fitting", 0, 2), ("fitting", 1, 2)]


def test_pipes_get_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.1)
    with stage_progress("comparing") as say:
        say("reading", 1000, 5000)
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(line.startswith("comparing: reading: 1,000 of 5,000  ") for line in lines)
    with sample_progress("generating") as note:
        note(10, 100)
        time.sleep(0.25)
    assert capsys.readouterr().err.startswith("generating")


def test_a_full_bar_does_not_stop_the_clock_of_what_follows() -> None:
    bar = Progress(console=Console(file=io.StringIO()))
    bar.add_task("fitting", total=None, counted="", facts="")
    terminal._show(bar, "fitting", 3, 3)
    assert bar.finished
    for what, done, of in (("training", 0, 1), ("validating", 0, 0), ("fitting", 1, 3)):
        terminal._show(bar, what, done, of)
        assert not bar.finished
        assert (bar.tasks[0].description, bar.tasks[0].total, bar.tasks[0].completed) == (what, of or None, done)


def test_training_says_what_it_does_from_the_first_second_on(tmp_path: Path) -> None:
    data, heard = write_folder(tmp_path / "data", toy(SMALL, 300)), []
    run = train(tiny(training={"steps": 1}), data, tmp_path / "run", progress=heard.append)
    stages = [record["stage"] for record in heard if "stage" in record]
    assert heard[0] == {"step": 0, "stage": "opening the data", "done": 0, "of": 0}
    assert {"testing symmetries", "fitting voxels, layer by layer", "validating the fitted start"} <= set(stages)
    assert not any("stage" in record for record in run.records)
    assert run.outcome.startswith(("best checkpoint: step 1 of 1, score ", "step 0: the fitted start, score "))
