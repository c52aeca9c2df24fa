"""The operators: project, bin, blend, attend, mask_losses, ssim, spherical_harmonics; one signature, several back ends.

Nothing is compiled on import: the first call decides (:mod:`panbench.ops.backend`).
"""

from panbench.ops.attention import attend
from panbench.ops.mask_loss import mask_losses
from panbench.ops.project import Kind, Projected, project
from panbench.ops.rasterize import Bins, Blended, bin, blend
from panbench.ops.spherical_harmonics import spherical_harmonics
from panbench.ops.ssim import ssim

__all__ = [
    "Bins",
    "Blended",
    "Kind",
    "Projected",
    "attend",
    "bin",
    "blend",
    "mask_losses",
    "project",
    "spherical_harmonics",
    "ssim",
]
