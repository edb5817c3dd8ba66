"""Density maps from matter that moves: white noise displaced as linear theory says, then what a network adds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError
from ...families import Family
from ...shards.samples import Samples
from ...stages import counted
from ..contract import Generator, Inference, OnArrays
from .distributions import ConditionalDistribution, DensityNormals, features
from .generator import MapGenerator
from .linear import sheet_power, slab_power
from .matter import Grid, displaced
from .residual import Residual
from .spectra import log_mean, shell_power, shells

SHEETS = 2
"""Independent layers of matter along the line of sight."""
_DEPTH = 8  # a map is a slab of its box's side over this, where the family does not say
# Displacements are smoothed away below R^0.4, with R in Mpc/h the scale on which a sheet's linear rms is 1.2: with the
# full R, dense boxes lose peaks, with the same scale for all, sparse or dense ones do (truncated Zel'dovich).
_NONLINEAR, _SOFTLY = 1.2, 0.4
_SCALES = (0.1, 10.0)  # Mpc/h, among which R is looked for
_CACHED = 1 << 17  # pixels worked on at a time
KNEE = 0.02  # added to the density before its logarithm
GRAIN, GRAIN_SIZE = 1.5, 0.8  # texture in ln density where smoothing reaches 1 Mpc/h, and its size in Mpc/h
GROWTH = 1.2  # with which power of the smoothing it goes
ONSET, WIDTH = 0.8, 0.7  # in which ln density it sets in, and how gently
_THEORY = 12  # values of Omega_m at which linear theory is asked
_KNOTS = 64  # of the displacement's spectrum, even in ln k
_FIT_PIXELS, _FIT_MAPS = 2**28, 2**16  # that the start is fitted with, at most
# Share of them, and of the step to take. Chance in the first rounds' few maps must be forgotten by the last.
_FIT_ROUNDS = ((0.0625, 0.45),) * 5 + ((0.5, 0.7),) * 2 + ((1.0, 0.8), (1.0, 0.0))
_STRATA = 8
_CHUNK = 64  # maps that are fitted to at a time
_FIT_LEAST = 32  # times as many, in every round: fewer cosmologies would not tell the filter's terms apart

_POINTS_A_TERM = 4  # points of the conditions for each term of a fit, below which it is anything between them


class ZeldovichGenerator(MapGenerator):
    """White noise moves matter; a filter, a point transform and a network make its density the simulation's.

    1. Two sheets of matter, each half of the slab deep, get independent Gaussian displacements in the plane with the
       spectrum that linear theory gives for the conditions, and are moved by them: filaments, nodes and voids (the
       Zel'dovich approximation; Zel'dovich 1970, A&A 5, 84). Where matter is no longer linear, displacements are
       smoothed (truncated: Coles et al. 1993), but not in voids, which keep all that their matter began with.
    2. The logarithm of their density gets a texture outside voids, is filtered by exp T(k), with T a function of the
       conditions, and its pixels are mapped to latent normals. T is fitted so that the spectra of the maps are those of
       the training maps.
    3. A convolutional network, zero before training, adds to the normals what the maps still lack: peaks, the power of
       their logarithm on small scales, the shape of filaments. It keeps the means of what the fit has right.
    4. The normals become densities with the distribution that the training maps have for the conditions.

    Everything is periodic and works at any size. All but step 3 is fitted.

    Args:
        family: A map family.
        conditions: Names of the conditions.
        channels: Widths of the residual network's layers.
        size: Pixels a side of maps where no other size is asked for; none: as many as those trained on have.
    """

    transform: DensityNormals
    spectrum: Tensor  # (F, _KNOTS) ln of the displacements' power in (Mpc/h)^2, even in ln k
    truncation: Tensor  # (F,) ln of the scale in Mpc/h below which displacements are smoothed away
    transfer: Tensor  # (F, K) T at multiples of `step`, the training box's fundamental, or that of a larger box

    def __init__(
        self,
        family: Family,
        conditions: Sequence[str],
        channels: Sequence[int] = (24, 24, 24),
        size: int | None = None,
    ) -> None:
        super().__init__(family, conditions)
        self.size = size
        self.latent_size = self.coarse = (SHEETS + 1) * family.voxels  # a plane for every sheet, and one for texture
        height, width = family.sample_shape
        self.pixel = family.box_size / height if family.box_size else 1.0
        self.depth = family.depth or self.pixel * min(height, width) / _DEPTH
        self.fundamental = self.step = 2 * math.pi / (self.pixel * min(height, width))
        terms = features(torch.zeros(1, len(self.conditions), device="cpu")).shape[1]
        self.transform = DensityNormals(terms)
        self.inner = ConditionalDistribution(terms)
        self.register_buffer("spectrum", torch.zeros(terms, _KNOTS))
        self.register_buffer("truncation", torch.zeros(terms))
        bands = int(shells(height, width)[0].max()) + 1
        self.register_buffer("transfer", torch.zeros(terms, bands))
        self.residual = Residual(len(self.conditions), channels)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Maps (B, H, W), 1 + delta, from standard normals (B, Z) and conditions (B, C) in their units."""
        return self._maps(self.residual, latent, conditions)

    def folded(self) -> Inference:
        """A few maps at a time; large ones pass the network in strips."""
        return OnArrays(partial(self._maps, self.residual.in_strips), max(1, _CACHED // self.family.voxels))

    def _maps(self, network: Callable[[Tensor, Tensor, Tensor], Tensor], latent: Tensor, conditions: Tensor) -> Tensor:
        scaled, planes = self.scaled(conditions), self.planes(latent)
        normals = self.start(planes, features(scaled))
        return self.transform.inverse(normals + network(normals, planes[:, -1], scaled), features(scaled))

    def with_start(self, latent: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, 1 + delta, and those without what the network adds."""
        scaled, planes = self.scaled(conditions), self.planes(latent)
        terms, normals = features(scaled), self.start(planes, features(scaled))
        added = self.residual(normals, planes[:, -1], scaled)
        return self.transform.inverse(normals + added, terms), self.transform.inverse(normals, terms)

    @torch.no_grad()
    def start(self, planes: Tensor, terms: Tensor) -> Tensor:
        """Latent normals (B, H, W) before the network, of noise (B, 3, H, W) given features (B, F)."""
        return self.inner(self.filtered(self.matter(planes, terms), terms), terms)  # type: ignore[no-any-return]

    def planes(self, latent: Tensor) -> Tensor:
        """Noise as planes (B, 3, H, W), from (B, Z)."""
        return latent.unflatten(1, (SHEETS + 1, *self.family.sample_shape))  # type: ignore[no-any-return]

    def matter(self, planes: Tensor, terms: Tensor) -> Tensor:
        """Modes (B, H, W // 2 + 1) of ln density before the filter; the mean has the power of the noise."""
        # Displacements with the spectrum of linear theory. Where matter is no longer linear it would run through itself
        # and smear filaments out: structure smaller than that scale displaces nothing.
        grid = self._grid(planes)
        noise = torch.fft.rfft2(planes[:, :SHEETS])
        amplitude = torch.exp(0.5 * self._table(self.spectrum, terms, self.log_position(grid.wave)))
        smoothing = (terms @ self.truncation).exp()[:, None, None]
        smooth = torch.exp(-0.5 * (grid.wave * smoothing).square())
        density = displaced(noise * (amplitude / self.pixel)[:, None], smooth, grid)

        # What was smoothed away would have been haloes within filaments: texture takes their place, in dense regions
        # only, the stronger the more was smoothed.
        logs = torch.log(density + KNEE)
        strength = torch.sigmoid((logs - ONSET) / WIDTH).mul_(smoothing**GROWTH)
        logs += self._grain(planes[:, -1], grid).mul_(strength)

        # Displacements conserve matter, so all maps would have one mean. But a slab is a part of a deeper box, and how
        # much matter it holds varies from slab to slab: the mean is noise of its own.
        modes: Tensor = torch.fft.rfft2(logs)
        modes[:, 0, 0] = noise[:, 0, 0, 0]
        return modes

    def _grain(self, noise: Tensor, grid: Grid) -> Tensor:
        """Texture (B, H, W) that sheets of smooth matter lack, of white noise (B, H, W): haloes in filaments."""
        size = GRAIN_SIZE / self.pixel
        spread = math.erf(math.pi * size) / (2 * math.sqrt(math.pi) * size)  # of smoothed noise, on any size of grid
        smooth = torch.exp(-0.5 * (grid.wave * GRAIN_SIZE).square()) * (GRAIN / spread)
        return torch.fft.irfft2(torch.fft.rfft2(noise) * smooth, s=noise.shape[1:])  # type: ignore[no-any-return]

    def filtered(self, modes: Tensor, terms: Tensor) -> Tensor:
        """The field (B, H, W) that is mapped to normals, from :meth:`matter`."""
        height, width = self.family.sample_shape
        position = (self._grid(modes).wave / self.step).clamp(1, self.transfer.shape[1] - 1)
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

    def log_position(self, wave: Tensor) -> Tensor:
        """Where wave numbers in h/Mpc lie among the knots of the spectrum."""
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
        other.latent_size = other.coarse = (SHEETS + 1) * other.family.voxels
        if self.family.box_size:
            other.step = min(self.step, 2 * math.pi / other.family.box_size)
            other._buffers = {**self._buffers, "transfer": self._transfer_of(other)}
        return other

    def _transfer_of(self, other: ZeldovichGenerator) -> Tensor:
        """The filter for a box of another size; on modes longer than this box it goes on as linear theory does."""
        found = self.transfer.clone()
        wave: NDArray[np.float64] = np.zeros(1)
        if other.step < self.step:  # at multiples of the larger box's fundamental
            wave = other.step * np.arange(int(shells(*other.family.sample_shape)[0].max()) + 1.0)
            position = torch.from_numpy(wave / self.step).clamp(1, self.transfer.shape[1] - 1).to(self.transfer)
            cell = position.floor().clamp(max=self.transfer.shape[1] - 2).long()
            found = torch.lerp(self.transfer[:, cell], self.transfer[:, cell + 1], position - cell)
            found[:, 0] = self.transfer[:, 0]

        # Displacements in the plane have little of the power that modes along the line of sight give to long modes of a
        # slab, and white noise knows nothing of the mean: the filter makes up for both. How much more it must do so in
        # another box, which has other modes along the line of sight, depends on Omega_m alone.
        scaled, omega_m = torch.zeros(_THEORY, len(self.conditions)), np.full(_THEORY, 0.3)
        if "Omega_m" in self.conditions:
            known, column = self.family.condition("Omega_m"), self.conditions.index("Omega_m")
            omega_m = np.linspace(known.low, known.high, _THEORY)
            values = torch.ones_like(scaled)
            values[:, column] = torch.from_numpy(omega_m)
            scaled[:, column] = self.scaled(values)[:, column]
        long = wave[wave < (1 - 1e-6) * self.step]
        shortest = np.where(long > 0, self.step, 0.0)  # the mode of this box that they are continued from
        more = [
            0.5 * (self._lacking(long, other.family.box_size, x) - self._lacking(shortest, self.family.box_size, x))
            for x in omega_m.tolist()
        ]
        regression = torch.linalg.pinv(features(scaled).double())
        found[:, : len(long)] += (regression @ torch.from_numpy(np.stack(more))).to(found)
        return found

    def _lacking(self, wave: NDArray[np.float64], box: float, omega_m: float) -> NDArray[np.float64]:
        """ln of a slab's linear power at wave numbers (K,) in a periodic box over that of what is filtered."""
        known = {"Omega_m": omega_m}
        found: NDArray[np.float64] = np.log(slab_power(wave, box, self.depth, known) / self.unfiltered(wave, known))
        return found

    def unfiltered(self, wave: NDArray[np.float64], known: Mapping[str, float]) -> NDArray[np.float64]:
        """Linear power of what is filtered at wave numbers (K,), in units of its own; 0: the mean."""
        sheets = sheet_power(np.maximum(wave, self.step / 64), known, self.depth / SHEETS) / SHEETS
        return np.where(wave > 0, sheets, 1.0)  # the mean is plain noise

    # ------------------------------------------------------------------------------------------------ fitting

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit spectrum, point transforms and filter to training maps, 1 + delta."""
        maps, columns = torch.from_numpy(samples.values), torch.from_numpy(samples.conditions.array(self.conditions))
        scaled = self.scaled(columns)
        terms = features(scaled)
        wanted_points = _POINTS_A_TERM * terms.shape[1]
        if self.conditions and (points := len(torch.unique(columns, dim=0))) < wanted_points:
            few = f"{points} different points of {', '.join(self.conditions)} are few: {wanted_points} would say how"
            self.remarks = (f"{few} maps change between them; trust samples near the points trained on alone",)
        self.transform.fit(maps, terms)
        self._fit_spectrum(columns, terms)
        wanted = log_mean(torch.cat([shell_power(m - 1) for m in maps.split(_CHUNK)]), terms)
        self._fit_transfer(wanted, terms, seed)

    @torch.no_grad()
    def fit_from(self, prior: Generator, samples: Samples, seed: int) -> None:  # noqa: ARG002
        """Take over a fitted generator, with the spectra and pixels of its own training maps.

        Raises:
            ConfigError: If its residual network has other widths.
        """
        theirs, ours = prior.state_dict(), self.residual.state_dict(prefix="residual.")
        if not (theirs["residual.last.kernel"].any() or theirs["residual.last.shift"].any()):
            theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("residual.")} | ours
        try:
            self.load_state_dict(theirs)
        except RuntimeError:
            raise ConfigError(
                "the residual network of the surrogate to start from has other widths",
                where="generator.channels",
                hint="give those of its configuration",
            ) from None

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
        """Adjust T until the mean spectra (F, K) of fixed noise are those wanted; the normals follow."""
        # Enough noise that the mean spectra are known better than they matter, at conditions drawn from all of the
        # training data. What it makes before the filter is computed once.
        stream = torch.Generator().manual_seed(seed)
        count = min(_FIT_MAPS, max(256, 4 * len(terms)), max(_STRATA, _FIT_PIXELS // self.family.voxels))
        rows = torch.randperm(len(terms), generator=stream)
        rows = rows[torch.linspace(0, len(rows) - 1, max(1, count // _STRATA)).long()]
        chunks = terms[rows].repeat_interleave(_STRATA, 0).split(_CHUNK)
        matter = [self.matter(self.planes(self._stratified(len(c), stream)), c) for c in chunks]

        # A fixed-point iteration in ln power. The point transform is not linear, so what a filter lacks is not quite
        # what has to be added to it, hence rates below 1. Early rounds look at few of the maps.
        self.transfer.zero_()
        for used, rate in counted("fitting displacements", _FIT_ROUNDS, len(_FIT_ROUNDS)):
            some = slice(0, max(_FIT_LEAST, round(used * len(chunks))))
            fields = [self.filtered(m, c) for m, c in zip(matter[some], chunks[some], strict=True)]
            own = torch.cat(chunks[some])
            self.inner.fit(torch.cat(fields).flatten(1), own)
            if not rate:
                break  # the normals belong to the filter they were fitted behind
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
        # Every field comes with its negative: odd moments of the noise are exactly 0.
        half = torch.randn((count + 1) // 2, self.latent_size, generator=stream)
        latent = torch.stack([half, -half], 1).flatten(0, 1)[:count]

        # One map in every stratum of the mean's distribution, instead of chance.
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
