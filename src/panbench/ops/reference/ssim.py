"""Structural similarity as 3DGS and 2DGS train with it: 11x11 Gaussian window, zero padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_RADIUS = 5
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM, a scalar, of two images [H, W, C] in [0, 1]. Gradient to ``x`` only."""
    a, b = x.permute(2, 0, 1)[:, None], y.detach().permute(2, 0, 1)[:, None]
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a * mean_a
    variance_b = _smooth(b * b) - mean_b * mean_b
    covariance = _smooth(a * b) - mean_a * mean_b
    structure = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (structure / ((mean_a.square() + mean_b.square() + _C1) * (variance_a + variance_b + _C2))).mean()


def _smooth(planes: Tensor) -> Tensor:
    """Window average of planes [C, 1, H, W], zeros outside."""
    steps = torch.arange(-_RADIUS, _RADIUS + 1, dtype=planes.dtype, device=planes.device)
    taps = torch.exp(-0.5 * (steps / _SIGMA).square())
    taps = (taps / taps.sum())[None, None, None]
    rows = functional.conv2d(planes, taps, padding=(0, _RADIUS))
    return functional.conv2d(rows, taps.transpose(2, 3), padding=(_RADIUS, 0))
