"""What ``calogen bench`` prints: ours beside the bare minimum, measured in one run and quoted as a ratio."""

from __future__ import annotations

import copy
import hashlib
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .analysis.survey.passes import Surveyor
from .analysis.survey.plan import SurveyPlan, plan_comparison
from .analysis.survey.streams import Streams
from .analysis.survey.survey import Range, Survey, ranges
from .config import Config
from .cores import keep_memory, one_thread, sensible_number
from .errors import CalogenError, ConfigError
from .export.cpp import timer
from .export.onnx import onnx_engine
from .models.conditions import scale_conditions
from .models.contract import Array, OnArrays
from .models.showers.generator import ShowerGenerator
from .production.pool import Pool
from .production.requests import Request
from .runs.checkpoint import Checkpoint
from .runs.environment import environment
from .runs.find import load_model
from .sampling import Surrogate
from .shards.hdf5 import compressed
from .shards.samples import Samples
from .shards.sources import open_shards
from .shards.writer import samples_per_shard, write_shard
from .training.loop import TrainingLoop
from .training.objectives import gradient_penalty
from .training.setup import prepare
from .training.trainers import AdversarialTrainer, Trainer

Facts = dict[str, Any]

_DEFAULT = "data/calogan-gamma"
_PENALTY = 10.0  # its weight, as the objective has it


def train_ratio(
    data: Sequence[str] = (), steps: int = 30, rounds: int = 5, batch_size: int = 256, threads: int | None = None
) -> Facts:
    """Time whole training steps and the same steps in a bare torch loop, in turn, on the same tensors.

    Ours includes what training needs around the networks: shuffled data, symmetries, the average of the generator,
    sums for the log, log lines. The bare loop has networks, loss, penalty and optimisers on one batch that never
    changes.

    Args:
        data: As for :func:`calogen.training.prepare`; empty: ``data/calogan-gamma`` of the working folder.
        steps: Steps timed in each round.
        rounds: Rounds of each; medians are quoted.
        batch_size: Samples per batch.
        threads: CPU threads.

    Returns:
        Milliseconds per step of both, the ratio with its range over rounds, steps a second, and what share of a step
        is the networks' bare arithmetic: its matrix products and convolutions.

    Raises:
        ConfigError: If no data are given and there are none to fall back on.
    """
    if not data and not Path(_DEFAULT).is_dir():
        raise ConfigError("there are no data to train on", where="`data`", hint="give `data`, or run in a clone")
    options = {"batch_size": batch_size, "steps": 10**9, "log_every": 10, "validate_every": 10**9}
    config = Config.build({"threads": threads, "training": {**options, "update": "adam", "checkpoint_every": 10**9}})
    plan = prepare(config, list(data) or _DEFAULT)
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop.start(plan, Path(folder) / "run", check=False)
        bare = _bare_loop(loop.trainer)
        times = _in_turn(rounds + 1, lambda: loop.advance(steps), lambda: bare(steps))[1:]  # the first one warms up
        ours_ms, bare_ms = 1e3 * np.array(times).T / steps
        with _Products() as products:  # type: ignore[no-untyped-call]
            loop.advance(steps)
    ratios = ours_ms / bare_ms
    share = 1e3 * products.seconds / steps / statistics.median(ours_ms)
    return {
        "calogen ms/step": round(statistics.median(ours_ms), 2),
        "bare torch ms/step": round(statistics.median(bare_ms), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio range": [round(min(ratios), 3), round(max(ratios), 3)],
        "calogen steps/s": round(1e3 / statistics.median(ours_ms), 2),
        "share of matrix products and convolutions": round(share, 2),
        "family": plan.family.name,
        "network": plan.config.generator.network,
        "batch size": batch_size,
        "critic steps": config.training.critic_steps,
        "device": str(plan.device),
        "threads": plan.threads,
        "torch": torch.__version__,
    }


def _time(work: Any) -> float:
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def _in_turn(rounds: int, *work: Callable[[], Any]) -> list[list[float]]:
    """Seconds that each piece of work takes in each round."""
    return [[_time(each) for each in work] for _ in range(rounds)]


class _Products(TorchDispatchMode):
    """Seconds spent in matrix products and convolutions, forward and backward (on a GPU: until they are launched)."""

    seconds = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begun = time.perf_counter()
        made = function(*args, **(kwargs or {}))
        if any(word in function.__name__ for word in ("mm", "convolution")):
            self.seconds += time.perf_counter() - begun
        return made


def _bare_loop(trainer: Trainer) -> Callable[[int], None]:
    """WGAN-GP as one would write it on an afternoon, for some steps: copies of the same networks, one fixed batch."""
    if not isinstance(trainer, AdversarialTrainer):
        raise ConfigError("there is no critic to time", where="training.objective", found=trainer.options.objective)
    options, (samples, conditions) = trainer.options, trainer.batches[0]
    generator, critic = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.critic)
    scaled = scale_conditions(trainer.setup.family, trainer.setup.conditions, conditions)
    stream = torch.Generator(samples.device).manual_seed(0)
    trained = [p for p in generator.parameters() if p.requires_grad]
    generator_optimiser = torch.optim.Adam(trained, lr=options.learning_rate, betas=options.betas)
    critic_optimiser = torch.optim.Adam(critic.parameters(), lr=options.critic_learning_rate, betas=options.betas)

    def generate() -> Tensor:
        latent = torch.randn((len(samples), generator.latent_size), generator=stream, device=samples.device)
        return critic.view(generator(latent, conditions), conditions)

    def advance(steps: int) -> None:
        for _ in range(steps):
            for _ in range(options.critic_steps):
                with torch.no_grad():
                    reference, generated = critic.view(samples, conditions), generate()
                difference = critic(generated, scaled).mean() - critic(reference, scaled).mean()
                penalty = gradient_penalty(critic, reference, generated, scaled, stream)
                critic_optimiser.zero_grad()
                (difference + _PENALTY * penalty).backward()
                critic_optimiser.step()
            loss = -critic(generate(), scaled).mean()
            generator_optimiser.zero_grad()
            loss.backward(inputs=trained)
            generator_optimiser.step()

    return advance


