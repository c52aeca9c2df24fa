"""The depth camera model: its noise law, its holes, its rounding."""

from __future__ import annotations

import numpy as np
import pytest

from panbench.data.depth_sensor import DepthSensor

FOCAL = 514.4  # 640 columns at the built-in rooms' field of view


def _wall(z: float, shape: tuple[int, int] = (120, 160)) -> np.ndarray:
    return np.full(shape, z, dtype=np.float32)


@pytest.mark.parametrize("z", [1.3, 1.7, 2.2, 2.8, 3.6])
def test_noise_of_a_flat_wall_follows_the_published_law(z: float) -> None:
    reading = DepthSensor().measure(_wall(z), np.ones((120, 160), np.float32), FOCAL, np.random.default_rng(0))
    law = 0.0012 + 0.0019 * (z - 0.4) ** 2  # Nguyen et al. 2012
    assert np.std(reading[reading > 0]) == pytest.approx(law, rel=0.2)
    # Disparity is rounded to a grid, so the mean may be off by up to half a tick.
    tick = z**2 / (8 * 571.6 * 0.075)
    assert np.mean(reading[reading > 0]) == pytest.approx(z, abs=0.5 * tick)


def test_readings_are_whole_millimetres_inside_the_working_range() -> None:
    ramp = np.tile(np.linspace(0.2, 10, 200, dtype=np.float32), (50, 1))
    reading = DepthSensor().measure(ramp, np.ones_like(ramp), FOCAL, np.random.default_rng(1))
    seen = reading[reading > 0].astype(np.float64)
    np.testing.assert_allclose(seen * 1000, np.round(seen * 1000), atol=1e-3)
    assert seen.min() >= 0.35
    assert seen.max() <= 8.0
    assert not reading[:, ramp[0] > 9].any()


def test_nothing_is_measured_where_nothing_is() -> None:
    depth = _wall(2.0)
    depth[:, :80] = 0
    reading = DepthSensor().measure(depth, np.ones_like(depth), FOCAL, np.random.default_rng(2))
    assert not reading[:, :80].any()


def test_the_shadow_is_what_the_projector_cannot_see() -> None:
    """Against a brute-force test of every background point's line to the projector, in the plane of one row."""
    background, front, left, right, width = 3.0, 1.2, 130, 190, 320
    depth = _wall(background, (3, width))
    depth[:, left:right] = front
    sensor = DepthSensor(lateral=0, disparity_ticks=0, edge_loss=0, grazing_loss=0, base_loss=0)
    reading = sensor.measure(depth, np.ones_like(depth), FOCAL, np.random.default_rng(3))

    columns = np.arange(width) - width / 2
    x = columns * depth[1] / FOCAL
    edges = np.array([left - 0.5, right - 0.5]) - width / 2
    low, high = edges * front / FOCAL  # the front surface in metres
    # Where the line from the projector (at x = baseline, z = 0) to the point crosses the front surface's plane.
    crossing = sensor.baseline + (x - sensor.baseline) * front / background
    hidden = (depth[1] == background) & (crossing > low) & (crossing < high)
    assert hidden.any()
    disagreement = (reading[1] == 0) != hidden
    assert disagreement.sum() <= 2


def test_edges_and_grazing_surfaces_lose_their_share() -> None:
    rng = np.random.default_rng(4)
    sensor = DepthSensor(lateral=0, base_loss=0.01)
    flat = sensor.measure(_wall(2.0, (400, 400)), np.ones((400, 400), np.float32), FOCAL, rng)
    steep = sensor.measure(_wall(2.0, (400, 400)), np.full((400, 400), 0.1, np.float32), FOCAL, rng)
    dark = sensor.measure(
        _wall(2.0, (400, 400)), np.ones((400, 400), np.float32), FOCAL, rng, np.full((400, 400), 0.01, np.float32)
    )
    assert (flat == 0).mean() == pytest.approx(0.01, abs=0.004)
    assert (steep == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert (dark == 0).mean() == pytest.approx(0.15, abs=0.02)


def test_the_same_seed_gives_the_same_reading() -> None:
    depth = _wall(2.0)
    first, second = (DepthSensor().measure(depth, np.ones_like(depth), FOCAL, np.random.default_rng(5)) for _ in "ab")
    np.testing.assert_array_equal(first, second)
