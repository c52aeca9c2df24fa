"""How near a rendered picture is to the photo."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(image: Tensor, photo: Tensor) -> Tensor:
    """−10 log₁₀ of the mean squared error, dB; images in [0, 1]."""
    return -10 * torch.log10((image.clamp(0, 1) - photo).square().mean().clamp_min(1e-12))
