"""The shower frame: there and back, by whole cells, mirrored, near edges; and what may be asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from calogen.errors import ConditionError
from calogen.families import FAMILIES, CartesianLayer, Condition, Family
from calogen.models.showers.frame import SIZE, Cells, ShowerFrame, frame_of

NAMES = ("incident_energy", "impact_x", "impact_y", "theta", "phi")
RANGES = {
    "incident_energy": (1e3, 1e5),
    "impact_x": (-20, 20),
    "impact_y": (-60, 60),
    "theta": (0, 20),
    "phi": (-180, 180),
}
UNITS = {"incident_energy": "MeV", "impact_x": "mm", "impact_y": "mm", "theta": "deg", "phi": "deg"}
ROLES = {"impact_x": "impact", "impact_y": "impact", "theta": "angle", "phi": "angle"}
CONDITIONS = tuple(
    Condition(name=n, unit=UNITS[n], low=RANGES[n][0], high=RANGES[n][1], scale="log" if n == NAMES[0] else "linear")
    for n in NAMES
)
LAYERS = (
    CartesianLayer(shape=(3, 72), size=(360, 360), z=(0, 40)),  # odd and even, coarse and fine
    CartesianLayer(shape=(36, 36), size=(360, 360), z=(40, 140)),
    CartesianLayer(shape=(18, 9), size=(360, 360), z=(140, 180)),
)
FAMILY = Family(name="slab", layers=LAYERS, conditions=CONDITIONS)
SQUARE = Family(
    name="square",
    layers=tuple(CartesianLayer(shape=(12, 12), size=(360, 360), z=z) for z in ((0, 40), (40, 90))),
    conditions=CONDITIONS,
)
DEPTHS = ((25.0, 3.0), (90.0, 15.0), (165.0, 0.0))  # in mm: of mean showers, and how it grows with the showers' depth


def conditions(count: int, seed: int = 0, names: tuple[str, ...] = NAMES) -> Tensor:
    u = np.random.default_rng(seed).random((count, len(names)))
    low, high = np.array([RANGES[name] for name in names]).T
    return torch.from_numpy(low + (high - low) * u).float()


def straight(family: Family, given: Tensor, seed: int = 0, points: int = 60) -> Tensor:
    """Showers along straight lines: equal deposits about the axis, exponential in the distance from it."""
    rng = np.random.default_rng(seed)
    energy, x, y, theta, phi = given.double().numpy().T
    slope = np.tan(np.radians(theta)) * np.stack([np.cos(np.radians(phi)), np.sin(np.radians(phi))])
    late = rng.normal(size=len(given)).clip(-2, 2)
    parts = []
    for i, layer in enumerate(family.layers):
        z = DEPTHS[i][0] + DEPTHS[i][1] * late
        turn, radius = rng.uniform(0, 2 * np.pi, (points, len(given))), rng.gamma(2, 8, (points, len(given)))
        found = layer.cell_at(x + z * slope[0] + radius * np.cos(turn), y + z * slope[1] + radius * np.sin(turn))
        share = (0.2, 0.6, 0.2)[i] * np.exp((i - 1) * 0.4 * late)
        part = np.zeros((len(given), int(np.prod(layer.shape)) + 1))
        np.add.at(part, (np.arange(len(given)), found), energy * share / points)  # -1, outside, is the last
        parts.append(part[:, :-1])
    return torch.from_numpy(np.concatenate(parts, 1)).float()


@dataclass(frozen=True)
class Fitted:
    """A frame with the showers it was fitted to."""

    frame: ShowerFrame
    showers: Tensor
    conditions: Tensor
    energies: Tensor
    cells: Cells


def fitted(family: Family, count: int) -> Fitted:
    given = conditions(count)
    showers = straight(family, given)
    frame, remarks = frame_of(family, NAMES)
    assert frame is not None
    assert not remarks
    frame.fit(showers, given)
    energies = frame.energies(showers, family)
    return Fitted(frame, showers, given, energies, frame.cells(given, energies))


@pytest.fixture(scope="module")
def fit() -> Fitted:
    return fitted(FAMILY, 3000)


def test_effective_depths_are_those_that_showers_were_made_with(fit: Fitted) -> None:
    middle = fit.frame.depths @ torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(middle, torch.tensor([z for z, _ in DEPTHS]), atol=2.0, rtol=0)
    growth = fit.frame.depths[:, 2]
    torch.testing.assert_close(growth, torch.tensor([g for _, g in DEPTHS]), atol=3.0, rtol=0)


def test_there_and_back_is_the_same_shower_but_for_what_lies_beyond_the_window(fit: Fitted) -> None:
    inside, beyond = fit.frame.to_frame(fit.showers, fit.cells)
    again, lost = fit.frame.from_frame(inside, fit.cells)
    whole = beyond.amax(1) == 0
    assert 0.3 < whole.double().mean() < 1
    torch.testing.assert_close(again[whole], fit.showers[whole], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(fit.frame.energies(again, FAMILY), fit.energies, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(lost, fit.frame.energies(inside, fit.frame.window) - fit.energies, rtol=1e-3, atol=0.1)
    seen = fit.frame.inside(fit.cells)
    assert not inside[~seen].any()
    assert ((again > 0) <= (fit.showers > 0)).all()


def test_the_crossed_cell_is_the_middle_of_the_window(fit: Fitted) -> None:
    # A shower that is one cell, the crossed one.
    crossed = fit.cells.crossed
    counts = torch.tensor([layer.shape for layer in LAYERS])
    rows = ((crossed >= 0) & (crossed < counts)).all(2).all(1)
    single = torch.zeros_like(fit.showers)
    for i, (layer, part) in enumerate(zip(LAYERS, FAMILY.layer_slices, strict=True)):
        number = crossed[:, i, 0] * layer.shape[1] + crossed[:, i, 1]
        single[rows, part.start + number[rows]] = 1.0
    cells = Cells(*(part[rows] for part in fit.cells))
    inside, beyond = fit.frame.to_frame(single[rows], cells)
    assert beyond.abs().max() == 0
    for part in fit.frame.window.layer_slices:
        assert (inside[:, part].argmax(1) == (part.stop - part.start) // 2).all()
        assert ((inside[:, part] > 0).sum(1) == 1).all()


@pytest.mark.parametrize(("axis", "periods"), [(0, 1), (0, -1), (1, 1)])
def test_a_shower_moved_by_common_periods_of_the_cells_is_the_same_in_the_frame(
    fit: Fitted, axis: int, periods: int
) -> None:
    # Its impact point moves by as much, its voxels by whole cells; those close enough to the centre stay inside.
    assert fit.frame.periods == (120.0, 40.0)
    shift = periods * fit.frame.periods[axis]
    moved_conditions = fit.conditions.clone()
    moved_conditions[:, 1 + axis] += shift
    moved = torch.zeros_like(fit.showers)
    for layer, part in zip(LAYERS, FAMILY.layer_slices, strict=True):
        steps = round(shift / layer.pitch[axis])
        grid = fit.showers[:, part].unflatten(1, layer.shape)
        moved[:, part] = grid.roll(steps, 1 + axis).flatten(1)
    cells = fit.frame.cells(moved_conditions, fit.energies)
    steps = (cells.crossed - fit.cells.crossed)[:, :, axis]
    assert (steps == torch.tensor([round(shift / layer.pitch[axis]) for layer in LAYERS])).all()
    torch.testing.assert_close(cells.offset, fit.cells.offset, atol=1e-3, rtol=0)
    torch.testing.assert_close(fit.frame.features(cells), fit.frame.features(fit.cells), atol=2e-2, rtol=0)
    both = fit.frame.inside(cells) & fit.frame.inside(fit.cells)
    before, _ = fit.frame.to_frame(fit.showers, fit.cells)
    after, _ = fit.frame.to_frame(moved, cells)
    near = (both | (before == 0)).all(1) & (fit.conditions[:, 1 + axis].abs() < 10)
    assert near.sum() > 20
    for part in fit.frame.window.layer_slices:  # energies change only by what is lost at the edges
        shares = [a[near, part] / a[near, part].sum(1, keepdim=True) for a in (before, after)]
        torch.testing.assert_close(*shares)


def mirrored_cells(frame: ShowerFrame, cells: Cells, symmetry: str) -> Cells:
    """Where the axes of mirrored showers must be; ``exchange`` is of x and y."""
    if symmetry == "exchange":
        return Cells(cells.crossed.flip(-1), cells.offset.flip(-1), cells.tangents.flip(-1))
    turned = torch.tensor([symmetry == "mirror-x", symmetry == "mirror-y"])
    return Cells(
        torch.where(turned, frame._counts - 1 - cells.crossed, cells.crossed),
        torch.where(turned, 1 - cells.offset, cells.offset),
        torch.where(turned, -cells.tangents, cells.tangents),
    )


@pytest.mark.parametrize(("axis", "name"), [(0, "mirror-x"), (1, "mirror-y")])
def test_the_window_of_a_mirrored_shower_is_the_mirrored_window(fit: Fitted, axis: int, name: str) -> None:
    mirrored = fit.conditions.clone()
    mirrored[:, 1 + axis] *= -1
    mirrored[:, 4] = (180 - mirrored[:, 4]) if axis == 0 else -mirrored[:, 4]
    family = FAMILY.model_copy(update={"symmetries": (name,)})
    order = torch.from_numpy(family.images[1].order)
    cells, image = fit.frame.cells(mirrored, fit.energies), mirrored_cells(fit.frame, fit.cells, name)
    sure = (fit.cells.offset - 0.5).abs().amax((1, 2)) < 0.499  # rounding may move others to the next cell
    assert torch.equal(cells.crossed[sure], image.crossed[sure])
    torch.testing.assert_close(cells.offset[sure], image.offset[sure], atol=1e-3, rtol=0)
    torch.testing.assert_close(cells.tangents, image.tangents, atol=1e-5, rtol=0)
    flipped = torch.from_numpy(fit.frame.window.model_copy(update={"symmetries": (name,)}).images[1].order)
    direct, _ = fit.frame.to_frame(fit.showers[:, order], image)
    through, _ = fit.frame.to_frame(fit.showers, fit.cells)
    torch.testing.assert_close(direct, through[:, flipped], rtol=1e-4, atol=1e-2)


def test_in_square_layers_x_and_y_may_be_exchanged() -> None:
    fit = fitted(SQUARE, 300)
    turned = fit.conditions[:, [0, 2, 1, 3, 4]].clone()
    turned[:, 4] = 90 - turned[:, 4]
    cells, image = fit.frame.cells(turned, fit.energies), mirrored_cells(fit.frame, fit.cells, "exchange")
    assert torch.equal(cells.crossed, image.crossed)
    shapes = (SQUARE, 12), (fit.frame.window, 13)
    order, flipped = (
        torch.from_numpy(
            np.concatenate([np.arange(n * n).reshape(n, n).T.ravel() + start for start in f.layer_bounds[:-1]])
        )
        for f, n in shapes
    )
    direct, _ = fit.frame.to_frame(fit.showers[:, order], image)
    through, _ = fit.frame.to_frame(fit.showers, fit.cells)
    torch.testing.assert_close(direct, through[:, flipped], rtol=1e-4, atol=1e-2)


def test_features_of_mirrored_showers_are_the_same_up_to_signs_and_exchanged_edges(fit: Fitted) -> None:
    features, image = (fit.frame.features(c) for c in (fit.cells, mirrored_cells(fit.frame, fit.cells, "mirror-x")))
    assert features.shape == (3000, 3, SIZE)
    assert features.abs().max() < 1.001
    # Pairs along x and y: only those of x change signs, and only where they are odd in what is mirrored.
    odd = torch.tensor([-1, 1, -1, 1, *[1] * 6, -1, 1, -1, 1, *[1] * 6, -1, -1, -1, -1])
    torch.testing.assert_close(image[..., :-4], features[..., :-4] * odd)
    torch.testing.assert_close(image[..., [-2, -3, -4, -1]], features[..., [-4, -3, -2, -1]])
    torch.testing.assert_close(image.abs().sort(-1).values, features.abs().sort(-1).values)


def test_near_an_edge_as_much_is_lost_as_lies_beyond_it(fit: Fitted) -> None:
    # Showers at normal incidence, 20 mm before an edge that no training shower came near.
    given = conditions(400, seed=5)
    given[:, 1:4] = torch.tensor([160.0, 0.0, 0.0])
    showers = straight(FAMILY, given, seed=6)
    kept = fit.frame.energies(showers, FAMILY)
    given[:, 1] = 40.0  # the same showers in the middle, a whole period away
    whole = straight(FAMILY, given, seed=6)
    energies = fit.frame.energies(whole, FAMILY)
    inside, _ = fit.frame.to_frame(whole, fit.frame.cells(given, energies))
    given[:, 1] = 160.0
    made, lost = fit.frame.from_frame(inside, fit.frame.cells(given, energies))
    true = 1 - kept.sum(0) / energies.sum(0)
    assert true.min() > 0.05
    torch.testing.assert_close(lost.sum(0) / energies.sum(0), true, atol=0.03, rtol=0)
    torch.testing.assert_close(made.sum(1) + lost.sum(1), fit.frame.energies(inside, fit.frame.window).sum(1))


def test_few_showers_and_empty_layers_leave_effective_depths_within_their_layers() -> None:
    given = conditions(3, seed=1)
    showers = straight(FAMILY, given, seed=1, points=5)
    showers[:, FAMILY.layer_slices[2]] = 0
    frame = ShowerFrame(FAMILY, NAMES)
    frame.fit(showers, given)
    assert all(b.isfinite().all() for b in frame.buffers())
    assert float(frame.depths[2, 0]) == 160.0
    depth = (frame.cells(given).crossed + frame.cells(given).offset)[:, 1] * 10 - 180 - given[:, 1:3]
    reached = depth.norm(dim=1) / torch.tan(torch.deg2rad(given[:, 3]))
    assert ((reached > 39.9) & (reached < 140.1)).all()


@pytest.mark.parametrize("names", [("impact_y",), ("incident_energy", "theta"), ("incident_energy", "impact_x", "phi")])
def test_conditions_that_are_none_are_zero(fit: Fitted, names: tuple[str, ...]) -> None:
    given = conditions(50, names=names)
    full = torch.zeros(50, 5)
    full[:, 0] = 1e4  # the middle of the logarithmic range
    for i, name in enumerate(names):
        full[:, NAMES.index(name)] = given[:, i]
    frame = ShowerFrame(FAMILY, names)
    frame.load_state_dict(fit.frame.state_dict())
    for some, all_of_them in zip(frame.cells(given), fit.frame.cells(full), strict=True):
        torch.testing.assert_close(some, all_of_them, atol=1e-3, rtol=0)


def test_gradients_pass_through_the_frame(fit: Fitted) -> None:
    inside, _ = fit.frame.to_frame(fit.showers[:20], Cells(*(part[:20] for part in fit.cells)))
    inside.requires_grad_(True)
    made, _ = fit.frame.from_frame(inside, Cells(*(part[:20] for part in fit.cells)))
    (gradient,) = torch.autograd.grad(made.square().sum(), inside)
    assert gradient.isfinite().all()
    assert (gradient != 0).any(1).all()


def equivalent(frame: ShowerFrame, **changes: float) -> dict[str, float]:
    row = {**dict.fromkeys(NAMES, 0.0), "incident_energy": 1e4, **changes}
    low, high = zip(*(RANGES[name] for name in NAMES), strict=True)
    found = frame.equivalent(np.array([list(row.values())], np.float32), low, high)
    return {n: v for n, v in zip(NAMES, found[0].tolist(), strict=True) if n in changes}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"impact_x": 15.0}, {"impact_x": 15.0}),
        ({"impact_x": 105.0}, {"impact_x": -15.0}),  # a period of 120 mm away from the trained +-20 mm
        ({"impact_x": -130.0, "impact_y": 75.0}, {"impact_x": -10.0, "impact_y": 35.0}),
        ({"impact_x": 60.0}, {"impact_x": 60.0}),  # no cell was hit there: stays outside the range
        (
            {"theta": 30.0, "impact_x": 110.0, "phi": 180.0},
            {"theta": 30.0, "impact_x": -10.0, "phi": 180.0},
        ),  # the angle stays untrained
    ],
)
def test_impact_points_are_moved_by_whole_periods_into_the_trained_range(
    fit: Fitted, asked: dict[str, float], expected: dict[str, float]
) -> None:
    assert equivalent(fit.frame, **asked) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"impact_x": 200.0}, "outside the face of the detector"),
        ({"impact_y": -181.0}, "at most 180 mm from its centre"),
        ({"impact_x": 150.0, "theta": 19.0}, "leaves the detector at its side"),
        ({"theta": 60.0}, "a smaller theta"),
        ({"theta": 95.0}, "does not enter the detector"),
        ({"theta": -5.0}, "0 <= theta < 90 degrees"),
    ],
)
def test_what_misses_the_detector_is_refused_with_what_to_do(
    fit: Fitted, asked: dict[str, float], message: str
) -> None:
    with pytest.raises(ConditionError, match=message):
        equivalent(fit.frame, **asked)


def test_an_outline_without_numbers_can_be_built(fit: Fitted) -> None:
    with torch.device("meta"):
        outline = ShowerFrame(FAMILY, NAMES)
    assert {k: b.shape for k, b in outline.state_dict().items()} == {
        k: b.shape for k, b in fit.frame.state_dict().items()
    }


def test_there_is_a_frame_where_impact_or_angle_are_conditions_and_layers_have_depths() -> None:
    assert frame_of(FAMILY, ("incident_energy",)) == (None, ())
    assert frame_of(FAMILY, ("incident_energy", "theta"))[0] is not None
    flat = FAMILY.model_copy(update={"layers": tuple(layer.model_copy(update={"z": None}) for layer in LAYERS)})
    frame, (remark,) = frame_of(flat, NAMES)
    assert frame is None
    assert "`z = [0, 90]`" in remark
    round_ = FAMILIES["2"].model_copy(update={"conditions": CONDITIONS})
    frame, (remark,) = frame_of(round_, NAMES)
    assert frame is None
    assert "rectangular cells" in remark
    tilt = Condition(name="tilt", role="angle", unit="deg", low=0, high=20)
    frame, (remark,) = frame_of(FAMILY.model_copy(update={"conditions": (CONDITIONS[0], tilt)}), ("tilt",))
    assert frame is None
    assert remark.endswith("theta, phi [deg or rad], not 'tilt' [deg]")
