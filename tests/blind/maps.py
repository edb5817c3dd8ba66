# ruff: noqa: E501 - lines of output read better whole
"""What the surrogate of maps is judged by: blind boxes, fixed before they were looked at.

    calogen simulate nbody -n 7200 --seed 771201 --out BOXES        # 300 boxes
    python tests/blind/maps.py BOXES MODEL

MODEL beside its own fitted start (the same checkpoint without its network, so with the same latent numbers), five generated
samples of each (seeds 0 to 4) at the cosmologies of the boxes. By quarter of the plane: mean P(k), k_f to 16 k_f, with the root
mean square of what the floor leaves; correlation of ln P(k) of single maps between shells 1 to 16, a quadratic trend with the
cosmology removed; number of peaks; <B>/<P>^2 of equilateral triangles; Minkowski functionals at quantiles, the largest
difference over the largest value. Floors are halves of the boxes, errors from 100 resamplings of boxes. Then the classifiers of
single maps of ``compare --classifier light``, 4,000 a side (seed 0), and maps against maps.

Looked at so far: 771001 (100 boxes, trained on since), 771201, 771401 (400 boxes, of which the last 360 are those of the card).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from calogen.analysis.metrics import classifiers
from calogen.analysis.observables.statistics import bispectra, bispectrum_bands, minkowski, peak_mask
from numpy.typing import NDArray

from calogen.models.maps.spectra import shell_power
from calogen.models.maps.zeldovich import ZeldovichGenerator
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

SHELLS, TRIANGLES, N, RESAMPLED = 16, 22, 4000, 100
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
Array = NDArray[np.float64]


class Side:
    """Statistics of single maps, and which quarter and box each belongs to."""

    def __init__(self, samples: Samples, levels: Array) -> None:
        self.conditions = np.stack([samples.conditions[n].astype(np.float64) for n in ("Omega_m", "sigma_8")], 1)
        self.quarter = (self.conditions[:, 0] >= 0.3) + 2 * (self.conditions[:, 1] >= 0.8)
        self.box = np.asarray(samples.extras["realisation_id"])
        parts = np.array_split(samples.values, max(1, len(samples) // 500))
        side = samples.family.box_size
        power = np.concatenate([shell_power(torch.from_numpy(p - 1)).numpy() for p in parts])
        self.power = power[:, 1 : TRIANGLES + 1].astype(np.float64)
        self.k, self.triangles = np.arange(1.0, TRIANGLES + 1), bispectrum_bands(samples.values.shape[1:], 2 * np.pi)[1]
        self.peaks = np.concatenate([np.count_nonzero(peak_mask(p), axis=(1, 2)) for p in parts]).astype(np.float64)
        self.bispectrum = np.concatenate([bispectra(p, side) for p in parts])
        self.shapes = np.concatenate([minkowski(p, levels, side) for p in parts])

    def of(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Ensemble statistics of some maps."""
        power = self.power[rows].mean(0)
        spread = (self.conditions[rows] - [0.3, 0.8]) / 0.2
        a, b = spread.T
        design = np.stack([np.ones(len(a)), a, b, a * a, b * b, a * b], 1)
        logs = np.log(self.power[rows, :SHELLS])
        rest = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
        square = np.exp(2 * np.interp(np.log(self.triangles), np.log(self.k), np.log(power)))  # P^2 at their sides
        return {
            "power": power[:SHELLS],
            "correlation": np.corrcoef(rest.T)[np.triu_indices(SHELLS, 1)],
            "peaks": self.peaks[rows].mean(keepdims=True),
            "bispectrum": self.bispectrum[rows].mean(0) / square,
            "shapes": self.shapes[rows].mean(0),
        }


def differences(found: dict[str, Array], own: dict[str, Array]) -> dict[str, float]:
    """What the musts are about."""
    shapes = np.abs(found["shapes"] - own["shapes"]).max(1) / np.abs(own["shapes"]).max(1)
    return {
        "P(k) rms": float(np.sqrt(np.mean((found["power"] / own["power"] - 1) ** 2))),
        "correlation rms": float(np.sqrt(np.mean((found["correlation"] - own["correlation"]) ** 2))),
        "peaks %": 100 * float(found["peaks"][0] / own["peaks"][0] - 1),
        "bispectrum rms": float(np.sqrt(np.mean((found["bispectrum"] / own["bispectrum"] - 1) ** 2))),
        **{f"V{i}": float(value) for i, value in enumerate(shapes)},
    }


