"""How far discs are from the planes of a mixture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panbench.ops.reference.project import rotation_matrices


def mixture_loss(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    ids: Tensor,
    components: Tensor,
    weights: Tensor,
    centers: Tensor,
    normals: Tensor,
    corner: float,
    normal_share: float,
) -> Tensor:
    """Mean over the discs ``ids``; see :func:`panbench.ops.mixture_loss`."""
    if not len(ids):
        return means[ids].sum()
    which = components[ids]
    weight = weights[ids].detach() * (which >= 0)
    center, normal = (t.detach()[which.clamp_min(0)] for t in (centers, normals))
    turn = rotation_matrices(quats[ids])
    axes = turn[..., :2].mT * log_scales[ids, :2].exp()[..., None]
    off = (normal * (means[ids][:, None] - center)).sum(-1)
    rise = normal @ axes.mT  # [M, K, 2]
    points = torch.cat([off[..., None], off[..., None] + rise, off[..., None] - rise], -1)
    huber = functional.huber_loss(points, torch.zeros_like(points), reduction="none", delta=corner) / corner
    cosine = (normal * turn[:, None, :, 2]).sum(-1)
    height = huber[..., 0] + huber[..., 1:].sum(-1) / 4
    return (weight * (height + normal_share * (1 - cosine.abs()))).sum(-1).mean()
