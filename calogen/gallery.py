"""What a surrogate has learnt, in figures that need no reference: walks, sweeps, and a field larger than any it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .analysis.figures.maps import field
from .analysis.figures.panels import Drawing, draw_frames, encode, styled, symbol, value_text, value_texts
from .analysis.observables.maps import wave_numbers
from .analysis.observables.statistics import power_spectra
from .errors import ConfigError
from .families import Condition
from .sampling import Surrogate
from .shards.samples import Samples
from .stages import stage
from .storage import require_writable, write_atomic

_FRAMES = 7
_WALKS = 2  # of samples that fill few panels
_MANY_LAYERS = 4
_POINTS = 5  # of a condition in a sweep
_MAPS = 48  # for a mean power spectrum
_FIELD = 512  # pixels a side


def draw_gallery(surrogate: Surrogate, *, seed: int = 0) -> Iterator[Drawing]:
    """Figures of a surrogate, one at a time.

    Walks between latents at fixed conditions; the same latent at conditions over the trained range; for maps the mean
    power spectrum over it, and a periodic field of 512 pixels a side.

    Args:
        surrogate: Whose.
        seed: Of the latents.
    """
    yield from styled(_drawings(surrogate, seed))


def save_gallery(surrogate: Surrogate, folder: Path, *, seed: int = 0) -> list[Path]:
    """Write every figure of :func:`draw_gallery` as PDF and PNG.

    Args:
        surrogate: Whose.
        folder: Made if absent; figures of an earlier call are replaced.
        seed: Of the latents.

    Returns:
        The PNG files.

    Raises:
        StorageError: If the file system refuses.
    """
    require_writable(folder)
    written = []
    stage("generating samples for the first figure")
    for number, drawing in enumerate(draw_gallery(surrogate, seed=seed), 1):
        stage(f"drawing {drawing.title.lower()}", number, 0)
        for kind in ("pdf", "png"):
            path = folder / f"{drawing.name}.{kind}"
            write_atomic(path, encode(drawing, kind))
        written.append(path)
    return written


def _drawings(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    maps, points = surrogate.family.kind == "map", _points(surrogate)
    latents = surrogate.latents(_WALKS if len(surrogate.family.layers) < _MANY_LAYERS else 1, seed=seed)
    yield _walk(surrogate, seed, len(latents))
    if maps and len(points) > 1:
        yield _sweep(surrogate, latents[:1], 0, 1)
    else:
        for number in range(len(points)):
            yield _sweep(surrogate, latents, number)
    if maps and points:
        yield _spectra(surrogate, seed)
    if maps:
        yield from _field(surrogate, seed)


def _points(surrogate: Surrogate, count: int = _POINTS) -> list[tuple[Condition, NDArray[np.float64]]]:
    """Every condition with values over the range trained on, equally far apart on its scale, or with all its labels."""
    found = []
    for known in surrogate.card.conditions:
        condition = surrogate.family.condition(known.name)
        spaced = np.geomspace if condition.scale == "log" else np.linspace
        found.append((condition, known.numbers(condition) if known.labels else spaced(known.low, known.high, count)))
    return found


def _middle(surrogate: Surrogate) -> NDArray[np.float32]:
    """The middle of the trained range of every condition on its own scale, (C,)."""
    return np.array([values[len(values) // 2] for _, values in _points(surrogate, 3)], np.float32)


def _kept(surrogate: Surrogate, but: Sequence[int] = ()) -> str:
    """The conditions that stay in their middle, for people."""
    texts = value_texts([condition for condition, _ in _points(surrogate)], _middle(surrogate).astype(np.float64))
    return ", ".join(text for i, text in enumerate(texts) if i not in but)


def _decoded(
    surrogate: Surrogate, latents: NDArray[np.float32], varied: Mapping[int, NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Samples (R, T, *sample_shape) of latents (R, T, Z) and conditions (R, T) by number, the others at their middle.

    An axis of length 1 is repeated.
    """
    shape = np.broadcast_shapes(latents.shape[:2], *(values.shape for values in varied.values()))
    latents = np.array(np.broadcast_to(latents, (*shape, latents.shape[2])))
    columns = np.tile(_middle(surrogate), (*shape, 1))
    for number, values in varied.items():
        columns[:, :, number] = values
    made = surrogate.decode(latents.reshape(-1, latents.shape[2]), columns.reshape(-1, columns.shape[2]))
    return made.reshape(*shape, *surrogate.family.sample_shape)


