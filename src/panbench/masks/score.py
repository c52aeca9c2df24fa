"""Pseudo-masks against the truth, view by view: how good they are, and what kinds of error they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from panbench.masks.associate import id_consistency
from panbench.metrics.functional import (
    InstanceDiagnosis,
    PairCounts,
    PanopticStatistics,
    concatenate,
    count_pairs,
    diagnose,
    panoptic_statistics,
    semantic_statistics,
)
from panbench.scene import VOID, LabelSpace

Ids = NDArray[np.integer]

VERDICTS = ("found", "wrong class", "missed", "split", "merged", "poor")
_ABSENT = 0.1  # a stuff class is absent from a view if less of it than this is labelled so,
_SHOWN = 0.01  # and at least this share of the picture shows it


@dataclass(frozen=True, eq=False)
class LabelledView:
    """A view's masks and truth.

    Attributes:
        name: of the frame.
        semantic, instance: class id and id of the instance within the view [H, W], 0 = void, none.
        true_semantic, true_instance: the truth [H, W]; ids are those of the scene.
    """

    name: str
    semantic: Ids
    instance: Ids
    true_semantic: Ids
    true_instance: Ids


@dataclass(frozen=True)
class ViewScore:
    """What one view's masks are worth. Scores are per cent; nan where there is nothing to score.

    Attributes:
        name: of the frame.
        PQ, SQ, RQ: of the view's segments (IoU > 0.5), means over the classes in it.
        mIoU: mean over the classes that the truth shows; void counts as wrong.
        void: share of the evaluated pixels that no mask claims.
        verdicts: true things by what became of them (:func:`panbench.metrics.functional.diagnose`, of this view).
        hallucinated: instances of which less than half lies on things.
        absent: names of stuff classes that cover 1 % of the picture, of which less than a tenth is labelled.
        border: mean distance of the borders of found things from the true ones, pixels.
    """

    name: str
    PQ: float
    SQ: float
    RQ: float
    mIoU: float
    void: float
    verdicts: Mapping[str, int]
    hallucinated: int
    absent: tuple[str, ...]
    border: float


@dataclass(frozen=True)
class MaskScore:
    """What a mask set is worth.

    Attributes:
        views: of each frame.
        metrics: over all views, per cent. ``PQ``, ``SQ``, ``RQ`` and the same with ``_things``: segments of single
            views, counted over all views per class, then averaged over classes. ``mIoU``, ``mAcc``: one confusion
            matrix. ``mIoU_per_view``: mean of the views'. ``recall``, ``precision``: of things at IoU > 0.5 in their
            class. ``void``. ``consistency``: see :func:`panbench.masks.associate.id_consistency`; near 100 only for
            associated sets. ``border``: pixels. ``hallucinated``: per view.
        verdicts: of all true things of all views.
        classes: of each evaluated class its name, PQ, SQ, RQ, IoU, and how often it was found, missed and made up.
        confused: (true class, class of the masks, share of its true pixels), the largest first.
    """

    views: tuple[ViewScore, ...]
    metrics: Mapping[str, float]
    verdicts: Mapping[str, int]
    classes: tuple[Mapping[str, Any], ...]
    confused: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; nan becomes None."""
        return _plain(asdict(self))


def score_masks(views: Iterable[LabelledView], labels: LabelSpace) -> MaskScore:
    """Score the masks of some views.

    Args:
        views: asked for one at a time.
        labels: label space of both sides. Pixels whose true class is not evaluated, or void, are left out.
    """
    scored: list[ViewScore] = []
    parts: list[PairCounts] = []
    segments: list[PanopticStatistics] = []
    pairs: list[tuple[Ids, Ids]] = []
    for index, view in enumerate(views):
        counts = count_pairs(view.true_semantic, view.true_instance, view.semantic, view.instance, index)
        statistics = panoptic_statistics(counts, labels, iou_threshold=0.5, segments="stuff-by-class")
        parts.append(counts)
        segments.append(statistics)
        thing = np.isin(view.true_semantic, sorted(set(labels.thing_ids) & set(labels.evaluated_ids)))
        # Runs of equal pairs: all that the consistency of ids depends on.
        packed, pixels = np.unique(
            np.stack([view.instance[thing], view.true_instance[thing]], axis=1), axis=0, return_counts=True
        )
        pairs.append((np.repeat(packed[:, 0], pixels), np.repeat(packed[:, 1], pixels)))
        scored.append(_score_view(view, counts, statistics, labels))
    total = concatenate(parts)
    added = _added(segments, labels)
    pooled = semantic_statistics(total, labels)
    iou, accuracy = pooled.mean("pooled", "present")
    things = np.isin(added.classes, labels.thing_ids)
    of_things = _chosen(added, things)
    verdicts = Counter[str]()
    for view in scored:
        verdicts.update(view.verdicts)
    tp, fp, fn = (
        int(v.sum()) for v in (of_things.true_positives, of_things.false_positives, of_things.false_negatives)
    )
    known = total.pixels[np.isin(total.true_class, labels.evaluated_ids)]
    claimed = total.pixels[np.isin(total.true_class, labels.evaluated_ids) & (total.pred_class != VOID)]
    metrics = dict(zip(("PQ", "SQ", "RQ"), added.mean("present"), strict=True))
    metrics |= dict(zip(("PQ_things", "SQ_things", "RQ_things"), of_things.mean("present"), strict=True))
    metrics |= {
        "mIoU": iou,
        "mAcc": accuracy,
        "mIoU_per_view": _mean([v.mIoU / 100 for v in scored]),
        "recall": tp / (tp + fn) if tp + fn else float("nan"),
        "precision": tp / (tp + fp) if tp + fp else float("nan"),
        "void": 1 - claimed.sum() / known.sum() if known.sum() else float("nan"),
        "consistency": id_consistency(pairs),
    }
    metrics = {name: 100 * float(value) for name, value in metrics.items()}
    metrics["border"] = _mean([v.border for v in scored])
    metrics["hallucinated"] = _mean([float(v.hallucinated) for v in scored])
    names = {c.id: c.name for c in labels.classes}
    rows = [
        {
            "name": names[c],
            "thing": c in labels.thing_ids,
            "PQ": 100 * float(added.quality[k]),
            "SQ": 100 * float(added.segmentation[k]),
            "RQ": 100 * float(added.recognition[k]),
            "IoU": 100 * float(pooled.iou("pooled")[k]),
            "found": int(added.true_positives[k]),
            "missed": int(added.false_negatives[k]),
            "made up": int(added.false_positives[k]),
        }
        for k, c in enumerate(added.classes.tolist())
        if added.present[k] or pooled.true_pixels[k]
    ]
    return MaskScore(
        tuple(scored), metrics, {v: verdicts[v] for v in VERDICTS}, tuple(rows), tuple(_confused(total, labels))
    )


