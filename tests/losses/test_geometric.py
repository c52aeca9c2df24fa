"""Depth and normal terms against planes, whose depth and normals are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panbench.losses.geometric import curvature_loss, depth_loss, distortion_loss, opacity_loss
from panbench.ops import depth_normals, normal_loss
from panbench.scene import Camera

WIDTH, HEIGHT = 20, 14


def camera(dtype: torch.dtype = torch.float64) -> Camera:
    # An oblique pose: camera-space normals must not depend on it.
    pose = torch.eye(4, dtype=dtype)
    pose[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=dtype)
    pose[:3, 3] = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    return Camera(WIDTH, HEIGHT, 25.0, 30.0, 0.45 * WIDTH, 0.55 * HEIGHT, pose)


def plane(normal: Tensor, distance: float) -> Tensor:
    """Depth [H, W] of the plane n · x = −distance in camera axes, n towards the camera."""
    return -distance / (camera().rays() @ normal)


NORMALS = {
    "frontal": [0.0, 0.0, -1.0],
    "tilted right": [math.sin(0.7), 0.0, -math.cos(0.7)],
    "floor": [0.1, -math.sin(0.6), -math.cos(0.6)],
    "oblique": [-0.4, 0.3, -0.8],
}


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", NORMALS)
def test_normals_of_a_plane_are_exact_and_face_the_camera(name: str, step: int) -> None:
    normal = torch.nn.functional.normalize(torch.tensor(NORMALS[name], dtype=torch.float64), dim=0)
    depth = plane(normal, 1.5)
    assert (depth > 0).all()
    got = depth_normals(depth, camera(), step)
    inner = got[step:-step, step:-step]
    torch.testing.assert_close(inner, normal.expand_as(inner), rtol=0, atol=1e-9)
    assert ((inner * camera().rays()[step:-step, step:-step]).sum(-1) < 0).all()


@pytest.mark.parametrize("step", [1, 3])
def test_normals_are_zero_at_the_border_and_beside_holes(step: int) -> None:
    depth = plane(torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64), 2.0)
    depth[7, 9] = 0
    got = depth_normals(depth, camera(), step).norm(dim=-1)
    expected = torch.ones(HEIGHT, WIDTH, dtype=torch.float64)
    expected[:step] = expected[-step:] = 0
    expected[:, :step] = expected[:, -step:] = 0
    for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
        expected[7 + dy, 9 + dx] = 0
    torch.testing.assert_close(got, expected)


def test_normals_of_an_image_smaller_than_the_step_are_all_unknown() -> None:
    small = Camera(4, 2, 5.0, 5.0, 2.0, 1.0, torch.eye(4))
    assert not depth_normals(torch.ones(2, 4), small, step=3).any()


def test_gradients_of_normals_are_those_of_finite_differences_and_finite_at_degenerate_triangles() -> None:
    small = Camera(4, 4, 5.0, 5.0, 2.0, 2.0, torch.eye(4, dtype=torch.float64))
    depth = 1 + torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda d: depth_normals(d, small), depth.requires_grad_())
    flat = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    depth_normals(flat, small).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_equal_depth_costs_nothing() -> None:
    depth = 1 + torch.rand(HEIGHT, WIDTH)
    assert depth_loss(depth, depth, torch.ones_like(depth), 6.0) == 0


def test_a_constant_error_in_depth_costs_that_error() -> None:
    # Whatever the weights are: they are normalised.
    measured = 1 + torch.rand(HEIGHT, WIDTH, dtype=torch.float64)
    loss = depth_loss(measured + 0.25, measured, torch.ones_like(measured), 6.0)
    torch.testing.assert_close(loss, torch.tensor(0.25, dtype=torch.float64))


def test_near_depth_counts_more_by_the_sensors_accuracy() -> None:
    # Half of the pixels at 1 m with an error, half at 3 m without: weights 1/(1 + 1/9) and 1/2.
    measured = torch.full((10, 30), 3.0, dtype=torch.float64)
    measured[:5] = 1.0
    depth = measured.clone()
    depth[:5] += 0.1
    near, far = 1 / (1 + 1 / 9), 0.5
    expected = torch.tensor(0.1 * near / (near + far), dtype=torch.float64)
    torch.testing.assert_close(depth_loss(depth, measured, torch.ones_like(depth), 6.0), expected)


def test_pixels_without_measurement_beyond_the_range_or_open_are_left_out() -> None:
    measured = torch.full((HEIGHT, WIDTH), 2.0)
    depth = measured.clone()
    alpha = torch.ones_like(measured)
    measured[0], depth[0] = 0.0, 1.0
    measured[1], depth[1] = 7.0, 1.0
    alpha[2], depth[2] = 0.4, 1.0
    depth.requires_grad_()
    loss = depth_loss(depth, measured, alpha, 6.0)
    loss.backward()
    assert loss == 0
    assert depth.grad is not None
    assert not depth.grad[:3].any()


def test_gradients_of_depth_and_normal_terms_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    measured = 1 + 3 * torch.rand(4, 5, dtype=torch.float64, generator=generator)
    measured[0, 0] = 0.0
    alpha = torch.rand(4, 5, dtype=torch.float64, generator=generator)
    depth = (measured + 0.1).requires_grad_()  # away from the kink at no error
    assert torch.autograd.gradcheck(lambda d: depth_loss(d, measured, alpha, 3.5), depth)
    reference = torch.nn.functional.normalize(torch.randn(4, 5, 3, dtype=torch.float64, generator=generator), dim=-1)
    reference[1, 1] = 0.0
    normals = torch.randn(4, 5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda n: normal_loss(n, reference), normals)


def test_no_usable_depth_at_all_costs_zero() -> None:
    depth = torch.rand(4, 4, requires_grad=True)
    loss = depth_loss(depth, torch.zeros(4, 4), torch.ones(4, 4), 6.0)
    loss.backward()
    assert loss == 0


def test_normals_that_agree_cost_nothing_and_opposite_ones_two() -> None:
    reference = torch.nn.functional.normalize(torch.randn(5, 6, 3), dim=-1)
    torch.testing.assert_close(normal_loss(reference, reference), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal_loss(-reference, reference), torch.tensor(2.0))


def test_the_cost_of_turned_normals_is_one_minus_the_cosine() -> None:
    reference = torch.zeros(5, 6, 3)
    reference[..., 2] = -1
    turned = torch.zeros(5, 6, 3)
    turned[..., 0], turned[..., 2] = math.sin(0.5), -math.cos(0.5)
    torch.testing.assert_close(normal_loss(turned, reference), torch.tensor(1 - math.cos(0.5)))


def test_unknown_reference_normals_are_left_out() -> None:
    reference = torch.zeros(5, 6, 3)
    assert normal_loss(torch.randn(5, 6, 3), reference) == 0
    reference[0, 0, 2] = -1
    normals = torch.zeros(5, 6, 3)
    normals[0, 0, 2] = -0.5
    torch.testing.assert_close(normal_loss(normals, reference), torch.tensor(0.5))


# ---------------------------------------------------------------------------------------------------------- distortion


def test_the_distortion_of_two_surfaces_is_that_of_2dgs_own_formula() -> None:
    # 2DGS: Σ_{j<i} w_i w_j (m(d_i) − m(d_j))², m(d) = f/(f−n) (1 − n/d), here of two hits in one of six pixels.
    near, far, first, second, weights = 0.2, 100.0, 1.5, 2.25, (0.6, 0.3)

    def mapped(depth: float) -> float:
        return far / (far - near) * (1 - near / depth)

    expected = weights[0] * weights[1] * (mapped(first) - mapped(second)) ** 2 / 6
    inverse = torch.zeros(2, 3, dtype=torch.float64)
    inverse[1, 2] = weights[0] * weights[1] * (1 / first - 1 / second) ** 2
    torch.testing.assert_close(distortion_loss(inverse, near, far), torch.tensor(expected, dtype=torch.float64))


def test_gradients_of_the_distortion_are_those_of_finite_differences() -> None:
    values = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: distortion_loss(d, 0.2, 100.0), values)


# ----------------------------------------------------------------------------------------------------------- curvature


def sphere_normals(radius: float, spacing: float, size: int = 9) -> Tensor:
    """Normals of a sphere seen along z by parallel rays ``spacing`` apart, its top in the middle of the image."""
    steps = (torch.arange(size, dtype=torch.float64) - size // 2) * spacing
    x, y = steps.expand(size, -1), steps[:, None].expand(-1, size)
    return torch.stack([x, y, -(radius**2 - x * x - y * y).sqrt()], -1) / radius


def test_a_plane_has_no_curvature_and_a_finite_gradient() -> None:
    normals = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64).repeat(5, 6, 1).requires_grad_()
    loss = curvature_loss(normals)
    loss.backward()
    assert loss < 1e-9
    assert normals.grad is not None
    assert normals.grad.isfinite().all()


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_the_curvature_of_a_sphere_is_twice_the_squared_spacing_over_the_squared_radius(radius: float) -> None:
    spacing = 0.01 * radius
    top = sphere_normals(radius, spacing)[3:6, 3:6]
    torch.testing.assert_close(
        curvature_loss(top), torch.tensor(2 * spacing**2 / radius**2, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_an_edge_between_two_planes_costs_their_angle_in_the_pixels_beside_it() -> None:
    normals = torch.zeros(6, 8, 3, dtype=torch.float64)
    normals[:, :4, 2] = -1
    normals[:, 4:, 0] = 1
    # Two of the six inner columns differ from one neighbour by ‖(1, 0, 1)‖.
    torch.testing.assert_close(curvature_loss(normals), torch.tensor(math.sqrt(2) * 2 / 6, dtype=torch.float64))
    normals[:, 3:5] = 0  # unknown there: nothing is left to say
    assert curvature_loss(normals) < 1e-9


def test_gradients_of_the_curvature_are_those_of_finite_differences() -> None:
    normals = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normals = torch.nn.functional.normalize(normals, dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(curvature_loss, normals)


# ------------------------------------------------------------------------------------------------------------- opacity


def test_opacities_cost_most_just_above_one_half_and_nothing_at_the_ends() -> None:
    opacity = torch.tensor([0.005, 0.25, 0.51, 0.75, 0.995], dtype=torch.float64)
    expected = torch.tensor(
        [0, 0.01 * math.exp(-20 * 0.0625), math.exp(-20 * 0.0001), math.exp(-20 * 0.0625), 0], dtype=torch.float64
    )
    for one, cost in zip(opacity, expected, strict=True):
        torch.testing.assert_close(opacity_loss(one[None]), cost)
    torch.testing.assert_close(opacity_loss(opacity), expected.mean())
    assert opacity_loss(opacity[:0]) == 0


def test_descending_the_opacity_term_parts_the_opaque_from_the_transparent() -> None:
    opacity = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
    opacity_loss(opacity).backward()
    assert opacity.grad is not None
    assert opacity.grad[0] > 0
    assert opacity.grad[1] < 0
    values = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(opacity_loss, values)
