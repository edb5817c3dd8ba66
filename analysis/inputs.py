"""What a comparison is asked for and given, checked once before anything is computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from calogen.config import Reading
from calogen.errors import ConfigError, ShardError
from calogen.families import Family, varies
from calogen.shards.reader import Shards, Source
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards, splits_of

_MOST_BINS = 1000
_ROWS_AT_ONCE = 4096


def require_settings(bins: int, seed: int, threshold: float | None = None) -> None:
    """Bins and seed of a comparison are whole numbers in their ranges, and a threshold is one.

    Raises:
        ConfigError: If not.
    """
    for name, value, most, expected in (
        ("number of bins", bins, _MOST_BINS, f"a whole number from 1 to {_MOST_BINS}, or 0 for none"),
        ("seed", seed, math.inf, "a whole number, at least 0"),
    ):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value <= most:
            where = f"`{name.split()[-1]}`"
            raise ConfigError(f"invalid {name}", where=where, expected=expected, found=repr(value))
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ConfigError(
            "invalid threshold", where="`threshold`", expected="a finite number, at least 0", found=threshold
        )


def open_side(
    path: str | Path,
    split: str | None = None,
    like: Source | None = None,
    *,
    drop_bad: bool = False,
    strict: bool = False,
    family: Family | None = None,
    reading: Reading | None = None,
) -> Shards:
    """Open one side of a comparison; only headers are read.

    Args:
        path: As for :func:`calogen.open_shards`.
        split: Of a folder that has it.
        like: Samples of the same family as files that do not say what they hold; where these have no conditions, maps
            need no parameters.
        drop_bad: Leave out bad rows.
        strict: Refuse folders of which samples are missing.
        family: What the samples are, where the files do not say.
        reading: What files that calogen did not write do not say of themselves.

    Raises:
        ShardError: If they cannot be read.
    """
    there = split if split in splits_of(path) else None
    bare, reading = None, reading or Reading()
    if like is not None:  # files that say nothing of labels are not asked for them
        bare = like.family.model_copy(update={"conditions": tuple(c for c in like.family.conditions if not c.labels)})
        if not (like.condition_names if isinstance(like, Shards) else list(like.conditions)):
            reading = reading.model_copy(update={"parameters": False})
    how: dict[str, Any] = {"drop_bad": drop_bad, "strict": strict, "family": family, "reading": reading}
    return open_shards(path, like=bare, split=there, **how)


def require_usable(samples: Samples, name: str) -> None:
    """Samples in memory can be compared, as those in files were found to be when they were written or opened.

    Args:
        samples: What to look at; values of some rows may be unphysical, which a report counts.
        name: What messages call them.

    Raises:
        ShardError: If samples are weighted, a condition has values that nothing has, or every sample has values that
            are not finite.
    """
    known = {c.name: c for c in samples.family.conditions}
    for condition, values in samples.conditions.items():
        bad = ~(known[condition].possible(values) if condition in known else np.isfinite(values))
        if bad.any():
            row = int(np.argmax(bad))
            raise ShardError(
                f"{int(bad.sum())} of {len(values)} samples have an impossible '{condition}'",
                where=f"{name}, '{condition}', row {row}",
                expected=known[condition].domain if condition in known else "finite values",
                found=f"{values[row]:g}",
            )
    if "weights" in samples.extras:
        weights = np.asarray(samples.extras["weights"], np.float64)
        if len(weights) and varies(float(np.ptp(weights)), float(np.abs(weights).max())):
            hint = "select samples in proportion to their weights first"
            raise ShardError("weighted samples cannot be compared", where=f"{name}, 'weights'", hint=hint)
    count = len(samples)
    starts = range(0, count, _ROWS_AT_ONCE)
    parts = (samples.values[start : start + _ROWS_AT_ONCE].reshape(-1, samples.family.voxels) for start in starts)
    if count and not any(np.isfinite(part).all(axis=1).any() for part in parts):
        side = "the reference" if name == "reference" else f"'{name}'"
        raise ShardError(
            f"no sample of {side} can be used",
            where=name,
            expected="at least one sample whose values are all finite",
            found=f"{count} samples, none of them finite",
        )


def require_same(reference: Family, generated: Family, name: str) -> None:
    """The two sides are samples of one family, and their conditions have the same labels.

    Raises:
        ShardError: If not; ``name`` is what it calls the generated ones.
    """
    if not reference.same_samples(generated):
        if reference.kind == generated.kind == "map" and reference.unit == generated.unit:
            raise ShardError(
                "maps of different sizes cannot be compared: their spectra are at different wave numbers",
                where=name,
                expected=_size_of(reference),
                found=_size_of(generated),
                hint="cut or generate maps of the reference's box and pixels",
            )
        raise ShardError(
            "samples of different families cannot be compared",
            where=name,
            expected=f"family '{reference.name}' ({reference.voxels} voxels, {len(reference.layers)} layers)",
            found=f"family '{generated.name}' ({generated.voxels} voxels, {len(generated.layers)} layers)",
        )
    for condition in {c.name for c in reference.conditions} & {c.name for c in generated.conditions}:
        mine, theirs = reference.labels(condition), generated.labels(condition)
        if mine != theirs:
            raise ShardError(
                f"the labels of '{condition}' are not those of the reference, in its order",
                where=name,
                expected=", ".join(mine) or "a number",
                found=", ".join(theirs) or "a number",
                hint="open one side with the labels of the other: open_shards(PATH, labels={NAME: LABELS})",
            )


def _size_of(family: Family) -> str:
    height, width = family.pixels or (0, 0)
    if not family.box_size:
        return f"{height} x {width} pixels, no box size"
    deep = f", {family.depth:g} Mpc/h deep" if family.depth else ""
    return f"{height} x {width} pixels of {family.box_size / height:g} Mpc/h, box {family.box_size:g} Mpc/h{deep}"
