"""What several networks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

SLOPE = 0.1
"""Of the generators' LeakyReLUs."""


class OfBatch(nn.Module):
    """A part of a network that looks at all samples of a batch, not at each by itself."""

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (B, ...) of the whole batch; replaced where other processes have the rest of it."""
        return rows


def mlp(sizes: Sequence[int], *, slope: float, zero_last: bool = False) -> nn.Sequential:
    """Linear layers with LeakyReLU between them; a zero last layer makes the network start as the constant 0."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(slope)]
    layers.pop()
    if zero_last:
        last = layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)