def _walk(surrogate: Surrogate, seed: int, rows: int) -> Drawing:
    """Walks between latents at fixed conditions."""
    ends = surrogate.latents(2 * rows, seed=seed).reshape(rows, 2, 1, -1)
    share = np.linspace(0, 1, _FRAMES)
    angle = (np.pi / 2 * share).astype(np.float32)[:, None]
    path = (np.cos(angle) * ends[:, 0] + np.sin(angle) * ends[:, 1]).astype(np.float32)
    titles = [f"{100 * s:.0f} %" for s in share]
    figure = draw_frames(surrogate.family, _decoded(surrogate, path, {}), [titles], [""] * rows)
    caption = (
        f"Walks between two latents on the sphere (cos and sin of the angle, so that every frame is as probable), at "
        f"{_kept(surrogate) or 'no conditions'}. A surrogate that has understood its samples changes them without "
        "jumps and repeats nothing."
    )
    return Drawing("walk", "Walk between latents", caption, figure)


def _sweep(surrogate: Surrogate, latents: NDArray[np.float32], *numbers: int) -> Drawing:
    """Latents (R, Z) below each other at values of a condition, or one at values of two conditions."""
    (across, values), *more = (_points(surrogate)[number] for number in numbers)
    varied, rows = {numbers[0]: values[None]}, [""] * len(latents)
    symbols, caption = symbol(across), f"{len(latents)} latents, one above the other,"
    for down, upwards in more:  # as on paper: the second condition grows upwards
        varied[numbers[1]] = upwards[::-1, None]
        rows = [value_text(down, v) for v in upwards[::-1]]
        symbols, caption = f"{symbols} and {symbol(down)}", "One latent"
    titles = [value_text(across, v) for v in values]
    figure = draw_frames(surrogate.family, _decoded(surrogate, latents[:, None], varied), [titles], rows)
    kept = _kept(surrogate, numbers)
    caption += f" at conditions over the trained range of {symbols}{f', {kept}' if kept else ''}"
    name = "sweep" if more else f"sweep-{across.name}"
    return Drawing(name, f"Sweep of {symbols}", f"{caption}: only what they change differs.", figure)


def _spectra(surrogate: Surrogate, seed: int) -> Drawing:
    """Mean power spectra of the same latents at several values of each condition."""
    family, latents, points = surrogate.family, surrogate.latents(_MAPS, seed=seed), _points(surrogate)
    figure = Figure(figsize=(4.2 * len(points), 3.7), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    unit = ("h/Mpc", "(Mpc/h)$^2$") if family.box_size else ("1/pixel", "pixel$^2$")
    for number, (axes, (condition, values)) in enumerate(zip(panels, points, strict=True)):
        factor, label = condition.axis
        norm = Normalize(values[0] * factor, values[-1] * factor)
        for value, maps in zip(values, _decoded(surrogate, latents[None], {number: values[:, None]}), strict=True):
            colour = matplotlib.colormaps["viridis"](norm(value * factor))
            axes.loglog(wave_numbers(family), power_spectra(maps, family.box_size).mean(axis=0), color=colour)
        axes.set(xlabel=f"k [{unit[0]}]", ylabel=f"P(k) [{unit[1]}]")
        figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label=label)
    caption = (
        f"Mean power spectrum of {_MAPS} maps of the same latents, one condition at a time over the trained range, the "
        "others in its middle."
    )
    return Drawing("sweep-power", "Sweep of the power spectrum", caption, figure)


def _field(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    try:
        large = surrogate.resized(_FIELD)
    except ConfigError:  # of a generator of one size
        return
    middle = _middle(surrogate)
    named = {name: middle[i : i + 1] for i, name in enumerate(surrogate.conditions)}
    yield field(Samples(large.family, large.decode(large.latents(1, seed=seed), middle[None]), named, kind="generated"))