_PUBLISHED = {
    "CaloGAN (2017)": "2.03 on a CPU, 0.012 on a K80 GPU, batch 1024, in memory",
    "BoloGAN (CaloChallenge photons)": "105 / 1.7 / 0.55 on a CPU, batch 1 / 100 / 10,000",
    "CaloShowerGAN (CaloChallenge photons)": "480 / 56 / 1.20 on a CPU, batch 1 / 100 / 10,000",
    "CaloINN (CaloChallenge photons)": "38 / 2.8 / 2.9 on a CPU, batch 1 / 100 / 10,000",
}
_REPEATS = 5
_BATCHES = (1, 100, 10_000)
_FORWARD_SECONDS, _DISK_SECONDS, _BATCH_SECONDS = 2.0, 3.0, 3.0  # about what each measurement takes of one core
_MOST_WRITTEN = 500_000


def generation_rates(model: str = "calogan-gamma", samples: int | None = None, workers: int | None = None) -> Facts:
    """Time a generator: its bare forward pass, in memory, and end to end onto the disk.

    The bare forward pass has its latent numbers ready and its samples thrown away. End to end means conditions, noise,
    network, physical units, compression, checksums and files; the time workers take to start is quoted beside it.

    Args:
        model: As for :meth:`Surrogate.load`; runs on the CPU.
        samples: Samples written by each of the two productions (default: what takes one core some seconds).
        workers: Of the second production (default: the cores this process may use).

    Returns:
        Rates, times, sizes, and published figures of other generators; batches that would take too long are left out.
    """
    checkpoint = load_model(model)
    surrogate = Surrogate(checkpoint, "cpu")
    what = "shower" if surrogate.family.layers else "map"
    workers = sensible_number(workers, "`workers`")
    with one_thread():
        rough = _forward_rate(surrogate, seconds=0)
    request = _whole_range(surrogate, samples or min(_MOST_WRITTEN, math.ceil(_DISK_SECONDS * rough)))
    # Productions first, the larger one at the head: what the rest takes must not count as their memory.
    together, alone = (_to_disk(surrogate, request, count) for count in (workers, 1))
    every = _forward_everywhere(model, workers)
    with one_thread():
        one = _forward_rate(surrogate)
        batches = [n for n in _BATCHES if n < _BATCH_SECONDS * one]
        memory = {f"ms per {what} in memory, batch {n}": _sample_ms(surrogate, n) for n in batches}
        stages = _stages(surrogate, request)
        engines = _engine_times(surrogate, checkpoint, [n for n in _BATCHES if n < 4 * _BATCH_SECONDS * one])
    return {
        "model": f"{model}: {surrogate.family.name}, {surrogate.family.voxels} voxels",
        "forward, one core": f"{one:,.0f} {what}s/s",
        f"forward, {workers} cores": f"{every:,.0f} {what}s/s",
        f"us per {what} with its noise, one core, batch {' / '.join(map(str, engines.batches))}": engines.times,
        f"times as fast as {_MODULE}, the same batches": engines.ratios,
        **memory,
        "to disk, 1 worker": f"{alone.rate:,.0f} {what}s/s, after {alone.start_seconds:.1f} s of start",
        f"to disk, {workers} workers": f"{together.rate:,.0f} {what}s/s, after {together.start_seconds:.1f} s of start",
        "ratio of workers": round(together.rate / alone.rate, 2),
        "ratio to disk / forward": round(together.rate / every, 2),
        f"{what}s a minute, to disk": f"{60 * together.rate:,.0f}",
        f"us per {what} of each stage": stages,
        f"bytes per {what}": together.bytes_each,
        "peak memory, all processes": f"{together.memory / 1e9:.2f} GB",
        f"{what}s written": request.samples,
        **({"published, ms per shower": _PUBLISHED} if what == "shower" else {}),
        "versions": {key: str(value) for key, value in environment().items() if key != "commit"},
    }


