"""Colours from real spherical harmonics up to degree 3, with the signs of the public 3DGS files."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def basis(directions: Tensor, degree: int) -> Tensor:
    """Basis functions [..., (degree + 1)²] at unit directions [..., 3]."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        values += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        values += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
    if degree >= 3:
        values += [
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def spherical_harmonics(
    dc: Tensor, rest: Tensor, means: Tensor, camera_position: Tensor, ids: Tensor, degree: int
) -> Tensor:
    """Colours max(0, ½ + Σ_k Y_k(d) h_k) of the Gaussians ``ids`` seen from a camera, d = (μ - camera) / |μ - camera|.

    Args:
        dc: [N, 3], coefficients of degree 0.
        rest: [N, K - 1, 3], the further coefficients; those above ``degree`` are unused and receive no gradient.
        means: [N, 3], world, metres.
        camera_position: [3], world, metres.
        ids: [M], int64, rows of the above.
        degree: 0 to 3.

    Returns:
        colours [M, 3].

    Raises:
        ValueError: if ``degree`` is not in 0..3 or ``rest`` holds too few coefficients for it.
    """
    used = (degree + 1) ** 2 - 1
    if not 0 <= degree <= 3 or rest.shape[1] < used:
        raise ValueError(f"spherical harmonics of degree {degree} with {rest.shape[1]} coefficients beyond the first")
    directions = functional.normalize(means[ids] - camera_position, dim=-1)
    coefficients = torch.cat([dc[ids][:, None], rest[ids, :used]], dim=1)
    return functional.relu(0.5 + (basis(directions, degree)[..., None] * coefficients).sum(1))
