"""LI-GS on RGB-D: discs whose depth and normals are supervised by the measured points."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from panbench.heads.base import PanopticHead
from panbench.losses.geometric import depth_loss
from panbench.models.base import GaussianModule, View
from panbench.ops import depth_normals, normal_loss
from panbench.scene import Frame


class LiGS(GaussianModule):
    """Jiang et al. 2024: 2DGS discs held to the surface by depth and normal terms.

    The point cloud is the fused RGB-D frames, as ScanNet has no LiDAR. The mixture-model term and the surface-aware
    density control of LI-GS are not in this version.
    """

    kind = "disc"

    def __init__(
        self,
        head: PanopticHead,
        near: float = 0.1,
        depth_weight: float = 0.2,
        normal_weight: float = 0.05,
        consistency_weight: float = 0.05,
        consistency_start: int = 1000,
        max_depth: float = 6.0,
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        near: as in the base class; a little farther, as discs close to the camera fill the view.
        depth_weight: of the mean difference to the measured depth, metres; less for far pixels.
        normal_weight: of 1 − cosine between blended normals and those of the measured depth.
        consistency_weight: of 1 − cosine between blended normals and those of the rendered depth.
        consistency_start: step at which that term sets in, when the rendered depth is smooth.
        max_depth: measured depth from here on is not supervised, metres.
        settings: of every base model; see GaussianModule.
        """
        super().__init__(head, near=near, **settings)
        self.depth_weight, self.normal_weight, self.max_depth = depth_weight, normal_weight, max_depth
        self.consistency_weight, self.consistency_start = consistency_weight, consistency_start

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if frame.depth is not None:
            out["depth"] = self.depth_weight * depth_loss(view.depth, frame.depth, view.alpha, self.max_depth)
            # Differences between points three pixels to either side drown less in the sensor's depth noise.
            measured = depth_normals(frame.depth, frame.camera, step=3)
            out["normal"] = self.normal_weight * normal_loss(view.normal, measured)
        if self.global_step >= self.consistency_start:
            rendered = depth_normals(view.depth, frame.camera)
            out["consistency"] = self.consistency_weight * normal_loss(view.normal, rendered)
        return out
