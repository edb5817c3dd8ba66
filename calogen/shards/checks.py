"""Whether what was read can be physics: finite values, units that fit, densities that are densities."""

from __future__ import annotations

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import ShardError
from .layouts.stacks import Stack
from .pieces import SLAB_BYTES, Piece, read_rows, rows_of
from .samples import Samples

_LOWEST_RESPONSE = 0.003  # far below any sampling fraction: a factor 1000 in the units
_HIGHEST_LOOSE_RESPONSE = 30.0  # a bad model or a few showers may be far off, but not by a factor 1000
_RESPONSE_ROWS = 1024
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
    for name, array in samples.conditions.items():
        bad |= ~samples.family.condition(name).possible(array)
    return bad


def bad_error(
    file: h5py.File | Stack, piece: Piece, samples: Samples, bad: NDArray[np.bool_], start: int
) -> ShardError:
    """The error that names the first bad row and counts them all."""
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
    else:
        voxel = int(np.flatnonzero(~((one.values >= 0) & (one.values < np.inf)))[0])
        several = len(piece.layout.values) > 1
        dataset = piece.layout.values[int(samples.family.layer_of_voxel[voxel]) if several else 0]
        wrong, expected = float(one.values.ravel()[voxel]), "finite values that are not negative"
    what = "NaN, infinite, negative or absurd values"
    if column is not None and column.labels:
        what = "numbers that stand for no label"
    elif column is None and isinstance(file, Stack) and file.is_zero(start + row):
        what, wrong = "maps without any matter", "a simulation whose maps are all 0"
    size = max(1, SLAB_BYTES // (4 * samples.family.voxels))
    count = 0
    for first in range(piece.start, piece.stop, size):
        count += int(bad_rows(read_rows(file, piece, first, min(first + size, piece.stop))).sum())
    return ShardError(
        f"{count} bad {'row' if count == 1 else 'rows'} of {len(piece)}: {what}",
        where=f"{piece.path}, dataset {dataset}, row {start + row}",
        expected=expected,
        found=wrong,
        hint="repair the file, or leave such rows out with `drop_bad=True`",
    )


def responses(samples: Samples) -> NDArray[np.float64] | None:
    """Deposited over incident energy of showers, (N,); None of maps and where the incident energy is not known."""
    energy = samples.family.energy
    if energy is None or energy.name not in samples.conditions:
        return None
    return np.asarray(samples.values.sum(axis=1, dtype=np.float64) / samples.conditions[energy.name])


def check_response(file: h5py.File | Stack, piece: Piece, head: Samples | None) -> None:
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
    samples = head.read(0, rows) if head and enough else read_rows(file, piece, piece.start, piece.start + rows)
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
        hint=f"{guess}: set the file's attributes energy_unit and cell_unit to what they are",
    )


def check_density(piece: Piece, samples: Samples) -> None:
    """Refuses reference maps that are no densities over their mean, as they should be, or the same everywhere."""
    layout = piece.layout
    if not layout.family.is_density or layout.kind != "reference":
        return
    good = samples.values[~bad_rows(samples)]
    typical = float(np.median(good.mean(axis=(1, 2), dtype=np.float64))) if len(good) else 1.0
    if not _DENSITIES[0] <= typical <= _DENSITIES[1]:
        raise ShardError(
            "the maps are not densities over the mean density of their box",
            where=f"{piece.path}, dataset {layout.values[0]}",
            expected=f"1 + delta: a typical map has a mean of {_DENSITIES[0]:g} to {_DENSITIES[1]:g}",
            found=f"{typical:.4g}",
            hint="divide the maps of each simulation by its mean density; of a .npy stack that is done when it is read",
        )
    if len(good) and not np.ptp(good.reshape(len(good), -1), axis=1).any():
        what = f"all of the first {len(good)} maps are the same everywhere"
        raise ShardError(what, where=f"{piece.path}, dataset {layout.values[0]}", expected="structure in the maps")
