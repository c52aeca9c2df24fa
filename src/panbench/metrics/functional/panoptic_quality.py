"""Scene-level panoptic quality: PQ, SQ, RQ (specs/metrics.md 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panbench.metrics.functional.counts import Floats, Ints, PairCounts, group_sum
from panbench.metrics.functional.segments import SegmentRule, build_segments
from panbench.scene import VOID, LabelSpace

ClassAverage = Literal["all", "present"]


@dataclass(frozen=True, eq=False)
class PanopticStatistics:
    """Per evaluated class [C]: sum of the IoUs of matched pairs, true positives, false positives, false negatives."""

    classes: Ints
    iou_sum: Floats
    true_positives: Ints
    false_positives: Ints
    false_negatives: Ints

    @property
    def present(self) -> np.ndarray:
        """Classes that count under ``average="present"`` [C]: any segment matched or missed."""
        return (self.true_positives + self.false_positives + self.false_negatives) > 0

    @property
    def segmentation(self) -> Floats:
        """SQ per class [C] in [0, 1]; 0 without a match."""
        return self.iou_sum / np.maximum(self.true_positives, 1)

    @property
    def recognition(self) -> Floats:
        """RQ per class [C] in [0, 1]."""
        return self.true_positives / self._denominator

    @property
    def quality(self) -> Floats:
        """PQ per class [C] in [0, 1]."""
        return self.iou_sum / self._denominator

    @property
    def _denominator(self) -> Floats:
        total = self.true_positives + (self.false_positives + self.false_negatives) / 2
        return np.where(total > 0, total, 1.0)

    def mean(self, average: ClassAverage) -> tuple[float, float, float]:
        """(PQ, SQ, RQ) in [0, 1] as class means.

        ``all`` divides by the number of evaluated classes, so one that occurs nowhere counts 0; ``present`` leaves out
        classes without a true or a counted predicted segment (nan if none is left).
        """
        return (
            class_mean(self.quality, self.present, average),
            class_mean(self.segmentation, self.present, average),
            class_mean(self.recognition, self.present, average),
        )


def class_mean(values: Floats, present: np.ndarray, average: ClassAverage) -> float:
    """Mean of ``values`` [C] over all classes, or over the ``present`` ones; nan over nothing."""
    chosen = values if average == "all" else values[present]
    return float(chosen.mean()) if len(chosen) else float("nan")


def panoptic_statistics(
    counts: PairCounts, labels: LabelSpace, *, iou_threshold: float, segments: SegmentRule
) -> PanopticStatistics:
    """Match the segments of a whole scene.

    Every pair of one class with IoU > ``iou_threshold`` is a true positive. From 0.5 on that makes the matching
    one-to-one by itself (segments do not overlap); below, one segment may match several, as in the published code.
    Pixels where the truth is void are taken out of the union, and a prediction of which more than half lies there is
    no false positive. Void in the prediction excuses nothing.

    Args:
        counts: joint counts of the scene; frames are added up.
        iou_threshold: strict lower bound of the IoU of a match.
        segments: how pixels become segments.
    """
    scene = counts.scene()
    truth = build_segments(scene.true_class, scene.true_id, scene.pixels, labels, segments)
    guess = build_segments(scene.pred_class, scene.pred_id, scene.pixels, labels, segments)
    (t, p), both = group_sum([truth.of_row, guess.of_row], scene.pixels)
    true_area = np.bincount(t, both, len(truth.label)).astype(np.int64)
    pred_area = np.bincount(p, both, len(guess.label)).astype(np.int64)
    on_void = np.bincount(p[t == 0], both[t == 0], len(guess.label)).astype(np.int64)

    pair = (t > 0) & (p > 0) & (truth.label[t] == guess.label[p])
    t, p, both = t[pair], p[pair], both[pair]
    iou = both / (true_area[t] + pred_area[p] - both - on_void[p])
    match = iou > iou_threshold
    t, p, iou = t[match], p[match], iou[match]

    missed = np.ones(len(truth.label), dtype=bool)
    missed[t] = False
    spurious = np.ones(len(guess.label), dtype=bool)
    spurious[p] = False
    spurious &= 2 * on_void <= pred_area
    missed[VOID] = spurious[VOID] = False

    size = labels.size
    classes = np.asarray(labels.evaluated_ids, dtype=np.int64)
    return PanopticStatistics(
        classes=classes,
        iou_sum=np.bincount(truth.label[t], iou, size)[classes].astype(np.float64),
        true_positives=np.bincount(truth.label[t], minlength=size)[classes],
        false_positives=np.bincount(guess.label[spurious], minlength=size)[classes],
        false_negatives=np.bincount(truth.label[missed], minlength=size)[classes],
    )
