"""What holds discs to a mixture of planes: LI-GS's local term."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve


def mixture_loss(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    ids: Tensor,
    components: Tensor,
    weights: Tensor,
    centers: Tensor,
    normals: Tensor,
    corner: float = 0.05,
    normal_share: float = 0.1,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Mean over discs of ℓ_centre + ℓ_control + 0.1 ℓ_normal, metres, against K planes each; 0 for no disc.

    With e(x, k) = n_k · (x − c_k) and Huber's φ(e) = e² / 2δ for |e| ≤ δ, else |e| − δ/2:

    - ℓ_centre = Σ_k a_k φ(e(μ, k));
    - ℓ_control = ¼ Σ_x Σ_k a_k φ(e(x, k)) over the control points x = μ ± r_u t_u, μ ± r_v t_v;
    - ℓ_normal = Σ_k a_k (1 − |n · n_k|).

    Jiang et al. 2024 (LI-GS) have a term of each kind over the four nearest components of visible surfels (eqs. 9–13,
    by a third party's account); **the formulas and the numbers 0.05 m and 0.1 are our inference.**

    Args:
        means: centres μ [N, 3], metres. quats: [N, 4], columns of whose rotations are t_u, t_v and n.
        log_scales: log of r_u, r_v [N, 2]. Float64 is left to the reference.
        ids: [M], int64, ascending, distinct: the discs that are looked at.
        components: [N, K], int64, rows of the planes that each disc is held to; below 0: none.
        weights: a_k [N, K], whose rows sum to 1, or to 0 for a disc that has no component in reach and so contributes
            nothing; no gradient.
        centers: c_k [P, 3], metres. normals: n_k [P, 3], unit. No gradient.
        corner: δ, metres. normal_share: factor of ℓ_normal.
    """
    given = (means, quats, log_scales, ids, components, weights, centers, normals)
    if resolve(backend, means.device.type) == "cpu" and means.dtype == torch.float32:
        return torch.ops.panbench.mixture_loss(*(t.contiguous() for t in given), corner, normal_share)[0]
    return reference.mixture_loss(*given, corner, normal_share)
