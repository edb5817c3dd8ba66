# ruff: noqa: E501 - lines of output read better whole
"""What the surrogate of large maps is judged by: blind boxes, fixed before they were looked at.

    calogen simulate nbody -n 384 --condition Omega_m=fixed:0.28 --condition sigma_8=fixed:0.8 --seed 25604 \
        --set pixels=256 --set box=512 --set slabs=32 --out MIDDLE          # 4 boxes
    calogen simulate nbody -n 1536 --seed 25603 --set pixels=256 --set box=512 --set slabs=32 --out PLANE    # 16 boxes
    python tests/blind/fields.py TRAINING MODEL MIDDLE PLANE

MODEL beside lognormal maps: Gaussian fields with a point transform, whose power spectrum and distribution of pixels are fitted to
TRAINING, the maps that MODEL was fitted to, by the same code and as functions of the cosmology. Two generated samples (seeds 0 and
1) at the cosmologies of the boxes, for each folder and, if it has several cosmologies, each quarter of the plane:

- P(k), box by box over generated maps of its cosmology, averaged over the boxes; its error from the scatter between boxes.
- <B>/<P>^2 of equilateral triangles, the same, in bands above 0.06 h/Mpc; number of peaks, the same.
- W1 of ln(1 + delta) of pixels and of peaks, in standard deviations; Minkowski functionals V1 and V2 at quantiles, the largest
  difference over the largest value.
- Covariance of ln P(k) of single maps of one cosmology in twelve bands from 0.03 to 1.2 h/Mpc: rms of (C' - C) / sqrt(C_ii C_jj),
  and rms difference of the correlations.

Floors are halves of the boxes against each other, where they are of one cosmology. Power of all maps, the
rest of every third one (slabs of all depths and axes).

Looked at so far: 25604; its longest mode, off by a third, led to the law of longer modes, after which P(k) alone was looked at again.
The first five boxes of 25603, with one sample (SEEDS = 1) and every sixth map (EVERY = 6); the next five, as it is here.
25606 (6 boxes) and the first 18 boxes of `-n 2880 --seed 25605`, as it is here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calogen.analysis.observables.statistics import (
    LogAxis,
    Shells,
    bispectra,
    bispectrum_bands,
    minkowski,
    pixel_histograms,
    power_spectra,
)
from numpy.typing import NDArray
from torch import Tensor

from calogen.models.maps.zeldovich import ZeldovichGenerator
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

SEEDS, EVERY, BLOCK = 2, 3, 96
BANDS = np.geomspace(0.03, 1.2, 13)  # h/Mpc
MIDDLE = (0.06, 0.4)  # h/Mpc, where P(k) is to be right within 2 %
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
Array = NDArray[np.float64]


class Lognormal(ZeldovichGenerator):
    """Gaussian noise in the place of matter: filtered and transformed as the surrogate's."""

    def matter(self, planes: Tensor, terms: Tensor) -> Tensor:
        """Modes of white noise."""
        return torch.fft.rfft2(planes[:, 0])

    def unfiltered(self, wave: Array, known: Mapping[str, float]) -> Array:
        """Power of white noise."""
        return np.ones_like(wave)

    @classmethod
    def of(cls, training: Path, cache: Path | None) -> Lognormal:
        """Fitted to maps, or as fitted before."""
        samples = open_shards(training).read()
        found = cls(samples.family, [c.name for c in samples.family.conditions])
        if cache is not None and cache.exists():
            found.load_state_dict(torch.load(cache))
        else:
            found.fit(samples, 1)
            if cache is not None:
                torch.save(found.state_dict(), cache)
        return found


@dataclass
class Side:
    """Statistics of single maps, by box."""

    values: dict[str, Array]
    axis: LogAxis

    @classmethod
    def of(cls, maps: NDArray[np.float32], levels: Array, axis: LogAxis, box: float) -> Side:
        """Of maps (N, H, W)."""
        some = maps[::EVERY]
        pixels, peaks = pixel_histograms(some, axis)
        return cls(
            {
                "power": power_spectra(maps, box),
                "bispectrum": bispectra(some, box),
                "pixels": pixels,
                "peaks": peaks,
                "shapes": minkowski(some, levels, box),
            },
            axis,
        )

    @cached_property
    def mean(self) -> dict[str, Array]:
        """Of all maps."""
        return {name: values.mean(0) for name, values in self.values.items()}


def joined(sides: list[Side]) -> Side:
    """Sides as one."""
    return Side({n: np.concatenate([s.values[n] for s in sides]) for n in sides[0].values}, sides[0].axis)


def w1(found: Array, own: Array, axis: LogAxis) -> float:
    """W1 of two histograms, in standard deviations of the second."""
    a, b = found / found.sum(), own / own.sum()
    middle = 0.5 * (axis.edges[1:] + axis.edges[:-1])
    spread = np.sqrt(np.sum(b * middle**2) - np.sum(b * middle) ** 2)
    return float(np.abs(np.cumsum(a - b)).sum() * (axis.edges[1] - axis.edges[0]) / spread)


