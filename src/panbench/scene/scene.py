"""A scene: its frames, its split, its label space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from panbench.scene.camera import Camera
from panbench.scene.frame import Frame
from panbench.scene.labels import LabelSpace
from panbench.scene.points import Points


class FrameSource(Protocol):
    """Decodes (and may cache) the frames of a scene by their index."""

    def camera(self, index: int) -> Camera: ...
    def name(self, index: int) -> str: ...
    def load(self, index: int) -> Frame: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything a method may know of a scene.

    Attributes:
        dataset: "scannet", "scannetpp", …
        name: "scene0628_02".
        synthetic: True for rooms that were rendered; stated in every result.
        source: frames by index.
        train, test: disjoint indices into ``source``.
        labels: the label space of masks, truth and predictions.
        mask_hash: sha256 over the pseudo-mask files that training uses, or "" without masks.
        data_hash: sha256 over the names and sizes of the scene's files.
        point_cloud: a scan of the scene, where Gaussians start instead of at the frames' depth; None without one.
    """

    dataset: str
    name: str
    synthetic: bool
    source: FrameSource
    train: Sequence[int]
    test: Sequence[int]
    labels: LabelSpace
    mask_hash: str = ""
    data_hash: str = ""
    point_cloud: Points | None = None

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Decode frames one after another."""
        for index in indices:
            yield self.source.load(index)

    def camera_positions(self, indices: Sequence[int]) -> Tensor:
        """Camera centres [F, 3], metres."""
        return torch.stack([self.source.camera(i).position for i in indices])

    def extent(self) -> float:
        """1.1 × the largest distance of a training camera from their mean, metres, at least 1 (the scale of 3DGS)."""
        centres = self.camera_positions(self.train)
        spread = (centres - centres.mean(0)).norm(dim=-1).max().item()
        return max(1.1 * spread, 1.0)
