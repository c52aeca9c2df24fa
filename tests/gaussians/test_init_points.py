"""Starting from a scanned cloud: two boxes on a floor, whose surfaces and colours are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from box_scene import BOXES, BoxFrames, box_scene, fitted
from torch import Tensor

from panbench.data.base import SceneDataModule
from panbench.data.point_cloud import CloudDepthSource
from panbench.errors import UserError
from panbench.gaussians.init import first_points, from_points
from panbench.heads import NoHead
from panbench.models import LiGS
from panbench.scene import Points, Scene

STEP = 0.02


def grid(low: tuple[float, ...], high: tuple[float, ...], axis: int, at: float) -> np.ndarray:
    """Points on the rectangle of two corners, in the plane where coordinate ``axis`` is ``at``."""
    sides = [np.arange(low[k] + STEP / 2, high[k], STEP) if k != axis else np.array([at]) for k in range(3)]
    return np.stack([g.ravel() for g in np.meshgrid(*sides, indexing="ij")], axis=1)


def scan(*, floor: float = 2.5, noise: float = 0.0) -> np.ndarray:
    """Points on the floor beside the boxes, and on the boxes' faces but the lower ones."""
    ground = grid((-floor, -floor, 0), (floor, floor, 0), 2, 0.0)
    parts = []
    for low, high in BOXES:
        ground = ground[~((ground[:, :2] > low[:2]) & (ground[:, :2] < high[:2])).all(1)]
        parts += [
            grid(low, high, axis, end[axis]) for axis in range(3) for end in (low, high) if (axis, end) != (2, low)
        ]
    out = np.concatenate([ground, *parts])
    return (out + np.random.default_rng(0).normal(0, noise, out.shape)).astype(np.float32)


def surface_normal(points: Tensor) -> Tensor:
    """Outward normals [N, 3] of the face that each point is nearest to."""
    best, out = points[:, 2].abs(), torch.tensor([0.0, 0.0, 1.0]).repeat(len(points), 1)
    for low, high in BOXES:
        for axis in range(3):
            for end, sign in ((low, -1.0), (high, 1.0)):
                off = (points[:, axis] - end[axis]).abs()
                inside = [
                    (points[:, k] > low[k] - 0.02) & (points[:, k] < high[k] + 0.02) for k in range(3) if k != axis
                ]
                closer = (off < best - 0.005) & inside[0] & inside[1]
                best = torch.where(closer, off, best)
                out[closer] = sign * torch.eye(3)[axis]
    return out


def scanned(points: Points, frames: BoxFrames | None = None) -> Scene:
    scene = box_scene(frames or BoxFrames(depth=False))
    return replace(scene, source=CloudDepthSource(scene.source, points, 1 << 24), point_cloud=points)


class ScannedBoxes(SceneDataModule):
    def __init__(self, points: Points) -> None:
        super().__init__(order_seed=0)
        self.points = points

    def open_scene(self) -> Scene:
        return scanned(self.points)


def test_normals_and_colours_of_a_bare_cloud_are_found() -> None:
    cloud = first_points(scanned(Points(scan())), voxel=0.04)
    true = surface_normal(cloud.positions)
    cosine = (cloud.normals * true).sum(1)
    # Beside edges, a neighbourhood holds two faces.
    assert (cosine > 0.99).float().mean() > 0.85
    # Seen from the front and above: no normal points away from the cameras.
    assert (cloud.normals @ torch.tensor([0.0, -2.0, 1.5]) > -0.2).float().mean() > 0.98
    assert (cloud.colors.amax(1) > 0.1).all()
    crate = ((cloud.positions - torch.tensor([-0.6, 0.0, 0.5])).abs() < torch.tensor([0.2, 0.2, 0.01])).all(1)
    assert crate.sum() > 20
    mean = cloud.colors[crate].mean(0) * 255
    # The crate's hue is (190, 70, 50) with a pattern of ± 25.
    assert (mean - torch.tensor([190.0, 70.0, 50.0])).abs().max() < 25


def test_what_no_camera_sees_is_left_out() -> None:
    behind = np.array([[0.0, -30.0, 0.5]], dtype=np.float32)
    under = grid((-0.2, -0.2, -1.0), (0.2, 0.2, -1.0), 2, -1.0).astype(np.float32)
    cloud = first_points(scanned(Points(np.concatenate([scan(), behind, under]))), voxel=0.04)
    assert cloud.positions[:, 2].min() > -0.01
    assert cloud.positions[:, 1].min() > -10
    # Of the faces that look away from all cameras, nothing is left but the rims.
    back = (cloud.positions[:, 1] - 0.3).abs() < 1e-3
    assert back.float().mean() < 0.03


def test_given_colours_and_normals_are_kept() -> None:
    points = scan()
    normals = -surface_normal(torch.from_numpy(points)).numpy()
    colors = np.tile(np.array([0.25, 0.5, 0.75], dtype=np.float32), (len(points), 1))
    cloud = first_points(scanned(Points(points, colors, normals)), voxel=0.03)
    torch.testing.assert_close(cloud.colors, torch.tensor([0.25, 0.5, 0.75]).repeat(len(cloud), 1))
    # They pointed inwards, and are turned to the cameras.
    top = (cloud.positions[:, 2] - 0.5).abs() < 1e-3
    assert (cloud.normals[top] @ torch.tensor([0.0, 0.0, 1.0]) > 0.9).all()


def test_flat_parts_and_the_limit_thin_the_cloud() -> None:
    scene = scanned(Points(scan()))
    fine = first_points(scene, voxel=0.03)
    flat = first_points(scene, voxel=0.03, flat_voxel=0.12)
    few = first_points(scene, voxel=0.03, max_points=500)
    assert len(flat) < 0.5 * len(fine)
    assert len(few) <= 500
    assert few.voxel > 0.03


def test_a_cloud_in_another_world_is_an_error() -> None:
    away = Points(scan() + np.float32(50))
    with pytest.raises(UserError, match="no training camera sees a point of the point cloud"):
        from_points(scanned(away), away)


def test_depth_from_the_cloud_is_the_true_depth() -> None:
    points = Points(scan(floor=3.5))
    scene, true = scanned(points), box_scene(BoxFrames())
    for index in scene.train[:3]:
        found, exact = scene.source.load(index).depth, true.source.load(index).depth
        assert found is not None
        assert exact is not None
        hit = (found > 0) & (exact > 0)
        assert hit.float().mean() > 0.4
        wrong = (found - exact).abs()[hit]
        assert wrong.median() < 0.01
        assert (wrong > 0.1).float().mean() < 0.05  # pixels whose centre misses the edge that their points lie on


def test_li_gs_trains_from_a_cloud_without_depth_images() -> None:
    points = Points(scan(noise=0.002))
    model = LiGS(
        NoHead(), voxel=0.06, flat_voxel=0.06, mixture_voxel=0.03, mixture_radius=0.06, consistency_start=0
    )  # fmt: skip
    fitted(model, 40, ScannedBoxes(points))
    true = box_scene(BoxFrames())
    errors = []
    for index in true.test:
        frame = true.source.load(index)
        assert frame.depth is not None
        with torch.no_grad():
            view = model.render(frame.camera)
        sure = (frame.depth > 0) & (view.alpha > 0.9)
        assert sure.float().mean() > 0.5
        errors.append((view.depth - frame.depth).abs()[sure])
    assert torch.cat(errors).median() < 0.03
    assert len(model.mixture) > 100
