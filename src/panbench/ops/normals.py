"""Normals of depth maps, and how far normals differ."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve
from panbench.scene import Camera


def depth_normals(depth: Tensor, camera: Camera, step: int = 1, *, backend: Backend | None = None) -> Tensor:
    """Camera-space normals of a depth map by central differences, facing the camera.

    Args:
        depth: [H, W], metres, 0 = unknown; float64 is left to the reference.

    Returns:
        [H, W, 3], unit; zero within ``step`` pixels of the border and where a depth in use is 0.
    """
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, step)
    if resolve(backend, depth.device.type) == "cpu" and depth.dtype == torch.float32:
        return torch.ops.panbench.depth_normals(depth.contiguous(), *numbers)
    return reference.depth_normals(depth, *numbers)


def normal_loss(normals: Tensor, known: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Mean of 1 − N · n over pixels where the reference normal n is known.

    Args:
        normals: N, blended, not re-normalised [H, W, 3], so that open pixels are pulled less; float64 is left to the
            reference.
        known: n [H, W, 3], zero where unknown.
    """
    if resolve(backend, normals.device.type) == "cpu" and normals.dtype == torch.float32:
        one_stride = normals.stride(2) == 1 and normals.stride(0) == normals.stride(1) * normals.shape[1]
        maps = normals if one_stride else normals.contiguous()
        return torch.ops.panbench.normal_loss(maps, known.contiguous())[0]
    return reference.normal_loss(normals, known)
