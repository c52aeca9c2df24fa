"""The reference projection against golden values, closed forms and oracles that share none of its code.

Golden values: 640x480, fx 500, fy 480, principal point (320, 240), identity pose, pixel (384.5, 203.5), low-pass
0.3 px².
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from panbench.ops import reference
from panbench.ops.reference.project import Kind, disc_ellipse, rotation_matrices

KINDS: list[Kind] = ["ellipsoid", "disc"]


@dataclass(frozen=True)
class View:
    width: int = 640
    height: int = 480
    fx: float = 500.0
    fy: float = 480.0
    cx: float = 320.0
    cy: float = 240.0
    near: float = 0.05
    pose: Tensor = field(default_factory=lambda: torch.eye(4, dtype=torch.float64))

    def project(self, gaussians: list[Tensor], kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
        means, quats, log_scales, logits = gaussians
        return reference.project(
            means,
            quats,
            log_scales,
            logits,
            self.pose,
            self.fx,
            self.fy,
            self.cx,
            self.cy,
            self.width,
            self.height,
            kind=kind,
            near=self.near,
        )

    def crop(self, x: int, y: int, width: int, height: int) -> View:
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden_gaussian() -> list[Tensor]:
    return [
        tensor([[0.3, -0.2, 2.5]]),
        tensor([[0.9, 0.1, -0.3, 0.2]]),
        tensor([[0.05, 0.02, 0.01]]).log(),
        tensor([0.8]).logit(),
    ]


def random_gaussians(count: int, seed: int) -> list[Tensor]:
    """Gaussians before a camera at the origin that looks along z; some reach out of a 90 degree view."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    z = 0.8 + 3 * uniform(count, 1)
    return [
        torch.cat([(2 * uniform(count, 2) - 1) * z, z], dim=-1),
        2 * uniform(count, 4) - 1,
        -3.5 + 2 * uniform(count, 3),
        3 * uniform(count),
    ]


def random_pose(seed: int) -> Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    pose[:3, 3] = tensor([0.1, -0.2, 0.3])
    return pose


def moved_by(gaussians: list[Tensor], pose: Tensor) -> list[Tensor]:
    """The same Gaussians in the world of a camera with that pose."""
    means, quats, *rest = gaussians
    turn = Rotation.from_matrix(pose[:3, :3].numpy()).inv()
    turned = (turn * Rotation.from_quat(quats.numpy(), scalar_first=True)).as_quat(scalar_first=True)
    return [(means - pose[:3, 3]) @ pose[:3, :3], torch.from_numpy(turned), *rest]


# ------------------------------------------------------------------------------------------------- golden values


def test_rotation_matrix_is_the_golden_one() -> None:
    expected = tensor(
        [
            [0.726315789, -0.442105263, -0.526315789],
            [0.315789474, 0.894736842, -0.315789474],
            [0.610526316, 0.063157895, 0.789473684],
        ]
    )
    assert torch.allclose(rotation_matrices(golden_gaussian()[1])[0], expected, rtol=0, atol=1e-9)


def test_ellipsoid_projects_to_the_golden_conic() -> None:
    ids, geometry, _ = View().project(golden_gaussian(), "ellipsoid")
    assert ids.tolist() == [0]
    expected = tensor([380.0, 201.6, 0.0280145442, -0.0195405784, 0.0540716957, 0.8, 2.5])
    assert torch.allclose(geometry[0], expected, rtol=1e-9, atol=1e-10)


