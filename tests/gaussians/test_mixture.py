"""The mixture of planes over clouds whose surfaces are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panbench.errors import UserError
from panbench.gaussians.mixture import THICKNESS, PlaneMixture, quats_with_axes
from panbench.gaussians.rotation import rotation_matrices

NOISE = 0.003


def plane(count: int, seed: int = 0, noise: float = NOISE) -> Tensor:
    """Points of z = 0, |x|, |y| < 1."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.rand(count, 2, generator=generator) * 2 - 1
    return torch.cat([flat, noise * torch.randn(count, 1, generator=generator)], 1)


def box(count: int = 60_000, side: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points on the six faces of a cube around the origin, seen from outside, and their normals."""
    generator = torch.Generator().manual_seed(1)
    points = (torch.rand(count, 3, generator=generator) - 0.5) * side
    face = torch.randint(6, (count,), generator=generator)
    normals = torch.zeros(count, 3)
    sign = torch.where(face < 3, 1.0, -1.0)
    normals[torch.arange(count), face % 3] = sign
    points[torch.arange(count), face % 3] = sign * (side / 2 + NOISE * torch.randn(count, generator=generator))
    return points, normals


def outside_box(points: Tensor, side: float = 1.0) -> Tensor:
    """Distance to the faces of the cube."""
    return (points.abs().amax(-1) - side / 2).abs()


# ------------------------------------------------------------------------------------------------------------ fitting


def test_components_of_a_plane_lie_in_it_and_are_turned_and_sized_as_asked() -> None:
    mixture = PlaneMixture().fit(plane(40_000), normals=torch.tensor([[0.0, 0.0, 1.0]]).expand(40_000, 3))
    assert mixture.centers[:, 2].abs().max() < NOISE / 2
    assert mixture.normals[:, 2].min() > math.cos(math.radians(0.5))
    radius = 2 * mixture.deviations.prod(1).sqrt()
    assert radius.mean() == pytest.approx(0.03, rel=0.15)
    assert len(mixture) == pytest.approx(4 / (0.03 * math.sqrt(3)) ** 2, rel=0.15)
    assert int(mixture.counts.sum()) == 40_000
    assert (mixture.deviations[:, 0] >= mixture.deviations[:, 1]).all()
    assert mixture.distance(torch.rand(500, 3) * torch.tensor([1.0, 1.0, 0.0])).max() < NOISE / 2


def test_components_are_thin_along_their_normals_and_right_handed() -> None:
    points, normals = box()
    mixture = PlaneMixture().fit(points, normals=normals)
    values, vectors = torch.linalg.eigh(mixture.covariances())
    torch.testing.assert_close(values[:, 0].sqrt(), torch.full((len(mixture),), THICKNESS), rtol=1e-2, atol=0)
    torch.testing.assert_close(values[:, 1:].flip(1).sqrt(), mixture.deviations, rtol=1e-2, atol=1e-5)
    wider = mixture.deviations[:, 1] > 1.1 * THICKNESS
    assert (vectors[:, :, 0] * mixture.normals).sum(1).abs()[wider].min() > 0.9999
    cross = torch.linalg.cross(mixture.tangents[:, 0], mixture.tangents[:, 1])
    torch.testing.assert_close(cross, mixture.normals, rtol=0, atol=1e-5)


@pytest.mark.parametrize("known", ["normals", "origins"])
def test_each_face_of_a_box_has_its_own_components_that_face_out(known: str) -> None:
    points, normals = box()
    mixture = PlaneMixture()
    if known == "normals":
        mixture.fit(points, normals=normals)
    else:
        mixture.fit(points, origins=points + 2 * normals)
    axis = mixture.centers.abs().argmax(1)
    out = mixture.normals.gather(1, axis[:, None])[:, 0] * mixture.centers.gather(1, axis[:, None])[:, 0].sign()
    clear = outside_box(mixture.centers) < 0.004
    assert clear.float().mean() > 0.98
    assert (out > math.cos(math.radians(2))).float().mean() > 0.97
    nearest = torch.cdist(points[::50], mixture.centers).amin(1)
    assert nearest.max() < 0.08, "the edges are covered too"


def test_the_two_faces_of_a_thin_board_are_kept_apart() -> None:
    top, below = plane(30_000) + torch.tensor([0.0, 0.0, 0.012]), plane(30_000, 5) - torch.tensor([0.0, 0.0, 0.012])
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(30_000, 3)
    mixture = PlaneMixture().fit(torch.cat([top, below]), normals=torch.cat([up, -up]), tolerance=0.008)
    for sign in (1, -1):
        facing = mixture.normals[:, 2] * sign > 0.99
        assert facing.float().mean() > 0.4
        assert (mixture.centers[facing, 2] - sign * 0.012).abs().median() < 0.002


def test_a_sphere_is_covered_by_planes_that_touch_it() -> None:
    generator = torch.Generator().manual_seed(0)
    normals = functional.normalize(torch.randn(60_000, 3, generator=generator), dim=1)
    mixture = PlaneMixture().fit(0.5 * normals, normals=normals, tolerance=0.003)
    outward = functional.normalize(mixture.centers, dim=1)
    assert (mixture.centers.norm(dim=1) - 0.5).abs().median() < 0.005
    assert (outward * mixture.normals).sum(1).median() > math.cos(math.radians(8))
    _, signed = mixture.project(0.55 * normals[:500])
    assert (signed - 0.05).abs().median() < 0.006


def test_noise_off_the_plane_lowers_confidence_and_few_rays_do_too() -> None:
    thin, thick = (PlaneMixture().fit(plane(40_000, noise=n), tolerance=0.02) for n in (0.001, 0.008))
    assert thin.confidence.mean() > thick.confidence.mean() + 0.05
    rays = torch.full((40_000,), 10.0)
    assert PlaneMixture().fit(plane(40_000), counts=rays).confidence.mean() > thin.confidence.mean() + 0.1
    assert (thin.confidence >= 0).all()
    assert (thin.confidence <= 1).all()


def test_colours_are_means_and_their_edges_part_components() -> None:
    points = plane(60_000)
    grey = (points[:, 0] > 0.013).float()
    mixture = PlaneMixture().fit(points, grey)
    pure = (mixture.colors[:, 0] < 0.05) | (mixture.colors[:, 0] > 0.95)
    blind = PlaneMixture().fit(points)
    beside = (blind.centers[:, 0] - 0.013).abs() < 0.02
    assert (~pure).sum() < 0.5 * beside.sum()
    assert ((mixture.centers[:, 0] > 0.013) == (mixture.colors[:, 0] > 0.5))[pure].all()


def test_the_width_of_averaged_voxels_is_added() -> None:
    lattice = torch.cartesian_prod(torch.arange(-1, 1, 0.02), torch.arange(-1, 1, 0.02))
    points = torch.cat([lattice, torch.zeros(len(lattice), 1)], 1)
    narrow, wide = (PlaneMixture().fit(points, spacing=s).deviations for s in (0.0, 0.02))
    free = narrow.amin(1) > THICKNESS
    assert free.float().mean() > 0.8
    torch.testing.assert_close(wide[free].square(), narrow[free].square() + 0.02**2 / 12, rtol=1e-3, atol=1e-7)


def test_a_fit_does_not_depend_on_where_the_world_has_its_origin_and_repeats_itself() -> None:
    points, normals = box(20_000)
    once, again = (PlaneMixture().fit(points, normals=normals) for _ in range(2))
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    far = PlaneMixture().fit(points.double() + torch.tensor([4096.0, -2048.0, 64.0]), normals=normals)
    assert len(far) == len(once)
    torch.testing.assert_close(far.normals, once.normals, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(0, 3), "the point cloud is empty"),
        (torch.zeros(50, 2), r"points have shape \[50, 2\], not \[N, 3\]"),
        (torch.tensor([[0.0, 0.0, torch.nan], [0.0, 0.0, 0.0]]), "1 of 2 points are not finite"),
        (torch.eye(3), "no plane in 3 points"),
        (torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) * 9, "no plane in 400 points"),
    ],
)
def test_points_without_a_plane_are_refused(points: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlaneMixture().fit(points)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="must be positive"):
        PlaneMixture().fit(plane(500), radius=0.0)


# ------------------------------------------------------------------------------------------------------------ queries


def corner() -> PlaneMixture:
    """The floor z = 0 and the wall x = 0, of the quarter x, z > 0."""
    floor = plane(40_000).abs() * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, -0.5, 0.0])
    wall = floor[:, [2, 1, 0]]
    normals = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).repeat_interleave(len(floor), 0)
    return PlaneMixture().fit(torch.cat([floor, wall]), normals=normals)


def test_projection_is_onto_the_nearest_plane() -> None:
    mixture = corner()
    points = torch.tensor([[0.5, 0.0, 0.03], [0.04, 0.0, 0.5], [0.5, 0.0, -0.05]])
    feet, signed = mixture.project(points)
    torch.testing.assert_close(
        feet, torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.5], [0.5, 0.0, 0.0]]), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(signed, torch.tensor([0.03, 0.04, -0.05]), rtol=0, atol=1e-4)
    torch.testing.assert_close(mixture.distance(points), signed.abs())


def test_where_no_component_is_near_there_is_no_distance_and_the_foot_is_the_point() -> None:
    mixture = corner()
    points = torch.tensor([[3.0, 0.0, 2.0], [torch.nan, 0.0, 0.0]])
    assert (mixture.nearest(points) == -1).all()
    feet, signed = mixture.project(points)
    assert signed.isinf().all()
    assert torch.equal(feet[0], points[0])
    assert not mixture.weights(points, mixture.nearest(points)).any()


def test_without_components_nothing_is_near() -> None:
    empty = PlaneMixture()
    points = torch.rand(5, 3)
    assert (empty.nearest(points) == -1).all()
    assert empty.distance(points).isinf().all()
    assert torch.equal(empty.project(points)[0], points)


def test_the_components_of_a_disc_are_the_nearest_of_one_surface() -> None:
    mixture = corner()
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * 0.3 + torch.tensor([0.0, -0.15, 0.0])
    ids = mixture.nearest(points)
    distance = torch.cdist(points, mixture.centers)
    torch.testing.assert_close(distance.gather(1, ids[:, :1])[:, 0], distance.amin(1))
    for row, chosen in zip(distance, ids, strict=True):
        kept = chosen[chosen >= 0]
        alike = (mixture.normals[kept] @ mixture.normals[kept[0]]).abs()
        assert alike.min() > math.cos(math.radians(30))
        assert (row[kept].diff() >= 0).all()
        assert row[kept].max() <= 0.5


def test_a_disc_beside_an_edge_stays_with_its_own_surface() -> None:
    mixture = corner()
    along = torch.linspace(-0.3, 0.3, 40)
    points = torch.stack([torch.full((40,), 0.02), along, torch.full((40,), 0.02)], 1)
    for axis in (0, 2):
        own = functional.one_hot(torch.tensor(axis), 3).float().expand(40, 3)
        ids = mixture.nearest(points, own)
        assert (ids[:, 0] >= 0).all()
        assert mixture.normals[ids[:, 0], axis].abs().min() > 0.9


def test_the_reach_can_be_set() -> None:
    mixture = corner()
    point = torch.tensor([[0.5, 0.0, 0.2]])
    assert (mixture.nearest(point, reach=0.1) == -1).all()
    assert (mixture.nearest(point, reach=0.3) >= 0).any()


def test_weights_are_those_of_the_formula_and_sum_to_one() -> None:
    mixture = corner()
    points = torch.rand(20, 3) * 0.5
    ids = mixture.nearest(points)
    weights = mixture.weights(points, ids)
    for point, row, got in zip(points.double(), ids, weights, strict=True):
        known = row >= 0
        square = (mixture.centers[row[known]].double() - point).square().sum(1)
        raw = mixture.confidence[row[known]].double() * torch.exp(-square / (2 * 0.1**2))
        torch.testing.assert_close(got[known].double(), raw / raw.sum(), rtol=1e-4, atol=1e-6)
        assert not got[~known].any()


# -------------------------------------------------------------------------------------------------------------- discs


def test_discs_cover_the_components_and_lie_in_them() -> None:
    points, normals = box()
    mixture = PlaneMixture().fit(points, normals=normals)
    discs = mixture.discs(0.0175)
    own = discs.component
    local = discs.positions - mixture.centers[own]
    assert (local * mixture.normals[own]).sum(1).abs().max() < 1e-5
    inside = torch.einsum("nij,nj->ni", mixture.tangents[own], local) / mixture.deviations[own]
    assert inside.norm(dim=1).max() <= 2 + 1e-3
    axes = rotation_matrices(discs.quats)
    torch.testing.assert_close(axes[..., 2], mixture.normals[own], rtol=0, atol=1e-5)
    torch.testing.assert_close(axes[..., 0], mixture.tangents[own, 0], rtol=0, atol=1e-5)
    expected = (16 * mixture.deviations.prod(1) / (math.pi * 0.0175**2)).round().clamp(1, 16)
    assert torch.equal(torch.bincount(own), expected.long())
    assert discs.radii.min() >= 0.0175 / 2 - 1e-6
    assert discs.radii.max() <= 0.0175 * 3 + 1e-6
    # Every point has a disc within two of its radii or so.
    assert torch.cdist(points[::40], discs.positions).amin(1).quantile(0.99) < 0.035


def test_one_disc_of_a_component_is_at_its_centre() -> None:
    mixture = PlaneMixture().fit(plane(20_000))
    discs = mixture.discs(0.2)
    assert torch.equal(discs.positions, mixture.centers)


def test_quaternions_take_the_axes_where_they_are_asked_to() -> None:
    generator = torch.Generator().manual_seed(0)
    turn = rotation_matrices(torch.randn(200, 4, generator=generator))
    half = torch.diag(torch.tensor([1.0, -1.0, -1.0]))[None]
    turn = torch.cat([turn, half, torch.eye(3)[None]])
    got = rotation_matrices(quats_with_axes(turn[..., 0], turn[..., 2]))
    torch.testing.assert_close(got, turn, rtol=0, atol=2e-5)


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_state_dict_restores_the_mixture() -> None:
    mixture = corner()
    state = {"mixture." + name: value for name, value in mixture.state_dict().items()}
    other = PlaneMixture()
    other.resize_like(state, "mixture.")
    other.load_state_dict(mixture.state_dict())
    points = torch.rand(50, 3)
    assert torch.equal(other.nearest(points), mixture.nearest(points))
    assert torch.equal(other.distance(points), mixture.distance(points))
    with pytest.raises(UserError, match="no mixture of planes"):
        other.resize_like({}, "mixture.")
