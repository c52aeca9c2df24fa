"""Structural similarity of two images."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve


def ssim(x: Tensor, y: Tensor, *, backend: Backend | None = None) -> Tensor:
    """Mean SSIM of two images [H, W, C] in [0, 1]; differentiable in ``x`` only.

    11 × 11 Gaussian window of σ 1.5, zero padding, C1 = 0.01², C2 = 0.03².
    """
    if resolve(backend, x.device.type) == "reference":
        return reference.ssim(x, y.detach())
    return torch.ops.panbench.ssim(x.contiguous(), y.contiguous())[0]