def _whole_range(surrogate: Surrogate, samples: int) -> Request:
    specs = {c.name: c.spec for c in surrogate.card.conditions}
    return Request.of(surrogate.family, specs, samples)


def _forward_rate(surrogate: Surrogate, *, seconds: float = _FORWARD_SECONDS / 2) -> float:
    """Samples a second of the bare forward pass on one core, the best of what there is time for."""
    forward, inputs = surrogate.forward_pass()
    forward(*inputs)
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        best = min(best, _time(lambda: forward(*inputs)))
    return len(inputs[0]) / best


def forward_for(model: str, seconds: float) -> None:
    """Print "ready"; on a line of input run the bare forward pass for a while and print samples a second."""
    surrogate = Surrogate.load(model, "cpu")
    forward, inputs = surrogate.forward_pass()
    keep_memory()
    with one_thread():
        forward(*inputs)
        print("ready", flush=True)
        sys.stdin.readline()
        begun, blocks = time.perf_counter(), 0
        while time.perf_counter() < begun + seconds:
            forward(*inputs)
            blocks += 1
    print(blocks * len(inputs[0]) / (time.perf_counter() - begun))


def _forward_everywhere(model: str, processes: int) -> float:
    """Samples a second of the bare forward pass, one process a core, all at the same time."""
    code = f"import sys; from calogen.bench import forward_for; forward_for(sys.argv[1], {_FORWARD_SECONDS})"
    command, pipe = [sys.executable, "-c", code, model], subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]
    for process in running:
        process.stdout.readline()  # type: ignore[union-attr]
    for process in running:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    return sum(float(process.communicate()[0]) for process in running)


