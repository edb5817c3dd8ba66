"""Networks of which nothing is folded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .contract import Generator

Array = NDArray[np.float32]


class Unfolded:
    """A trained generator as it is, without gradients.

    Args:
        generator: Trained, on the CPU.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    @torch.inference_mode()
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Samples (B, ...) in physical units from standard normals (B, Z) and conditions (B, C) in their units."""
        columns = torch.from_numpy(np.ascontiguousarray(conditions))
        made: Array = self._generator(torch.from_numpy(latent), columns).numpy()
        return made
