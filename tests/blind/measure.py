# ruff: noqa: E501 - lines of output read better whole
"""What the shipped and documented surrogates are judged by: blind showers, fixed before they were simulated.

    python tests/blind/measure.py simulate CASE --data FOLDER     # blind showers, and as many others for the floor
    python tests/blind/measure.py measure CASE --data FOLDER --model MODEL

Every case has one blind sample of 4,000 showers (a seed that no training or choice has seen) and one of 4,000 others (for
Geant4 against Geant4; beside AUCs and distances stand those of two halves of the blind sample). Three generated samples (seeds 0, 1, 2), each at the conditions of the blind showers. Errors of
ratios are those of both samples; an AUC is the mean over the three, its error their spread or that of one, whichever is
larger. No cut is made on any shower.

Looked at so far: 770101, 770201, 770301, 770401; as second blind samples 770202 and 770402; and, after noise was shared between
neighbours, 770102, 770203, 770302, 770403; and 770501, by `few.py`, too. For adversarial training, 770104 (twice), 770106, 770205,
770304 and 770405.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_predict

from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

N, SEEDS = 4000, (0, 1, 2)
GRID = ("--condition", "impact_x=uniform:-80:80", "--condition", "impact_y=uniform:-40:40",
        "--condition", "theta=uniform:0:20", "--condition", "phi=uniform:-180:180")  # fmt: skip
PHOTONS = ("--particle", "gamma")
CASES: dict[str, tuple[int, int, tuple[str, ...]]] = {  # blind seed, seed of the others, how they are simulated
    "on-axis": (770_104, 770_105, (*PHOTONS, "--energy", "uniform:1:100GeV")),
    "angled": (770_205, 770_206, (*PHOTONS, "--energy", "uniform:2:20GeV", *GRID)),
    "set2": (770_304, 770_305, ("--set", "geometry=2", "--particle", "e-", "--energy", "log-uniform:1:100GeV")),
    "own": (770_405, 770_406, ("--set", "geometry=tests/blind/stack.toml")),
    "positrons": (770_501, 770_502, ("--particle", "e+", "--energy", "uniform:1:100GeV")),
}
BEST_BINS = 4  # of the logarithm of the incident energy


def main() -> None:
    """Simulate or measure a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("simulate", "measure"))
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=Path, help="Other showers for Geant4 against Geant4, not used for training.")
    parser.add_argument("--model")
    parser.add_argument("--workers", default="1")
    given = parser.parse_args()
    blind, others = given.data / f"{given.case}-blind", given.others or given.data / f"{given.case}-others"
    if given.what == "simulate":
        seed, other, how = CASES[given.case]
        for folder, number in ((blind, seed), *(() if given.others else ((others, other),))):
            _calogen("simulate", "geant4", "-n", N, "--seed", number, *how, "--out", folder, "--workers", given.workers)
        return
    work = given.data / f"{given.case}-{Path(given.model).name}"
    for seed in SEEDS:
        _calogen("generate", given.model, "--like", blind, "--seed", seed, "--out", work / f"seed-{seed}")
    names = [f"seed{seed}={work / f'seed-{seed}'}" for seed in SEEDS]
    _calogen("compare", blind, *names, "--classifier", "light", "--out", work / "report")
    reference = open_shards(blind).read()
    samples = [open_shards(work / f"seed-{seed}").read() for seed in SEEDS] + [open_shards(others).read(0, N)]
    _report(reference, samples, json.loads((work / "report" / "metrics.json").read_text()))


def _calogen(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "calogen", *map(str, arguments)], check=True)


def _report(reference: Samples, samples: list[Samples], metrics: dict[str, Any]) -> None:
    family = reference.family
    print(f"== {family.summary}; {len(reference)} blind showers, as many generated, seeds {SEEDS}; last: Geant4")
    print(json.dumps(_picked(metrics), indent=1))
    rows = [("layer energies alone, AUC", [_auc(_energies(reference), _energies(s)) for s in samples])]
    for name, values in rows:
        print(f"{name:50s}", " ".join(f"{v:.3f}" for v in values))
    energy = reference.conditions["incident_energy"]
    edges = np.geomspace(energy.min(), energy.max() * (1 + 1e-6), BEST_BINS + 1)
    for low, high in itertools.pairwise(edges):
        mine, *theirs = (_between(s, low, high) for s in (reference, *samples))
        hits = [_ratio((s.values > 0).sum(1), (mine.values > 0).sum(1)) for s in theirs]
        print(f"hits {low / 1e3:6.1f}-{high / 1e3:6.1f} GeV, % ", " ".join(f"{a:+.2f}±{b:.2f}" for a, b in hits))
        _spreads(mine, theirs)
    for i, part in enumerate(family.layer_slices):
        if len(family.layers) > 8 and i % 9:
            continue
        own = _asymmetry(reference.values[:, part])
        values = [_ratio(_asymmetry(s.values[:, part]), own) for s in samples]
        print(f"asymmetry of the two hottest cells, layer {i}, %", " ".join(f"{a:+.1f}±{b:.1f}" for a, b in values))
    if "theta" in reference.conditions:
        _about_axis(reference, samples)


