"""The operators: project, bin, blend, attend, spherical_harmonics, …; one signature, several back ends.

Nothing is compiled on import: the first call decides (:mod:`panbench.ops.backend`).
"""

from panbench.ops.attention import attend, attend_shares
from panbench.ops.label_sums import label_sums
from panbench.ops.mixture import mixture_loss
from panbench.ops.normals import depth_normals, normal_loss
from panbench.ops.project import Kind, Projected, project
from panbench.ops.rasterize import Bins, Blended, bin, blend
from panbench.ops.reference import LabelSums, LabelTargets
from panbench.ops.rows import take_rows
from panbench.ops.spherical_harmonics import spherical_harmonics
from panbench.ops.ssim import photometric_loss, ssim
from panbench.ops.warping import warping_loss

__all__ = [
    "Bins",
    "Blended",
    "Kind",
    "LabelSums",
    "LabelTargets",
    "Projected",
    "attend",
    "attend_shares",
    "bin",
    "blend",
    "depth_normals",
    "label_sums",
    "mixture_loss",
    "normal_loss",
    "photometric_loss",
    "project",
    "spherical_harmonics",
    "ssim",
    "take_rows",
    "warping_loss",
]
