"""What starting from a similar surrogate is worth: 300 positrons with `--from calogan-gamma` against 1,000 without.

    calogen simulate geant4 -n 4000 --seed 770501 --particle e+ --energy uniform:1:100GeV --out positrons-blind
    python tests/blind/few.py positrons-blind

Three disjoint subsets of data/calogan-eplus/train each; 4,000 blind positrons a side, one generated sample a fit, the
light classifiers of `calogen compare`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from calogen.analysis.metrics.classifiers import classify

from calogen.config import Config
from calogen.models.contract import Generator
from calogen.models.registry import build_generator
from calogen.runs.checkpoint import load_checkpoint
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

DATA = Path(__file__).parents[2] / "data"
VIEWS = ("observables", "voxels", "log_voxels")


def main() -> None:
    """Fit, generate and judge each subset both ways."""
    torch.set_num_threads(1)
    blind = open_shards(sys.argv[1]).read()
    rows = open_shards(DATA / "calogan-eplus" / "train").read()
    prior = load_checkpoint(DATA / "surrogates" / "calogan-gamma").generator()
    subsets = np.random.default_rng(0).permutation(len(rows)).reshape(3, 1000)
    means: dict[str, list[float]] = {}
    for subset in subsets:
        for name, count, start in (("300 with --from", 300, prior), ("1,000 without", 1000, None)):
            found = _aucs(_fitted(rows.select(np.sort(subset[:count])), start), blind)
            means.setdefault(name, []).append(float(np.mean(found)))
            print(f"{name:16s}", " ".join(f"{v} {a:.3f}" for v, a in zip(VIEWS, found, strict=True)), flush=True)
    for name, values in means.items():
        print(f"{name:16s} mean of the views {np.mean(values):.3f} ± {np.std(values, ddof=1) / 3**0.5:.3f}")


def _fitted(samples: Samples, prior: Generator | None) -> Generator:
    family = load_checkpoint(DATA / "surrogates" / "calogan-gamma").card.family
    samples = Samples(family, samples.values, samples.conditions)
    torch.manual_seed(1)
    generator = build_generator(family, ["incident_energy"], Config.build({}).generator)
    if prior is None:
        generator.fit(samples, 1)
    else:
        generator.fit_from(prior, samples, 1)
    return generator.eval()


def _aucs(generator: Generator, blind: Samples) -> list[float]:
    conditions = torch.from_numpy(blind.conditions.array(["incident_energy"]))
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        blocks = conditions.split(1000)
        values = [generator(torch.randn(len(c), generator.latent_size, generator=noise), c).numpy() for c in blocks]
    made = np.concatenate(values)
    made[made < generator.family.threshold] = 0
    metrics = classify(blind, Samples(blind.family, made, blind.conditions, kind="generated")).metrics
    found = {str(key): metric.value for key, metric in metrics.items()}
    return [found[f"auc/{view}"] for view in VIEWS]


if __name__ == "__main__":
    main()
