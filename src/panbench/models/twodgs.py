"""2D Gaussian Splatting: discs that rays hit exactly, pulled together along the ray and aligned with their depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panbench import ops
from panbench.errors import UserError
from panbench.heads.base import PanopticHead
from panbench.losses.geometric import distortion_loss
from panbench.models.base import GaussianModule, View, expected
from panbench.scene import Camera, Frame


class TwoDGS(GaussianModule):
    """Huang et al. 2024: ray–disc intersection, depth distortion, normal consistency.

    Started from RGB-D points with their normals, where the original starts from sparse points with random ones (ours).
    """

    kind = "disc"

    def __init__(
        self,
        head: PanopticHead,
        near: float = 0.2,
        distortion_weight: float = 10.0,
        distortion_start: int = 3000,
        distortion_far: float = 100.0,
        consistency_weight: float = 0.05,
        consistency_start: int = 7000,
        depth_ratio: float = 0.0,
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        near: centres and hits in front of it are not drawn, metres; also the near end of the distortion's scale.
        distortion_weight: of the mean distortion (``losses.geometric.distortion_loss``); 0: none. Published: 1000 for
            single objects, 100 and 10 for larger scenes, of which a room takes the last (our choice).
        distortion_start: step at which it sets in. Published: 3000 of 30000.
        distortion_far: far end of its scale, metres.
        consistency_weight: of 1 − cosine between blended normals and those of the rendered depth; the blended ones are
            not re-normalised, so that open pixels are pulled less.
        consistency_start: step at which that sets in. Published: 7000 of 30000.
        depth_ratio: r of the depth that this looks at, (1 − r) expected + r median. Published: 0 for large scenes, 1
            for single objects.
        settings: of every base model; see GaussianModule.
        """
        super().__init__(head, near=near, **settings)
        if not 0 < near < distortion_far:
            raise UserError(f"model: near {near} must be above 0 and below distortion_far {distortion_far}")
        if not 0 <= depth_ratio <= 1:
            raise UserError(f"model: depth_ratio {depth_ratio} must be between 0 and 1")
        self.distortion_weight, self.distortion_start = distortion_weight, distortion_start
        self.distortion_far = distortion_far
        self.consistency_weight, self.consistency_start = consistency_weight, consistency_start
        self.depth_ratio = depth_ratio

    @property
    def distorts(self) -> bool:
        return self.training and self.distortion_weight > 0 and self.global_step >= self.distortion_start

    def depth_map(self, camera: Camera, blended: ops.Blended, extra: Tensor) -> Tensor:
        return torch.lerp(expected(blended.depth, blended.alpha), blended.median, self.depth_ratio)

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        out = super().regularisers(view, frame)
        if view.distortion is not None:
            out["distortion"] = self.distortion_weight * distortion_loss(
                view.distortion, self.near, self.distortion_far
            )
        if self.consistency_weight > 0 and self.global_step >= self.consistency_start:
            rendered = ops.depth_normals(view.depth, frame.camera)
            out["consistency"] = self.consistency_weight * ops.normal_loss(view.normal, rendered)
        return out
