"""What must hold for any labels, and agreement with an implementation that is not ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from panbench.metrics.functional import concatenate, count_pairs
from panbench.protocol import Protocol, protocol_ids
from panbench.protocol.score import metrics_of
from panbench.scene import LabelClass, LabelSpace

LABELS = LabelSpace(
    "five",
    (
        LabelClass(1, "wall", thing=False),
        LabelClass(2, "floor", thing=False),
        LabelClass(3, "chair", thing=True),
        LabelClass(4, "table", thing=True),
        LabelClass(6, "other", thing=True, evaluate=False),
    ),
)
PROTOCOLS = [Protocol.load(name) for name in protocol_ids()]
SETTINGS = settings(max_examples=40, deadline=None)
Maps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@st.composite
def scenes(draw: st.DrawFn) -> list[Maps]:
    """Frames of arbitrary class and id maps, also contradictory ones."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    classes = hnp.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 3, 4, 6]))
    ids = hnp.arrays(np.int64, shape, elements=st.integers(0, 5))
    return draw(st.lists(st.tuples(classes, ids, classes, ids), min_size=1, max_size=3))


def scores(frames: list[Maps], protocol: Protocol) -> dict[str, float]:
    return metrics_of(concatenate([count_pairs(*f, frame=i) for i, f in enumerate(frames)]), LABELS, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.id)
@SETTINGS
@given(frames=scenes(), order=st.permutations(range(1, 6)))
def test_renaming_the_true_ids_changes_no_score(protocol: Protocol, frames: list[Maps], order: list[int]) -> None:
    rename = np.array([0, *order])
    renamed = [(tc, rename[ti], pc, pi) for tc, ti, pc, pi in frames]
    assert scores(renamed, protocol) == pytest.approx(scores(frames, protocol), nan_ok=True)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.id)
@SETTINGS
@given(frames=scenes(), order=st.permutations(range(1, 6)))
def test_renaming_the_predicted_ids_changes_no_score(protocol: Protocol, frames: list[Maps], order: list[int]) -> None:
    # Coverage settles equal overlaps by the smaller id, as published: only there may names matter.
    rename = np.array([0, *order])
    renamed = [(tc, ti, pc, rename[pi]) for tc, ti, pc, pi in frames]
    before, after = scores(frames, protocol), scores(renamed, protocol)
    for name in ("PQ", "SQ", "RQ", "mIoU", "mAcc"):
        assert after[name] == pytest.approx(before[name], nan_ok=True)
    if not has_tied_overlap(frames):
        assert after == pytest.approx(before, nan_ok=True)


def has_tied_overlap(frames: list[Maps]) -> bool:
    pairs: dict[int, dict[int, int]] = {}
    for _, true_id, _, pred_id in frames:
        for t, p in zip(true_id.flat, pred_id.flat, strict=True):
            if p:
                row = pairs.setdefault(int(t), {})
                row[int(p)] = row.get(int(p), 0) + 1
    return any(sorted(row.values())[-2:-1] == [max(row.values())] for row in pairs.values())


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.id)
@SETTINGS
@given(frames=scenes())
def test_the_order_of_frames_changes_no_score(protocol: Protocol, frames: list[Maps]) -> None:
    assert scores(frames[::-1], protocol) == pytest.approx(scores(frames, protocol), nan_ok=True)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.id)
@SETTINGS
@given(frames=scenes())
def test_scores_are_percentages_and_pq_is_at_most_sq_and_rq(protocol: Protocol, frames: list[Maps]) -> None:
    got = scores(frames, protocol)
    assert all(np.isnan(v) or -1e-9 <= v <= 100 + 1e-9 for v in got.values())
    # Below IoU 0.5 an object may match several times, so RQ can exceed what one-to-one would allow, but not 100.
    assert np.isnan(got["PQ"]) or (got["PQ"] <= got["SQ"] + 1e-9 and got["PQ"] <= got["RQ"] + 1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.id)
@SETTINGS
@given(frames=scenes())
def test_the_truth_as_prediction_scores_full_marks_on_what_is_present(protocol: Protocol, frames: list[Maps]) -> None:
    perfect = [(tc, ti, tc, ti) for tc, ti, _, _ in frames]
    got = scores(perfect, protocol.model_copy(update={"classes": "present"}))
    for name in ("PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov"):
        assert np.isnan(got[name]) or got[name] == pytest.approx(100)


