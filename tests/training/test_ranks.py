"""Ranks: several processes train what one would; whichever dies, hangs, fails or differs, all end and say why.

As a program, this is what each rank runs: ``torchrun --nproc-per-node 2 test_ranks.py HOME checks``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import MAPS, ROOT, SINGLE, SMALL, tiny, toy, write_folder
from torch import Tensor

from calogen.config import Config
from calogen.errors import CalogenError, ConfigError, RankError
from calogen.families import Family
from calogen.models.streams import Share, Stream, drawn
from calogen.runs.checkpoint import load_checkpoint
from calogen.runs.find import load_model
from calogen.training import Ranks, joined, prepare, train
from calogen.training import ranks as ranks_module
from calogen.training.batches import Batches
from calogen.training.loop import build_trainer
from calogen.training.ranks import ALONE

STEPS, BATCH, CRITIC = 20, 16, 2
SILENCE, LATE = 5.0, 8.0  # seconds after which a silent rank is given up here, and that one is late which is not silent
PERSONAL = ("seconds", "steps_per_second", "steps")  # entries of a log that no two runs share


@dataclass(frozen=True)
class Case:
    """What is trained: one network by one objective."""

    family: Family
    network: str
    objective: str
    double: bool = True
    streamed: bool = False

    @property
    def name(self) -> str:
        parts = [self.network, self.objective, self.family.kind]
        return "-".join(parts + ["single"] * (not self.double) + ["streamed"] * self.streamed)

    @property
    def config(self) -> Config:
        options = {"steps": STEPS, "batch_size": BATCH, "critic_steps": CRITIC, "update": "adam"}
        return tiny(
            self.family.kind, generator={"network": self.network}, training={**options, "objective": self.objective}
        )


CASES = [
    Case(SMALL, "copula", "wgan-gp"),
    Case(SMALL, "copula", "wgan-gp", double=False),
    Case(SMALL, "mlp", "wgan-clip", streamed=True),
    Case(SINGLE, "calogan", "non-saturating"),  # statistics of batches: norms, and distances between its samples
    Case(SINGLE, "vae", "likelihood"),
    Case(MAPS, "dcgan", "wgan-gp"),
    Case(MAPS, "pixelcnn", "likelihood"),
]
RARE = [  # with four ranks alone
    Case(SINGLE, "flow", "likelihood"),
    Case(SINGLE, "dcgan", "logistic"),
    Case(MAPS, "dcgan", "wgan-clip"),
    Case(MAPS, "dcgan", "non-saturating"),
]


class Streamed(Batches):
    """Batches of data that do not fit into memory, in the precision that is the default when they are read."""

    _BLOCK = 64

    def _read(self, epoch: int, window: int) -> int:
        looked_at, kind = super()._read(epoch, window), torch.get_default_dtype()
        self._values, self._conditions = self._values.to(kind), self._conditions.to(kind)
        return looked_at


@dataclass(frozen=True)
class Path20:
    """Twenty steps of a case.

    Attributes:
        said: By every step, averaged over ranks.
        state: All numbers at the end.
        gradients: How many numbers the gradients of the networks have.
    """

    said: list[dict[str, float]]
    state: dict[str, Tensor]
    gradients: list[int]


def trajectory(case: Case, data: Path, ranks: Ranks, nudge: float = 0.0) -> Path20:
    """Train for twenty steps, from weights that are off by a share of themselves."""
    setup = prepare(case.config, data / case.family.name, ranks=ranks)
    options: dict[str, Any] = {"seed": 1, "device": setup.device, "ranks": setup.ranks}
    if case.streamed:
        batches: Batches = Streamed(setup.training, setup.conditions, BATCH, memory=1, **options)
    else:
        batches = Batches(setup.training, setup.conditions, BATCH, **options)
    trainer = build_trainer(setup, batches)
    if ranks.first:
        trainer.fit()
    ranks.copy(trainer.networks)
    with torch.no_grad():
        for network in trainer.networks.values():
            for parameter in network.parameters():
                parameter.mul_(1 + nudge)
    if case.double:
        for network in trainer.networks.values():
            network.double()
        batches._values, batches._conditions = batches._values.double(), batches._conditions.double()
        torch.set_default_dtype(torch.float64)
    try:
        trainer.arm()
        said = [ranks.mean(trainer.step()) for _ in range(STEPS)]
    finally:
        torch.set_default_dtype(torch.float32)
    state = trainer.state() | {f"average.{name}": t for name, t in trainer.average.state_dict().items()}
    learn = [[p.numel() for p in network.parameters() if p.requires_grad] for network in trainer.networks.values()]
    return Path20(said, {name: tensor.double() for name, tensor in state.items()}, [sum(sizes) for sizes in learn])


def furthest(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest difference of numbers of the same names, relative to what is above 1."""
    assert one.keys() == two.keys()
    found = 0.0
    for name, value in one.items():
        a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (value, two[name]))
        assert bool(torch.isfinite(a).all()), name
        if a.numel():
            found = max(found, float(((a - b).abs() / b.abs().clamp(min=1)).max()))
    return found


