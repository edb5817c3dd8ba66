"""Maps as projected training sees them: a few dozen summary statistics of each, differentiable."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..refinement import whitening
from .distributions import ridge
from .spectra import log_bands, shell_power, shells

_KNEE = 0.02  # added to the density before its logarithm
_TRIANGLES = 6  # bands of wave numbers whose skewness is a view
_HEIGHTS = (0.2, 0.5, 0.85, 0.97, 0.995)  # quantiles of pixels above which peaks are counted, besides all
_LEVELS = (0.05, 0.2, 0.5, 0.8, 0.93, 0.98, 0.997)  # at which Minkowski functionals are taken
_SHARP, _EDGE = 0.03, 0.2  # in ln density: what soft comparisons of neighbours, and with thresholds, resolve
_ROWS = 64  # maps at a time
_MANY = 2000  # maps that decide quantiles
_FARTHEST, _MOST = 6.0, 4.0  # standard deviations of a statistic, and of a view
_LARGEST = 3.0  # logarithm of a power spectrum over its usual value
_NEVER = 1e9  # spread of a view that never changes: makes it 0
_LEAST = 1e-5  # spread of a statistic, below which it is 0


class MapViews(nn.Module):
    """Views of maps, standardised given their conditions.

    Of density and of its logarithm: the mean, power spectra in bands of wave numbers (logarithms), and the skewness of
    the field in such bands, which is the bispectrum of equilateral triangles; of the logarithm also the skewness
    against the largest scales (squeezed triangles). Of the logarithm: soft numbers of peaks by height, and soft
    Minkowski functionals (area, boundary, Euler number) at thresholds.

    Args:
        height: Of the maps, in pixels.
        width: The same.
        terms: Number of features of the conditions (F).
    """

    heights: Tensor  # in ln density
    levels: Tensor
    mean: Tensor  # (F, D) of the statistics, linear in features of the conditions
    log_spread: Tensor  # (F, D)
    scale: Tensor  # (D,)
    whitening: Tensor  # (D, D)
    masks: Tensor  # (1 + triangles, H, W // 2 + 1) modes of the largest scales, and of bands
    kept: Tensor  # (D,) those of the density's mean and power spectrum

    def __init__(self, height: int, width: int, terms: int) -> None:
        super().__init__()
        number, self.bands = log_bands(height, width, torch.device("cpu"))
        triangles = torch.arange(1, self.bands)[:: max(1, (self.bands - 1) // _TRIANGLES)][:_TRIANGLES]
        self.size = 2 * self.bands + 3 * len(triangles) + 1 + len(_HEIGHTS) + 3 * len(_LEVELS)
        shapes: dict[str, tuple[int, ...]] = {
            "heights": (len(_HEIGHTS),),
            "levels": (len(_LEVELS),),
            "mean": (terms, self.size),
            "log_spread": (terms, self.size),
            "scale": (self.size,),
            "whitening": (self.size, self.size),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        band = number[shells(height, width)[0]]
        self.register_buffer("kept", torch.arange(self.size) < self.bands, persistent=False)
        masks = torch.stack([band == 1, *(band == chosen for chosen in triangles.tolist())]).float()
        self.register_buffer("masks", masks, persistent=False)

    @torch.no_grad()
    def fit(self, maps: Tensor, terms: Tensor) -> None:
        """Standardise by training maps (N, H, W), 1 + delta, with features (N, F) of their conditions."""
        logs = torch.log(maps[:: max(1, len(maps) // _MANY)] + _KNEE).flatten()
        for buffer, quantiles in ((self.heights, _HEIGHTS), (self.levels, _LEVELS)):
            places = (torch.tensor(quantiles) * (len(logs) - 1)).long()
            buffer.copy_(logs.sort().values[places])
        raw = self._measured(maps)
        wide = terms.double()
        gram = wide.T @ wide / len(wide) + torch.diag(ridge(wide.shape[1]))

        def regression(target: Tensor) -> Tensor:
            found: Tensor = torch.linalg.solve(gram, wide.T @ target.double() / len(wide))
            return found.float()

        self.mean.copy_(regression(raw))
        rest = raw - terms @ self.mean
        self.log_spread.copy_(regression(torch.log(rest.abs() + 1e-2 * rest.std(0) + 1e-6)))
        rest = rest / (terms @ self.log_spread).exp()
        self.scale.copy_(torch.where(raw.std(0) > _LEAST, rest.square().mean(0).sqrt(), _NEVER))
        self.whitening.copy_(whitening((rest / self.scale).clamp(-_FARTHEST, _FARTHEST)))

    def forward(self, maps: Tensor, terms: Tensor) -> Tensor:
        """Views (B, D) of maps (B, H, W), 1 + delta, with features (B, F) of their conditions."""
        return self.standard(self._measured(maps), terms)

    def rest(self, maps: Tensor, terms: Tensor) -> Tensor:
        """Statistics of maps, less their means, in standard deviations, (B, D): power spectra, not their logarithms."""
        return self._rest(self._measured(maps), terms)

    def _measured(self, maps: Tensor) -> Tensor:
        return torch.cat([torch.stack(self.statistics(torch.log(some + _KNEE)), 1) for some in maps.split(_ROWS)])

    def slopes(self, maps: Tensor, terms: Tensor, *, standard: bool = True) -> tuple[Tensor, Tensor]:
        """Views (B, D), or statistics in standard deviations, and how they change with the maps, (B, D, H, W).

        Statistics have little in common with each other, but every view has something of all statistics: so passes
        backwards are made from statistics, and what views are of them is taken into account afterwards.
        """
        logs = torch.log(maps.detach() + _KNEE).requires_grad_()
        raw = self.statistics(logs)
        down = torch.stack([torch.autograd.grad(part.sum(), logs, retain_graph=True)[0] for part in raw], 1)
        down = down / (maps.detach() + _KNEE)[:, None]
        whole = torch.stack(raw, 1).detach().requires_grad_()
        found = self.standard(whole, terms) if standard else self._rest(whole, terms)
        mixed = [torch.autograd.grad(part.sum(), whole, retain_graph=True)[0] for part in found.unbind(1)]
        return found.detach(), (torch.stack(mixed, 1) @ down.flatten(2)).view_as(down)

    def standard(self, statistics: Tensor, terms: Tensor) -> Tensor:
        """Views (B, D) of statistics (B, D)."""
        # Rare maps far out must not outweigh all others: a critic of bounded slope would look at little else.
        rest = self._standardised(statistics, terms).clamp(-_FARTHEST, _FARTHEST)
        return _MOST * torch.tanh(rest @ self.whitening / _MOST)

    def _rest(self, statistics: Tensor, terms: Tensor) -> Tensor:
        # The mean of a power spectrum follows its largest values, that of its logarithm does not.
        rest, spread = self._standardised(statistics, terms), (terms @ self.log_spread).exp() * self.scale
        spread = torch.where(torch.isfinite(spread), spread, 1.0)
        power = torch.expm1((rest * spread).clamp(max=_LARGEST)) / spread
        return torch.where(self.kept & (torch.arange(self.size) > 0), power, rest)

    def _standardised(self, statistics: Tensor, terms: Tensor) -> Tensor:
        return (statistics - terms @ self.mean) / ((terms @ self.log_spread).exp() * self.scale)

    def statistics(self, logs: Tensor) -> list[Tensor]:
        """Statistics of ln density (B, H, W), (B,) each, with nothing but the field in common where they need not."""
        density = logs.exp()
        return [
            *self._spectra(density),
            *self._spectra(logs),
            *self._triangles(density),
            *self._triangles(logs, squeezed=True),
            *_peaks(logs, self.heights),
            *_minkowski(logs, self.levels),
        ]

    def _spectra(self, field: Tensor) -> list[Tensor]:
        """The mean, and logarithms of the power in bands."""
        number, _ = log_bands(*field.shape[1:], field.device)
        power = shell_power(field)
        total = power.new_zeros(len(power), self.bands).index_add(1, number, power)
        return [field.mean((1, 2)), *torch.log(total[:, 1:] + 1e-9).unbind(1)]

    def _triangles(self, field: Tensor, *, squeezed: bool = False) -> list[Tensor]:
        """Skewness in bands, and how much the power in bands follows the largest scales."""
        modes, found = torch.fft.rfft2(field), list[Tensor]()
        large, *parts = (torch.fft.irfft2(modes * mask, s=field.shape[1:]) for mask in self.masks.unbind(0))
        for part in parts:
            square = part.square()
            variance = square.mean((1, 2)).clamp(min=1e-12)
            found.append(((part * square).mean((1, 2)) / variance**1.5).asinh())
            if squeezed:
                size = large.square().mean((1, 2)).clamp(min=1e-12).sqrt()
                found.append((large * square).mean((1, 2)) / (size * variance))
        return found


def _peaks(logs: Tensor, heights: Tensor) -> Iterator[Tensor]:
    """Square roots of the soft numbers of pixels above their neighbours, of all heights and above some."""
    beside = torch.maximum(logs.roll(1, 2), logs.roll(-1, 2))
    rows = torch.maximum(beside, logs)
    around = torch.maximum(torch.maximum(rows.roll(1, 1), rows.roll(-1, 1)), beside)
    peak = torch.sigmoid((logs - around) / _SHARP - 1)
    for above in (peak, *(peak * torch.sigmoid((logs - height) / _EDGE) for height in heights)):
        yield above.sum((1, 2)).add(0.1).sqrt()


def _minkowski(logs: Tensor, levels: Tensor) -> Iterator[Tensor]:
    """Of what is above thresholds, softly: area, boundary and Euler number, over the area of the map."""
    for level in levels:
        inside = torch.sigmoid((logs - level) / _EDGE)
        across, down = inside * inside.roll(-1, 2), inside * inside.roll(-1, 1)
        area, both = inside.mean((1, 2)), across.mean((1, 2)) + down.mean((1, 2))
        yield area
        yield 2 * area - both  # an edge of the boundary has one of its two pixels inside
        yield area - both + (across * across.roll(-1, 1)).mean((1, 2))  # vertices less edges plus faces
