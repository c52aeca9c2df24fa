"""Pure-torch operators: the specification that the other back ends are tested against.

Generic in dtype (float32, float64) and device, differentiable by autograd, written to be read rather than to be fast.
Nothing here imports the compiled back ends.
"""

from __future__ import annotations

from panbench.ops.reference.attention import attend
from panbench.ops.reference.label_sums import LabelSums, LabelTargets, label_sums
from panbench.ops.reference.mixture import mixture_loss
from panbench.ops.reference.normals import depth_normals, normal_loss
from panbench.ops.reference.project import project
from panbench.ops.reference.rasterize import bin, blend
from panbench.ops.reference.spherical_harmonics import spherical_harmonics
from panbench.ops.reference.ssim import ssim
from panbench.ops.reference.warping import warp, warping_loss

__all__ = [
    "LabelSums",
    "LabelTargets",
    "attend",
    "bin",
    "blend",
    "depth_normals",
    "label_sums",
    "mixture_loss",
    "normal_loss",
    "project",
    "spherical_harmonics",
    "ssim",
    "warp",
    "warping_loss",
]
