"""A wall with three boards in front of it, seen by a camera that slides along: labels and depth are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from panbench.scene import Camera, Frame, LabelClass, LabelSpace, PanopticMap, Scene

LABELS = LabelSpace(
    "boards", (LabelClass(1, "wall", False), LabelClass(2, "board", True), LabelClass(3, "screen", True))
)
WALL = 3.0
# class, x range, y range [m], depth [m]; the two boards at the left are 20 cm apart
BOARDS = ((2, (-0.9, -0.5), (-0.3, 0.3), 2.6), (2, (-0.3, 0.1), (-0.3, 0.3), 2.6), (3, (0.5, 1.0), (-0.4, 0.1), 2.4))
Change = Callable[[int, PanopticMap], PanopticMap | None]


def view(camera: Camera) -> tuple[PanopticMap, Tensor]:
    """True labels and z-depth; the camera looks along +z without rotation."""
    origin = camera.position
    shape = (camera.height, camera.width)
    semantic = torch.ones(shape, dtype=torch.int64)
    instance = torch.zeros(shape, dtype=torch.int64)
    depth = torch.full(shape, WALL)
    rays = camera.rays()
    for i, (class_id, x, y, z) in enumerate(BOARDS, start=1):
        points = rays * z + origin
        hit = (points[..., 0] > x[0]) & (points[..., 0] < x[1]) & (points[..., 1] > y[0]) & (points[..., 1] < y[1])
        semantic[hit], instance[hit], depth[hit] = class_id, i, z
    return PanopticMap(semantic, instance), depth


@dataclass(frozen=True)
class Boards:
    """Frames by index; ``masks`` changes the perfect pseudo-masks of a frame, ``depth`` its depth; None removes."""

    count: int
    masks: Change
    depth: Callable[[Tensor], Tensor | None]

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return str(10 * index)

    def camera(self, index: int) -> Camera:
        pose = torch.eye(4)
        pose[0, 3] = 0.6 - 1.2 * index / (self.count - 1)
        return Camera(96, 72, 60.0, 60.0, 48.0, 36.0, pose)

    def load(self, index: int) -> Frame:
        camera = self.camera(index)
        truth, depth = view(camera)
        color = torch.zeros(72, 96, 3, dtype=torch.uint8)
        # Mask ids mean nothing beyond their frame: they are turned round by the frame number.
        turned = torch.where(truth.instance > 0, (truth.instance + index) % 3 + 1, 0)
        masks = self.masks(index, PanopticMap(truth.semantic, turned))
        return Frame(self.name(index), index, camera, color, self.depth(depth), masks, truth)


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """``make_scene(masks=change, depth=change, count=11, test=...)``: every fifth frame is test."""

    def make(
        masks: Change = lambda _, m: m,
        depth: Callable[[Tensor], Tensor | None] = lambda d: d,
        count: int = 11,
        test: Sequence[int] = (0, 5, 10),
    ) -> Scene:
        train = [i for i in range(count) if i not in test]
        return Scene("scannet", "boards", True, Boards(count, masks, depth), train, list(test), LABELS, "m", "d")

    return make


@pytest.fixture
def relabel() -> Callable[..., PanopticMap]:
    """``relabel(map, where, semantic=..., instance=...)``: a copy with other labels there."""

    def change(
        map_: PanopticMap, where: Tensor, semantic: int | None = None, instance: int | None = None
    ) -> PanopticMap:
        out = replace(map_)
        if semantic is not None:
            out = replace(out, semantic=out.semantic.masked_fill(where, semantic))
        if instance is not None:
            out = replace(out, instance=out.instance.masked_fill(where, instance))
        return out

    return change
