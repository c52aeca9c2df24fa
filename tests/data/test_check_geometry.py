"""Points carried from frame to frame, against positions worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panbench.data.check_geometry import AS_READ, DepthView, Reading, agreement, pick_pairs, relative_error, same_points
from panbench.data.preview import _upright
from panbench.scene import Camera

WIDTH, HEIGHT, FOCAL = 40, 30, 50.0


def camera(x: float = 0.0, z: float = 0.0, turn: float = 0.0) -> Camera:
    """At (x, 0, z), turned by so many degrees to the right; not turned it looks along world z."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    to_world = np.array([[c, 0, s, x], [0, 1, 0, 0], [-s, 0, c, z], [0, 0, 0, 1]])
    pose = torch.from_numpy(np.linalg.inv(to_world).astype(np.float32))
    return Camera(WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, pose)


def wall(distance: float, at: Camera) -> DepthView:
    return DepthView(at, np.full((HEIGHT, WIDTH), distance, dtype=np.float32))


def test_a_wall_is_where_it_is_from_nearer_too() -> None:
    error = relative_error(wall(2.0, camera()), wall(1.5, camera(z=0.5)))
    # Seen from half a metre nearer all is larger by 2 / 1.5: the outer eighth on each side falls out of the picture.
    inside = np.abs(np.arange(WIDTH) + 0.5 - WIDTH / 2) * 2 / 1.5 < WIDTH / 2
    assert (np.isfinite(error).any(axis=0) == inside).all()
    np.testing.assert_allclose(error[np.isfinite(error)], 0, atol=1e-6)


def test_the_error_is_the_share_by_which_depth_differs() -> None:
    error = relative_error(wall(2.0, camera()), wall(2.5, camera()))
    np.testing.assert_allclose(error, (2.0 - 2.5) / 2.5, atol=1e-6)
    found = agreement([(wall(2.0, camera()), wall(2.5, camera()))], AS_READ)
    # One way the points lie before the surface, the other way behind it.
    assert found.landed == found.points > 0
    assert (found.agreeing, found.before) == (0, found.points // 2)
    assert found.share == 0


def test_pixels_without_depth_take_no_part() -> None:
    near, far = wall(2.0, camera()), wall(2.0, camera())
    far.depth[:, :10] = 0
    error = relative_error(near, far)
    assert np.isnan(error[:, :10]).all()
    assert np.isfinite(error[:, 10:]).all()


def test_the_same_point_moves_by_focal_length_times_shift_over_depth() -> None:
    # 0.2 m to the right at 2 m: 50 * 0.2 / 2 = 5 columns to the left.
    here, there = same_points(wall(2.0, camera()), wall(2.0, camera(x=0.2)))
    assert len(here[0]) > 100
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1] - 5, there[1])


@pytest.mark.parametrize("scale", [0.001, 1000.0])
def test_a_scale_stands_for_the_unit_of_depth(scale: float) -> None:
    # Depth written in another unit than the positions: multiplied by the scale it fits again.
    views = [(wall(2.0 / scale, camera()), wall(1.5 / scale, camera(z=0.5)))]
    assert agreement(views, Reading(False, np.eye(3), scale)).fit > 0.99
    assert agreement(views, AS_READ).fit < 0.1


def test_pairs_are_of_frames_that_turned_but_still_overlap() -> None:
    turning = [camera(turn=4.0 * k) for k in range(20)]
    pairs = pick_pairs(turning, most=100)
    assert pairs[0] == (0, 4)  # the first beyond 12 degrees
    assert all(b - a in (1, 2, 3, 4) for a, b in pairs)
    assert len(pick_pairs(turning, most=5)) == 5
    # Turned too far from one frame to the next, nothing can be compared.
    assert pick_pairs([camera(turn=50.0 * k) for k in range(5)], most=9) == []
    # Moving without turning, the farthest of the next frames is taken.
    assert pick_pairs([camera(x=0.1 * k) for k in range(5)], most=9) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert pick_pairs([], most=9) == []


def test_seen_from_above_walls_are_upright_and_left_stays_left() -> None:
    random = np.random.default_rng(0)
    angle = np.radians(30)
    flat = random.uniform([-4, -2], [4, 2], (4000, 2)) @ [
        [np.cos(angle), np.sin(angle)],
        [-np.sin(angle), np.cos(angle)],
    ]
    up = np.array([0.0, 0.0, 1.0])
    plane = _upright(np.column_stack([flat, random.uniform(0, 2, 4000)]), up)
    right, down = plane.T
    assert abs(abs(right @ [np.cos(angle), np.sin(angle), 0]) - 1) < 1e-3  # along the longer side
    # Looking down, right × up-on-paper points at the one who looks: the picture is not mirrored.
    np.testing.assert_allclose(np.cross(right, -down), up, atol=1e-12)
