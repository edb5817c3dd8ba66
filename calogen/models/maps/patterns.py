"""What projected training can change about a map: patterns of its latent normals."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..refinement import Refinement
from .distributions import features

FARTHEST = 4.0  # standard deviations beyond which a normal or a feature counts no further
LARGEST = 1.0  # change of a normal
_LARGE, _MIDDLE = 2, 4  # bands that make up the two fields by which smaller scales are modulated
_POINTS, _WINDOWS = 3, 3  # functions of the normals, and parts of the map that get texture
_TEXTURES = 3  # bands of texture, the smallest scales
_STATES = 3  # features of a map's own fluctuations


class MapRefinement(Refinement):
    """Small changes of all that the fit of a map consists of.

    Patterns of the normals y are: 1, y^2 - 1 and y^3 - 3 y (the point transform); y in bands of wave numbers (the
    filter); these times large-scale fields of y (small scales are modulated by large ones); and noise in bands, in
    the whole map or times y or y^2 - 1 (texture). Their amplitudes are linear in features of the map: 1, the scaled
    conditions and their products of two, and its own fluctuations: the mean of y, and its rms on two ranges of large
    scales. These set how the spectrum of a map varies as a whole. On fields larger than the training maps the last
    ones tend to what they are on average, so nothing there depends on far-away places.

    Bands are hats in ln k, at octaves of the training maps' fundamental mode, and half octaves from the eighth on.

    Args:
        height: Of the training maps, in pixels.
        width: The same.
        conditions: Columns of scaled conditions (C).
    """

    means: Tensor  # (_STATES,) of the fluctuations of generated maps ...
    spreads: Tensor  # ... and their spreads
    rms: Tensor  # (2,) of the modulating fields

    def __init__(self, height: int, width: int, conditions: int) -> None:
        self.side = min(height, width)
        self.bands = len(_knots(self.side))
        self.known = 1 + conditions + conditions * (conditions + 1) // 2  # features that are functions of conditions
        large, middle = (self.bands - min(count, self.bands - 1) for count in (_LARGE, _MIDDLE))
        self.parts = (_POINTS, self.bands, large, middle, *[_TEXTURES] * _WINDOWS)
        super().__init__(1, torch.ones(sum(self.parts), self.known + _STATES, dtype=torch.bool))
        self.register_buffer("means", torch.zeros(_STATES))
        self.register_buffer("spreads", torch.ones(_STATES))
        self.register_buffer("rms", torch.ones(2))

    def standardise(self, normals: Tensor) -> None:
        """Take means and spreads of fluctuations and fields from normals (N, H, W) of generated maps."""
        found = self._states(normals)
        self.means.copy_(found.mean(0))
        self.spreads.copy_(found.std(0).clamp(min=1e-3))
        fields = self._fields(torch.fft.rfft2(_capped(normals)), normals.shape[1:])
        self.rms.copy_(torch.stack([field.square().mean().sqrt().clamp(min=1e-3) for field in fields]))

    def features(self, normals: Tensor, scaled: Tensor) -> Tensor:
        """What amplitudes are linear in, (B, 1, F), of normals (B, H, W) and scaled conditions (B, C)."""
        known = features(scaled)[:, : self.known]
        states = ((self._states(normals) - self.means) / self.spreads).clamp(-FARTHEST, FARTHEST)
        return torch.cat([known, states], 1)[:, None]

    def forward(self, normals: Tensor, noise: Tensor, amplitudes: Tensor) -> Tensor:
        """Changed normals (B, H, W), of normals and white noise (B, H, W) and amplitudes (B, 1, A)."""
        return normals + self._change(normals, noise, amplitudes).clamp(-LARGEST, LARGEST)

    def _change(self, normals: Tensor, noise: Tensor, amplitudes: Tensor) -> Tensor:
        points, linear, *modulated, whole, times, square = amplitudes[:, 0].split(self.parts, 1)
        capped, shape = _capped(normals), normals.shape[1:]
        modes, grains = torch.fft.rfft2(capped), torch.fft.rfft2(noise)
        weights = self._weights(shape, normals.device)

        def banded(field: Tensor, factors: Tensor) -> Tensor:
            mine = weights[self.bands - factors.shape[1] :].flatten(1)
            found: Tensor = torch.fft.irfft2(field * (factors @ mine).unflatten(1, weights.shape[1:]), s=shape)
            return found

        one, quadratic, cubic = points[:, :, None, None].unbind(1)
        squared = capped.square()
        change: Tensor = one + quadratic * (squared - 1) + cubic * (capped * (squared - 3)) + banded(modes, linear)
        for field, factors in zip(self._scaled_fields(modes, shape), modulated, strict=True):
            change = change + field * banded(modes, factors)
        texture = banded(grains, whole) + capped * banded(grains, times) + (squared - 1) * banded(grains, square)
        return change + texture

    def patterns(self, normals: Tensor, noise: Tensor, amplitudes: Tensor) -> Tensor:
        """How the changed normals depend on each amplitude, (B, A, H, W), at some amplitudes."""
        capped, shape = _capped(normals), normals.shape[1:]
        modes, grains = torch.fft.rfft2(capped), torch.fft.rfft2(noise)
        weights = self._weights(shape, normals.device)
        bands, textures = (
            torch.fft.irfft2(field[:, None] * mine, s=shape)
            for field, mine in ((modes, weights), (grains, weights[-_TEXTURES:]))
        )
        squared = capped.square()
        found = [torch.stack([torch.ones_like(capped), squared - 1, capped * (squared - 3)], 1), bands]
        for field, count in zip(self._scaled_fields(modes, shape), self.parts[2:4], strict=True):
            found.append(field[:, None] * bands[:, self.bands - count :])
        found += [textures, capped[:, None] * textures, (squared - 1)[:, None] * textures]
        free = self._change(normals, noise, amplitudes).abs() < LARGEST
        return torch.cat(found, 1) * free[:, None]

    def _states(self, normals: Tensor) -> Tensor:
        """The mean of normals (B, H, W), and their rms on two ranges of large scales, (B, _STATES)."""
        capped = _capped(normals)
        modes = torch.fft.rfft2(capped)
        modes[:, 0, 0] = 0
        fields = self._fields(modes, normals.shape[1:])
        return torch.stack([capped.mean((1, 2)), *(field.square().mean((1, 2)).sqrt() for field in fields)], 1)

    def _scaled_fields(self, modes: Tensor, shape: torch.Size) -> list[Tensor]:
        pairs = zip(self._fields(modes, shape), self.rms, strict=True)
        return [(field / rms).clamp(-FARTHEST, FARTHEST) for field, rms in pairs]

    def _fields(self, modes: Tensor, shape: torch.Size) -> list[Tensor]:
        """Large-scale fields (B, H, W) of modes (B, H, W // 2 + 1), their mean included."""
        weights, mean = self._weights(shape, modes.device), torch.zeros(modes.shape[1:], device=modes.device)
        mean[0, 0] = 1
        counts = (self.bands - part for part in self.parts[2:4])
        return [torch.fft.irfft2(modes * (weights[:count].sum(0) + mean), s=shape) for count in counts]

    def _weights(self, shape: torch.Size, device: torch.device) -> Tensor:
        return _hats(shape[0], shape[1], self.side, device)


def _capped(normals: Tensor) -> Tensor:
    return normals.clamp(-FARTHEST, FARTHEST)


def _knots(side: int) -> list[float]:
    """Where bands are largest, in octaves above the fundamental mode of so many pixels, up to the corner's mode."""
    last = math.log2(side / math.sqrt(2))
    octaves = [float(number) for number in range(min(3, int(last) - 1))]
    return octaves + [len(octaves) + 0.5 * number for number in range(int(2 * (last - len(octaves))) + 1)]


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _hats(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """How much each band has of every mode of ``rfft2``, (bands, H, W // 2 + 1): they add up to 1, and the mean is 0.

    Args:
        height: Of the maps, in pixels.
        width: The same.
        side: Of the training maps.
        device: Where to put them.
    """
    with torch.device("cpu"):
        rows, columns = torch.fft.fftfreq(height) * side, torch.fft.rfftfreq(width) * side
        knots = torch.tensor(_knots(side))
        octave = torch.hypot(rows[:, None], columns).clamp(min=1e-6).log2().clamp(knots[0], knots[-1])
        place = torch.searchsorted(knots, octave.contiguous(), right=True).clamp(max=len(knots) - 1) - 1
        above = (octave - knots[place]) / (knots[place + 1] - knots[place])
        found = torch.zeros(len(knots), *octave.shape)
        found.scatter_(0, place[None], (1 - above)[None]).scatter_(0, place[None] + 1, above[None])
        found[:, 0, 0] = 0
    return found.to(device)