def consistent(frames: list[Maps]) -> list[Maps]:
    """The same frames with one class an id, no ids on stuff and no void in the prediction."""
    class_of_id = np.array([0, 3, 4, 3, 4, 3])

    def clean(classes: np.ndarray, ids: np.ndarray, void: bool) -> tuple[np.ndarray, np.ndarray]:
        thing = np.isin(classes, (3, 4))
        classes = np.where(thing & (ids > 0), class_of_id[ids], classes)
        if not void:
            classes = np.where(np.isin(classes, (0, 6)), 1, classes)
        return classes, np.where(np.isin(classes, (3, 4)), ids, 0)

    return [(*clean(tc, ti, True), *clean(pc, pi, False)) for tc, ti, pc, pi in frames]


@SETTINGS
@given(frames=scenes())
def test_strict_panoptic_quality_is_torchmetrics_on_the_scene_as_one_sample(frames: list[Maps]) -> None:
    # torchmetrics also excuses truth under void predictions; without such pixels the rules are the same.
    frames = consistent(frames)
    got = scores(frames, Protocol.load("panoptic-strict@1"))
    metric = TorchmetricsPanopticQuality({3, 4}, {1, 2}, allow_unknown_preds_category=True, return_sq_and_rq=True)
    flat = [np.concatenate([f[k].reshape(-1) for f in frames]) for k in range(4)]
    pred, true = (torch.from_numpy(np.stack(flat[a:b], axis=-1))[None] for a, b in ((2, 4), (0, 2)))
    wanted = (100 * metric(pred, true)).tolist()
    assert [got["PQ"], got["SQ"], got["RQ"]] == pytest.approx(wanted, abs=1e-3, nan_ok=True)


def flat(*rows: list[int]) -> Maps:
    true_class, true_id, pred_class, pred_id = (np.array([row]) for row in rows)
    return true_class, true_id, pred_class, pred_id


def test_a_split_chair_costs_strict_quality_but_not_the_papers_recognition() -> None:
    frame = flat([3] * 10, [1] * 10, [3] * 10, [1] * 6 + [2] * 4)
    strict, paper = (scores([frame], Protocol.load(n)) for n in ("panoptic-strict@1", "scannet-paper@1"))
    assert strict["PQ"] == pytest.approx(100 * 0.6 / 1.5)
    assert strict["RQ"] == pytest.approx(100 / 1.5)
    # Both parts match; the other three classes occur nowhere and count 0.
    assert paper["RQ"] == pytest.approx(100 / 4)
    assert paper["PQ"] == pytest.approx(100 * (0.6 + 0.4) / 2 / 4)


def test_a_class_that_is_only_predicted_counts_in_strict_means_and_one_shown_nowhere_does_not() -> None:
    frame = flat([1] * 8, [0] * 8, [1] * 6 + [2] * 2, [0] * 8)
    strict = scores([frame], Protocol.load("panoptic-strict@1"))
    assert strict["mIoU"] == pytest.approx(100 * (6 / 8 + 0) / 2)
    assert strict["PQ"] == pytest.approx(100 * (6 / 8 + 0) / 2)


def test_a_prediction_mostly_on_void_is_no_false_positive() -> None:
    half = flat([0, 0, 1, 1], [0] * 4, [3, 3, 3, 3], [1] * 4)
    most = flat([0, 0, 0, 1], [0] * 4, [3, 3, 3, 3], [1] * 4)
    strict = Protocol.load("panoptic-strict@1")
    assert scores([half], strict)["RQ"] == 0
    wall_only = scores([most], strict)
    assert wall_only["PQ"] == 0  # the wall is missed either way
    # With the chair excused, only the wall is in the mean; shown by predicting it right elsewhere.
    assert scores([most, flat([1] * 9, [0] * 9, [1] * 9, [0] * 9)], strict)["PQ"] == pytest.approx(90)
    assert scores([half, flat([1] * 8, [0] * 8, [1] * 8, [0] * 8)], strict)["PQ"] == pytest.approx(80 / 2)


def test_ids_on_stuff_do_not_split_the_strict_wall() -> None:
    frame = flat([1] * 6, [0] * 6, [1] * 6, [0, 0, 0, 7, 7, 7])
    assert scores([frame], Protocol.load("panoptic-strict@1"))["PQ"] == 100
    assert scores([frame], Protocol.load("scannet-paper@1"))["SQ"] == pytest.approx(50 / 4)
