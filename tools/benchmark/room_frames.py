"""The workload's room as a scene to train on: frames, depth and exact masks rendered from its Gaussians."""

from __future__ import annotations

from functools import cached_property

import torch

from benchmark.workload import BOX_FACES, BOXES, NEAR, SIDES, SURFACES, cameras, furnished_room
from panbench import ops
from panbench.data.base import SceneDataModule
from panbench.scene import Camera, Frame, LabelClass, LabelSpace, PanopticMap, Scene

FRAMES = 40
LABELS = LabelSpace(
    "benchmark room",
    tuple(
        LabelClass(i + 1, f"side {i}" if i < SIDES else f"box {i - SIDES}", thing=i >= SIDES)
        for i in range(SIDES + BOXES)
    ),
)
"""The sides of the room are stuff, each box is a class, and each face of a box is an object."""


class RoomFrames:
    """Views of the room, each rendered once."""

    def __init__(self, count: int, width: int, height: int) -> None:
        """Args: count: number of Gaussians that the room is made of. width, height: of the frames."""
        self._cameras = cameras(width, height, FRAMES)
        self._count = count
        self._frames: dict[int, Frame] = {}

    def __len__(self) -> int:
        return FRAMES

    def name(self, index: int) -> str:
        """A frame's name."""
        return str(index)

    def camera(self, index: int) -> Camera:
        """A frame's camera."""
        return self._cameras[index]

    def load(self, index: int) -> Frame:
        """A frame with depth and masks."""
        if index not in self._frames:
            self._frames[index] = self._render(index)
        return self._frames[index]

    @cached_property
    def _room(self) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        room = furnished_room(self._count)
        which = torch.nn.functional.one_hot(room.surface, SURFACES + 1).float()
        return room.geometry, torch.cat([room.features(3), which], dim=1)

    @torch.no_grad()
    def _render(self, index: int) -> Frame:
        camera = self._cameras[index]
        (means, quats, log_scales, logits), features = self._room
        seen = ops.project(means, quats, log_scales, logits, camera, kind="ellipsoid", near=NEAR)
        size = (camera.width, camera.height)
        bins = ops.bin(seen.geometry, *size, kind="ellipsoid")
        out = ops.blend(seen.geometry, features[seen.ids], bins, *size, kind="ellipsoid", near=NEAR)
        surface = out.image[..., 3:].argmax(-1)
        solid = (out.alpha > 0.5) & (surface < SURFACES)
        box = torch.div(surface - SIDES, BOX_FACES, rounding_mode="floor")
        semantic = torch.where(surface < SIDES, surface, SIDES + box) + 1
        instance = (surface - SIDES + 1).clamp_min(0)
        masks = PanopticMap((semantic * solid).int(), (instance * solid).int())
        depth = torch.where(solid, out.depth / out.alpha.clamp_min(1e-3), 0.0)
        color = (255 * out.image[..., :3].clamp(0, 1)).to(torch.uint8)
        return Frame(str(index), index, camera, color, depth, masks, masks)


class RoomFramesModule(SceneDataModule):
    """The scene for a trainer."""

    def __init__(self, count: int = 200_000, width: int = 320, height: int = 240) -> None:
        """Args: count: number of Gaussians that the frames are rendered of. width, height: of the frames."""
        super().__init__(order_seed=0)
        self.count, self.width, self.height = count, width, height

    def open_scene(self) -> Scene:
        train = tuple(i for i in range(FRAMES) if i % 5)
        test = tuple(range(0, FRAMES, 5))
        frames = RoomFrames(self.count, self.width, self.height)
        return Scene("benchmark", "furnished_room", True, frames, train, test, LABELS, "masks", "data")
