"""What went wrong with each true instance: missed, split, merged, wrong class, poor outline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panbench.metrics.functional.counts import Ints, PairCounts, group_sum, majority
from panbench.metrics.functional.coverage import coverage_statistics
from panbench.scene import LabelSpace

Verdict = Literal["found", "wrong class", "missed", "split", "merged", "poor"]

_PART = 0.1  # a predicted id counts as a part of an instance from this share of its pixels on


@dataclass(frozen=True)
class InstanceDiagnosis:
    """One true thing instance over the whole scene.

    Attributes:
        true_id, true_class, pixels: the instance.
        best_id, best_class: prediction with the largest intersection and its majority class; 0 if there is none.
        iou: IoU with it, in [0, 1].
        parts: (predicted id, share of the instance) from 10 % on, largest first.
        merged_with: other true instances of which ``best_id`` covers more than half.
        frames: frames that show the instance.
        switches: frames in which another predicted id than ``best_id`` covers most of what is covered.
        verdict: ``found`` (IoU > 0.5 and right class), ``wrong class`` (IoU > 0.5), ``missed`` (under a quarter is
            covered by any id), ``split`` (parts, none of which covers half), ``merged`` (``merged_with`` is not
            empty), else ``poor``.
    """

    true_id: int
    true_class: int
    pixels: int
    best_id: int
    best_class: int
    iou: float
    parts: tuple[tuple[int, float], ...]
    merged_with: tuple[int, ...]
    frames: int
    switches: int
    verdict: Verdict


def diagnose(counts: PairCounts, labels: LabelSpace) -> list[InstanceDiagnosis]:
    """Diagnosis of every true thing instance, ids ascending. ``counts`` must still know its frames."""
    scene = counts.scene()
    coverage = coverage_statistics(scene, labels)
    pred_ids, pred_classes = majority(scene.pred_id, scene.pred_class, scene.pixels)
    class_of = dict(zip(pred_ids.tolist(), pred_classes.tolist(), strict=True))
    area_of = dict(zip(coverage.ids.tolist(), coverage.area.tolist(), strict=True))
    (t, p), both = group_sum([scene.true_id, scene.pred_id], scene.pixels)
    swallowed: dict[int, list[int]] = {}
    for true_id, pred_id, n in zip(t.tolist(), p.tolist(), both.tolist(), strict=True):
        if pred_id > 0 and true_id in area_of and 2 * n > area_of[true_id]:
            swallowed.setdefault(pred_id, []).append(true_id)
    (ft, ff, fp), in_frame = group_sum([counts.true_id, counts.frame, counts.pred_id], counts.pixels)

    out: list[InstanceDiagnosis] = []
    for i, true_id in enumerate(coverage.ids.tolist()):
        here = (t == true_id) & (p > 0)
        area, best, iou = int(coverage.area[i]), int(coverage.best[i]), float(coverage.iou[i])
        shares = both[here] / area
        order = np.argsort(-shares, kind="stable")
        parts = tuple((int(p[here][k]), float(shares[k])) for k in order if shares[k] >= _PART)
        merged = tuple(other for other in swallowed.get(best, []) if other != true_id)
        best_class = class_of[best] if best else 0
        verdict: Verdict
        if iou > 0.5:
            verdict = "found" if best_class == int(coverage.classes[i]) else "wrong class"
        elif shares.sum() < 0.25:
            verdict = "missed"
        elif shares.max() < 0.5:
            verdict = "split" if len(parts) > 1 else "poor"
        elif merged:
            verdict = "merged"
        else:
            verdict = "poor"
        rows = ft == true_id
        out.append(
            InstanceDiagnosis(
                true_id=true_id,
                true_class=int(coverage.classes[i]),
                pixels=area,
                best_id=best,
                best_class=best_class,
                iou=iou,
                parts=parts,
                merged_with=merged,
                frames=len(np.unique(ff[rows])),
                switches=_switches(ff[rows], fp[rows], in_frame[rows], best),
                verdict=verdict,
            )
        )
    return out


def _switches(frame: Ints, pred_id: Ints, pixels: Ints, best: int) -> int:
    """Frames whose most frequent predicted id > 0 is not ``best``."""
    covered = pred_id > 0
    _, leader = majority(frame[covered], pred_id[covered], pixels[covered])
    return int((leader != best).sum())
