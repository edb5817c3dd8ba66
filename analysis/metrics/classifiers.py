"""Two-sample tests by classifier: can anything that was trained to do so tell generated samples from reference ones?

The area under the ROC curve (AUC) on held-out samples is 0.5 if it cannot, 1 if it always can. An AUC near 0.5 means
something only if the same classifier on as many samples sees a small change that is known to be there: each recipe is
therefore also run on altered reference samples, and on two halves of the reference for the floor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.isotonic import IsotonicRegression
from torch import nn

from calogen.errors import ConfigError
from calogen.families import Family, varies

from ..inputs import require_same
from ..observables.catalogue import catalogue, observe
from ..survey.plan import common_conditions
from ..survey.survey import Progress, vectors
from .distances import too_few
from .kinds import LENGTHS, Change, kind_of
from .ranks import auc
from .registry import Key, Metric, Quantity

if TYPE_CHECKING:
    from calogen.shards.samples import Samples

Array = NDArray[np.float64]
Columns = NDArray[np.float32]
Rows = NDArray[np.int64]
Classifier = Callable[[Columns], Array]  # logits of being generated, (N,), of columns (N, F)
FOLDS = 5
_DISTINCT = 50  # different conditions from which on equal ones are kept in one fold
FEWEST_A_SIDE = 100  # fewer held-out samples say nothing
_MOST_LOOKED_AT = 2000  # held-out samples from which the tell-tale observables are worked out
_TREES = 100
_NODES, _EPOCHS = 2048, 50  # of the CaloChallenge's network
_SIGNIFICANT = 3.0  # errors above 0.5 at which a difference counts as seen

_AREA = (
    "Area under the ROC curve of classifiers trained to tell generated from reference samples: 0.5 they cannot, 1 they "
    "always can."
)
AUC = Quantity("auc", "AUC of a classifier", _AREA, headline=True)
AUC_WORST = Quantity("auc/worst", "AUC of the best classifier", _AREA, headline=True, large=True)
_DIVERGENCE = "Jensen-Shannon divergence in bits as those classifiers estimate it: 0 equal, 1 disjoint."
JSD = Quantity("jsd", "Jensen-Shannon divergence", _DIVERGENCE, unit="bit")


@dataclass(frozen=True)
class Classification:
    """What the classifiers found.

    Attributes:
        metrics: ``auc/VIEW`` for each view and ``auc/worst``, the largest of them (its floor is the largest floor);
            recipe ``calochallenge`` adds ``jsd/VIEW``, the Jensen-Shannon divergence in bits.
        folds: AUC of every fold by view.
        tell_tales: Observables that the classifier on observables lives on, and the AUC it loses when one of them is
            shuffled among held-out samples; the largest loss first, only what exceeds its error three times. Of
            observables that say the same, the loss is shared.
        controls: ``CHANGE/VIEW``: AUC of altered against other reference samples, its floor exactly 0.5.
        notes: Sentences that belong beside the numbers: sizes, what the errors mean, changes that were not seen.
    """

    metrics: dict[Key, Metric]
    folds: dict[str, tuple[float, ...]]
    tell_tales: tuple[tuple[str, float], ...]
    controls: dict[str, Metric]
    notes: tuple[str, ...]


_RECIPES = {"light": 10_000, "calochallenge": 100_000}
"""How classifiers are trained and tested, and samples a side at most; all but the published one are cross-fitted."""


def classify(
    reference: Samples,
    generated: Samples,
    *,
    recipe: Literal["light", "calochallenge"] = "light",
    seed: int = 0,
    progress: Progress | None = None,
) -> Classification:
    """Train classifiers to tell generated from reference samples, and say how well they do on held-out ones.

    Views of showers: ``voxels`` (divided by the incident energy), ``log_voxels`` and ``observables``; of maps,
    ``log_pixels`` and ``observables``; each with the conditions. Samples of equal conditions (of one realisation) lie
    in one fold: a classifier that knows one of a pair made for the same energy would be wrong about the other.

    Recipe ``light``: 5-fold cross-fitted, at most 10,000 samples a side; a small network on voxels (a convolutional
    one on pixels), gradient boosted trees on observables. Recipe ``calochallenge``: the published one (hours without
    a GPU for 100,000 showers a side; a GPU is used if there is one), to which the view ``log_voxels`` is added.

    Both sides have as many samples. The floor compares halves of the reference, so it has fewer unless there are
    twice as many; the expected AUC of equal distributions is 0.5 at any size.

    Args:
        reference: Samples in physical units.
        generated: Samples of the same family, in physical units.
        recipe: See above.
        seed: Decides sub-samples, folds and networks; results repeat for the same number of threads.
        progress: Called with a title, trainings done and trainings in all.

    Returns:
        AUCs; an error is DeLong's for the held-out samples, averaged over folds. It leaves out how training would
        vary, which does not matter where there is nothing to find.

    Raises:
        ShardError: If the families differ or a side has too few samples.
        ConfigError: If the recipe is unknown or not for this family.

    Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545; CaloChallenge ``evaluate.py``, arXiv:2410.21611; errors: DeLong
    et al. 1988; tell-tales: permutation importance, Breiman 2001.
    """
    _check(reference, generated, recipe)
    (reference, bad), (generated, worse) = _usable(reference), _usable(generated)
    cross_fit, rng = recipe != "calochallenge", np.random.default_rng([seed, 3])
    n, first, second = _sizes(reference, generated, _RECIPES[recipe], rng)
    views = Views(reference, generated, recipe)
    changes = kind_of(reference.family).changes
    # Networks see the changes in the first fold or not at all; trees are quick enough for all folds.
    few = {view: FOLDS if view == "observables" else 1 for view in views.names}
    each = FOLDS if cross_fit else 1
    total = 2 * each * len(few) + len(changes) * sum(min(each, folds) for folds in few.values())
    done = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress("classifiers", next(done), total)

    trial = partial(_trial, views, seed=seed, cross_fit=cross_fit, tick=tick)
    mine, other = _sample(reference, n, rng), _sample(generated, n, rng)
    against = {view: trial(view, mine, other, explain=view == "observables") for view in few}
    among = {view: trial(view, first, second) for view in few}
    controls: dict[str, Metric] = {}
    unseen: list[Change] = []
    for name, change in changes.items():
        altered = replace(first, values=change.make(first.values, rng))
        areas = {view: trial(view, second, altered, folds=folds).area for view, folds in few.items()}
        found = {f"{name}/{view}": Metric.of(*area, 0.5, 0.0, len(first)) for view, area in areas.items()}
        if not any(metric.pull is not None and metric.pull > _SIGNIFICANT for metric in found.values()):
            unseen.append(change)
        controls |= found
    metrics = _metrics(against, among, n, jsd=not cross_fit)
    notes = _notes(recipe, n, len(first), (bad, worse), unseen, views)
    return Classification(
        metrics, {view: got.folds for view, got in against.items()}, against["observables"].tell_tales, controls, notes
    )


def _sizes(reference: Samples, generated: Samples, most: int, rng: np.random.Generator) -> tuple[int, Samples, Samples]:
    """Samples a side against generated ones, and the halves of the reference for floor and controls."""
    n, half = min(len(reference), len(generated), most), min(len(reference) // 2, most)
    if min(n, half) < FEWEST_A_SIDE:
        hint = "give more samples, or compare without a classifier"
        raise too_few("for a classifier", FEWEST_A_SIDE, len(reference), len(generated), hint)
    return n, *halves(reference, half, rng)


def _sample(samples: Samples, count: int, rng: np.random.Generator) -> Samples:
    """A random ``count`` of them, in their order."""
    return samples if count == len(samples) else samples.select(np.sort(rng.permutation(len(samples))[:count]))


def _check(reference: Samples, generated: Samples, recipe: str) -> None:
    if recipe not in _RECIPES:
        raise ConfigError("unknown recipe of classifiers", expected=" or ".join(_RECIPES), found=recipe)
    require_same(reference.family, generated.family, "generated")
    if recipe not in kind_of(reference.family).recipes:
        found = f"maps of family '{reference.family.name}'"
        raise ConfigError("the CaloChallenge's classifiers are for showers", found=found, hint="use light")


def _usable(samples: Samples) -> tuple[Samples, int]:
    """The samples whose voxels are finite, and how many are not."""
    good = np.isfinite(samples.values.reshape(len(samples), -1).sum(axis=1, dtype=np.float64))
    return (samples, 0) if good.all() else (samples.select(good), int(np.count_nonzero(~good)))


@dataclass(frozen=True)
class _Found:
    """What a classifier reached in one view: mean AUC and Jensen-Shannon divergence with errors, and AUC by fold."""

    area: tuple[float, float]
    jsd: tuple[float, float]
    folds: tuple[float, ...]
    tell_tales: tuple[tuple[str, float], ...] = ()


def _trial(
    views: Views,
    view: str,
    first: Samples,
    second: Samples,
    *,
    seed: int,
    cross_fit: bool,
    tick: Callable[[], None],
    folds: int = FOLDS,
    explain: bool = False,
) -> _Found:
    """Train on some folds of two sets of samples and test on others; label 1 is ``second``.

    Only the first ``folds`` are held out in turn; ``explain`` looks for tell-tales.
    """
    names, one = views.table(view, first)
    table = np.concatenate([one, views.table(view, second)[1]])
    label = np.repeat(np.array([0, 1], dtype=np.float32), [len(first), len(second)])
    part = parts(groups_of((first, second)), label, FOLDS, np.random.default_rng([seed, 4]))
    found, lost = [], []
    for number, (train, choose, test) in enumerate(_splits(part, cross_fit)):
        if number == folds:
            break
        run = int(np.random.default_rng([seed, 5, number]).integers(2**31))
        classifier = _fit(views, view, names, table, label, train, choose, run)
        logits = classifier(table[test])
        found.append((_area(logits, label[test]), _jsd(logits, label[test])))
        if explain:
            looked_at = test[np.random.default_rng(run).permutation(len(test))[:_MOST_LOOKED_AT]]
            lost += _losses(classifier, table[looked_at], label[looked_at], run, rounds=1 if cross_fit else FOLDS)
        tick()
    tell_tales = _significant(names, np.asarray(lost), given=len(views.conditions)) if lost else ()
    values, errors = np.moveaxis(np.array(found), -1, 0)  # of AUC and divergence in each fold, (F, 2)
    error = np.sqrt(np.sum(errors**2, axis=0)) / len(values)
    area, jsd = zip(values.mean(axis=0).tolist(), error.tolist(), strict=True)
    return _Found(area, jsd, tuple(values[:, 0].tolist()), tell_tales)


def _splits(part: Rows, cross_fit: bool) -> list[list[Rows]]:
    """Samples to train on, to choose the epoch and calibrate by, and to test on."""
    splits: list[tuple[NDArray[np.bool_], ...]] = [(part > 1, part == 1, part == 0)]  # 60 / 20 / 20
    if cross_fit:
        splits = [(part != fold, np.zeros(0, dtype=bool), part == fold) for fold in range(FOLDS)]
    return [[np.flatnonzero(rows) for rows in split] for split in splits]


def _area(logits: Array, label: Columns) -> tuple[float, float]:
    return auc(logits[label == 0], logits[label == 1])


def _jsd(logits: Array, label: Columns) -> tuple[float, float]:
    """Jensen-Shannon divergence in bits, a lower bound of the true one, from the cross entropy of logits (N,)."""
    entropy = np.logaddexp(0, np.where(label == 1, -logits, logits)) / math.log(2)
    return 1 - float(entropy.mean()), float(entropy.std(ddof=1)) / math.sqrt(len(entropy))


def _losses(classifier: Classifier, table: Columns, label: Columns, seed: int, rounds: int) -> list[list[float]]:
    """AUC lost when a column is shuffled, a row per round."""
    rng = np.random.default_rng([seed, 6])
    whole, _ = _area(classifier(table), label)
    found = np.empty((rounds, table.shape[1]))
    for turn, column in np.ndindex(found.shape):
        before = table[:, column].copy()
        table[:, column] = rng.permutation(before)
        found[turn, column] = whole - _area(classifier(table), label)[0]
        table[:, column] = before
    return found.tolist()


def _significant(names: list[str], lost: Array, given: int) -> tuple[tuple[str, float], ...]:
    """Names and mean losses (R, F) that exceed three times their error, the largest first; not the conditions."""
    mean, error = lost.mean(axis=0), lost.std(axis=0, ddof=1) / math.sqrt(len(lost))
    order = [i for i in np.argsort(-mean, kind="stable") if i >= given and mean[i] > _SIGNIFICANT * error[i] > 0]
    return tuple((names[i], float(mean[i])) for i in order)


def _fit(
    views: Views,
    view: str,
    names: list[str],
    table: Columns,
    label: Columns,
    train: Rows,
    choose: Rows,
    seed: int,
) -> Classifier:
    """A classifier that has learnt from the rows ``train``."""
    if views.recipe == "calochallenge":
        return _fit_published(table, label, train, choose, seed, scaled=view == "log_voxels")
    if view == "observables":
        trees = HistGradientBoostingClassifier(
            max_iter=_TREES, learning_rate=0.1, max_leaf_nodes=16, early_stopping=False, random_state=seed
        )
        known, columns = catalogue(views.family), table[train]
        finest = np.array([known[name].resolution if name in known else 0.0 for name in names])
        constant = ~varies(columns.std(axis=0, dtype=np.float64), np.abs(columns).max(axis=0), finest)
        trees.fit(np.where(constant, np.float32(0), columns), label[train])  # trees would tell rounding errors apart
        return lambda columns: np.asarray(trees.decision_function(columns), dtype=np.float64)
    return _fit_light(views, table, label, train, seed)


class _Standard(nn.Module):
    """Columns minus mean over standard deviation, within +-8: a single hit far out must not outweigh a shower."""

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        spread = columns.std(axis=0, dtype=np.float64)
        known = varies(spread, np.abs(columns).max(axis=0))
        self.register_buffer("mean", torch.from_numpy(columns.mean(axis=0, dtype=np.float64).astype(np.float32)))
        self.register_buffer("spread", torch.from_numpy(np.where(known, spread, 1).astype(np.float32)))

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        """The same shape, (B, F)."""
        return ((columns - self.mean) / self.spread).clamp(-8, 8)


class _Picture(nn.Module):
    """Columns of conditions and pixels as planes: (B, C + H W) to (B, 1 + C, H, W)."""

    def __init__(self, shape: tuple[int, ...], given: int) -> None:
        super().__init__()
        self._given, self._shape = given, shape

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        """Each condition becomes a constant plane."""
        given, pixels = columns[:, : self._given], columns[:, self._given :]
        planes = given[:, :, None, None].expand(-1, -1, *self._shape)
        return torch.cat([pixels.reshape(-1, 1, *self._shape), planes], dim=1)


def _layers(views: Views, inputs: int) -> list[nn.Module]:
    """A small classifier: dense for vectors; convolutions, periodic as the simulation boxes are, for pictures."""
    if len(views.family.sample_shape) == 1:
        hidden = [nn.Linear(inputs, 128), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.LeakyReLU()]
        return [*hidden, nn.Dropout(0.2), nn.Linear(64, 1)]
    given = len(views.conditions)
    layers: list[nn.Module] = [_Picture(views.family.sample_shape, given)]
    for before, after in ((1 + given, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(before, after, 5, stride=2, padding=2, padding_mode="circular"), nn.LeakyReLU()]
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1)]


def _fit_light(views: Views, table: Columns, label: Columns, train: Rows, seed: int) -> Classifier:
    """20 epochs, at most 400 steps, of AdamW; the learning rate ends at zero, so there is no epoch to choose."""
    batch = min(256, len(train))
    steps = int(np.clip(20 * len(train) // batch, 40, 400))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(_Standard(table[train]), *_layers(views, table.shape[1]))
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
        network.train()
        step = 0
        while step < steps:
            order = torch.from_numpy(train)[torch.randperm(len(train))]
            for rows in order[: len(order) // batch * batch].split(batch)[: steps - step]:
                _descend(network, optimiser, table, label, rows)
                schedule.step()
                step += 1
    return _classifier(network)


def _fit_published(table: Columns, label: Columns, train: Rows, choose: Rows, seed: int, *, scaled: bool) -> Classifier:
    """The CaloChallenge's network: 2,048 LeakyReLU nodes and two more such layers, best of 50 epochs, calibrated.

    In single precision; the published code computes in double.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [_Standard(table[train])] if scaled else []
        for inputs in (table.shape[1], _NODES, _NODES):
            layers += [nn.Linear(inputs, _NODES), nn.LeakyReLU()]
        network = nn.Sequential(*layers, nn.Linear(_NODES, 1)).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-4)
        logits, best, weights = _classifier(network), -1.0, network.state_dict()
        for _ in range(_EPOCHS):
            network.train()
            for rows in torch.from_numpy(train)[torch.randperm(len(train))].split(1000):
                _descend(network, optimiser, table, label, rows)
            accuracy = float(np.mean((logits(table[choose]) > 0) == (label[choose] == 1)))
            if accuracy > best:
                best, weights = accuracy, {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    calibration = IsotonicRegression(out_of_bounds="clip", y_min=1e-6, y_max=1 - 1e-6)
    calibration.fit(logits(table[choose]), label[choose])

    def calibrated(columns: Columns) -> Array:
        probability = np.asarray(calibration.predict(logits(columns)), dtype=np.float64)
        return np.log(probability) - np.log1p(-probability)

    return calibrated


def _descend(
    network: nn.Module, optimiser: torch.optim.Optimizer, table: Columns, label: Columns, rows: torch.Tensor
) -> None:
    """One step on some rows."""
    device = next(network.parameters()).device
    picked = rows.numpy()
    logits = network(torch.from_numpy(table[picked]).to(device))[:, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(label[picked]).to(device))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _classifier(network: nn.Module) -> Classifier:
    def logits(columns: Columns) -> Array:
        device = next(network.parameters()).device
        network.eval()
        with torch.no_grad():
            found = [network(part.to(device))[:, 0].cpu() for part in torch.from_numpy(columns).split(4096)]
        return np.asarray(torch.cat(found).numpy(), dtype=np.float64)

    return logits


def _metrics(against: dict[str, _Found], among: dict[str, _Found], n: int, *, jsd: bool) -> dict[Key, Metric]:
    found = {Key(AUC, view): Metric.of(*got.area, *among[view].area, n) for view, got in against.items()}
    best, floor = (max(views.values(), key=lambda got: got.area[0]) for views in (against, among))
    found[Key(AUC_WORST)] = Metric.of(*best.area, *floor.area, n)
    if jsd:
        for view, got in against.items():
            found[Key(JSD, view)] = Metric.of(*got.jsd, *among[view].jsd, n, JSD.unit)
    return found


def _notes(
    recipe: str, n: int, half: int, bad: tuple[int, int], unseen: Sequence[Change], views: Views
) -> tuple[str, ...]:
    size = f"{n} samples a side" + (f", floors and controls {half}" if half != n else "")
    way = "5-fold cross-fitted" if recipe == "light" else "one split 60/20/20"
    notes = [f"Classifiers ({recipe}, {way}): {size}; errors are DeLong's for the held-out samples."]
    for side, count in zip(("reference", "generated"), bad, strict=True):
        if count:
            notes.append(f"Classifiers: {count} {side} samples are not finite and were left out.")
    if views.fixed_scale is not None:
        notes.append("Classifiers: one side has no incident energies, so none is used.")
    notes += [
        f"Classifiers: none of them recognised reference samples with {change.title}, so the sample is too small: "
        "an AUC near 0.5 proves little."
        for change in unseen
    ]
    return tuple(notes)


# ------------------------------------------------------------------------------------------------ what they are shown
def groups_of(sides: tuple[Samples, ...]) -> Rows:
    """Samples that must not be separated: of equal conditions if there are many different ones, or of one realisation.

    Equal discrete energies (the CaloChallenge's photons have 15) separate nothing: thousands of samples share each.
    """
    names = [n for n in sides[0].conditions if all(n in s.conditions for s in sides)]
    total = sum(len(s) for s in sides)
    if names:
        rows = [np.stack([s.conditions[n] for n in names], axis=1) for s in sides]
        if min(len(np.unique(r, axis=0)) for r in rows) >= _DISTINCT:
            inverse = np.unique(np.concatenate(rows), axis=0, return_inverse=True)[1]
            return np.asarray(inverse, dtype=np.int64).ravel()
    found = np.arange(total)
    start = 0
    for side in sides:
        realisations = side.extras.get("realisation_id")
        if realisations is not None and len(np.unique(realisations)) >= 2 * FOLDS:
            found[start : start + len(side)] = start + np.unique(realisations, return_inverse=True)[1].ravel()
        start += len(side)
    return found


def parts(groups: NDArray[np.int64], side: NDArray[np.float32], count: int, rng: np.random.Generator) -> Rows:
    """Random part of every sample, (N,) in 0 .. count - 1: groups stay whole, every part has as many of each side."""
    _, group = np.unique(groups, return_inverse=True)
    share = np.bincount(group, weights=side) / np.bincount(group)
    kind = np.where(share == 0, 0, np.where(share == 1, 2, 1))  # of one side, of both, of the other
    order = rng.permutation(len(share))
    order = order[np.argsort(kind[order], kind="stable")]
    part = np.empty(len(share), dtype=np.int64)
    part[order] = np.arange(len(share)) % count
    return part[group]


def halves(reference: Samples, half: int, rng: np.random.Generator) -> tuple[Samples, Samples]:
    """Two sets of ``half`` reference samples (or a few fewer) that share no group."""
    part = parts(groups_of((reference,)), np.zeros(len(reference), dtype=np.float32), 2, rng)
    both = [rng.permutation(np.flatnonzero(part == p)) for p in (0, 1)]
    half = min(half, *(len(rows) for rows in both))
    first, second = (reference.select(np.sort(rows[:half])) for rows in both)
    return first, second


class Views:
    """What the classifiers are shown: columns for any samples, scaled by what the reference says.

    Attributes:
        names: The views.
        recipe: Decides the columns of ``observables``: the CaloChallenge has its own.
        conditions: Conditions that both sides have; their columns come first, logarithmic where the family says so.
            The numbers of labels are a column too.
    """

    def __init__(self, reference: Samples, generated: Samples, recipe: str) -> None:
        self.family, self.recipe = reference.family, recipe
        sides = [reference.conditions, generated.conditions]
        known = common_conditions(self.family, sides)
        self.conditions = [c for c in self.family.conditions if c.name in known and all(c.name in s for s in sides)]
        self.names = kind_of(self.family).views
        some = reference.values[:: max(1, len(reference) // 1000)]
        hits = some[some > 0]
        self._faintest = float(np.quantile(hits, 0.001)) if len(hits) else 1.0
        self.fixed_scale: float | None = None
        if self.family.energy is not None and self.family.energy.name not in known:
            self.fixed_scale = float(reference.values.sum(axis=1, dtype=np.float64).mean()) or 1.0

    def table(self, view: str, samples: Samples) -> tuple[list[str], Columns]:
        """Names of the columns (of observables only) and the columns, (N, F)."""
        kept = samples.conditions.only([c.name for c in self.conditions])
        samples = replace(samples, conditions=kept)
        given = [np.log10(kept[c.name]) if c.scale == "log" else kept[c.name] for c in self.conditions]
        names: list[str] = []
        if view == "observables":
            measured = observe(samples, scored=True)
            if self.recipe == "calochallenge":
                measured = _published(self.family, measured)
            names = [*kept, *measured]
            columns = [*given, *measured.values()]
            return names, np.stack(columns, axis=1).astype(np.float32)
        if view == "log_voxels":
            values = np.log(np.maximum(samples.values, np.float32(self._faintest)))
        else:
            # Showers in per cent of the incident energy, as in the CaloChallenge.
            values = vectors(samples, self.fixed_scale) * np.float32(100 if view == "voxels" else 1)
        return names, np.column_stack([*given, values]).astype(np.float32, copy=False)


def _published(family: Family, measured: dict[str, Array]) -> dict[str, Array]:
    """The CaloChallenge's high-level features in its units: layer energies, centres and widths."""
    found, known = {}, catalogue(family)
    for name, column in measured.items():
        quantity = known[name].quantity
        if quantity == "energy":
            found[name] = np.log10(np.maximum(column, 0) + 1e-8)
        elif quantity in LENGTHS:
            found[name] = column / 100
    return found
