# ruff: noqa: E501 - lines of output read better whole
"""How the power of maps changes with Omega_m, from matched seeds: boxes that differ in cosmology alone.

    for m in 0.2 0.3 0.4; do for s in 0.7 0.9; do
        calogen simulate nbody -n 1152 --seed 771501 --condition Omega_m=fixed:$m --condition sigma_8=fixed:$s --out BOXES/$m-$s
    done; done                                          # 48 boxes each, of the same initial phases
    python tests/blind/slopes.py BOXES MODEL

Slopes d ln P / d Omega_m of mean spectra, k_f to 16 k_f, from 0.2 to 0.4 and on either side of 0.3, at both sigma_8; of simulated
maps and of as many generated ones, times five, whose latent numbers are the same at all cosmologies. What chance does to a box it
does at all cosmologies alike, so it leaves the slopes. Errors from 200 resamplings of the boxes, and of as many sets of generated maps.

Looked at so far: 771501.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calogen.models.maps.spectra import shell_power
from calogen.sampling import Surrogate
from calogen.shards.sources import open_shards

SHELLS, TIMES, RESAMPLED = 16, 5, 200
Array = NDArray[np.float64]


def spectra(maps: NDArray[np.float32]) -> Array:
    """P of single maps (N, K), shells 1 to 16, in units of their own."""
    parts = [shell_power(torch.from_numpy(part - 1)).numpy()[:, 1 : SHELLS + 1] for part in np.array_split(maps, 8)]
    return np.concatenate(parts).astype(np.float64)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    surrogate = Surrogate.load(given.model)
    found: dict[tuple[float, float], tuple[Array, Array]] = {}  # mean spectra of boxes, and of sets of generated maps
    phases = None
    for folder in sorted(path for path in given.boxes.iterdir() if path.is_dir()):
        boxes = open_shards(folder).read()
        own = np.asarray(boxes.extras["realisation_id"])
        phases = own if phases is None else phases
        assert np.array_equal(own, phases), "boxes of other phases"
        point = float(boxes.conditions["Omega_m"][0]), float(boxes.conditions["sigma_8"][0])
        cosmology = dict(zip(("Omega_m", "sigma_8"), point, strict=True))
        number = len(np.unique(own))
        made = np.concatenate([spectra(surrogate.sample(cosmology, len(boxes), seed=seed)) for seed in range(TIMES)])
        found[tuple(round(x, 4) for x in point)] = (
            spectra(boxes.values).reshape(number, -1, SHELLS).mean(1),
            made.reshape(TIMES * number, -1, SHELLS).mean(1),
        )
    rng = np.random.default_rng(1)

    def slope(low: tuple[float, float], high: tuple[float, float], side: int, rows: NDArray[np.intp] | slice) -> Array:
        logs = [np.log(found[point][side][rows].mean(0)) for point in (low, high)]
        difference: Array = (logs[1] - logs[0]) / (high[0] - low[0])
        return difference

    for sigma_8 in sorted({point[1] for point in found}):
        points = sorted(point for point in found if point[1] == sigma_8)
        for low, high in dict.fromkeys([(points[0], points[-1]), *pairwise(points)]):
            values = [slope(low, high, side, slice(None)) for side in (0, 1)]
            scatter = []
            for _ in range(RESAMPLED):
                rows = [rng.integers(len(found[low][side]), size=len(found[low][side])) for side in (0, 1)]
                scatter.append(slope(low, high, 1, rows[1]) - slope(low, high, 0, rows[0]))
            off = values[1] - values[0]
            error = np.std(scatter, 0)
            print(
                f"sigma_8 {sigma_8}, Omega_m {low[0]} to {high[0]}, {len(found[low][0])} matched boxes: slope of ln P, mean over shells {values[0].mean():+.2f}; generated less simulated "
                f"{off.mean():+.3f} ± {np.std(np.mean(scatter, 1)):.3f}, rms over shells {np.sqrt(np.mean(off**2)):.3f}, by shell {np.round(off, 2).tolist()} ± {np.round(error, 2).tolist()}",
                flush=True,
            )


if __name__ == "__main__":
    main()
