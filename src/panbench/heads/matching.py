"""The masks of a frame, and their linear assignment to queries by dice and cross-entropy costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from panbench.ops import LabelSums
from panbench.scene import PanopticMap


class Masks(NamedTuple):
    """The masks of a frame, numbered from 0 in the order of their ids.

    Attributes:
        number: [H, W], int32, mask of a pixel; −1 outside of masks and where the class is void.
        votes: [K, classes], how many pixels of a mask have class c + 1.
        labelled: [], number of pixels that have a class, at least 1.
    """

    number: Tensor
    votes: Tensor
    labelled: Tensor

    @property
    def areas(self) -> Tensor:
        """[K], pixels of each mask."""
        return self.votes.sum(1)


def number_masks(masks: PanopticMap, classes: int) -> Masks:
    """The masks of which at least one pixel has a class, 1 to ``classes``."""
    ids = torch.where(masks.semantic > 0, masks.instance, 0)
    seen = torch.bincount(ids.flatten()) > 0
    seen[0] = False
    table = torch.where(seen, seen.cumsum(0) - 1, -1).int()
    number = table[ids.long()]
    count = int(seen.sum())
    votes = torch.bincount(
        ((number + 1) * (classes + 1) + masks.semantic).flatten(), minlength=(count + 1) * (classes + 1)
    )
    votes = votes.view(count + 1, classes + 1)[:, 1:]
    return Masks(number, votes[1:], votes.sum().clamp_min(1))


def matching_cost(sums: LabelSums, masks: Masks) -> Tensor:
    """Cost [K, Q] of every (mask, query) pair: dice + binary cross-entropy over the labelled pixels.

    dice = 1 − 2 Σ I Y / (Σ I + Σ Y), bce = mean −[Y log I + (1 − Y) log(1 − I)].
    """
    dice = 1 - 2 * sums.overlap[0] / (sums.presence[0] + masks.areas[:, None]).clamp_min(1e-6)
    return dice + (sums.presence[1] + sums.overlap[1]) / masks.labelled


def pair_losses(sums: LabelSums, masks: Masks, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and binary cross-entropy (eq. 11) of pairs of masks ``rows`` [P] and queries ``columns`` [P], P ≥ 1.

    dice = mean over pairs of 1 − (2 Σ I Y + 1) / (Σ I + Σ Y + 1); bce = mean over pairs and labelled pixels of
    −[Y log I + (1 − Y) log(1 − I)].
    """
    presence, overlap = sums.presence[:, columns], sums.overlap[:, rows, columns]
    dice = 1 - (2 * overlap[0] + 1) / (presence[0] + masks.areas[rows] + 1)
    return dice.mean(), (presence[1] + overlap[1]).mean() / masks.labelled


def assign(cost: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (masks, queries) of least total cost; min(A, Q) of them, masks ascending.

    A mask's number means nothing: permuting the rows permutes the pairs.
    """
    rows, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return rows.astype(np.int64), columns.astype(np.int64)
