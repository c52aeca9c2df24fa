from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panbench.protocol import PredictionSet, Protocol, SceneResult, score
from panbench.protocol.compare import ground, obstacles
from panbench.protocol.results import Origin
from panbench.scene import LabelSpace, PanopticMap


@pytest.fixture
def result(make_folder: Callable[..., Path], truth: dict[str, PanopticMap], labels: LabelSpace) -> SceneResult:
    folder = make_folder()
    origin = Origin(masks="medium", mask_hash="a" * 64)
    return score(PredictionSet.open(folder), truth, labels, Protocol.load("panoptic-strict@1"), origin=origin)


def test_two_seeds_of_a_method_may_be_compared(result: SceneResult) -> None:
    other = result.model_copy(update={"seed": 8, "method": "another", "cost": {"fit_seconds": 1.0}})
    assert obstacles(result, other) == []
    assert ground(result) == ground(other)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "scannetpp"}, "dataset: scannet and scannetpp"),
        ({"scene": "scene0001_00"}, "scene: scene0000_00 and scene0001_00"),
        ({"protocol": "scannet-paper@1"}, "protocol: panoptic-strict@1 and scannet-paper@1"),
        ({"protocol_hash": "b" * 64}, "rules of panoptic-strict@1"),
        ({"image_size": (24, 32)}, "image size: 16x12 and 32x24"),
        ({"split_hash": "c", "frames": ["0", "5"]}, "test frames: 3 and 2, 1 of them in one only"),
        ({"label_hash": "d" * 64}, "label space: three"),
        ({"origin": Origin(masks="heavy", mask_hash="e" * 64)}, "mask set: medium (aaaaaaaa) and heavy (eeeeeeee)"),
        ({"origin": Origin()}, "mask set: medium (aaaaaaaa) and unknown"),
    ],
)
def test_every_difference_of_ground_is_a_reason(result: SceneResult, change: dict[str, Any], reason: str) -> None:
    (said,) = obstacles(result, result.model_copy(update=change))
    assert said.startswith(reason)
    assert ground(result) != ground(result.model_copy(update=change))


def test_a_method_with_labels_of_its_own_may_stand_beside_any_masks(result: SceneResult) -> None:
    own = result.model_copy(update={"labels": "own", "origin": Origin()})
    assert obstacles(result, own) == []
    assert obstacles(own, result) == []
