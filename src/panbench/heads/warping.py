"""The label warping term, in the norms and with the visibility rules that eq. 10 leaves open."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from panbench.ops import reference, warping_loss
from panbench.scene import Camera

Norm = Literal["l2", "l1"]


def warping_term(
    labels: Tensor,
    count: int,
    camera: Camera,
    depth: Tensor,
    other: Camera,
    other_labels: Tensor,
    other_depth: Tensor,
    *,
    tolerance: float,
    norm: Norm,
) -> Tensor:
    """Mean of ‖M(r_m) − M(r_{m→n})‖ over the pixels that land in the other view's image and on something it shows.

    Args:
        labels, count, camera, depth, other, other_labels, other_depth: as :func:`panbench.ops.warping_loss` takes them.
        tolerance: a point is hidden from the other view, and left out, if its depth differs from the surface there by
            more than this share; 0: no point is hidden.
        norm: "l2" in one pass of a kernel; "l1" in torch, which keeps a warped copy of the label image.
    """
    limit = tolerance or math.inf
    if norm == "l2":
        return warping_loss(labels, count, camera, depth, other, other_labels, other_depth, limit)
    warped, valid = reference.warp(camera, depth, other, other_labels, other_depth, limit)
    difference = (labels[..., :count] - warped)[valid]
    return difference.abs().sum(-1).mean() if len(difference) else labels.new_zeros(())
