"""Label warping: the labels of a surface point must agree between neighbouring views (eqs. 8–10)."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve
from panbench.scene import Camera


def warping_loss(
    labels: Tensor,
    count: int,
    camera: Camera,
    depth: Tensor,
    other: Camera,
    other_labels: Tensor,
    other_depth: Tensor,
    tolerance: float,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Mean of ‖M(r_m) − M(r_{m→n})‖₂ over the pixels that another view sees too; 0 where there are none.

    A pixel is unprojected with its depth (eq. 8), moved into the other camera (eq. 9) and projected; there the other
    view is sampled, bilinear. It counts where that is inside the image, in front of the camera and not hidden.

    Args:
        labels: [H, W, L] of ``camera``; M is the first ``count`` channels. The only input that gets a gradient;
            float64 is left to the reference.
        depth: [H, W], metres, 0 = unknown.
        other_labels: [H', W', count]. other_depth: [H', W'], metres.
        tolerance: a point is hidden if its depth differs from that of the other view's surface by more than this share.
    """
    if resolve(backend, labels.device.type) == "cpu" and labels.dtype == torch.float32:
        return torch.ops.panbench.warping_loss(
            labels.contiguous(),
            depth.contiguous(),
            other_labels.contiguous(),
            other_depth.contiguous(),
            other.world_to_camera @ camera.camera_to_world,
            *(camera.fx, camera.fy, camera.cx, camera.cy),
            *(other.fx, other.fy, other.cx, other.cy),
            tolerance,
        )[0]
    warped, valid = reference.warp(camera, depth, other, other_labels, other_depth, tolerance)
    return reference.warping_loss(labels[..., :count], warped, valid)
