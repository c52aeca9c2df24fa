"""What keeps Gaussians on surfaces: terms on rendered depth, normals and distortion, and on opacities."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_loss(depth: Tensor, measured: Tensor, alpha: Tensor, max_depth: float) -> Tensor:
    """Mean |D − D*| in metres, weighted by ω = 1 / (1 + (D*/3 m)²), the accuracy of a structured-light sensor.

    Args:
        depth: expected depth [H, W]. measured: [H, W], 0 = none. alpha: pixels of ½ and less are left out.
    """
    valid = (measured > 0) & (measured < max_depth) & (alpha.detach() > 0.5)
    weight = valid / (1 + (measured / 3).square())
    return (weight * (depth - measured).abs()).sum() / weight.sum().clamp_min(1)


def distortion_loss(distortion: Tensor, near: float, far: float) -> Tensor:
    """Mean over pixels of 2DGS's depth distortion Σ_{j<i} w_i w_j (m(d_i) − m(d_j))², m(d) = f/(f−n) · (1 − n/d).

    m is affine in 1/d, so that this is (f n / (f − n))² times the distortion of inverse depth.

    Args:
        distortion: Σ_{j<i} w_i w_j (1/d_i − 1/d_j)² [H, W], 1/m², as ``ops.blend`` gives it.
        near, far: n and f, metres, 0 < n < f.
    """
    return (far * near / (far - near)) ** 2 * distortion.mean()


def curvature_loss(normals: Tensor) -> Tensor:
    """Mean over inner pixels of ‖Σ_neighbours N − 4 N‖₂, the Laplacian of the normals over the four neighbours.

    About 2 h² / R² on a sphere of radius R that pixels sample at distance h; left out where a normal in use is zero.

    Args:
        normals: [H, W, 3], unit, or zero where unknown.
    """
    center = normals[1:-1, 1:-1]
    beside = (normals[1:-1, :-2], normals[1:-1, 2:], normals[:-2, 1:-1], normals[2:, 1:-1])
    known = center.detach().square().sum(-1) > 0.5
    for other in beside:
        known = known & (other.detach().square().sum(-1) > 0.5)
    laplacian = torch.stack(beside).sum(0) - 4 * center
    # An epsilon inside the root keeps the gradient on a plane finite.
    length = (laplacian.square().sum(-1) + 1e-20).sqrt()
    return (length * known).sum() / known.sum().clamp_min(1)


def opacity_loss(opacity: Tensor) -> Tensor:
    """Mean of ω(o) · exp(−20 (o − ½)²), which pushes opacities away from ½ (Gaussian surfels).

    ω = 0.01 where 0.01 < o ≤ 0.5, 1 where 0.5 < o ≤ 0.99, else 0: an opaque surfel is pushed hard to 1, a transparent
    one gently to 0.

    Args:
        opacity: [N], in [0, 1]; 0 for N = 0.
    """
    low = ((opacity > 0.01) & (opacity <= 0.5)).to(opacity)
    high = ((opacity > 0.5) & (opacity <= 0.99)).to(opacity)
    term = (0.01 * low + high) * torch.exp(-20 * (opacity - 0.5).square())
    return term.sum() / max(len(opacity), 1)
