"""Density maps from matter that moves: white noise displaced as linear theory says, then what a network adds."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ConfigError
from ...families import Family
from ...shards.samples import Samples
from ..conditions import scale_conditions
from ..layers import SLOPE
from .distributions import Scores, features
from .generator import MapGenerator
from .linear import sheet_power
from .spectra import log_mean, shell_power, shells
from .transform import DensityScores

SHEETS = 2
"""Independent layers of matter along the line of sight."""
_DEPTH = 8  # a map is a slab of its box's side over this, where the family does not say
# Displacements are smoothed away below R^0.4, with R in Mpc/h the scale on which a sheet's linear rms is 1.2: with the
# full R, dense boxes lose peaks, with the same scale for all, sparse or dense ones do (truncated Zel'dovich).
_NONLINEAR, _SOFTLY = 1.2, 0.4
_SCALES = (0.1, 10.0)  # Mpc/h, among which R is looked for
_VOID, _VOID_EDGE = -1.0, 0.2  # smooth linear density below which nothing is smoothed away, and how gently
_KNEE = 0.02  # added to the density before its logarithm
_GRAIN, _GRAIN_SIZE = 1.5, 0.8  # texture in ln density where smoothing reaches 1 Mpc/h, and its size in Mpc/h
_GROWTH = 1.2  # with which power of the smoothing it goes
_ONSET, _WIDTH = 0.8, 0.7  # in which ln density it sets in, and how gently
_KNOTS = 64  # of the displacement's spectrum, even in ln k
_FIT_PIXELS, _FIT_MAPS = 2**28, 2**16  # that the start is fitted with, at most
# Share of them, and of the step to take. Chance in the first rounds' few maps must be forgotten by the last.
_FIT_ROUNDS = ((0.0625, 0.45),) * 5 + ((0.5, 0.7),) * 2 + ((1.0, 0.8), (1.0, 0.0))
_STRATA = 8
_CHUNK = 64  # maps that are fitted to at a time
_FIT_LEAST = 32  # times as many, in every round: fewer cosmologies would not tell the filter's terms apart
_PARTICLES = 2**16  # moved at a time: they stay in the cache, and large maps take little memory


@dataclass(frozen=True)
class Grid:
    """What depends on a map's size alone, on ``rfft2``'s modes.

    Attributes:
        wave: Wave number in h/Mpc, (H, W // 2 + 1).
        gradient: From k . psi to the displacement in pixels, (2, H, W // 2 + 1), imaginary parts.
        position: Of every pixel, in pixels, (2, H, W).
    """

    wave: Tensor
    gradient: Tensor
    position: Tensor

    @staticmethod
    @lru_cache(maxsize=8)
    @torch.inference_mode(mode=False)
    def of(height: int, width: int, pixel: float, device: torch.device) -> Grid:
        """The grid of maps of H x W pixels of a side in Mpc/h."""
        rows = (2 * math.pi / pixel * torch.fft.fftfreq(height, device=device))[:, None].expand(-1, width // 2 + 1)
        columns = (2 * math.pi / pixel * torch.fft.rfftfreq(width, device=device)).expand(height, -1)
        nyquist = 0.999 * math.pi / pixel  # odd functions have no mode there
        waves = torch.stack([rows * (rows.abs() < nyquist), columns * (columns < nyquist)])
        square = rows.square() + columns.square()
        square[0, 0] = math.inf
        axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        position = torch.stack(axes).to(device, torch.float32)
        return Grid(torch.hypot(rows, columns), waves / square / pixel, position)


class ZeldovichGenerator(MapGenerator):
    """White noise moves matter; a filter, a point transform and a network make its density the simulation's.

    1. Two sheets of matter, each half of the slab deep, get independent Gaussian displacements in the plane with the
       spectrum that linear theory gives for the conditions, and are moved by them: filaments, nodes and voids (the
       Zel'dovich approximation; Zel'dovich 1970, A&A 5, 84). Where matter is no longer linear, displacements are
       smoothed (truncated: Coles et al. 1993), but not in voids, which keep all that their matter began with.
    2. The logarithm of their density gets a texture outside voids, is filtered by exp T(k), with T a function of the
       conditions, and its pixels are mapped to normal scores. T is fitted so that the spectra of the maps are those of
       the training maps.
    3. A convolutional network, zero before training, adds to the scores what the adversary finds missing.
    4. The scores become densities with the distribution that the training maps have for the conditions.

    Everything is periodic and works at any size. Steps 1, 2 and 4 are fitted, not trained.

    Args:
        family: A map family.
        conditions: Names of the conditions.
        channels: Widths of the residual network's layers.
    """

    transform: DensityScores
    spectrum: Tensor  # (F, _KNOTS) ln of the displacements' power in (Mpc/h)^2, even in ln k
    truncation: Tensor  # (F,) ln of the scale in Mpc/h below which displacements are smoothed away
    transfer: Tensor  # (F, K) T at multiples of the training box's fundamental

    def __init__(self, family: Family, conditions: Sequence[str], channels: Sequence[int] = (16, 16, 16)) -> None:
        super().__init__()
        self.family, self.conditions = family, tuple(conditions)
        height, width = family.sample_shape
        self.pixel = family.box_size / height if family.box_size else 1.0
        self.depth = family.depth or self.pixel * min(height, width) / _DEPTH
        self.fundamental = 2 * math.pi / (self.pixel * min(height, width))
        terms = features(torch.zeros(1, len(self.conditions), device="cpu")).shape[1]
        self.transform = DensityScores(terms)
        self.inner = Scores(terms)
        self.register_buffer("spectrum", torch.zeros(terms, _KNOTS))
        self.register_buffer("truncation", torch.zeros(terms))
        bands = int(shells(height, width)[0].max()) + 1
        self.register_buffer("transfer", torch.zeros(terms, bands))
        self.residual = Residual(len(self.conditions), channels)

    @property
    def latent_size(self) -> int:
        """Standard normals that one map takes: one plane for every sheet, and one for texture."""
        return (SHEETS + 1) * self.family.voxels

    @property
    def coarse(self) -> int:
        """How many of them may be of low resolution: all."""
        return self.latent_size

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        scaled = scale_conditions(self.family, self.conditions, conditions)
        terms, planes = features(scaled), self.planes(latent)
        scores = self.start(planes, terms)
        return self.transform.inverse(scores + self.residual(scores, planes[:, -1], scaled), terms)

    @torch.no_grad()
    def start(self, planes: Tensor, terms: Tensor) -> Tensor:
        """Normal scores (B, H, W) before the network, of noise (B, 3, H, W) given features (B, F)."""
        return self.inner(self.filtered(self.matter(planes, terms), terms), terms)  # type: ignore[no-any-return]

    def planes(self, latent: Tensor) -> Tensor:
        """Noise as planes (B, 3, H, W), from (B, Z)."""
        return latent.unflatten(1, (SHEETS + 1, *self.family.sample_shape))  # type: ignore[no-any-return]

    def matter(self, planes: Tensor, terms: Tensor) -> Tensor:
        """Modes (B, H, W // 2 + 1) of ln density before the filter; the mean has the power of the noise."""
        grid = self._grid(planes)
        noise = torch.fft.rfft2(planes[:, :SHEETS])
        amplitude = torch.exp(0.5 * self._table(self.spectrum, terms, self._log_position(grid.wave)))
        smoothing = (terms @ self.truncation).exp()[:, None, None]
        smooth = torch.exp(-0.5 * (grid.wave * smoothing).square())
        density = displaced(noise * (amplitude / self.pixel)[:, None], smooth, grid)
        logs = torch.log(density + _KNEE)
        strength = torch.sigmoid((logs - _ONSET) / _WIDTH).mul_(smoothing**_GROWTH)
        logs += self._grain(planes[:, -1], grid).mul_(strength)
        modes: Tensor = torch.fft.rfft2(logs)
        modes[:, 0, 0] = noise[:, 0, 0, 0]  # how much matter a slab holds varies from slab to slab
        return modes

    def _grain(self, noise: Tensor, grid: Grid) -> Tensor:
        """Texture (B, H, W) that sheets of smooth matter lack, of white noise (B, H, W): haloes in filaments."""
        size = _GRAIN_SIZE / self.pixel
        spread = math.erf(math.pi * size) / (2 * math.sqrt(math.pi) * size)  # of smoothed noise, on any size of grid
        smooth = torch.exp(-0.5 * (grid.wave * _GRAIN_SIZE).square()) * (_GRAIN / spread)
        return torch.fft.irfft2(torch.fft.rfft2(noise) * smooth, s=noise.shape[1:])  # type: ignore[no-any-return]

    def filtered(self, modes: Tensor, terms: Tensor) -> Tensor:
        """The field (B, H, W) that is mapped to scores, from :meth:`matter`."""
        height, width = self.family.sample_shape
        position = self._grid(modes).wave / self.fundamental
        position = position.clamp(1, self.transfer.shape[1] - 1)  # modes longer than the training box: as its longest
        position[0, 0] = 0
        factor = self._table(self.transfer, terms, position).exp()
        field: Tensor = torch.fft.irfft2(modes * factor, s=(height, width))
        return field

    def _grid(self, like: Tensor) -> Grid:
        return Grid.of(*self.family.sample_shape, self.pixel, like.device)

    def _table(self, table: Tensor, terms: Tensor, position: Tensor) -> Tensor:
        """Functions of the conditions at positions between the knots of a table (F, K): (B, *position.shape)."""
        values = terms @ table
        cell = position.floor().clamp(0, table.shape[1] - 2).long()
        return torch.lerp(values[:, cell], values[:, cell + 1], position - cell)

    def _log_position(self, wave: Tensor) -> Tensor:
        low, high = self._range()
        return (wave.clamp(low, high).log() - math.log(low)) * ((_KNOTS - 1) / math.log(high / low))

    def _range(self) -> tuple[float, float]:
        """Wave numbers of the first and the last knot of the spectrum."""
        return self.fundamental / 64, math.sqrt(2) * math.pi / self.pixel

    def resized(self, size: int) -> ZeldovichGenerator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights.

        Raises:
            ConfigError: If the size is smaller than 4.
        """
        if size < 4:
            raise ConfigError("the map size does not fit", where="`size`", expected="at least 4", found=size)
        other = copy.copy(self)
        other.family = self._grown(size)
        return other

    # ------------------------------------------------------------------------------------------------ fitting

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit spectrum, point transforms and filter to training maps, 1 + delta."""
        maps, columns = torch.from_numpy(samples.values), torch.from_numpy(samples.conditions.array(self.conditions))
        terms = features(scale_conditions(self.family, self.conditions, columns))
        self.transform.fit(maps, terms)
        self._fit_spectrum(columns, terms)
        wanted = log_mean(torch.cat([shell_power(m - 1) for m in maps.split(_CHUNK)]), terms)
        self._fit_transfer(wanted, terms, seed)

    def _fit_spectrum(self, columns: Tensor, terms: Tensor) -> None:
        """Linear theory at some training conditions, as a function of all."""
        rows = torch.linspace(0, len(columns) - 1, min(len(columns), 30)).long()
        low, high = self._range()
        k = torch.logspace(math.log10(low), math.log10(high), _KNOTS, dtype=torch.float64).numpy()
        power = [
            sheet_power(k, dict(zip(self.conditions, row, strict=True)), self.depth / SHEETS)
            for row in columns[rows].tolist()
        ]
        self.spectrum.copy_(log_mean(torch.from_numpy(np.stack(power)), terms[rows]))
        scales = torch.tensor([_nonlinear_scale(k, p) for p in power])[:, None]
        self.truncation.copy_(_SOFTLY * log_mean(scales, terms[rows])[:, 0])

    def _fit_transfer(self, wanted: Tensor, terms: Tensor, seed: int) -> None:
        """Adjust T until the mean spectra (F, K) of fixed noise are those wanted; the scores follow."""
        stream = torch.Generator().manual_seed(seed)
        count = min(_FIT_MAPS, max(256, 4 * len(terms)), max(_STRATA, _FIT_PIXELS // self.family.voxels))
        rows = torch.randperm(len(terms), generator=stream)
        rows = rows[torch.linspace(0, len(rows) - 1, max(1, count // _STRATA)).long()]
        chunks = terms[rows].repeat_interleave(_STRATA, 0).split(_CHUNK)
        matter = [self.matter(self.planes(self._stratified(len(c), stream)), c) for c in chunks]
        self.transfer.zero_()
        for used, rate in _FIT_ROUNDS:
            some = slice(0, max(_FIT_LEAST, round(used * len(chunks))))
            fields = [self.filtered(m, c) for m, c in zip(matter[some], chunks[some], strict=True)]
            own = torch.cat(chunks[some])
            self.inner.fit(torch.cat(fields).flatten(1), own)
            if not rate:
                break  # the scores belong to the filter they were fitted behind
            power = [
                shell_power(self.transform.inverse(self.inner(f, c), c) - 1)
                for f, c in zip(fields, chunks[some], strict=True)
            ]
            step = rate * (wanted - log_mean(torch.cat(power), own))
            self.transfer += step.to(self.transfer.dtype)

    def _stratified(self, count: int, stream: torch.Generator) -> Tensor:
        """Noise (B, Z) that scatters less in the mean: mirrored, and the maps' means in strata.

        How much matter a slab holds decides most about its power, so without this some thousand maps are too few.
        """
        half = torch.randn((count + 1) // 2, self.latent_size, generator=stream)
        latent = torch.stack([half, -half], 1).flatten(0, 1)[:count]
        place = torch.arange(count) * 5 % _STRATA  # 5: pairs fall into distant strata, of either order
        mean = torch.special.ndtri((place + torch.rand(count, generator=stream)) / _STRATA)
        first = latent[:, : self.family.voxels]
        first += mean[:, None] / math.sqrt(self.family.voxels) - first.mean(1, keepdim=True)
        return latent


def _nonlinear_scale(k: NDArray[np.float64], power: NDArray[np.float64]) -> float:
    """The scale R in Mpc/h on which a sheet of matter, smoothed with exp(-k^2 R^2 / 2), has linear rms 1.2.

    Args:
        k: Wave numbers in h/Mpc, even in ln k, (K,).
        power: Of the sheet's linear density, in (Mpc/h)^2, (K,).
    """
    scales = np.geomspace(*_SCALES, 200)
    smoothed = power * np.exp(-np.square(k * scales[:, None]))
    variance = np.trapezoid(smoothed * k**2 / (2 * np.pi), np.log(k), axis=1)
    return float(np.interp(-(_NONLINEAR**2), -variance, scales))


def displaced(source: Tensor, smooth: Tensor, grid: Grid) -> Tensor:
    """Density of sheets of matter that a displacement has moved, averaged over the sheets, 1 on average.

    Smooth displacements everywhere, and in voids what was smoothed away as well: matter there has met no other.
    Matter starts on a lattice of half the pixels' spacing, on which displacements are interpolated: without that, the
    lattice shows in the voids.

    Args:
        source: Modes of k . psi, the linear density, (B, S, H, W // 2 + 1), of each sheet.
        smooth: What smoothing leaves of them, (B, H, W // 2 + 1).
        grid: Of the maps.

    Returns:
        (B, H, W).
    """
    height, width = grid.position.shape[1:]
    total = source.real.new_zeros(len(source), height + 1, width + 1)  # a row and a column more: see _deposit
    for sheet in source.unbind(1):
        kept = sheet * smooth
        void = torch.sigmoid((_VOID - torch.fft.irfft2(kept, s=(height, width))) / _VOID_EDGE)
        y, x = (
            (_along(sheet - kept, axis, width) * void).add_(_along(kept, axis, width)).add_(position)
            for axis, position in zip(grid.gradient, grid.position, strict=True)
        )
        for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
            _deposit(total, _between(y, rows, columns, height, 0), _between(x, rows, columns, 0, width))
    total[:, 0] += total[:, height]
    total[:, :, 0] += total[:, :, width]
    return total[:, :height, :width] / (4 * source.shape[1])


def _along(source: Tensor, gradient: Tensor, width: int) -> Tensor:
    """Displacement (B, H, W) along one axis, of modes of k . psi (B, H, W // 2 + 1)."""
    turned = torch.view_as_complex(torch.stack([-source.imag, source.real], -1) * gradient[..., None])
    return torch.fft.irfft2(turned, s=(source.shape[1], width))  # type: ignore[no-any-return]


def _between(place: Tensor, rows: int, columns: int, down: float, right: float) -> Tensor:
    """Positions (B, H, W) half a row, half a column further, which grow by ``down`` and ``right`` around the box."""
    if rows:
        below = place.roll(-1, 1)
        below[:, -1] += down
        place = 0.5 * (place + below)
    if columns:
        beside = place.roll(-1, 2)
        beside[:, :, -1] += right
        place = 0.5 * (place + beside)
    return place


def _deposit(total: Tensor, y: Tensor, x: Tensor) -> None:
    """Add particles of mass 1 at positions (B, H, W), in pixels, to total (B, H + 1, W + 1): cloud in cell.

    What belongs into the first row and column may lie in the last ones, so one index does for all four pixels.
    """
    size, flat, stride = y.shape[1:], total.flatten(1), total.shape[2]
    step = max(1, _PARTICLES // len(y))
    for above, left in zip(y.flatten(1).split(step, 1), x.flatten(1).split(step, 1), strict=True):
        row, column = above.floor(), left.floor()
        down, right = above - row, left - column
        for cell, side in ((row, size[0]), (column, size[1])):
            cell.sub_((cell + 0.5).div_(side).floor_().mul_(side))  # periodic
        index = row.long().mul_(stride).add_(column.long())
        both = down * right
        for offset, weight in (
            (0, 1 - down - right + both),
            (1, right - both),
            (stride, down - both),
            (stride + 1, both),
        ):
            flat[:, offset:].scatter_add_(1, index, weight)


class Residual(nn.Module):
    """What convolutions of scores, noise and conditions add to the scores; nothing before training.

    Args:
        conditions: How many there are (C).
        channels: Widths of the layers.
    """

    def __init__(self, conditions: int, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [2 + conditions, *channels]
        self.levels = nn.ModuleList(_circular(a, b) for a, b in pairwise(widths))
        self.last = _circular(widths[-1], 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, scores: Tensor, noise: Tensor, scaled: Tensor) -> Tensor:
        """What to add, (B, H, W), to scores (B, H, W), from them, noise (B, H, W) and scaled conditions (B, C)."""
        planes = scaled[:, :, None, None].expand(-1, -1, *scores.shape[1:])
        grid = torch.cat([scores[:, None], noise[:, None], planes], 1)
        for i, level in enumerate(self.levels):
            made = nn.functional.leaky_relu(level(grid), SLOPE)
            grid = made + grid if i and made.shape == grid.shape else made
        added: Tensor = self.last(grid)[:, 0]
        return added


def _circular(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")
