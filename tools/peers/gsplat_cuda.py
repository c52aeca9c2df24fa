"""gsplat from PyPI, where it and a CUDA device are present."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panbench.scene import Camera


def why_not() -> str:
    """Why gsplat cannot run here; empty if it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    return "" if importlib.util.find_spec("gsplat") else "gsplat is not installed"


def rasterizer(geometry: tuple[Tensor, ...], features: Tensor, near: float) -> Callable[[Camera, Tensor | None], None]:
    """A function that renders a view on the GPU, and goes back if it is given a gradient of the image [H, W, C]."""
    import gsplat  # pyright: ignore[reportMissingImports]

    means, quats, log_scales, logits = (t.cuda().requires_grad_() for t in geometry)
    table = features.cuda().requires_grad_()

    def render(camera: Camera, grad_image: Tensor | None) -> None:
        with torch.set_grad_enabled(grad_image is not None):
            image: Any = gsplat.rasterization(
                means,
                quats,
                log_scales.exp(),
                logits.sigmoid(),
                table,
                camera.world_to_camera.cuda()[None],
                camera.intrinsics.cuda()[None],
                camera.width,
                camera.height,
                near_plane=near,
            )[0][0]
            if grad_image is not None:
                torch.autograd.grad(image, [means, quats, log_scales, logits, table], grad_image.to(image.device))
        torch.cuda.synchronize()

    return render
