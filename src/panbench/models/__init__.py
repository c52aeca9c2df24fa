"""Gaussian base models."""

from panbench.models.base import GaussianModule, View
from panbench.models.ligs import LiGS
from panbench.models.threedgs import ThreeDGS

__all__ = ["GaussianModule", "LiGS", "ThreeDGS", "View"]
