"""3D Gaussian Splatting: ellipsoids with photometric supervision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from panbench import ops
from panbench.gaussians.init import PointCloud
from panbench.heads.base import PanopticHead
from panbench.models.base import GaussianModule
from panbench.scene import Camera

LOW_PASS = 0.3  # px², added to both variances of a projected Gaussian
# Smallest factor on an opacity: that of a Gaussian much smaller than a pixel.
MIN_COMPENSATION = 0.005


class ThreeDGS(GaussianModule):
    """Kerbl et al. 2023, started from RGB-D points: flattened along the measured normal (ours).

    With MCMC as its density control it is Kheradmand et al. 2024; with ``antialiased`` the 2D filter of Mip-Splatting
    (Yu et al. 2024).
    """

    kind = "ellipsoid"

    def __init__(self, head: PanopticHead, antialiased: bool = False, **settings: Any) -> None:
        """Args:
        head: what makes the Gaussians panoptic.
        antialiased: lower the opacity of a Gaussian by as much as the low-pass filter spreads it, so that views from
            farther away or at another size are as bright. Off, as in 3DGS.
        settings: of every base model; see GaussianModule.
        """
        super().__init__(head, **settings)
        self.antialiased = antialiased

    def first_log_scales(self, cloud: PointCloud) -> Tensor:
        scales = super().first_log_scales(cloud)
        scales[:, 2] += math.log(0.3)
        return scales

    def project(self, camera: Camera) -> ops.Projected:
        projected = super().project(camera)
        return projected._replace(geometry=compensated(projected.geometry)) if self.antialiased else projected


def compensated(geometry: Tensor) -> Tensor:
    """Geometry [M, 7] of ellipsoids with opacities times ρ = √max(det C₀ / det C, 0.005²), C = C₀ + 0.3 px² I.

    The integral over the screen of a filtered Gaussian is then that of the unfiltered one.
    """
    a, b, c = geometry[:, 2:5].unbind(1)
    # C is the inverse of the conic, so det C₀ / det C = 1 − ε (a + c) + ε² (a c − b²).
    ratio = 1 - LOW_PASS * (a + c) + LOW_PASS**2 * (a * c - b * b)
    opacity = geometry[:, 5] * ratio.clamp_min(MIN_COMPENSATION**2).sqrt()
    return torch.cat([geometry[:, :5], opacity[:, None], geometry[:, 6:]], dim=1)
