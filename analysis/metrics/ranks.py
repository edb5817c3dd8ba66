"""How well one number tells two sets of samples apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def auc(reference: NDArray[np.floating[Any]], generated: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Area under the ROC curve and its error: how often a generated sample has a larger logit than a reference one.

    Args:
        reference: Logits, (N,).
        generated: Logits, (M,); equal ones count one half.

    Source: DeLong et al. 1988; ranks as in Sun and Xu 2014.
    """
    n, m = len(reference), len(generated)
    ranks = rankdata(np.concatenate([reference, generated]))
    above = (ranks[n:] - rankdata(generated)) / n  # share of reference samples below each generated one
    below = 1 - (ranks[:n] - rankdata(reference)) / m
    variance = (above.var(ddof=1) / m if m > 1 else 0.0) + (below.var(ddof=1) / n if n > 1 else 0.0)
    return float(above.mean()), math.sqrt(variance)
