"""Whether what was read can be physics: finite values, units that fit, densities that are densities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from ..families import ENERGY_UNITS, conversion
from .layouts.layout import Opened
from .layouts.stacks import Stack
from .pieces import SLAB_BYTES, Piece, read_conditions, read_rows, rows_of
from .samples import LOW, Samples

_LOWEST_RESPONSE = 0.003  # far below any sampling fraction: a factor 1000 in the units
_HIGHEST_LOOSE_RESPONSE = 30.0  # a bad model or a few showers may be far off, but not by a factor 1000
_RESPONSE_ROWS = 1024
_IMPOSSIBLE = 0.05  # share of showers with more than is plausible, from which their order is looked at ...
_SPREAD, _CORRELATED = 2.0, 0.3  # ... where energies vary by more than a factor; what showers in order have at least
_NO_VOIDS, _NO_CONTRAST = 0.6, 0.25  # lowest pixel over the mean of a map, and scatter: smoother is no density
_FOREIGN_DENSITIES = (0.3, 3.0)  # the same of files of others, which may be in any unit
_RELATED, _STRANGE = 0.5, 0.02  # correlation of maps of a pair, and share of pairs that may have less
_KNEE = 0.02  # added to a density before its logarithm
_DENSITIES = (0.1, 10.0)  # mean 1 + delta of a typical map: a thin slab of a small box may be half as dense as the box


def bad_rows(samples: Samples) -> NDArray[np.bool_]:
    """Rows with a value that is not finite or negative, (N,)."""
    bad = np.zeros(len(samples), np.bool_)
    if not len(samples):
        return bad
    values = samples.values
    if not (values.min() >= 0 and values.max() < np.inf):  # NaN fails both; one cheap pass when all is well
        flat = values.reshape(len(values), -1)
        bad |= ~((flat.min(axis=1) >= 0) & (flat.max(axis=1) < np.inf))
    if (low := samples.extras.get(LOW)) is not None and not (low.min() >= 0 and low.max() < np.inf):
        bad |= ~((low.min(axis=(1, 2)) >= 0) & (low.max(axis=(1, 2)) < np.inf))
    for name, array in samples.conditions.items():
        bad |= ~samples.family.condition(name).possible(array)
    return bad


def bad_error(file: Opened, piece: Piece, samples: Samples, bad: NDArray[np.bool_], start: int) -> ShardError:
    """The error that names the first bad row and counts them all; ``start`` is counted from the piece's first row."""
    row = int(np.flatnonzero(bad)[0])
    one = samples.select(slice(row, row + 1))
    known = {column.name: one.family.condition(column.name) for column in piece.layout.conditions}
    column = next((c for c in piece.layout.conditions if not known[c.name].possible(one.conditions[c.name])[0]), None)
    wrong: float | str
    if column is not None:
        dataset, wrong = column.dataset, float(one.conditions[column.name][0])
        expected = f"{column.name}: {known[column.name].domain}"
        if column.labels:  # the file's own
            wrong = float(rows_of(file, piece, dataset, start + row, start + row + 1).ravel()[0])
            expected = ", ".join(f"{number} ({label})" for number, label in enumerate(column.labels))
    elif LOW in one.extras and not bad_rows(replace(one, extras={}))[0]:
        dataset, expected = LOW, "finite values that are not negative"
        wrong = float(one.extras[LOW][~((one.extras[LOW] >= 0) & (one.extras[LOW] < np.inf))][0])
    else:
        voxel = int(np.flatnonzero(~((one.values >= 0) & (one.values < np.inf)))[0])
        several = len(piece.layout.values) > 1
        dataset = piece.layout.values[int(samples.family.layer_of_voxel[voxel]) if several else 0]
        wrong, expected = float(one.values.ravel()[voxel]), "finite values that are not negative"
    what = "NaN, infinite, negative or absurd values"
    if column is not None and column.labels:
        what = "numbers that stand for no label"
    elif column is None and isinstance(file, Stack) and file.is_zero(piece.row(start + row)):
        what, wrong = "maps without any matter", "a simulation whose maps are all 0"
    size = max(1, SLAB_BYTES // (4 * samples.family.voxels))
    count, whole = 0, replace(piece, start=0, stop=piece.layout.length, rows=None)
    for first in range(0, len(whole), size):
        count += int(bad_rows(read_rows(file, whole, first, min(first + size, len(whole)))).sum())
    hint = "repair the file, or leave such rows out with `drop_bad=True`"
    if isinstance(wrong, float) and wrong < 0 and samples.family.is_density and piece.layout.name != "calogen":
        hint += "; logarithms of densities are read with `log10=True`, a field with negative values with `signed=SCALE`"
    return ShardError(
        f"{count} bad {'row' if count == 1 else 'rows'} of {len(whole)}: {what}",
        where=f"{piece.path}, dataset {dataset}, row {piece.row(start + row)}",
        expected=expected,
        found=wrong,
        hint=hint,
    )


def responses(samples: Samples) -> NDArray[np.float64] | None:
    """Deposited over incident energy of showers, (N,); None of maps and where the incident energy is not known."""
    energy = samples.family.energy
    if energy is None or energy.name not in samples.conditions:
        return None
    return np.asarray(samples.values.sum(axis=1, dtype=np.float64) / samples.conditions[energy.name])


def check_response(file: Opened, piece: Piece, head: Samples | None) -> None:
    """Refuses showers whose deposited and incident energies cannot be in the units the layout says.

    Args:
        file: The open file.
        piece: The rows of it that are read.
        head: The first of them, where they have been read already.
    """
    family, layout = piece.layout.family, piece.layout
    if family.energy is None or family.energy.name not in [column.name for column in layout.conditions]:
        return
    # The median of a few showers is noise, so the first rows decide whichever are asked for.
    rows = min(len(piece), _RESPONSE_ROWS, max(32, SLAB_BYTES // (4 * family.voxels)))
    enough = head is not None and len(head) >= rows
    samples = head.read(0, rows) if head and enough else read_rows(file, piece, 0, rows)
    samples = samples.select(~bad_rows(samples))
    found = responses(samples)
    if found is None or not len(found):
        return
    filled = found[found > 0]  # an empty shower is empty in any unit
    if not len(filled):
        if layout.kind == "generated":
            return
        raise ShardError(
            f"all of the first {len(samples)} showers are empty",
            where=piece.path,
            expected="showers that deposit energy",
            found="voxels that are all 0",
            hint="check how the file was written; some showers may be empty, but not all",
        )
    response = float(np.median(filled))
    strict = layout.kind == "reference" and len(filled) >= 32
    highest = family.max_response if strict else _HIGHEST_LOOSE_RESPONSE
    if strict:
        _require_same_order(filled, samples.conditions[family.energy.name][found > 0], family.max_response, piece)
    if _LOWEST_RESPONSE <= response <= highest:
        return
    guess = (
        "probably the incident energies are in GeV (or the voxels in keV) but were taken for MeV"
        if response > highest
        else "probably the incident energies are in MeV (or the voxels in GeV) although the layout says otherwise"
    )
    raise ShardError(
        "the deposited and the incident energies are not in the same units",
        where=piece.path,
        expected=f"a median deposited / incident energy of {_LOWEST_RESPONSE:g} to {highest:g}",
        found=f"{response:.4g} in {layout.name} layout ({'; '.join(layout.notes) or 'nothing converted'})",
        hint=f"{guess}: say them, `unit=energy=GeV` or `unit=voxels=GeV`, or set the file's attributes energy_unit and "
        "cell_unit to what they are",
    )


def _require_same_order(
    found: NDArray[np.float64], incident: NDArray[np.float32], highest: float, piece: Piece
) -> None:
    """Refuses showers whose energies have nothing to do with the incident ones, and are too large for many of them.

    Args:
        found: Deposited over incident energies, (N,).
        incident: Incident energies, (N,).
        highest: Largest plausible ratio.
        piece: Where they are from.
    """
    impossible = float((found > highest).mean())
    low, high = np.quantile(incident, [0.1, 0.9])
    if impossible < _IMPOSSIBLE or high < _SPREAD * low:
        return
    ranks = [values.argsort().argsort() for values in (found * incident, incident)]
    correlation = float(np.asarray(np.corrcoef(ranks))[0, 1])
    if correlation < _CORRELATED:
        raise ShardError(
            "showers and incident energies do not belong together",
            where=piece.path,
            expected="deposited energies that grow with the incident ones",
            found=f"a rank correlation of {correlation:.2f}, and {impossible:.0%} of showers with more than "
            f"{highest:g} times their incident energy",
            hint="check that both are in the same order: one of them may have been shuffled or sorted",
        )


def check_conditions(file: Opened, piece: Piece) -> None:
    """Refuses conditions of files of others that are far from the family's usual range, where nobody said their unit.

    The median of all of a file's values decides; a few that are far off are no error of units.

    Raises:
        ShardError: If another unit, or another order of columns, explains the values, or may.
    """
    layout = piece.layout
    if layout.name == "calogen" or layout.kind != "reference":
        return
    conditions = read_conditions(file, piece, 0, len(piece))
    for column in layout.conditions:
        condition = layout.family.condition(column.name)
        values = conditions[column.name][condition.possible(conditions[column.name])]
        if column.said or column.labels or not column.dataset or not len(values):
            continue
        middle, far = float(np.median(values)), float(np.abs(values).max())
        usual = max(abs(condition.low), abs(condition.high))
        found = f"values from {values.min():.4g} to {values.max():.4g}, median {middle:.4g} {condition.unit}".rstrip()
        if condition.role == "energy":
            known = {u: middle / column.factor * conversion(u, condition.unit) for u in ENERGY_UNITS}
            fits = [unit for unit, value in known.items() if condition.low <= value <= condition.high]
            wrong = not condition.low / 1.5 <= middle <= condition.high * 1.5 and bool(fits)
            hint = f"say their unit: `unit=energy={fits[0] if fits else 'GeV'}`, or whichever it is"
        elif condition.role == "angle" and condition.full_turn:
            radians = np.pi / 180
            wrong = 0 < far <= 1.01 * usual * radians if condition.unit == "deg" else far > 2.1 * np.pi
            hint = f"say the unit: `unit={column.name}=rad` or `unit={column.name}=deg`"
        else:
            wrong = column.dataset == "params" and not condition.low / 1.5 <= middle <= condition.high * 1.5
            hint = "say what the columns hold, in order: `columns=Omega_m,sigma_8,...`"
        if wrong:
            raise ShardError(
                f"'{column.name}' is far from its usual range, and nothing says its "
                + ("column" if column.dataset == "params" else "unit"),
                where=f"{piece.path}, {', '.join(p.name for p in layout.also) or f'dataset {column.dataset}'}",
                expected=f"about {condition.low:g} to {condition.high:g} {condition.unit}".rstrip(),
                found=found,
                hint=hint,
            )


def check_pairs(piece: Piece, samples: Samples, first: int) -> None:
    """Refuses maps of low and high resolution that are not of the same boxes: on the scale of low pixels they agree.

    Args:
        piece: Where they are from.
        samples: Some of its rows.
        first: The first of them.

    Raises:
        ShardError: If maps have little to do with the other of their pair, or lie beside it.
    """
    low, factor = samples.extras.get(LOW), samples.family.factor
    if low is None:
        return
    good = np.flatnonzero(~bad_rows(samples))
    coarse = samples.values[good].reshape(-1, low.shape[1], factor, low.shape[2], factor).mean((2, 4), np.float64)
    sides = [np.log(side + _KNEE) for side in (coarse, low[good].astype(np.float64))]
    sides = [side - side.mean((1, 2), keepdims=True) for side in sides]
    norms = np.sqrt(np.square(sides[0]).sum((1, 2)) * np.square(sides[1]).sum((1, 2)))
    known = norms > 0
    good, norms, (mine, theirs) = good[known], norms[known], [side[known] for side in sides]
    if not len(good):
        return
    shared = np.fft.irfft2((np.fft.rfft2(mine) * np.fft.rfft2(theirs).conj()).sum(0), s=low.shape[1:])
    steps = [int(step) for step in np.unravel_index(shared.argmax(), shared.shape)]
    found, moved = ((mine * side).sum((1, 2)) / norms for side in (theirs, np.roll(theirs, steps, (1, 2))))
    where = f"{piece.path}, datasets {piece.layout.values[0]} and {LOW}"
    hint = "both must be of the same box, phases, axis and slab, in the same order and orientation"
    if any(steps) and np.median(moved) >= _RELATED:
        places = tuple(step - n if 2 * step > n else step for step, n in zip(steps, low.shape[1:], strict=True))
        raise ShardError(
            "maps of low and high resolution lie beside each other",
            where=where,
            expected="maps that agree best where they are",
            found=f"a correlation of {np.median(found):.2f}, and of {np.median(moved):.2f} with the low maps moved by "
            f"{places} of their pixels",
            hint=hint,
        )
    strange = found < _RELATED
    if strange.sum() > _STRANGE * len(found):
        raise ShardError(
            "maps of low and high resolution do not belong together",
            where=where,
            expected=f"a correlation of at least {_RELATED:g} between their logarithms, pixel by pixel of the low maps",
            found=f"less in {strange.sum()} of {len(found)} pairs (a median of {np.median(found):.2f}), first in row "
            f"{piece.row(first + int(good[strange.argmax()]))}",
            hint=hint,
        )


def check_density(file: Opened, piece: Piece, samples: Samples) -> None:
    """Refuses reference maps that are no densities over their mean, as they should be, or the same everywhere."""
    layout = piece.layout
    if not layout.family.is_density or layout.kind != "reference":
        return
    good, where = samples.values[~bad_rows(samples)], f"{piece.path}, dataset {layout.values[0]}"
    foreign, means = (
        layout.name != "calogen" and layout.reading.signed is None,
        good.mean(axis=(1, 2), dtype=np.float64),
    )
    typical = float(np.median(means)) if len(good) else 1.0
    lowest, highest = _FOREIGN_DENSITIES if foreign else _DENSITIES
    if not lowest <= typical <= highest:
        raise ShardError(
            "the maps are not densities over the mean density of their box",
            where=where,
            expected=f"1 + delta: a typical map has a mean of {lowest:g} to {highest:g}",
            found=f"{typical:.4g}",
            hint="divide the maps of each simulation by its mean density (of a .npy stack that is done when it is "
            "read); logarithms are read with `log10=True`",
        )
    if len(good) and not np.ptp(good.reshape(len(good), -1), axis=1).any():
        what = f"all of the first {len(good)} maps are the same everywhere"
        raise ShardError(what, where=where, expected="structure in the maps")
    if not foreign or not len(good) or layout.reading.log10 is not None:
        return
    # A density has voids far below its mean, and peaks far above; its logarithm, or what is scaled to 0..1, has not.
    stored = np.asarray(file.maps[piece.row(0) : piece.row(0) + len(good)]) if isinstance(file, Stack) else good
    top = float(np.nanmax(stored))
    voids, contrast = (
        float(np.median(part / means)) for part in (good.min(axis=(1, 2)), good.std(axis=(1, 2), dtype=np.float64))
    )
    what = ""
    if 0.5 < top <= 1.0:
        what, found = "the maps look as if they were scaled to the range 0 to 1", f"a largest value of {top:g}"
    elif voids > _NO_VOIDS and contrast < _NO_CONTRAST:
        what, found = (
            "the maps look like logarithms of densities",
            f"{voids:.2g} times the mean, scatter {contrast:.2g}",
        )
    if what:
        raise ShardError(
            what,
            where=where,
            expected=f"densities: voids below {_NO_VOIDS:g} times the mean of a map, or scatter above {_NO_CONTRAST:g}",
            found=found,
            hint="`log10=True` reads logarithms to base 10; undo other scales first, or say `log10=False`",
        )
