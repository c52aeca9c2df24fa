"""LI-GS on RGB-D: discs whose depth and normals are supervised by the measured points."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from panbench.gaussians.densify import AdaptiveDensityControl
from panbench.heads.base import PanopticHead
from panbench.losses.geometric import depth_loss, depth_normals, normal_loss
from panbench.models.base import GaussianModule, View
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
        densify: AdaptiveDensityControl | None = None,
        voxel: float = 0.04,
        flat_voxel: float = 0.08,
        max_points: int = 300_000,
        sh_degree: int = 1,
        sh_every: int = 500,
        near: float = 0.1,
        initial_opacity: float = 0.7,
        initial_scale: float = 0.45,
        means_lr: float = 1.6e-4,
        scales_lr: float = 5e-3,
        quats_lr: float = 1e-3,
        opacities_lr: float = 0.05,
        colors_lr: float = 5e-3,
        lr_decay: float = 0.1,
        ssim_weight: float = 0.2,
        depth_weight: float = 0.2,
        normal_weight: float = 0.05,
        consistency_weight: float = 0.05,
        consistency_start: int = 1000,
        max_depth: float = 6.0,
        label_start: int = 0,
        label_every: int = 2,
        label_weight: float = 0.1,
        label_gradient: Literal["labels", "geometry"] = "geometry",
        neighbors: int = 4,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        densify: adaptive density control; null: the first Gaussians are all there will be, since points from depth
            already cover the surfaces.
        voxel: edge of the grid on which depth is averaged, metres; one Gaussian for each voxel.
        flat_voxel: edge of the grid used instead where the surface is flat, metres; 0: nowhere.
        max_points: largest number of first Gaussians; more make both grids coarser.
        sh_degree: highest degree of the spherical harmonics of colour.
        sh_every: steps between one degree and the next.
        near: z-depth of centres and of hits in front of which nothing is drawn, metres.
        initial_opacity: of the first Gaussians.
        initial_scale: their standard deviation, in distances to the neighbours.
        means_lr: learning rate of the centres in scene extents; falls to a hundredth over the run.
        scales_lr, quats_lr, opacities_lr: learning rates of log-scales, quaternions and opacity logits.
        colors_lr: learning rate of the constant colour; a twentieth of it for higher degrees.
        lr_decay: factor by which all but means_lr fall over the run.
        ssim_weight: λ of (1 − λ) L1 + λ (1 − SSIM).
        depth_weight: of the mean difference to the measured depth, metres; less for far pixels.
        normal_weight: of 1 − cosine between blended normals and those of the measured depth.
        consistency_weight: of 1 − cosine between blended normals and those of the rendered depth.
        consistency_start: step at which that term sets in, when the rendered depth is smooth.
        max_depth: measured depth from here on is not supervised, metres.
        label_start: step of the first labels.
        label_every: steps from one with labels to the next; 2 halves the time that label channels take.
        label_weight: factor on all terms of the head; 0.1 keeps the photo in charge of geometry.
        label_gradient: "geometry": labels move Gaussians too, since thin things are found by their labels; "labels":
            they do not.
        neighbors: number of nearest training frames among which label warping draws; 0: no label warping.
        """
        super().__init__(
            head,
            densify,
            voxel,
            flat_voxel,
            max_points,
            sh_degree,
            sh_every,
            near,
            initial_opacity,
            initial_scale,
            means_lr,
            scales_lr,
            quats_lr,
            opacities_lr,
            colors_lr,
            lr_decay,
            ssim_weight,
            label_start,
            label_every,
            label_weight,
            label_gradient,
            neighbors,
        )
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
