"""Maps of high resolution from those of low resolution: a fitted start, what WGAN-GP adds to it, and its critic.

Everything is done on the grid of low resolution, where one pixel has as many channels as it covers fine pixels
(Shi et al. 2016, arXiv:1609.05158), so that a map of any size costs little. Logarithms are of density + ``_KNEE``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pad, pixel_shuffle, pixel_unshuffle

from ...errors import ConfigError
from ...families import Family
from ...shards.samples import Samples
from ..conditions import inputs_of, scale_conditions, scaled_size
from ..contract import Critic, Inference, OnArrays
from ..layers import SLOPE, mlp
from .generator import MapGenerator
from .spectra import log_bands, shell_power, shells

_KNEE = 0.02  # added to the density before its logarithm
_NODES = 24  # of tables over |k|, from 0 to the corner of Fourier space
_QUANTILES, _ENDS = 65, 4.0  # nodes of the residuals' distribution, from - to + so many standard deviations
_GROUPS = (0.25, 0.5, 0.75, 0.9, 0.97, 0.993, 0.999)  # shares of pixels between groups of predicted brightness
_BATCH, _RATE = 16, 3e-3  # of the fit by likelihood
_FIT = 500  # its steps, at most
_CALIBRATED, _ROUNDS = 2400, 6  # maps by which power is adjusted, and how often
_ROWS = 64  # maps that pass the network at a time in the fit's calibration
_CLASSES = 4  # of low maps by their contrast, each with a filter of its own
_NARROWEST, _WIDEST = -5.0, 1.0  # logarithm of the spread of a pixel
_VIEW = 16.0  # a change by one unit in every pixel of a map of 64 x 64 is four units of the views
_CACHED = 1 << 18  # pixels worked on at a time


def upsampled(maps: Tensor, factor: int) -> Tensor:
    """Periodic bicubic interpolation, (B, h, w) to (B, f h, f w); a pixel covers f x f finer ones."""
    margin = 2  # pixels that the kernel reaches
    wide = pad(maps[:, None], (margin,) * 4, mode="circular")
    fine = interpolate(wide, scale_factor=float(factor), mode="bicubic", align_corners=False)
    cut = margin * factor
    return fine[:, 0, cut:-cut, cut:-cut]


def _circular(inputs: int, outputs: int, *, zero: bool = False, stride: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode="circular")
    if zero:
        nn.init.zeros_(made.weight)
        nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class Start(nn.Module):
    """Logarithms of the density as a Gaussian field about a mean, pixel by pixel, both functions of the low map.

    A residual is its spread times a function of a Gaussian field of unit variance, whose spectrum is fitted; bright
    pixels have another function than dark ones. At last a filter of the logarithms gives the density the power it
    should have, which depends on the contrast of the low map.

    Args:
        conditions: Columns of scaled conditions.
        factor: Fine pixels along a side of a coarse one (f).
        channels: Widths of the convolutions.
    """

    mean: Tensor
    width: Tensor
    centres: Tensor  # (G,) predicted logarithms in the middle of groups of pixels
    quantiles: Tensor  # (G, Q)
    noise: Tensor  # (K,) amplitudes of noise over |k|
    contrasts: Tensor  # (C,) logarithms of the rms density of typical low maps
    filter: Tensor  # (C, K)
    shift: Tensor  # (C,)

    def __init__(self, conditions: int, factor: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.factor = factor
        widths = [1 + conditions, *channels]
        self.levels = nn.ModuleList(_circular(a, b) for a, b in pairwise(widths))
        self.head = _circular(widths[-1], 2 * factor**2, zero=True)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("width", torch.tensor(1.0))
        self.register_buffer("centres", torch.arange(len(_GROUPS) + 1.0))
        self.register_buffer("quantiles", torch.linspace(-_ENDS, _ENDS, _QUANTILES).repeat(len(_GROUPS) + 1, 1))
        self.register_buffer("noise", torch.ones(_NODES))
        self.register_buffer("contrasts", torch.arange(float(_CLASSES)))
        self.register_buffer("filter", torch.ones(_CLASSES, _NODES))
        self.register_buffer("shift", torch.zeros(_CLASSES))

    def standard(self, low: Tensor) -> Tensor:
        """Logarithms of low maps (B, h, w), standardised."""
        return (torch.log(low + _KNEE) - self.mean) / self.width

    def predicted(self, x: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and logarithm of the spread (B, H, W), and what else the network knows (B, channels, h, w).

        Args:
            x: Standardised low maps (B, h, w).
            scaled: Scaled conditions (B, D).
        """
        grid = torch.cat([x[:, None], scaled[:, :, None, None].expand(-1, -1, *x.shape[1:])], 1)
        for i, level in enumerate(self.levels):
            made = leaky_relu(level(grid), SLOPE)
            grid = made + grid if i and made.shape == grid.shape else made
        mean, spread = pixel_shuffle(self.head(grid), self.factor).unbind(1)
        mean = upsampled(x, self.factor) * self.width + self.mean + mean
        return mean, (spread - 1).clamp(_NARROWEST, _WIDEST), grid

    def _predictions(self, low: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the spread of many maps, some at a time: all channels of all would take much memory."""
        parts = zip(self.standard(low).split(_ROWS), scaled.split(_ROWS), strict=True)
        mean, spread = zip(*(self.predicted(*part)[:2] for part in parts), strict=True)
        return torch.cat(mean), torch.cat(spread)

    def residual(self, noise: Tensor, mean: Tensor) -> Tensor:
        """Residuals in units of their spread, (B, H, W), from standard normals and predicted logarithms, the same."""
        place = (filtered(noise, self.noise).clamp(-_ENDS, _ENDS) + _ENDS) * ((_QUANTILES - 1) / (2 * _ENDS))
        first = place.long().clamp(max=_QUANTILES - 2)
        group = torch.bucketize(mean.detach().contiguous(), self.centres[1:-1].contiguous())
        step = (self.centres[group + 1] - self.centres[group]).clamp(min=1e-6)
        share = ((mean - self.centres[group]) / step).clamp(0, 1)
        below, above = (
            torch.lerp(self.quantiles[some, first], self.quantiles[some, first + 1], place - first)
            for some in (group, group + 1)
        )
        return torch.lerp(below, above, share)

    def density(self, logs: Tensor, x: Tensor) -> Tensor:
        """Densities of logarithms, (B, H, W) both, that go with standardised low maps (B, h, w)."""
        place = (_contrast(x, self.mean, self.width)[:, None] - self.contrasts[:-1]) / self.contrasts.diff()
        share = place.clamp(0, 1)  # of the way from each class to the next
        table = self.filter[0] + share @ self.filter.diff(dim=0)
        shift = self.shift[0] + share @ self.shift.diff()
        return (torch.exp(filtered(logs, table) + shift[:, None, None]) - _KNEE).clamp(min=0)

    def fit(self, low: Tensor, high: Tensor, scaled: Tensor, seed: int) -> None:
        """Fit all to pairs.

        Args:
            low: (N, h, w), 1 + delta.
            high: (N, H, W), 1 + delta.
            scaled: (N, D).
            seed: Random seed.
        """
        with torch.no_grad():
            logs = torch.log(low + _KNEE)
            self.mean.copy_(logs.mean())
            self.width.copy_(logs.std().clamp(min=1e-3))
        stream = torch.Generator().manual_seed(seed)
        steps, batch = min(_FIT, 8 * len(low)), min(_BATCH, len(low))
        parameters = list(self.parameters())
        optimiser = torch.optim.Adam(parameters, lr=_RATE, betas=(0.9, 0.98))
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = _RATE * min(1.0, 2 * (1 - step / steps))
            rows = torch.randint(len(low), (batch,), generator=stream)
            x, logs = _moved([self.standard(low[rows]), torch.log(high[rows] + _KNEE)], stream)
            mean, spread, _ = self.predicted(x, scaled[rows])
            loss = (0.5 * ((logs - mean) * torch.exp(-spread)).square() + spread).mean()  # minus the log likelihood
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        self._fit_residuals(low, high, scaled)
        self._calibrate(low, high, scaled, stream)

    @torch.no_grad()
    def _fit_residuals(self, low: Tensor, high: Tensor, scaled: Tensor) -> None:
        """The distribution of residuals, and the spectrum of the Gaussian field behind them."""
        rows = _spread_rows(len(low))
        mean, spread = self._predictions(low[rows], scaled[rows])
        residual = (torch.log(high[rows] + _KNEE) - mean) * torch.exp(-spread)
        normal = torch.special.ndtr(torch.linspace(-_ENDS, _ENDS, _QUANTILES, dtype=torch.float64))
        values, order = residual.flatten().double(), mean.flatten().argsort()
        count, last = len(values), len(_GROUPS)
        inner = (min(round(share * count), count - 2 * (last - i)) for i, share in enumerate(_GROUPS))
        edges = [0, *inner, count]  # at least two pixels in each
        gaussian = torch.empty_like(values)  # each residual's own normal, by its rank in its group
        for number, (start, stop) in enumerate(pairwise(edges)):
            group = order[start:stop]
            ordered, rank = values[group].sort()
            places = normal * (len(group) - 1)
            first = places.long().clamp(max=len(group) - 2)
            self.quantiles[number] = torch.lerp(ordered[first], ordered[first + 1], places - first).float()
            self.centres[number] = mean.flatten()[group].mean()
            gaussian[group[rank]] = torch.special.ndtri((torch.arange(len(group)).double() + 0.5) / len(group))
        self.noise.copy_(power_table(gaussian.float().view_as(residual)).clamp(min=0).sqrt())
        unit = filtered(torch.randn(64, *high.shape[1:], generator=torch.Generator().manual_seed(0)), self.noise)
        self.noise.div_(unit.std())

    @torch.no_grad()
    def _calibrate(self, low: Tensor, high: Tensor, scaled: Tensor, stream: torch.Generator) -> None:
        """Filter and shift that give generated densities the mean and power of the simulated ones."""
        rows = _spread_rows(len(low))
        mean, spread = self._predictions(low[rows], scaled[rows])
        noise = torch.randn(mean.shape, generator=stream)
        logs = mean + torch.exp(spread) * self.residual(noise, mean)
        # Each map counts in proportion to what its low map lets expect: else a few bright ones would decide alone.
        x = self.standard(low[rows])
        contrast = _contrast(x, self.mean, self.width)
        weight = torch.exp(-contrast)[:, None, None]
        wanted = weight * high[rows]
        classes = [part for part in contrast.argsort().tensor_split(_CLASSES) if len(part)]
        middles = torch.stack([contrast[part].mean() for part in classes])
        steps = torch.arange(_CLASSES) * 1e-3  # where there are few maps, or all are alike
        self.contrasts.copy_(middles[torch.arange(_CLASSES).clamp(max=len(middles) - 1)] + steps)
        for _ in range(_ROUNDS):
            made = weight * self.density(logs, x)
            for number, part in enumerate(classes):
                ratio = power_table(wanted[part]) / power_table(made[part]).clamp(min=1e-12)
                # Less than a square root: shells act on each other.
                self.filter[number].mul_(ratio.clamp(0.25, 4.0) ** 0.35)
            made = weight * self.density(logs, x)
            for number, part in enumerate(classes):
                self.shift[number].add_(torch.log(wanted[part].mean() / made[part].mean()))


def _contrast(x: Tensor, mean: Tensor, width: Tensor) -> Tensor:
    """Logarithm of the rms density (B,) of standardised low maps (B, h, w)."""
    return torch.log((torch.exp(x * width + mean) - _KNEE).square().mean((1, 2))) / 2


def filtered(maps: Tensor, table: Tensor) -> Tensor:
    """Maps (B, H, W) whose modes are multiplied by a table over |k|, (K,) or (B, K); their means are left alone."""
    first, share = _places(table.shape[-1], *maps.shape[1:])
    factor = torch.lerp(table[..., first], table[..., first + 1], share.to(table))
    factor[..., 0, 0] = 1.0
    found: Tensor = torch.fft.irfft2(torch.fft.rfft2(maps) * factor, s=maps.shape[1:])
    return found


def power_table(maps: Tensor) -> Tensor:
    """Mean power of maps (N, H, W) at the nodes of a table over |k|, (K,): 1 for white noise of unit variance."""
    first, share = (part.flatten().to(maps.device) for part in _places(_NODES, *maps.shape[1:]))
    modes = torch.stack([torch.fft.rfft2(some).abs().square().sum(0).double() for some in maps.split(64)]).sum(0)
    _, weight = shells(*maps.shape[1:])
    weight = weight.flatten().double().clone()
    weight[0] = 0.0  # the mean is no scatter
    power = modes.flatten() / (len(maps) * math.prod(maps.shape[1:]))
    sums = torch.zeros(2, _NODES, dtype=torch.float64)
    for nodes, part in ((first, 1 - share.double()), (first + 1, share.double())):
        sums[0].index_add_(0, nodes, part * weight * power)
        sums[1].index_add_(0, nodes, part * weight)
    known = sums[1].numpy() > 0  # small maps have no modes near some nodes
    found = np.interp(np.arange(_NODES), np.flatnonzero(known), (sums[0] / sums[1]).numpy()[known])
    return torch.from_numpy(found).to(maps.dtype)


def _places(nodes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the modes of ``rfft2`` lie in a table over |k|: node before, and share of the way to the next."""
    k = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)) * ((nodes - 1) * math.sqrt(2))
    first = k.long().clamp(max=nodes - 2)
    return first, k - first


