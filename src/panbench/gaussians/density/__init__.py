"""Density control: what adds, moves and drops Gaussians while a base model trains."""

from panbench.gaussians.density.adaptive import AdaptiveDensityControl
from panbench.gaussians.density.control import DensityChange, DensityContext, DensityControl
from panbench.gaussians.density.mcmc import MCMC
from panbench.gaussians.density.surface import SurfaceDensityControl
from panbench.gaussians.density.surfel import SurfelDensityControl

__all__ = [
    "MCMC",
    "AdaptiveDensityControl",
    "DensityChange",
    "DensityContext",
    "DensityControl",
    "SurfaceDensityControl",
    "SurfelDensityControl",
]