def _score_view(
    view: LabelledView, counts: PairCounts, statistics: PanopticStatistics, labels: LabelSpace
) -> ViewScore:
    evaluated = np.isin(counts.true_class, labels.evaluated_ids)
    known = int(counts.pixels[evaluated].sum())
    void = int(counts.pixels[evaluated & (counts.pred_class == VOID)].sum())
    pq, sq, rq = statistics.mean("present")
    semantic = semantic_statistics(counts, labels)
    shown = semantic.true_pixels > 0
    diagnosed = diagnose(counts, labels)
    found = Counter(d.verdict for d in diagnosed)
    on_thing = np.isin(counts.true_class, sorted(set(labels.thing_ids) & set(labels.evaluated_ids)))
    size, inside = (
        np.bincount(counts.pred_id[chosen], counts.pixels[chosen], int(counts.pred_id.max(initial=0)) + 1)
        for chosen in (np.ones(len(counts), dtype=bool), on_thing)
    )
    names = {c.id: c.name for c in labels.classes}
    absent = tuple(
        names[c]
        for k, c in enumerate(semantic.classes.tolist())
        if c not in labels.thing_ids
        and semantic.true_pixels[k] >= _SHOWN * view.true_semantic.size
        and semantic.shared[k] < _ABSENT * semantic.true_pixels[k]
    )
    return ViewScore(
        name=view.name,
        PQ=100 * pq,
        SQ=100 * sq,
        RQ=100 * rq,
        mIoU=100 * _mean(semantic.iou("pooled")[shown].tolist()),
        void=100 * void / known if known else float("nan"),
        verdicts={v: found[v] for v in VERDICTS},
        hallucinated=int(((size > 0) & (2 * inside < size))[1:].sum()),
        absent=absent,
        border=_mean([_border_distance(view, d) for d in diagnosed if d.verdict == "found"]),
    )


def _border_distance(view: LabelledView, found: InstanceDiagnosis) -> float:
    """Mean distance [pixels] of a mask's border from the border of its object. Picture edges are no borders."""
    true, mask = view.true_instance == found.true_id, view.instance == found.best_id
    true_border, border = _border(true), _border(mask)
    if not border.any() or not true_border.any():
        return 0.0
    distance = np.asarray(distance_transform_edt(~true_border))
    return float(distance[border].mean())


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~np.asarray(binary_erosion(mask, border_value=1), dtype=bool)


def _added(parts: Sequence[PanopticStatistics], labels: LabelSpace) -> PanopticStatistics:
    """Statistics of all views: each view's segments are matched on their own."""
    classes = np.asarray(labels.evaluated_ids, dtype=np.int64)
    zero = np.zeros(len(classes), dtype=np.int64)
    return PanopticStatistics(
        classes,
        sum((p.iou_sum for p in parts), np.zeros(len(classes))),
        sum((p.true_positives for p in parts), zero),
        sum((p.false_positives for p in parts), zero),
        sum((p.false_negatives for p in parts), zero),
    )


def _chosen(of: PanopticStatistics, rows: NDArray[np.bool_]) -> PanopticStatistics:
    return PanopticStatistics(
        of.classes[rows],
        of.iou_sum[rows],
        of.true_positives[rows],
        of.false_positives[rows],
        of.false_negatives[rows],
    )


def _confused(counts: PairCounts, labels: LabelSpace, most: int = 10) -> list[tuple[str, str, float]]:
    """Pairs of classes by the share of the true class's pixels that are labelled as the other, void left out."""
    table = np.zeros((labels.size, labels.size), dtype=np.int64)
    known = np.isin(counts.true_class, labels.evaluated_ids)
    np.add.at(table, (counts.true_class[known], counts.pred_class[known]), counts.pixels[known])
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    np.fill_diagonal(share, 0)
    share[:, VOID] = 0
    names = {c.id: c.name for c in labels.classes}
    order = np.argsort(-share, axis=None, kind="stable")[:most]
    pairs = [divmod(int(k), labels.size) for k in order]
    return [(names[t], names[p], 100 * float(share[t, p])) for t, p in pairs if share[t, p] > 0]


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value
