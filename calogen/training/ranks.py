"""Ranks: processes that train one surrogate together, each with its rows of every batch.

The result is that of one process with the same batches, up to the order of sums. Every rank draws the random numbers of
the whole batch and takes those of its rows; gradients are averaged by one ``all_reduce`` after each backward pass;
statistics of a batch are those of all its rows. ``DistributedDataParallel`` would not do: its hooks never see the
gradient that ``autograd.grad`` takes inside a penalty.

Rank 0 alone fits, judges, prints and writes; what each does by itself lies in :meth:`Ranks.apart`. Ranks may wait for
each other as long as it takes: a thread in each shows the others that its process lives, whatever its main thread does.
A process that dies, or is silent for seconds, ends all; so does one that fails.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, rendezvous  # type: ignore[attr-defined]

from ..cores import sensible_number, usable_cores
from ..errors import CalogenError, ConfigError, ElsewhereError, RankError
from ..models.layers import OfBatch
from ..models.streams import Share
from ..runs.checkpoint import Card, Checkpoint
from ..runs.environment import environment

_MEETING = 300.0  # seconds that ranks have to find each other
_SILENCE = 12.0  # seconds that a rank may not show that it lives
_PULSE = 1.0  # seconds between signs of life
_GRACE = 5.0  # seconds that the main thread has to notice that another rank is gone
_ROLL_CALL = 3.0  # seconds to say that one lives, once something failed
_FOR_EVER = timedelta(days=365)  # that ranks wait for each other, as long as all of them live
_DONE, _FAILED = 1, 2  # ways to leave
_CODES = 1000  # more than there are exit codes
_AGREE = "start all ranks with the same command, the same files and the same versions"

BatchNorm = nn.modules.batchnorm._BatchNorm
T = TypeVar("T")


class Ranks:
    """The processes of a training run as one of them sees it; here there is no other.

    Attributes:
        rank: Number of this process, from 0.
        size: Processes in all.
    """

    rank, size = 0, 1

    @property
    def heard(self) -> int:
        """Signal that any rank got during :meth:`apart`; 0: none."""
        return 0

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def last(self) -> bool:
        """Whether this is the one with the largest number."""
        return self.rank == self.size - 1

    def __deepcopy__(self, _: object) -> Ranks:
        return self  # networks that know their ranks are copied, connections are not

    def share(self, batch_size: int) -> Share:
        """This rank's rows of a batch.

        Raises:
            ConfigError: If a batch cannot be cut into equal parts.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"{self.size} ranks cannot have equal parts of a batch",
                where="training.batch_size",
                expected=f"a multiple of {self.size}",
                found=batch_size,
                hint=f"set training.batch_size={-(-batch_size // self.size) * self.size}, or start another number",
            )
        return Share(batch_size // self.size, self.rank, self.size)

    def threads(self, wanted: int | None) -> int:
        """CPU threads of this process: as many as are wanted, or its part of the cores."""
        return sensible_number(wanted, "threads")

    def device(self, device: torch.device) -> torch.device:
        """The same device, made this process's own where it is a GPU."""
        return device

    def mean_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients of this rank's rows by those of the batch."""

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over ranks of scalars."""
        return {name: float(value) for name, value in values.items()}

    def add(self, values: Tensor) -> None:
        """Replace values on the CPU by their sum over ranks."""

    def most(self, value: float) -> float:
        """The largest of the ranks' values."""
        return value

    def signal(self, mine: int) -> int:
        """The signal that any rank got; 0: none."""
        return mine

    def told(self, value: T, by: int = 0) -> T:  # noqa: ARG002
        """What one rank has to say, which JSON can hold; what the others give does not count."""
        return value

    def passed(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint that rank 0 has read."""
        return checkpoint

    def copy(self, networks: Mapping[str, nn.Module]) -> None:
        """Take over the networks of rank 0, before training."""

    def join(self, network: nn.Module) -> None:
        """Let a network look at whole batches, where it takes statistics of them."""

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that differ in what decides the result.

        Raises:
            ConfigError: Names the rank and the first fact, with both values.
        """

    @contextmanager
    def apart(self, asked: Callable[[], int] | None = None) -> Iterator[None]:  # noqa: ARG002
        """Work of unknown length, each rank its own; at the end they wait for each other.

        Args:
            asked: For a signal, now and then; what any rank got is ``heard`` by all.

        Raises:
            CalogenError: If the work of any rank failed, or a rank was lost.
        """
        yield


ALONE = Ranks()
"""One process, which is all ranks."""


class _Place(NamedTuple):
    """Where torchrun or Slurm has put this process.

    Attributes:
        rank: Its number.
        size: How many there are.
        local: Its number on this machine.
        cores: That it may use.
    """

    rank: int
    size: int
    local: int
    cores: int


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that ``torchrun`` or ``srun`` has started, or this process alone; they part again at the end.

    Raises:
        ConfigError: If variables of the environment that say where ranks meet are missing or wrong.
        RankError: If ranks do not find each other, or one of them was lost.
        ElsewhereError: If another rank says what is wrong.
    """
    place = _place(os.environ)
    if place is None:
        yield ALONE
        return
    try:
        _require_address(place)
    except ConfigError as error:
        raise error if place.rank == 0 else _elsewhere(error.exit_code) from None
    ranks = _Together(place)
    try:
        ranks.require_same({"versions": environment()})
        yield ranks
        ranks.part()
    except BaseException as error:
        raise ranks.farewell(error) from None


def _place(variables: Mapping[str, str]) -> _Place | None:
    """Where this process is among others; none: it is alone.

    Raises:
        ConfigError: If the variables do not say it.
    """
    if "WORLD_SIZE" in variables:
        rank, size = (_number(variables, name) for name in ("RANK", "WORLD_SIZE"))
        local, neighbours = (
            _number(variables, f"LOCAL_{name}", n) for name, n in (("RANK", rank), ("WORLD_SIZE", size))
        )
        cores = max(1, usable_cores() // max(1, neighbours))
    elif "SLURM_STEP_NUM_TASKS" in variables:  # which srun sets, and sbatch does not
        rank, size = (_number(variables, name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
        local, cores = (_number(variables, f"SLURM_{name}", n) for name, n in (("LOCALID", rank), ("CPUS_PER_TASK", 1)))
    else:
        return None
    if rank >= max(1, size):
        raise ConfigError("invalid number of a rank", where="RANK", expected=f"less than {size}", found=rank)
    return None if size == 1 else _Place(rank, size, local, cores)


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise ConfigError(
            "the environment does not say which of the ranks this process is",
            where=name,
            expected="a number",
            found="not set" if text is None else text,
            hint="start ranks with torchrun or srun; for one process, unset WORLD_SIZE and SLURM_STEP_NUM_TASKS",
        )
    return int(text)


def _require_address(place: _Place) -> None:
    """Complete the variables that say where ranks meet.

    Raises:
        ConfigError: Names the one that is missing.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if job.isdecimal():
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(job) % 20_000))
    hints = {
        "MASTER_ADDR": 'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) before srun',
        "MASTER_PORT": "set it to a free port, the same one for all ranks",
    }
    for name, hint in hints.items():
        if not os.environ.get(name):
            raise ConfigError(
                f"{place.size} ranks were started, and nothing says where they meet",
                where=name,
                expected="the host of rank 0" if name == "MASTER_ADDR" else "a port of that host",
                found="not set",
                hint=f"start them with torchrun, which sets it; or {hint}",
            )
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError("invalid port", where="MASTER_PORT", expected="1 to 65535", found=port)


