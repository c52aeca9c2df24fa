"""Semantic quality: mIoU and mAcc as frame means or from one confusion matrix (specs/metrics.md 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panbench.metrics.functional.counts import Floats, Ints, PairCounts
from panbench.metrics.functional.panoptic_quality import ClassAverage, class_mean
from panbench.scene import LabelSpace

SemanticRule = Literal["frame-mean", "pooled"]


@dataclass(frozen=True, eq=False)
class SemanticStatistics:
    """Sums per evaluated class [C]; statistics of disjoint sets of frames add up with ``+``.

    Attributes:
        classes: class ids.
        frame_iou, frame_accuracy: sums over the frames whose truth has the class, in [0, 1] each.
        frames: number of those frames.
        shared, true_pixels, pred_pixels: pixels of intersection, truth and prediction over all frames. Only pixels
            whose true class is evaluated are counted, on both sides.
    """

    classes: Ints
    frame_iou: Floats
    frame_accuracy: Floats
    frames: Ints
    shared: Ints
    true_pixels: Ints
    pred_pixels: Ints

    def __add__(self, other: SemanticStatistics) -> SemanticStatistics:
        return SemanticStatistics(
            self.classes,
            self.frame_iou + other.frame_iou,
            self.frame_accuracy + other.frame_accuracy,
            self.frames + other.frames,
            self.shared + other.shared,
            self.true_pixels + other.true_pixels,
            self.pred_pixels + other.pred_pixels,
        )

    def iou(self, rule: SemanticRule) -> Floats:
        """IoU per class [C]: mean over the frames that show it (0 without one), or of the pooled pixels."""
        if rule == "frame-mean":
            return self.frame_iou / np.maximum(self.frames, 1)
        return self.shared / np.maximum(self.true_pixels + self.pred_pixels - self.shared, 1)

    def accuracy(self, rule: SemanticRule) -> Floats:
        """Recall per class [C], by the same two rules."""
        if rule == "frame-mean":
            return self.frame_accuracy / np.maximum(self.frames, 1)
        return self.shared / np.maximum(self.true_pixels, 1)

    def mean(self, rule: SemanticRule, average: ClassAverage) -> tuple[float, float]:
        """(mIoU, mAcc) in [0, 1].

        ``all`` divides by the number of evaluated classes. ``present`` leaves out of mIoU the classes that neither
        side shows, and out of mAcc those the truth does not show (a recall needs something to recall).
        """
        in_truth = self.true_pixels > 0
        shown = in_truth | (self.pred_pixels > 0)
        return class_mean(self.iou(rule), shown, average), class_mean(self.accuracy(rule), in_truth, average)


def semantic_statistics(counts: PairCounts, labels: LabelSpace) -> SemanticStatistics:
    """Sums from which both mIoUs follow. ``counts`` must still know its frames."""
    classes = np.asarray(labels.evaluated_ids, dtype=np.int64)
    column = np.full(labels.size, -1, dtype=np.int64)
    column[classes] = np.arange(len(classes))
    true_column = _column_of(counts.true_class, column)
    pred_column = _column_of(counts.pred_class, column)
    frame_ids, frame = np.unique(counts.frame, return_inverse=True)
    shape = (len(frame_ids), len(classes))

    def pixels(columns: Ints, chosen: np.ndarray) -> Ints:
        index = frame[chosen] * shape[1] + columns[chosen]
        return np.bincount(index, counts.pixels[chosen], shape[0] * shape[1]).reshape(shape).astype(np.int64)

    known = true_column >= 0
    true = pixels(true_column, known)
    pred = pixels(pred_column, known & (pred_column >= 0))
    both = pixels(true_column, known & (true_column == pred_column))
    seen = true > 0
    return SemanticStatistics(
        classes=classes,
        frame_iou=(both / np.maximum(true + pred - both, 1) * seen).sum(axis=0),
        frame_accuracy=(both / np.maximum(true, 1)).sum(axis=0),
        frames=seen.sum(axis=0),
        shared=both.sum(axis=0),
        true_pixels=true.sum(axis=0),
        pred_pixels=pred.sum(axis=0),
    )


def _column_of(classes: Ints, column: Ints) -> Ints:
    """Column of each class [R], −1 for classes outside the table or not evaluated."""
    inside = classes < len(column)
    return np.where(inside, column[np.where(inside, classes, 0)], -1)
