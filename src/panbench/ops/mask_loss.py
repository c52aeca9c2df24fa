"""Losses of splatted label channels against the masks of one frame, in one pass over the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve


def mask_losses(
    channels: Tensor,
    semantic: Tensor,
    pair: Tensor,
    columns: Tensor,
    weight: Tensor,
    *,
    epsilon: float = 1e-4,
    backend: Backend | None = None,
) -> Tensor:
    """Semantic cross-entropy (eq. 12), and dice and binary cross-entropy of paired queries (eq. 11).

    Only labelled pixels count. cross-entropy = Σ w −log(S_y + ε) / Σ w; dice = mean over pairs of
    1 − (2 Σ I Y + 1) / (Σ I + Σ Y + 1); bce = mean over pixels and pairs of −[Y log I + (1 − Y) log(1 − I)], I clamped
    to [ε, 1 − ε].

    Args:
        channels: [H, W, C]; class c is channel c − 1, probabilities.
        semantic: [H, W], int64, class id, 0 = unlabelled.
        pair: [H, W], int64, which pair's mask the pixel lies in, or −1.
        columns: [K], int64, the channel of each pair's query; distinct.
        weight: [H, W], of the cross-entropy, ≥ 0.

    Returns:
        [3]: cross-entropy, dice, bce; each 0 where it has nothing to work on.
    """
    if resolve(backend, channels.device.type) == "reference":
        return reference.mask_losses(channels, semantic, pair, columns, weight, epsilon)
    rows = (
        channels if channels.stride(2) == 1 and channels.stride(0) == channels.stride(1) * channels.shape[1] else None
    )
    return torch.ops.panbench.mask_losses(
        channels.contiguous() if rows is None else rows,
        semantic.contiguous(),
        pair.contiguous(),
        columns.contiguous(),
        weight.contiguous(),
        epsilon,
    )[0]
