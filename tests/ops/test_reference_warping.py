"""Label warping against closed forms: eqs. 8–10 and the occlusion test."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panbench.ops.reference.warping import warp, warping_loss
from panbench.scene import Camera

WIDTH, HEIGHT, FOCAL, DEPTH = 32, 24, 40.0, 2.0
TOLERANCE = 0.03


def camera(x: float = 0.0, y: float = 0.0, z: float = 0.0, dtype: torch.dtype = torch.float64) -> Camera:
    """A camera at (x, y, z) that looks along world z."""
    pose = torch.eye(4, dtype=dtype)
    pose[:3, 3] = -torch.tensor([x, y, z], dtype=dtype)
    return Camera(WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, pose)


def flat(depth: float = DEPTH) -> Tensor:
    return torch.full((HEIGHT, WIDTH), depth, dtype=torch.float64)


def columns_and_rows() -> Tensor:
    """A map [H, W, 2] whose value is the pixel's own centre: what is sampled tells from where."""
    y, x = torch.meshgrid(
        torch.arange(HEIGHT, dtype=torch.float64) + 0.5, torch.arange(WIDTH, dtype=torch.float64) + 0.5, indexing="ij"
    )
    return torch.stack([x, y], dim=-1)


def test_a_camera_warped_into_itself_sees_what_it_sees() -> None:
    warped, valid = warp(camera(), flat(), camera(), columns_and_rows(), flat(), TOLERANCE)
    assert valid.all()
    torch.testing.assert_close(warped, columns_and_rows())


@pytest.mark.parametrize("shift", [3.0, 3.25, -2.5])
def test_a_sideways_step_before_a_plane_shifts_by_focal_length_times_baseline_over_depth(shift: float) -> None:
    other = camera(x=-shift * DEPTH / FOCAL)
    warped, valid = warp(camera(), flat(), other, columns_and_rows(), flat(), TOLERANCE)
    expected = columns_and_rows()[..., 0] + shift
    inside = (expected >= 0.5) & (expected <= WIDTH - 0.5)
    assert torch.equal(valid, inside)
    torch.testing.assert_close(warped[..., 0][valid], expected[valid])
    torch.testing.assert_close(warped[..., 1][valid], columns_and_rows()[..., 1][valid])


def test_a_step_forward_magnifies_about_the_centre() -> None:
    other = camera(z=1.0)
    warped, valid = warp(camera(), flat(), other, columns_and_rows(), flat(1.0), TOLERANCE)
    centre = torch.tensor([WIDTH / 2, HEIGHT / 2], dtype=torch.float64)
    expected = (columns_and_rows() - centre) * 2 + centre
    assert 0.2 < valid.double().mean() < 0.3
    torch.testing.assert_close(warped[valid], expected[valid])


def test_turned_cameras_follow_the_homography_of_the_rotation() -> None:
    angle = math.radians(8)
    other = camera()
    pose = other.world_to_camera.clone()
    pose[0, 0] = pose[2, 2] = math.cos(angle)
    pose[0, 2], pose[2, 0] = math.sin(angle), -math.sin(angle)
    other = Camera(WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, pose)
    k = other.intrinsics
    pixels = torch.cat([columns_and_rows(), torch.ones(HEIGHT, WIDTH, 1, dtype=torch.float64)], dim=-1)
    seen = pixels @ (k @ pose[:3, :3] @ k.inverse()).T
    expected = seen[..., :2] / seen[..., 2:]
    # The other view's depth of the plane z = 2: what a pixel's ray, turned back, needs to reach it.
    back = other.rays() @ pose[:3, :3]
    warped, valid = warp(camera(), flat(), other, columns_and_rows(), DEPTH / back[..., 2], TOLERANCE)
    assert valid.double().mean() > 0.7
    torch.testing.assert_close(warped[valid], expected[valid])