def test_disc_projects_to_the_golden_plane_map() -> None:
    _, geometry, normals = View().project(golden_gaussian(), "disc")
    expected = tensor(
        [
            *(27.92631579, -4.016842105, 950.0),
            *(14.90526316, 8.892631579, 504.0),
            *(0.03052631579, 0.001263157895, 2.5),
            *(379.289554088, 201.199066571),
            *(0.8, 2.5),
        ]
    )
    assert torch.allclose(geometry[0], expected, rtol=1e-9, atol=0)
    assert torch.allclose(normals[0], tensor([0.526315789, 0.315789474, -0.789473684]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("cut", "center", "half"),
    [
        (1.0, (379.921155896, 201.555505076), (6.774680684, 4.919063384)),
        (3.0, (379.289554088, 201.199066571), (20.347226052, 14.770853752)),
    ],
)
def test_disc_ellipse_is_the_golden_one(cut: float, center: tuple[float, float], half: tuple[float, float]) -> None:
    _, geometry, _ = View().project(golden_gaussian(), "disc")
    found, half2, in_front = disc_ellipse(geometry[:, :9].reshape(-1, 3, 3), tensor([cut**2]))
    assert in_front.all()
    assert torch.allclose(found[0], tensor(center), rtol=1e-10, atol=0)
    assert torch.allclose(half2[0].sqrt(), tensor(half), rtol=1e-9, atol=0)


def test_ellipsoid_pixel_and_its_gradients_are_the_golden_ones() -> None:
    gaussians = [p.requires_grad_() for p in golden_gaussian()]
    view = View().crop(368, 192, 48, 32)  # a window of the golden image: pixel (384, 203) is its pixel (16, 11)
    _, geometry, _ = view.project(gaussians, "ellipsoid")
    geometry.retain_grad()
    bins = reference.bin(geometry, view.width, view.height, kind="ellipsoid")
    image, *_ = reference.blend(
        geometry, tensor([[1.0]]), *bins, view.width, view.height, kind="ellipsoid", near=view.near
    )
    alpha = image[11, 16, 0]
    assert alpha.item() == pytest.approx(0.6457658664, abs=1e-10)
    alpha.backward()
    assert geometry.grad is not None
    assert geometry.grad[0, 5].item() == pytest.approx(0.8072073330, abs=1e-9)
    assert geometry.grad[0, :2].tolist() == pytest.approx([0.057433351, 0.009559672], abs=1e-9)
    means, quats, log_scales, _ = (p.grad for p in gaussians)
    assert means is not None
    assert quats is not None
    assert log_scales is not None
    assert means[0].tolist() == pytest.approx([11.402837257, 1.822061325, -1.332591001], abs=1e-8)
    assert log_scales[0].tolist() == pytest.approx([0.258451948, 0.007648058, 0.008938584], abs=1e-9)
    assert quats[0].tolist() == pytest.approx([0.182411912, -0.014674349, 0.462011656, -0.120498945], abs=1e-9)


def test_disc_pixel_is_the_golden_one() -> None:
    view = View().crop(368, 192, 48, 32)
    _, geometry, _ = view.project(golden_gaussian(), "disc")
    bins = reference.bin(geometry, view.width, view.height, kind="disc")
    image, alpha, depth, median, _ = reference.blend(
        geometry, tensor([[1.0]]), *bins, view.width, view.height, kind="disc", near=view.near
    )
    assert image[11, 16, 0].item() == pytest.approx(0.6380275167, abs=1e-10)
    assert (depth / alpha)[11, 16].item() == pytest.approx(2.5200741198, abs=1e-9)
    assert median[11, 16].item() == pytest.approx(2.5200741198, abs=1e-9)


# ------------------------------------------------------------------------------------- closed forms and oracles


def test_rotation_matrices_agree_with_scipy() -> None:
    quats = np.random.default_rng(0).normal(size=(50, 4))
    expected = torch.from_numpy(Rotation.from_quat(quats, scalar_first=True).as_matrix())
    assert torch.allclose(rotation_matrices(torch.from_numpy(quats)), expected, rtol=0, atol=1e-12)


def test_ellipsoid_covariance_is_the_one_of_the_linearised_projection() -> None:
    pose = random_pose(1)
    view = View(pose=pose)
    gaussians = random_gaussians(30, seed=2)
    gaussians[0][:, :2] *= 0.5  # inside the picture, where the linearisation is at the mean
    means, quats, log_scales, _ = world = moved_by(gaussians, pose)
    ids, geometry, _ = view.project(world, "ellipsoid")
    assert len(ids) == 30

    def pinhole(point: Tensor) -> Tensor:
        t = pose[:3, :3] @ point + pose[:3, 3]
        return torch.stack([view.fx * t[0] / t[2] + view.cx, view.fy * t[1] / t[2] + view.cy])

    for row, mean, quat, log_scale in zip(geometry, means, quats, log_scales, strict=True):
        jacobian = torch.autograd.functional.jacobian(pinhole, mean)
        axes = torch.from_numpy(Rotation.from_quat(quat.numpy(), scalar_first=True).as_matrix())
        covariance = axes @ torch.diag((2 * log_scale).exp()) @ axes.T
        conic = torch.linalg.inv(jacobian @ covariance @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64))
        assert torch.allclose(row[:2], pinhole(mean))
        assert torch.allclose(row[2:5], conic[[0, 0, 1], [0, 1, 1]], rtol=1e-9)


