from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.errors import UserError
from panbench.methods.raw_masks import raw_masks
from panbench.protocol import PredictionSet, Protocol, SceneTruth, score
from panbench.scene import Scene


def test_perfect_masks_know_every_class_but_no_object_twice(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    scene = make_scene()
    predictions = PredictionSet.open(raw_masks(scene, tmp_path / "p"))
    result = score(predictions, SceneTruth(scene), scene.labels, Protocol.load("panoptic-strict@1"))
    assert result.metrics["mIoU"] == 100
    assert result.metrics["RQ"] < 100
    seen: set[int] = set()
    for name in predictions.names:
        ids = set(predictions.read(name).instance.unique().tolist()) - {0}
        assert ids
        assert not ids & seen
        seen |= ids


def test_test_frames_without_masks_are_told(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test frame 0 has no pseudo-masks"):
        raw_masks(make_scene(masks=lambda *_: None), tmp_path / "p")
