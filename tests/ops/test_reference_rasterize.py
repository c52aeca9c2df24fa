"""The reference's tile lists and blending against golden values, identities and a blender written pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.reference.project import Kind

KINDS: list[Kind] = ["ellipsoid", "disc"]
NEAR = 0.2


@dataclass(frozen=True)
class Picture:
    """A picture size, and Gaussians that are visible in it."""

    width: int
    height: int
    kind: Kind
    geometry: Tensor
    features: Tensor

    def blend(
        self, geometry: Tensor | None = None, features: Tensor | None = None, detached: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        geometry = self.geometry if geometry is None else geometry
        features = self.features if features is None else features
        bins = reference.bin(geometry, self.width, self.height, kind=self.kind)
        return reference.blend(
            geometry, features, *bins, self.width, self.height, kind=self.kind, detached=detached, near=NEAR
        )[:4]

    def distortion(self, geometry: Tensor) -> Tensor:
        bins = reference.bin(geometry, self.width, self.height, kind=self.kind)
        shape = (self.width, self.height)
        found = reference.blend(geometry, self.features, *bins, *shape, kind=self.kind, near=NEAR, distort=True)[4]
        assert found is not None
        return found


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def picture(
    kind: Kind, *, count: int = 40, width: int = 37, height: int = 21, channels: int = 3, seed: int = 0
) -> Picture:
    """Random Gaussians in front of a camera; the picture's sides are no multiples of a tile."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    z = 0.6 + 2 * uniform(count, 1)
    focal = 0.6 * width
    _, geometry, _ = reference.project(
        torch.cat([(2 * uniform(count, 2) - 1) * z * tensor([0.9, 0.5]), z], dim=-1),
        2 * uniform(count, 4) - 1,
        -3.5 + 2.5 * uniform(count, 3),
        5 * uniform(count) - 2,
        torch.eye(4),
        focal,
        focal,
        width / 2,
        height / 2,
        width,
        height,
        kind=kind,
        near=NEAR,
    )
    return Picture(width, height, kind, geometry, uniform(len(geometry), channels))


def stack_of_walls(alphas: list[float], depths: list[float]) -> Tensor:
    """Ellipsoids so wide that each has the same alpha at every pixel: its opacity."""
    rows = [[0.5, 0.5, 1e-14, 0.0, 1e-14, alpha, z] for alpha, z in zip(alphas, depths, strict=True)]
    return tensor(rows)


def pixel_by_pixel(case: Picture) -> tuple[np.ndarray, ...]:
    """The blending rules as they are written down, one pixel and one Gaussian at a time."""
    geometry, features = case.geometry.numpy(), case.features.numpy()
    order = sorted(range(len(geometry)), key=lambda m: (geometry[m, -1], m))
    image = np.zeros((case.height, case.width, features.shape[1]))
    alpha_map, depth_map, median_map, distortion_map = np.zeros((4, case.height, case.width))
    for y in range(case.height):
        for x in range(case.width):
            p = np.array([x + 0.5, y + 0.5])
            transmittance = 1.0
            blended: list[tuple[float, float]] = []
            for m in order:
                g = geometry[m]
                if case.kind == "ellipsoid":
                    delta = g[:2] - p
                    rho2 = delta @ np.array([[g[2], g[3]], [g[3], g[4]]]) @ delta
                    opacity, depth = g[5], g[6]
                else:
                    rows = g[:9].reshape(3, 3)
                    lines = p[:, None] * rows[2] - rows[:2]
                    uv = np.linalg.solve(lines[:, :2], -lines[:, 2])
                    rho2 = min(uv @ uv, 2 * np.sum((g[9:11] - p) ** 2))
                    opacity, depth = g[11], rows[2] @ [*uv, 1.0]
                    if depth < NEAR:
                        continue
                alpha = min(0.99, opacity * math.exp(-0.5 * rho2))
                if alpha < 1 / 255:
                    continue
                if transmittance * (1 - alpha) <= 1e-4:
                    break
                weight = transmittance * alpha
                image[y, x] += weight * features[m]
                depth_map[y, x] += weight * depth
                for other, nearer in blended:
                    distortion_map[y, x] += weight * other * (1 / depth - 1 / nearer) ** 2
                blended.append((weight, depth))
                if transmittance > 0.5:
                    median_map[y, x] = depth
                transmittance *= 1 - alpha
            alpha_map[y, x] = 1 - transmittance
    return image, alpha_map, depth_map, median_map, distortion_map


# ------------------------------------------------------------------------------------------------- golden values