def resampled(side: Side, quarter: int, rng: np.random.Generator) -> Callable[[], NDArray[np.intp]]:
    """Rows of a quarter, its boxes drawn with replacement."""
    rows = np.flatnonzero(side.quarter == quarter)
    by_box = [rows[side.box[rows] == box] for box in np.unique(side.box[rows])]
    return lambda: np.concatenate([by_box[i] for i in rng.integers(len(by_box), size=len(by_box))])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("boxes", type=Path)
    parser.add_argument("model")
    parser.add_argument("--no-classifier", action="store_true")
    parser.add_argument("--seeds", type=int, default=5, help="generated maps for each of the boxes'")
    parser.add_argument("--others", nargs="*", default=[], help="other models, measured beside it")
    parser.add_argument("--no-start", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    boxes, trained = open_shards(given.boxes).read(), Surrogate.load(given.model)
    start = Surrogate.load(given.model)
    assert isinstance(start._generator, ZeldovichGenerator)
    torch.nn.init.zeros_(start._generator.residual.last.kernel)
    torch.nn.init.zeros_(start._generator.residual.last.shift)
    start._folded = start._generator.folded()
    makers = {} if given.no_start else {"start": start}
    makers |= {"trained": trained, **{name: Surrogate.load(name) for name in given.others}}
    levels = np.quantile(boxes.values[::7], QUANTILES)
    own = Side(boxes, levels)
    cosmology = {name: boxes.conditions[name] for name in trained.conditions}
    made = {
        name: [
            replace(boxes, values=side.sample(cosmology, seed=seed), kind="generated") for seed in range(given.seeds)
        ]
        for name, side in makers.items()
    }
    sides = {}
    for name, samples in made.items():
        parts = [Side(one, levels) for one in samples]
        whole = parts[0]
        for key in ("conditions", "quarter", "box", "power", "peaks", "bispectrum", "shapes"):
            setattr(whole, key, np.concatenate([getattr(part, key) for part in parts]))
        sides[name] = whole
    print(f"{len(np.unique(own.box))} boxes, {len(boxes)} maps; {given.model}, {given.seeds} generated maps for each")
    rng = np.random.default_rng(1)
    for quarter in range(4):
        rows = np.flatnonzero(own.quarter == quarter)
        drawn = resampled(own, quarter, rng)
        reference, again = own.of(rows), [own.of(drawn()) for _ in range(RESAMPLED)]
        first = np.isin(own.box[rows], np.unique(own.box[rows])[::2])
        floor = differences(own.of(rows[first]), own.of(rows[~first]))
        print(
            f"q{quarter + 1}, {len(np.unique(own.box[rows]))} boxes; halves of them: "
            + ", ".join(f"{k} {v:.3f}" for k, v in floor.items())
        )
        for name, side in sides.items():
            found = side.of(np.flatnonzero(side.quarter == quarter))
            values = differences(found, reference)
            errors = {key: np.std([differences(found, other)[key] for other in again]) for key in values}
            print(
                f"   {name:8s}" + ", ".join(f"{key} {value:.3f} ± {errors[key]:.3f}" for key, value in values.items()),
                flush=True,
            )
    if given.no_classifier:
        return
    chosen = np.random.default_rng(0).permutation(len(boxes))[:N]
    mine = boxes.select(chosen)
    for view in ("observables", "log_pixels"):
        for name, samples in [pair for pair in made.items() if pair[0] not in given.others]:
            other = samples[0].select(chosen)
            views = classifiers.Views(mine, other, "light")
            found = classifiers._trial(views, view, mine, other, seed=0, cross_fit=True, tick=lambda: None)
            print(f"AUC, {view}, {len(mine)} a side, {name}: {found.area[0]:.4f} ± {found.area[1]:.4f}", flush=True)
        halves = classifiers.halves(boxes, len(boxes) // 2, np.random.default_rng(0))
        few = tuple(half.select(np.arange(min(N, len(half)))) for half in halves)
        found = classifiers._trial(
            classifiers.Views(*few, "light"), view, *few, seed=0, cross_fit=True, tick=lambda: None
        )
        print(f"   N-body against N-body, {len(few[0])} a side, boxes apart: {found.area[0]:.4f}", flush=True)


if __name__ == "__main__":
    main()