def _moved(maps: Sequence[Tensor], stream: torch.Generator) -> list[Tensor]:
    """A batch of pairs, all turned or mirrored alike."""
    flips = [axis for axis in (1, 2) if torch.rand((), generator=stream) < 0.5]
    turn = torch.rand((), generator=stream) < 0.5
    found = [part.flip(flips) if flips else part for part in maps]
    return [part.transpose(1, 2) if turn and part.shape[1] == part.shape[2] else part for part in found]


def _spread_rows(count: int) -> Tensor:
    """Rows spread over all of them, at most as many as the calibration needs."""
    return torch.linspace(0, count - 1, min(count, _CALIBRATED), dtype=torch.float64).round().long()


class Translator(MapGenerator):
    """Density maps of high resolution from those of low resolution, and noise.

    The start is fitted by its likelihood (:class:`Start`) and not trained: it stays near the truth, as the content loss
    of pix2pix would keep it. Training adds to its logarithms what convolutions of what it knows and of noise make.

    Args:
        family: A map family of pairs.
        conditions: Names of the conditions, besides the map of low resolution.
        channels: Widths of the convolutions of the start.
        hidden: Widths of those that training adds.

    Raises:
        ConfigError: If the family has no pairs.

    Source: Isola et al. 2017, arXiv:1611.07004; Gulrajani et al. 2017, arXiv:1704.00028.
    """

    transform: Start

    def __init__(
        self,
        family: Family,
        conditions: Sequence[str],
        channels: Sequence[int] = (16, 16, 16, 16),
        hidden: Sequence[int] = (16, 16),
    ) -> None:
        super().__init__(family, conditions)
        self.low, self.factor = family.low, family.factor  # or it says that there are none
        self.columns = scaled_size(family, self.conditions)
        self.scaled_size = self.columns + self.low.voxels
        self.latent_size = family.voxels
        self.transform = Start(self.columns, self.factor, channels)
        widths = [channels[-1] + 2 * self.factor**2, *hidden]
        self.added = nn.ModuleList(_circular(a, b) for a, b in pairwise(widths))
        self.last = _circular(widths[-1], self.factor**2, zero=True)

    def scaled(self, conditions: Tensor) -> Tensor:
        """Scaled conditions, then the pixels of standardised low maps, (B, D), of inputs in physical units."""
        columns, low = self._apart(conditions)
        return torch.cat([scale_conditions(self.family, self.conditions, columns), self.transform.standard(low)], 1)

    def _apart(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (B, C) and pixels (B, h w)."""
        count = len(self.conditions)
        return inputs[:, :count], inputs[:, count:]

    def grids(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled conditions (B, D') and standardised low maps (B, h, w) of :meth:`scaled`."""
        return scaled[:, : self.columns], scaled[:, self.columns :].unflatten(1, self.low.sample_shape)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and inputs (B, C + h w) in their units."""
        scaled, x = self.grids(self.scaled(conditions))
        noise, start = latent.unflatten(1, self.family.sample_shape), self.transform
        mean, spread, known = start.predicted(x, scaled)
        drawn = torch.exp(spread) * start.residual(noise, mean)
        grid = torch.cat([known, *(pixel_unshuffle(part[:, None], self.factor) for part in (drawn, noise))], 1)
        for i, level in enumerate(self.added):
            made = leaky_relu(level(grid), SLOPE)
            grid = made + grid if i and made.shape == grid.shape else made
        return start.density(mean + drawn + pixel_shuffle(self.last(grid), self.factor)[:, 0], x)

    def fit(self, samples: Samples, seed: int) -> None:
        """Fit the start to pairs."""
        columns, low = self._apart(torch.from_numpy(inputs_of(samples, self.conditions, self.family)))
        scaled = scale_conditions(self.family, self.conditions, columns)
        high = torch.from_numpy(samples.values)
        self.transform.fit(low.unflatten(1, self.low.sample_shape), high, scaled, seed)

    def folded(self) -> Inference:
        """A few maps at a time: all channels of a large one take much memory."""
        return OnArrays(self, max(1, _CACHED // self.family.voxels))

    def resized(self, size: int) -> Translator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights.

        Raises:
            ConfigError: If the size is no multiple of a coarse pixel, or of fewer than four.
        """
        if size % self.factor or size < 4 * self.factor:
            expected = f"a multiple of {self.factor}, at least {4 * self.factor}"
            raise ConfigError("the map size does not fit", where="`size`", expected=expected, found=size)
        return self.shaped((size, size))

    def shaped(self, pixels: tuple[int, int]) -> Translator:
        """The same for maps of any shape (H, W), both sides multiples of a coarse pixel."""
        other, low = copy.copy(self), tuple(side // self.factor for side in pixels)
        box = self.family.box_size * pixels[0] / self.family.sample_shape[0]
        changes = {"pixels": pixels, "low_pixels": low, "box_size": box}
        other.family = Family.model_validate({**self.family.model_dump(), **changes})
        other.low, other.latent_size = other.family.low, other.family.voxels
        other.scaled_size = other.columns + other.low.voxels
        return other


class PairCritic(Critic):
    """Judges whether a map goes with its map of low resolution: by patches of both, and by their spectra.

    What it sees of spectra are the logarithms of the power, of ln density and of density, and how each band of ln
    density correlates with the interpolated low map.

    Args:
        generator: Makes the maps.
        channels: Of the strided convolutions, from the largest grid down.

    Source: Isola et al. 2017, arXiv:1611.07004 (a critic of pairs, patch by patch).
    """

    level: Tensor
    scatter: Tensor

    def __init__(self, generator: Translator, channels: Sequence[int] = (24, 32)) -> None:
        super().__init__()
        self.family, self.grids, self.start = generator.family, generator.grids, [generator.transform]
        count, factor = generator.columns, generator.factor
        widths = [factor**2 + 1 + count, *channels]
        self.levels = nn.ModuleList(_circular(a, b, stride=1 + (i > 0)) for i, (a, b) in enumerate(pairwise(widths)))
        bands = log_bands(*self.family.sample_shape, torch.device("cpu"))[1]
        self.register_buffer("level", torch.zeros(4 * bands))
        self.register_buffer("scatter", torch.ones(4 * bands))
        self.score = mlp([2 * channels[-1] + 4 * bands + count, 64, 1], slope=0.2)

    @torch.no_grad()
    def fit(self, samples: Samples, conditions: Sequence[str]) -> None:  # noqa: ARG002 - one call shape for all critics
        """Standardise the spectra on training samples."""
        some = samples.select(_spread_rows(len(samples)).numpy())
        low = torch.from_numpy(some.extras["low"])
        logs = torch.log(torch.from_numpy(some.values) + _KNEE)
        spectra = self._spectra(logs, self.start[0].standard(low))
        self.level.copy_(spectra.mean(0))
        self.scatter.copy_(spectra.std(0).nan_to_num(1.0).clamp(min=1e-2))

    def view(self, maps: Tensor, conditions: Tensor) -> Tensor:  # noqa: ARG002 - one call shape for all critics
        """Views (B, H, W), dimensionless, of maps (B, H, W), 1 + delta."""
        start = self.start[0]
        return (torch.log(maps + _KNEE) - start.mean) / (start.width * _VIEW)

    def forward(self, views: Tensor, scaled: Tensor) -> Tensor:
        """Values (B,) of views (B, H, W) with scaled conditions and low maps (B, D)."""
        field, (columns, x), start = views * _VIEW, self.grids(scaled), self.start[0]
        spectra = (self._spectra(field * start.width + start.mean, x) - self.level) / self.scatter
        planes = columns[:, :, None, None].expand(-1, -1, *x.shape[1:])
        grid = torch.cat([pixel_unshuffle(field[:, None], self.family.factor), x[:, None], planes], 1)
        for level in self.levels:
            grid = leaky_relu(level(grid), 0.2)
        pooled = [grid.mean((2, 3)), grid.square().mean((2, 3)).add(1e-6).sqrt()]
        return self.score(torch.cat([*pooled, spectra, columns], 1))[:, 0]  # type: ignore[no-any-return]

    def _spectra(self, logs: Tensor, x: Tensor) -> Tensor:
        """Of ln density (B, H, W) beside standardised low maps (B, h, w): (B, 4 bands)."""
        band, bands = log_bands(*self.family.sample_shape, logs.device)
        other, start = upsampled(x, self.family.factor) * self.start[0].width, self.start[0]
        standard = logs - start.mean

        def summed(power: Tensor) -> Tensor:
            return power.new_zeros(len(power), bands).index_add(1, band, power)

        own, low, both = (summed(shell_power(part)) for part in (standard, other, standard + other))
        cross = (both - own - low) / 2 / ((own + 1e-6) * (low + 1e-6)).sqrt()
        density = summed(shell_power(logs.exp() - 1))
        return torch.cat([(own + 1e-6).log(), (low + 1e-6).log(), (density + 1e-6).log(), cross], 1)
