"""A label space, hand-drawn label maps and a predictions folder made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from panbench.protocol import PredictionWriter
from panbench.scene import LabelClass, LabelSpace, PanopticMap


@pytest.fixture
def labels() -> LabelSpace:
    return LabelSpace(
        "three",
        (LabelClass(1, "wall", False), LabelClass(2, "chair", True), LabelClass(4, "table", True)),
        {10: 1, 20: 2, 40: 4},
    )


@pytest.fixture
def truth() -> dict[str, PanopticMap]:
    """Three frames of 12 x 16: a wall, one chair that moves, a table in the last frame."""
    out: dict[str, PanopticMap] = {}
    for i, name in enumerate(("0", "5", "10")):
        semantic = torch.ones(12, 16, dtype=torch.int64)
        instance = torch.zeros(12, 16, dtype=torch.int64)
        semantic[2:8, 2 + i : 7 + i], instance[2:8, 2 + i : 7 + i] = 2, 3
        if i == 2:
            semantic[9:, 10:], instance[9:, 10:] = 4, 8
        semantic[0, :3] = 0
        out[name] = PanopticMap(semantic, instance)
    return out


@pytest.fixture
def make_folder(tmp_path: Path, labels: LabelSpace, truth: dict[str, PanopticMap]) -> Callable[..., Path]:
    """``make_folder(change=f)`` writes ``f(name, map)`` of every true map (default: itself)."""

    def make(
        name: str = "predictions", change: Callable[[str, PanopticMap], PanopticMap] = lambda _, m: m, **facts: object
    ) -> Path:
        settings = {"method": "oracle", "dataset": "scannet", "scene": "scene0000_00", "seed": 7, **facts}
        with PredictionWriter(tmp_path / name, labels=labels, **settings) as writer:  # type: ignore[arg-type]
            for frame, map_ in truth.items():
                writer.write(frame, change(frame, map_), color=torch.full((12, 16, 3), 200, dtype=torch.uint8))
        return tmp_path / name

    return make
