"""The surrogates that come with calogen do what their cards and the README say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import ROOT

from calogen import Surrogate
from calogen.runs.checkpoint import load_checkpoint
from calogen.runs.find import find_model
from calogen.shards.sources import open_shards

EDGES = np.linspace(1e3, 100e3, 5)


@pytest.fixture(scope="module", params=["calogan-gamma", "calogan-eplus"])
def sides(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Held-out showers and generated ones, 20,000: layer energies and incident energies, MeV."""
    reference = open_shards(ROOT / "data" / request.param / "test").read()
    energies = np.resize(reference.conditions["incident_energy"], 20_000)
    generated = Surrogate.load(request.param).sample({"incident_energy": energies}, seed=1)
    assert np.isfinite(generated).all()
    assert (generated >= 0).all()
    sums = [
        np.stack([showers[:, part].sum(1, dtype=np.float64) for part in reference.family.layer_slices], 1)
        for showers in (reference.values, generated)
    ]
    return sums[0], reference.conditions["incident_energy"], sums[1], energies


@pytest.mark.parametrize("low", EDGES[:-1])
def test_energies_of_held_out_showers_are_met_in_every_bin(sides, low):
    reference, incident, generated, energies = sides
    high = low + EDGES[1] - EDGES[0]
    ours, theirs = (energies >= low) & (energies < high), (incident >= low) & (incident < high)
    mine, data = generated[ours], reference[theirs]
    response = [(mine.sum(1) / energies[ours]).mean(), (data.sum(1) / incident[theirs]).mean()]
    assert response[0] == pytest.approx(response[1], rel=0.002)
    shares = [layers / layers.sum(1, keepdims=True) for layers in (mine, data)]
    for layer, mean, spread in ((0, 0.05, 0.2), (1, 0.05, 0.2), (2, 0.2, None)):
        a, b = (share[:, layer] for share in shares)
        error = 2 * np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
        assert abs(a.mean() - b.mean()) < max(mean * b.mean(), error)
        if spread:
            assert a.std() == pytest.approx(b.std(), rel=spread)


@pytest.mark.parametrize(
    "name",
    [
        *("calogan-gamma", "calogan-gamma-angled", "calogan-eplus", "par04-electron"),
        *("nbody-64", "nbody-256", "nbody-32-to-64"),
    ],
)
def test_the_card_of_a_surrogate_agrees_with_its_checkpoint(name):
    folder = find_model(name)
    card = load_checkpoint(folder).card
    text = (folder / "README.md").read_text()
    assert card.model_sha256[:16] in text
    assert ("twelve rounds" in " ".join(text.split())) == (card.step == 12)
    assert card.step in (0, 12) or f"step {card.step} of" in text  # the fitted start alone, or trained
    assert f"score {card.score:.3f}" in " ".join(text.split())
    facts = card.provenance
    assert "calogen {calogen}, torch {torch}, numpy {numpy}.".format_map(facts) in text
    assert "/" not in (card.config.prior or "")  # a name, not a place on somebody's disk
    assert str(ROOT.parent) not in (folder / "checkpoint.json").read_text()
    assert json.loads((folder / "checkpoint.json").read_text())["provenance"]["seed"] == card.config.seed


def test_maps_are_translated_to_high_resolution_at_once():
    """Means over 2 x 2 pixels of simulated maps stand for low ones: of each, a map that goes with it."""
    samples = open_shards(ROOT / "data" / "nbody-64" / "test").read(0, 60)
    low = samples.values.reshape(60, 32, 2, 32, 2).mean((2, 4))
    surrogate = Surrogate.load("nbody-32-to-64")
    made = [surrogate.translate(low, seed) for seed in range(4)]
    assert made[0].shape == samples.values.shape
    assert made[0].mean() == pytest.approx(low.mean(), rel=0.05)
    assert np.corrcoef(made[0].reshape(60, 32, 2, 32, 2).mean((2, 4)).ravel(), low.ravel())[0, 1] > 0.9
    logs, truth = [np.log(one + 0.02) for one in made], np.log(samples.values + 0.02)
    alike = [np.corrcoef(one.ravel(), truth.ravel())[0, 1] for one in (logs[0], np.mean(logs, 0))]
    assert 0.8 < alike[0] < alike[1]
    assert np.corrcoef((logs[0] - truth).ravel(), (logs[1] - truth).ravel())[0, 1] < 0.8
    assert surrogate.translate(np.tile(low[:1], (1, 2, 3))).shape == (1, 128, 192)
