"""View-dependent colour of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve


def spherical_harmonics(
    dc: Tensor,
    rest: Tensor,
    means: Tensor,
    camera_position: Tensor,
    ids: Tensor,
    degree: int,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Colours [M, 3] = max(0, ½ + Σ_k Y_k(d) h_k) of the Gaussians ``ids``, d = (μ − camera) / |μ − camera|.

    Args:
        dc: [N, 3], coefficients of degree 0. rest: [N, K − 1, 3]; those above ``degree`` are unused.
        means: [N, 3]. camera_position: [3], world. ids: [M], int64. degree: 0 to 3.
    """
    position = camera_position.to(dc.dtype)
    if resolve(backend, dc.device.type) == "reference":
        return reference.spherical_harmonics(dc, rest, means, position, ids, degree)
    return torch.ops.panbench.spherical_harmonics(dc, rest, means, position.contiguous(), ids, degree)
