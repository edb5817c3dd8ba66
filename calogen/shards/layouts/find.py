"""Which format a file has, from its header alone; which one samples are written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ...config import Reading
from ...errors import ConfigError, ShardError
from ...families import Family
from ..hdf5 import open_file
from ..samples import LOW
from .calogan import CaloGAN
from .header import Header
from .layout import Format, Layout, Opened
from .maps import Maps
from .native import Showers
from .par04 import Par04
from .stacks import SUFFIX, read_stack

FORMATS: tuple[Format, ...] = (CaloGAN(), Showers(), Maps(), Par04())
"""Formats of HDF5 files, in the order in which a file is asked whether it has one."""
INDEX_EXTRAS = ("realisation_id", "weights")
"""Optional per-sample datasets that are carried along and never modelled."""
EXTRAS = (*INDEX_EXTRAS, LOW)
"""All that a shard may hold beside samples and conditions."""


def written_format(layout: str, family: Family, conditions: Sequence[str]) -> Format:
    """The format in which samples are written.

    Args:
        layout: Its name.
        family: What is written.
        conditions: Names of the conditions that samples come with.

    Raises:
        ConfigError: If there is no such format, or it cannot hold the samples.
    """
    named = [one for one in FORMATS if one.written == layout]
    if not named:
        known = " or ".join(dict.fromkeys(one.written for one in FORMATS if one.written))
        raise ConfigError("unknown layout", where="`layout`", expected=known, found=repr(layout))
    chosen = next((one for one in named if one.kind == family.kind), named[0])
    chosen.require(family, conditions)
    return chosen


@contextmanager
def open_rows(path: Path, layout: Layout) -> Iterator[Opened]:
    """Opens a file for reading rows of its datasets by name.

    Raises:
        ShardError: If it is missing, unreadable or truncated.
    """
    if layout.stack is not None:
        yield layout.stack()
        return
    with open_file(path) as file:
        yield file if layout.view is None else layout.view(file)


def read_layout(
    path: Path,
    family: Family | None = None,
    parameters: Path | None = None,
    like: Family | None = None,
    reading: Reading | None = None,
    *,
    constant: bool = False,
) -> Layout:
    """Finds out how a file holds its samples, from its header; no sample is read, but the means of a stack's maps.

    Args:
        path: An HDF5 file in any known format, or a NumPy stack of maps.
        family: What the samples are, where the file itself does not say; checked against the file.
        parameters: The text file with a stack's parameters; looked for beside it when absent.
        like: What the samples are, where neither ``family`` nor the file says.
        reading: What the user says of files that calogen did not write.
        constant: Whether all maps of a stack have the parameters that are named with its path.

    Raises:
        ShardError: If the format is unknown, shapes or types are wrong, or the file points outside itself.
    """
    reading = reading or Reading()
    if path.suffix == SUFFIX:
        found = read_stack(path, family or like, parameters, reading, assumed=family is None, constant=constant)
        return replace(found, reading=reading)
    with open_file(path) as file:
        try:
            found = _read(Header(file, path, family, reading, like))
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ShardError("the file's header is damaged", where=path, found=str(error)) from None
    return replace(found, reading=Reading(unweight=reading.unweight) if found.name == "calogen" else reading)


def _read(header: Header) -> Layout:
    header.require_schema()
    stored = header.stored_family()
    header = replace(header, family=_family(header, stored))
    names = header.found
    layout = next((one.read(header) for one in FORMATS if one.fits(names)), None)
    if layout is None:
        raise ShardError(
            "no known layout has these datasets",
            where=header.path,
            expected="; ".join(one.datasets for one in FORMATS),
            found=", ".join(sorted(names)[:12]) or "no datasets",
        )
    if not layout.length:
        raise ShardError("the file holds no samples", where=header.path, found="0 rows")
    meaning = stored or layout.family
    extras = tuple(name for name in INDEX_EXTRAS if name in names)
    for name in extras:
        header.dataset(name, (layout.length,), kinds="iuf")
    if layout.family.low_pixels:
        header.dataset(LOW, (layout.length, *layout.family.low_pixels))
        extras = (*extras, LOW)
    used = {*layout.values, *extras, *(column.dataset.partition("/")[0] for column in layout.conditions)}
    unread = sorted(names - used - {"overflow", "params"}) if layout.view is None and not header.native else []
    if unread:
        layout = layout.noted(f"datasets that are not read: {', '.join(unread[:12])}{' ...' * (len(unread) > 12)}")
    grouped = layout.view is not None and layout.family.has_realisations
    return replace(
        layout,
        kind=header.stored_kind(),
        conditions=tuple(replace(column, labels=meaning.labels(column.name)) for column in layout.conditions),
        extras=("realisation_id", *(e for e in extras if e != "realisation_id")) if grouped else extras,
        counted=grouped,
        index_start=int(header.file.attrs.get("index_start", 0)),
        provenance={**layout.provenance, **header.stored_provenance()},
    )


def _family(header: Header, stored: Family | None) -> Family | None:
    """The family asked for, with what the file knows besides; that of the file where none is."""
    family = header.family
    if family is None or stored is None:
        return family or stored
    if not stored.same_samples(family):
        raise ShardError(
            "the file holds another family than asked for",
            where=header.path,
            expected=family.summary,
            found=stored.summary,
        )
    return _completed(family, stored)


@lru_cache(maxsize=64)  # thousands of shards say the same
def _completed(family: Family, stored: Family) -> Family:
    """A family with depths, ranges of conditions, labels, impact and angle as a file says them.

    The range of the samples counts, not the usual one of a family that was named; where impact or angle vary,
    symmetries are those of the file.
    """
    if stored.depths and not family.depths:
        family = family.with_depths(stored.depths)
    family = family.model_copy(update={"low_pixels": stored.low_pixels})
    mine = {condition.name: condition for condition in family.conditions}
    for theirs in stored.conditions:
        own = mine.get(theirs.name)
        if own is None and theirs.role in ("label", "impact", "angle"):  # part of the data, whatever else is asked for
            family = family.with_condition(theirs)
            if theirs.role != "label":
                kept = tuple(symmetry for symmetry in family.symmetries if symmetry in stored.symmetries)
                family = family.model_copy(update={"symmetries": kept})
        elif own and not own.labels and own.unit == theirs.unit and (theirs.low > 0 or own.scale == "linear"):
            family = family.with_condition(own.model_copy(update={"low": theirs.low, "high": theirs.high}))
    return family
