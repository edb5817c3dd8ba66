"""What batches of maps are judged by where no critic learns: summary statistics of single maps, differentiable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...shards.samples import Samples
from ..contract import Summaries
from .distributions import features, ridge
from .generator import MapGenerator
from .spectra import shell_power, shells

_KNEE = 0.02  # added to the density before its logarithm
_HEIGHTS = (0.2, 0.5, 0.85, 0.97, 0.995)  # quantiles of pixels above which peaks are counted, besides all
_LEVELS = (0.02, 0.05, 0.2, 0.4, 0.6, 0.8, 0.93, 0.98, 0.997)  # at which Minkowski functionals are taken
_SMOOTHED = ((1.2, (0.2, 0.6, 0.9, 0.98), (0.1, 0.4, 0.7, 0.9, 0.98)), (2.5, (), (0.1, 0.5, 0.9)))  # pixels; the same
_SHARP, _EDGE = 0.03, 0.08  # in ln density: what soft comparisons of neighbours, and with thresholds, resolve
_ROWS = 64  # maps at a time
_MOST = 8192  # maps that the statistics are standardised by
_LOOKED_AT = 1500  # maps that decide quantiles
_TINY = 1e-8
_FLOOR = 0.01  # added to the variances of uncorrelated statistics: what is smaller does not count
_FARTHEST, _CAP, _PAIRED, _CHANGED = 12.0, 20.0, 5.0, 3.0  # where statistics, their means, products, changes level off
_TOLD = 2.0  # how far maps of the ends of a condition's range are from each other, in statistics
_WHITE, _ENERGY, _KEPT, _PRODUCTS = 0.3, 1.0, 100.0, 0.5  # weights of what is added to the distance of the means
_STEP = 0.12  # from edge to edge of bands of wave numbers, where that is more than a shell
_STEEP = 0.3  # of a usual power spectrum, at least


class MapSummaries(Summaries):
    """How far generated maps are from reference ones, by their statistics given the conditions.

    Of density and of its logarithm: mean, and power spectra in narrow bands. Of the logarithm, plain and smoothed: soft
    numbers of peaks by height, Minkowski functionals (area, boundary, Euler number) at thresholds. In octaves of wave
    numbers: how sparse and how skewed the field is, and how the amplitude in one octave follows the field and the
    amplitude in another. Of the curvature: how long and how thin ridges are.

    Every statistic is standardised by the mean and spread that reference maps of the same conditions have. The distance
    is a sum of

    - squared means of what generated maps have, as functions of the conditions, statistic by statistic and in
      uncorrelated combinations: a critic that is linear in the statistics, at its best (McGAN, Mroueh et al. 2017,
      arXiv:1702.08398);
    - the same of products of power spectra: their covariance;
    - the energy distance of uncorrelated statistics and conditions (Cramer GAN, Bellemare et al. 2017,
      arXiv:1705.10743; Szekely & Rizzo 2013);
    - squared changes of what the fit has right already: mean power spectra of the density, its mean, and the
      distribution of pixels, against those of the fitted start of the same noise.

    Squares of means leave out the products of a map with itself, so chance adds nothing on average.

    Args:
        generator: Makes the maps.
    """

    quantiles: Tensor  # all thresholds, in ln density
    mean: Tensor  # (F, D) of the statistics, linear in features of the conditions
    log_spread: Tensor  # (F, D)
    scale: Tensor  # (D,)
    axes: Tensor  # (D, D) to uncorrelated ones
    usual: Tensor  # (F, P) mean power of the density in bands
    products: Tensor  # (S, S) of standardised power spectra
    parts: Tensor  # (O, H, W // 2 + 1) what octaves have of every mode
    smooth: Tensor  # (2, H, W // 2 + 1) what smoothing leaves
    bending: Tensor  # (3, H, W // 2 + 1) second derivatives

    def __init__(self, generator: MapGenerator) -> None:
        super().__init__()
        height, width = generator.family.sample_shape
        side, (number, _) = min(height, width), shells(height, width)
        last = int(number.max())
        self.bands = _bands(last)
        octaves = [side * 0.375 / 2**j for j in range(int(math.log2(side * 0.375 / 1.5)) + 1)][::-1]
        self.octaves = len(octaves)
        counts = [len(_HEIGHTS), len(_LEVELS), *(len(part) for _, *parts in _SMOOTHED for part in parts)]
        self.thresholds = counts
        pairs = self.octaves * (self.octaves - 1)
        first = 1 + len(self.bands)  # the mean and the power in bands: of the density, then of its logarithm
        spectra = 2 * first
        shapes = 1 + counts[0] + 3 * counts[1] + (1 + counts[2]) + 3 * counts[3] + 3 * counts[5]
        self.size = spectra + shapes + 3 * self.octaves + pairs + 7 * len(_SMOOTHED)
        terms = features(torch.zeros(1, generator.scaled_size)).shape[1]
        self.scaled_size = generator.scaled_size

        # Where in the list the power spectra are, and what the fit has right already.
        powers = [*range(1, first), *range(first + 1, spectra)]
        self.paired = [at for at, (_, end) in zip(powers, 2 * self.bands, strict=True) if end <= side // 2 + 1]
        areas = spectra + 1 + counts[0]
        self.kept = ([*range(1, first)], [0, *range(areas, areas + 3 * counts[1], 3)])
        for name, shape in {
            "quantiles": (sum(counts),),
            "mean": (terms, self.size),
            "log_spread": (terms, self.size),
            "scale": (self.size,),
            "axes": (self.size, self.size),
            "usual": (terms, len(self.kept[0])),
            "products": (len(self.paired), len(self.paired)),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

        rows, columns = (torch.fft.fftfreq(height) * side)[:, None], (torch.fft.rfftfreq(width) * side)[None]
        wave = torch.hypot(rows, columns)
        away = (wave.clamp(min=1e-3).log2() - torch.tensor(octaves).log2()[:, None, None]).abs()
        parts = torch.where(away < 1, torch.cos(away * math.pi / 2), 0.0)
        parts[-1] = torch.where(wave > octaves[-1], 1.0, parts[-1])
        parts[:, 0, 0] = 0
        angle = 2 * math.pi / side
        smooth = torch.stack([torch.exp(-0.5 * (wave * angle * pixels) ** 2) for pixels, *_ in _SMOOTHED])
        second_order = torch.stack(
            [(a * b).expand_as(wave) for a, b in ((rows, rows), (columns, columns), (rows, columns))]
        )
        for name, tensor in (("parts", parts), ("smooth", smooth), ("bending", -second_order * angle**2)):
            self.register_buffer(name, tensor, persistent=False)

    # ------------------------------------------------------------------------------------------------ distance

    @torch.no_grad()
    def fit(self, samples: Samples, scaled: Tensor) -> None:
        """Standardise by reference maps, 1 + delta, with scaled conditions (N, C)."""
        rows = torch.linspace(0, len(samples) - 1, min(len(samples), _MOST)).long()
        maps, terms = torch.from_numpy(samples.values)[rows].to(scaled), features(scaled[rows])
        self._fit_thresholds(maps[:: max(1, len(maps) // _LOOKED_AT)])
        raw = self.measured(maps)
        wide = terms.double()
        gram = wide.T @ wide / len(wide) + torch.diag(ridge(wide.shape[1]).to(wide))

        def regression(target: Tensor) -> Tensor:
            found: Tensor = torch.linalg.solve(gram, wide.T @ target.double() / len(wide))
            return found.to(target)

        self.mean.copy_(regression(raw))
        rest = raw - terms @ self.mean
        self.log_spread.copy_(regression(torch.log(rest.abs() + 1e-2 * rest.std(0) + 1e-6)))
        rest = rest / (terms @ self.log_spread).exp()
        spread = rest.square().mean(0).sqrt()
        self.scale.copy_(torch.where(spread > 0, spread, torch.inf))  # what never changes says nothing
        rest = rest / self.scale
        variances, axes = torch.linalg.eigh(torch.cov(rest.clamp(-_FARTHEST, _FARTHEST).T.double()))
        self.axes.copy_(axes / (variances.clamp(min=0) + _FLOOR).sqrt())
        self.usual.copy_(regression(raw[:, self.kept[0]].exp()))
        powers = _levelled(rest[:, self.paired], _PAIRED)
        self.products.copy_(powers.T @ powers / len(powers))

    def forward(self, generated: Tensor, fitted: Tensor, reference: Tensor, scaled: Tensor) -> dict[str, Tensor]:
        """Parts of the distance, scalars whose sum is it, of maps (B, H, W), 1 + delta.

        Args:
            generated: As generated; with gradients.
            fitted: As the fitted start has them, of the same noise.
            reference: Others.
            scaled: Conditions (B, C) of all three, scaled.
        """
        terms = features(scaled)
        raw = self.measured(generated)
        with torch.no_grad():
            start, other = self.measured(fitted), self._standard(self.measured(reference), terms)
        mine = self._standard(raw, terms)
        white, whole = self._white(mine), features(scaled)[:, : terms.shape[1] - self.scaled_size]  # quadratic
        powers = _levelled(mine[:, self.paired], _PAIRED)
        first, second = torch.triu_indices(*self.products.shape, device=powers.device)
        products = powers[:, first] * powers[:, second] - self.products[first, second]
        linear = whole[:, : 1 + self.scaled_size]
        return {
            "means": _square(_levelled(mine, _CAP), linear) + _WHITE * _square(_levelled(white, _CAP), linear),
            "products": _PRODUCTS * _square(products, whole[:, :1]),
            "energy": _ENERGY * _energy_distance(white, self._white(other), _TOLD * scaled),
            "kept": _KEPT * _square(self._changed(raw, start, terms), whole),
        }

    def _standard(self, raw: Tensor, terms: Tensor) -> Tensor:
        return (raw - terms @ self.mean) / ((terms @ self.log_spread).exp() * self.scale)

    def _white(self, standard: Tensor) -> Tensor:
        return standard.clamp(-_FARTHEST, _FARTHEST) @ self.axes

    def _changed(self, raw: Tensor, start: Tensor, terms: Tensor) -> Tensor:
        """What the fit has right, less what it was: relative power spectra, the mean, areas."""
        powers, others = self.kept
        usual = terms @ self.usual
        usual = torch.maximum(usual, _STEEP * usual.mean(0))
        changes = [(raw[:, powers].exp() - start[:, powers].exp()) / usual, 2 * (raw[:, others] - start[:, others])]
        return _levelled(torch.cat(changes, 1), _CHANGED)

    # ------------------------------------------------------------------------------------------------ statistics

    def measured(self, maps: Tensor) -> Tensor:
        """Statistics (B, D) of maps (B, H, W), 1 + delta."""
        return torch.cat(
            [torch.stack(list(self._statistics(torch.log(some + _KNEE))), 1) for some in maps.split(_ROWS)]
        )

    def _statistics(self, logs: Tensor) -> Iterator[Tensor]:
        density, shape = logs.exp(), logs.shape[1:]
        for field in (density, logs):
            yield field.mean((1, 2))
            power = shell_power(field)
            for low, high in self.bands:
                yield torch.log(power[:, low:high].mean(1) + 1e-9)

        heights, levels, *smoothed = self.quantiles.split(self.thresholds)
        modes = torch.fft.rfft2(logs)
        fields = torch.fft.irfft2(modes[:, None] * self.smooth, s=shape).unbind(1)
        yield from _peaks(logs, heights)
        yield from _minkowski(logs, levels)
        for field, above, at in zip(fields, smoothed[::2], smoothed[1::2], strict=True):
            if len(above):
                yield from _peaks(field, above)
            yield from _minkowski(field, at)

        yield from self._octaves(modes, shape)
        dense = torch.fft.irfft2(torch.fft.rfft2(density)[:, None] * self.parts, s=shape)
        yield from _skewness(dense)
        for smooth in self.smooth:
            yield from _ridges(torch.fft.irfft2(modes[:, None] * (self.bending * smooth), s=shape))

    def _octaves(self, modes: Tensor, shape: torch.Size) -> Iterator[Tensor]:
        """How sparse and how skewed octaves are; how their amplitudes follow larger scales, and each other."""
        parts = torch.fft.irfft2(modes[:, None] * self.parts, s=shape)
        sizes = parts.square().mean((2, 3)).clamp(min=_TINY).sqrt()
        amplitudes = (parts.square() + 1e-6).sqrt()
        yield from (amplitudes.mean((2, 3)) / sizes).unbind(1)
        yield from _skewness(parts)
        varying = amplitudes - amplitudes.mean((2, 3), keepdim=True)
        spreads = varying.square().mean((2, 3)).clamp(min=_TINY).sqrt()
        for i in range(self.octaves):
            for j in range(i + 1, self.octaves):
                yield (varying[:, i] * varying[:, j]).mean((1, 2)) / (spreads[:, i] * spreads[:, j])
                yield (parts[:, i] * varying[:, j]).mean((1, 2)) / (sizes[:, i] * spreads[:, j])

    def _fit_thresholds(self, maps: Tensor) -> None:
        logs = torch.log(maps + _KNEE)
        smoothed = torch.fft.irfft2(torch.fft.rfft2(logs)[:, None] * self.smooth, s=logs.shape[1:]).unbind(1)
        wanted: list[tuple[Tensor, Sequence[float]]] = [(logs, _HEIGHTS), (logs, _LEVELS)]
        wanted += [(field, part) for field, (_, *parts) in zip(smoothed, _SMOOTHED, strict=True) for part in parts]
        found = []
        for field, quantiles in wanted:
            values = field.flatten().sort().values
            found.append(values[(torch.tensor(quantiles, device=values.device) * (len(values) - 1)).long()])
        self.quantiles.copy_(torch.cat(found))


def _bands(last: int) -> list[tuple[int, int]]:
    """Bands of shells 1 to ``last``, first and one past the last shell: one shell each at first, then in steps."""
    edges = [1]
    while edges[-1] <= last:
        edges.append(min(edges[-1] + max(1, round(_STEP * edges[-1])), last + 1))
    return list(pairwise(edges))


def _levelled(values: Tensor, most: float) -> Tensor:
    """Values that level off at +-most: single maps far out must not outweigh all others."""
    return most * torch.tanh(values / most)


def _square(values: Tensor, terms: Tensor) -> Tensor:
    """Mean over D of squared means of values (B, D) times terms (B, F), without products of a row with itself.

    So its expectation is the square of the expectation (a U-statistic).
    """
    products = (values[:, :, None] * terms[:, None]).flatten(1)
    count = len(products)
    pairs = products.sum(0).square() - products.square().sum(0)
    return pairs.sum() / (max(1, count * (count - 1)) * values.shape[1])


def _energy_distance(generated: Tensor, reference: Tensor, conditions: Tensor) -> Tensor:
    """Energy distance of statistics (B, D) and conditions (B, C), less what depends on the reference alone."""
    mine, other = torch.cat([generated, conditions], 1), torch.cat([reference, conditions], 1)
    count = len(mine)
    apart = 1 - torch.eye(count, device=mine.device)  # maps of one row share their conditions: left out
    across, within = ((torch.cdist(mine, side).square() + 1e-3).sqrt() * apart for side in (other, mine))
    return (2 * across.sum() - within.sum()) / max(1, count * (count - 1))


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


def _skewness(parts: Tensor) -> Iterator[Tensor]:
    """Skewness of fields (B, K, H, W), which is the bispectrum of triangles of like sides: (B,), K times."""
    variance = parts.square().mean((2, 3)).clamp(min=_TINY)
    yield from ((parts**3).mean((2, 3)) / variance**1.5).asinh().unbind(1)


def _ridges(second: Tensor) -> Iterator[Tensor]:
    """Of second derivatives (B, 3, H, W), down, across, both: how strong and how uneven the curvatures are.

    The larger and the smaller one, in units of the rms of their mean: a ridge is bent across, and not along.
    """
    down, across, both = second.unbind(1)
    middle = (down + across) / 2
    apart = ((down - across).square() / 4 + both.square() + _TINY).sqrt()
    size = middle.square().mean((1, 2)).clamp(min=_TINY).sqrt()
    large, small = ((middle + sign * apart) / size[:, None, None] for sign in (1, -1))
    yield torch.log(size)
    ridge_like = torch.sigmoid(-3 * (small + 1.5)) * torch.sigmoid(3 * (large + 0.5))
    for field in (
        large,
        large.square() - small.square(),
        torch.tanh(small + 1),
        torch.tanh(small + 3),
        torch.tanh(large - 0.5),
        ridge_like,
    ):
        yield field.mean((1, 2))
