"""First points from depth: on a box room whose walls are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians import init
from panbench.gaussians.init import from_rgbd, neighbour_scale
from panbench.scene import Camera, Frame, LabelClass, LabelSpace, Scene

WIDTH, HEIGHT = 80, 60
HALF = torch.tensor([2.03, 1.47, 1.24])  # half extents of the room; no wall lies on a face of a voxel


def look(angle: float) -> Camera:
    """A camera at the middle of the room, turned about the y axis."""
    c, s = np.cos(angle), np.sin(angle)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return Camera(WIDTH, HEIGHT, 50.0, 50.0, WIDTH / 2, HEIGHT / 2, pose)


def room_depth(camera: Camera) -> Tensor:
    """Exact z-depth of the walls: the ray from the middle leaves the box at the nearest of its six planes."""
    rays = camera.rays() @ camera.rotation
    return (HALF / rays.abs().clamp(min=1e-9)).min(-1).values


class Room:
    def __init__(self, change: Callable[[Tensor], Tensor] = lambda d: d, views: int = 8) -> None:
        self.change = change
        self.views = views

    def __len__(self) -> int:
        return self.views

    def name(self, index: int) -> str:
        return str(index)

    def camera(self, index: int) -> Camera:
        return look(2 * np.pi * index / self.views)

    def load(self, index: int) -> Frame:
        camera = self.camera(index)
        depth = room_depth(camera)
        points = camera.unproject(depth)
        color = ((points / HALF + 1) / 2 * 255).clamp(0, 255).round().to(torch.uint8)
        return Frame(self.name(index), index, camera, color, depth=self.change(depth))


def scene(source: Room) -> Scene:
    return Scene("test", "box", True, source, range(len(source)), [], LabelSpace("t", (LabelClass(1, "wall", False),)))


def wall_distance(points: Tensor) -> Tensor:
    return (points.abs() - HALF).abs().min(-1).values


def test_points_lie_on_the_walls_with_their_colour_and_face_inwards() -> None:
    cloud = from_rgbd(scene(Room()), voxel=0.1)
    assert len(cloud) > 500
    assert wall_distance(cloud.positions).quantile(0.95) < 0.02
    assert (cloud.count >= 3).all()
    assert torch.allclose(cloud.normals.norm(dim=-1), torch.ones(len(cloud)), atol=1e-5)
    gap = (cloud.positions.abs() - HALF).abs()
    flat = gap.sort(-1).values[:, 1] > 0.3  # away from edges
    wall = gap.argmin(-1)
    expected = -torch.nn.functional.one_hot(wall, 3) * cloud.positions.gather(1, wall[:, None]).sign()
    facing = (cloud.normals * expected).sum(-1)[flat]
    assert (facing > 0.999).float().mean() > 0.95
    assert (facing > 0).all()  # at the border of the pictures there is no normal but the direction to the camera
    assert ((cloud.colors * 2 - 1) * HALF - cloud.positions).abs().max() < 0.03


def test_there_is_at_most_one_point_per_voxel() -> None:
    cloud = from_rgbd(scene(Room()), voxel=0.1)
    assert cloud.voxel == 0.1
    cells = (cloud.positions.double() / 0.1).floor()
    assert len(torch.unique(cells, dim=0)) >= 0.999 * len(cloud)  # a mean may round over the edge of its cell


def test_every_ray_counts_once() -> None:
    cloud = from_rgbd(scene(Room()), voxel=5.0)
    assert cloud.count.sum() == 8 * WIDTH * HEIGHT


def test_too_many_points_make_the_grid_coarser() -> None:
    fine = from_rgbd(scene(Room()), voxel=0.05)
    cloud = from_rgbd(scene(Room()), voxel=0.05, max_points=400)
    assert len(fine) > 400
    assert 200 < len(cloud) <= 400
    assert cloud.voxel > 0.05
    assert wall_distance(cloud.positions).quantile(0.9) < 0.1


class RoomWithBall(Room):
    """A ball hangs in the middle of the room, before the first camera."""

    CENTRE, RADIUS = torch.tensor([0.0, 0.0, 0.8]), 0.35

    def load(self, index: int) -> Frame:
        frame = super().load(index)
        assert frame.depth is not None
        rays = frame.camera.rays() @ frame.camera.rotation
        along, squared = rays @ self.CENTRE, rays.square().sum(-1)
        root = along.square() - squared * (self.CENTRE.square().sum() - self.RADIUS**2)
        near = (along - root.clamp_min(0).sqrt()) / squared
        return replace(frame, depth=torch.where((root > 0) & (near > 0), near, frame.depth))


def test_flat_walls_get_the_coarse_grid_and_round_things_the_fine_one() -> None:
    fine = from_rgbd(scene(RoomWithBall()), voxel=0.1)
    mixed = from_rgbd(scene(RoomWithBall()), voxel=0.1, flat_voxel=0.4)

    def on_ball(points: Tensor) -> Tensor:
        return ((points - RoomWithBall.CENTRE).norm(dim=-1) - RoomWithBall.RADIUS).abs() < 0.03

    def on_wall(points: Tensor) -> Tensor:
        gap = (points.abs() - HALF).abs().sort(-1).values
        behind = points[:, 2] < 0  # there the ball hides no part of the wall
        # Pixels at the border of a picture have no normal; so small pictures have few others at their upper edges.
        middle = points[:, 1].abs() < 0.4
        return (gap[:, 0] < 0.03) & (gap[:, 1] > 0.4) & behind & middle

    ball, fine_ball = mixed.positions[on_ball(mixed.positions)], fine.positions[on_ball(fine.positions)]
    assert len(fine_ball) > 30
    assert len(ball) > 0.95 * len(fine_ball)
    assert torch.cdist(ball, fine_ball).min(1).values.max() < 1e-3
    wall, fine_wall = mixed.positions[on_wall(mixed.positions)], fine.positions[on_wall(fine.positions)]
    _, of_cell = torch.unique((wall / 0.4).floor(), dim=0, return_counts=True)
    assert (of_cell == 1).float().mean() > 0.75
    assert len(wall) < 0.3 * len(fine_wall)
    # No ray is lost: coarse points stand for all rays of their voxel.
    assert mixed.count.sum() == fine.count.sum()


def test_a_coarse_grid_no_coarser_than_the_fine_one_changes_nothing() -> None:
    plain = from_rgbd(scene(Room()), voxel=0.1)
    for flat_voxel in (0.0, 0.1):
        assert torch.equal(from_rgbd(scene(Room()), voxel=0.1, flat_voxel=flat_voxel).positions, plain.positions)


def test_flying_pixels_between_two_surfaces_are_dropped() -> None:
    def box_in_front(depth: Tensor) -> Tensor:
        out = depth.clone()
        out[20:40, 30:50] = 0.5
        out[20:40, 50] = (out[20:40, 49] + depth[20:40, 51]) / 2  # the sensor mixes front and back
        return out

    cloud = from_rgbd(scene(Room(box_in_front, views=1)), voxel=0.02)
    z = cloud.positions[:, 2]
    middle = (cloud.positions[:, 1].abs() < 0.08) & (cloud.positions[:, 0].abs() < 0.3)
    assert not ((z[middle] > 0.55) & (z[middle] < 1.15)).any()
    # They and nothing else: the rim of the box and the wall beside it stay.
    assert from_rgbd(scene(Room(box_in_front)), voxel=5.0).count.sum() == 8 * (WIDTH * HEIGHT - 20)


def test_things_one_pixel_wide_are_kept_and_so_is_what_is_seen_past_them() -> None:
    def poles(depth: Tensor) -> Tensor:
        out = depth.clone()
        out[:, 30] = 0.5
        out[25, :] = 0.4
        return out

    assert from_rgbd(scene(Room(poles)), voxel=5.0).count.sum() == 8 * WIDTH * HEIGHT


def test_depth_that_is_missing_too_near_or_too_far_gives_no_points() -> None:
    def spoil(depth: Tensor) -> Tensor:
        out = depth.clone()
        out[:20] = 0.0
        out[20:40] = 0.05
        return out

    cloud = from_rgbd(scene(Room(spoil)), voxel=5.0, max_depth=1.5)
    expected = sum(int((room_depth(look(2 * np.pi * i / 8))[40:] <= 1.5).sum()) for i in range(8))
    assert cloud.count.sum() == expected


def test_voxels_with_fewer_than_three_rays_are_dropped() -> None:
    cloud = from_rgbd(scene(Room(views=1)), voxel=0.03)
    points = look(0).unproject(room_depth(look(0))).reshape(-1, 3)
    _, count = torch.unique((points.double() / 0.03).floor(), dim=0, return_counts=True)
    assert abs(len(cloud) - int((count >= 3).sum())) <= 0.02 * len(count)


def test_large_captures_are_thinned_on_a_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "RAW_POINTS", 8 * WIDTH * HEIGHT // 4)
    cloud = from_rgbd(scene(Room()), voxel=5.0)
    assert cloud.count.sum() == 8 * WIDTH * HEIGHT / 4
    again = from_rgbd(scene(Room()), voxel=5.0)
    assert torch.equal(cloud.positions, again.positions)


def test_a_scene_without_depth_is_refused() -> None:
    for spoil in (torch.zeros_like, lambda _: None):
        with pytest.raises(UserError, match="box: no training frame has depth"):
            from_rgbd(scene(Room(spoil)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must be positive"):
        from_rgbd(scene(Room()), voxel=0.0)


def test_scales_are_the_rms_of_three_neighbours_within_bounds() -> None:
    line = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0], [9.0, 0, 0], [0.0001, 0, 0]])
    scale = neighbour_scale(line, voxel=0.1)
    assert scale[4] == pytest.approx(0.3)  # far away from all: 3 voxels
    distances = np.sort((line[1, 0] - line[:, 0]).abs().numpy())[1:4]
    assert scale[1] == pytest.approx(np.sqrt(np.mean(distances**2)), rel=1e-5)
    dense = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    assert torch.allclose(neighbour_scale(dense, 0.1), torch.tensor(0.05))
    assert neighbour_scale(torch.zeros(1, 3), 0.1).tolist() == pytest.approx([0.1])
