"""What is measured of the rendered test views: colour against the photo, depth against the truth or the sensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from box_scene import LABELS, TEST, BoxFrames
from torch import Tensor

from panbench.protocol.predictions import PredictionSet, PredictionWriter
from panbench.scene import Frame, Scene
from panbench.training.finish import depth_quality, image_quality

Depth = Callable[[Frame], Tensor | None]


@dataclass(frozen=True)
class _WithTruth(BoxFrames):
    """The sensor measures 2 cm too far; the truth is exact."""

    def load(self, index: int) -> Frame:
        frame = super().load(index)
        assert frame.depth is not None
        sensor = torch.where(frame.depth > 0, frame.depth + 0.02, 0.0)
        return replace(frame, depth=sensor, true_depth=frame.depth)


def _scene(source: BoxFrames) -> Scene:
    train = tuple(i for i in range(len(source)) if i not in TEST)
    return Scene("tiny", "boxes", True, source, train, TEST, LABELS)


def _predicted(folder: Path, scene: Scene, depth: Depth) -> PredictionSet:
    with PredictionWriter(folder, method="m", labels=scene.labels, scene=scene.name, synthetic=True) as writer:
        for frame in scene.frames(scene.test):
            assert frame.truth is not None
            writer.write(frame.name, frame.truth, color=frame.color, depth=depth(frame))
    return PredictionSet.open(folder)


def test_depth_is_compared_with_the_truth_where_there_is_one(tmp_path: Path) -> None:
    scene = _scene(_WithTruth())
    found = depth_quality(_predicted(tmp_path / "p", scene, lambda f: f.depth), scene)
    assert found["depth_l1"] == pytest.approx(2.0, abs=0.06)  # files hold whole millimetres
    assert found["depth_rmse"] == pytest.approx(2.0, abs=0.06)
    assert found["depth_delta"] == 100.0
    assert found["depth_known"] == 100.0


def test_without_truth_it_is_compared_with_the_sensor_under_another_name(tmp_path: Path) -> None:
    scene = _scene(BoxFrames())
    found = depth_quality(_predicted(tmp_path / "p", scene, lambda f: f.depth), scene)
    assert set(found) == {"sensor_depth_l1", "sensor_depth_rmse", "sensor_depth_delta", "sensor_depth_known"}
    assert found["sensor_depth_l1"] == pytest.approx(0.0, abs=0.06)


def test_without_depth_there_is_no_error_of_depth(tmp_path: Path) -> None:
    scene = _scene(_WithTruth())
    quality = image_quality(_predicted(tmp_path / "p", scene, lambda f: None), scene)
    assert set(quality) == {"PSNR", "SSIM"}
    assert depth_quality(_predicted(tmp_path / "q", _scene(BoxFrames(depth=False)), lambda f: None), scene) == {}
