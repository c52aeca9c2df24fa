"""Choosing frames: evenly, by sharpness, by coverage of the poses."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from panbench.data.select import Candidate, choose, farthest, sharpness
from panbench.errors import UserError


@dataclass(frozen=True)
class Picture:
    """An image file in memory."""

    name: str
    pixels: np.ndarray

    @property
    def stem(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.pixels).save(stream, "PNG")
        return stream.getvalue()


def texture(seed: int, blur: float = 0.0) -> np.ndarray:
    image = np.random.default_rng(seed).uniform(0, 255, (40, 60, 3))
    return gaussian_filter(image, (blur, blur, 0)).astype(np.uint8)


def poses(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    out = np.tile(np.eye(4), (count, 1, 1))
    out[:, :3, :3] = np.linalg.qr(random.normal(size=(count, 3, 3)))[0]
    out[:, :3, 3] = random.uniform(-2, 2, (count, 3))
    return out


def candidates(count: int, blurred: set[int] | None = None) -> list[Candidate]:
    where = poses(count)
    return [
        Candidate(Picture(str(i), texture(i, 2.0 if blurred is None or i in blurred else 0.0)), where[i])
        for i in range(count)
    ]


def test_sharpness_is_that_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    image = texture(1, 0.7)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    assert sharpness(image) == pytest.approx(float(cv2.Laplacian(grey.astype(np.float64), cv2.CV_64F).var()), rel=1e-5)


def test_blur_lowers_sharpness() -> None:
    values = [sharpness(texture(3, blur)) for blur in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values, reverse=True)


def test_even_takes_the_middles_of_equal_parts() -> None:
    assert choose(candidates(12), 3, "even", "room") == [2, 6, 10]
    assert choose(candidates(5), None, "sharpest", "room") == [0, 1, 2, 3, 4]


def test_sharpest_takes_the_one_sharp_frame_of_each_window() -> None:
    sharp = {1, 7, 8}
    assert choose(candidates(12, set(range(12)) - sharp), 3, "sharpest", "room") == sorted(sharp)


def test_coverage_leaves_no_frame_farther_than_twice_what_is_possible() -> None:
    where = poses(12, seed=4)
    spread = np.sqrt(np.square(where[:, :3, 3] - where[:, :3, 3].mean(0)).sum(1).mean())
    feature = np.concatenate([where[:, :3, 3], spread * where[:, :3, 2]], axis=1)
    apart = np.linalg.norm(feature[:, None] - feature[None], axis=-1)

    def radius(chosen: tuple[int, ...] | list[int]) -> float:
        return float(apart[:, list(chosen)].min(axis=1).max())

    for count in (1, 2, 3, 4):
        best = min(radius(some) for some in itertools.combinations(range(12), count))
        found = farthest(where, count)
        assert found[0] == 0
        assert len(set(found)) == count
        # The bound holds for any start; with one frame there is no choice but the first.
        assert radius(found) <= 2 * best + 1e-9


def test_coverage_sees_a_turn_on_the_spot() -> None:
    turned = np.tile(np.eye(4), (4, 1, 1))
    for i, angle in enumerate((0.0, 0.1, np.pi, 0.2)):
        turned[i, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    assert farthest(turned, 2) == [0, 2]


def test_coverage_of_frames_at_one_pose_takes_each_once() -> None:
    assert sorted(farthest(np.tile(np.eye(4), (4, 1, 1)), 4)) == [0, 1, 2, 3]


def test_more_frames_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="room: has 3 frames to choose from, 4 are asked for"):
        choose(candidates(3), 4, "even", "room")
