"""Inputs that are damaged at random, and what calogen makes of them: ``python tests/fuzz.py 5000 1`` (cases, seed).

Every case is one mutation of one file, given to one entry point in a forked process, with limits of time and memory.
What may come of it: the input is refused (exit code 2, a message), the content is right all the same, or the damage is
said. Values may change silently only in files that carry no checksum; how often they do is counted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from calogen.analysis import compare
from support import ENERGY, MAPS, SMALL, TINY, command, tiny, toy, write_folder

from calogen.config import Config
from calogen.errors import CalogenError
from calogen.families import FAMILIES, CylindricalLayer, Family, resolve_family
from calogen.production.requests import Request
from calogen.runs.environment import environment
from calogen.runs.folder import RunFolder, resumable
from calogen.sampling import Surrogate
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard
from calogen.training.loop import train
from calogen.training.setup import prepare

SECONDS, BYTES = 10, 1 << 30
GOOD = ("refused", "right", "said")
"""Verdicts that are always well; ``silent`` is where nothing could have told."""
ROUND = Family(
    name="round",
    layers=(CylindricalLayer(n_alpha=4, r_edges=(0, 5, 10, 20)),) * 2,
    conditions=(ENERGY,),
    max_response=1.5,
)
"""Layers that are alike, as in Par04."""
NASTY = [*b"nan -1 1e999 0 -0 null [] a/b 999999999999".split(), b"9" * 5000, b"[" * 9999, b"\x1b[2J", b"\xff"]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        file: What is mutated, in the world's folder.
        entries: What it is given to: each returns what came of it, and whether damage was said.
        checked: Whether the file carries a checksum, or another does.
    """

    file: str
    entries: tuple[Callable[[Path], tuple[str, bool]], ...]
    checked: bool = False


def digest(*parts: Any) -> str:
    """One text for what an entry point made."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read(place: str, **how: Any) -> Callable[[Path], tuple[str, bool]]:
    """Open samples and read all of them."""

    def entry(home: Path) -> tuple[str, bool]:
        shards = open_shards(home / place, **how)
        samples = shards.read()
        columns = {name: np.asarray(column).tobytes() for name, column in samples.conditions.items()}
        return digest(samples.values.tobytes(), columns, samples.kind, samples.family), bool(shards.missing)

    return entry


def info(place: str) -> Callable[[Path], tuple[str, bool]]:
    """``calogen info``: through the command line, then its facts."""

    def entry(home: Path) -> tuple[str, bool]:
        done = command("info", home / place, "--json")
        if done.code:
            raise Refused(done.code, done.err)
        facts = json.loads(done.out)
        command("info", home / place)
        said = bool(facts.get("problems") or facts.get("missing"))
        return digest(re.sub(str(home), "", json.dumps(facts, sort_keys=True))), said

    return entry


def load(place: str) -> Callable[[Path], tuple[str, bool]]:
    """Load a surrogate and sample."""

    def entry(home: Path) -> tuple[str, bool]:
        surrogate = Surrogate.load(home / place)
        conditions = {c.name: (c.low + c.high) / 2 for c in surrogate.card.conditions}
        return digest(surrogate.sample(conditions, 8, seed=1).tobytes()), False

    return entry


def dry_run(*words: str) -> Callable[[Path], tuple[str, bool]]:
    """``calogen train --dry-run``."""

    def entry(home: Path) -> tuple[str, bool]:
        done = command(
            "train", *(str(home / w[1:]) if w[0] == "@" else w for w in words), "--dry-run", "--out", home / "new"
        )
        if done.code:
            raise Refused(done.code, done.err)
        return digest(re.sub(str(home), "", done.out)), False

    return entry


def configured(home: Path) -> tuple[str, bool]:
    """All settings of a configuration."""
    return Config.load(home / "config.toml").to_json(), False


def family_of(name: str, **how: Any) -> Callable[[Path], tuple[str, bool]]:
    """The family in a file, written and read again."""

    def entry(home: Path) -> tuple[str, bool]:
        family = resolve_family(home / name)
        samples = toy_of(family)
        write_shard(home / "again.h5", samples, provenance={})
        again = open_shards(home / "again.h5")
        again.read()
        return digest(again.family.model_dump_json()), False

    return entry


def toy_of(family: Any) -> Any:
    """One shower with the same energy everywhere."""
    from calogen.shards.samples import Samples

    columns = {c.name: np.array([c.high], np.float32) for c in family.conditions}
    level = family.require_energy().high * min(family.max_response, 1) / family.voxels
    return Samples(family, np.full((1, family.voxels), level, np.float32), columns)


def compared(place: str) -> Callable[[Path], tuple[str, bool]]:
    """Compare with what is whole."""

    def entry(home: Path) -> tuple[str, bool]:
        report = compare(home / "whole", home / place, bins=0)
        found = {
            name: {str(key): metric.value for key, metric in all_.items()} for name, all_ in report.metrics.items()
        }
        return digest(json.dumps(found)), bool(open_shards(home / place).missing)

    return entry


def table(home: Path) -> tuple[str, bool]:
    """Conditions from a file."""
    request = Request.from_file(home / "conditions.csv", SMALL, [c.name for c in SMALL.conditions])
    return request.digest(), False


def resumed(home: Path) -> tuple[str, bool]:
    """What a run would go on from."""
    config = json.loads((home / "run" / "config.json").read_text())
    facts = environment() | {"device": "cpu", "threads": 1, "data": (home / "digest.txt").read_text()}
    checkpoint, warning = resumable(RunFolder(home / "run"), Config.build(config), facts)
    history = RunFolder(home / "run").history(checkpoint.card.step)
    tensors = {name: tensor.numpy().tobytes() for name, tensor in sorted(checkpoint.training_state().items())}
    return digest(tensors, history, checkpoint.card.step), bool(warning)


class Refused(Exception):
    """A command that ended with an exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = code