def test_three_walls_blend_to_the_golden_pixel() -> None:
    geometry = stack_of_walls([0.3, 0.6, 0.5], [2.0, 2.1, 2.6]).requires_grad_()
    features = tensor([[1.0], [0.2], [0.7]]).requires_grad_()
    image, alpha, depth, median = Picture(1, 1, "ellipsoid", geometry, features).blend()
    assert image.item() == pytest.approx(0.482, abs=1e-12)
    assert alpha.item() == pytest.approx(0.86, abs=1e-12)
    assert (depth / alpha).item() == pytest.approx(2.1465116279, abs=1e-10)
    assert median.item() == 2.1
    image.sum().backward()
    assert features.grad is not None
    assert geometry.grad is not None
    assert features.grad[:, 0].tolist() == pytest.approx([0.3, 0.42, 0.14], abs=1e-12)
    assert geometry.grad[:, 5].tolist() == pytest.approx([0.74, -0.105, 0.196], abs=1e-12)


# ----------------------------------------------------------------------------------------------- rules of blending


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_tiles_blend_what_a_pixel_by_pixel_blender_blends(kind: Kind, seed: int) -> None:
    case = picture(kind, count=30, seed=seed)
    case.geometry[5, -1] = case.geometry[9, -1]  # a tie in depth goes to the lower row
    maps = *case.blend(), case.distortion(case.geometry)
    for found, expected in zip(maps, pixel_by_pixel(case), strict=True):
        assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_pixel_stops_before_the_gaussian_that_would_close_it() -> None:
    geometry = stack_of_walls([0.9, 0.9, 0.9, 0.95, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0])
    image, alpha, *_ = Picture(1, 1, "ellipsoid", geometry, torch.eye(5, dtype=torch.float64)).blend()
    assert image[0, 0].tolist() == pytest.approx([0.9, 0.09, 0.009, 0, 0], abs=1e-12)
    assert alpha.item() == pytest.approx(0.999, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_saturated_gaussian_stops_the_pixel_in_every_precision(dtype: torch.dtype) -> None:
    """(1 - 0.99)² is 1e-4 by design, but on different sides of it in the two precisions."""
    geometry = stack_of_walls([1.0, 1.0], [1.0, 2.0]).to(dtype)
    _, alpha, *_ = Picture(1, 1, "ellipsoid", geometry, geometry[:, :1]).blend()
    assert alpha.item() == pytest.approx(0.99, abs=1e-6)


def test_alpha_below_one_in_255_is_skipped() -> None:
    geometry = stack_of_walls([1 / 255 - 1e-9, 1 / 255 + 1e-9], [1.0, 2.0])
    image, *_ = Picture(1, 1, "ellipsoid", geometry, torch.eye(2, dtype=torch.float64)).blend()
    assert image[0, 0].tolist() == pytest.approx([0, 1 / 255], abs=1e-8)


def test_no_gradient_passes_a_clamped_alpha() -> None:
    geometry = stack_of_walls([0.995, 0.5], [1.0, 2.0]).requires_grad_()
    image, alpha, *_ = Picture(1, 1, "ellipsoid", geometry, torch.ones(2, 1, dtype=torch.float64)).blend()
    (image.sum() + alpha.sum()).backward()
    assert geometry.grad is not None
    assert (geometry.grad[0] == 0).all()
    assert geometry.grad[1, 5].item() == pytest.approx(0.02)


def test_gradient_of_the_median_goes_to_one_hit() -> None:
    geometry = stack_of_walls([0.3, 0.2, 0.4, 0.5], [1.0, 2.0, 3.0, 4.0]).requires_grad_()
    *_, median = Picture(1, 1, "ellipsoid", geometry, torch.ones(4, 1, dtype=torch.float64)).blend()
    assert median.item() == 3.0
    median.backward()
    assert geometry.grad is not None
    assert geometry.grad[:, 6].tolist() == [0, 0, 1, 0]
    assert (geometry.grad[:, :6] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_gaussians_does_not_matter(kind: Kind) -> None:
    case = picture(kind)
    shuffle = torch.randperm(len(case.geometry), generator=torch.Generator().manual_seed(1))
    for found, expected in zip(case.blend(case.geometry[shuffle], case.features[shuffle]), case.blend(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_tile_lists_do_not_change_the_picture(kind: Kind) -> None:
    """Any superset of the contributing tiles is right: here, every Gaussian in every tile."""
    case = picture(kind)
    tiles = math.ceil(case.width / 16) * math.ceil(case.height / 16)
    order = case.geometry[:, -1].argsort()
    everywhere = (torch.arange(tiles + 1) * len(order)).int(), order.repeat(tiles).int()
    assert len(reference.bin(case.geometry, case.width, case.height, kind=kind)[1]) < 0.8 * len(everywhere[1])
    loose = reference.blend(case.geometry, case.features, *everywhere, case.width, case.height, kind=kind, near=NEAR)[
        :4
    ]
    for found, expected in zip(loose, case.blend(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_tile_lists_are_sorted_by_tile_then_depth_then_row(kind: Kind) -> None:
    case = picture(kind, count=80)
    case.geometry[::3, -1] = case.geometry[0, -1]
    offsets, ids = reference.bin(case.geometry, case.width, case.height, kind=kind)
    assert offsets.dtype == ids.dtype == torch.int32
    assert len(offsets) == 3 * 2 + 1
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        keys = [(float(case.geometry[m, -1]), m) for m in ids[begin:end].tolist()]
        assert keys == sorted(set(keys))


@pytest.mark.parametrize("kind", KINDS)
def test_shifting_the_window_shifts_the_picture(kind: Kind) -> None:
    """Where a pixel lies in its tile does not matter."""
    case = picture(kind)
    dx, dy = 5, 9
    moved = case.geometry.clone()
    if kind == "disc":
        moved[:, 0:3] += dx * moved[:, 6:9]
        moved[:, 3:6] += dy * moved[:, 6:9]
        moved[:, 9] += dx
        moved[:, 10] += dy
    else:
        moved[:, 0] += dx
        moved[:, 1] += dy
    larger = Picture(case.width + dx, case.height + dy, kind, moved, case.features)
    for found, expected in zip(larger.blend(), case.blend(), strict=True):
        assert torch.allclose(found[dy:, dx:], expected, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_sum_to_one_blend_to_alpha(kind: Kind) -> None:
    """What is missing to one is the share of the (zero) background."""
    case = picture(kind)
    labels, alpha, *_ = case.blend(features=torch.softmax(case.features, dim=-1))
    assert torch.allclose(labels.sum(-1), alpha)
    assert alpha.min() >= 0
    assert alpha.max() <= 1 - 1e-4


def test_open_light_reaches_the_gaussian_behind() -> None:
    """A wall of opacity a behind everything adds (1 - alpha) a of its colour to every pixel."""
    case = picture("ellipsoid")
    _, alpha, *_ = case.blend()
    wall = stack_of_walls([0.25], [100.0])
    image, *_ = case.blend(
        torch.cat([case.geometry, wall]), torch.cat([torch.zeros_like(case.features), tensor([[1.0, 2.0, 3.0]])])
    )
    open_pixels = alpha < 0.999
    expected = 0.25 * (1 - alpha)[..., None] * tensor([1.0, 2.0, 3.0])
    assert torch.allclose(image[open_pixels], expected[open_pixels])


@pytest.mark.parametrize("kind", KINDS)
def test_blending_is_linear_in_the_features(kind: Kind) -> None:
    case = picture(kind, channels=4)
    mix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(case.blend(features=case.features @ mix)[0], case.blend()[0] @ mix)


@pytest.mark.parametrize("kind", KINDS)
def test_feature_gradients_sum_to_what_the_image_received(kind: Kind) -> None:
    """Σ_i ∂L/∂f_i = Σ_p A_p v_p in every channel, since ∂L/∂f_i = Σ_p w_ip v_p."""
    case = picture(kind)
    features = case.features.clone().requires_grad_()
    image, alpha, *_ = case.blend(features=features)
    upstream = torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    image.backward(upstream)
    assert features.grad is not None
    assert torch.allclose(features.grad.sum(0), (alpha[..., None] * upstream).sum((0, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_detached_channels_reach_features_only(kind: Kind) -> None:
    case = picture(kind, channels=5)
    generator = torch.Generator().manual_seed(4)
    upstream = torch.randn(case.height, case.width, 5, dtype=torch.float64, generator=generator)

    def gradients(detached: int, columns: slice) -> tuple[Tensor, Tensor]:
        inputs = case.geometry.clone().requires_grad_(), case.features.clone().requires_grad_()
        image = case.blend(*inputs, detached=detached)[0]
        grads = torch.autograd.grad((image * upstream)[..., columns].sum(), inputs)
        return grads[0], grads[1]

    geometry, features = gradients(2, slice(0, 5))
    assert torch.allclose(geometry, gradients(0, slice(0, 3))[0])
    assert torch.allclose(features, gradients(0, slice(0, 5))[1])
    assert (gradients(2, slice(3, 5))[0] == 0).all()
    assert torch.equal(case.blend(detached=2)[0], case.blend()[0])


def test_depth_of_ellipsoids_is_that_of_their_centres() -> None:
    case = picture("ellipsoid")
    image, _, depth, median = case.blend(features=case.geometry[:, 6:])
    assert torch.allclose(depth, image[..., 0])
    assert torch.isin(median, torch.cat([case.geometry[:, 6], torch.zeros(1, dtype=torch.float64)])).all()


def test_depth_of_a_disc_is_that_of_its_plane() -> None:
    width, height, focal = 40, 30, 30.0
    quat = tensor([[0.9, 0.3, -0.2, 0.1]])
    mean = tensor([[0.1, -0.05, 2.0]])
    _, geometry, normals = reference.project(
        mean,
        quat,
        tensor([[0.8, 0.6]]).log(),
        tensor([3.0]),
        torch.eye(4),
        focal,
        focal,
        width / 2,
        height / 2,
        width,
        height,
        kind="disc",
        near=NEAR,
    )
    _, alpha, depth, median = Picture(width, height, "disc", geometry, geometry[:, :1]).blend()
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) / focal
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) / focal
    rays = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), torch.ones(height, width)], dim=-1)
    plane = (normals @ mean.T).item() / (rays @ normals[0])
    hit = alpha > 0
    assert hit.sum() > 300
    assert torch.allclose((depth / alpha)[hit], plane[hit])
    assert torch.equal(median != 0, hit)
    assert torch.allclose(median[hit], plane[hit])


def test_disc_is_not_hit_in_front_of_the_near_plane() -> None:
    """A floor that runs from behind the camera into the distance, half a metre below it."""
    quat = tensor([[math.cos(math.pi / 4), math.sin(math.pi / 4), 0.0, 0.0]])
    _, geometry, _ = reference.project(
        tensor([[0.0, 0.5, 1.0]]),
        quat,
        tensor([[30.0, 30.0]]).log(),
        tensor([3.0]),
        torch.eye(4),
        10.0,
        10.0,
        20.0,
        20.0,
        40,
        100,
        kind="disc",
        near=NEAR,
    )
    _, alpha, depth, _ = Picture(40, 100, "disc", geometry, geometry[:, :1]).blend()
    rows = torch.arange(100) + 0.5
    expected = 0.5 * 10 / (rows.double() - 20)  # depth of the floor at each row
    seen = alpha[:, 20] > 0
    assert torch.equal(seen, (expected >= NEAR) & (expected < 80))
    assert torch.allclose((depth / alpha)[seen, 20], expected[seen])


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_those_of_finite_differences(kind: Kind, seed: int) -> None:
    case = picture(kind, count=9, width=7, height=5, channels=3, seed=20 + seed)
    inputs = case.geometry.clone().requires_grad_(), case.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(case.blend, inputs, atol=1e-4)
    assert torch.autograd.gradcheck(case.distortion, inputs[:1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_without_gaussians_are_zero_and_still_differentiable(kind: Kind) -> None:
    case = picture(kind)
    geometry = case.geometry[:0].clone().requires_grad_()
    features = case.features[:0].clone().requires_grad_()
    maps = *case.blend(geometry, features), case.distortion(geometry)
    assert [m.shape for m in maps] == [(21, 37, 3), *[(21, 37)] * 4]
    assert all((m == 0).all() for m in maps)
    sum(m.sum() for m in maps).backward()  # type: ignore[union-attr]
    assert geometry.grad is not None
    assert geometry.grad.shape == geometry.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_scale", "tilt"),
    [
        pytest.param([-200.0, -200.0], 0.3, id="point"),
        pytest.param([-200.0, -2.0], 0.3, id="line"),
        pytest.param([-2.0, -2.0], math.pi / 2, id="edge-on"),
        pytest.param([-2.0, -2.0], math.pi / 2 + 1e-7, id="all but edge-on"),
        pytest.param([8.0, 8.0], 0.3, id="huge"),
    ],
)
def test_degenerate_discs_give_finite_pictures_and_gradients(
    dtype: torch.dtype, log_scale: list[float], tilt: float
) -> None:
    quat = [math.cos(tilt / 2), math.sin(tilt / 2), 0.0, 0.0]
    inputs = [
        torch.tensor([[0.0, 0.0, 2.0], [0.1, 0.0, 2.5]], dtype=dtype),
        torch.tensor([quat, [1.0, 0.2, 0.0, 0.0]], dtype=dtype),
        torch.tensor([log_scale, [-2.0, -2.0]], dtype=dtype),
        torch.tensor([2.0, 1.0], dtype=dtype),
    ]
    for p in inputs:
        p.requires_grad_()
    _, geometry, normals = reference.project(
        *inputs, torch.eye(4), 30.0, 30.0, 16.5, 16.5, 33, 33, kind="disc", near=NEAR
    )
    shown = Picture(33, 33, "disc", geometry, normals)
    maps = *shown.blend(), shown.distortion(geometry)
    assert all(m.isfinite().all() for m in maps)
    torch.stack([m.sum() for m in maps]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in inputs)
