"""Rendered depth and normals against the depth sensor, and against each other."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.scene import Camera


def depth_loss(depth: Tensor, measured: Tensor, alpha: Tensor, max_depth: float) -> Tensor:
    """Mean |D − D*| in metres, weighted by ω = 1 / (1 + (D*/3 m)²), the accuracy of a structured-light sensor.

    Args:
        depth: expected depth [H, W]. measured: [H, W], 0 = none. alpha: pixels of ½ and less are left out.
    """
    valid = (measured > 0) & (measured < max_depth) & (alpha.detach() > 0.5)
    weight = valid / (1 + (measured / 3).square())
    return (weight * (depth - measured).abs()).sum() / weight.sum().clamp_min(1)


def depth_normals(camera: Camera, depth: Tensor, step: int = 1) -> Tensor:
    """Camera-space normals of a depth map by central differences, facing the camera.

    Returns:
        [H, W, 3], unit; zero within ``step`` pixels of the border and where a depth in use is 0.
    """
    points = camera.rays() * depth[..., None]
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
    """Mean of 1 − N · n over pixels where the reference normal is known.

    Args:
        normals: blended, not re-normalised [H, W, 3], so that open pixels are pulled less. reference: [H, W, 3], zero
            where unknown.
    """
    known = reference.detach().square().sum(-1) > 0.5
    return ((1 - (normals * reference).sum(-1)) * known).sum() / known.sum().clamp_min(1)
