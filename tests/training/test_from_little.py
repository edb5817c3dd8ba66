"""The adversary learns by itself, from starts that know less than the fit does. Slow: minutes each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calogen.analysis.metrics import classifiers
from support import ROOT

from calogen.config import Config
from calogen.models.showers.generator import ShowerGenerator
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.training import loop
from calogen.training.projected import ProjectedTrainer
from calogen.training.setup import prepare

PHOTONS = ROOT / "data" / "calogan-gamma"


def defect(generator: ShowerGenerator, reference: Samples) -> tuple[float, float]:
    """AUC of boosting on observables, and sqrt(2) Phi^-1 of it, of showers with the conditions of reference showers."""
    from scipy.stats import norm

    stream = torch.Generator().manual_seed(11)
    columns = torch.from_numpy(reference.conditions.array(generator.conditions)).float()
    with torch.no_grad():
        parts = [
            generator(torch.randn(len(some), generator.latent_size, generator=stream), some)
            for some in columns.split(500)
        ]
    made = replace(reference, values=torch.cat(parts).numpy(), kind="generated")
    views = classifiers.Views(reference, made, "light")
    area = classifiers._trial(views, "observables", reference, made, seed=0, cross_fit=True, tick=lambda: None).area[0]
    return area, float(np.sqrt(2) * norm.ppf(max(area, 0.5)))


def without_factors(generator: ShowerGenerator) -> None:
    """Take away all that the fit knows of how voxels go together."""
    for tensor in (generator.loadings, generator.drift, generator.power, generator.noise.shares, generator.noise.apart):
        tensor.zero_()
    generator.mixing.copy_(torch.eye(generator.mixing.shape[1]).expand_as(generator.mixing))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_projected_wgan_gp_recovers_what_a_start_without_factors_lacks(tmp_path: Path) -> None:
    rounds = 12
    config = Config.build({"threads": 1, "conditions": ["incident_energy"], "training": {"steps": rounds}})
    reference = open_shards(PHOTONS / "test").read(0, 4000)
    trainer = loop.TrainingLoop.start(prepare(config, PHOTONS), tmp_path / "run", check=False).trainer
    assert isinstance(trainer, ProjectedTrainer)
    assert isinstance(trainer.generator, ShowerGenerator)
    whole, full = defect(trainer.generator, reference)
    with torch.no_grad():
        without_factors(trainer.generator)
    trainer.arm()
    before, lacking = defect(trainer.generator, reference)
    done = 0
    while done < rounds and not trainer.finished:
        trainer.step()
        done += 1
    after, left = defect(trainer.generator, reference)
    share = (lacking - left) / (lacking - full)
    print(f"\nAUC of observables {before:.3f} -> {after:.3f} in {done} rounds; the fit has {whole:.3f}")
    print(f"{100 * share:.0f} % of what was taken away is recovered; ended: {trainer.finished or 'by rounds'}")
    assert share > 0.5
    assert after < before