STEP = "run/checkpoints/step-2"
KINDS: dict[str, Kind] = {
    "listed shard": Kind("native/shard-000001.h5", (read("native"), info("native"), compared("native")), checked=True),
    "manifest": Kind("native/manifest.json", (read("native"), info("native")), checked=True),
    "shard": Kind("bare.h5", (read("bare.h5"), info("bare.h5"))),
    "CaloGAN file": Kind("calogan.h5", (read("calogan.h5"), info("calogan.h5"))),
    "Par04 file": Kind("angle_90.h5", (read("angle_90.h5", family=ROUND),)),
    "LEMURS file": Kind("lemurs.h5", (read("lemurs.h5", family=ROUND),)),
    "stack": Kind("maps.npy", (read("maps.npy", family=MAPS),)),
    "parameters": Kind("params.txt", (read("maps.npy", family=MAPS),)),
    "list": Kind("list.csv", (read("list.csv", family=MAPS),)),
    "card": Kind(f"{STEP}/checkpoint.json", (load("run"), load(STEP), info("run"), resumed), checked=True),
    "weights": Kind(f"{STEP}/model.safetensors", (load("run"), resumed), checked=True),
    "training state": Kind(f"{STEP}/training.safetensors", (resumed,), checked=True),
    "best.json": Kind("run/best.json", (load("run"), resumed, info("run")), checked=True),
    "log": Kind("run/log.jsonl", (resumed,), checked=True),
    "configuration": Kind("config.toml", (configured, dry_run("@config.toml", "--data", "@native"))),
    "family": Kind("family.toml", (family_of("family.toml"),)),
    "binning": Kind("binning.xml", (family_of("binning.xml"),)),
    "table": Kind("conditions.csv", (table,)),
}


def build(home: Path) -> Path:
    """A small world of whole inputs."""
    small = toy(SMALL, 80)
    write_folder(home / "native", small, 40)
    write_folder(home / "whole", toy(SMALL, 80, seed=2))
    write_shard(home / "bare.h5", small.read(0, 40), provenance={"toy": 1})
    write_shard(home / "calogan.h5", toy(FAMILIES["calogan"], 40), provenance={}, layout="calogan")
    with h5py.File(home / "calogan.h5", "r+") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    showers = toy(ROUND, 40)
    turned, energies = showers.values.reshape(40, 2, 4, 3).transpose(0, 3, 2, 1), showers.conditions[ENERGY.name]
    with h5py.File(home / "lemurs.h5", "w") as file:
        file["showers"], file["incident_energy"] = turned, energies
    with h5py.File(home / "angle_90.h5", "w") as file:
        for name, rows in (("10", slice(20)), ("50", slice(20, 40))):
            file[name] = turned[rows] * (1e3 * float(name) / energies[rows])[:, None, None, None]
    maps = toy(MAPS, 12)
    np.save(home / "maps.npy", maps.values)
    columns = np.stack(list(maps.conditions.values()), 1)
    np.savetxt(home / "params.txt", columns, header=" ".join(maps.conditions))
    (home / "list.csv").write_text("maps.npy,Omega_m=0.3,sigma_8=0.8\n")
    (home / "config.toml").write_text(TINY)
    table = SMALL.model_dump(mode="json", exclude_none=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, list)]
    for name in ("conditions", "layers"):
        for one in table[name]:
            lines += [f"[[family.{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in one.items())]
    (home / "family.toml").write_text("\n".join(["[family]", *lines]) + "\n")
    (home / "binning.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<Bins><Bin pid="22" etaMin="0" etaMax="130" name="photon">'
        '<Layer id="0" r_edges="0,5,10,30" n_bin_alpha="1"/><Layer id="1" r_edges="0,2,4" n_bin_alpha="10"/>'
        "</Bin></Bins>"
    )
    (home / "conditions.csv").write_text("incident_energy [GeV],angle\n" + "5.5,0.25\n" * 20)
    config = tiny(training={"steps": 2, "validation_size": 16})
    train(config, home / "native", home / "run")
    facts = prepare(config, home / "native")
    (home / "run" / "config.json").write_text(facts.config.to_json())
    (home / "digest.txt").write_text(facts.training.digest())
    return home


def mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """One mutation: its name, and the bytes."""

    def place(length: int = 0) -> int:
        return int(rng.integers(0, max(1, len(data) - length + 1)))

    size = int(rng.integers(1, 65))
    name = str(rng.choice(["flip", "truncate", "splice", "swap", "number"]))
    if name == "flip":
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 5))):
            changed[place(1)] ^= 1 << int(rng.integers(8))
        return name, bytes(changed)
    if name == "truncate":
        return name, data[: place(1)]
    if name == "splice":
        other = others[int(rng.integers(len(others)))]
        start, at = int(rng.integers(0, max(1, len(other) - size))), place()
        return name, data[:at] + other[start : start + size] + data[at + size * int(rng.integers(2)) :]
    if name == "swap":
        if rng.random() < 0.1:
            return name, others[int(rng.integers(len(others)))]
        a, b = sorted((place(size), place(size)))
        b = max(b, min(a + size, len(data)))
        return name, data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?", data)) or [re.compile(b"").search(data)]
    found, new = numbers[int(rng.integers(len(numbers)))], NASTY[int(rng.integers(len(NASTY)))]
    start, stop = (found.start(), found.end()) if found else (0, 0)
    return name, data[:start] + new + data[stop:]


