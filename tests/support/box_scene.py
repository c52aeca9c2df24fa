"""Two boxes on a floor, ray-cast exactly: a scene whose depth, labels and objects are known in closed form."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from panbench.data.base import SceneDataModule
from panbench.heads.base import LabelView, StepContext
from panbench.models.base import GaussianModule
from panbench.scene import Camera, Frame, LabelClass, LabelSpace, PanopticMap, Scene

FLOOR, CRATE, DRUM, RUG = 1, 2, 3, 4
LABELS = LabelSpace(
    "boxes",
    (
        LabelClass(FLOOR, "floor", thing=False),
        LabelClass(CRATE, "crate", thing=True),
        LabelClass(DRUM, "drum", thing=True),
        LabelClass(RUG, "rug", thing=False),
    ),
)
BOXES = (((-0.9, -0.3, 0.0), (-0.3, 0.3, 0.5)), ((0.3, -0.3, 0.0), (0.9, 0.3, 0.5)))
"""Lower and upper corner of object 1 (a crate) and object 2 (a drum), metres; 0.6 m apart."""
FRAMES = 10
TEST = (0, 5)


@dataclass(frozen=True)
class BoxFrames:
    """Views from a quarter circle around the boxes; in every other frame the masks' ids are swapped.

    Attributes:
        merged: frames whose mask joins the two boxes. blank: frames whose masks are all void.
        depth, masks: whether frames have them at all.
    """

    width: int = 48
    height: int = 36
    merged: frozenset[int] = frozenset()
    blank: frozenset[int] = frozenset()
    depth: bool = True
    masks: bool = True

    def __len__(self) -> int:
        return FRAMES

    def name(self, index: int) -> str:
        return str(index)

    def camera(self, index: int) -> Camera:
        angle = -math.pi / 2 + math.radians(70) * (index / (FRAMES - 1) - 0.5)
        eye = torch.tensor([2.0 * math.cos(angle), 2.0 * math.sin(angle), 1.5])
        pose = looking_at(eye, torch.tensor([0.0, 0.0, 0.2]))
        focal = 0.9 * self.width
        return Camera(self.width, self.height, focal, focal, self.width / 2, self.height / 2, pose)

    def load(self, index: int) -> Frame:
        camera = self.camera(index)
        depth, truth = cast(camera)
        color = paint(camera.unproject(depth), truth)
        return Frame(
            self.name(index), index, camera, color, depth if self.depth else None,
            self._masks(index, truth) if self.masks else None, truth,
        )  # fmt: skip

    def _masks(self, index: int, truth: PanopticMap) -> PanopticMap:
        if index in self.blank:
            return PanopticMap(torch.zeros_like(truth.semantic), torch.zeros_like(truth.instance))
        ids = torch.tensor([0, 3, 8] if index % 2 else [0, 8, 3], dtype=torch.int32)
        if index in self.merged:
            ids = torch.tensor([0, 5, 5], dtype=torch.int32)
        return PanopticMap(truth.semantic, ids[truth.instance.long()])


def looking_at(eye: Tensor, target: Tensor) -> Tensor:
    """World-to-camera pose [4, 4] of a camera at ``eye`` that looks at ``target``, world z up."""
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = torch.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ eye
    return pose


def cast(camera: Camera) -> tuple[Tensor, PanopticMap]:
    """Exact z-depth [H, W] and labels of the floor z = 0 and the boxes (slab method)."""
    origin = camera.position
    rays = camera.rays() @ camera.rotation  # z-depth is the ray parameter
    nearest = torch.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], torch.inf)
    label = torch.where(nearest.isfinite(), 0, -1)
    for number, (low, high) in enumerate(BOXES, start=1):
        first = (torch.tensor(low) - origin) / rays
        second = (torch.tensor(high) - origin) / rays
        enter = torch.minimum(first, second).amax(-1)
        leave = torch.maximum(first, second).amin(-1)
        hit = (enter < leave) & (enter > 0) & (enter < nearest)
        nearest = torch.where(hit, enter, nearest)
        label = torch.where(hit, number, label)
    depth = torch.where(nearest < 8.0, nearest, 0.0)
    semantic = torch.tensor([FLOOR, CRATE, DRUM, 0], dtype=torch.int32)[label]
    semantic[depth == 0] = 0
    instance = label.clamp_min(0).to(torch.int32)
    return depth, PanopticMap(semantic, instance)


def paint(points: Tensor, truth: PanopticMap) -> Tensor:
    """uint8 colours [H, W, 3]: one hue for each thing, with a soft pattern in world coordinates."""
    base = torch.tensor([[120.0, 120, 120], [190, 70, 50], [50, 80, 180]])[truth.instance.long()]
    wave = 25 * torch.sin(9 * points).sum(-1, keepdim=True) / 3
    return (base + wave).clamp(0, 255).to(torch.uint8)


def box_scene(frames: BoxFrames | None = None) -> Scene:
    """The scene of some frames; every fifth is a test frame."""
    train = tuple(i for i in range(FRAMES) if i not in TEST)
    return Scene("boxes", "boxes_00", True, frames or BoxFrames(), train, TEST, LABELS, "masks", "data")


class BoxData(SceneDataModule):
    """The scene for a trainer."""

    def __init__(self, frames: BoxFrames | None = None) -> None:
        super().__init__(order_seed=0)
        self.frames = frames

    def open_scene(self) -> Scene:
        return box_scene(self.frames)


def make_trainer(steps: int, **kwargs: Any) -> L.Trainer:
    """A silent trainer on the CPU for a number of optimiser steps."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(settings | kwargs))


def fitted(model: GaussianModule, steps: int, data: SceneDataModule | None = None, seed: int = 0) -> GaussianModule:
    """The model after some steps on the boxes (or other data)."""
    L.seed_everything(seed, verbose=False)
    make_trainer(steps).fit(model, datamodule=data or BoxData())
    return model


def label_view(model: GaussianModule, frame: Frame) -> LabelView:
    """What the model's head gets to see of a training view."""
    view = model.render(frame.camera, targets=model.head.targets(frame))
    return LabelView(view.labels, view.alpha.detach(), view.depth.detach(), view.sums)


def context(model: GaussianModule, neighbor: Frame | None = None, step: int = 0) -> StepContext:
    """What a training step would offer the head."""
    return StepContext(step, lambda: neighbor, model.splat)


def with_masks(frame: Frame, masks: PanopticMap | None) -> Frame:
    """The frame with other masks."""
    return replace(frame, masks=masks)