# ------------------------------------------------------------------------------------------- what each rank runs


@contextmanager
def counted() -> Iterator[list[int]]:
    """Sizes of what is summed over ranks meanwhile."""
    real, sizes = dist.all_reduce, list[int]()

    def note(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return real(tensor, *arguments, **options)

    dist.all_reduce = note
    try:
        yield sizes
    finally:
        dist.all_reduce = real


def refusal(work: Callable[[], object]) -> str:
    """The error that some work ends in, by its kind and text."""
    try:
        work()
    except CalogenError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
    return ""


def quick(seed: int = 0, **options: int) -> Config:
    """A run of a network that needs no fit."""
    every = {"log_every": 1, "validate_every": 4, "checkpoint_every": 4}
    return tiny(seed=seed, generator={"network": "mlp"}, training={"update": "adam", **every, **options})


def checks(home: Path, ranks: Ranks, cases: list[Case]) -> None:
    """Train all cases, be refused what is wrong, and write down what happened; then a run that is never finished."""
    said: dict[str, Any] = {}
    for case in cases:
        with counted() as sizes:
            found = trajectory(case, home, ranks)
        weights = float(torch.cat([tensor.flatten() for tensor in found.state.values()]).square().sum())
        said[case.name] = {
            "said": found.said,
            "state": {name: tensor.tolist() for name, tensor in found.state.items()},
            "equal": ranks.most(weights) == -ranks.most(-weights),
            "sums of gradients": sum(sizes.count(size) for size in found.gradients),
        }
    data = home / "small"

    def tried(name: str, config: Config, folder: Path = data) -> None:
        said[name] = refusal(lambda: train(config, folder, home / name, ranks=ranks))
        said[f"{name} left"] = (home / name).exists()

    tried("other-seed", quick(seed=ranks.rank))
    tried("other-data", quick(), home / ("small" if ranks.first else "other"))
    tried("no-data", quick(), home / ("small" if ranks.first else "nowhere"))
    tried("odd-batch", quick(batch_size=17))

    run = train(quick(), data, home / "run", ranks=ranks)
    said["run"] = [str(run.folder), run.step, run.score, len(run.records)]
    said["again"] = train(quick(steps=6), data, home / "run", resume=True, ranks=ranks).step
    asked = iter([0, signal.SIGTERM if ranks.rank == 1 else 0])
    stop = {"should_stop": lambda: next(asked), "ranks": ranks}
    said["signal"] = refusal(lambda: train(quick(), data, home / "stopped", **stop))
    wait = {"should_stop": lambda: time.sleep(LATE if ranks.rank == 1 else 0) or 0, "ranks": ranks}
    said["late"] = train(quick(steps=2), data, home / "late", **wait).step
    (home / f"said-{ranks.rank}.json").write_text(json.dumps(said))

    def ask() -> int:
        if ranks.rank == 1 and (home / "killed" / "checkpoints" / "step-4").exists():
            (home / "killed-at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from torchrun: here the others are to find out themselves
    endless = quick(steps=10**6)
    found = refusal(lambda: train(endless, data, home / "killed", should_stop=ask, ranks=ranks))
    (home / "killed.json").write_text(json.dumps([found, time.time()]))
    raise RankError(found)


def timing(home: Path, ranks: Ranks) -> None:
    """CPU seconds a step, of one process and of a rank, in turn; both at once, so that neither has a core to itself."""
    config = {"conditions": ["incident_energy"], "threads": 1, "device": "cpu"}
    rounds, steps = 3, 3
    training = {"update": "adam", "batch_size": 1024, "penalty_every": 1}
    trainers = []
    for who in (ALONE, ranks):
        setup = prepare(Config.build({**config, "training": training}), ROOT / "data" / "calogan-gamma", ranks=who)
        batches = Batches(setup.training, setup.conditions, 1024, seed=1, device=setup.device, ranks=who)
        trainer = build_trainer(setup, batches)
        trainer.generator.load_state_dict(load_model("calogan-gamma").model)  # instead of fitting for a minute
        trainer.critic.fit(batches.samples(setup.family, 2000), setup.conditions)
        trainer.arm()
        trainer.step()
        trainers.append(trainer)
    seconds = list[list[float]]()
    for _ in range(rounds):
        found = list[float]()
        for trainer in trainers:
            ranks.most(0.0)
            begun = time.process_time()
            for _ in range(steps):
                trainer.step()
            found.append(ranks.most((time.process_time() - begun) / steps))
        seconds.append(found)
    if ranks.first:
        (home / "seconds.json").write_text(json.dumps(seconds))


def busy(ranks: Ranks) -> None:
    """One rank dies while the others are at something that they cannot be called away from, and hear no signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, which ends them after 30 s
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def main() -> None:
    """What a rank does."""
    home, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    ranks_module._SILENCE = SILENCE
    with joined() as ranks:
        if what == "timing":
            timing(home, ranks)
        elif what == "busy":
            busy(ranks)
        elif what == "checks":
            checks(home, ranks, CASES)
        else:
            checks(home, ranks, [*RARE, *CASES])


# --------------------------------------------------------------------------------------------------------- the tests


def launched(home: Path, what: str, ranks: int) -> subprocess.CompletedProcess[str]:
    """torchrun with this file as the program."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), __file__, str(home), what]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


@dataclass(frozen=True)
class Launch:
    """What ranks did, and what they left."""

    home: Path
    said: list[dict[str, Any]]
    errors: str


def launch(home: Path, ranks: int, what: str) -> Launch:
    for family in (SMALL, SINGLE, MAPS):
        write_folder(home / family.name, toy(family, 240, seed=2), 100)
    write_folder(home / "other", toy(SMALL, 240, seed=5), 100)
    done = launched(home, what, ranks)
    assert done.returncode, "the last run cannot end"
    texts = [home / f"said-{rank}.json" for rank in range(ranks)]
    assert all(text.exists() for text in texts), done.stderr
    return Launch(home, [json.loads(text.read_text()) for text in texts], done.stderr)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Two ranks that did everything in :func:`checks`."""
    return launch(tmp_path_factory.mktemp("pair"), 2, "checks")


def close_to_one_process(case: Case, found: Launch) -> str:
    """Compares ranks with one process; says how near they are."""
    one = trajectory(case, found.home, ALONE)
    limits = (1e-10, 1e-12)
    if not case.double:  # twice what starts come to that differ by their last bits: single ones scatter
        others = [trajectory(case, found.home, ALONE, nudge=nudge) for nudge in (2e-7, -2e-7)]
        drifts = [(furthest_log(other.said, one.said), furthest(other.state, one.state)) for other in others]
        limits = (2 * max(drift for drift, _ in drifts), 2 * max(drift for _, drift in drifts))
    for said in (rank[case.name] for rank in found.said):
        assert len(said["said"]) == STEPS
        apart = furthest_log(said["said"], one.said), furthest(said["state"], one.state)
        assert apart[0] <= limits[0], apart
        assert apart[1] <= limits[1], apart
        assert said["equal"], "weights differ between ranks"
        assert said["sums of gradients"] == STEPS * (1 if case.objective == "likelihood" else CRITIC + 1)
    return f"{case.name}: losses to {apart[0]:.1e} ({limits[0]:.1e}), weights to {apart[1]:.1e} ({limits[1]:.1e})"


def furthest_log(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    return max(furthest(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_train_what_one_process_trains(case: Case, pair: Launch) -> None:
    print(close_to_one_process(case, pair))


def test_ranks_that_were_not_started_alike_are_refused_and_leave_nothing(pair: Launch) -> None:
    first, second = pair.said
    for name, words in {
        "other-seed": ("configuration.seed", "expected 0, as rank 0", "found    1", "rank 1, process"),
        "other-data": ("data", "as rank 0", "rank 1, process"),
        "no-data": ("rank 1, process", "nowhere"),
        "odd-batch": ("2 ranks cannot have equal parts of a batch", "training.batch_size=18"),
    }.items():
        assert all(word in first[name] for word in words), first[name]
        assert " 2: " in first[name].partition("\n")[0]
        assert second[name].startswith("ElsewhereError 2"), "only rank 0 says it"
        assert not first[f"{name} left"]


def test_a_run_of_ranks_is_as_one_of_one_process_and_goes_on_with_one(pair: Launch, tmp_path: Path) -> None:
    one = train(quick(), pair.home / "small", tmp_path / "one")
    assert pair.said[0]["run"][1:] == pair.said[1]["run"][1:]
    assert [said["again"] for said in pair.said] == [6, 6]
    log = [json.loads(line) for line in (pair.home / "run" / "log.jsonl").read_text().splitlines()]
    mine, others = (
        [{k: v for k, v in r.items() if k not in PERSONAL} for r in records if r["step"] <= 4]
        for records in (log, one.records)
    )
    assert [list(record) for record in mine] == [list(record) for record in others]
    for record, other in zip(mine, others, strict=True):
        words = {key for key, value in other.items() if isinstance(value, str)}
        assert all(record[key] == other[key] for key in words)
        numbers = [{k: v for k, v in r.items() if k not in words} for r in (record, other)]
        assert furthest(*numbers) < 1e-4
    copied = shutil.copytree(pair.home / "run", tmp_path / "two")
    assert load_checkpoint(copied / "checkpoints" / "step-6").card.provenance["ranks"] == 2
    went = train(quick(steps=8), pair.home / "small", copied, resume=True)
    assert went.step == 8
    assert any("ranks 2 -> 1" in record.get("warning", "") for record in went.records)


def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(pair: Launch) -> None:
    assert pair.said[0]["signal"].startswith("Interrupted 143: stopped by signal 15 after step 2")
    assert [p.name for p in (pair.home / "stopped" / "checkpoints").iterdir()] == ["step-0", "step-2"]


def test_a_rank_that_is_late_but_lives_is_waited_for(pair: Launch) -> None:
    assert [said["late"] for said in pair.said] == [2, 2]


def test_the_death_of_a_rank_ends_all_soon_and_keeps_the_last_checkpoint(pair: Launch) -> None:
    text, ended = json.loads((pair.home / "killed.json").read_text())
    waited = ended - float((pair.home / "killed-at").read_text())
    print(f"ended {waited:.1f} s after the death")
    assert text.startswith("RankError 1: 1 of 2 ranks died")
    assert "rank 1, process" in text
    assert waited < 30
    last = max(int(p.name[5:]) for p in (pair.home / "killed" / "checkpoints").glob("step-*"))
    assert load_checkpoint(pair.home / "killed" / "checkpoints" / f"step-{last}").training_state()


def test_rows_of_a_share_get_the_numbers_that_they_get_in_one_process() -> None:
    for dim, shape in ((0, (6, 2)), (1, (2, 6, 3))):
        whole = drawn(torch.randn, shape, torch.Generator().manual_seed(1), dim=dim)
        parts = []
        for rank in range(3):
            stream = Stream("cpu")
            stream.share = Share(1, rank, 3)
            mine = [2 if axis == dim else size for axis, size in enumerate(shape)]
            parts.append(drawn(torch.randn, mine, stream.manual_seed(1), dim=dim))
            assert torch.equal(stream.share.of(whole, dim), parts[-1])
        assert torch.equal(torch.stack(parts, dim + 1).flatten(dim, dim + 1), whole)  # two batches of three rows


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, ("where    MASTER_ADDR", "torchrun")),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, ("where    MASTER_ADDR", "scontrol show hostnames")),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, ("where    MASTER_PORT",)),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, ("invalid port",)),
        ({"WORLD_SIZE": "2"}, ("where    RANK", "not set")),
        ({"WORLD_SIZE": "2", "RANK": "one"}, ("where    RANK", "found    one")),
        ({"WORLD_SIZE": "2", "RANK": "2"}, ("less than 2",)),
    ],
)
def test_variables_that_are_missing_or_wrong_are_named(
    variables: dict[str, str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised, joined():
        pass
    assert all(word in str(raised.value) for word in words), raised.value


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({}, {"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with joined() as ranks:
            assert ranks is ALONE


@pytest.mark.slow
def test_four_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    found = launch(tmp_path, 4, "all")
    for case in [*RARE, *CASES]:
        print(close_to_one_process(case, found))


@pytest.mark.slow
def test_the_death_of_a_rank_ends_what_cannot_be_called_away(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = launched(tmp_path, "busy", 2)
    print(f"started and ended in {time.monotonic() - begun:.1f} s")
    assert done.returncode
    assert "1 of 2 ranks died" in done.stderr
    assert "exitcode  : 1 " in done.stderr  # of rank 0: torchrun has not ended it


def by_torchrun(*arguments: object) -> list[str]:
    """``torchrun --nproc-per-node 2 --no-python calogen train ...``, with the options of a tiny run."""
    options = {"update": "adam", "checkpoint_every": 2, "log_every": 1, "validate_every": 10**6, "batch_size": BATCH}
    settings = [f"--set=training.{key}={value}" for key, value in options.items()]
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    return [*program, sys.executable, "-m", "calogen", "train", *map(str, arguments), "--device=cpu", *settings]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1), (signal.SIGTERM, 1)]
)
def test_the_command_ends_within_30_s_whatever_happens_to_a_rank(
    number: signal.Signals, rank: int, tmp_path: Path
) -> None:
    data, out = write_folder(tmp_path / "data", toy(SINGLE, 240, seed=2)), tmp_path / "out"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = by_torchrun("--data", data, "--out", out, "--steps", 10**6)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=paths, **pipes) as process:
        while process.poll() is None and not (out / "checkpoints" / "step-4").exists():
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[rank]), number)
        begun = time.monotonic()
        said, _ = process.communicate(timeout=120)
    waited = time.monotonic() - begun
    print(f"{number.name} to rank {rank}: ended after {waited:.1f} s")
    assert process.returncode
    assert waited < 30
    word = "stopped by signal 15" if number == signal.SIGTERM else f"rank {rank}, process {children[rank]}"
    assert said.count("calogen: ") == 1, said
    assert word in said
    one = [sys.executable, "-m", "calogen", *command[command.index("train") :]]
    steps = one.index(str(10**6))
    last = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*") if p.name[5:].isdigit())
    one[steps] = str(last + 2)
    again = subprocess.run([*one, "--resume", "--threads=1"], env=paths, capture_output=True, text=True, check=True)
    assert f"trained {last + 2} steps" in again.stdout
    assert "ranks 2 -> 1" in again.stderr


@pytest.mark.slow
def test_projected_training_runs_on_rank_0_and_is_that_of_one_process(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", toy(SINGLE, 1500, seed=2))
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    last = ["--set=training.update=projected", "--steps=1", "--threads=1"]
    command = [*by_torchrun("--data", data), *last, "--out"]
    done = subprocess.run([*command, str(tmp_path / "two")], env=paths, capture_output=True, text=True, check=True)
    assert "projected training runs on rank 0" in done.stderr
    one = [sys.executable, "-m", "calogen", *command[command.index("train") :], str(tmp_path / "one")]
    subprocess.run(one, env=paths, check=True)
    cards = [load_checkpoint(tmp_path / name / "checkpoints" / "step-1") for name in ("one", "two")]
    assert cards[0].card.model_sha256 == cards[1].card.model_sha256
    assert cards[0].card.score == cards[1].card.score


@pytest.mark.slow
def test_two_ranks_take_little_more_than_half_the_time_each(tmp_path: Path) -> None:
    done = launched(tmp_path, "timing", 2)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    ratios = sorted(mine / one for one, mine in seconds)
    print(f"CPU a step and rank at batch 1,024: {ratios[len(ratios) // 2]:.2f} of one process; rounds {seconds}")
    assert ratios[len(ratios) // 2] <= 0.65


if __name__ == "__main__":
    main()
