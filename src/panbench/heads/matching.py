"""Linear assignment between the masks of a frame and the queries, by dice and cross-entropy costs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_EPS = 1e-4


def matching_cost(predicted: Tensor, masks: Tensor) -> Tensor:
    """Cost of every (mask, query) pair: dice + binary cross-entropy.

    dice = 1 − 2 Σ I Y / (Σ I + Σ Y), bce = mean −[Y log I + (1 − Y) log(1 − I)].

    Args:
        predicted: I [P, Q] in [0, 1]. masks: Y [P, A], 0 or 1.

    Returns:
        [A, Q].
    """
    inside = predicted.clamp(_EPS, 1 - _EPS)
    outside = torch.log1p(-inside)
    overlap = masks.T @ predicted
    dice = 1 - 2 * overlap / (predicted.sum(0) + masks.sum(0)[:, None]).clamp_min(1e-6)
    bce = -(masks.T @ (inside.log() - outside) + outside.sum(0)) / max(len(predicted), 1)
    return dice + bce


def assign(cost: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (masks, queries) of least total cost; min(A, Q) of them, masks ascending.

    A mask's number means nothing: permuting the rows permutes the pairs.
    """
    rows, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return rows.astype(np.int64), columns.astype(np.int64)
