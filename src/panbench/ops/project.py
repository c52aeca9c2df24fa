"""Gaussians onto an image: who is visible, and with which screen geometry."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from panbench.ops import gsplat, reference
from panbench.ops.backend import Backend, resolve
from panbench.scene import Camera

Kind = Literal["ellipsoid", "disc"]
KIND_CODE: dict[Kind, int] = {"ellipsoid": 0, "disc": 1}


class Projected(NamedTuple):
    """What a camera sees of a set of Gaussians.

    Attributes:
        ids: [M], int64, ascending: the visible ones. Their cut-off ellipse (alpha ≥ 1/255) meets the image.
        geometry: [M, 7] ellipsoids: mean_x, mean_y, conic a, b, c, opacity, z; or [M, 13] discs: M_u, M_v, M_w, c_x,
            c_y, opacity, z with (x z, y z, z)ᵀ = (M_u, M_v, M_w)ᵀ (u, v, 1) for a point (u, v) of the disc.
        normals: [M, 3], unit, camera axes, facing the camera: the disc's normal, or the ellipsoid's shortest axis.
    """

    ids: Tensor
    geometry: Tensor
    normals: Tensor


def project(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    camera: Camera,
    *,
    kind: Kind,
    near: float,
    eps2d: float = 0.3,
    backend: Backend | None = None,
) -> Projected:
    """Project Gaussians and drop those that cannot reach alpha 1/255 in any pixel.

    Args:
        means: [N, 3] world, metres. quats: [N, 4] w x y z. log_scales: [N, 3] (discs: [N, 2], or a third is ignored).
        opacity_logits: [N].
        kind: "ellipsoid" (EWA splatting, 3DGS) or "disc" (2DGS).
        near: centres at or in front of this z-depth are dropped, metres.
        eps2d: added to both variances of an ellipsoid's screen covariance, px².
    """
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height)
    pose = camera.world_to_camera.to(means.dtype)
    chosen = resolve(backend, means.device.type, rasterizing=True)
    if chosen in ("reference", "gsplat"):
        composed = gsplat.project if chosen == "gsplat" else reference.project
        out = composed(means, quats, log_scales, opacity_logits, pose, *numbers, kind=kind, near=near, eps2d=eps2d)
    else:
        out = torch.ops.panbench.project(
            means, quats, log_scales, opacity_logits, pose.contiguous(), *numbers, KIND_CODE[kind], near, eps2d
        )
    return Projected(*out)
