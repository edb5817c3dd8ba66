"""Training: what a run needs, a trainer that updates the networks, and the loop around it.

Everything random in step t is a function of (seed, t), so a run resumed from a checkpoint makes the same weights, bit
for bit, as one that was never stopped. With a limit on its ``time`` learning rates follow the clock on the wall, which
never runs the same twice: such a run is resumed as exactly, but not repeated bit for bit. Nothing here prints.
"""

from __future__ import annotations

from .loop import Run, TrainingLoop, train
from .ranks import Ranks, joined
from .setup import Setup, prepare
from .trainers import AdversarialTrainer, LikelihoodTrainer, Trainer

__all__ = [
    "AdversarialTrainer",
    "LikelihoodTrainer",
    "Ranks",
    "Run",
    "Setup",
    "Trainer",
    "TrainingLoop",
    "joined",
    "prepare",
    "train",
]
