"""The gallery: what surrogates have learnt, in figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import MAPS, SMALL, Trained, command, tiny, toy, write_folder

from calogen.families import Family
from calogen.gallery import draw_gallery
from calogen.sampling import Surrogate
from calogen.training.loop import train


def surrogate(home: Path, family: Family, **changes: object) -> Surrogate:
    names = [c.name for c in family.conditions]
    config = tiny(family.kind, conditions=names, training={"steps": 1, "validate_every": 1}, **changes)
    train(config, write_folder(home / "data", toy(family, 64)), home / "run")
    return Surrogate.load(home / "run")


@pytest.mark.parametrize("family", [SMALL, MAPS], ids=lambda f: f.name)
def test_samples_of_given_latents_are_those_of_their_seed(tmp_path: Path, family: Family) -> None:
    made = surrogate(tmp_path, family)
    columns = np.array([[(c.low + c.high) / 2 for c in made.card.conditions]] * 5, np.float32)
    named = {c: columns[:, i] for i, c in enumerate(made.conditions)}
    latents = made.latents(5, seed=3)
    np.testing.assert_array_equal(made.decode(latents, columns), made.sample(named, seed=3))
    np.testing.assert_array_equal(made.latents(2, seed=3, start=3), latents[3:])
    assert made.decode(latents[:0], columns[:0]).shape == (0, *family.sample_shape)


def test_a_gallery_of_maps(tmp_path: Path) -> None:
    made = surrogate(tmp_path, MAPS)
    drawings = {d.name: d for d in draw_gallery(made)}
    assert list(drawings) == ["walk", "sweep", "sweep-power", "field"]
    assert "512 x 512" in drawings["field"].caption
    assert "Omega_m" in drawings["sweep"].title
    panels = drawings["sweep"].figure.axes
    assert len([a for a in panels if a.images]) == 25


def test_a_gallery_of_showers_is_written(tmp_path: Path, trained: Trained) -> None:
    said = command("gallery", trained.folder, "--out", tmp_path / "figures", "--device", "cpu")
    assert said.code == 0, said.err
    names = {"walk", "sweep-incident_energy"}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{n}.{k}" for n in names for k in ("pdf", "png")}
    assert {Path(line).stem for line in said.out.split()} == names
    assert command("gallery", tmp_path / "nothing", "--out", tmp_path / "other").code == 2
    (tmp_path / "file").write_text("")
    assert command("gallery", trained.folder, "--out", tmp_path / "file").code == 74
