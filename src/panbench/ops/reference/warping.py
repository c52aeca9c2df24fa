"""Label warping: the labels of a surface point must agree between neighbouring views (eqs. 8–10)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panbench.scene import Camera


def warp(
    camera: Camera, depth: Tensor, other: Camera, other_map: Tensor, other_depth: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Bring a map of another view into this one.

    A pixel is unprojected with its depth (eq. 8), moved into the other camera (eq. 9) and projected.

    Args:
        depth: [H, W] of ``camera``, metres, 0 = unknown. other_map: [H', W', C]. other_depth: [H', W'], metres.
        tolerance: a point is hidden if it lies farther than this share of its depth behind the other view's surface.

    Returns:
        other_map sampled (bilinear) at the warped pixels [H, W, C], and where that is valid [H, W]: inside the other
        image, in front of it and not hidden.
    """
    pixels, z = other.project(camera.unproject(depth))
    size = pixels.new_tensor([other.width, other.height])
    grid = pixels / size * 2 - 1
    inside = (depth > 0) & (z > 0) & (pixels >= 0.5).all(-1) & (pixels <= size - 0.5).all(-1)
    planes = torch.cat([other_map, other_depth[..., None]], dim=-1).permute(2, 0, 1)[None]
    sampled = functional.grid_sample(planes, grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    sampled = sampled[0].permute(1, 2, 0)
    surface = sampled[..., -1]
    valid = inside & (surface > 0) & ((z - surface).abs() <= tolerance * z)
    return sampled[..., :-1], valid


def warping_loss(labels: Tensor, warped: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of ‖M(r_m) − M(r_{m→n})‖₂ (eq. 10); 0 where nothing is valid."""
    difference = (labels - warped)[valid]
    if not len(difference):
        return labels.new_zeros(())
    # The root of zero has no gradient: a floor far below any difference of probabilities that matters.
    return (difference.square().sum(-1) + 1e-8).sqrt().mean()
