"""The published evaluators' own numbers (``tests/golden``; how they were made is told at the top of the JSON)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panbench.metrics.functional import (
    PairCounts,
    build_segments,
    concatenate,
    count_pairs,
    coverage_statistics,
    panoptic_statistics,
    semantic_statistics,
)
from panbench.protocol import Protocol
from panbench.protocol.score import metrics_of, resize_labels
from panbench.scene import LabelClass, LabelSpace

FOLDER = Path(__file__).parents[1] / "golden"
CASES: dict[str, Any] = json.loads((FOLDER / "golden_metrics.json").read_text())["cases"]
PERCENT = 1e-6  # stated for the variants that compute in float64

# variant: (protocol that states its rules, IoU threshold)
VARIANTS = {
    "prpp_scannet": ("scannet-paper@1", 0.1),
    "prpp_scannetpp": ("scannetpp-paper@1", 0.3),
    "prpp_scannet_tau0.5": ("scannet-paper@1", 0.5),
}
EVERY = [(case, variant) for case in CASES for variant in VARIANTS]


@dataclass(frozen=True)
class Case:
    labels: LabelSpace
    maps: list[np.ndarray]  # true class, true id, pred class, pred id, each [F, H, W]
    counts: PairCounts


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "golden_metrics.npz") as file:
        return {name: file[name].astype(np.int64) for name in file.files}


def load(arrays: dict[str, np.ndarray], name: str) -> Case:
    table = CASES[name]["thing_of_label"]
    classes = tuple(
        LabelClass(int(k), f"class {k}", thing == 1, int(k) in CASES[name]["evaluated_labels"])
        for k, thing in sorted(table.items(), key=lambda item: int(item[0]))
        if int(k) > 0
    )
    maps = [arrays[f"{name}__{part}"] for part in ("gt_sem", "gt_inst", "pred_sem", "pred_inst")]
    frames = [count_pairs(*(m[f] for m in maps), frame=f) for f in range(len(maps[0]))]
    return Case(LabelSpace(name, classes), maps, concatenate(frames))


def as_float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def rules(variant: str) -> Protocol:
    name, threshold = VARIANTS[variant]
    return Protocol.load(name).model_copy(update={"iou_threshold": threshold})


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_headline_scores_are_the_published_evaluators(arrays: dict[str, np.ndarray], name: str, variant: str) -> None:
    case, expected = load(arrays, name), CASES[name]["expected"][variant]
    got = metrics_of(case.counts, case.labels, rules(variant))
    wanted = {key: as_float(expected[key]) for key in got}
    assert got == pytest.approx(wanted, abs=PERCENT, nan_ok=True)
    assert list(got) == ["PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov", "mWCov"]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_class_statistics_are_the_published_evaluators(arrays: dict[str, np.ndarray], name: str, variant: str) -> None:
    case, expected = load(arrays, name), CASES[name]["expected"][variant]["per_class"]
    protocol = rules(variant)
    limit = protocol.largest_true_id
    counts = case.counts if limit is None else case.counts.without_true_ids_above(limit)
    panoptic = panoptic_statistics(
        counts, case.labels, iou_threshold=protocol.iou_threshold, segments=protocol.segments
    )
    semantic = semantic_statistics(counts, case.labels)
    assert [str(c) for c in panoptic.classes] == sorted(expected, key=int)
    for i, c in enumerate(panoptic.classes.tolist()):
        row = expected[str(c)]
        positives = (panoptic.true_positives[i], panoptic.false_positives[i], panoptic.false_negatives[i])
        assert positives == (row["tp"], row["fp"], row["fn"])
        assert panoptic.iou_sum[i] == pytest.approx(row["iou_sum"], abs=1e-9)
        assert panoptic.present[i] == row["valid"]
        assert semantic.frames[i] == row["sem_frames"]
        assert semantic.frame_iou[i] == pytest.approx(row["sem_iou_sum"], abs=1e-9)
        assert semantic.frame_accuracy[i] == pytest.approx(row["sem_acc_sum"], abs=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", ["prpp_scannet", "prpp_scannetpp"])
def test_coverage_of_each_instance_is_the_published_evaluators(
    arrays: dict[str, np.ndarray], name: str, variant: str
) -> None:
    case, expected = load(arrays, name), CASES[name]["expected"][variant]["coverage"]
    limit = rules(variant).largest_true_id
    counts = case.counts if limit is None else case.counts.without_true_ids_above(limit)
    got = coverage_statistics(counts, case.labels)
    assert got.ids.tolist() == [row["gt_inst"] for row in expected]
    assert got.area.tolist() == [row["gt_area"] for row in expected]
    assert got.iou.tolist() == pytest.approx([row["iou"] for row in expected], abs=1e-12)


@pytest.mark.parametrize("side", ["gt", "pred"])
@pytest.mark.parametrize("name", CASES)
def test_voted_segments_partition_the_pixels_as_published(arrays: dict[str, np.ndarray], name: str, side: str) -> None:
    case = load(arrays, name)
    classes, ids = (m.reshape(-1) for m in (case.maps[:2] if side == "gt" else case.maps[2:]))
    got = build_segments(classes, ids, np.ones_like(ids), case.labels, "scene-vote").of_row
    wanted = arrays[f"{name}__{side}_segments"].reshape(-1)
    assert ((got == 0) == (wanted == 0)).all()
    pairs = np.unique(np.stack([got, wanted]), axis=1)
    assert pairs.shape[1] == len(np.unique(got)) == len(np.unique(wanted))


@pytest.mark.parametrize("name", CASES)
def test_pvlff_panoptic_quality_is_voted_segments_over_half(arrays: dict[str, np.ndarray], name: str) -> None:
    case, expected = load(arrays, name), CASES[name]["expected"]["pvlff"]
    statistics = panoptic_statistics(case.counts, case.labels, iou_threshold=0.5, segments="scene-vote")
    got = [100 * value for value in statistics.mean("present")]
    assert got == pytest.approx([as_float(expected[k]) for k in ("PQ", "SQ", "RQ")], abs=PERCENT, nan_ok=True)


def ids_of_several_classes(classes: np.ndarray, ids: np.ndarray, labels: LabelSpace) -> bool:
    things = np.isin(classes, sorted(set(labels.thing_ids) & set(labels.evaluated_ids))) & (ids > 0)
    pairs = np.unique(np.stack([ids[things], classes[things]]), axis=1)
    return pairs.shape[1] > len(np.unique(ids[things]))


def test_strict_panoptic_quality_is_cocos_where_an_id_has_one_class(arrays: dict[str, np.ndarray]) -> None:
    # COCO's format gives a segment one class; where pixels of one id differ, its input has to be cut up instead.
    compared = 0
    for name in CASES:
        case = load(arrays, name)
        true_class, true_id, pred_class, pred_id = case.maps
        if ids_of_several_classes(true_class, true_id, case.labels):
            continue
        if ids_of_several_classes(pred_class, pred_id, case.labels):
            continue
        got = metrics_of(case.counts, case.labels, Protocol.load("panoptic-strict@1"))
        wanted = [as_float(v) for v in CASES[name]["expected"]["panopticapi"]["scene_pq_sq_rq"]]
        assert [got["PQ"], got["SQ"], got["RQ"]] == pytest.approx(wanted, abs=PERCENT, nan_ok=True), name
        compared += 1
    assert compared >= 17


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["resize_from_full_resolution"]])
@pytest.mark.parametrize("part", ["gt_inst", "pred_sem", "pred_inst"])
def test_quarter_size_picks_the_pixels_that_pillow_picks(arrays: dict[str, np.ndarray], name: str, part: str) -> None:
    full, small = arrays[f"{name}__fullres_{part}"], arrays[f"{name}__{part}"]
    for frame, wanted in zip(full, small, strict=True):
        assert (resize_labels(frame, wanted.shape) == wanted).all()