def _elsewhere(code: int) -> ElsewhereError:
    error = ElsewhereError("another rank says why the run ends")
    error.exit_code = code
    return error


class _Lost(BaseException):
    """Raised in the main thread while it works, when another rank failed or was lost."""


class _Together(Ranks):
    """One of several ranks, which have met."""

    def __init__(self, place: _Place) -> None:
        self.rank, self.size, self._place = place.rank, place.size, place
        self.working_apart, self._failed = False, 0  # failures that all know of
        timeout, address = timedelta(seconds=_MEETING), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            url = f"env://?rank={self.rank}&world_size={self.size}"
            self._store, _, _ = next(iter(rendezvous(url, timeout=timeout)))
            me = {"host": socket.gethostname(), "process": os.getpid(), "parent": os.getppid()}
            self._store.set(f"rank/{self.rank}", json.dumps(me))
            self._known = [json.loads(self._store.get(f"rank/{other}")) for other in range(self.size)]
            self._who = [f"rank {i}, process {r['process']} on {r['host']}" for i, r in enumerate(self._known)]
            group = _within(_MEETING, self._connected)
            if group is None:
                raise RuntimeError("one of them was there and did not connect")
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"{self.size} ranks did not meet",
                where=f"rank {self.rank} at {address} (MASTER_ADDR, MASTER_PORT)",
                expected=f"all of them within {_MEETING:.0f} s",
                found=str(error).strip().splitlines()[0],
                hint="see whether all were started, the host can be reached and the port is free",
            ) from None
        self._life = _Life(group, self._cut_off)

    def _connected(self) -> dist.ProcessGroup:
        """Connects all ranks: for their work, and once more for signs of life, which this returns."""
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("calogen", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=_FOR_EVER,
        )
        return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=_FOR_EVER))

    # --- what one process has at once ------------------------------------------------------------------------------

    def threads(self, wanted: int | None) -> int:
        return self._place.cores if wanted is None else super().threads(wanted)

    def device(self, device: torch.device) -> torch.device:
        if device.type == "cuda":
            if self._place.local >= torch.cuda.device_count():
                raise ConfigError(
                    "there are more ranks on this machine than GPUs",
                    where=self._who[self.rank],
                    expected=f"at most {torch.cuda.device_count()}",
                    found=f"rank {self._place.local + 1} of this machine",
                    hint="start one rank for each GPU, or set `device=cpu`",
                )
            torch.cuda.set_device(self._place.local)
        return device

    def mean_gradients(self, gradients: Sequence[Tensor]) -> None:
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.run(dist.all_reduce, flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        flat = torch.stack([value.detach().double().cpu() for value in values.values()])
        self.add(flat)
        return dict(zip(values, (flat / self.size).tolist(), strict=True))

    def add(self, values: Tensor) -> None:
        self.run(dist.all_reduce, values)

    def most(self, value: float) -> float:
        found = torch.tensor(value, dtype=torch.float64)
        self.run(dist.all_reduce, found, dist.ReduceOp.MAX)
        return float(found)

    def signal(self, mine: int) -> int:
        # Without torchrun nobody would end the ranks that are left, if one of them died.
        orphaned = "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self._known[self.rank]["parent"]
        return int(self.most(max(mine, signal.SIGTERM if orphaned else 0)))

    def told(self, value: T, by: int = 0) -> T:
        text = json.dumps(value).encode() if self.rank == by else b""
        length = torch.tensor(len(text))
        self.run(dist.broadcast, length, by)
        data = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)
        self.run(dist.broadcast, data, by)
        found: T = json.loads(data.numpy().tobytes())
        return value if self.rank == by else found

    def passed(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        with self.apart():
            training = {} if checkpoint is None else checkpoint.training_state()
        model = self._tensors({} if checkpoint is None else checkpoint.model)
        training = self._tensors(training)
        mine = None if checkpoint is None else [checkpoint.card.model_dump_json(), str(checkpoint.folder)]
        told: list[str] | None = self.told(mine)
        if checkpoint is not None or told is None:
            return checkpoint
        return _Received(Card.model_validate_json(told[0]), model, Path(told[1]), training)

    def _tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named tensors of rank 0, on the CPU."""
        kinds = {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
        found = {}
        for name, (shape, kind) in self.told(kinds).items():
            tensor = tensors[name].cpu().contiguous() if self.first else torch.empty(shape, dtype=getattr(torch, kind))
            self.run(dist.broadcast, tensor, 0)
            found[name] = tensor
        return found

    def copy(self, networks: Mapping[str, nn.Module]) -> None:
        for network in networks.values():
            found = self._tensors(dict(network.state_dict()))
            if not self.first:
                network.load_state_dict(found)

    # --- whole batches ---------------------------------------------------------------------------------------------

    def join(self, network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, OfBatch):
                module.gathered = self._gathered  # type: ignore[method-assign]
            if isinstance(module, BatchNorm):
                module.__class__ = _SharedNorm
                module.ranks = self  # type: ignore[assignment]

    def _gathered(self, rows: Tensor) -> Tensor:
        return rows if self.working_apart else self.every(rows).flatten(0, 1)

    def every(self, values: Tensor) -> Tensor:
        """Values of all ranks, (R, ...), with gradients; this rank's own alone where it works apart."""
        found: Tensor = values[None] if self.working_apart else _Gather.apply(values, self)  # type: ignore[no-untyped-call]
        return found

    # --- together and apart ----------------------------------------------------------------------------------------

    def require_same(self, facts: Mapping[str, Any]) -> None:
        mine, expected = dict(_leaves(facts)), dict(_leaves(self.told(json.loads(json.dumps(facts)))))
        different = [name for name in [*expected, *mine] if mine.get(name) != expected.get(name)]
        found = different and [different[0], repr(expected.get(different[0])), repr(mine.get(different[0]))]
        for other in range(self.size):
            if wrong := self.told(found, by=other):
                differing = ConfigError(
                    "the ranks were not started alike",
                    where=f"{self._who[other]}: {wrong[0]}",
                    expected=f"{wrong[1]}, as rank 0",
                    found=wrong[2],
                    hint=_AGREE,
                )
                raise differing if self.first else _elsewhere(differing.exit_code)

    @contextmanager
    def apart(self, asked: Callable[[], int] | None = None) -> Iterator[None]:
        life, failure = self._life, None
        self.working_apart = True
        try:
            with life.guarding(asked):
                yield
        except _Lost:
            pass
        except Exception as error:
            self._post(error)
            failure = error
        finally:
            self.working_apart = False
        if life.lost:
            raise self._explained()
        mine = 0 if failure is None else getattr(failure, "exit_code", 1)
        life.tell(mine)
        code = int(self.most(mine))  # where those that are done wait for the others
        if code:
            known = failure or (self._reported() if self.first else _elsewhere(code))
            self._failed += 1
            raise self._quiet(known)

    @property
    def heard(self) -> int:
        return self._life.heard

    def run(self, collective: Callable[..., Any], *arguments: Any) -> None:
        """A collective operation, for which ranks wait for each other, and a sentence where one of them is gone."""
        try:
            work = collective(*arguments, async_op=True)
            while not _ended(work, _PULSE):
                if self._life.lost:
                    raise self._explained()
        except RuntimeError:
            raise self._explained() from None

    # --- when something fails --------------------------------------------------------------------------------------

    def part(self) -> None:
        """End together, with all work done."""
        self.most(0.0)
        self._life.leave(_DONE)
        dist.destroy_process_group()

    def farewell(self, error: BaseException) -> BaseException:
        """Let the others know why this rank ends; what to raise here."""
        if isinstance(error, ElsewhereError | RankError):
            self._life.leave(_FAILED)
            return error
        self._post(error)
        self._life.leave(_FAILED)
        return self._quiet(error)

    def _cut_off(self) -> None:
        """End this process from beside its main thread, which is at something that cannot be called away from."""
        error = self._explained()
        if not isinstance(error, ElsewhereError):
            logging.getLogger("calogen").error("calogen: %s", error)
        _leave(error.exit_code)

    def _quiet(self, error: BaseException) -> BaseException:
        """Rank 0 says what all ranks have, and what it learns of another; each shows the traceback of its own bug."""
        known = not self.first and isinstance(error, CalogenError | OSError | MemoryError)
        return _elsewhere(getattr(error, "exit_code", 1)) if known else error

    def _post(self, error: BaseException) -> None:
        parts = {key: getattr(error, key, None) for key in ("where", "expected", "found", "hint")}
        known = {key: str(value) for key, value in parts.items() if value is not None}
        what = error.what if isinstance(error, CalogenError) else f"{type(error).__name__}: {error}"
        text = json.dumps({"what": what, "code": getattr(error, "exit_code", 1), **known})
        _within(_ROLL_CALL, lambda: self._store.set(self._key(self.rank), text))

    def _key(self, rank: int) -> str:
        return f"failure/{self._failed}/{rank}"

    def _failures(self) -> dict[int, dict[str, Any]]:
        return {
            rank: json.loads(self._store.get(self._key(rank)))
            for rank in range(self.size)
            if rank != self.rank and self._store.check([self._key(rank)])
        }

    def _reported(self) -> CalogenError:
        """The first failure that another rank has reported."""
        return self._of_other(_within(_ROLL_CALL, self._failures) or {})

    def _of_other(self, failures: Mapping[int, dict[str, Any]]) -> CalogenError:
        if not failures:
            return RankError("another rank failed, and did not say why")
        rank, known = min(failures.items())
        error = RankError(f"{self._who[rank]}: {known.pop('what')}")
        error.exit_code = known.pop("code")
        for key, value in known.items():
            setattr(error, key, value)
        return error

    def _explained(self) -> CalogenError:
        """What became of the others, when they could not be reached; the first rank that is left says so."""
        self._life.noticed()
        failures, here = _within(_ROLL_CALL + 1, self._roll_call) or ({}, {self.rank, *range(1, self.size)})
        lost = [rank for rank in range(self.size) if rank not in here and rank not in failures]
        error = self._of_other(failures)
        if lost or not failures:
            error = RankError(
                f"{len(lost) or 'some'} of {self.size} ranks died, or did not answer for {_SILENCE:.0f} s",
                where="; ".join(self._who[rank] for rank in lost) or "the connection to the others broke",
                hint="`resume=True` goes on from the last checkpoint, with any number of ranks",
            )
        atexit.register(_leave, error.exit_code)
        if self.rank != min([self.rank, *here]):
            return _elsewhere(error.exit_code)
        for rank in lost:
            self._end(rank)
        return error

    def _end(self, rank: int) -> None:
        """End a rank of this machine that hangs: torchrun would wait for it for half a minute more."""
        known, me = self._known[rank], self._known[self.rank]
        with suppress(OSError, ValueError, IndexError):  # it is gone, or this system has no such files
            parent = Path(f"/proc/{known['process']}/stat").read_text().rpartition(")")[2].split()[1]
            if known["host"] == me["host"] and int(parent) == known["parent"] == os.getppid():
                os.kill(known["process"], signal.SIGKILL)

    def _roll_call(self) -> tuple[dict[int, dict[str, Any]], set[int]]:
        """Failures that other ranks have reported, and the ranks that are there."""
        self._store.set(f"here/{self.rank}", "1")
        limit, here = time.monotonic() + _ROLL_CALL, {self.rank}
        while True:
            failures = self._failures()
            here |= {rank for rank in range(self.size) if self._store.check([f"here/{rank}"])}
            if len(here | failures.keys()) == self.size or time.monotonic() > limit:
                return failures, here - failures.keys()
            time.sleep(0.1)


@dataclass(frozen=True)
class _Received(Checkpoint):
    """A checkpoint that another rank has read."""

    training: dict[str, Tensor]

    def training_state(self) -> dict[str, Tensor]:
        return self.training


class _Life:
    """Signs of life in a thread of their own, every second from the first meeting to the farewell.

    With them ranks tell each other whether work apart has failed somewhere, what signals they got, and that they leave.

    Args:
        group: A connection that nothing else uses.
        cut_off: Ends this process; called if a rank is gone and the main thread does not notice.

    Attributes:
        lost: Whether a rank is gone.
        heard: Signal that any rank got in work apart that asks for it; 0: none.
    """

    def __init__(self, group: dist.ProcessGroup, cut_off: Callable[[], None]) -> None:
        self.lost, self.heard = False, 0
        self._group, self._cut_off = group, cut_off
        self._number, self._code = 0, 0  # of the last work apart, and what it failed with here
        self._asked: Callable[[], int] = lambda: 0
        self._leaving = 0
        self._hurry, self._noticed = threading.Event(), threading.Event()
        self._lock, self._guarded, self._main = threading.Lock(), False, threading.get_ident()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        leaving = 0
        while not leaving:
            self._hurry.wait(_PULSE)
            failed = self._number * _CODES + self._code if self._code else 0
            try:
                failed, self.heard, leaving = self._largest(failed, max(self.heard, self._asked()), self._leaving)
            except Exception:  # whatever it is, the main thread must learn of it
                leaving = _FAILED
            self.lost = leaving == _FAILED
            with self._lock:
                if self._guarded and (self.lost or failed // _CODES == self._number):
                    self._guarded = False  # once
                    _raise_in(self._main, _Lost)
        if self.lost and not self._noticed.wait(_GRACE):
            self._cut_off()

    def _largest(self, *mine: int) -> list[int]:
        """The largest of what the ranks have to say.

        Raises:
            RuntimeError: If one of them is dead or silent.
        """
        flags = torch.tensor(mine, dtype=torch.int64)
        if not _ended(dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True), _SILENCE):
            raise RuntimeError("silence")
        found: list[int] = flags.tolist()
        return found

    @contextmanager
    def guarding(self, asked: Callable[[], int] | None) -> Iterator[None]:
        """Work apart, from which the main thread is called away if it failed elsewhere, or a rank is gone.

        Raises:
            _Lost: Says so.
        """
        with self._lock:
            self._number, self._code, self._guarded = self._number + 1, 0, True
        self._asked = asked or (lambda: 0)
        try:
            yield
        finally:
            with self._lock:
                self._guarded = False
            _raise_in(self._main, None)  # take back what has not been raised yet
            self._asked = lambda: 0

    def tell(self, code: int) -> None:
        """Let others, who may be busy for long, know at once what work apart failed with."""
        self._code = code

    def noticed(self) -> None:
        """The main thread knows that a rank is gone."""
        self._noticed.set()

    def leave(self, how: int) -> None:
        """End the signs of life in all ranks."""
        self._leaving = how
        self._noticed.set()
        self._hurry.set()
        self._thread.join(_ROLL_CALL)


def _ended(work: dist.Work, seconds: float) -> bool:
    """Whether something that ranks do together is done after some seconds at most.

    Raises:
        RuntimeError: If it failed.
    """
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # says why it failed, unless it ended a moment ago
    return True


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Raise an exception in another thread, as soon as it runs Python code again; none: no longer."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind and ctypes.py_object(kind))


def _leave(code: int) -> None:
    """End the process at once: with a peer gone, gloo's threads would spin for ever while Python is taken down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What some work comes to, if it ends in time; its host may be gone."""
    found = list[T]()

    def do() -> None:
        with suppress(Exception):
            found.append(work())

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings, by their names joined with dots."""
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{name}.{key}".removeprefix("."))


class _Gather(torch.autograd.Function):
    """Values of all ranks, (R, ...); the gradient of a rank's values is the sum of what all ranks have for it."""

    @staticmethod
    def forward(context: Any, values: Tensor, ranks: _Together) -> Tensor:
        """Gather."""
        context.ranks = ranks
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        ranks.run(dist.all_gather, parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Add up."""
        ranks, total = context.ranks, gradient.clone(memory_format=torch.contiguous_format)
        ranks.run(dist.all_reduce, total)
        return total[ranks.rank], None


class _SharedNorm(BatchNorm):
    """Batch normalisation by mean and variance over the rows of all ranks; torch's own is for GPUs alone.

    A norm becomes one by its class, and keeps its numbers.
    """

    ranks: _Together

    def _check_input_dim(self, values: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalised values (B, C, ...)."""
        if not self.training or self.ranks.working_apart:
            return super().forward(values)
        others = [axis for axis in range(values.dim()) if axis != 1]
        spread, centre = torch.var_mean(values, others, correction=0)
        # All ranks have as many rows: the variance of all is the mean of variances and the variance of means.
        centres, spreads = self.ranks.every(torch.stack([centre, spread])).unbind(1)
        mean = centres.mean(0)
        variance = (spreads + (centres - mean).square()).mean(0)
        if self.track_running_stats:
            self._remember(mean, variance, values.numel() // len(mean) * self.ranks.size)
        shape = [-1 if axis == 1 else 1 for axis in range(values.dim())]
        scale = torch.rsqrt(variance + self.eps) * (1.0 if self.weight is None else self.weight)
        found = (values - mean.view(shape)) * scale.view(shape)
        return found if self.bias is None else found + self.bias.view(shape)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        running = cast("Tensor", self.running_mean), cast("Tensor", self.running_var)
        for mine, seen in zip(running, (mean, variance * (count / (count - 1))), strict=True):
            mine.lerp_(seen, cast("float", self.momentum))
        cast("Tensor", self.num_batches_tracked).add_(1)
