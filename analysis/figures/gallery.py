"""Figures of a surrogate itself, without a reference: walks between latents, sweeps of the conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calogen.families import Condition, Family

from ..observables.maps import wave_numbers
from ..observables.statistics import power_spectra
from .panels import Drawing, draw_frames

Array = NDArray[np.float64]
Samples = NDArray[np.float32]


def value_text(condition: Condition, value: float) -> str:
    """A condition's value as figures say it: ``E_inc = 20 GeV``, energies in GeV."""
    factor, unit = condition.shown(math.inf)
    text = condition.labels[int(value)] if condition.labels else f"{value * factor:.3g} {unit}".rstrip()
    return f"{_symbol(condition)} = {text}"


def _symbol(condition: Condition) -> str:
    return condition.axis[1].removesuffix(f" [{condition.shown(math.inf)[1]}]")


def walk(family: Family, values: Samples, share: Array, where: str) -> Drawing:
    """Walks between latents.

    Args:
        family: What the samples are.
        values: Walks of frames, (R, T, *sample_shape).
        share: How far along each frame is, (T,), from 0 to 1.
        where: The conditions, in words.
    """
    figure = draw_frames(family, values, [[f"{100 * s:.0f} %" for s in share]], [""] * len(values))
    caption = (
        f"Walks between two latents on the sphere (cos and sin of the angle, so that every frame is as probable), at "
        f"{where}. A surrogate that has understood its samples changes them without jumps and repeats nothing."
    )
    return Drawing("walk", "Walk between latents", caption, figure)


def sweep(
    family: Family,
    values: Samples,
    across: tuple[Condition, Array],
    down: tuple[Condition, Array] | None,
    kept: str,
) -> Drawing:
    """The same latent at several conditions.

    Args:
        family: What the samples are.
        values: Samples (R, T, *sample_shape).
        across: The condition that varies from column to column, and its values, (T,).
        down: That of the rows, (R,), if there is one; otherwise rows are different latents.
        kept: The other conditions, in words.
    """
    titles = [value_text(across[0], v) for v in across[1]]
    rows = [value_text(down[0], v) for v in down[1]] if down else [""] * len(values)
    names = [_symbol(c) for c, _ in (across, *([down] if down else []))]
    if down:
        caption = "One latent at conditions over the trained range"
    else:
        caption = f"{len(values)} latents, one above the other, at conditions over the trained range"
    caption += f" of {' and '.join(names)}{f', {kept}' if kept else ''}: only what they change differs."
    name = "-".join(["sweep", *([] if down else [across[0].name])])
    return Drawing(name, f"Sweep of {' and '.join(names)}", caption, draw_frames(family, values, [titles], rows))


def sweep_spectra(family: Family, maps: Sequence[tuple[Condition, Array, Samples]]) -> Drawing:
    """Mean power spectra at several values of each condition.

    Args:
        family: A map family.
        maps: Conditions, their values (T,) and maps (T, n, H, W) of the same latents.
    """
    figure = Figure(figsize=(4.2 * len(maps), 3.7), layout="constrained")
    k = wave_numbers(family)
    unit = ("h/Mpc", "(Mpc/h)$^2$") if family.box_size else ("1/pixel", "pixel$^2$")
    for column, (condition, values, found) in enumerate(maps):
        axes = figure.add_subplot(1, len(maps), column + 1)
        factor, label = condition.axis
        norm = Normalize(values[0] * factor, values[-1] * factor)
        for value, each in zip(values, found, strict=True):
            colour = matplotlib.colormaps["viridis"](norm(value * factor))
            axes.loglog(k, power_spectra(each, family.box_size).mean(axis=0), color=colour)
        axes.set_xlabel(f"k [{unit[0]}]")
        axes.set_ylabel(f"P(k) [{unit[1]}]")
        figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label=label)
    caption = (
        f"Mean power spectrum of {maps[0][2].shape[1]} maps of the same latents, one condition at a time over the "
        "trained range, the others in its middle."
    )
    return Drawing("sweep-power", "Sweep of the power spectrum", caption, figure)
