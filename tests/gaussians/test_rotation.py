"""Quaternions: the rotation matrices agree with scipy's, and frames from normals point where they should."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from panbench.gaussians.rotation import quats_with_normal, rotation_matrices


def test_rotation_matrices_equal_scipys_for_quaternions_of_any_length() -> None:
    quats = np.random.default_rng(0).normal(size=(50, 4)) * 3
    expected = Rotation.from_quat(quats[:, [1, 2, 3, 0]]).as_matrix()
    assert np.allclose(rotation_matrices(torch.from_numpy(quats)).numpy(), expected, atol=1e-12)


def test_the_third_axis_of_a_rotation_made_from_a_normal_is_that_normal() -> None:
    generator = torch.Generator().manual_seed(1)
    normals = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=-1)
    normals = torch.cat([normals, torch.eye(3), -torch.eye(3), torch.tensor([[1e-4, 0.0, -1.0]])])
    normals = torch.nn.functional.normalize(normals, dim=-1)
    matrices = rotation_matrices(quats_with_normal(normals))
    assert torch.allclose(matrices[..., 2], normals, atol=2e-3)
    assert torch.allclose(matrices[:-1, :, 2], normals[:-1], atol=1e-5)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(len(normals)), atol=1e-5)
