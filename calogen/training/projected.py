"""Rounds of fresh critics, whose slope is projected on what the generator can change.

There is something to learn after a good fit, but it is small: a tenth of a standard deviation of many numbers. Adam on
networks moves samples by more than that, at random. So a round asks critics where samples should go, in a space of a
few physical views, and solves by least squares for the change of the generator that comes nearest. What does not hold
on samples that had no part in it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..analysis.metrics.ranks import auc
from ..models.contract import Generator
from ..models.refinement import Draft, Refinement, Scene
from ..runs.checkpoint import Checkpoint
from ..shards.samples import Samples
from ..stages import counted, stage
from .batches import Batches
from .critics import CRITICS, ODDS, Seen, trained_critic
from .objectives import Objective
from .setup import Setup
from .trainers import Trainer, stream_of

_ASPECTS, _SELECTING, _JUDGING = 2**40, 2**42, 2**43  # steps whose random numbers these have
_POOL = 160_000_000  # numbers of generated samples that critics are shown
_SLOPES, _FEWEST_SLOPES, _SLOPE_NUMBERS = 4000, 1600, 10_000_000  # samples whose slopes are taken
_AT_ONCE = 500  # samples
_STEEPEST = 30.0  # slope of a view: single samples must not decide
_UNSEEN = 0.25  # of those samples, by which ridge and length of the step are chosen
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_LENGTHS = (1.0, 0.5)
_SHORTER = (1.0, 0.5, 0.25)  # of that step, tried until no view is harmed
_WORSE = 3.0  # errors by which a view may not be further from validation samples than before
_SLACK = 0.5  # of how far views are on average, beyond these errors: what the shortest step may cost besides
_IDLE = 2  # rounds in a row that change nothing, after which there is nothing more to learn
_CHANCE = 2.0  # errors of the AUC above 0.5

Judge = Callable[[Tensor, Tensor], Tensor]


class Slopes(NamedTuple):
    """How the views of some samples change with amplitudes, and where critics want them.

    Attributes:
        drafts: The samples.
        views: As they are, (N, L, D).
        slopes: Of views with amplitudes of their block, (N, L, D, A).
        wanted: Changes of the views, (N, L, D).
    """

    drafts: list[Draft]
    views: Tensor
    slopes: Tensor
    wanted: Tensor

    @property
    def features(self) -> Tensor:
        """(N, L, F)."""
        return torch.cat([draft.features for draft in self.drafts])


@dataclass
class Aspect:
    """Something about samples that has views, critics and a refinement of its own.

    Attributes:
        scene: Training samples.
        unseen: Validation samples, by which critics and steps are judged.
        idle: Rounds in a row that changed nothing: one may be an accident of its critics.
        why: Why the last one of them did not.
        begun: Distances of views from validation samples at the start, (L, D).
        away: How far views are from them now, on average, in errors.
    """

    scene: Scene
    unseen: Scene
    idle: int = 0
    why: str = ""
    begun: Tensor | None = None
    away: float = 0.0

    @property
    def refinement(self) -> Refinement:
        """What can be changed."""
        return self.scene.refinement

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to learn."""
        return self.idle >= _IDLE

    def named(self, facts: dict[str, float]) -> dict[str, float]:
        """Facts by the names that the log has for them."""
        return {"_".join(filter(None, (self.scene.name, name))): value for name, value in facts.items()}