def outcome(work: Callable[[], tuple[str, bool]]) -> tuple[str, str]:
    """What comes of some work in this process: a verdict, and what it returned or said."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)  # nobody catches the signal
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            content, said = work()
        return ("said" if said else "done"), content
    except (CalogenError, Refused) as error:
        return ("refused" if error.exit_code == 2 else f"exit {error.exit_code}"), str(error)
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def served(works: Iterator[tuple[Any, Callable[[], tuple[str, bool]]]]) -> Iterator[tuple[Any, str, str]]:
    """Outcomes of work done by forked processes: one does all it can, and the next goes on where it ended."""
    waiting = list(works)
    while waiting:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest may listen to it
            with os.fdopen(theirs, "wb") as stream, suppress(BaseException):
                for _, work in waiting:
                    pickle.dump(outcome(work), stream)
                    stream.flush()
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as stream, suppress(EOFError):
            while waiting:
                verdict, detail = pickle.load(stream)
                yield waiting.pop(0)[0], verdict, detail
        _, status = os.waitpid(child, 0)
        if waiting:
            number = signal.Signals(os.WTERMSIG(status))
            yield waiting.pop(0)[0], "hang" if number == signal.SIGALRM else "signal", number.name


@dataclass
class Case:
    """One mutation of one input, and its verdict."""

    number: int
    kind: str
    mutation: str
    entry: int
    verdict: str
    detail: str


def cases(home: Path, numbers: range, seed: int, scratch: Path) -> Iterator[Case]:
    """Some cases, one after another; ``home`` is what :func:`build` made."""
    whole = {name: (home / kind.file).read_bytes() for name, kind in KINDS.items()}
    every = [(name, entry) for name, kind in KINDS.items() for entry in range(len(kind.entries))]

    def untouched(name: str, entry: int) -> tuple[str, bool]:
        return KINDS[name].entries[entry](_copy(home, scratch / "right", KINDS[name]))

    right = {}
    for key, verdict, detail in served((key, partial(untouched, *key)) for key in every):
        assert verdict == "done", (key, verdict, detail)
        right[key] = detail

    def drawn(number: int) -> tuple[str, int, str, bytes]:
        rng = np.random.default_rng((seed, number))
        name = list(KINDS)[number % len(KINDS)]
        entry = int(rng.integers(len(KINDS[name].entries)))
        return name, entry, *mutate(whole[name], list(whole.values()), rng)

    def damaged(number: int) -> tuple[str, bool]:
        name, entry, _, data = drawn(number)
        place = _copy(home, scratch / "case", KINDS[name])
        (place / KINDS[name].file).write_bytes(data)
        return KINDS[name].entries[entry](place)

    for number, verdict, detail in served((number, partial(damaged, number)) for number in numbers):
        name, entry, mutation, _ = drawn(number)
        if verdict == "done":
            verdict = "right" if detail == right[name, entry] else "changed" if KINDS[name].checked else "silent"
        yield Case(number, name, mutation, entry, verdict, detail)


def _copy(home: Path, place: Path, kind: Kind) -> Path:
    """The world with a copy of what a case changes."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    top = kind.file.partition("/")[0]
    for path in home.iterdir():
        if path.name != top:
            (place / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, place / path.name)
        else:
            shutil.copy(path, place / path.name)
    return place


def main() -> None:
    count, seed = (int(word) for word in (*sys.argv[1:], "200", "1")[:2])
    tally: Counter[tuple[str, str]] = Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        for case in cases(build(Path(home) / "world"), range(count), seed, Path(home)):
            tally[case.kind, case.verdict] += 1
            if case.verdict not in (*GOOD, "silent"):
                print(case)
    verdicts = list(dict.fromkeys([*GOOD, "silent", *(verdict for _, verdict in tally)]))
    print(f"{'':16}", *(f"{verdict:>9}" for verdict in verdicts))
    for name in KINDS:
        print(f"{name:16}", *(f"{tally[name, verdict]:9}" for verdict in verdicts))
    print(f"{count} cases in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
