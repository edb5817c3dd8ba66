"""PixelCNN: every voxel or pixel in turn, given all before it. Its likelihood is exact, and making samples is slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, leaky_relu, linear, logsigmoid, pad

from ...errors import ConfigError
from ...families import Family
from ...shards.samples import Samples
from ..conditions import energy_column
from ..contract import Inference, LikelihoodGenerator, OnArrays
from ..layers import SLOPE

_MOST = 4096  # numbers in a sample: they are made one after another
_ROWS = 128  # samples that are made together, always
_MIXED = 5  # normals that the density of a value is a mixture of
_OUTPUTS = 1 + 3 * _MIXED  # log odds of zero; weights, means and log spreads
_PLANES, _SUMS = 2, 2  # what is known of a cell; of all before it
_HIDDEN = 32  # units between conditions and what they shift
_FAINT, _FULL = 1e-4, 1.02  # shares of the whole: added before logarithms; what cannot be exceeded
_FEW = 16.0  # values at which a voxel's own statistics count as much as its layer's
_NEVER = 1e-9  # probability of a zero pixel where none was seen
_NARROW, _WIDE = -5.0, 3.0  # log spreads, in standard deviations
_LOG_TAU = math.log(2 * math.pi)


class LogTransform(nn.Module):
    """Values above zero to standardised logarithms, voxel by voxel; pixels of a map are all alike.

    Showers are divided by their incident energy, where that is a condition; what else is divided by its mean sum.

    Args:
        family: What the values are of.
        conditions: Names of the conditions.
    """

    total: Tensor  # mean sum of a sample
    most: Tensor  # the largest share of the whole that one value can be
    centre: Tensor  # (V,) of natural logarithms of shares ...
    spread: Tensor  # (V,) ... and their standard deviation

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.column, self.threshold = energy_column(family, conditions), family.threshold
        for name, start in (("total", 1.0), ("most", 1.0)):
            self.register_buffer(name, torch.tensor(start))
        self.register_buffer("centre", torch.zeros(family.voxels))
        self.register_buffer("spread", torch.ones(family.voxels))

    @torch.no_grad()
    def fit(self, values: Tensor, conditions: Tensor, parts: Sequence[slice], *, alike: bool) -> Tensor:
        """Fit to values (N, V), physical, of cells that are alike in each part or not; returns how often each is on."""
        self.total.fill_(float(values.sum(1).double().mean()))
        shares = values.double() / self.whole(conditions).double()
        self.most.fill_(2 * float(shares.max()))
        on, logs = shares > 0, shares.clamp(min=1e-300).log()
        count, lit = on.sum(0).double(), torch.zeros(values.shape[1], dtype=torch.float64)

        def mean(numbers: Tensor, part: slice, usual: float) -> Tensor:
            sums, hits = torch.where(on, numbers, 0.0)[:, part].sum(0), count[part]
            common = (sums.sum() + _FEW * usual) / (hits.sum() + _FEW)
            return common.expand(len(hits)) if alike else (sums + _FEW * common) / (hits + _FEW)

        for part in parts:
            self.centre[part] = mean(logs, part, -10.0)
            self.spread[part] = mean((logs - self.centre).square(), part, 1.0).clamp(min=1e-4).sqrt()
            hits, tries = (count[part].mean(), len(values)) if alike else (count[part] + 0.5, len(values) + 1)
            lit[part] = hits / tries
        return lit

    def whole(self, conditions: Tensor) -> Tensor:
        """What values are shares of, (B, 1), in their unit."""
        return self.total.expand(len(conditions), 1) if self.column is None else conditions[:, [self.column]]

    def forward(self, shares: Tensor, part: slice) -> Tensor:
        """Standardised logarithms (B, M) of shares (B, M) of the cells of a part; 0 where there is nothing."""
        logs = (torch.where(shares > 0, shares, 1.0).log() - self.centre[part]) / self.spread[part]
        return torch.where(shares > 0, logs, 0.0)

    def inverse(self, logs: Tensor, part: slice) -> Tensor:
        """Shares (B, M) of standardised logarithms (B, M)."""
        return torch.minimum(torch.exp(logs * self.spread[part] + self.centre[part]), self.most)


class PixelCnnGenerator(LikelihoodGenerator):
    """A gated PixelCNN of maps, or of the layers of showers one after another.

    The density of a sample is the product of those of its values, each given all before it: earlier layers, then the
    rows above and the cells to the left. A value is zero with some probability; above zero its natural logarithm is
    distributed as a mixture of normals (and reads as zero below the family's threshold). Where a value comes is what
    the network knows by masked convolutions: two stacks of them, one over rows, one along a row, have no blind spot.
    Here a mask is a shift: an input that is moved by one cell cannot hold the cell itself.

    Besides, cells know how much all before them hold, exactly, which convolutions would have to count: showers
    conserve energy. Layers know the sums of all layers before them, and the last of these, resized, as a picture.

    Samples are made one value after another, with the activations of the row above and the cell to the left kept, so
    that each costs as much as one cell in training. They are made in blocks of one size, because a choice that falls
    the other way by rounding would change everything after it.

    Args:
        family: A family of at most 4,096 voxels or pixels.
        conditions: Names of the conditions.
        channels: Of the gated blocks, one entry each.

    Raises:
        ConfigError: If a sample has too many numbers.

    Source: van den Oord et al. 2016, arXiv:1601.06759 (PixelRNN) and arXiv:1606.05328 (gates, two stacks, conditions);
    Salimans et al. 2017, arXiv:1701.05517 (mixtures); Ramachandran et al. 2017, arXiv:1704.06001 (kept activations).
    """

    transform: LogTransform

    def __init__(self, family: Family, conditions: Sequence[str], channels: Sequence[int] = (16, 16, 16, 16)) -> None:
        super().__init__(family, conditions)
        if family.voxels > _MOST:
            raise ConfigError(
                "network 'pixelcnn' makes the numbers of a sample one after another",
                where="generator.network",
                expected=f"a family of at most {_MOST} voxels or pixels",
                found=f"'{family.name}' with {family.voxels}",
                hint="take the default network, or maps of fewer pixels",
            )
        shapes: list[tuple[int, ...]] = [layer.shape for layer in family.layers] or [family.sample_shape]
        self.parts = list(family.layer_slices) or [slice(0, family.voxels)]
        self.latent_size, self.passes = 2 * family.voxels, family.voxels
        self.transform = LogTransform(family, conditions)
        self.pictures = nn.ModuleList(
            _Picture(shape, channels, self.scaled_size + i, own=bool(family.layers), first=i == 0)
            for i, shape in enumerate(shapes)
        )

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:  # noqa: ARG002 - one call shape for all generators
        """Fit to training samples how large values are, and how often each is above zero."""
        values = torch.from_numpy(samples.values).flatten(1)
        columns = torch.from_numpy(samples.conditions.array(self.conditions))
        lit = self.transform.fit(values, columns, self.parts, alike=not self.family.layers)
        for picture, part in zip(self._pictures(), self.parts, strict=True):
            odds = -torch.special.logit(lit[part].view(picture.shape), _NEVER)
            picture.start[0] = odds if self.family.layers else odds[0, 0]
        self.remarks = (f"samples are made one value after another, {self.passes} of them: that is slow",)

    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:  # noqa: ARG002 - exact
        """Minus the log likelihood, in nats a voxel or pixel; arguments as for :class:`LikelihoodGenerator`."""
        return -self.log_density(samples, conditions).mean() / self.family.voxels

    def log_density(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Log density (B,) of samples (B, ...) in physical units at conditions (B, C), in nats a sample.

        It is that of the natural logarithms of all values above zero, times the probability that the others are zero:
        models of any kind that have a likelihood in this space can be compared.
        """
        return self.log_densities(samples, conditions).sum(1)

    def log_densities(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """That of every value given all before it, (B, V)."""
        whole = self.transform.whole(conditions)
        shares, least = samples.flatten(1) / whole, self.transform.threshold / whole
        past, found = _Past(self.scaled(conditions)), []
        for picture, part in zip(self._pictures(), self.parts, strict=True):
            some = shares[:, part]
            known, sums = self._planes(some, part), _sums(some.cumsum(1) - some, past.sum)
            planes, sums = (numbers.unflatten(2, picture.shape) for numbers in (known, sums))
            density = _Density(picture(planes, sums, past))
            seen = density.log_density(known[:, 1]) - self.transform.spread[part].log()
            edge = self.transform(least.expand_as(some), part) if self.transform.threshold else None
            found.append(torch.where(some > 0, seen, density.log_of_zero(edge)))
            past = past.after(some, planes)
        return torch.cat(found, 1)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""
        choices, normals = latent.unflatten(1, (-1, 2)).unbind(2)
        uniform, whole = torch.special.ndtr(choices), self.transform.whole(conditions)
        past, made = _Past(self.scaled(conditions)), []
        for picture, part in zip(self._pictures(), self.parts, strict=True):

            def cell_of(number: int, outputs: Tensor, first: int = part.start) -> tuple[Tensor, Tensor]:
                cell = slice(first + number, first + number + 1)
                on, logs = _Density(outputs).drawn(uniform[:, cell], normals[:, cell])
                share = self.transform.inverse(logs, cell)
                share = torch.where(on & (share * whole >= self.transform.threshold), share, 0.0)
                return share, self._planes(share, cell)

            some, planes = picture.walk(cell_of, past)
            past = past.after(some, planes)
            made.append(some)
        samples: Tensor = (torch.cat(made, 1) * whole).unflatten(1, self.family.sample_shape)
        return samples

    def folded(self) -> Inference:
        """Blocks of one size, so that a sample has the same bits whatever is made with it."""
        return OnArrays(self._block, _ROWS)

    def _pictures(self) -> list[_Picture]:
        return cast("list[_Picture]", list(self.pictures))

    def _block(self, latent: Tensor, conditions: Tensor) -> Tensor:
        count = len(latent)
        rows = torch.arange(_ROWS if count else 0) % max(count, 1)
        made: Tensor = self(latent[rows], conditions[rows])
        return made[:count]

    def _planes(self, shares: Tensor, part: slice) -> Tensor:
        """What the network is given of cells of shares (B, M), (B, 2, M): whether they are on, and their logarithms."""
        return torch.stack([(shares > 0).to(shares), self.transform(shares, part)], 1)


class _Past(NamedTuple):
    """What the cells of a picture know of all before it.

    Attributes:
        known: Scaled conditions, then logarithms of the sums of earlier pictures, (B, K).
        sum: Share of the whole that all of these hold, (B, 1).
        planes: The last of them, (B, 2, H, W); none: there is none.
    """

    known: Tensor
    sum: Tensor | float = 0.0
    planes: Tensor | None = None

    def after(self, shares: Tensor, planes: Tensor) -> _Past:
        """The same with one more picture: shares (B, M), and what is known of its cells (B, 2, H, W)."""
        total = shares.sum(1, keepdim=True)
        return _Past(torch.cat([self.known, _log(total + _FAINT)], 1), self.sum + total, planes)


class _Density:
    """Densities of values: zero, or above it a mixture of normals of the standardised logarithm.

    Args:
        outputs: Of the network, (B, O, M) or (B, O, H, W).
    """

    def __init__(self, outputs: Tensor) -> None:
        odds, weights, self.means, logs = outputs.flatten(2).split([1, _MIXED, _MIXED, _MIXED], 1)
        self.zero = odds[:, 0]  # log odds, (B, M)
        self.weights = torch.log_softmax(weights, 1)  # (B, 5, M), as the others
        self.logs = logs.clamp(_NARROW, _WIDE)

    def log_density(self, values: Tensor) -> Tensor:
        """Log densities (B, M) of values above zero, given their standardised logarithms (B, M)."""
        pulls = (values[:, None] - self.means) * torch.exp(-self.logs)
        parts = self.weights - self.logs - 0.5 * (pulls.square() + _LOG_TAU)
        return logsigmoid(-self.zero) + torch.logsumexp(parts, 1)

    def log_of_zero(self, edge: Tensor | None) -> Tensor:
        """Log probabilities (B, M) of zero, or of less than a threshold of given standardised logarithms (B, M)."""
        if edge is None:
            return logsigmoid(self.zero)
        below = torch.special.ndtr((edge[:, None] - self.means) * torch.exp(-self.logs))
        below = torch.log((self.weights.exp() * below).sum(1).clamp(min=1e-30))
        return torch.logaddexp(logsigmoid(self.zero), logsigmoid(-self.zero) + below)

    def drawn(self, uniform: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Whether values are above zero, and standardised logarithms of those that are, of random numbers (B, M)."""
        shares = self.weights.exp()
        edges = torch.sigmoid(self.zero)[:, None] + torch.sigmoid(-self.zero)[:, None] * (shares.cumsum(1) - shares)
        chosen = (uniform[:, None] >= edges).sum(1, keepdim=True)  # 0: none
        means, logs = (part.gather(1, (chosen - 1).clamp(min=0))[:, 0] for part in (self.means, self.logs))
        return chosen[:, 0] > 0, means + logs.exp() * normals


class _Picture(nn.Module):
    """The densities of all cells of a layer or map, each given those before it in reading order.

    Args:
        shape: Rows and columns (H, W).
        channels: Of the gated blocks.
        known: Numbers known of the whole picture (K).
        own: Whether every cell has parameters of its own.
        first: Whether there is no picture before it.
    """

    def __init__(self, shape: tuple[int, ...], channels: Sequence[int], known: int, *, own: bool, first: bool) -> None:
        super().__init__()
        height, width = shape
        self.shape, size, places = (height, width), channels[0], shape if own else (1, 1)
        self.known = nn.Linear(known + 1, _HIDDEN, bias=False)  # one is always 1: there may be no conditions
        self.above = nn.Conv2d(_PLANES, size, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(_PLANES + _SUMS, size, 1)
        self.before = None if first else nn.Conv2d(_PLANES, 2 * size, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(2 * size, *places))
        self.blocks = nn.ModuleList(_Gated(a, b) for a, b in pairwise([size, *channels]))
        self.last = nn.Conv2d(channels[-1], _OUTPUTS, 1, bias=False)
        nn.init.zeros_(self.last.weight)
        start = torch.cat([torch.zeros(1 + _MIXED), torch.linspace(-1.5, 1.5, _MIXED), torch.full((_MIXED,), -0.4)])
        self.start = nn.Parameter(start[:, None, None].repeat(1, *places))

    def forward(self, planes: Tensor, sums: Tensor, past: _Past) -> Tensor:
        """Outputs (B, O, H, W) of all cells at once, of what is known of them (B, 2, H, W) and of sums (B, 2, H, W)."""
        below, here, shifts = self._given(past)
        rows = self.above(pad(planes, (0, 0, 1, -1))) + below  # moved down: a row is given those above it
        cells = self.left(torch.cat([pad(planes, (1, -1)), sums], 1)) + here  # moved right
        for block, shift in zip(self._gated(), shifts, strict=True):
            rows, link = block.rows(pad(rows, (0, 0, 1, 0)), shift)
            cells = block.cells(pad(cells, (1, 0)), link)
        outputs: Tensor = self.last(leaky_relu(cells, SLOPE)) + self.start
        return outputs

    def walk(self, cell_of: Callable[[int, Tensor], tuple[Tensor, Tensor]], past: _Past) -> tuple[Tensor, Tensor]:
        """The same, one cell after another, each of which is drawn before the next; keeps what that one needs.

        Args:
            cell_of: Of its number and outputs (B, O, 1): its share (B, 1), and what is known of it (B, 2, 1).
            past: What is known of all before the picture.

        Returns:
            Shares (B, H W), and what is known of cells (B, 2, H, W).
        """
        below, here, shifts = self._given(past)
        start, (height, width) = self.start.expand(-1, *self.shape), self.shape

        def nothing(columns: int) -> list[Tensor]:  # of what all blocks are given
            return [below.new_zeros(len(below), block.inputs, 1, columns) for block in self._gated()]

        row, sums, above = (
            below.new_zeros(len(below), _PLANES, 1, width),
            below.new_zeros(len(below), 1),
            nothing(width),
        )
        shares, planes = [], []
        for i in range(height):
            rows, links, cell, left = self.above(row) + below[:, :, [i]], [], torch.zeros_like(row[..., :1]), nothing(1)
            for k, (block, shift) in enumerate(zip(self._gated(), shifts, strict=True)):
                window, above[k] = torch.cat([above[k], rows], 2), rows
                rows, link = block.rows(window, shift)
                links.append(link)
            for j in range(width):
                known = torch.cat([cell, _sums(sums, past.sum)[..., None]], 1)
                cells = _convolved(self.left, known) + here[:, :, i : i + 1, j : j + 1]
                for k, block in enumerate(self._gated()):
                    window, left[k] = torch.cat([left[k], cells], 3), cells
                    cells = block.cells(window, links[k][..., j : j + 1])
                outputs = _convolved(self.last, leaky_relu(cells, SLOPE))[..., 0] + start[:, i, j, None]
                share, known = cell_of(i * width + j, outputs)
                sums, cell = sums + share, known[..., None]
                shares.append(share)
                planes.append(cell)
            row = torch.cat(planes[-width:], 3)
        return torch.cat(shares, 1), torch.cat(planes, 3).flatten(2).unflatten(2, self.shape)

    def _gated(self) -> list[_Gated]:
        return cast("list[_Gated]", list(self.blocks))

    def _given(self, past: _Past) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What is added to rows and to cells when they begin, (B, I, H, W) each, and shifts of all blocks."""
        begin = self.place.expand(-1, *self.shape)
        if self.before is not None and past.planes is not None:
            begin = begin + self.before(adaptive_avg_pool2d(past.planes, self.shape))
        below, here = begin.expand(len(past.known), *begin.shape[-3:]).chunk(2, 1)
        hidden = leaky_relu(self.known(pad(past.known, (0, 1), value=1.0)), SLOPE)
        return below, here, [block.shift(hidden)[:, :, None, None] for block in self._gated()]


class _Gated(nn.Module):
    """A gated block: one stack over rows, of which each knows those above it, and one along the row, which looks at it.

    Args:
        inputs: Channels of both stacks that come in (I).
        outputs: Channels of what they become (O).

    Source: van den Oord et al. 2016, arXiv:1606.05328, fig. 2 and eq. 3.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.down = nn.Conv2d(inputs, 2 * outputs, (2, 3), padding=(0, 1))
        self.along = nn.Conv2d(inputs, 2 * outputs, (1, 2))
        self.link = nn.Conv2d(2 * outputs, 2 * outputs, 1)
        self.mix = nn.Conv2d(outputs, outputs, 1)
        self.shift = nn.Linear(_HIDDEN, 4 * outputs)

    def rows(self, window: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The stack over rows (B, O, H, W), and what it says to that along them (B, 2 O, H, W), of (B, I, H + 1, W)."""
        own, others = shift.chunk(2, 1)
        found = self.down(window)
        return _gate(found + own), self.link(found) + others

    def cells(self, window: Tensor, link: Tensor) -> Tensor:
        """The stack along rows (B, O, H, W), of (B, I, H, W + 1) and what that over rows says (B, 2 O, H, W)."""
        made = _convolved(self.mix, _gate(_convolved(self.along, window) + link))
        return made + window[..., 1:] if self.inputs == self.outputs else made


def _convolved(layer: nn.Conv2d, window: Tensor) -> Tensor:
    """A convolution; where there is one place only, as the matrix product that it is there, which takes less time."""
    if window.shape[2:] != layer.kernel_size:
        return layer(window)  # type: ignore[no-any-return]
    return linear(window.flatten(1), layer.weight.flatten(1), layer.bias)[:, :, None, None]


def _gate(numbers: Tensor) -> Tensor:
    content, gate = numbers.chunk(2, 1)
    return torch.tanh(content) * torch.sigmoid(gate)


def _sums(here: Tensor, before: Tensor | float) -> Tensor:
    """What cells know of all before them, (B, 2, M): of their sums in this picture (B, M), and in earlier ones."""
    return torch.stack([_log(here + _FAINT), _log((_FULL - before - here).clamp(min=1e-2))], 1)


def _log(shares: Tensor) -> Tensor:
    return shares.log() / 4  # of order one