class ProjectedTrainer(Trainer):
    """One step is a round: fresh critics, a projected step, and the decision whether to take it.

    Each aspect of the samples has rounds of its own, until they change nothing. Runs on the CPU, where a round takes a
    minute.

    Args:
        setup: What to train.
        batches: Training data, in physical units.
        objective: Of the critics.
        validation: Samples by which critics and steps are judged, in physical units.

    Source: this work; kindred are functional-gradient GANs (Johnson and Zhang 2018, arXiv:1801.06309) and natural
    gradients.
    """

    def __init__(self, setup: Setup, batches: Batches, objective: Objective, validation: Samples) -> None:
        super().__init__(setup, batches)
        self.objective, self._validation = objective, validation
        self.aspects: list[Aspect] = []
        self._known: dict[str, Tensor] = {}  # what a checkpoint knows of rounds before

    def arm(self) -> None:
        """Look at training and validation samples; once fitted or loaded."""
        self.generator.requires_grad_(False).eval()
        self.average = self.generator
        with torch.no_grad():
            scenes = self.generator.scenes(self.batches.samples(self.setup.family))
            self.aspects = [Aspect(scene, scene.like(self._validation)) for scene in scenes]
        for number, aspect in enumerate(self.aspects):
            aspect.idle = int(self._known.get(f"idle.{number}", 0))
            aspect.begun = self._known.get(f"begun.{number}")

    def step(self, seconds: float = 0.0) -> dict[str, Tensor]:  # noqa: ARG002
        """One round; returns what the log should say of it."""
        found = dict[str, float]()
        for number, aspect in enumerate(self.aspects):
            if not aspect.finished:
                stream = stream_of(self.setup.config.seed, number * _ASPECTS + self.done, self.setup.device)
                found |= aspect.named(self._round(aspect, stream))
        if all(aspect.finished for aspect in self.aspects):
            reasons = dict.fromkeys(filter(None, (aspect.why for aspect in self.aspects)))
            self.finished = f"{_IDLE} rounds in a row changed nothing: {'; '.join(reasons)}"
        self.done += 1
        return {name: torch.as_tensor(value) for name, value in found.items()}

    def _round(self, aspect: Aspect, stream: torch.Generator) -> dict[str, float]:
        scene, others = aspect.scene, aspect.unseen
        shown = Seen(scene.views, scene.context)
        pool = self._pool(scene, max(1, _POOL // (self.setup.family.voxels * len(scene))), stream)
        what = " ".join(filter(None, (f"round {self.done + 1}:", "critics of", scene.name or "voxels")))
        critics = [
            trained_critic(shown, pool, stream, self.objective, self.options.penalty)
            for _ in counted(what, range(CRITICS), CRITICS)
        ]
        stage(f"round {self.done + 1}: projecting their slopes")

        def judge(views: Tensor, context: Tensor) -> Tensor:
            return torch.stack([critic(views, context) for critic in critics]).mean(0)

        with torch.no_grad():
            values = [_values(judge, *side) for side in (shown, pool)]
            other = self._pool(others, 1, stream)
            unseen = [_values(judge, *side) for side in ((others.views, others.context), other)]
        (seen, _), (area, error) = (auc(g.double().numpy(), r.double().numpy()) for r, g in (values, unseen))
        found = {"critic_auc": seen, "validation_auc": area, "validation_auc_error": error}
        found["wasserstein"] = float(unseen[0].mean() - unseen[1].mean())
        aspect.idle += 1
        reach = float(self.objective.reach(*values))
        if area < 0.5 + _CHANCE * error or reach <= 0:
            aspect.why = "critics could not tell generated from validation samples"
            return found
        slopes = self._slopes(scene, judge, reach, stream)
        step, facts = self._solved(aspect.refinement, slopes)
        for shorter in _SHORTER:
            harm = self._harm(aspect, shorter * step)
            accepted = facts["share"] > 0 and harm <= _WORSE
            if accepted:
                break
        else:  # far from the data, the shortest step may cost a view what is little beside the distance
            accepted = facts["share"] > 0 and harm <= _WORSE + _SLACK * max(0.0, aspect.away - _WORSE)
        facts = facts | {"length": shorter * facts["length"], "moved": shorter * facts["moved"]}
        if accepted:
            aspect.idle = 0
            aspect.refinement.add(shorter * step)
        else:
            aspect.why = "the steps that critics asked for were refused: the generator cannot follow them further"
        return found | facts | {"harm": harm, "accepted": float(accepted)}

    # --- critics --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _pool(self, scene: Scene, times: int, stream: torch.Generator) -> Seen:
        """Views (N, L, D) and context (N, L, C) of generated samples at the conditions of a scene's, once or twice."""
        rows, found = torch.arange(len(scene)).repeat(min(2, times)), []
        for some in rows.split(_AT_ONCE):
            draft = scene.draw(some, stream)
            found.append((draft.views(scene.refinement.amplitudes(draft.features)), draft.context))
        views, context = zip(*found, strict=True)
        return Seen(torch.cat(views), torch.cat(context))

    # --- the step -------------------------------------------------------------------------------------------------

    def _slopes(self, scene: Scene, judge: Judge, reach: float, stream: torch.Generator) -> Slopes:
        count = max(_FEWEST_SLOPES, min(_SLOPES, _SLOPE_NUMBERS // self.setup.family.voxels))
        rows = torch.randint(len(scene), (count,), generator=stream)
        drafts, found = [], []
        for some in rows.split(_AT_ONCE):
            draft = scene.draw(some, stream)
            views, slopes = draft.slopes(scene.refinement.amplitudes(draft.features))
            here = views.clone().requires_grad_()
            (uphill,) = torch.autograd.grad(judge(here, draft.context).sum(), here)
            drafts.append(draft)
            found.append((views, slopes.clamp(-_STEEPEST, _STEEPEST), reach * uphill))
        return Slopes(drafts, *(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def _solved(self, refinement: Refinement, slopes: Slopes) -> tuple[Tensor, dict[str, float]]:
        """The step (L, A, F) in the coefficients that brings views nearest to where critics want them.

        Ridge and length are those that explain most of it on samples that had no part in the solution.
        """
        features, unseen = slopes.features, round((1 - _UNSEEN) * len(slopes.wanted) / _AT_ONCE) * _AT_ONCE
        step, changes, chosen = torch.zeros_like(refinement.coefficients), [], []
        for block in range(step.shape[0]):
            mine = (slopes.slopes[:unseen, block], features[:unseen, block], slopes.wanted[:unseen, block])
            steps = torch.zeros(len(_RIDGES), *step.shape[1:])
            steps[:, refinement.used] = _least_squares(*mine, refinement.used)
            # A block that explains nothing with any ridge stays as it is.
            steps = torch.cat([torch.zeros_like(steps[:1]), steps])
            amplitudes = torch.einsum("bf,raf->rba", features[unseen:, block], steps)
            changed = torch.einsum("bda,rba->rbd", slopes.slopes[unseen:, block], amplitudes)
            best = int((changed - slopes.wanted[unseen:, block]).square().sum((1, 2)).argmin())
            step[block] = steps[best]
            changes.append(changed[best])
            chosen.append((0.0, *_RIDGES)[best])

        # How far the slopes carry is seen by trying. Hits of single samples come and go, which moves their views at
        # random: what counts is how far samples move along what is wanted, less what the slopes say they move in all.
        wanted, linear = slopes.wanted[unseen:], torch.stack(changes, 1)
        size, moved = wanted.square().sum(), linear.square().sum()
        found = []
        for length in _LENGTHS:
            along = (_moved(refinement, slopes, unseen, length * step) * wanted).sum()
            found.append((float((2 * along - length**2 * moved) / size), length))
        share, length = max(found)
        facts = {"linear_share": float((2 * length * (linear * wanted).sum() - length**2 * moved) / size)}
        facts |= {"share": share, "wanted": float((size / len(wanted)).sqrt())}
        facts |= {"moved": length * float((moved / len(wanted)).sqrt()), "ridge": float(np.median(chosen))}
        return length * step, facts | {"length": length}

    @torch.no_grad()
    def _harm(self, aspect: Aspect, step: Tensor) -> float:
        """By how many errors the worst view is further from validation samples than before, or than at the start."""
        # The same random numbers every time: what is left to compare is what the coefficients do.
        stream = stream_of(self.setup.config.seed, _JUDGING, self.setup.device)
        before, after = list[Tensor](), list[Tensor]()
        for rows in torch.arange(len(aspect.unseen)).split(_AT_ONCE):
            draft = aspect.unseen.draw(rows, stream)
            before.append(draft.views(aspect.refinement.amplitudes(draft.features)))
            after.append(draft.views(aspect.refinement.amplitudes(draft.features, step)))
        reference = aspect.unseen.views
        near, far = (_distance(torch.cat(views), reference) for views in (before, after))
        aspect.begun = near if aspect.begun is None else aspect.begun
        errors = math.sqrt(len(reference))
        aspect.away = errors * float(near.square().mean().sqrt())
        return errors * float((far - torch.minimum(near, aspect.begun)).max())

    # --- what the loop asks for -----------------------------------------------------------------------------------

    def selection(self, best: Callable[[], Generator]) -> dict[str, Tensor] | None:
        """Critics whose values are log odds, whatever the objective."""
        stream = stream_of(self.setup.config.seed, _SELECTING, self.setup.device)
        scene, generator = self.aspects[0].scene, best()
        if generator is not self.average:
            scene = generator.scenes(self.batches.samples(self.setup.family))[0]
        seen = Seen(scene.views, scene.context)
        found = scene.selection(
            [trained_critic(seen, self._pool(scene, 2, stream), stream, ODDS) for _ in range(CRITICS)]
        )
        return None if found is None else found.state_dict()

    def state(self) -> dict[str, Tensor]:
        """The generator, and what rounds know of each other."""
        known = {f"idle.{number}": torch.tensor(aspect.idle) for number, aspect in enumerate(self.aspects)}
        known |= {f"begun.{n}": aspect.begun for n, aspect in enumerate(self.aspects) if aspect.begun is not None}
        return super().state() | known

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        self._known = checkpoint.training_state()
        super().restore(checkpoint)  # which calls arm()
        idle = [int(value) for name, value in self._known.items() if name.startswith("idle.")]
        self.finished = "there was nothing more to learn" if idle and min(idle) >= _IDLE else ""


def _moved(refinement: Refinement, slopes: Slopes, start: int, step: Tensor) -> Tensor:
    """How views really change, (N, L, D), from sample ``start`` on."""
    drafts = slopes.drafts[start // _AT_ONCE :]
    views = [draft.views(refinement.amplitudes(draft.features, step)) for draft in drafts]
    return torch.cat(views) - slopes.views[start:]


def _least_squares(slopes: Tensor, features: Tensor, wanted: Tensor, used: Tensor) -> Tensor:
    """Coefficients (R, P) of a block, for each ridge, that bring changes of views nearest to what is wanted.

    Args:
        slopes: (N, D, A).
        features: (N, F).
        wanted: (N, D).
        used: (A, F) with P that count.
    """
    size, (which, by) = int(used.sum()), used.nonzero().T
    normal, right = (torch.zeros(*shape, dtype=torch.float64) for shape in ((size, size), (size,)))
    for some, mine, target in zip(*(part.split(_AT_ONCE) for part in (slopes, features, wanted)), strict=True):
        design = (some[:, :, which] * mine[:, None, by]).reshape(-1, size)
        normal += (design.T @ design).double() / len(wanted)
        right += (design.T @ target.reshape(-1)).double() / len(wanted)
    diagonal = normal.diagonal()
    ridge = diagonal + 0.01 * diagonal.mean() + 1e-12
    return torch.stack([torch.linalg.solve(normal + torch.diag(r * ridge), right).float() for r in _RIDGES])


def _values(judge: Judge, views: Tensor, context: Tensor) -> Tensor:
    parts = zip(views.split(_AT_ONCE), context.split(_AT_ONCE), strict=True)
    return torch.cat([judge(*part) for part in parts])


def _distance(views: Tensor, reference: Tensor) -> Tensor:
    """Between distributions of each view (N, L, D), roughly: differences of mean and spread."""
    return (views.mean(0) - reference.mean(0)).abs() + (views.std(0) - reference.std(0)).abs()
