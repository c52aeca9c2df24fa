"""Gaussian surfels: the depth of their planes, which of them are drawn, and the pyramid of their photos."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from box_scene import BoxData, BoxFrames, box_scene, fitted
from placed import placed
from torch import Tensor

from panbench import ops
from panbench.gaussians.rotation import rotation_matrices
from panbench.heads import NoHead, QueryHead
from panbench.models.base import reduced
from panbench.models.surfels import MAX_SLOPE, Surfels, plane_slopes
from panbench.scene import Camera

CAMERA = Camera(640, 480, 500.0, 480.0, 320.0, 240.0, torch.eye(4))


def surfels(means: Tensor, normals: Tensor, scale: float, opacity: float = 0.95) -> Surfels:
    """A model with surfels at ``means`` [N, 3] that face along ``normals`` [N, 3]."""
    return placed(Surfels(NoHead(), sh_degree=0).eval(), means, normals, scale, opacity)


def test_slopes_are_those_of_the_worked_example() -> None:
    # Specification of the surfels: mu (0.3, -0.2, 2.5), q (0.9, 0.1, -0.3, 0.2), seen by an identity pose.
    center = torch.tensor([[0.3, -0.2, 2.5]], dtype=torch.float64)
    quat = torch.tensor([[0.9, 0.1, -0.3, 0.2]], dtype=torch.float64)
    slopes = plane_slopes(center, -rotation_matrices(quat)[..., 2], CAMERA)
    torch.testing.assert_close(
        slopes, torch.tensor([[0.003501401, 0.002188375]], dtype=torch.float64), rtol=0, atol=1e-9
    )
    at = torch.tensor([384.5 - 380.0, 203.5 - 201.6], dtype=torch.float64)
    assert float(2.5 + (slopes[0] * at).sum()) == pytest.approx(2.5199142157, abs=1e-9)


def test_slopes_are_the_derivative_of_the_planes_depth_along_the_rays() -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(20, 3, dtype=torch.float64, generator=generator) * 0.5 + torch.tensor([0, 0, 3.0])
    normals = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64, generator=generator), dim=1)
    normals[:, 2] = -normals[:, 2].abs() - 1.0
    normals = torch.nn.functional.normalize(normals, dim=1)
    pixels = center[:, :2] / center[:, 2:] * torch.tensor([500.0, 480.0]) + torch.tensor([320.0, 240.0])

    def depth(at: Tensor) -> Tensor:
        ray = torch.cat([(at - torch.tensor([320.0, 240.0])) / torch.tensor([500.0, 480.0]), torch.ones(20, 1)], 1)
        return (normals * center).sum(1) / (normals * ray).sum(1)

    step = 1e-3
    for axis in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[axis] = step
        numeric = (depth(pixels + shift) - depth(pixels - shift)) / (2 * step)
        torch.testing.assert_close(plane_slopes(center, normals, CAMERA)[:, axis], numeric, rtol=1e-6, atol=1e-9)


def test_slopes_are_bounded_and_their_gradient_is_that_of_finite_differences() -> None:
    center = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
    grazing = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, -0.001]], dtype=torch.float64), dim=1)
    assert plane_slopes(center, grazing, CAMERA).norm() == pytest.approx(MAX_SLOPE * 2.0)
    steep = torch.nn.functional.normalize(torch.tensor([[0.5, -0.2, -0.8]], dtype=torch.float64), dim=1)
    assert torch.autograd.gradcheck(
        lambda c, n: plane_slopes(c, n, CAMERA), (center.requires_grad_(), steep.requires_grad_())
    )


def tilted_plane() -> tuple[Tensor, Tensor]:
    """Centres of surfels 2 cm apart on a plane that leans away, and its normal towards the camera."""
    normal = torch.nn.functional.normalize(torch.tensor([0.5, -0.3, -0.8]), dim=0)
    axis = torch.nn.functional.normalize(torch.linalg.cross(normal, torch.tensor([0.0, 1.0, 0.0])), dim=0)
    other = torch.linalg.cross(normal, axis)
    steps = torch.arange(-1.0, 1.0, 0.02)
    grid = steps[:, None, None] * axis + steps[None, :, None] * other
    return grid.reshape(-1, 3) + torch.tensor([0.0, 0.0, 3.0]), normal


def test_surfels_on_a_plane_have_the_depth_of_the_plane() -> None:
    means, normal = tilted_plane()
    model = surfels(means, normal.expand_as(means), 0.02)
    camera = CAMERA.resized(160, 120)
    with torch.no_grad():
        view = model.render(camera, labels=False)
    exact = (normal @ torch.tensor([0.0, 0.0, 3.0])) / (camera.rays() @ normal)
    solid = view.alpha > 0.99
    assert solid.float().mean() > 0.1
    error = (view.depth - exact)[solid].abs()
    assert error.median() < 1e-3
    centers = ops.blend(  # depths of the centres alone are wrong by what a footprint spans
        (seen := model.project(camera)).geometry,
        seen.normals,
        ops.bin(seen.geometry, 160, 120, kind="ellipsoid"),
        160,
        120,
        kind="ellipsoid",
        near=0.05,
    )
    by_center = (centers.depth / centers.alpha.clamp_min(1e-3) - exact)[solid].abs()
    assert error.median() < 0.3 * by_center.median()
    torch.testing.assert_close(view.normal[solid], normal.expand_as(view.normal[solid]) * view.alpha[solid, None])


def test_surfels_are_drawn_from_their_front_only() -> None:
    means, normal = tilted_plane()
    behind = surfels(means, (-normal).expand_as(means), 0.02)
    with torch.no_grad():
        assert not behind.render(CAMERA.resized(160, 120), labels=False).alpha.any()
    edge_on = surfels(torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, -0.005]]), 0.1)
    assert not len(edge_on.project(CAMERA).ids)


def test_all_fields_get_finite_gradients() -> None:
    model = fitted(Surfels(NoHead(), voxel=0.08, flat_voxel=0.08, pyramid=(0, 0)), 2)
    for name in ("means", "quats", "scales", "opacities", "features_dc"):
        grad = model.gaussians[name].grad
        assert grad is not None
        assert grad.isfinite().all()
        assert grad.any()


# -------------------------------------------------------------------------------------------------------- pyramid


def test_photos_start_at_a_quarter_of_their_size() -> None:
    model = Surfels(NoHead(), pyramid=(10, 25))
    assert [model.photo_scale(step) for step in (0, 9, 10, 24, 25, 999)] == [4, 4, 2, 2, 1, 1]


def test_a_reduced_frame_is_the_same_view_with_averaged_colours_and_single_labels() -> None:
    frame = BoxFrames().load(3)
    small = reduced(frame, 4)
    assert (small.camera.width, small.camera.height) == (12, 9)
    assert small.color.shape == (9, 12, 3)
    blocks = frame.color.float().unflatten(0, (9, 4)).unflatten(2, (12, 4)).mean((1, 3))
    torch.testing.assert_close(small.color.float(), blocks, rtol=0, atol=0.51)
    assert frame.depth is not None
    assert small.depth is not None
    assert small.masks is not None
    assert frame.masks is not None
    torch.testing.assert_close(small.depth, frame.depth[2::4, 2::4])
    assert torch.equal(small.masks.semantic, frame.masks.semantic[2::4, 2::4])
    assert torch.equal(small.masks.instance, frame.masks.instance[2::4, 2::4])
    # The same points of the world: corners of the image stay corners of the image.
    corner = torch.tensor([[0.0, 0.0]])
    for camera in (frame.camera, small.camera):
        ray = torch.cat([(corner - torch.tensor([camera.cx, camera.cy])) / torch.tensor([camera.fx, camera.fy])], 1)
        torch.testing.assert_close(ray, torch.tensor([[-1 / 1.8, -0.75 / 1.8]]))


@pytest.mark.parametrize("pyramid", [(2, 4), (0, 0)])
def test_training_passes_through_the_pyramid(pyramid: tuple[int, int]) -> None:
    options: dict[str, Any] = {"voxel": 0.08, "flat_voxel": 0.08, "pyramid": pyramid}
    model = fitted(Surfels(QueryHead(), **options), 7, BoxData())
    assert model.latest["loss"].isfinite()
    assert model.eval().predict_view(box_scene().source.camera(0)).color.any()
