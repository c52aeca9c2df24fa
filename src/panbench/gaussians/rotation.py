"""Quaternions (w, x, y, z) and rotation matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z), which are normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quats_with_normal(normals: Tensor) -> Tensor:
    """Unit quaternions [..., 4] whose rotation takes the z axis to ``normals`` [..., 3] (unit length): R[:, 2] = n.

    The shortest such rotation: q ∝ (1 + n_z, −n_y, n_x, 0); about the x axis where n is −z.
    """
    x, y, z = normals.unbind(-1)
    opposite = z < -1 + 1e-6
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], -1)
    half_turn = quats.new_tensor([0.0, 1.0, 0.0, 0.0])
    return torch.nn.functional.normalize(torch.where(opposite[..., None], half_turn, quats), dim=-1)
