"""Simulation-based inference with generated maps: are posteriors that were trained on them right about simulated ones?

Two posterior estimators of the same kind learn from summaries of maps: one from generated maps, one from simulated
ones. Both are asked about simulated maps, one of each box: how often the truth lies within their credible regions, how
far their means are off, and how probable they call the truth. What the second one gives is the floor of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calogen.errors import ShardError
from calogen.families import Condition

from ..survey.plan import SurveyPlan
from ..survey.survey import Survey
from .kinds import kind_of
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
LEVELS = (0.38, 0.68, 0.95)
FEWEST = 20  # simulated boxes to be judged on, and to learn from
_COMPONENTS, _HIDDEN = 4, 64  # of the mixture, and units of each of two hidden layers
_NETWORKS = 3  # of which a posterior is the mean
_BATCH, _RATE, _DECAY = 256, 1e-3, 1e-3
_EPOCHS, _PATIENCE = 200, 12
_HELD_OUT = 0.15  # boxes by which training is stopped
_MOST = 20_000  # maps that an estimator learns from
_DRAWS = 1000  # of every posterior
_FAR = 8.0  # standard deviations beyond which a summary says no more
_EDGE = 1e-4  # distance from the ends of the prior, of its width, that parameters are held at

_MEANING = (
    "A posterior of the conditions given summaries of a map (all observables), learnt from generated maps, asked about "
    "simulated maps, one of each box; the floor: of one learnt from simulated maps. The share of boxes whose "
    "truth lies in the smallest region with so much of the posterior, the mean of (posterior mean - truth) over its "
    "standard deviation, the mean logarithm of the posterior at the truth, and how much less that is than the floor's, "
    "box by box."
)
COVERAGE = Quantity("posterior_coverage", "coverage of credible regions", _MEANING, headline=True)
BIAS = Quantity("posterior_bias", "bias of posterior means", _MEANING, unit="posterior sd", headline=True)
LOG_POSTERIOR = Quantity("posterior_log", "mean log posterior of the truth", _MEANING, headline=True)
LOSS = Quantity("posterior_loss", "log posterior lost by training on generated maps", _MEANING, headline=True)


class Judged(NamedTuple):
    """What a posterior says of M maps whose truth is known.

    Attributes:
        mass: Of the posterior, at places more probable than the truth, (M,): uniform from 0 to 1 if it is right.
        bias: Mean of the posterior less the truth, over its standard deviation, (M, C).
        log: Logarithm of the posterior at the truth, (M,), per unit of the prior's width in every condition.
    """

    mass: Array
    bias: Array
    log: Array


class Posterior(nn.Module):
    """A mixture of Gaussians in the logits of conditions, which a bounded uniform prior makes numbers of any size.

    Args:
        summaries: How many there are (F).
        low: Lower ends of the prior, C of them.
        high: Upper ends.

    Source: Bishop 1994 (mixture density networks); Papamakarios and Murray 2016, arXiv:1605.06376.
    """

    low: Tensor
    width: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, summaries: int, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.count = len(low)
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("width", torch.tensor(high, dtype=torch.float32) - self.low)
        self.register_buffer("mean", torch.zeros(summaries))
        self.register_buffer("scale", torch.ones(summaries))
        self.lower = torch.tril_indices(self.count, self.count, -1)
        outputs = _COMPONENTS * (1 + 2 * self.count + self.lower.shape[1])
        self.layers = nn.Sequential(
            nn.Linear(summaries, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.SiLU(),
            nn.Linear(_HIDDEN, outputs),
        )

    def standardise(self, summaries: Tensor) -> None:
        """Remember mean and spread of the summaries (N, F) that it learns from."""
        self.mean.copy_(summaries.mean(0))
        spread = summaries.std(0)
        self.scale.copy_(torch.where(spread > 1e-6 * (1 + self.mean.abs()), spread, torch.inf))  # constant: no news

    def unbounded(self, theta: Tensor) -> Tensor:
        """Logits (N, C) of conditions (N, C) in their units."""
        return torch.logit((theta - self.low) / self.width, eps=_EDGE)

    def mixture(self, summaries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (N, K), means (N, K, C) and inverse Cholesky factors (N, K, C, C) in the space of logits."""
        inputs = ((summaries - self.mean) / self.scale).clamp(-_FAR, _FAR)
        given = self.layers(inputs).unflatten(1, (_COMPONENTS, -1))
        weight, mean, diagonal, lower = given.split([1, self.count, self.count, self.lower.shape[1]], -1)
        factor = torch.diag_embed(diagonal.clamp(-6, 6).exp())
        factor[..., self.lower[0], self.lower[1]] = lower
        return weight[..., 0].log_softmax(-1), mean, factor

    def log_prob(self, logits: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Log density, (N, ...), at logits (N, ..., C), per unit of the prior's width."""
        weight, mean, factor = (part.view(len(part), *(1,) * (logits.dim() - 2), *part.shape[1:]) for part in mixture)
        apart = torch.einsum("...kij,...kj->...ki", factor, logits[..., None, :] - mean)
        sharp = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts = weight + sharp - 0.5 * apart.square().sum(-1) - 0.5 * self.count * math.log(2 * math.pi)
        inside = nn.functional.logsigmoid(logits) + nn.functional.logsigmoid(-logits)  # log of d theta / d logit
        found: Tensor = torch.logsumexp(parts, -1) - inside.sum(-1)
        return found

    def draw(self, mixture: tuple[Tensor, Tensor, Tensor], count: int, stream: torch.Generator) -> Tensor:
        """Logits (N, count, C)."""
        weight, mean, factor = mixture
        chosen = torch.multinomial(weight.exp(), count, replacement=True, generator=stream)
        rows = torch.arange(len(weight))[:, None]
        noise = torch.randn(*chosen.shape, self.count, 1, generator=stream)
        solved = torch.linalg.solve_triangular(factor[rows, chosen], noise, upper=False)
        found: Tensor = mean[rows, chosen] + solved[..., 0]
        return found


def fit_posterior(
    summaries: Array, theta: Array, groups: Rows, ends: tuple[Sequence[float], Sequence[float]], seed: int
) -> list[Posterior]:
    """Networks that learn the posterior of conditions given summaries; their mean is the posterior.

    Args:
        summaries: (N, F).
        theta: Conditions (N, C), in their units.
        groups: Which box each map is of, (N,): training is stopped by boxes that are not trained on.
        ends: Lower and upper ends of the prior, uniform between them.
        seed: Random seed.
    """
    x, y = (torch.from_numpy(np.asarray(part, np.float32)) for part in (summaries, theta))
    found = []
    for number in range(_NETWORKS):
        rng = np.random.default_rng([seed, 11, number])
        names = rng.permutation(np.unique(groups))
        held = np.isin(groups, names[: max(1, round(_HELD_OUT * len(names)))])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            network = Posterior(x.shape[1], *ends)
        network.standardise(x[~held])
        found.append(_fitted(network, (x[~held], y[~held]), (x[held], y[held]), rng))
    return found


def _fitted(
    network: Posterior, learnt: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], rng: np.random.Generator
) -> Posterior:
    """A network as it was when it called held-out boxes most probable."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    best, state, idle = math.inf, network.state_dict(), 0
    for _ in range(_EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(learnt[0]))).split(_BATCH):
            x, y = learnt[0][rows], network.unbounded(learnt[1][rows])
            loss = -network.log_prob(y, network.mixture(x)).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
        with torch.no_grad():
            score = float(-network.log_prob(network.unbounded(held[1]), network.mixture(held[0])).mean())
        idle += 1
        if score < best:
            best, idle = score, 0
            state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if idle > _PATIENCE:
            break
    network.load_state_dict(state)
    return network.requires_grad_(False)


@torch.no_grad()
def judge_posterior(networks: Sequence[Posterior], summaries: Array, theta: Array, seed: int) -> Judged:
    """What a posterior says of maps with summaries (M, F) whose conditions are (M, C)."""
    stream = torch.Generator().manual_seed(seed)
    x, truth = (torch.from_numpy(np.asarray(part, np.float32)) for part in (summaries, theta))
    mixtures, first = [network.mixture(x) for network in networks], networks[0]

    def density(logits: Tensor) -> Tensor:
        parts = [network.log_prob(logits, mixture) for network, mixture in zip(networks, mixtures, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0) - math.log(len(parts))

    each = -(-_DRAWS // len(networks))
    drawn = [network.draw(mixture, each, stream) for network, mixture in zip(networks, mixtures, strict=True)]
    logits = torch.cat(drawn, 1)
    at_truth = density(first.unbounded(truth))
    mass = (density(logits) > at_truth[:, None]).float().mean(1)
    values = torch.sigmoid(logits) * first.width + first.low
    bias = (values.mean(1) - truth) / values.std(1)
    return Judged(*(part.double().numpy() for part in (mass, bias, at_truth)))


def inference(
    reference: Survey, generated: Survey, plan: SurveyPlan, training: Survey | None = None, *, seed: int = 0
) -> tuple[dict[Key, Metric], list[str]]:
    """Metrics of posteriors learnt from generated maps, with those of posteriors learnt from simulated maps as floor.

    Args:
        reference: Simulated maps; one of each box is asked about.
        generated: Generated maps, with conditions all over the prior.
        plan: Shared by both.
        training: Simulated maps of other boxes to learn from; none: half of the reference's boxes.
        seed: Decides halves, networks and draws.

    Returns:
        ``posterior_coverage/68%`` and the like, ``posterior_bias/CONDITION``, ``posterior_log``, ``posterior_loss``;
        and sentences that belong beside them.

    Raises:
        ShardError: If there are no conditions that vary, or too few boxes.
    """
    family, names = plan.family, [name for name in reference.conditions if name in generated.conditions]
    ends = {name: _prior(family.condition(name), reference, generated, name) for name in names}
    names = [name for name in names if ends[name][1] > ends[name][0]]
    if not names:
        raise ShardError(
            "inference needs conditions that vary on both sides",
            expected=", ".join(c.name for c in family.conditions) or "a family with conditions",
            found="none that does",
        )
    bounds = [ends[name][0] for name in names], [ends[name][1] for name in names]
    rng, boxes = np.random.default_rng([seed, 10]), _boxes(reference, names)
    tested, sources = _within(reference, names, bounds), training or reference
    outside = len(np.unique(boxes)) - len(np.unique(boxes[tested]))
    chosen = rng.permutation(np.unique(boxes[tested]))
    if training is None:
        mine = np.isin(boxes[tested], chosen[: len(chosen) // 2])
        learnt, tested = tested[mine], tested[~mine]
    else:
        learnt = _within(training, names, bounds)
    tested = rng.permutation(tested)
    tested = np.sort(tested[np.unique(boxes[tested], return_index=True)[1]])  # a random map of each box
    sides = {"generated": (generated, _within(generated, names, bounds)), "simulated": (sources, learnt)}
    numbers = {title: len(np.unique(_boxes(side, names)[known])) for title, (side, known) in sides.items()}
    prior = ", ".join(f"{name} {ends[name][0]:g} to {ends[name][1]:g}" for name in names)
    if min(len(tested), *numbers.values()) < FEWEST:
        raise ShardError(
            "too few cosmologies for inference",
            expected=f"{FEWEST} simulated boxes to be judged on, {FEWEST} to learn from, and {FEWEST} generated points",
            found=f"{len(tested)}, {numbers['simulated']} and {numbers['generated']}, with {prior} as both sides have",
            hint="name the training samples (`training`), simulate more, or generate all over the prior",
        )
    found, sizes = dict[str, Judged](), dict[str, int]()
    for title, (side, known) in sides.items():
        used = np.sort(rng.permutation(known)[:_MOST])
        sizes[title] = len(used)
        x, y = _summaries(side, plan, used), _columns(side, names)[used]
        networks = fit_posterior(x, y, _boxes(side, names)[used], bounds, seed)
        asked = _summaries(reference, plan, tested), _columns(reference, names)[tested]
        found[title] = judge_posterior(networks, *asked, seed)
    notes = [
        f"inference: learnt from {sizes['generated']} generated maps and {sizes['simulated']} simulated ones "
        f"of {numbers['simulated']} boxes, judged on {len(tested)} simulated maps of as many other boxes; prior {prior}"
    ]
    if outside:
        notes.append(f"inference: {outside} boxes of the reference lie outside that prior, and are left out")
    if max(sizes.values()) > 2 * min(sizes.values()):
        notes.append(
            "inference: who learns from more maps knows more, so `posterior_loss` says more of how many there are than "
            "of how good they are; let `training` have about as many maps as were generated"
        )
    return _metrics(found["generated"], found["simulated"], names), notes


def _metrics(made: Judged, own: Judged, names: Sequence[str]) -> dict[Key, Metric]:
    """Values of generated maps, those of simulated ones as floors."""
    count, found = len(made.mass), dict[Key, Metric]()

    def metric(key: Key, value: Array, floor: Array) -> None:
        errors = [float(side.std(ddof=1)) / math.sqrt(count) for side in (value, floor)]
        found[key] = Metric.of(float(value.mean()), errors[0], float(floor.mean()), errors[1], count, key.quantity.unit)

    for level in LEVELS:
        inside = [(side.mass < level).astype(np.float64) for side in (made, own)]
        metric(Key(COVERAGE, f"{level:.0%}"), *inside)
    for place, name in enumerate(names):
        metric(Key(BIAS, name), made.bias[:, place], own.bias[:, place])
    metric(Key(LOG_POSTERIOR), made.log, own.log)
    lost = own.log - made.log  # of the same maps: their own scatter cancels
    found[Key(LOSS)] = Metric.of(float(lost.mean()), float(lost.std(ddof=1)) / math.sqrt(count), 0.0, 0.0, count)
    return found


def _prior(condition: Condition, reference: Survey, generated: Survey, name: str) -> tuple[float, float]:
    """Where both sides have a condition: its usual range if they fill that, else what they have in common."""
    sides = [side.conditions[name] for side in (reference, generated)]
    low, high = max(float(side.min()) for side in sides), min(float(side.max()) for side in sides)
    close = 0.05 * (condition.high - condition.low)
    low = condition.low if 0 <= low - condition.low < close else low
    high = condition.high if 0 <= condition.high - high < close else high
    return low, high


def _boxes(side: Survey, names: Sequence[str]) -> Rows:
    """Which box each map is of, (n,): its realisation, or else its conditions."""
    if side.groups is not None:
        return np.asarray(side.groups, np.int64)
    return np.unique(_columns(side, names), axis=0, return_inverse=True)[1].reshape(-1)


def _columns(side: Survey, names: Sequence[str]) -> Array:
    return np.stack([np.asarray(side.conditions[name], np.float64) for name in names], 1)


def _within(side: Survey, names: Sequence[str], ends: tuple[Sequence[float], Sequence[float]]) -> Rows:
    """Maps whose conditions are in the prior."""
    columns = _columns(side, names)
    return np.flatnonzero(((columns >= ends[0]) & (columns <= ends[1])).all(1))


def _summaries(side: Survey, plan: SurveyPlan, rows: Rows) -> Array:
    return kind_of(plan.family).features(side, plan, rows)
