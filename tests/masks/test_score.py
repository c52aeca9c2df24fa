"""Scores of mask sets: by hand, by brute force, and of the built-in room's presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from panbench.cli.main import run as main
from panbench.masks.score import LabelledView, score_masks
from panbench.scene import LabelSpace

LABELS = LabelSpace.from_dict(
    {
        "classes": [
            {"id": 1, "name": "wall", "thing": False},
            {"id": 2, "name": "chair", "thing": True},
            {"id": 3, "name": "table", "thing": True},
            {"id": 4, "name": "other", "thing": False, "evaluate": False},
        ]
    },
    "rooms",
)
Maps = tuple[NDArray[np.int64], NDArray[np.int64]]


def truth() -> Maps:
    """20 x 30 pixels of wall with two chairs of 8 x 8 and a table of 8 x 4; a row of "other" below."""
    semantic, instance = np.ones((20, 30), dtype=np.int64), np.zeros((20, 30), dtype=np.int64)
    for k, (left, width, category) in enumerate(((1, 8, 2), (11, 8, 2), (22, 4, 3)), start=1):
        semantic[4:12, left : left + width], instance[4:12, left : left + width] = category, k
    semantic[19] = 4
    return semantic, instance


def view(maps: Maps) -> LabelledView:
    return LabelledView("0", *maps, *truth())


def shuffled(maps: Maps) -> Maps:
    """The same masks with other numbers."""
    return maps[0], np.array([0, 7, 3, 5])[maps[1]]


def test_the_truth_is_perfect_whatever_the_numbers() -> None:
    score = score_masks([view(shuffled(truth()))], LABELS)
    for name in ("PQ", "SQ", "RQ", "PQ_things", "mIoU", "mAcc", "recall", "precision", "consistency"):
        assert score.metrics[name] == pytest.approx(100), name
    assert (score.metrics["void"], score.metrics["border"], score.metrics["hallucinated"]) == (0, 0, 0)
    assert score.verdicts == {"found": 3, "wrong class": 0, "missed": 0, "split": 0, "merged": 0, "poor": 0}
    assert score.confused == ()


def damaged(kind: str) -> Maps:
    semantic, instance = truth()
    first, second = instance == 1, instance == 2
    if kind == "missed":
        semantic[first], instance[first] = 1, 0
    elif kind == "wrong class":
        semantic[first] = 3
    elif kind == "split":
        # Strips of 3, 3 and 2 of 8 columns.
        instance[4:12, 4:7][first[4:12, 4:7]] = 8
        instance[4:12, 7:9][first[4:12, 7:9]] = 9
    elif kind == "merged":
        instance[second] = 1
    elif kind == "poor":
        semantic[4:9, 1:9], instance[4:9, 1:9] = 0, 0
    return semantic, instance


@pytest.mark.parametrize("kind", ["missed", "wrong class", "split", "merged", "poor"])
def test_each_kind_of_error_is_told(kind: str) -> None:
    score = score_masks([view(damaged(kind))], LABELS)
    expected = {"merged": {"merged": 2, "found": 1}}.get(kind, {kind: 1, "found": 2})
    assert {k: n for k, n in score.verdicts.items() if n} == expected


def test_missed_by_hand() -> None:
    score = score_masks([view(damaged("missed"))], LABELS)
    wall = 19 * 30 - 160
    # One of two chairs is found; wall takes the other's 64 pixels.
    assert score.metrics["PQ_things"] == pytest.approx(100 * (1 / 1.5 + 1) / 2)
    assert score.metrics["PQ"] == pytest.approx(100 * (1 / 1.5 + 1 + wall / (wall + 64)) / 3)
    assert score.metrics["recall"] == pytest.approx(100 * 2 / 3)
    assert score.metrics["precision"] == pytest.approx(100)
    assert score.metrics["mIoU"] == pytest.approx(100 * (0.5 + 1 + wall / (wall + 64)) / 3)
    assert score.confused == (("chair", "wall", 50.0),)


def test_void_absent_and_hallucinated() -> None:
    semantic, instance = truth()
    wall = semantic == 1
    semantic[wall] = 0
    semantic[14:18, 2:6], instance[14:18, 2:6] = 2, 9
    score = score_masks([view((semantic, instance))], LABELS)
    assert score.views[0].absent == ("wall",)
    assert score.views[0].hallucinated == 1
    assert score.metrics["void"] == pytest.approx(100 * (wall.sum() - 16) / (19 * 30))
    assert score.metrics["precision"] == pytest.approx(100 * 3 / 4)


def test_border_of_a_grown_mask() -> None:
    semantic, instance = truth()
    semantic[3:13, 10:20], instance[3:13, 10:20] = 2, 2  # one pixel more on every side
    score = score_masks([view((semantic, instance))], LABELS)
    # 36 border pixels one pixel out, of which the four corners are √2 away; two more objects are exact.
    assert score.metrics["border"] == pytest.approx((32 + 4 * 2**0.5) / 36 / 3)


def segments(maps: Maps) -> dict[tuple[int, int], NDArray[np.bool_]]:
    semantic, instance = maps
    things = np.isin(semantic, (2, 3))
    ids = np.where(things, instance, 0)
    keys = np.unique(np.stack([semantic.ravel(), ids.ravel()], axis=1), axis=0).tolist()
    return {(c, i): (semantic == c) & (ids == i) for c, i in keys if c in (1, 2, 3)}


def test_panoptic_quality_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        semantic, instance = truth()
        for _ in range(6):
            y, x = int(rng.integers(0, 16)), int(rng.integers(0, 26))
            category = int(rng.integers(0, 4))
            semantic[y : y + 4, x : x + 4] = category
            instance[y : y + 4, x : x + 4] = int(rng.integers(1, 6)) if category in (2, 3) else 0
        # An id has one class in real sets.
        instance = np.where(np.isin(semantic, (2, 3)), instance * 4 + semantic, 0)
        score = score_masks([view((semantic, instance))], LABELS)
        true, guess, counted = segments(truth()), segments((semantic, instance)), truth()[0] != 4
        qualities: list[float] = []
        for c in (1, 2, 3):
            ours, theirs = ([m & counted for (k, _), m in s.items() if k == c] for s in (true, guess))
            ious = [[(a & b).sum() / (a | b).sum() for b in theirs] for a in ours]
            matched = [v for row in ious for v in row if v > 0.5]
            # A mask that lies mostly where nothing is scored is no error.
            whole = [m for (k, _), m in guess.items() if k == c]
            spurious = sum(
                1
                for b, w in zip(theirs, whole, strict=True)
                if not any((a & b).sum() > 0.5 * (a | b).sum() for a in ours) and 2 * (w & ~counted).sum() <= w.sum()
            )
            missed = len(ours) - len(matched)
            if ours or spurious:
                qualities.append(sum(matched) / (len(matched) + (spurious + missed) / 2))
        assert score.metrics["PQ"] == pytest.approx(100 * float(np.mean(qualities)))


# ------------------------------------------------------------------------------------------------------------- the room


def scored(room: Path, masks: str, out: Path, *more: str) -> dict[str, Any]:
    file = out / "score.json"
    assert main(["masks", "score", str(room), "--masks", masks, "--json", str(file), "--quiet", *more]) == 0
    return json.loads(file.read_text())


def test_presets_rank_as_they_should(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [scored(room, preset, tmp_path)["metrics"] for preset in ("clean", "light", "medium", "heavy")]
    assert scores[0]["PQ"] == pytest.approx(100)
    assert scores[0]["mIoU"] == pytest.approx(100)
    for name in ("PQ", "mIoU", "recall", "mIoU_per_view"):
        values = [s[name] for s in scores]
        assert values == sorted(values, reverse=True), name
    assert [s["void"] for s in scores] == sorted(s["void"] for s in scores)
    assert "things of single views" in capsys.readouterr().out


def test_the_worst_views_are_drawn(room: Path, tmp_path: Path) -> None:
    data = scored(room, "heavy", tmp_path, "--frames", "all", "--pictures", str(tmp_path / "worst"))
    worst = min(data["views"], key=lambda v: v["mIoU"])["name"]
    assert (tmp_path / "worst" / f"1_{worst}.png").is_file()
    assert len(data["views"]) > len(scored(room, "heavy", tmp_path)["views"])


def test_an_unknown_set_is_told(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["masks", "score", str(room), "--masks", "none-such", "--quiet"]) != 0
    assert "no such folder of pseudo-masks" in capsys.readouterr().err