class Group:
    """Boxes, and what is generated for each, as one ensemble."""

    def __init__(self, boxes: list[Side], made: list[Side], cosmologies: list[Any], k: Array, triangles: Array) -> None:
        self.boxes, self.made, self.cosmologies = boxes, made, cosmologies
        self.k, self.triangles = k, triangles

    def ratios(self, name: str) -> tuple[Array, Array]:
        """Generated over simulated power or number of peaks, box by box, its mean and the error."""
        each = np.array(
            [
                np.atleast_1d(_of(a, name) / _of(b, name))
                for a, b in ((x.mean, y.mean) for x, y in zip(self.made, self.boxes, strict=True))
            ]
        )
        return each.mean(0), each.std(0, ddof=min(1, len(each) - 1)) / np.sqrt(len(each))

    def triangular(self, first: list[Side], second: list[Side]) -> tuple[Array, Array]:
        """Ratio of the mean <B>/<P>^2 of two lists of boxes, and its error from leaving one box of both out."""
        a, b = (np.array([_of(side.mean, "bispectrum") / self._square(side) for side in x]) for x in (first, second))
        ratio = a.mean(0) / b.mean(0)
        count = len(a)
        if count < 2:
            return ratio, np.zeros_like(ratio)
        left = [np.delete(a, i, 0).mean(0) / np.delete(b, i, 0).mean(0) for i in range(count)]
        return ratio, np.std(left, 0) * np.sqrt(count - 1)

    def _square(self, side: Side) -> Array:
        """P^2 at the bispectrum's bands."""
        found: Array = np.exp(2 * np.interp(np.log(self.triangles), np.log(self.k), np.log(side.mean["power"])))
        return found

    def covariance(self, sides: list[Side]) -> Array:
        """Of ln P in bands, about the mean of each cosmology, (12, 12)."""
        band = np.digitize(self.k, BANDS) - 1
        logs = []
        for side in sides:
            power = side.values["power"]
            logs.append(
                np.log(np.stack([power[:, band == i].mean(1) for i in range(len(BANDS) - 1) if (band == i).any()], 1))
            )
        rest = []
        for cosmology in sorted(set(self.cosmologies)):
            own = np.concatenate([x for x, c in zip(logs, self.cosmologies, strict=True) if c == cosmology])
            rest.append(own - own.mean(0))
        return np.asarray(np.cov(np.concatenate(rest).T))

    def shown(self, name: str) -> None:
        """Print what was found."""
        power, error = self.ratios("power")
        inner = (self.k >= MIDDLE[0]) & (self.k <= MIDDLE[1])
        off = power - 1
        print(f" {name}:")
        print("   P(k) by band, %: " + ", ".join(self._by_band(off, low, high) for low, high in pairwise(EDGES)))
        for what, part, most in (("0.06-0.4", inner, 0.02), ("elsewhere", ~inner, 0.10)):
            within = np.abs(off[part]) <= most + error[part]
            print(
                f"   P(k) {what}: rms {np.sqrt(np.mean(off[part] ** 2)):.4f}, mean error {error[part].mean():.4f}, "
                f"{within.sum()} of {part.sum()} shells within {most:.0%} plus their error; largest {off[part][np.abs(off[part]).argmax()]:+.3f} at k = {self.k[part][np.abs(off[part]).argmax()]:.3f}"
            )
        bispectrum, wrong = (x[self.triangles > MIDDLE[0]] for x in self.triangular(self.made, self.boxes))
        print(
            f"   <B>/<P>^2, k = {np.round(self.triangles[self.triangles > MIDDLE[0]], 2).tolist()}: {np.round(bispectrum, 3).tolist()} ± {np.round(wrong, 3).tolist()}, rms {np.sqrt(np.mean((bispectrum - 1) ** 2)):.3f}"
        )
        peaks, few = self.ratios("peaks")
        print(f"   number of peaks {100 * (peaks[0] - 1):+.1f} ± {100 * few[0]:.1f} %")
        self._differences(self.made, self.boxes)

    def _by_band(self, off: Array, low: float, high: float) -> str:
        part = (self.k >= low) & (self.k < high)
        each = np.array(
            [(a.mean["power"] / b.mean["power"])[part].mean() - 1 for a, b in zip(self.made, self.boxes, strict=True)]
        )
        error = each.std(ddof=min(1, len(each) - 1)) / np.sqrt(len(each))
        return f"{low:g}-{high:g}: {100 * off[part].mean():+.1f} ± {100 * error:.1f}"

    def _differences(self, first: list[Side], second: list[Side]) -> None:
        found, own = joined(first), joined(second)
        a, b = found.mean, own.mean
        shapes = np.abs(a["shapes"] - b["shapes"]).max(1) / np.abs(b["shapes"]).max(1)
        ours, theirs = self.covariance(first), self.covariance(second)
        scale = np.sqrt(np.outer(np.diag(theirs), np.diag(theirs)))
        mine = ours / np.sqrt(np.outer(np.diag(ours), np.diag(ours)))
        upper = np.triu_indices(len(scale), 1)
        print(
            f"   W1 of pixels {w1(a['pixels'], b['pixels'], own.axis):.3f}, of peaks {w1(a['peaks'], b['peaks'], own.axis):.3f}; "
            f"V1 {shapes[1]:.3f}, V2 {shapes[2]:.3f}; covariance of ln P {np.sqrt(np.mean(((ours - theirs) / scale) ** 2)):.3f}, "
            f"correlation {np.sqrt(np.mean((mine - theirs / scale)[upper] ** 2)):.3f}, mean {np.mean(mine[upper]):.3f} (N-body {np.mean((theirs / scale)[upper]):.3f})",
            flush=True,
        )

    def floor(self) -> None:
        """Halves of the boxes against each other, where all are of one cosmology."""
        first, second = self.boxes[::2], self.boxes[1::2]
        if len(set(self.cosmologies)) > 1 or len(first) != len(second):
            return
        a, b = joined(first).mean, joined(second).mean
        inner, bands = (self.k >= MIDDLE[0]) & (self.k <= MIDDLE[1]), self.triangles > MIDDLE[0]
        ratio = np.mean([_of(x.mean, "bispectrum") / self._square(x) for x in first], 0)
        ratio /= np.mean([_of(x.mean, "bispectrum") / self._square(x) for x in second], 0)
        print(
            f" N-body, halves of the boxes:\n   P(k) 0.06-0.4: rms {np.sqrt(np.mean((a['power'] / b['power'] - 1)[inner] ** 2)):.4f}; "
            f"<B>/<P>^2 rms {np.sqrt(np.mean((ratio - 1)[bands] ** 2)):.3f}; peaks {100 * (_of(a, 'peaks') / _of(b, 'peaks') - 1):+.1f} %"
        )
        Group(first, second, self.cosmologies[::2], self.k, self.triangles)._differences(first, second)


