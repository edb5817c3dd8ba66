# ruff: noqa: E501 - lines of output read better whole
"""What projected training is worth: a trained surrogate beside its own start, on blind showers, in pairs of seeds.

    python tests/blind/adversary.py BLIND MODEL --candidates 4

The start is the same checkpoint without its refinement, so both have the same latent numbers: seeds 0 to 5 are pairs. AUCs
are those of ``--classifier light``, each of a generated sample against the same 4,000 blind showers, five-fold. d is
sqrt(2) Phi^-1(AUC). Errors of differences come from the six pairs. W1 is of every scored observable, in standard deviations of the blind
showers.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from calogen.analysis.metrics import classifiers
from calogen.analysis.observables.catalogue import catalogue, observe
from scipy.stats import norm, wasserstein_distance

from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

sys.path.insert(0, str(Path(__file__).parent))
from measure import N, _asymmetry

SEEDS = range(6)
VIEWS = ("voxels", "log_voxels", "observables")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("blind", type=Path)
    parser.add_argument("model")
    parser.add_argument("--candidates", type=int, default=0)
    parser.add_argument("--views", default=",".join(VIEWS))
    given = parser.parse_args()
    reference, trained = open_shards(given.blind).read(0, N), Surrogate.load(given.model)
    start = Surrogate.load(given.model)
    start._generator.refinement.coefficients.zero_()
    start._generator.refinement.active = False
    start._folded = start._generator.folded()
    sides = {"start": start, "trained": trained}
    if given.candidates:
        sides[f"{given.candidates} candidates"] = trained.selecting(given.candidates)
    conditions = {name: reference.conditions[name] for name in trained.conditions}
    samples, seconds = {}, {}
    for name, side in sides.items():
        begun = time.process_time()
        values = [side.sample(conditions, seed=seed) for seed in SEEDS]
        seconds[name] = 1e3 * (time.process_time() - begun) / len(SEEDS) / len(reference)
        samples[name] = [replace(reference, values=v, kind="generated") for v in values]
    print(f"== {reference.family.name}, {len(reference)} blind showers, {given.blind.name}; {given.model}")
    print("ms of a core a shower:", {name: round(value, 3) for name, value in seconds.items()})
    _moments(reference, samples)
    areas = {name: {view: [] for view in given.views.split(",")} for name in samples}
    halves = classifiers.halves(reference, len(reference) // 2, np.random.default_rng(0))
    views = classifiers.Views(reference, samples["start"][0], "light")
    for view in given.views.split(","):
        print(
            f"{view}: Geant4 against Geant4 (halves) {classifiers._trial(views, view, *halves, seed=0, cross_fit=True, tick=lambda: None).area[0]:.4f}",
            flush=True,
        )
        for seed in SEEDS:
            for name, made in samples.items():
                mine = classifiers.Views(reference, made[seed], "light")
                found = classifiers._trial(
                    mine, view, reference, made[seed], seed=seed, cross_fit=True, tick=lambda: None
                )
                areas[name][view].append(found.area[0])
        base = np.array(areas["start"][view])
        for name in samples:
            values = np.array(areas[name][view])
            d, change = _defect(values), _defect(values) - _defect(base)
            error = change.std(ddof=1) / np.sqrt(len(change))
            print(
                f"   {name:14s} AUC {values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}; d {d.mean():.4f}; less the start's {change.mean():+.4f} ± {error:.4f} ({100 * change.mean() / _defect(base).mean():+.0f} %)",
                flush=True,
            )


def _defect(areas: np.ndarray) -> np.ndarray:
    return np.sqrt(2) * norm.ppf(np.maximum(areas, 0.5))


def _moments(reference: Samples, samples: dict[str, list[Samples]]) -> None:
    """Asymmetries of the two hottest cells, and W1 of observables, of trained against start."""
    for i, part in enumerate(reference.family.layer_slices):
        if len(reference.family.layers) > 8 and i % 9:
            continue
        own = np.nanmean(_asymmetry(reference.values[:, part]))
        found = {
            name: [np.nanmean(_asymmetry(s.values[:, part])) / own - 1 for s in made] for name, made in samples.items()
        }
        print(
            f"asymmetry of the two hottest cells, layer {i}, %:",
            {n: f"{100 * np.mean(v):+.1f} ± {100 * np.std(v, ddof=1):.1f}" for n, v in found.items()},
        )
    names = [o.name for o in catalogue(reference.family).values() if o.scored]
    own = observe(reference)
    names = [n for n in names if n in own and own[n].std() > 0]

    def distances(made: list[Samples]) -> np.ndarray:
        tables = [observe(s) for s in made]
        return np.array([[wasserstein_distance(t[n], own[n]) / own[n].std() for n in names] for t in tables])

    base = distances(samples["start"])
    for name, made in list(samples.items())[1:]:
        change = distances(made) - base
        error = change.std(0, ddof=1) / np.sqrt(len(change))
        pulls = change.mean(0) / np.maximum(error, 1e-9)
        worst = np.argsort(-pulls)[:3]
        print(
            f"W1 of {len(names)} observables, {name} against start: mean {base.mean():.4f} -> {(base + change).mean():.4f}; {int((pulls > 2).sum())} worse and {int((pulls < -2).sum())} better by more than 2 errors;"
            f" worst: {', '.join(f'{names[k]} {change.mean(0)[k]:+.4f} ± {error[k]:.4f}' for k in worst)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
