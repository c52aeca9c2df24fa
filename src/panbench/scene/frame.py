"""One posed RGB-D view with whatever labels are known for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from panbench.scene.camera import Camera
from panbench.scene.panoptic import PanopticMap


@dataclass(frozen=True, eq=False)
class Frame:
    """A view of a scene, all maps at the camera's size.

    Attributes:
        name: file stem, unique in the scene ("46").
        index: position in the scene's list of kept frames.
        camera: pose and intrinsics.
        color: uint8 [H, W, 3].
        depth: sensor z-depth, float32 [H, W], metres, 0 = no measurement; None without a sensor.
        masks: 2D pseudo-masks used as supervision (ids are per frame), or None.
        truth: ground-truth labels (ids are per scene), or None. Never used in training.
        true_depth: noise-free z-depth of a rendered scene, float32 [H, W], metres, 0 = nothing there; test frames only,
            else None. Never used in training.
    """

    name: str
    index: int
    camera: Camera
    color: Tensor
    depth: Tensor | None = None
    masks: PanopticMap | None = None
    truth: PanopticMap | None = None
    true_depth: Tensor | None = None

    def to(self, *args: object, **kwargs: object) -> Frame:
        """Same frame on another device."""
        return replace(
            self,
            camera=self.camera.to(*args, **kwargs),
            color=self.color.to(*args, **kwargs),  # type: ignore[call-overload]
            depth=None if self.depth is None else self.depth.to(*args, **kwargs),  # type: ignore[call-overload]
            masks=None if self.masks is None else self.masks.to(*args, **kwargs),
            truth=None if self.truth is None else self.truth.to(*args, **kwargs),
            true_depth=None if self.true_depth is None else self.true_depth.to(*args, **kwargs),  # type: ignore[call-overload]
        )
