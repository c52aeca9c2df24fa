"""Rendered colour against the photo (eq. 13)."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import ssim


def photometric_loss(image: Tensor, photo: Tensor, ssim_weight: float) -> Tensor:
    """(1 − λ) L1 + λ (1 − SSIM) of images [H, W, 3] in [0, 1]."""
    return (1 - ssim_weight) * (image - photo).abs().mean() + ssim_weight * (1 - ssim(image, photo))


def psnr(image: Tensor, photo: Tensor) -> Tensor:
    """−10 log₁₀ of the mean squared error, dB; images in [0, 1]."""
    return -10 * torch.log10((image.clamp(0, 1) - photo).square().mean().clamp_min(1e-12))
