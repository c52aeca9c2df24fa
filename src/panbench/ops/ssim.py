"""How alike two images are."""

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


def photometric_loss(x: Tensor, y: Tensor, ssim_weight: float, *, backend: Backend | None = None) -> Tensor:
    """(1 − λ) L1 + λ (1 − SSIM) of two images [H, W, C] in [0, 1]; differentiable in ``x`` only."""
    if resolve(backend, x.device.type) == "cpu":
        similarity = torch.ops.panbench.similarity
        return ssim_weight + similarity(x.contiguous(), y.contiguous(), -ssim_weight, 1 - ssim_weight)[0]
    return (1 - ssim_weight) * (x - y).abs().mean() + ssim_weight * (1 - ssim(x, y, backend=backend))
