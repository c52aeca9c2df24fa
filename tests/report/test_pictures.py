"""The contact sheet shows the right colour at the right place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panbench.report.pictures import (
    COLUMNS,
    SheetRow,
    contact_sheet,
    depth_colors,
    error_map,
    match_objects,
    normal_colors,
)
from panbench.scene import LabelClass, LabelSpace

LABELS = LabelSpace(
    "t",
    (
        LabelClass(1, "wall", thing=False),
        LabelClass(2, "chair", thing=True),
        LabelClass(3, "junk", thing=True, evaluate=False),
    ),
)


def _row(name: str = "5") -> SheetRow:
    semantic = np.ones((30, 40), dtype=np.int32)
    semantic[5:15, 5:15] = semantic[5:15, 25:35] = 2
    truth = np.zeros_like(semantic)
    truth[5:15, 5:15], truth[5:15, 25:35] = 11, 12
    predicted = np.where(truth > 0, truth + 90, 0)
    photo = np.full((30, 40, 3), 128, dtype=np.uint8)
    depth = np.full((30, 40), 2.0, dtype=np.float32)
    normal = np.zeros((30, 40, 3), dtype=np.float32)
    normal[..., 2] = -1
    return SheetRow(name, photo, semantic, predicted, photo, depth, normal, semantic, truth)


def test_objects_are_matched_one_to_one_by_overlap_over_all_views() -> None:
    a = _row()
    b = replace(a, instance=np.where(a.instance == 101, 102, 0))
    assert match_objects([a]) == {101: 11, 102: 12}
    assert match_objects([a, b]) == {101: 11, 102: 12}
    assert match_objects([replace(a, true_instance=None)]) == {}


def test_a_perfect_prediction_is_right_everywhere() -> None:
    row = _row()
    colors = np.unique(error_map(row, LABELS, match_objects([row])).reshape(-1, 3), axis=0)
    assert len(colors) == 1


def test_wrong_class_wrong_object_and_unscored_differ() -> None:
    row = _row()
    matched = match_objects([row])
    semantic, instance, true_semantic = row.semantic.copy(), row.instance.copy(), row.semantic.copy()
    semantic[0] = 2
    instance[5:15, 5:15] = 102
    true_semantic[-1] = 0
    true_semantic[-2] = 3
    out = error_map(replace(row, semantic=semantic, instance=instance, true_semantic=true_semantic), LABELS, matched)
    right, wrong_class, wrong_object, unscored = out[20, 20], out[0, 0], out[8, 8], out[-1, 0]
    kinds = np.stack([right, wrong_class, wrong_object, unscored])
    assert len(np.unique(kinds, axis=0)) == 4
    # A class that is not evaluated counts as void.
    assert (out[-2] == unscored).all()


def test_near_is_brighter_than_far_and_nothing_is_grey() -> None:
    out = depth_colors(np.asarray([[1.0, 2.0, 3.0, 0.0]]), 1.0, 3.0).astype(int)[0]
    assert out[0].sum() > out[1].sum() > out[2].sum()
    assert np.ptp(out[3]) < 5


def test_a_normal_towards_the_camera_is_blue_and_none_is_grey() -> None:
    out = normal_colors(np.asarray([[[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]]))[0].astype(int)
    assert out[0].argmax() == 2
    assert out[1].argmax() == 1
    assert np.ptp(out[2]) < 5


def test_the_sheet_has_a_row_for_each_view_and_a_column_for_each_kind(tmp_path: Path) -> None:
    one = Image.open(contact_sheet([_row()], LABELS, tmp_path / "one.png", width=80))
    three = Image.open(contact_sheet([_row("5"), _row("6"), _row("7")], LABELS, tmp_path / "three.png", width=80))
    assert one.width == three.width >= 80 * len(COLUMNS)
    assert three.height - one.height == 2 * (60 + 4)


def test_a_photo_stands_unchanged_in_its_cell(tmp_path: Path) -> None:
    row = _row()
    sheet = np.asarray(Image.open(contact_sheet([row], LABELS, tmp_path / "s.png", width=40)))
    assert (sheet == 128).all(axis=-1).sum() >= 2 * 30 * 40


def test_a_view_without_truth_depth_or_render_still_has_a_row(tmp_path: Path) -> None:
    row = _row()
    bare = SheetRow("5", row.photo, row.semantic, row.instance)
    assert contact_sheet([bare], LABELS, tmp_path / "s.png", title="a title", width=60).stat().st_size > 0


def test_labels_outside_the_table_do_not_break_the_sheet(tmp_path: Path) -> None:
    row = replace(_row(), true_semantic=np.full((30, 40), 99))
    contact_sheet([row], LABELS, tmp_path / "s.png", width=40)


def test_a_sheet_needs_a_view(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one view"):
        contact_sheet([], LABELS, tmp_path / "s.png")
