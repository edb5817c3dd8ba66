"""Posteriors learnt from generated maps: known ones are found, wrong maps are caught, and what cannot be is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from calogen.analysis import compare
from calogen.analysis.metrics import inference as inferring
from calogen.analysis.metrics.inference import Posterior, fit_posterior, judge_posterior
from support import MAPS, SMALL, toy

from calogen.errors import ConfigError, ShardError
from calogen.shards.samples import Samples


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inferring, "_NETWORKS", 1)


def measured(count: int, seed: int, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """A parameter, uniform from 0 to 2, and two measurements with Gaussian errors, one of them useless."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, 2, (count, 1))
    return np.hstack([theta + noise * rng.standard_normal((count, 1)), rng.standard_normal((count, 1))]), theta


def test_a_density_integrates_to_one_within_the_prior() -> None:
    torch.manual_seed(3)
    network = Posterior(2, [0.0, -1.0], [2.0, 1.0])
    x = torch.randn(4, 2) * 3
    grid = torch.linspace(0.0025, 0.9975, 200)
    unit = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    density = network.log_prob(torch.logit(unit).expand(4, -1, -1), network.mixture(x)).exp()
    assert density.mean(1).tolist() == pytest.approx([1] * 4, abs=0.03)
    drawn = torch.sigmoid(network.draw(network.mixture(x), 20_000, torch.Generator().manual_seed(1)))
    expected = (density[..., None] * unit).mean(1)
    assert torch.allclose(drawn.mean(1), expected, atol=0.02)


def test_the_posterior_of_a_measurement_is_found_and_covers() -> None:
    """Away from the ends the posterior is the measurement and its error, whose entropy is known."""
    x, theta = measured(3000, 1)
    networks = fit_posterior(x, theta, np.arange(len(x)), ([0.0], [2.0]), 0)
    judged = judge_posterior(networks, *measured(1500, 2), 0)
    best = -0.5 * math.log(2 * math.pi * math.e * 0.1**2) + math.log(2)  # per unit of the prior's width
    assert judged.log.mean() == pytest.approx(best, abs=0.1)
    for level in inferring.LEVELS:
        assert (judged.mass < level).mean() == pytest.approx(level, abs=0.05)
    assert judged.bias.mean() == pytest.approx(0, abs=0.12)
    wide = judge_posterior(networks, *measured(1500, 3, noise=0.3), 0)  # other errors than it learnt
    assert (wide.mass < 0.68).mean() < 0.5


def test_compare_tells_maps_whose_posteriors_mislead() -> None:
    boxes, made = toy(MAPS, 400, 1), replace(toy(MAPS, 500, 2), kind="generated")
    wrong = replace(made, values=made.values**1.25)
    report = compare(boxes, {"good": made, "bad": wrong}, bins=0, inference=True, training=toy(MAPS, 500, 3))
    good, bad = (report.metrics[name] for name in ("good", "bad"))
    assert good["posterior_coverage/68%"].value == pytest.approx(0.68, abs=0.12)
    assert good["posterior_coverage/68%"].error == pytest.approx(math.sqrt(0.68 * 0.32 / 400), rel=0.1)
    assert abs(good["posterior_loss"].value) < 4 * good["posterior_loss"].error + 0.05
    assert bad["posterior_bias/sigma_8"].value < -0.7  # structure is taken for a larger amplitude ... of less
    assert bad["posterior_coverage/68%"].value < 0.5
    assert bad["posterior_loss"].value > 0.3
    assert bad["posterior_log"].floor == good["posterior_log"].floor
    assert report.settings["inference"]
    assert any("judged on 400 simulated maps" in note for note in report.notes)


def test_one_map_of_each_box_is_judged_and_boxes_are_never_on_both_sides() -> None:
    boxes = toy(MAPS, 60, 1)
    rows = np.repeat(np.arange(60), 3)
    several = Samples(
        MAPS, boxes.values[rows], {n: c[rows] for n, c in boxes.conditions.items()}, {"realisation_id": rows}
    )
    report = compare(several, replace(toy(MAPS, 300, 2), kind="generated"), bins=0, inference=True)
    note = next(note for note in report.notes if "inference" in note)
    assert "300 generated maps and 90 simulated ones of 30 boxes, judged on 30 simulated maps" in note
    assert next(iter(report.metrics.values()))["posterior_log"].n == 30


def test_boxes_outside_the_prior_that_both_sides_have_are_not_judged() -> None:
    """Generated maps have the middle half of the range of sigma_8, boxes all of it."""
    made = replace(toy(MAPS, 600, 2), kind="generated")
    narrow = made.select(np.flatnonzero(abs(made.conditions["sigma_8"] - 0.8) < 0.1))
    report = compare(toy(MAPS, 200, 1), narrow, bins=0, inference=True, training=toy(MAPS, 300, 3))
    first, *others = [note for note in report.notes if "inference: " in note]
    ends, truth = narrow.conditions["sigma_8"], toy(MAPS, 200, 1).conditions["sigma_8"]
    judged = int(np.count_nonzero((truth >= ends.min()) & (truth <= ends.max())))
    assert 80 < judged < 120
    assert f"judged on {judged} simulated maps" in first
    assert any(f"{200 - judged} boxes of the reference lie outside that prior" in note for note in others)
    few = compare(toy(MAPS, 200, 1), made, bins=0, inference=True, training=toy(MAPS, 60, 3))
    assert any("who learns from more maps knows more" in note for note in few.notes)
    points = replace(
        made,
        conditions=type(made.conditions).of(
            {n: np.where(c > c.mean(), c.max(), c.min()).astype(np.float32) for n, c in made.conditions.items()},
            len(made),
        ),
    )
    with pytest.raises(ShardError, match=r"(?s)20 generated points.*and 4, with"):
        compare(toy(MAPS, 200, 1), points, bins=0, inference=True)


def test_what_cannot_be_inferred_is_refused() -> None:
    with pytest.raises(ConfigError, match="inference is of maps"):
        compare(toy(SMALL, 200), toy(SMALL, 200, 1), inference=True)
    with pytest.raises(ShardError, match=r"(?s)too few cosmologies.*20 simulated boxes to be judged on.*15, 15 and 89"):
        compare(toy(MAPS, 30), toy(MAPS, 100, 1), bins=0, inference=True)
    fixed = [replace(toy(MAPS, 100, i), conditions=replace_columns(toy(MAPS, 100, i))) for i in range(2)]
    with pytest.raises(ShardError, match="conditions that vary"):
        compare(*fixed, bins=0, inference=True)


def replace_columns(samples: Samples):
    """The same conditions for all."""
    return type(samples.conditions).of(
        {n: np.full(len(samples), c.mean()) for n, c in samples.conditions.items()}, len(samples)
    )
