"""Panoptic heads: interchangeable over every Gaussian base model."""

from panbench.heads.base import GaussianLabels, LabelView, NoHead, PanopticHead, StepContext
from panbench.heads.query import QueryHead

__all__ = ["GaussianLabels", "LabelView", "NoHead", "PanopticHead", "QueryHead", "StepContext"]
