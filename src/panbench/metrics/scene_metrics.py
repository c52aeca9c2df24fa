"""Scene-level panoptic scores as :class:`torchmetrics.Metric`: one metric object is one scene.

They hold sums that may be added in any order and over processes (a frame must not be split over two processes), and
compute with the functions of :mod:`panbench.metrics.functional`. All values are percentages, float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from panbench.metrics.functional import (
    ClassAverage,
    PairCounts,
    SegmentRule,
    SemanticRule,
    SemanticStatistics,
    count_pairs,
    coverage_statistics,
    panoptic_statistics,
    semantic_statistics,
)
from panbench.metrics.functional.counts import COLUMNS
from panbench.scene import LabelSpace, PanopticMap


class _PairMetric(Metric):
    """Keeps the sparse joint counts of the scene; majority votes need them whole, so nothing is decided earlier."""

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, labels: LabelSpace, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, prediction: PanopticMap, truth: PanopticMap) -> None:
        """Add one frame. Maps are [H, W] of one size, ids are the same object in every frame of the scene."""
        assert isinstance(self.rows, list)
        self.rows.append(torch.from_numpy(_count(prediction, truth).rows).to(self.device))

    def counts(self) -> PairCounts:
        """The scene's joint counts so far."""
        parts = [self.rows] if isinstance(self.rows, Tensor) else self.rows
        if not parts:
            return PairCounts.from_rows(np.zeros((0, len(COLUMNS)), dtype=np.int64))
        return PairCounts.from_rows(torch.cat(parts).cpu().numpy())


class PanopticQuality(_PairMetric):
    """PQ, SQ and RQ of a scene; see :func:`panbench.metrics.functional.panoptic_statistics`.

    Args:
        labels: classes; only the evaluated ones count.
        iou_threshold: strict lower bound of the IoU of a match.
        segments: how pixels become segments.
        average: class mean over all evaluated classes or over the present ones.
    """

    higher_is_better = True

    def __init__(
        self,
        labels: LabelSpace,
        *,
        iou_threshold: float = 0.5,
        segments: SegmentRule = "stuff-by-class",
        average: ClassAverage = "present",
        **kwargs: Any,
    ) -> None:
        super().__init__(labels, **kwargs)
        self.iou_threshold = iou_threshold
        self.segments: SegmentRule = segments
        self.average: ClassAverage = average

    def compute(self) -> dict[str, Tensor]:
        """``{"PQ", "SQ", "RQ"}``."""
        statistics = panoptic_statistics(
            self.counts(), self.labels, iou_threshold=self.iou_threshold, segments=self.segments
        )
        return _percent(dict(zip(("PQ", "SQ", "RQ"), statistics.mean(self.average), strict=True)))


class Coverage(_PairMetric):
    """mCov and mWCov of a scene; see :func:`panbench.metrics.functional.coverage_statistics`."""

    higher_is_better = True

    def compute(self) -> dict[str, Tensor]:
        """``{"mCov", "mWCov"}``; mCov is nan in a scene without thing instances."""
        mean = coverage_statistics(self.counts(), self.labels).mean()
        return _percent(dict(zip(("mCov", "mWCov"), mean, strict=True)))


class SemanticQuality(Metric):
    """mIoU and mAcc of a scene, by the mean over frames (the paper's) or from one confusion matrix.

    Args:
        labels: classes; only the evaluated ones count.
        rule: ``frame-mean`` or ``pooled``.
        average: class mean over all evaluated classes or over the present ones.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    fractions: Tensor
    pixels: Tensor

    def __init__(
        self, labels: LabelSpace, *, rule: SemanticRule = "pooled", average: ClassAverage = "present", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.labels = labels
        self.rule: SemanticRule = rule
        self.average: ClassAverage = average
        count = len(labels.evaluated_ids)
        self.add_state("fractions", torch.zeros(2, count, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(4, count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: PanopticMap, truth: PanopticMap) -> None:
        """Add one whole frame. Maps are [H, W] of one size."""
        s = semantic_statistics(_count(prediction, truth), self.labels)
        self.fractions += torch.from_numpy(np.stack([s.frame_iou, s.frame_accuracy])).to(self.fractions)
        self.pixels += torch.from_numpy(np.stack([s.frames, s.shared, s.true_pixels, s.pred_pixels])).to(self.pixels)

    def compute(self) -> dict[str, Tensor]:
        """``{"mIoU", "mAcc"}``."""
        classes = np.asarray(self.labels.evaluated_ids, dtype=np.int64)
        statistics = SemanticStatistics(classes, *self.fractions.cpu().numpy(), *self.pixels.cpu().numpy())
        return _percent(dict(zip(("mIoU", "mAcc"), statistics.mean(self.rule, self.average), strict=True)))


def _count(prediction: PanopticMap, truth: PanopticMap) -> PairCounts:
    return count_pairs(
        truth.semantic.cpu().numpy(),
        truth.instance.cpu().numpy(),
        prediction.semantic.cpu().numpy(),
        prediction.instance.cpu().numpy(),
    )


def _percent(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(100.0 * value, dtype=torch.float64) for name, value in values.items()}
