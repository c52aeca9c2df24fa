"""Profiled time goes to the part of the method that caused it."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmark.room_frames import LABELS, RoomFramesModule
from benchmark.steps import PARTS, parts_of


def _busy(x: torch.Tensor) -> torch.Tensor:
    for _ in range(20):
        x = torch.tanh(x)
    return x


def _profiled(head: int, photo: int) -> dict[str, float]:
    """Parts of a made-up step with so many runs of the same work in two parts, forward and backward."""
    x = torch.rand(200, 200, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        with record_function("head: channels"):
            a = [_busy(x) for _ in range(head)]
        with record_function("photometric loss"):
            b = [_busy(x) for _ in range(photo)]
        torch.stack([t.sum() for t in (*a, *b)]).sum().backward()
    return parts_of(profiler.events(), wall=1e6)


def test_the_way_back_belongs_to_what_it_reverses() -> None:
    parts = _profiled(head=12, photo=4)
    both = parts["head: channels"] + parts["photometric loss"]
    known = sum(ms for part, ms in parts.items() if not part.startswith("rest"))
    assert both > 0.9 * known
    assert parts["head: channels"] / both == pytest.approx(0.75, abs=0.2)


def test_the_parts_add_up_to_the_wall_time() -> None:
    parts = _profiled(1, 1)
    assert list(parts) == list(PARTS)
    assert sum(parts.values()) == pytest.approx(1e6)


def test_frames_of_the_room_have_depth_and_exact_masks() -> None:
    scene = RoomFramesModule(count=5000, width=64, height=48).open_scene()
    frames = list(scene.frames(scene.train))
    semantic = torch.cat([f.masks.semantic.flatten() for f in frames if f.masks])
    instance = torch.cat([f.masks.instance.flatten() for f in frames if f.masks])
    assert LABELS.size - 1 == 20
    assert set(semantic.unique().tolist()) >= set(range(1, 21)) - {2}  # no camera looks at the ceiling
    assert len(instance.unique()) > 40
    things = torch.tensor([False, *(c.thing for c in LABELS.classes)])[semantic.long()]
    assert ((instance > 0) == things).all()
    depth = torch.cat([f.depth.flatten() for f in frames if f.depth is not None])
    assert ((depth > 0) == (semantic > 0)).all()
    assert depth.max() < 6.5
