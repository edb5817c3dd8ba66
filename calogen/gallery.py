"""What a surrogate has learnt, in figures that need no reference: walks, sweeps, and a field larger than any it saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .families import Condition
from .sampling import Surrogate
from .shards.samples import Samples
from .storage import require_writable, write_atomic

if TYPE_CHECKING:
    from .analysis.figures.panels import Drawing

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
    from .analysis.figures.panels import styled

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
    from .analysis.figures.panels import encode

    require_writable(folder)
    written = []
    for drawing in draw_gallery(surrogate, seed=seed):
        for kind in ("pdf", "png"):
            path = folder / f"{drawing.name}.{kind}"
            write_atomic(path, encode(drawing, kind))
        written.append(path)
    return written


def _drawings(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    yield _walk(surrogate, seed)
    if surrogate.conditions:
        yield from _sweeps(surrogate, seed)
    if surrogate.family.kind == "map":
        if surrogate.conditions:
            yield _spectra(surrogate, seed)
        yield from _field(surrogate, seed)


def _walks(surrogate: Surrogate) -> int:
    return _WALKS if len(surrogate.family.layers) < _MANY_LAYERS else 1


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


def _in_words(surrogate: Surrogate, values: NDArray[np.float32], but: tuple[int, ...] = ()) -> str:
    from .analysis.figures.gallery import value_text

    known = enumerate(_points(surrogate))
    return ", ".join(value_text(c, float(values[i])) for i, (c, _) in known if i not in but)


def _walk(surrogate: Surrogate, seed: int) -> Drawing:
    from .analysis.figures.gallery import walk

    count = _walks(surrogate)
    ends = surrogate.latents(2 * count, seed=seed).reshape(count, 2, 1, -1)
    share = np.linspace(0, 1, _FRAMES)
    angle = (np.pi / 2 * share).astype(np.float32)[:, None]
    path = (np.cos(angle) * ends[:, 0] + np.sin(angle) * ends[:, 1]).astype(np.float32)
    middle = _middle(surrogate)
    made = surrogate.decode(path.reshape(count * _FRAMES, -1), np.tile(middle, (count * _FRAMES, 1)))
    values = made.reshape(count, _FRAMES, *surrogate.family.sample_shape)
    return walk(surrogate.family, values, share, _in_words(surrogate, middle) or "no conditions")


def _sweeps(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    """Of maps a plane of the first two conditions; else every condition on its own."""
    from .analysis.figures.gallery import sweep

    points, middle, shape = _points(surrogate), _middle(surrogate), surrogate.family.sample_shape
    if surrogate.family.kind == "map" and len(points) > 1:
        (across, first), (down, second) = points[:2]
        columns = np.tile(middle, (_POINTS, _POINTS, 1))
        columns[:, :, 0], columns[:, :, 1] = first, second[::-1, None]  # as on paper: the second grows upwards
        latent = surrogate.latents(1, seed=seed).repeat(_POINTS**2, axis=0)
        made = surrogate.decode(latent, columns.reshape(_POINTS**2, -1)).reshape(_POINTS, _POINTS, *shape)
        kept = _in_words(surrogate, middle, (0, 1))
        yield sweep(surrogate.family, made, (across, first), (down, second[::-1]), kept)
        return
    count = _walks(surrogate)
    for number, (condition, values) in enumerate(points):
        columns = np.tile(middle, (count, len(values), 1))
        columns[:, :, number] = values
        latent = surrogate.latents(count, seed=seed).repeat(len(values), axis=0)
        made = surrogate.decode(latent, columns.reshape(len(latent), -1)).reshape(count, len(values), *shape)
        yield sweep(surrogate.family, made, (condition, values), None, _in_words(surrogate, middle, (number,)))


def _spectra(surrogate: Surrogate, seed: int) -> Drawing:
    from .analysis.figures.gallery import sweep_spectra

    middle, latent, found = _middle(surrogate), surrogate.latents(_MAPS, seed=seed), []
    for number, (condition, values) in enumerate(_points(surrogate)):
        columns = np.tile(middle, (_POINTS, _MAPS, 1))
        columns[:, :, number] = values[:, None]
        made = [surrogate.decode(latent, each) for each in columns]
        found.append((condition, values, np.stack(made)))
    return sweep_spectra(surrogate.family, found)


def _field(surrogate: Surrogate, seed: int) -> Iterator[Drawing]:
    from .analysis.figures.maps import field

    try:
        large = surrogate.resized(_FIELD)
    except ConfigError:  # of a generator of one size
        return
    middle = _middle(surrogate)
    named = {name: middle[i : i + 1] for i, name in enumerate(surrogate.conditions)}
    yield field(Samples(large.family, large.decode(large.latents(1, seed=seed), middle[None]), named, kind="generated"))
