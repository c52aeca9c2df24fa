"""Gaussian base models."""

from panbench.models.base import GaussianModule, View
from panbench.models.ligs import LiGS
from panbench.models.surfels import Surfels
from panbench.models.threedgs import ThreeDGS
from panbench.models.twodgs import TwoDGS

__all__ = ["GaussianModule", "LiGS", "Surfels", "ThreeDGS", "TwoDGS", "View"]