def _of(mean: dict[str, Array], name: str) -> Any:
    """A statistic; of peaks their number."""
    return mean[name].sum() if name == "peaks" else mean[name]


EDGES = (0.0, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.1, 1.6)  # h/Mpc


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("model")
    parser.add_argument("boxes", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1, help="every so-manieth box (for choices, on training boxes)")
    parser.add_argument("--cache", type=Path, help="keeps the fit of the lognormal maps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    surrogate, other = Surrogate.load(given.model), Surrogate.load(given.model)
    lognormal = Lognormal.of(given.training, given.cache).eval().requires_grad_(False)
    other._generator, other._folded = lognormal, lognormal.folded()
    for folder in given.boxes:
        boxes = open_shards(folder).read()
        size, side = boxes.family.sample_shape[0], boxes.family.box_size
        sides = {"MODEL": surrogate.resized(size), "lognormal": other.resized(size)}
        levels, axis = np.quantile(boxes.values[::31], QUANTILES), LogAxis(500.0)
        k = Shells.of((size, size), side).k
        triangles = bispectrum_bands((size, size), side)[1]
        simulated: list[Side] = []
        generated: dict[str, list[Side]] = {name: [] for name in sides}
        cosmologies: list[tuple[float, float]] = []
        for number in np.unique(boxes.extras["realisation_id"])[:: given.every]:
            own = boxes.select(np.flatnonzero(boxes.extras["realisation_id"] == number))
            cosmologies.append((float(own.conditions["Omega_m"][0]), float(own.conditions["sigma_8"][0])))
            simulated.append(Side.of(own.values, levels, axis, side))
            for name, maker in sides.items():
                generated[name].append(joined([_made(maker, own, i, levels, axis) for i in range(SEEDS)]))
        quarter = np.array([(a >= 0.3) + 2 * (b >= 0.8) for a, b in cosmologies])
        groups = {"all": np.arange(len(simulated))}
        if len(set(cosmologies)) > 1:
            groups |= {f"q{i + 1}": np.flatnonzero(quarter == i) for i in range(4)}
        for what, rows in groups.items():
            print(f"{folder}, {what}: {len(rows)} boxes of {side:g} Mpc/h, {SEEDS} generated maps for each of theirs")
            if not len(rows):
                continue
            for name, made in generated.items():
                group = Group(
                    [simulated[i] for i in rows],
                    [made[i] for i in rows],
                    [cosmologies[i] for i in rows],
                    k,
                    triangles,
                )
                if name == "MODEL":
                    group.floor()
                group.shown(name)


def _made(maker: Surrogate, own: Samples, seed: int, levels: Array, axis: LogAxis) -> Side:
    """As many maps as of a box, in blocks, since they are large."""
    parts = []
    for start in range(0, len(own), BLOCK):
        rows = own.conditions[slice(start, start + BLOCK)]
        # A box at the edge of the plane may lie a little outside what the training boxes cover.
        # Seeds differ from box to box, and blocks of one: maps of one cosmology must not repeat.
        number = seed + SEEDS * (int(own.extras["realisation_id"][0]) % 2**31) + start
        values = maker.sample({name: rows[name] for name in maker.conditions}, seed=number, extrapolate=True)
        parts.append(Side.of(values, levels, axis, own.family.box_size))
    return joined(parts)


if __name__ == "__main__":
    main()
