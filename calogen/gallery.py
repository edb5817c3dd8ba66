"""What a surrogate has learnt, in figures that need no reference: walks, sweeps, and a field larger than any it saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .analysis.figures.gallery import sweep, sweep_spectra, value_text, walk
from .analysis.figures.maps import field
from .analysis.figures.panels import Drawing, encode, styled
from .errors import ConfigError
from .families import Condition
from .sampling import Surrogate
from .shards.samples import Samples
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
    for drawing in draw_gallery(surrogate, seed=seed):
        for kind in ("pdf", "png"):
            path = folder / f"{drawing.name}.{kind}"
            write_atomic(path, encode(drawing, kind))
        written.append(path)
    return written


def _drawings(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    maps, points = surrogate.family.kind == "map", _points(surrogate)
    rows = _WALKS if len(surrogate.family.layers) < _MANY_LAYERS else 1
    yield _walk(surrogate, seed, rows)
    if maps and len(points) > 1:
        yield _plane(surrogate, seed)
    else:
        yield from _sweeps(surrogate, seed, rows)
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


def _in_words(surrogate: Surrogate, but: tuple[int, ...] = ()) -> str:
    """The conditions that are kept at their middle."""
    kept = enumerate(zip(_points(surrogate), _middle(surrogate), strict=True))
    return ", ".join(value_text(c, float(value)) for i, ((c, _), value) in kept if i not in but)


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


def _walk(surrogate: Surrogate, seed: int, count: int) -> Drawing:
    ends = surrogate.latents(2 * count, seed=seed).reshape(count, 2, 1, -1)
    share = np.linspace(0, 1, _FRAMES)
    angle = (np.pi / 2 * share).astype(np.float32)[:, None]
    path = (np.cos(angle) * ends[:, 0] + np.sin(angle) * ends[:, 1]).astype(np.float32)
    return walk(surrogate.family, _decoded(surrogate, path, {}), share, _in_words(surrogate) or "no conditions")


def _plane(surrogate: Surrogate, seed: int) -> Drawing:
    """The plane of the first two conditions."""
    (across, first), (down, second) = _points(surrogate)[:2]
    second = second[::-1]  # as on paper: the second grows upwards
    made = _decoded(surrogate, surrogate.latents(1, seed=seed)[None], {0: first[None], 1: second[:, None]})
    return sweep(surrogate.family, made, (across, first), (down, second), _in_words(surrogate, (0, 1)))


def _sweeps(surrogate: Surrogate, seed: int, count: int) -> Iterator[Drawing]:
    """Every condition on its own."""
    latents = surrogate.latents(count, seed=seed)[:, None]
    for number, (condition, values) in enumerate(_points(surrogate)):
        made = _decoded(surrogate, latents, {number: values[None]})
        yield sweep(surrogate.family, made, (condition, values), None, _in_words(surrogate, (number,)))


def _spectra(surrogate: Surrogate, seed: int) -> Drawing:
    latents = surrogate.latents(_MAPS, seed=seed)[None]
    varied = enumerate(_points(surrogate))
    found = [(c, values, _decoded(surrogate, latents, {number: values[:, None]})) for number, (c, values) in varied]
    return sweep_spectra(surrogate.family, found)


def _field(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    try:
        large = surrogate.resized(_FIELD)
    except ConfigError:  # of a generator of one size
        return
    middle = _middle(surrogate)
    named = {name: middle[i : i + 1] for i, name in enumerate(surrogate.conditions)}
    yield field(Samples(large.family, large.decode(large.latents(1, seed=seed), middle[None]), named, kind="generated"))
