"""Coverage of the true instances: mCov and mWCov (specs/metrics.md 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panbench.metrics.functional.counts import Floats, Ints, PairCounts, group_sum, majority
from panbench.scene import LabelSpace


@dataclass(frozen=True, eq=False)
class CoverageStatistics:
    """Per true thing instance [G], ids ascending.

    Attributes:
        ids, classes: instance id and its majority class.
        area: pixels in the scene.
        best: predicted id with the largest intersection (a tie goes to the smallest id), 0 if none overlaps.
        iou: IoU with that prediction in [0, 1].
    """

    ids: Ints
    classes: Ints
    area: Ints
    best: Ints
    iou: Floats

    def mean(self) -> tuple[float, float]:
        """(mCov, mWCov) in [0, 1]: plain and area-weighted means. Without instances nan and 0, as published."""
        if len(self.ids) == 0:
            return float("nan"), 0.0
        return float(self.iou.mean()), float((self.iou * self.area).sum() / self.area.sum())


def coverage_statistics(counts: PairCounts, labels: LabelSpace) -> CoverageStatistics:
    """Coverage of each instance by raw predicted ids > 0, whatever class was predicted.

    The instances are the true ids > 0 whose majority class over the scene is an evaluated thing class. Void stays in
    the area of a prediction, and one prediction may cover several instances.
    """
    scene = counts.scene()
    ids, classes = majority(scene.true_id, scene.true_class, scene.pixels)
    thing = np.isin(classes, sorted(set(labels.thing_ids) & set(labels.evaluated_ids))) & (ids > 0)
    ids, classes = ids[thing], classes[thing]
    (true_id, pred_id), both = group_sum([scene.true_id, scene.pred_id], scene.pixels)
    true_area = _sum_by(true_id, both, ids)

    inside = np.isin(true_id, ids) & (pred_id > 0)
    t, p, n = true_id[inside], pred_id[inside], both[inside]
    order = np.lexsort((p, -n, t))
    t, p, n = t[order], p[order], n[order]
    first = np.ones(len(t), dtype=bool)
    first[1:] = t[1:] != t[:-1]
    t, p, n = t[first], p[first], n[first]

    best = np.zeros(len(ids), dtype=np.int64)
    iou = np.zeros(len(ids))
    row = np.searchsorted(ids, t)
    best[row] = p
    pred_ids, position = np.unique(p, return_inverse=True)
    iou[row] = n / (_sum_by(pred_id, both, pred_ids)[position] + true_area[row] - n)
    return CoverageStatistics(ids, classes, true_area, best, iou)


def _sum_by(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """Sum of ``values`` over each of the ``wanted`` keys (ascending) [W]."""
    inside = np.isin(keys, wanted)
    return np.bincount(np.searchsorted(wanted, keys[inside]), values[inside], len(wanted)).astype(np.int64)
