"""Errors of rendered depth maps (Eigen et al. 2014), pooled over the pixels of all views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DELTA = 0.05


class DepthErrors(NamedTuple):
    """Errors over the pixels where both depths are known; nan without such a pixel.

    Attributes:
        l1: mean |d − d*|, cm.
        rmse: root of the mean of (d − d*)², cm.
        delta: share of pixels with |d − d*| ≤ 5 % of d*, per cent.
        known: share of the pixels with a d* that have a d, per cent.
    """

    l1: float
    rmse: float
    delta: float
    known: float


def depth_errors(views: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> DepthErrors:
    """Compare depth maps.

    Args:
        views: (d, d*) of each view, both [H, W], metres, 0 = not known.
    """
    absolute = squared = 0.0
    close = both = true = 0
    for depth, truth in views:
        there = truth > 0
        true += int(there.sum())
        there &= depth > 0
        both += int(there.sum())
        d, t = depth[there].astype(np.float64), truth[there].astype(np.float64)
        error = np.abs(d - t)
        absolute += float(error.sum())
        squared += float(np.square(error).sum())
        close += int((error <= _DELTA * t).sum())
    if not both:
        return DepthErrors(np.nan, np.nan, np.nan, 0.0 if true else np.nan)
    return DepthErrors(100 * absolute / both, 100 * (squared / both) ** 0.5, 100 * close / both, 100 * both / true)
