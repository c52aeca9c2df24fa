"""Gaussian surfels: flat ellipsoids whose depth follows their plane, trained coarse to fine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from panbench import ops
from panbench.gaussians.rotation import rotation_matrices
from panbench.heads.base import PanopticHead
from panbench.losses.geometric import curvature_loss, opacity_loss
from panbench.models.base import GaussianModule, View, expected
from panbench.scene import Camera, Frame

FLAT = -20.0  # log of the third scale: 2 nm
GRAZING = 0.01  # a surfel is drawn where n · t < −GRAZING ‖t‖: its front, and not from the side
# Largest change of depth per pixel, relative to the depth: beyond it the linear depth of a footprint is no depth.
MAX_SLOPE = 0.05


class Surfels(GaussianModule):
    """Dai et al. 2024, "High-quality Surface Reconstruction using Gaussian Surfels".

    A surfel is an ellipsoid without thickness, seen from its front only. The depth of a hit is that of its plane,
    linearised about the centre. Their monocular normals are replaced by those of the depth sensor, and there is no term
    for a foreground mask, which rooms do not have (both ours).
    """

    kind = "ellipsoid"

    def __init__(
        self,
        head: PanopticHead,
        consistency_weight: float = 0.01,
        consistency_ramp: float = 0.1,
        prior_weight: float = 0.04,
        prior_fall: float = 0.02,
        curvature_weight: float = 0.005,
        opacity_weight: float = 0.01,
        pyramid: tuple[int, int] = (2000, 5000),
        **settings: Any,
    ) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        consistency_weight, consistency_ramp: a and b of the weight a + b · min(2 x, 1) of 1 − cosine between blended
            normals and those of the rendered depth, x the share of the run that is over. Published: 0.01 and 0.1.
        prior_weight, prior_fall: a and b of the weight a − b x of 1 − cosine between blended normals and measured ones.
            Published: 0.04 and 0.02.
        curvature_weight: of the Laplacian of the normals. Published: 0.005.
        opacity_weight: of the term that makes surfels opaque or transparent. Published: 0.01.
        pyramid: steps up to which photos are a fourth and half of their size. Published: 2000 and 5000 of 15000;
            (0, 0): always whole.
        settings: of every base model; see GaussianModule.
        """
        super().__init__(head, **settings)
        self.consistency_weight, self.consistency_ramp = consistency_weight, consistency_ramp
        self.prior_weight, self.prior_fall = prior_weight, prior_fall
        self.curvature_weight, self.opacity_weight = curvature_weight, opacity_weight
        self.pyramid = pyramid

    def first_log_scales(self, cloud: Any) -> Tensor:
        return super().first_log_scales(cloud)[:, :2].clone()

    def project(self, camera: Camera) -> ops.Projected:
        g = self.gaussians
        scales = torch.cat([g["scales"], g["scales"].new_full((len(g), 1), FLAT)], dim=1)
        projected = ops.project(g["means"], g["quats"], scales, g["opacities"], camera, kind=self.kind, near=self.near)
        with torch.no_grad():
            normal = rotation_matrices(g["quats"][projected.ids])[..., 2]
            view = g["means"][projected.ids] - camera.position
            front = ((normal * view).sum(-1) < -GRAZING * view.norm(dim=-1)).nonzero()[:, 0]
        if len(front) == len(projected.ids):
            return projected
        return ops.Projected(
            projected.ids[front],
            ops.take_rows(projected.geometry, front),
            ops.take_rows(projected.normals, front),
        )

    def extra_channels(self, camera: Camera, projected: ops.Projected) -> Tensor:
        """Depth of each surfel's plane [M, 3]: at the image centre, and its slopes per pixel.

        d(p) = z + S · (p − m) is affine in the pixel, so blending its three coefficients blends it.
        """
        center = ops.take_rows(self.gaussians["means"], projected.ids) @ camera.rotation.T + camera.translation
        slopes = plane_slopes(center, projected.normals, camera)
        middle = slopes.new_tensor([camera.width / 2, camera.height / 2])
        at_middle = projected.geometry[:, 6] + (slopes * (middle - projected.geometry[:, :2])).sum(1)
        return torch.cat([at_middle[:, None], slopes], dim=1)

    def depth_map(self, camera: Camera, blended: ops.Blended, extra: Tensor) -> Tensor:
        x = torch.arange(camera.width, device=extra.device) + (0.5 - camera.width / 2)
        y = torch.arange(camera.height, device=extra.device) + (0.5 - camera.height / 2)
        weighted = extra[..., 0] + x * extra[..., 1] + y[:, None] * extra[..., 2]
        # Far from the centres of what it shows, a linear depth may turn negative.
        return expected(weighted, blended.alpha).clamp_min(0)

    def photo_scale(self, step: int) -> int:
        return 4 if step < self.pyramid[0] else 2 if step < self.pyramid[1] else 1

    def regularisers(self, view: View, frame: Frame) -> dict[str, Tensor]:
        out = super().regularisers(view, frame)
        x = self.global_step / max(self.trainer.max_steps, 1)
        normal = functional.normalize(view.normal, dim=-1)
        rendered = ops.depth_normals(view.depth, frame.camera)
        consistency = self.consistency_weight + self.consistency_ramp * min(2 * x, 1.0)
        out["consistency"] = consistency * ops.normal_loss(normal, rendered)
        if frame.depth is not None:
            # Differences between points three pixels to either side drown less in the sensor's depth noise.
            measured = ops.depth_normals(frame.depth, frame.camera, step=3)
            out["prior"] = (self.prior_weight - self.prior_fall * x) * ops.normal_loss(normal, measured)
        out["curvature"] = self.curvature_weight * curvature_loss(normal)
        out["opacity"] = self.opacity_weight * opacity_loss(self.gaussians["opacities"].sigmoid())
        return out


def plane_slopes(center: Tensor, normals: Tensor, camera: Camera) -> Tensor:
    """∂d/∂(p_x, p_y) [M, 2] at the centre, metres per pixel, of the depth d of planes along the rays of a camera.

    d = (n · t) / (n · r) for the ray r = K⁻¹ (p, 1)ᵀ, so ∂d/∂p = −t_z² / (n · t) · (n_x / f_x, n_y / f_y), limited to
    5 % of the depth per pixel.

    Args:
        center: t, points of the planes in camera axes [M, 3], metres. normals: n [M, 3], camera axes, n · t ≠ 0.
    """
    z = center[:, 2:]
    focal = center.new_tensor([camera.fx, camera.fy])
    slopes = -z.square() / (normals * center).sum(1, keepdim=True) * normals[:, :2] / focal
    length = (slopes.square().sum(1, keepdim=True) + 1e-20).sqrt()
    return slopes * (MAX_SLOPE * z / length).clamp_max(1.0)
