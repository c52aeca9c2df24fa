"""LI-GS on RGB-D: discs whose depth and normals are supervised by the measured points."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from panbench import ops
from panbench.heads.base import PanopticHead
from panbench.models.base import View
from panbench.models.twodgs import TwoDGS
from panbench.scene import Frame


class LiGS(TwoDGS):
    """Jiang et al. 2024: 2DGS discs held to the surface by depth and normal terms.

    The point cloud is the fused RGB-D frames, as ScanNet has no LiDAR. The mixture-model term and the surface-aware
    density control of LI-GS are not in this version.
    """

    def __init__(
        self,
        head: PanopticHead,
        near: float = 0.1,
        depth_weight: float = 0.2,
        normal_weight: float = 0.05,
        consistency_start: int = 1000,
        distortion_weight: float = 0.0,
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        near: as in 2DGS; a little nearer, as rooms are small.
        depth_weight: of the mean difference to the measured depth, metres; less for far pixels.
        normal_weight: of 1 − cosine between blended normals and those of the measured depth.
        consistency_start: as in 2DGS; early, as the first points lie on the surfaces.
        distortion_weight: as in 2DGS; 0, as measured depth says more of where a surface is.
        settings: of 2DGS and of every base model; see TwoDGS and GaussianModule.
        """
        super().__init__(
            head,
            near=near,
            depth_weight=depth_weight,
            consistency_start=consistency_start,
            distortion_weight=distortion_weight,
            **settings,
        )
        self.normal_weight = normal_weight

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        out = super().regularisers(view, frame)
        if frame.depth is not None:
            # Differences between points three pixels to either side drown less in the sensor's depth noise.
            measured = ops.depth_normals(frame.depth, frame.camera, step=3)
            out["normal"] = self.normal_weight * ops.normal_loss(view.normal, measured)
        return out
