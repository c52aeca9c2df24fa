"""What a camera sees of a point cloud: on planes, where depth is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panbench.scene import Camera, Points

CAMERA = Camera(80, 60, 60.0, 60.0, 40.0, 30.0, torch.eye(4))


def plane(depth: float, left: float, right: float, spacing: float = 0.02, slope: float = 0.0) -> np.ndarray:
    """Points on z = depth + slope · x, on a grid."""
    x, y = np.meshgrid(np.arange(left, right, spacing), np.arange(-2.5, 2.5, spacing))
    return np.stack([x.ravel(), y.ravel(), depth + slope * x.ravel()], axis=1).astype(np.float32)


def test_spacing_is_that_of_the_grid() -> None:
    assert Points(plane(2.0, -1, 1)).spacing == pytest.approx(0.02, rel=1e-3)
    assert Points(np.zeros((1, 3), dtype=np.float32)).spacing == 0.0


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.5])
def test_depth_of_a_plane_is_the_plane_s(slope: float) -> None:
    depth = Points(plane(3.0, -1.7, 3.0, slope=slope)).depth(CAMERA)
    x = CAMERA.rays().numpy()[..., 0]
    true = 3.0 / (1 - slope * x)  # z = 3 + slope · x · z
    hit = depth > 0
    # A point is half a pixel from the centre of its pixel at most: as far as the plane's depth changes there.
    limit = np.abs(slope) * true**2 / 3.0 * 0.5 / CAMERA.fx + 0.001
    assert hit.mean() > 0.3
    assert (np.abs(depth - true)[hit] <= limit[hit] * 1.1).all()


def test_what_lies_behind_a_wall_of_points_is_hidden() -> None:
    near, far = plane(1.5, -0.4, 0.4), plane(3.0, -3.0, 3.0, spacing=0.05)
    cloud = Points(np.concatenate([near, far]))
    index, pixel, _ = cloud.seen_by(CAMERA)
    x = CAMERA.rays().numpy()[..., 0].ravel()
    shadowed = np.abs(x[pixel]) < 0.4 / 1.5 - 0.03
    assert (index[shadowed] < len(near)).all()
    assert shadowed.sum() > 500
    # Beside the wall the far one is seen, and most of its points there are.
    beside = np.abs(far[:, 0] / 3.0) > 0.4 / 1.5 + 0.05
    in_view = beside & (np.abs(far[:, 0]) / 3.0 < 0.66) & (np.abs(far[:, 1]) / 3.0 < 0.49)
    assert np.isin(len(near) + np.flatnonzero(in_view), index).all()


def test_points_behind_the_camera_and_out_of_view_are_not_seen() -> None:
    cloud = Points(np.array([[0, 0, -1], [0, 0, 0.01], [5, 0, 1], [0, 0, 1]], dtype=np.float32))
    index, pixel, z = cloud.seen_by(CAMERA)
    assert index.tolist() == [3]
    assert pixel.tolist() == [30 * 80 + 40]
    assert z.tolist() == [1.0]


def test_a_turned_camera_sees_what_a_turned_cloud_shows() -> None:
    angle = 0.3
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor(
        [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]], dtype=torch.float32
    )
    pose[:3, 3] = torch.tensor([0.1, -0.2, 0.3])
    cloud = plane(3.0, -3, 3, slope=0.2)
    turned = Camera(80, 60, 60.0, 60.0, 40.0, 30.0, pose)
    local = (torch.from_numpy(cloud) @ pose[:3, :3].T + pose[:3, 3]).numpy()
    np.testing.assert_allclose(Points(cloud).depth(turned), Points(local).depth(CAMERA), atol=1e-4)
