"""Sums over pixels from which the losses of label channels against a frame's masks follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LabelTargets(NamedTuple):
    """What label channels [H, W, L] are compared with.

    The first ``classes`` channels are semantic, those from ``first_query`` on are the masks of queries, I in [0, 1].

    Attributes:
        semantic: [H, W], int32, class id; class c is channel c − 1. 0 = unlabelled: such a pixel counts nowhere.
        mask: [H, W], int32, which of the frame's masks the pixel lies in, 0 … K − 1, or −1.
        weight: [H, W], weight ≥ 0 of a pixel's cross-entropy.
        masks: K.
        classes: number of class channels; 0: no cross-entropy.
        first_query: at least ``classes``; L: no queries.
        logits: class channels are logits, to be turned into probabilities by a softmax.
        epsilon: keeps logarithms finite: −log(S + ε) of a class probability, and I is clamped to [ε, 1 − ε].
    """

    semantic: Tensor
    mask: Tensor
    weight: Tensor
    masks: int
    classes: int
    first_query: int
    logits: bool = False
    epsilon: float = 1e-4


class LabelSums(NamedTuple):
    """Sums over the labelled pixels p of a view, for Q queries and K masks.

    Cross-entropy, dice and binary cross-entropy of every (mask, query) pair follow, and so does the cost of assigning
    one to the other; each is differentiable in the label channels.

    Attributes:
        entropy: [], Σ_p w · −log(S_y + ε), or Σ_p w · −log softmax(S)_y of logits.
        presence: [2, Q]: Σ_p I, and Σ_p −log(1 − I).
        overlap: [2, K, Q]: the same over the pixels of mask k of I, and of log(1 − I) − log(I). With the second row of
            ``presence`` that is Σ_p −[Y log I + (1 − Y) log(1 − I)].
    """

    entropy: Tensor
    presence: Tensor
    overlap: Tensor


def label_sums(labels: Tensor, targets: LabelTargets) -> LabelSums:
    """The sums of label channels [H, W, L]; differentiable, no gradient where I is clamped."""
    labelled = targets.semantic > 0
    rows = labels[labelled]
    queries = rows[:, targets.first_query :]
    inside = queries.clamp(targets.epsilon, 1 - targets.epsilon)
    outside = -torch.log1p(-inside)
    numbers = torch.arange(targets.masks, device=rows.device)
    members = (targets.mask[labelled] == numbers[:, None]).to(rows.dtype)
    presence = torch.stack([queries.sum(0), outside.sum(0)])
    overlap = torch.stack([members @ queries, members @ (-outside - inside.log())])
    return LabelSums(_entropy(rows, targets, labelled), presence, overlap)


def _entropy(rows: Tensor, targets: LabelTargets, labelled: Tensor) -> Tensor:
    if not targets.classes:
        return rows.new_zeros(())
    classes = rows[:, : targets.classes]
    picked = classes.gather(1, targets.semantic[labelled].long()[:, None] - 1)[:, 0]
    information = classes.logsumexp(1) - picked if targets.logits else -(picked + targets.epsilon).log()
    return (targets.weight[labelled] * information).sum()