def test_sphere_on_the_axis_projects_to_a_circle() -> None:
    for angle in (0.0, 0.3, 2.0):
        gaussian = [
            tensor([[0.0, 0.0, 4.0]]),
            tensor([[math.cos(angle), 0.2, math.sin(angle), -0.1]]),
            tensor([[0.1, 0.1, 0.1]]).log(),
            tensor([1.0]),
        ]
        _, geometry, _ = replace(View(), fy=500.0).project(gaussian, "ellipsoid")
        inverse_variance = 1 / ((500 * 0.1 / 4) ** 2 + 0.3)
        assert geometry[0, :5].tolist() == pytest.approx([320, 240, inverse_variance, 0, inverse_variance], abs=1e-12)


def test_needle_keeps_an_exact_conic() -> None:
    """A diagonal needle of 2000 px by nothing: 1 / det loses no digits to cancellation, in float32 either."""
    half = math.sin(math.pi / 8)
    needle = [
        tensor([[0.0, 0.0, 1.0]]),
        tensor([[math.cos(math.pi / 8), 0.0, 0.0, half]]),
        tensor([[4.0, 1e-6, 1e-6]]).log(),
        tensor([3.0]),
    ]
    view = replace(View(), fy=500.0)
    _, exact, _ = view.project(needle, "ellipsoid")
    along = 500 * 4.0
    a, b, c = exact[0, 2:5].tolist()
    # Eigenvalues of the conic: the inverse variances along and across.
    assert a + c == pytest.approx(1 / 0.3 + 1 / along**2, rel=1e-6)
    assert a - abs(b) == pytest.approx(0.5 * (a + c) - abs(b), rel=1e-12)
    _, single, _ = view.project([p.float() for p in needle], "ellipsoid")
    assert torch.allclose(single.double(), exact, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_plane_map_takes_disc_points_to_their_pixels(seed: int) -> None:
    pose = random_pose(seed)
    means, quats, log_scales, _ = world = moved_by(random_gaussians(20, seed), pose)
    view = View(width=4000, height=4000, cx=2000.0, cy=2000.0, pose=pose)
    ids, geometry, _ = view.project(world, "disc")
    assert len(ids) == 20
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    axes = torch.from_numpy(Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix())
    scales = log_scales.exp()
    points = means + (u * scales[:, 0])[:, None] * axes[:, :, 0] + (v * scales[:, 1])[:, None] * axes[:, :, 1]
    local = points @ pose[:3, :3].T + pose[:3, 3]
    expected = torch.stack(
        [view.fx * local[:, 0] + view.cx * local[:, 2], view.fy * local[:, 1] + view.cy * local[:, 2], local[:, 2]], -1
    )
    found = geometry[:, :9].reshape(-1, 3, 3) @ torch.stack([u, v, torch.ones_like(u)], dim=-1)[:, :, None]
    assert torch.allclose(found[..., 0], expected)


def test_disc_ellipse_spans_the_projected_rim() -> None:
    _, geometry, _ = View(width=4000, height=4000, cx=2000.0, cy=2000.0).project(random_gaussians(20, seed=5), "disc")
    rows = geometry[:, :9].reshape(-1, 3, 3)
    for cut in (1.0, 3.0):
        center, half2, in_front = disc_ellipse(rows, torch.full((len(rows),), cut**2, dtype=torch.float64))
        angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
        rim = rows @ torch.stack([cut * angle.cos(), cut * angle.sin(), torch.ones_like(angle)])
        assert torch.equal(in_front, (rim[:, 2] > 0).all(-1))
        pixels = (rim[:, :2] / rim[:, 2:])[in_front]
        half = half2[in_front].sqrt()
        assert torch.allclose(center[in_front] + half, pixels.amax(-1), rtol=1e-6)
        assert torch.allclose(center[in_front] - half, pixels.amin(-1), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_normals_are_unit_and_face_the_camera(kind: Kind) -> None:
    pose = random_pose(3)
    means, quats, log_scales, _ = world = moved_by(random_gaussians(40, seed=6), pose)
    ids, _, normals = View(pose=pose).project(world, kind)
    assert torch.allclose(normals.norm(dim=-1), torch.ones(len(ids), dtype=torch.float64))
    points = means[ids] @ pose[:3, :3].T + pose[:3, 3]
    assert ((normals * points).sum(-1) <= 0).all()
    axes = pose[:3, :3].numpy() @ Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix()
    for row, normal in zip(ids.tolist(), normals, strict=True):
        axis = 2 if kind == "disc" else int(log_scales[row].argmin())
        assert abs(float(normal.numpy() @ axes[row][:, axis])) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_length_of_a_quaternion_and_its_sign_do_not_matter(kind: Kind) -> None:
    means, quats, log_scales, logits = random_gaussians(20, seed=7)
    _, expected, expected_normals = View().project([means, quats, log_scales, logits], kind)
    for factor in (-1.0, 1e-3, 50.0):
        _, geometry, normals = View().project([means, factor * quats, log_scales, logits], kind)
        assert torch.allclose(geometry, expected, rtol=1e-9)
        assert torch.allclose(normals, expected_normals, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_world_and_camera_together_changes_nothing(kind: Kind) -> None:
    gaussians = random_gaussians(30, seed=8)
    pose = random_pose(9)
    ids, expected, expected_normals = View().project(gaussians, kind)
    moved_ids, geometry, normals = View(pose=pose).project(moved_by(gaussians, pose), kind)
    assert torch.equal(moved_ids, ids)
    assert torch.allclose(geometry, expected, rtol=1e-8, atol=1e-9)
    assert torch.allclose(normals, expected_normals, rtol=1e-9, atol=1e-9)


def test_third_scale_of_a_disc_is_ignored() -> None:
    means, quats, log_scales, logits = random_gaussians(10, seed=4)
    spoilt = log_scales.clone()
    spoilt[:, 2] = torch.nan
    for scales in (log_scales[:, :2], spoilt):
        for found, expected in zip(
            View().project([means, quats, scales, logits], "disc"),
            View().project([means, quats, log_scales, logits], "disc"),
            strict=True,
        ):
            assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.5, 1.3])
def test_gradients_are_those_of_finite_differences(kind: Kind, spread: float) -> None:
    """Spread 1.3 puts centres outside the picture, where the Jacobian is that of the clamped direction."""
    gaussians = random_gaussians(12, seed=10)
    gaussians[0][:, :2] *= spread
    gaussians[2] += 1.5
    view = View(width=64, height=48, fx=40.0, fy=42.0, cx=30.0, cy=25.0, pose=random_pose(11))
    inputs = [p.requires_grad_() for p in moved_by(gaussians, view.pose)]
    ids, *_ = view.project(inputs, kind)
    assert len(ids) >= 6
    assert torch.autograd.gradcheck(lambda *p: view.project(list(p), kind)[1:], inputs)


# --------------------------------------------------------------------------------------------------------- culling


def spoilt(index: int, row: list[float] | float) -> list[Tensor]:
    """Three good Gaussians of which the middle one has one parameter replaced."""
    gaussians = [p.repeat(3, *[1] * (p.dim() - 1)) for p in golden_gaussian()]
    gaussians[index][1] = tensor(row)
    return gaussians


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("index", "row"),
    [
        pytest.param(0, [0.0, 0.0, -2.0], id="behind"),
        pytest.param(0, [0.0, 0.0, 0.0], id="at the camera"),
        pytest.param(0, [0.0, 0.0, 0.05], id="on the near plane"),
        pytest.param(0, [30.0, 0.0, 2.5], id="beside the image"),
        pytest.param(0, [math.nan, 0.0, 2.5], id="NaN mean"),
        pytest.param(0, [0.0, 0.0, math.inf], id="infinite mean"),
        pytest.param(1, [0.0, 0.0, 0.0, 0.0], id="zero quaternion"),
        pytest.param(1, [1.0, math.nan, 0.0, 0.0], id="NaN quaternion"),
        pytest.param(2, [math.nan, -3.0, -3.0], id="NaN scale"),
        pytest.param(2, [-3.0, math.inf, -3.0], id="infinite scale"),
        pytest.param(2, [-3.0, -math.inf, -3.0], id="infinitely small scale"),
        pytest.param(2, [-3.0, 400.0, -3.0], id="scale beyond any room"),
        pytest.param(3, -6.0, id="opacity below 1/255"),
        pytest.param(3, -math.inf, id="no opacity"),
        pytest.param(3, math.nan, id="NaN opacity"),
    ],
)
def test_unusable_gaussian_is_dropped_and_harms_no_other(kind: Kind, index: int, row: list[float] | float) -> None:
    inputs = [p.requires_grad_() for p in spoilt(index, row)]
    ids, geometry, normals = View().project(inputs, kind)
    assert ids.tolist() == [0, 2]
    (geometry.sum() + normals.sum()).backward()
    for p in inputs:
        assert p.grad is not None
        assert p.grad.isfinite().all()
        assert (p.grad[1] == 0).all()
        assert torch.equal(p.grad[0], p.grad[2])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_nothing_out(kind: Kind) -> None:
    inputs = [p[:0].clone().requires_grad_() for p in golden_gaussian()]
    ids, geometry, normals = View().project(inputs, kind)
    assert ids.shape == (0,)
    assert ids.dtype == torch.int64
    assert geometry.shape == (0, 13 if kind == "disc" else 7)
    assert normals.shape == (0, 3)
    (geometry.sum() + normals.sum()).backward()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_ascend_and_miss_no_gaussian_that_can_be_seen(kind: Kind) -> None:
    """A window keeps every Gaussian of the full picture whose alpha reaches 1/255 at one of its pixels."""
    gaussians = random_gaussians(120, seed=12)
    gaussians[0][:, :2] *= 0.7
    gaussians[2] -= 1.0
    gaussians[3] -= 4.0  # faint ones: boxes shrink with opacity
    full = View(width=64, height=48, fx=40.0, fy=40.0, cx=32.0, cy=24.0)
    x, y, width, height = 26, 18, 12, 14
    ids, geometry, _ = full.project(gaussians, kind)
    kept, window, _ = full.crop(x, y, width, height).project(gaussians, kind)
    assert kept.diff().min() > 0
    seen = []
    for row, single in zip(ids.tolist(), geometry.split(1), strict=True):
        bins = reference.bin(single, 64, 48, kind=kind)
        _, alpha, *_ = reference.blend(single, single[:, :0], *bins, 64, 48, kind=kind, near=0.05)
        if alpha[y : y + height, x : x + width].any():
            seen.append(row)
    assert len(seen) > 10
    assert set(seen) <= set(kept.tolist())
    assert len(kept) < 0.5 * len(ids)
    if kind == "disc":
        shift = torch.zeros_like(window)
        shift[:, 0:3], shift[:, 3:6] = x * window[:, 6:9], y * window[:, 6:9]
        shift[:, 9], shift[:, 10] = x, y
        assert torch.allclose((window + shift)[torch.isin(kept, ids)], geometry[torch.isin(ids, kept)])


