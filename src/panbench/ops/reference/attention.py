"""Distance-aware cross attention between Gaussians and instance queries (eqs. 2-4)."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops.reference.project import rotation_matrices


def attend(
    features: Tensor,
    means: Tensor,
    queries: Tensor,
    query_means: Tensor,
    query_log_scales: Tensor,
    query_quats: Tensor,
    *,
    logarithm: bool = False,
) -> Tensor:
    """Attention A = sigmoid(f_q · f) · exp(-½ (x - μ)ᵀ Σ⁻¹ (x - μ)), with Σ = R diag(exp(2 log_scale)) Rᵀ.

    Args:
        features: [M, D] instance features of the Gaussians.
        means: [M, 3], world, metres; Gaussians count as points.
        queries: [Q, D] query features.
        query_means: [Q, 3], world, metres.
        query_log_scales: [Q, 3], log metres.
        query_quats: [Q, 4], w x y z, normalised here.

        logarithm: give log A, which keeps a gradient where A underflows.

    Returns:
        A [M, Q], each entry in [0, 1]; or log A.
    """
    similarity = features @ queries.T
    offsets = means[:, None] - query_means
    local = torch.einsum("mqi,qij->mqj", offsets, rotation_matrices(query_quats)) * (-query_log_scales).exp()
    exponent = -0.5 * local.square().sum(-1)
    if logarithm:
        return torch.nn.functional.logsigmoid(similarity) + exponent
    return torch.sigmoid(similarity) * torch.exp(exponent)
