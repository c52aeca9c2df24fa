"""The anti-aliased form of 3DGS."""

from __future__ import annotations

import math

import pytest
import torch
from box_scene import BoxData, box_scene, fitted
from torch import Tensor

from panbench import ops
from panbench.heads import NoHead
from panbench.models.threedgs import MIN_COMPENSATION, ThreeDGS, compensated
from panbench.scene import Camera


def geometry(covariance: Tensor, opacity: float) -> Tensor:
    """Row [1, 7] of an ellipsoid with a screen covariance C₀ [2, 2], px², before the low-pass filter."""
    conic = torch.linalg.inv(covariance + 0.3 * torch.eye(2, dtype=covariance.dtype))
    row = [8.2, 7.9, *conic[0], conic[1, 1], opacity, 2.0]
    return torch.stack([torch.as_tensor(v, dtype=covariance.dtype) for v in row])[None]


def test_the_compensation_is_that_of_the_worked_example() -> None:
    c0 = torch.tensor([[47.4260536731, 17.2473728071], [17.2473728071, 24.4268672224]], dtype=torch.float64)
    got = compensated(geometry(c0, 1.0))[0, 5]
    assert float(got) == pytest.approx(0.9876619332, abs=1e-9)


def test_the_compensation_is_the_root_of_the_ratio_of_areas() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        root = torch.randn(2, 2, dtype=torch.float64, generator=generator)
        c0 = root @ root.T + 0.01 * torch.eye(2, dtype=torch.float64)
        filtered = c0 + 0.3 * torch.eye(2, dtype=torch.float64)
        expected = 0.8 * float((torch.linalg.det(c0) / torch.linalg.det(filtered)).sqrt())
        assert float(compensated(geometry(c0, 0.8))[0, 5]) == pytest.approx(expected, rel=1e-9)


def test_a_gaussian_without_extent_keeps_the_least_opacity_and_a_finite_gradient() -> None:
    row = geometry(torch.zeros(2, 2, dtype=torch.float64), 0.5).requires_grad_()
    got = compensated(row)
    got[0, 5].backward()
    assert float(got[0, 5].detach()) == pytest.approx(0.5 * MIN_COMPENSATION)
    assert row.grad is not None
    assert row.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    rows = torch.cat([geometry(torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64), 0.7)] * 2)
    assert torch.autograd.gradcheck(compensated, rows.requires_grad_())


def test_a_small_gaussian_gives_as_much_light_at_any_size_of_the_image() -> None:
    # Σ alpha ≈ o 2π sqrt(det C₀): a quarter of it at half the size. Without compensation it would hardly fall.
    def light(camera: Camera, antialiased: bool) -> float:
        mean, quat = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
        scale, logit = torch.full((1, 3), math.log(0.012)), torch.tensor([0.0])
        seen = ops.project(mean, quat, scale, logit, camera, kind="ellipsoid", near=0.1)
        rows = compensated(seen.geometry) if antialiased else seen.geometry
        size = (camera.width, camera.height)
        blended = ops.blend(
            rows, seen.normals, ops.bin(rows, *size, kind="ellipsoid"), *size, kind="ellipsoid", near=0.1
        )
        return float(blended.alpha.sum())

    large = Camera(64, 64, 100.0, 100.0, 32.0, 32.0, torch.eye(4))
    small = large.resized(32, 32)
    area = 2 * math.pi * 0.5 * (0.012 * 100 / 2) ** 2
    assert light(large, True) == pytest.approx(area, rel=0.05)
    assert light(large, True) / light(small, True) == pytest.approx(4, rel=0.1)
    assert light(large, False) / light(small, False) < 2.6


def test_the_model_trains_with_it() -> None:
    def model() -> ThreeDGS:
        return ThreeDGS(NoHead(), antialiased=True, voxel=0.08, flat_voxel=0.08)

    early, late = (fitted(model(), steps, BoxData()).eval() for steps in (1, 20))
    frame = box_scene().source.load(3)
    with torch.no_grad():
        error = [(m.render(frame.camera).image - frame.color / 255).abs().mean() for m in (early, late)]
    assert error[1] < error[0]