def test_disc_through_the_camera_plane_is_kept_with_its_projected_mean() -> None:
    disc = [tensor([[0.1, 0.2, 1.0]]), tensor([[1.0, 0.9, 0.0, 0.0]]), tensor([[0.0, 1.0]]), tensor([2.0])]
    ids, geometry, _ = View().project(disc, "disc")
    assert ids.tolist() == [0]
    assert geometry[0, 9:11].tolist() == pytest.approx([500 * 0.1 + 320, 480 * 0.2 + 240])
    offsets, _ = reference.bin(geometry, 640, 480, kind="disc")
    assert offsets.diff().tolist() == [1] * (40 * 30)


def test_edge_on_disc_is_kept_by_the_low_pass() -> None:
    """Seen exactly from the side, half a pixel above the image: the box is a line, the low-pass reaches in."""
    view = View(width=32, height=32, fx=32.0, fy=32.0, cx=16.0, cy=-0.5)
    quat = tensor([[math.cos(math.pi / 4), math.sin(math.pi / 4), 0.0, 0.0]])  # normal along y
    for logit, seen in ((3.0, True), (-5.5, False)):  # reach 2.3 px and 0.2 px
        disc = [tensor([[0.0, 0.0, 1.0]]), quat, tensor([[0.1, 0.1]]).log(), tensor([logit])]
        assert (len(view.project(disc, "disc")[0]) == 1) == seen
