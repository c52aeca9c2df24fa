"""Losses of splatted label channels against the masks of one frame."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_losses(
    channels: Tensor, semantic: Tensor, pair: Tensor, columns: Tensor, weight: Tensor, epsilon: float
) -> Tensor:
    """Semantic cross-entropy, dice and binary cross-entropy [3]; see :func:`panbench.ops.mask_losses`."""
    labelled = semantic > 0
    if not labelled.any():
        return channels.sum(dtype=channels.dtype) * torch.zeros(3, dtype=channels.dtype, device=channels.device)
    rows = channels[labelled]
    w = weight[labelled]
    picked = rows.gather(1, semantic[labelled][:, None] - 1)[:, 0]
    entropy = -(w * (picked + epsilon).log()).sum() / w.sum().clamp_min(1e-20)
    if not len(columns):
        return torch.stack([entropy, entropy * 0, entropy * 0])
    predicted = rows[:, columns]
    target = (pair[labelled][:, None] == torch.arange(len(columns), device=pair.device)).to(channels.dtype)
    dice = 1 - (2 * (predicted * target).sum(0) + 1) / (predicted.sum(0) + target.sum(0) + 1)
    clamped = predicted.clamp(epsilon, 1 - epsilon)
    cross = -(target * clamped.log() + (1 - target) * torch.log1p(-clamped))
    return torch.stack([entropy, dice.mean(), cross.mean()])
