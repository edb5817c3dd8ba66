# ruff: noqa: E501 - lines of output read better whole
"""What super-resolution is judged by: blind pairs, fixed before they were looked at.

    calogen simulate nbody --pairs -n 384 --seed 771402 --out PAIRS        # 16 boxes
    python tests/blind/pairs.py PAIRS MODEL [MODEL ...]

Per integer shell: power of one output (seed 0) over that of the true maps, with its error from 200 resamplings of boxes, the mean of
that over eight outputs (seeds 0 to 7), power of low maps that were interpolated; how modes correlate with the true ones: of one output,
of the mean of eight, of low maps interpolated by cubic splines (as ``translate --check``) and by bicubic convolution. Then the musts:

- P of one output within 5 % up to half of the Nyquist frequency of the high resolution, which includes shells where interpolation is
  off by 20 % or more;
- the mean of eight outputs correlates with the truth as well as the better interpolation does, less .01, at all k.

And ensembles of maps, one output beside the truth: pixels, peaks, bispectrum.

Looked at so far: 20260712, 20260713 (during development), 771402.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from calogen.analysis.metrics.resolution import fidelity
from calogen.analysis.observables.statistics import bispectra, peak_mask, power_spectra

from calogen.models.maps.translation import upsampled
from calogen.sampling import Surrogate
from calogen.shards.samples import LOW, Samples
from calogen.shards.sources import open_shards

OUTPUTS, RESAMPLED, CLOSE, LESS = 8, 200, 0.05, 0.01


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs")
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    shards = open_shards(given.pairs)
    pairs = shards.read(0, len(shards))
    for model in given.models:
        print(f"\n=== {model}")
        judge(pairs, Surrogate.load(model))


def judge(pairs: Samples, surrogate: Surrogate) -> None:
    """Print all of it for one model."""
    family, boxes = pairs.family, np.asarray(pairs.extras["realisation_id"])
    outputs = [surrogate.translate(pairs, seed) for seed in range(OUTPUTS)]
    found = fidelity(pairs, outputs)
    true, one, *others = (power_spectra(maps, family.box_size) for maps in (pairs.values, *outputs))
    groups = [np.flatnonzero(boxes == box) for box in np.unique(boxes)]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLED)]
    error = np.std([one[rows].mean(0) / true[rows].mean(0) for rows in drawn], 0, ddof=1)
    every = np.mean([one, *others], 0).mean(0) / true.mean(0)

    bicubic = upsampled(torch.from_numpy(pairs.extras[LOW]), family.factor).numpy()
    by_kernel = fidelity(pairs, [bicubic]).correlation
    best = np.maximum(found.low_correlation, by_kernel)
    print(f"{len(pairs)} pairs of {len(groups)} boxes")
    print(
        "      k   P / P true   error   8 outputs   low: P / P true   r of one   of the mean of 8   low: spline   kernel"
    )
    for row in zip(
        found.k,
        found.power,
        error,
        every,
        found.low_power,
        found.correlation,
        found.mean_correlation,
        found.low_correlation,
        by_kernel,
        strict=True,
    ):
        print(
            "  {:5.2f}   {:10.3f}   {:5.3f}   {:9.3f}   {:15.3f}   {:8.4f}   {:16.4f}   {:11.4f}   {:6.4f}".format(*row)
        )

    half = found.k <= np.pi * family.sample_shape[0] / family.box_size / 2 * (1 + 1e-6)
    lacking = half & (np.abs(found.low_power - 1) >= 0.2)
    worst = np.abs(found.power - 1)
    print(
        f"up to k = {found.k[half][-1]:.2f}: |P / P true - 1| at most {worst[half].max():.3f} (+- {error[half][worst[half].argmax()]:.3f}), of 8 outputs {np.abs(every - 1)[half].max():.3f};"
        f" where low maps lack 20 % or more (from k = {found.k[lacking][0]:.2f}): {worst[lacking].max():.3f}. Must <= {CLOSE}: {worst[half].max() <= CLOSE}"
    )
    lost = found.mean_correlation - best
    print(
        f"mean of 8 less the better interpolation: at least {lost.min():.4f} (k = {found.k[lost.argmin()]:.2f}); better from k = {found.k[np.flatnonzero(lost <= 0)[-1] + 1] if (lost <= 0).any() else found.k[0]:.2f}. Must >= -{LESS}: {lost.min() >= -LESS}"
    )

    made = outputs[0]
    peaks = [np.count_nonzero(peak_mask(maps), axis=(1, 2)).mean() for maps in (made, pairs.values)]
    triangles = [bispectra(maps, family.box_size).mean(0) for maps in (made, pairs.values)]
    levels = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    print(
        f"peaks: {peaks[0] / peaks[1]:.3f} of the true number; bispectrum over the true one: {np.round(triangles[0] / triangles[1], 3)}"
    )
    print(
        f"quantiles {levels} of pixels over the true ones: {np.round(np.quantile(made, levels) / np.quantile(pairs.values, levels), 3)}; mean density {made.mean() / pairs.values.mean():.4f}"
    )


if __name__ == "__main__":
    main()
