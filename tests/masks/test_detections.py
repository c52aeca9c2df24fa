"""Phrases of captions, boxes and compositing: by hand and by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from panbench.masks.detections import (
    CLS,
    DOT,
    SEP,
    Caption,
    Detections,
    box_iou,
    captions,
    composite,
    read_boxes,
    without_doubles,
    without_huge,
)
from panbench.scene import LabelSpace

LABELS = LabelSpace.from_dict(
    {
        "classes": [
            {"id": 1, "name": "floor", "thing": False},
            {"id": 2, "name": "chair", "thing": True, "prompts": ["chair", "Arm chair."]},
            {"id": 3, "name": "bin", "thing": True, "prompts": ["trash can"]},
        ]
    },
    "three",
)
WORDS = {1: "floor", 2: "chair", 3: "arm", 4: "trash", 5: "can"}
# floor. chair. arm chair. trash can.
TOKENS = [CLS, 1, DOT, 2, DOT, 3, 2, DOT, 4, 5, DOT, SEP]
CAPTION = Caption("floor. chair. arm chair. trash can.", ("floor", "chair", "arm chair", "trash can"), (1, 2, 2, 3))


def decode(tokens: Sequence[int]) -> str:
    return " ".join(WORDS[t] for t in tokens)


def read(probabilities: dict[int, float], strict: bool = False, text: float = 0.25) -> list[int]:
    """Class of one box with these token probabilities; [] if it is none."""
    row = np.zeros((1, len(TOKENS)))
    for token, value in probabilities.items():
        row[0, token] = value
    boxes = np.array([[0.5, 0.5, 0.2, 0.4]])
    found = read_boxes(row, boxes, TOKENS, CAPTION, decode, box_threshold=0.2, text_threshold=text, strict=strict)
    if len(found.classes):
        np.testing.assert_allclose(found.boxes[0], [0.4, 0.3, 0.6, 0.7])
        assert found.scores[0] == max(probabilities.values())
    return found.classes.tolist()


def test_prompts_become_captions_and_long_lists_several() -> None:
    def words(text: str) -> int:
        return 2 + len(text.replace(".", " .").split())

    (whole,) = captions(LABELS, words)
    assert whole == CAPTION
    parts = captions(LABELS, words, limit=7)
    assert [p.text for p in parts] == ["floor. chair.", "arm chair.", "trash can."]
    assert [p.classes for p in parts] == [(1, 2), (2,), (3,)]
    with pytest.raises(ValueError, match="longer than 4"):
        captions(LABELS, words, limit=4)


def test_a_prompt_of_two_classes_is_refused() -> None:
    rows = [{"id": 1, "name": "bin", "thing": True}, {"id": 2, "name": "box", "thing": True, "prompts": ["Bin"]}]
    with pytest.raises(ValueError, match="two classes"):
        captions(LabelSpace.from_dict({"classes": rows}, "x"), len)


@pytest.mark.parametrize(
    ("probabilities", "loose", "strict"),
    [
        ({3: 0.9}, [2], [2]),  # chair
        ({8: 0.5, 9: 0.4}, [3], [3]),  # trash can
        ({8: 0.5, 9: 0.2}, [3], []),  # "trash", a part of it
        ({1: 0.9, 3: 0.8, 8: 0.7}, [1], [1]),  # three things at once: the best token's segment
        ({6: 0.5, 5: 0.3}, [2], [2]),  # arm chair
        ({10: 0.9, 8: 0.3, 9: 0.3}, [3], [3]),  # the dot after trash can
        ({0: 0.9}, [], []),  # [CLS]
        ({11: 0.9, 8: 0.3}, [], []),  # [SEP]: no segment between the last dot and it
        ({3: 0.1}, [], []),  # under the threshold
        ({10: 0.9}, [], []),  # a dot whose segment says nothing
    ],
)
def test_classes_of_boxes(probabilities: dict[int, float], loose: list[int], strict: list[int]) -> None:
    assert read(probabilities) == loose
    assert read(probabilities, strict=True) == strict


def test_boxes_of_the_whole_picture_go() -> None:
    boxes = np.array([[0, 0, 0.95, 0.95], [0, 0, 0.95, 0.5], [0.2, 0.2, 0.4, 0.4]])
    found = without_huge(Detections(boxes, np.array([0.9, 0.8, 0.7]), np.array([1, 1, 2])), 0.89)
    assert found.scores.tolist() == [0.8, 0.7]


def test_iou_of_boxes() -> None:
    assert box_iou(np.array([0, 0, 2, 2.0]), np.array([1, 1, 3, 3.0])) == pytest.approx(1 / 7)
    assert box_iou(np.array([0, 0, 1, 1.0]), np.array([2, 2, 3, 3.0])) == 0
    assert box_iou(np.zeros(4), np.zeros(4)) == 0


def test_suppression_leaves_no_pair_and_loses_no_one_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corner = rng.random((30, 2)) * 0.5
        boxes = np.concatenate([corner, corner + 0.1 + 0.4 * rng.random((30, 2))], axis=1)
        found = Detections(boxes, rng.random(30), rng.integers(1, 3, 30))
        kept = without_doubles(found, 0.5)
        left = set(map(tuple, kept.boxes.tolist()))

        def alike(i: int, j: int, of: Detections = found) -> bool:
            return of.classes[i] == of.classes[j] and box_iou(of.boxes[i], of.boxes[j]) > 0.5

        for i in range(30):
            better = [j for j in range(30) if found.scores[j] > found.scores[i] and alike(i, j)]
            if tuple(boxes[i].tolist()) in left:
                assert not any(tuple(boxes[j].tolist()) in left for j in better)
            else:
                assert any(tuple(boxes[j].tolist()) in left for j in better)


def test_the_best_mask_of_a_pixel_wins() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        masks = rng.random((6, 5, 7)) < 0.4
        scores, classes = rng.permutation(6) / 6 + 0.1, rng.integers(1, 4, 6)
        made = composite(masks, scores, classes, LABELS)
        assert made.score is not None
        owners = np.full((5, 7), -1)
        for y in range(5):
            for x in range(7):
                over = [k for k in range(6) if masks[k, y, x]]
                if not over:
                    assert (made.semantic[y, x], made.instance[y, x], made.score[y, x]) == (0, 0, 0)
                    continue
                best = max(over, key=lambda k: scores[k])
                owners[y, x] = best
                assert made.semantic[y, x] == classes[best]
                assert abs(int(made.score[y, x]) - 255 * min(1, scores[best])) < 0.51
                assert (made.instance[y, x] > 0) == (classes[best] > 1)
        # Two things have two numbers, and numbers have no gaps.
        things = [k for k in range(6) if classes[k] > 1 and (owners == k).any()]
        numbers = [np.unique(made.instance[owners == k]).tolist() for k in things]
        assert sorted(numbers) == [[k + 1] for k in range(len(things))]


def test_no_masks_at_all() -> None:
    made = composite(np.zeros((0, 2, 3), bool), np.zeros(0), np.zeros(0, np.int64), LABELS)
    assert made.semantic.tolist() == [[0] * 3] * 2
