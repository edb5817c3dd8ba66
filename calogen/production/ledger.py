"""Which shards of a folder are there, kept in its manifest; one writer at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Interrupted, ShardError
from ..shards.manifest import MANIFEST, ShardRecord, read_part, write_manifest
from ..storage import require_writable
from .parts import Part
from .plan import MANIFEST_SHARDS, Production, Progress
from .pool import Stopped


def check_folder(production: Production, out: Path) -> None:
    """Refuse a folder that a production may not write into.

    Raises:
        ConfigError: If it holds something else.
        StorageError: If it could not be written.
    """
    mine, manifests = production.provenance(), sorted(out.glob("manifest*.json"))
    strangers = [path.name for path in out.glob("*") if not _FILES.fullmatch(path.name)]
    strangers += [path.name for path in out.glob("*.h5")] if not manifests else []
    strangers += ["a file"] if out.exists() and not out.is_dir() else []
    if strangers:
        lost = all(_FILES.fullmatch(name) for name in strangers)  # shards whose manifest is gone
        raise ConfigError(
            "the output folder is not empty",
            where=out,
            found=", ".join(sorted(strangers)[:4]),
            hint="choose another `out`; if the manifest of these shards was lost, make it again with `rebuild=True`"
            if lost
            else "choose another `out`, or that of an unfinished production of the same samples",
        )
    for path in manifests:
        _require_same(mine, read_part(path).provenance[0], path)  # a damaged one says nothing: it is refused
    require_writable(out)


_FILES = re.compile(r"\.lock.*|manifest.*\.json(\.part)?|shard-[0-9of-]*\.h5((\.[0-9a-f]+)?\.part)?")


def _require_same(mine: dict[str, Any], theirs: dict[str, Any], path: Path) -> None:
    loose = {"versions", "history", "network", "objective", "parameters"}  # the digest of the card says it all
    keys = sorted((mine.keys() | theirs.keys()) - loose)
    different = next((key for key in keys if mine.get(key) != theirs.get(key)), None)
    if different is None:
        return
    ours, other = mine.get(different), theirs.get(different)
    what = f"the output folder holds another production: its {different.replace('_', ' ')} differs"
    if isinstance(ours, dict) and isinstance(other, dict):
        ours, other = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((ours, other), (other, ours)))
    if different == "inference":
        what = "the output folder was begun by another version of the code that makes samples: bits would differ"
        raise ConfigError(
            what,
            where=path,
            expected=_code(theirs.get("inference")),
            found=_code(mine.get("inference")),
            hint="choose another `out`, or finish it with the version of calogen and the kind of device that began it",
        )
    if different == "production" and isinstance(other, dict):
        what = "the output folder was begun with other options"
        # The size of files follows from the number of samples and of parts: where these differ, nobody has typed it.
        typed = [key for key in ("total", "parts") if key in other] or list(other)
        ours, other = (", ".join(_ARGUMENTS.get(k, k).format(a.get(k)) for k in typed) for a in (ours or {}, other))
    raise ConfigError(
        what,
        where=path,
        expected=f"{str(other)[:200]} (what is there)",
        found=f"{str(ours)[:200]} (what is asked for)",
        hint="choose another `out`, or repeat the command that began this one",
    )


def _code(inference: Any) -> str:
    """Name and version of the code that made samples, as provenance has it."""
    if not isinstance(inference, dict):
        return "that of an earlier calogen"
    return f"{inference.get('name')}, version {inference.get('version')}"


_ARGUMENTS = {
    "total": "`n={}` samples",
    "parts": "`part=i/{}`",
    "shard_samples": "`shard_size={}`",
    "layout": "`layout={}`",
}


def begun_with(out: Path, total: int, part: Part) -> int | None:
    """Samples in a shard of what is in a folder already, if it is of as many samples and parts."""
    for path in sorted(out.glob("manifest*.json")):
        with suppress(ShardError):
            facts = read_part(path).provenance[0].get("production")
            if isinstance(facts, dict) and (facts.get("total"), facts.get("parts")) == (total, part.count):
                size = facts.get("shard_samples")
                return size if isinstance(size, int) and size > 0 else None
    return None


class Ledger:
    """What is done and what is to do; keeps the manifest."""

    def __init__(
        self, production: Production, out: Path, progress: Progress | None, should_stop: Callable[[], int] | None
    ) -> None:
        self._out, self._part, self._progress, self._should_stop = out, production.part, progress, should_stop
        self.provenance = production.provenance()
        self.clear()
        manifest = out / self._name
        there = read_part(manifest).records if manifest.exists() else ()
        known = {(record.name, record.samples, record.index_start): record for record in there}
        # A shard the manifest knows is checked before it is believed.
        self.shards = [known.get((s.name, s.samples, s.index_start), s) for s in production.shards()]
        self.total = production.samples
        self.records = {shard.name: shard for shard in self.shards if shard.sha256}
        self._under_way: dict[str, int] = {}
        self._done, self._signal = 0, 0
        self._written, self._cost = 0.0, 0.0
        self.write()

    @property
    def _name(self) -> str:
        return f"manifest{self._part.suffix}.json" if self._part.count > 1 else MANIFEST

    def clear(self) -> None:
        """Remove what killed writers of this part left behind."""
        for leftover in self._out.glob(f"shard{self._part.suffix}-[0-9]*.h5*.part"):
            leftover.unlink(missing_ok=True)

    def begun(self, task: ShardRecord, amount: int) -> None:
        """So many samples of a shard are made."""
        self._under_way[task.name] = amount
        self._tell()
        if amount < task.samples:
            self.stop_if_asked()

    def finished(self, task: ShardRecord, result: ShardRecord) -> None:
        """A shard is on the disk; one that was repaired keeps its record, with the time that it first took."""
        self._under_way.pop(task.name, None)
        self._done += result.samples
        if self.records.get(result.name) != result:
            self.records[result.name] = result
            if len(self.records) <= MANIFEST_SHARDS or time.monotonic() - self._written > 20 * self._cost:
                self.write()
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(self._done + sum(self._under_way.values()), self.total)

    def stop_if_asked(self) -> None:
        """Give up what is under way if a signal has come."""
        self._signal = self._should_stop() if self._should_stop else 0
        if self._signal:
            raise Stopped

    def write(self) -> None:
        """Write the manifest."""
        begun = time.monotonic()
        records = sorted(self.records.values(), key=lambda record: record.index_start)
        write_manifest(self._out, records, provenance=self.provenance, name=self._name, planned=self.total)
        self._written = time.monotonic()
        self._cost = self._written - begun

    def interrupted(self) -> Interrupted:
        """The error for a stop that was asked for."""
        done = sum(record.samples for record in self.records.values())
        return Interrupted(
            f"stopped by signal {self._signal} after {done} of {self.total} samples",
            signal_number=self._signal,
            hint="the finished shards are complete; the same command again makes the rest",
        )