def test_points_behind_a_nearer_surface_of_the_other_view_are_hidden() -> None:
    surface = flat()
    surface[:, 10:20] = 1.0
    _, valid = warp(camera(), flat(), camera(), columns_and_rows(), surface, TOLERANCE)
    hidden = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    hidden[:, 10:20] = True
    assert torch.equal(valid, ~hidden)


@pytest.mark.parametrize(("error", "kept"), [(0.02, True), (-0.02, True), (0.05, False)])
def test_a_depth_error_below_the_tolerance_hides_nothing(error: float, kept: bool) -> None:
    _, valid = warp(camera(), flat(), camera(), columns_and_rows(), flat(DEPTH * (1 - error)), TOLERANCE)
    assert valid.all() if kept else not valid.any()


def test_pixels_without_depth_on_either_side_are_not_valid() -> None:
    mine, theirs = flat(), flat()
    mine[:5] = 0
    theirs[-5:] = 0
    _, valid = warp(camera(), mine, camera(), columns_and_rows(), theirs, TOLERANCE)
    assert not valid[:5].any()
    assert not valid[-5:].any()
    assert valid[6:-6].all()


def test_points_behind_the_other_camera_are_not_valid() -> None:
    warped, valid = warp(camera(), flat(), camera(z=5.0), columns_and_rows(), flat(), TOLERANCE)
    assert not valid.any()
    assert warped.isfinite().all()


def test_points_in_the_plane_of_the_other_camera_do_no_harm() -> None:
    warped, valid = warp(camera(), flat(), camera(z=DEPTH), columns_and_rows(), flat(), TOLERANCE)
    assert not valid.any()
    assert warped.isfinite().all()


def test_the_other_view_may_have_another_size() -> None:
    other = camera().resized(2 * WIDTH, 3 * HEIGHT)
    x = torch.arange(2 * WIDTH, dtype=torch.float64) + 0.5
    other_map = x.expand(3 * HEIGHT, -1)[..., None]
    other_depth = torch.full((3 * HEIGHT, 2 * WIDTH), DEPTH, dtype=torch.float64)
    warped, valid = warp(camera(), flat(), other, other_map, other_depth, TOLERANCE)
    assert valid.all()
    torch.testing.assert_close(warped[..., 0], 2 * columns_and_rows()[..., 0])


def test_gradients_of_labels_map_and_depth_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    small = Camera(5, 4, 6.0, 6.0, 2.5, 2.0, torch.eye(4, dtype=torch.float64))
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 0.11
    other = Camera(5, 4, 6.0, 6.0, 2.5, 2.0, pose)
    surface = torch.full((4, 5), 1.0, dtype=torch.float64)
    depth = (1 + 0.01 * torch.rand(4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    values = torch.rand(4, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(4, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(mine: Tensor, theirs: Tensor, z: Tensor) -> Tensor:
        warped, valid = warp(small, z, other, theirs, surface, TOLERANCE)
        assert valid.sum() >= 12
        return warping_loss(mine, warped, valid)

    assert torch.autograd.gradcheck(loss, (labels, values, depth))


def test_the_loss_is_the_mean_distance_over_valid_pixels() -> None:
    labels = torch.zeros(2, 2, 2, dtype=torch.float64)
    warped = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[9.0, 9.0], [0.6, 0.8]]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [False, True]])
    torch.testing.assert_close(
        warping_loss(labels, warped, valid), torch.tensor((5 + 1 + 1) / 3, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_consistent_labels_cost_nothing_and_pull_nowhere() -> None:
    labels = columns_and_rows().div(WIDTH).requires_grad_()
    warped, valid = warp(camera(), flat(), camera(), labels.detach(), flat(), TOLERANCE)
    loss = warping_loss(labels, warped, valid)
    loss.backward()
    assert loss < 2e-4  # the floor under the root
    assert labels.grad is not None
    assert labels.grad.abs().max() < 1e-6


def test_nothing_valid_costs_zero() -> None:
    labels = torch.rand(3, 4, 2, requires_grad=True)
    loss = warping_loss(labels, torch.rand(3, 4, 2), torch.zeros(3, 4, dtype=torch.bool))
    assert loss == 0
