"""Normals of depth maps, and how far normals differ."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_normals(depth: Tensor, fx: float, fy: float, cx: float, cy: float, step: int) -> Tensor:
    """Unit normals [H, W, 3] of depth [H, W] by central differences, facing the camera; zero where unknown."""
    height, width = depth.shape
    x = (torch.arange(width, dtype=depth.dtype, device=depth.device) + 0.5 - cx) / fx
    y = (torch.arange(height, dtype=depth.dtype, device=depth.device) + 0.5 - cy) / fy
    points = torch.stack([x * depth, y[:, None] * depth, depth], dim=-1)
    k = step
    across = points[k:-k, 2 * k :] - points[k:-k, : -2 * k]
    down = points[2 * k :, k:-k] - points[: -2 * k, k:-k]
    normal = torch.linalg.cross(down, across)
    known = depth > 0
    valid = known[k:-k, 2 * k :] & known[k:-k, : -2 * k] & known[2 * k :, k:-k] & known[: -2 * k, k:-k]
    # An epsilon inside the root keeps the gradient of degenerate triangles finite.
    normal = normal / (normal.square().sum(-1, keepdim=True) + 1e-20).sqrt()
    out = torch.zeros_like(points)
    out[k:-k, k:-k] = normal * valid[..., None]
    return out


def normal_loss(normals: Tensor, reference: Tensor) -> Tensor:
    """Mean of 1 − N · n over pixels where the reference normal is known."""
    known = reference.detach().square().sum(-1) > 0.5
    return ((1 - (normals * reference).sum(-1)) * known).sum() / known.sum().clamp_min(1)
