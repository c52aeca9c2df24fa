"""Rendered depth against the depth sensor."""

from __future__ import annotations

from torch import Tensor


def depth_loss(depth: Tensor, measured: Tensor, alpha: Tensor, max_depth: float) -> Tensor:
    """Mean |D − D*| in metres, weighted by ω = 1 / (1 + (D*/3 m)²), the accuracy of a structured-light sensor.

    Args:
        depth: expected depth [H, W]. measured: [H, W], 0 = none. alpha: pixels of ½ and less are left out.
    """
    valid = (measured > 0) & (measured < max_depth) & (alpha.detach() > 0.5)
    weight = valid / (1 + (measured / 3).square())
    return (weight * (depth - measured).abs()).sum() / weight.sum().clamp_min(1)