def _picked(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    """AUCs, and W1 in units of its floor, of what ``metrics.json`` holds of each generated sample."""
    found: dict[str, dict[str, str]] = {}
    for name, side in metrics["generated"].items():
        values = side["metrics"]
        chosen = {key: value for key, value in values.items() if key.startswith(("auc/", "equivalent"))}
        picked = {key: f"{value['value']} ± {value['error']}" for key, value in chosen.items()}
        ratios = [v["value"] / v["floor"] for k, v in values.items() if k.startswith("w1/") and v.get("floor")]
        spread = np.quantile(ratios, [0.5, 0.9, 1.0])
        found[name] = picked | {"W1 / floor: median, 90 %, largest": " ".join(f"{x:.2f}" for x in spread)}
    return found


def _layers(samples: Samples) -> np.ndarray:
    parts = [samples.values[:, part].sum(1, dtype=np.float64) for part in samples.family.layer_slices]
    return np.stack(parts, 1)


def _energies(samples: Samples) -> np.ndarray:
    """Conditions, layer energies over the incident one, response, mean depth and its width."""
    energies, number = _layers(samples), np.arange(len(samples.family.layers))
    incident, total = samples.conditions["incident_energy"][:, None], energies.sum(1, keepdims=True)
    depth = energies @ number[:, None] / np.maximum(total, 1e-9)
    width = np.sqrt(np.maximum(energies @ number[:, None] ** 2 / np.maximum(total, 1e-9) - depth**2, 0))
    return np.concatenate([incident, energies / incident, total / incident, depth, width], 1)


def _auc(reference: np.ndarray, generated: np.ndarray) -> float:
    """Boosting, three-fold cross-validation: every shower is judged by trees that have not seen it."""
    from sklearn.metrics import roc_auc_score

    table, label = np.concatenate([reference, generated]), np.repeat([0, 1], [len(reference), len(generated)])
    order = np.random.default_rng(0).permutation(len(label))
    trees = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    odds = cross_val_predict(trees, table[order], label[order], cv=3, method="predict_proba")[:, 1]
    return float(roc_auc_score(label[order], odds))


def _ratio(values: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Ratio of two means less 1, and its error, in %."""
    values, reference = values[np.isfinite(values)], reference[np.isfinite(reference)]
    parts = [v.std() / np.sqrt(len(v)) / v.mean() for v in (values, reference)]
    return 100 * (values.mean() / reference.mean() - 1), 100 * float(np.hypot(*parts))


def _between(samples: Samples, low: float, high: float) -> Samples:
    energy = samples.conditions["incident_energy"]
    rows = (energy >= low) & (energy < high)
    return samples.select(rows)


def _spreads(reference: Samples, samples: list[Samples]) -> None:
    """Spread of E_layer / E_inc against the reference's, of layers with more than 0.2 % of the energy."""
    own = _layers(reference) / reference.conditions["incident_energy"][:, None]
    heavy = own.mean(0) > 0.002
    for number, sample in enumerate(samples):
        other = _layers(sample) / sample.conditions["incident_energy"][:, None]
        ratio = other[:, heavy].std(0) / own[:, heavy].std(0) - 1
        error = np.hypot(_spread_error(own[:, heavy]), _spread_error(other[:, heavy]))
        bad = (abs(ratio) > 0.1) & (abs(ratio) > 2 * error)
        which = [
            f"{i}: {100 * r:+.0f}±{100 * e:.0f}"
            for i, r, e, b in zip(np.flatnonzero(heavy), ratio, error, bad, strict=True)
            if b
        ]
        print(
            f"   spread of layers, sample {number}: rms {100 * np.sqrt((ratio**2).mean()):.1f} %, beyond 10 % and 2 errors: {which}"
        )


def _spread_error(values: np.ndarray) -> np.ndarray:
    """Relative error of a standard deviation, with the values' own kurtosis."""
    standard = (values - values.mean(0)) / values.std(0)
    return np.sqrt(((standard**4).mean(0) - 1) / (4 * len(values)))


def _asymmetry(layer: np.ndarray) -> np.ndarray:
    two = -np.sort(-layer, axis=1)[:, :2].astype(np.float64)
    total = two.sum(1)
    return np.where(total > 0, (two[:, 0] - two[:, 1]) / np.where(total > 0, total, 1), np.nan)


def _about_axis(reference: Samples, samples: list[Samples]) -> None:
    """Strips of layer 0 and centres of layer 1 of CaloGAN's calorimeter about the axis."""
    conditions = reference.conditions
    tangent = np.tan(np.radians(conditions["theta"]))
    slope = tangent * np.sin(np.radians(conditions["phi"]))
    own = _strips(reference)
    # The effective depth of layer 0: slope of (centre - impact) with the tangent, linear in log E, from the reference.
    logs = np.log(conditions["incident_energy"] / 1e4)
    centre, energy = _centre(own)
    good = energy > 20
    depths = np.linalg.lstsq(
        np.stack([slope, slope * logs], 1)[good], (centre - conditions["impact_y"])[good], rcond=None
    )[0]
    crossing = conditions["impact_y"] + slope * (depths[0] + depths[1] * logs)
    print(f"effective depth of layer 0: {depths[0]:.1f} mm, {depths[1]:+.1f} mm with log E")
    cubic = np.polyfit(centre[good], crossing[good], 3)
    for number, sample in enumerate([reference, *samples]):
        same = np.array_equal(sample.conditions["impact_y"], conditions["impact_y"])
        line, base, strips = crossing, conditions["impact_y"], _strips(sample)
        if not same:
            given = sample.conditions
            turn = np.tan(np.radians(given["theta"])) * np.sin(np.radians(given["phi"]))
            base = given["impact_y"]
            line = base + turn * (depths[0] + depths[1] * np.log(given["incident_energy"] / 1e4))
        middle, energy = _centre(strips)
        good = energy > 20
        hottest = POSITIONS[strips.argmax(1)]
        within = (abs(hottest - line) < 5)[strips.sum(1) > 0]
        residual = line[good] - np.polyval(cubic, middle[good])
        print(f"sample {number - 1} (-1: blind): hottest strip within 5 mm {100 * within.mean():.2f} %; axis from strips: "
              f"half the 16-84 % range {np.diff(np.quantile(residual, [0.16, 0.84]))[0] / 2:.3f} mm, rms {residual.std():.2f} mm")  # fmt: skip
    _centres(reference, samples)
    for low, high in ((0, 4), (4, 8), (8, 12), (12, 16), (16, 20)):
        print(
            f"response, half 16-84 %, theta {low}-{high}:", " ".join(_core(s, low, high) for s in [reference, *samples])
        )


POSITIONS = (np.arange(96) + 0.5) * 5.0 - 240.0


def _strips(samples: Samples) -> np.ndarray:
    return samples.values[:, samples.family.layer_slices[0]].reshape(-1, 3, 96).sum(1, dtype=np.float64)


def _centre(strips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = strips.sum(1)
    return strips @ POSITIONS / np.maximum(total, 1e-9), total


def _centres(reference: Samples, samples: list[Samples]) -> None:
    """Mean centre of layer 1 in eight bins of impact: how many errors it is off, in x and y."""
    for axis, name, end in ((0, "impact_x", 80.0), (1, "impact_y", 40.0)):
        edges = np.linspace(-end, end, 9)
        for number, sample in enumerate(samples):
            pulls = []
            for low, high in itertools.pairwise(edges):
                found = []
                for one in (reference, sample):
                    chosen = (one.conditions[name] >= low) & (one.conditions[name] < high)
                    cells = (
                        one.values[chosen][:, one.family.layer_slices[1]]
                        .reshape(-1, 12, 12)
                        .sum(2 - axis, dtype=np.float64)
                    )
                    middle = cells @ ((np.arange(12) + 0.5) * 40.0 - 240.0) / np.maximum(cells.sum(1), 1e-9)
                    middle = (middle - one.conditions[name][chosen])[cells.sum(1) > 20]
                    found.append((middle.mean(), middle.std() / np.sqrt(len(middle))))
                pulls.append((found[1][0] - found[0][0]) / np.hypot(found[0][1], found[1][1]))
            print(f"centre of layer 1 against {name}, sample {number}: pulls", " ".join(f"{p:+.1f}" for p in pulls))


def _core(samples: Samples, low: float, high: float) -> str:
    theta = samples.conditions["theta"]
    chosen = (theta >= low) & (theta < high)
    response = samples.values[chosen].sum(1, dtype=np.float64) / samples.conditions["incident_energy"][chosen]
    rng = np.random.default_rng(0)
    core = [np.diff(np.quantile(rng.choice(response, len(response)), [0.16, 0.84]))[0] / 2 for _ in range(200)]
    return f"{np.diff(np.quantile(response, [0.16, 0.84]))[0] / 2:.5f}±{np.std(core):.5f}"


if __name__ == "__main__":
    main()
