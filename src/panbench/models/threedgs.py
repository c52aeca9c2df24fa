"""3D Gaussian Splatting: ellipsoids, photometric supervision, adaptive density control."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from panbench.gaussians.init import PointCloud
from panbench.heads.base import PanopticHead
from panbench.losses.geometric import depth_loss
from panbench.models.base import GaussianModule, View
from panbench.scene import Frame


class ThreeDGS(GaussianModule):
    """Kerbl et al. 2023, started from RGB-D points: flattened along the measured normal."""

    kind = "ellipsoid"

    def __init__(
        self,
        head: PanopticHead,
        depth_weight: float = 0.0,
        max_depth: float = 6.0,
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        depth_weight: of the mean difference to the measured depth, metres; 0 as in 3DGS: photos only.
        max_depth: measured depth from here on is not supervised, metres.
        settings: of every base model; see GaussianModule.
        """
        super().__init__(head, **settings)
        self.depth_weight, self.max_depth = depth_weight, max_depth

    def first_log_scales(self, cloud: PointCloud) -> Tensor:
        scales = super().first_log_scales(cloud)
        scales[:, 2] += math.log(0.3)
        return scales

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        if self.depth_weight <= 0 or frame.depth is None:
            return {}
        return {"depth": self.depth_weight * depth_loss(view.depth, frame.depth, view.alpha, self.max_depth)}