def _sample_ms(surrogate: Surrogate, batch: int) -> float:
    """Milliseconds a sample of :meth:`Surrogate.sample`, the median of several calls."""
    request = _whole_range(surrogate, batch)
    conditions = request.conditions(surrogate.conditions, 0, 0, batch)
    surrogate.sample(conditions, batch)
    times = [_time(lambda: surrogate.sample(conditions, batch)) for _ in range(max(3, 200 // batch))]
    return round(1e3 * statistics.median(times) / batch, 5)


Engine = Callable[[NDArray[np.float32], int], Any]
"""Makes samples with conditions (n, C), in their units, whose noise is that of seed 0 from some index on."""

_MODULE, _COMPILED = "torch module", "as it runs here"
_TRAINED = "as it runs here, with networks that do not end in zero"


def _of_inference(surrogate: Surrogate, run: Callable[[Array, Array], Array]) -> Engine:
    """Noise, and what a form of the generator makes of it, a block at a time."""

    def make(conditions: NDArray[np.float32], start: int) -> None:
        for first in range(0, len(conditions), surrogate.block):
            asked = conditions[first : first + surrogate.block]
            run(surrogate.latents(len(asked), start=start + first), asked)

    return make


def _module(surrogate: Surrogate, checkpoint: Checkpoint) -> Engine:
    return _of_inference(surrogate, OnArrays(checkpoint.generator()))


def _compiled(surrogate: Surrogate, checkpoint: Checkpoint) -> Engine:
    return _of_inference(surrogate, checkpoint.generator().folded())


def _compiled_trained(surrogate: Surrogate, checkpoint: Checkpoint) -> Engine | None:
    """The same with numbers in the networks' last layers, which start as zero and are left out while they are."""
    generator, stream = checkpoint.generator(), torch.Generator().manual_seed(0)
    if not isinstance(generator, ShowerGenerator):
        return None
    with torch.no_grad():
        for network in (generator.energies, generator.shapes):
            weight = network[-1].weight
            weight += 1e-3 * torch.randn(weight.shape, generator=stream)  # type: ignore[operator, arg-type]
    return _of_inference(surrogate, generator.folded())


def _onnx(surrogate: Surrogate, checkpoint: Checkpoint) -> Engine | None:
    generator = checkpoint.generator()
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return None
    with suppress(ConfigError):  # of networks that no graph expresses
        return _of_inference(surrogate, onnx_engine(generator))
    return None


ENGINES: dict[str, Callable[[Surrogate, Checkpoint], Engine | None]] = {
    _MODULE: _module,
    _COMPILED: _compiled,
    _TRAINED: _compiled_trained,
    "ONNX Runtime": _onnx,
}
"""What runs a generator, by name, the one others are compared with first; none where it is not there."""


class _EngineTimes(NamedTuple):
    """Microseconds a sample of every engine and how many times as fast as the first it is, a text of all batches."""

    batches: Sequence[int]
    times: dict[str, str]
    ratios: dict[str, str]


def _engine_times(surrogate: Surrogate, checkpoint: Checkpoint, batches: Sequence[int]) -> _EngineTimes:
    """Time all engines in turn, batch by batch; the best of several rounds."""
    engines = {name: engine for name, build in ENGINES.items() if (engine := build(surrogate, checkpoint)) is not None}
    request, found = _whole_range(surrogate, max(batches)), []
    columns = request.conditions(surrogate.conditions, 0, 0, max(batches)).array(surrogate.conditions)
    for batch in batches:
        calls, asked = max(1, 200 // batch), np.ascontiguousarray(columns[:batch])

        def work(engine: Engine, calls: int = calls, asked: NDArray[np.float32] = asked) -> Callable[[], None]:
            def repeat() -> None:
                for i in range(calls):
                    engine(asked, i)

            return repeat

        times = np.array(_in_turn(_REPEATS + 1, *map(work, engines.values())))[1:]  # the first one warms up
        found.append(1e6 * times.min(0) / (calls * batch))
    rows = dict(zip(engines, np.array(found).T, strict=True)) | _header_times(checkpoint, batches)
    first = rows[_MODULE]
    return _EngineTimes(
        batches,
        {name: " / ".join(f"{t:,.1f}" for t in row) for name, row in rows.items()},
        {name: " / ".join(f"{t:.2f}" for t in first / row) for name, row in rows.items()},
    )


def _header_times(checkpoint: Checkpoint, batches: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Microseconds a shower of the C++ header, where it can be compiled: a program of its own, which times itself."""
    generator = checkpoint.generator()
    if not isinstance(generator, ShowerGenerator):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        timed = timer(generator, checkpoint.card, Path(folder))
        return {} if timed is None else {"C++ header": np.array([timed(batch) for batch in batches])}


def _stages(surrogate: Surrogate, request: Request) -> dict[str, float]:
    """Microseconds a sample of one core, stage by stage."""
    rows = surrogate.block
    forward, inputs = surrogate.forward_pass()
    values = forward(*inputs)
    packed = compressed(values)
    stages = {
        "conditions": lambda: request.conditions(surrogate.conditions, 0, 0, rows),
        "noise": lambda: surrogate.latents(rows),
        "network and physical units": lambda: forward(*inputs),
        "compression": lambda: compressed(values),
        "checksum": lambda: hashlib.sha256(packed).digest(),
    }
    return {name: round(1e6 * min(_time(work) for _ in range(_REPEATS)) / rows, 2) for name, work in stages.items()}


class _ToDisk(NamedTuple):
    """One timed production."""

    rate: float
    start_seconds: float
    bytes_each: int
    memory: int


def _to_disk(surrogate: Surrogate, request: Request, workers: int) -> _ToDisk:
    begun = time.monotonic()
    first: list[float] = []  # time and samples when the first are done

    def progress(done: int, _: int) -> None:
        if done and not first:
            first.extend((time.monotonic(), done))

    per_shard = max(surrogate.block, request.samples // (4 * workers) // surrogate.block * surrogate.block)
    size = min(per_shard, samples_per_shard(surrogate.family))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples"
        surrogate.generate(out, request, workers=workers, shard_size=size, progress=progress)
        end = time.monotonic()
        taken = sum(path.stat().st_size for path in out.glob("*.h5"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if workers > 1:
        memory += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # What is done when the first are heard of took the start too.
    later = request.samples - first[1]
    rate = later / (end - first[0]) if later else request.samples / (end - begun)
    return _ToDisk(rate, first[0] - begun, round(taken / request.samples), 1024 * memory)


def analysis_ratio(
    data: Sequence[str] = (),
    samples: int = 100_000,
    rounds: int = 3,
    threads: int = 2,
    workers: int | None = None,
) -> Facts:
    """Time the observables and histograms of showers in memory against the same, one feature after another in numpy.

    Both give every observable of every shower; histograms, under- and overflow included, of every observable, the
    spectrum of voxels and the mean shower, each for all showers and in four bins of energy. The plain version is what
    one writes for a paper: a function a feature, on whole arrays (which it gets in float64, unlike ours). What both
    would leave to the same library call (the covariance of voxels) is not in it.

    Args:
        data: Showers, at most ``samples`` of which are used; empty: made by the surrogate ``calogan-gamma``.
        samples: Showers.
        rounds: Rounds of each, in turn; the fastest of each is quoted.
        threads: Threads of calogen, as in a comparison; plain numpy has one.
        workers: Time the pass over these showers in files, too: with one worker process, with so many, and with so many
            passes of one worker each at the same time, which are as fast as this machine can be.

    Returns:
        Microseconds per shower of both, the ratio with its range over rounds, how many observables there are and how
        many of them the plain version has as well, the largest relative difference of any of those, and how many
        entries of the histograms differ (rounding at a bin's edge).

    Raises:
        ConfigError: If the data are maps, or there are too many threads for this machine.
        ShardError: If they cannot be read.
        CalogenError: If the two do not agree.
    """
    sensible_number(threads, "`threads`")
    sensible_number(workers, "`workers`")
    showers = _some_showers(data, samples)
    if not showers.family.layers:
        raise ConfigError("the plain analysis is of showers", found=f"maps of family '{showers.family.name}'")
    plan = plan_comparison(showers, bins=4, seed=0)
    wide = showers.values.astype(np.float64)
    found: dict[str, _Analysis] = {}
    times = _in_turn(
        rounds,
        lambda: found.update(ours=_streamed_analysis(showers, plan, threads)),
        lambda: found.update(plain=_plain_analysis(showers, wide, plan)),
    )
    ours_us, plain_us = 1e6 * np.array(times).T / len(showers)
    ratios = plain_us / ours_us
    return {
        "calogen us/shower": round(min(ours_us), 2),
        "plain numpy us/shower": round(min(plain_us), 2),
        "ratio": round(min(plain_us) / min(ours_us), 2),
        "ratio range": [round(min(ratios), 2), round(max(ratios), 2)],
        **_agreement(**found),
        **(_pass_rates(showers, plan, workers, rounds) if workers else {}),
        "family": showers.family.name,
        "showers": len(showers),
        "observables": len(found["ours"].observables),
        "observables compared": len(found["plain"].observables),
        "not in plain numpy": sorted(set(found["ours"].observables) - set(found["plain"].observables)),
        "selections": len(plan.selections),
        "threads": threads,
        "numpy": np.__version__,
    }


class _PassTime:
    """Follows a pass over files: showers a second once the first have been read, without the start of processes."""

    def __init__(self, count: int) -> None:
        self.merged: Survey | None = None
        self._count, self._done, self._under_way = count, 0, dict[int, int]()
        self._first: tuple[float, int] | None = None

    def begun(self, task: Range, amount: int) -> None:
        self._under_way[task.start] = amount
        if amount and self._first is None:
            self._first = time.perf_counter(), self._done + sum(self._under_way.values())

    def finished(self, task: Range, result: Survey) -> None:
        self.begun(task, task.samples)
        self.merged = result if self.merged is None else self.merged.merge(result)

    def stop_if_asked(self) -> None:
        """Nobody asks."""

    def rate(self) -> float:
        begun, samples = self._first or (0.0, 0)
        return (self._count - samples) / (time.perf_counter() - begun)


def _pass_rates(showers: Samples, plan: SurveyPlan, workers: int, rounds: int) -> Facts:
    """Showers a second of passes over files: with one worker, with several, and of several passes side by side."""
    with tempfile.TemporaryDirectory() as folder:
        write_shard(Path(folder) / "showers.h5", showers.chunks(), provenance={"bench": "analysis"}, count=len(showers))
        source = open_shards(folder)
        parts = ranges(source, plan, size=len(source) // (8 * workers))

        def rate(count: int) -> float:
            watch = _PassTime(len(source))
            Pool(Surveyor(plan, {"": source}), watch).run(parts, count)
            return watch.rate()

        def apart() -> float:
            with ThreadPoolExecutor(workers) as pool:
                return sum(pool.map(rate, [1] * workers))

        found = np.array([(rate(1), rate(workers), apart()) for _ in range(rounds)])
    one, together, _ = np.median(found, axis=0)
    name = f"{workers} workers"
    return {
        "pass over files, 1 worker": f"{one:,.0f} showers/s",
        f"pass over files, {name}": f"{together:,.0f} showers/s",
        f"ratio of {name} to 1": round(float(np.median(found[:, 1] / found[:, 0])), 2),
        f"ratio of {workers} separate passes to 1": round(float(np.median(found[:, 2] / found[:, 0])), 2),
    }


def _some_showers(data: Sequence[str], samples: int) -> Samples:
    if data:
        return open_shards(list(data)).read(0, samples)
    surrogate = Surrogate.load("calogan-gamma")
    (name,), energies = surrogate.conditions, np.random.default_rng(0).uniform(1e3, 1e5, samples).astype(np.float32)
    parts = [surrogate.sample({name: energies[i : i + 8192]}, seed=i) for i in range(0, samples, 8192)]
    return Samples(surrogate.family, np.concatenate(parts), {name: energies})


class _Analysis(NamedTuple):
    """Observables (N,) by name, contents of histograms by name and selection, mean showers by selection."""

    observables: dict[str, NDArray[np.float64]]
    contents: dict[tuple[str, int], NDArray[np.int64]]
    means: NDArray[np.float64]


def _streamed_analysis(showers: Samples, plan: SurveyPlan, threads: int) -> _Analysis:
    streams = Streams(plan, threads=threads)
    with threadpool_limits(1, "blas"):
        table = np.concatenate([streams.fill(chunk) for chunk in showers.chunks()], axis=1)
    numbers = range(len(plan.selections))
    contents = {(name, i): streams.histograms.counts(name, i) for name in plan.edges for i in numbers}
    return _Analysis(dict(zip(plan.observables, table, strict=True)), contents, streams.means.mean)


def _plain_analysis(showers: Samples, wide: NDArray[np.float64], plan: SurveyPlan) -> _Analysis:
    """What published analysis code has of the same, and in its way; ``wide``: the showers in float64."""
    found = _plain_observables(showers, wide)
    found = {name: values for name, values in found.items() if name in plan.observables}
    contents, means = {}, []
    for number, selection in enumerate(plan.selections):
        mine = selection.of(showers.conditions, len(showers))
        for name, values in found.items():
            contents[name, number] = _plain_histogram(values[mine], plan.edges[name][number])
        contents["voxel", number] = _plain_histogram(wide[mine].ravel(), plan.edges["voxel"][number])
        means.append(wide[mine].mean(axis=0))
    return _Analysis(found, contents, np.stack(means))


def _plain_histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    inside, _ = np.histogram(values[values != edges[-1]], edges)  # numpy's last bin has its upper edge, ours has not
    return np.concatenate([[np.count_nonzero(values < edges[0])], inside, [np.count_nonzero(values >= edges[-1])]])


def _plain_observables(samples: Samples, showers: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Feature after feature, as CaloGAN's ``feats1d.py`` and CaloChallenge's ``HighLevelFeatures.py`` do."""
    family, tiny = samples.family, 1e-30  # an empty layer has centre 0

    def energy(layer: int) -> NDArray[np.float64]:
        return np.asarray(showers[:, family.layer_slices[layer]].sum(axis=1))

    def weighted_depth(power: int) -> NDArray[np.float64]:
        return np.asarray(sum(i**power * energy(i) for i in range(len(family.layers))))

    def centre(layer: int, position: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
        cells = showers[:, family.layer_slices[layer]]
        return np.asarray((cells * position**power).sum(axis=1) / (cells.sum(axis=1) + tiny))

    def width(layer: int, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(np.maximum(centre(layer, position, 2) - centre(layer, position) ** 2, 0))

    def energy_ratio(layer: int) -> NDArray[np.float64]:
        first, second = np.sort(showers[:, family.layer_slices[layer]], axis=1)[:, :-3:-1].T
        return np.asarray((first - second) / (first + second + tiny))

    def depth() -> NDArray[np.float64]:
        return np.asarray(np.max([i * (energy(i) > 0) for i in range(len(family.layers))], axis=0), np.float64)

    found = {"total_energy": showers.sum(axis=1), "depth": depth()}
    if family.energy is not None and (incident := samples.conditions.get(family.energy.name)) is not None:
        found["response"] = showers.sum(axis=1) / incident.astype(np.float64)
    found["occupancy"] = (showers > 0).mean(axis=1)
    for name, threshold in (("15keV", 0.015), ("100keV", 0.1), ("1MeV", 1.0)):
        if threshold > family.threshold:
            found[f"occupancy_{name}"] = (showers > threshold).mean(axis=1)
    found["lateral_depth"], found["lateral_depth2"] = weighted_depth(1), weighted_depth(2)
    found["shower_depth"] = weighted_depth(1) / (showers.sum(axis=1) + tiny)
    mean, square = (weighted_depth(power) / (showers.sum(axis=1) + tiny) for power in (1, 2))
    found["shower_depth_width"] = np.sqrt(np.maximum(square - mean**2, 0))
    for i, (layer, number) in enumerate(zip(family.layers, family.layer_numbers, strict=True)):
        found[f"energy_{number}"] = energy(i)
        found[f"fraction_{number}"] = energy(i) / (showers.sum(axis=1) + tiny)
        found[f"energy_ratio_{number}"] = energy_ratio(i)
        found[f"occupancy_{number}"] = (showers[:, family.layer_slices[i]] > 0).mean(axis=1)
        for axis, position in layer.axes.items():
            found[f"centre_{axis}_{number}"] = centre(i, position)
            found[f"width_{axis}_{number}"] = width(i, position)
    return found


def _agreement(ours: _Analysis, plain: _Analysis) -> Facts:
    """Largest differences of what both have; an error if they are more than rounding."""
    worst = 0.0
    for name, theirs in plain.observables.items():
        values = ours.observables[name]
        # The width of a single hit is the root of a difference of large squares: compare on the scale of the others.
        worst = max(worst, float((np.abs(values - theirs) / (np.abs(values) + values.std() + 1e-30)).max()))
    entries = sum(int(c.sum()) for c in plain.contents.values())
    moved = sum(int(np.abs(c - ours.contents[key]).sum()) // 2 for key, c in plain.contents.items())
    mean = float((np.abs(ours.means - plain.means) / (plain.means + 1e-30)).max())
    if worst > 1e-5 or moved > 1e-3 * entries or mean > 1e-9:  # some values lie on an edge: rounding decides
        raise CalogenError("the two analyses do not agree", found=f"{worst:.2g}, {moved} entries, {mean:.2g}")
    return {"largest difference": float(f"{max(worst, mean):.2g}"), "entries in another bin": f"{moved} of {entries}"}
