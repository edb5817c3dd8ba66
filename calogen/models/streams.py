"""Random numbers of batches, of which processes that train together have some rows each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """Which rows of every batch are this process's: the batch is cut into equal parts, one a rank.

    Attributes:
        rows: Of each batch.
        rank: Number of this process.
        ranks: Processes in all.
    """

    rows: int
    rank: int = 0
    ranks: int = 1

    def of(self, batches: Tensor, dim: int = 0) -> Tensor:
        """This process's rows of one batch, or of several that follow each other along ``dim``."""
        if self.ranks == 1:
            return batches
        parts: Tensor = batches.unflatten(dim, (-1, self.ranks, self.rows))
        mine: Tensor = parts.select(dim + 1, self.rank).flatten(dim, dim + 1)
        return mine


class Stream(torch.Generator):
    """The random numbers of one training step, from which :func:`drawn` takes those of a share of the rows."""

    share: Share


def drawn(
    draw: Callable[..., Tensor], shape: Sequence[int], stream: torch.Generator, *, dim: int = 0, **how: Any
) -> Tensor:
    """Random numbers for rows of batches, (B, ...).

    Every rank draws the numbers of the whole batch and keeps those of its rows. So each row gets the numbers that it
    would get in one process, however many ranks there are.

    Args:
        draw: ``torch.randn``, ``torch.rand`` or a like function.
        shape: Of what is wanted, for the rows of this process.
        stream: Where numbers come from.
        dim: The dimension that counts rows.
        **how: Further arguments of ``draw``.
    """
    if not isinstance(stream, Stream) or stream.share.ranks == 1:
        return draw(tuple(shape), generator=stream, **how)
    whole = [size * (stream.share.ranks if axis == dim else 1) for axis, size in enumerate(shape)]
    return stream.share.of(draw(tuple(whole), generator=stream, **how), dim)
