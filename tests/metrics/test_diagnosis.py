from __future__ import annotations

import numpy as np
import pytest

from panbench.metrics.functional import InstanceDiagnosis, concatenate, count_pairs, diagnose
from panbench.scene import LabelClass, LabelSpace

LABELS = LabelSpace("two", (LabelClass(1, "wall", False), LabelClass(2, "chair", True), LabelClass(3, "table", True)))


def diagnosed(*frames: tuple[list[int], list[int], list[int], list[int]]) -> dict[int, InstanceDiagnosis]:
    counts = [count_pairs(*(np.array(row) for row in rows), frame=i) for i, rows in enumerate(frames)]
    return {d.true_id: d for d in diagnose(concatenate(counts), LABELS)}


def test_an_outlined_chair_of_the_right_class_is_found() -> None:
    chair = diagnosed(([2] * 10, [1] * 10, [2] * 9 + [1], [4] * 9 + [0]))[1]
    assert (chair.verdict, chair.best_id, chair.best_class) == ("found", 4, 2)
    assert chair.iou == pytest.approx(0.9)


def test_an_outlined_chair_called_table_has_the_wrong_class() -> None:
    assert diagnosed(([2] * 4, [1] * 4, [3] * 4, [4] * 4))[1].verdict == "wrong class"


def test_a_chair_under_no_id_is_missed() -> None:
    chair = diagnosed(([2] * 10, [1] * 10, [1] * 10, [0] * 8 + [5] * 2))[1]
    assert chair.verdict == "missed"
    assert diagnosed(([2], [1], [1], [0]))[1].best_id == 0


def test_a_chair_in_three_parts_is_split() -> None:
    chair = diagnosed(([2] * 10, [1] * 10, [2] * 10, [4] * 4 + [5] * 3 + [6] * 3))[1]
    assert chair.verdict == "split"
    assert chair.parts == ((4, pytest.approx(0.4)), (5, pytest.approx(0.3)), (6, pytest.approx(0.3)))


def test_a_chair_of_which_one_id_has_a_third_is_poor_and_not_split() -> None:
    chair = diagnosed(([2] * 10, [1] * 10, [2] * 4 + [1] * 6, [4] * 4 + [0] * 6))[1]
    assert (chair.verdict, len(chair.parts)) == ("poor", 1)


def test_two_chairs_under_one_id_are_merged() -> None:
    found = diagnosed(([2] * 10, [1] * 5 + [2] * 5, [2] * 10, [4] * 10))
    assert {d.verdict for d in found.values()} == {"merged"}
    assert (found[1].merged_with, found[2].merged_with) == ((2,), (1,))


def test_a_view_in_which_another_id_leads_is_a_switch() -> None:
    view = [2] * 6, [1] * 6, [2] * 6
    chair = diagnosed((*view, [4] * 6), (*view, [4] * 5 + [7]), (*view, [7] * 6), (*view, [0] * 6))[1]
    assert (chair.frames, chair.switches) == (4, 1)


def test_stuff_and_objects_without_id_are_not_diagnosed() -> None:
    assert diagnosed(([1] * 3 + [2] * 3, [5] * 3 + [0] * 3, [1] * 6, [0] * 6)) == {}
