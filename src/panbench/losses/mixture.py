"""What holds discs to a mixture of planes: LI-GS's local term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from panbench.gaussians.rotation import rotation_matrices

CORNER = 0.05
"""δ of Huber's function, metres."""
NORMAL_SHARE = 0.1


def mixture_loss(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    planes: Tensor,
    weights: Tensor,
    corner: float = CORNER,
    normal_share: float = NORMAL_SHARE,
) -> Tensor:
    """Mean over discs of ℓ_centre + ℓ_control + 0.1 ℓ_normal, metres, against K planes each.

    With e(x, k) = n_k · x − d_k and Huber's φ(e) = e² / 2δ for |e| ≤ δ, else |e| − δ/2:

    - ℓ_centre = Σ_k a_k φ(e(μ, k));
    - ℓ_control = ¼ Σ_x Σ_k a_k φ(e(x, k)) over the control points x = μ ± r_u t_u, μ ± r_v t_v;
    - ℓ_normal = Σ_k a_k (1 − |n · n_k|).

    Jiang et al. 2024 (LI-GS) have a term of each kind over the four nearest components of visible surfels (eqs. 9–13,
    by a third party's account); **the formulas and the numbers 0.05 m and 0.1 are our inference.**

    Args:
        means: centres μ [M, 3], metres. quats: [M, 4], columns of whose rotations are t_u, t_v and n.
        log_scales: log of r_u, r_v [M, 2].
        planes: n_k and d_k of each disc's components [M, K, 4]; no gradient.
        weights: a_k [M, K], whose rows sum to 1, or to 0 for a disc that has no component in reach and so contributes
            nothing; no gradient.
        corner: δ, metres. normal_share: factor of ℓ_normal.
    """
    if not len(means):
        return means.sum()
    axes = rotation_matrices(quats) * torch.cat([log_scales.exp(), torch.ones_like(log_scales[:, :1])], 1)[:, None]
    # Homogeneous columns: their products with (n_k, −d_k) are e(μ, k), the heights of both axes, and n · n_k.
    center = torch.cat([means, torch.ones_like(means[:, :1])], 1)
    columns = torch.cat([center[:, :, None], torch.nn.functional.pad(axes, (0, 0, 0, 1))], 2)
    return _Term.apply(columns, planes, weights, corner, normal_share)  # pyright: ignore[reportReturnType]


class _Term(Function):
    """The loss of columns [M, 4, 4]; its gradient is made with its value, so that no step between is kept."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, planes: Tensor, weights: Tensor, corner: float, share: float) -> Tensor:
        sides = torch.cat([planes[..., :3], -planes[..., 3:]], -1)
        # Sums of products, as batches of 4 × 4 matrices are slow to multiply on a CPU.
        heights = sides[:, :, :1] * columns[:, None, 0]
        for j in range(1, 4):
            heights = torch.addcmul(heights, sides[:, :, j : j + 1], columns[:, None, j])
        off, first, second, cosine = heights.unbind(-1)
        points = torch.stack([off, off + first, off - first, off + second, off - second])
        slope = (points / corner).clamp(-1, 1)
        count = len(columns)
        factor = points.new_tensor([1.0, 0.25, 0.25, 0.25, 0.25])[:, None, None] * weights / count
        total = (factor * slope * (points - (corner / 2) * slope)).sum()
        total = total + share / count * (weights * (1 - cosine.abs())).sum()
        slope = slope * factor
        grad = torch.stack(
            [slope.sum(0), slope[1] - slope[2], slope[3] - slope[4], -(share / count) * weights * cosine.sign()], -1
        )
        ctx.save_for_backward((sides[..., None] * grad[:, :, None]).sum(1))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (columns,) = ctx.saved_tensors
        return grad * columns, None, None, None, None
