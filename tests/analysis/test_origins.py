"""What files say of their surrogate's training and cost is read from them, and drawn."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.figures import training
from calogen.analysis.figures.panels import encode, look_of, styled
from calogen.analysis.metrics.validation import score, score_floor
from calogen.analysis.origins import Costs, History, chosen_checkpoint
from calogen.analysis.page.html import render
from calogen.analysis.page.tables import SideBySide
from support import SMALL, Trained, toy, write_folder

from calogen.sampling import Surrogate
from calogen.shards.manifest import read_manifest
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

HISTORY = [
    {"step": 0, "seconds": 1.5, "score": 0.9, "floor": 0.2, "floor_error": 0.01, "critic_gap": 0.0},
    {"step": 10, "seconds": 3.0, "score": 0.4, "critic_gap": 0.1, "wasserstein": 1.0},
    {"step": 20, "seconds": 4.5, "score": None, "critic_gap": 0.2, "wasserstein": 0.5},
]
ENTRY = {
    "checkpoint_sha256": "a",
    "checkpoint_step": 10,
    "network": "mlp",
    "objective": "wgan-gp",
    "parameters": 1234,
    "training": {"device": "cpu", "threads": 2},
    "history": HISTORY,
}


def made(count: int, seed: int, **changes: object) -> Samples:
    return replace(toy(SMALL, count, seed), kind="generated", provenance=({**ENTRY, **changes},))


def test_costs_are_what_provenance_and_manifest_say(trained: Trained, tmp_path: Path) -> None:
    assert Costs.of(made(2, 0)) == Costs("mlp", "wgan-gp", 1234, 20, 4.5, "cpu, 2 thread(s)", None, 10)
    surrogate = Surrogate.load(trained.folder)
    out = surrogate.generate(tmp_path / "a", {"incident_energy": "fixed:50GeV"}, 2100, shard_size=700, workers=1)
    costs = Costs.of(open_shards(out))
    manifest = read_manifest(out)
    assert manifest is not None
    seconds = [record.seconds for record in manifest.records]
    assert all(one is not None and one > 0 for one in seconds)
    assert costs.samples_per_second == pytest.approx(2100 / sum(one or 0 for one in seconds))
    assert (costs.network, costs.objective, costs.training_steps) == ("copula", "wgan-gp", 4)
    assert costs.parameters == surrogate.parameters > 0
    before = (out / "manifest.json").read_bytes()
    (out / "shard-000001.h5").write_bytes(b"damaged")
    surrogate.generate(out, {"incident_energy": "fixed:50GeV"}, 2100, shard_size=700, workers=1)
    assert (out / "manifest.json").read_bytes() == before  # repaired: what it first took stays


@pytest.mark.parametrize(
    "provenance",
    [
        (),
        ({"toy": 1},),
        ({**ENTRY, "history": "no"}, {**ENTRY, "checkpoint_sha256": "b"}),
        ({"checkpoint_sha256": "a", "history": [1, None], "training": [], "parameters": True, "network": 3},),
        ({"checkpoint_sha256": "a", "history": [{"step": "x", "score": 10**400}, {"step": float("nan")}]},),
    ],
)
def test_what_files_do_not_say_is_unknown(provenance: tuple[dict[str, object], ...]) -> None:
    costs = Costs.of(replace(made(2, 0), provenance=provenance))
    assert costs.known() == {}
    history = History.of(provenance)
    assert history is None or not any(np.isfinite(curve).any() for curve in history.curves.values())


def test_a_history_keeps_gaps_floor_and_the_chosen_step() -> None:
    history = History.of((ENTRY,))
    assert history is not None
    assert history.floor == (0.2, 0.01)
    assert history.chosen == 10
    np.testing.assert_array_equal(history.curves["score"], [0.9, 0.4, np.nan])
    np.testing.assert_array_equal(history.curves["wasserstein"], [np.nan, 1.0, 0.5])
    assert "floor" not in history.curves


def test_seeds_share_names_and_average_numbers() -> None:
    one = Costs("mlp", "wgan-gp", 100, 20, 4.0, "cpu, 1 thread(s)", 1000.0)
    two = replace(one, training_seconds=6.0, samples_per_second=None, training_device="cuda")
    assert asdict(Costs.mean([one, two])) == {
        **asdict(one), "training_seconds": 5.0, "samples_per_second": None, "training_device": None,
    }  # fmt: skip


def test_reports_draw_histories_and_tell_costs_side_by_side() -> None:
    others = made(200, 2, history=[], network="vae", objective="likelihood", checkpoint_sha256="b")
    report = compare(toy(SMALL, 200), {"gan": made(200, 1), "vae": others}, bins=1)
    (drawing,) = styled(training.history(report))
    assert encode(drawing, "png").startswith(b"\x89PNG")
    assert "gan: best checkpoint: step 10 of 20, in 4 s" in drawing.caption
    labels = [axes.get_ylabel() for axes in drawing.figure.axes]
    assert len(labels) == 3
    page = render(report, [])
    assert "Cost" in page
    assert "<td>step 10 of 20</td>" in page
    assert "best checkpoint: step 10 of 20" in page.partition("<section")[0]  # on the first screen
    assert "history" not in page.partition('id="provenance"')[2]
    rows = {row[0]: row for row in csv.reader(io.StringIO(SideBySide.of(report).to_csv()))}
    assert rows["training_seconds"][1:3] == ["s", "4.5"]
    assert "parameters & " in SideBySide.of(report).to_latex()
    content = json.loads(json.dumps(report.to_json()))
    assert content["generated"]["gan"]["costs"]["training_steps"] == 20
    assert content["generated"]["vae"]["costs"]["network"] == "vae"
    assert list(training.history(replace(report, generated={**report.generated, "gan": report.generated["vae"]}))) == []


def test_the_floor_of_a_score_is_that_of_independent_samples() -> None:
    reference, others = toy(SMALL, 300, 1), toy(SMALL, 1000, 2)
    found = score_floor(reference, others)
    assert found is not None
    floor, error = found
    expected = [score(reference, others.read(start, start + 300)) for start in (0, 300, 600)]
    assert floor == pytest.approx(np.mean(expected))
    assert error == pytest.approx(np.std(expected, ddof=1))
    shifted = replace(toy(SMALL, 300, 3), values=1.3 * toy(SMALL, 300, 3).values)
    assert score(reference, shifted) > floor + 5 * error
    assert score_floor(reference, others.read(0, 299)) is None
    assert score_floor(reference, others.read(0, 599)) == (pytest.approx(expected[0]), None)


@pytest.mark.parametrize(
    ("best", "steps", "said"),
    [
        (250, 600, "best checkpoint: step 250 of 600"),
        (0, 600, "step 0: the fitted start; training did not improve on it"),
        (0, 0, "step 0: the fitted start alone, without training"),
        (None, 3, ""),
        (3, None, ""),
    ],
)
def test_what_training_came_to_is_said(best: int | None, steps: int | None, said: str) -> None:
    assert chosen_checkpoint(best, steps) == said


def test_shards_of_samples_carry_the_history_of_their_surrogate(trained: Trained, tmp_path: Path) -> None:
    write_folder(tmp_path / "plain", toy(SMALL, 20))
    assert History.of(open_shards(tmp_path / "plain").provenance) is None
    out = Surrogate.load(trained.folder).generate(tmp_path / "b", {"incident_energy": "fixed:5GeV"}, 10, workers=1)
    history = History.of(open_shards(out).provenance)
    assert history is not None
    assert history.steps.tolist() == [0, 2, 4]
    assert history.chosen in history.steps
    assert np.isfinite(history.curves["score"]).all()


def test_twenty_five_surrogates_look_different_and_the_first_five_by_colour_alone() -> None:
    titles = ["reference", *map(str, range(25))]
    looks = [look_of(titles, title) for title in titles]
    assert len({(look.colour, look.marker, str(look.line)) for look in looks}) == 26
    assert len({look.colour for look in looks[:6]}) == 6
