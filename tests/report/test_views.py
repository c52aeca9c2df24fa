"""Pictures of single views and crops of instances: what is written, in which colours, how large, in which order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panbench.protocol import PredictionSet, PredictionWriter, Protocol, SceneResult, score
from panbench.report.pictures import ObjectColors, SheetRow
from panbench.report.views import LONGEST, WORST, write_instances, write_views
from panbench.scene import LabelClass, LabelSpace, PanopticMap

LABELS = LabelSpace("t", (LabelClass(1, "wall", thing=False), LabelClass(2, "chair", thing=True)))
STRICT = Protocol.load("panoptic-strict@1")
SPAN = (1.0, 3.0)


def _row(name: str, true: np.ndarray, predicted: np.ndarray) -> SheetRow:
    """Every object is a chair; depth grows from left to right."""
    photo = np.full((*true.shape, 3), 128, dtype=np.uint8)
    depth = np.tile(np.linspace(1, 3, true.shape[1], dtype=np.float32), (true.shape[0], 1))
    normal = np.zeros((*true.shape, 3), dtype=np.float32)
    normal[..., 2] = -1
    semantic, true_semantic = (np.where(m > 0, 2, 1) for m in (predicted, true))
    return SheetRow(name, photo, semantic, predicted, photo, depth, normal, true_semantic, true)


def _squares(shape: tuple[int, int], **at: tuple[int, int, int]) -> np.ndarray:
    """Map with a square of a side at (row, column) for each ``i<id>=(row, column, side)``."""
    out = np.zeros(shape, dtype=np.int64)
    for name, (row, column, side) in at.items():
        out[row : row + side, column : column + side] = int(name[1:])
    return out


def _result(rows: list[SheetRow], folder: Path) -> SceneResult:
    with PredictionWriter(folder, method="m", labels=LABELS) as writer:
        for row in rows:
            writer.write(row.name, PanopticMap(torch.from_numpy(row.semantic), torch.from_numpy(row.instance)))
    truth = {r.name: PanopticMap(torch.from_numpy(r.true_semantic), torch.from_numpy(r.true_instance)) for r in rows}
    return score(PredictionSet.open(folder), truth, LABELS, STRICT, dataset="scannet", scene="s")


def _gallery(rows: list[SheetRow], folder: Path) -> list[dict[str, object]]:
    result = _result(rows, folder / "predictions")
    by_name = {row.name: row for row in rows}
    colors = ObjectColors.of(result.counts.unpack())
    index = write_instances(folder / "instances", result, by_name.__getitem__, LABELS, colors)
    return json.loads(index.read_text())["instances"]


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_index_names_every_file_of_every_view_and_nothing_else_is_there(tmp_path: Path) -> None:
    rows = [_row(name, _squares((30, 40), i7=(5, 5, 10)), _squares((30, 40), i3=(5, 5, 10))) for name in ("5", "10")]
    (tmp_path / "views").mkdir()
    (tmp_path / "views" / "old.photo.jpg").write_bytes(b"of an earlier run")
    index = json.loads(write_views(tmp_path / "views", rows, LABELS, ObjectColors.of_rows(rows), SPAN).read_text())
    assert index["size"] == [30, 40]
    assert [view["name"] for view in index["views"]] == ["5", "10"]
    kinds = {"photo", "render", "depth", "normal", "semantic", "instance", "truth_semantic", "truth_instance", "error"}
    assert all(set(view["kinds"]) == kinds for view in index["views"])
    named = {file for view in index["views"] for file in view["kinds"].values()}
    assert {p.name for p in (tmp_path / "views").iterdir()} == named | {"index.json"}


def test_a_view_of_which_little_is_known_has_few_kinds(tmp_path: Path) -> None:
    full = _row("5", _squares((30, 40)), _squares((30, 40)))
    bare = SheetRow("5", full.photo, full.semantic, full.instance)
    index = json.loads(write_views(tmp_path, [bare], LABELS, ObjectColors.of_rows([bare]), SPAN).read_text())
    assert set(index["views"][0]["kinds"]) == {"photo", "semantic", "instance"}


def test_label_pictures_keep_their_colours_exactly_and_photographs_nearly(tmp_path: Path) -> None:
    row = _row("5", _squares((30, 40), i7=(5, 5, 10)), _squares((30, 40), i3=(5, 5, 10)))
    write_views(tmp_path, [row], LABELS, ObjectColors.of_rows([row]), SPAN)
    assert np.array_equal(_pixels(tmp_path / "5.semantic.png"), LABELS.colors()[row.semantic])
    assert np.abs(_pixels(tmp_path / "5.photo.jpg").astype(int) - 128).max() <= 2
    assert Image.open(tmp_path / "5.instance.png").mode == "P"


def test_a_label_picture_of_more_colours_than_a_table_holds_keeps_them_too(tmp_path: Path) -> None:
    instance = np.arange(1, 20 * 30 + 1).reshape(20, 30)
    row = _row("5", instance, instance)
    objects = ObjectColors.of_rows([row])
    write_views(tmp_path, [row], LABELS, objects, SPAN)
    # Every pixel is an object, so all but the first one is an outline; the classes are one colour.
    assert tuple(_pixels(tmp_path / "5.truth_instance.png")[0, 0]) == objects.true[1]
    spread = np.repeat(np.repeat(instance, 2, axis=0), 2, axis=1)
    row = _row("6", spread, spread)
    write_views(tmp_path, [row], LABELS, objects, SPAN)
    assert len(np.unique(_pixels(tmp_path / "6.truth_instance.png").reshape(-1, 3), axis=0)) > 256


def test_a_true_object_has_one_colour_whatever_a_method_predicts(tmp_path: Path) -> None:
    true = _squares((30, 40), i7=(5, 5, 10), i9=(5, 25, 10))
    for method, predicted in {
        "good": _squares((30, 40), i3=(5, 5, 10), i4=(5, 25, 10)),
        "swapped": _squares((30, 40), i4=(5, 5, 10), i3=(5, 25, 10)),
        "blind": _squares((30, 40)),
    }.items():
        row = _row("5", true, predicted)
        write_views(tmp_path / method, [row], LABELS, ObjectColors.of(_counts(row, tmp_path / f"p-{method}")), SPAN)
    truth = _pixels(tmp_path / "good" / "5.truth_instance.png")
    for method in ("swapped", "blind"):
        assert np.array_equal(_pixels(tmp_path / method / "5.truth_instance.png"), truth)
    # Matched predictions take the colours of the truth.
    assert np.array_equal(_pixels(tmp_path / "good" / "5.instance.png"), truth)
    assert np.array_equal(_pixels(tmp_path / "swapped" / "5.instance.png"), truth)


def _counts(row: SheetRow, folder: Path):
    return _result([row], folder).counts.unpack()


def test_large_views_are_made_smaller_without_mixing_labels(tmp_path: Path) -> None:
    true = _squares((600, 1000), i7=(100, 100, 300))
    row = _row("5", true, true)
    index = json.loads(write_views(tmp_path, [row], LABELS, ObjectColors.of_rows([row]), SPAN).read_text())
    assert index["size"] == [LONGEST * 600 // 1000, LONGEST]
    semantic = _pixels(tmp_path / "5.semantic.png")
    assert list(semantic.shape[:2]) == index["size"]
    assert {tuple(c) for c in semantic.reshape(-1, 3)} == {tuple(c) for c in LABELS.colors()[1:]}


def test_the_worst_instance_comes_first_and_what_was_found_is_not_shown(tmp_path: Path) -> None:
    true = _squares((60, 80), i1=(2, 2, 20), i2=(2, 30, 10), i3=(30, 30, 15))
    predicted = _squares((60, 80), i5=(30, 30, 15))
    shown = _gallery([_row("0", true, predicted)], tmp_path)
    assert [(s["true_id"], s["verdict"], s["pixels"]) for s in shown] == [(1, "missed", 400), (2, "missed", 100)]
    assert all(s["class_name"] == "chair" and s["coverage"] == 0 for s in shown)


def test_an_instance_is_shown_in_the_frame_where_most_of_it_is_lost(tmp_path: Path) -> None:
    # Object 1 is split: 600 of 1600 pixels are lost in frame "0", where it is largest, all 784 in frame "5".
    large, small = _squares((60, 80), i1=(5, 5, 40)), _squares((60, 80), i1=(5, 5, 28))
    half = np.where(np.arange(80) < 30, 6, 8) * (large > 0)
    shown = _gallery([_row("0", large, half), _row("5", small, np.where(small > 0, 9, 0))], tmp_path)
    assert [(s["true_id"], s["frame"]) for s in shown] == [(1, "5")]


def test_a_crop_shows_the_instance_its_surroundings_and_its_outline(tmp_path: Path) -> None:
    true = _squares((120, 160), i1=(50, 70, 20))
    shown = _gallery([_row("0", true, _squares((120, 160)))], tmp_path)
    assert set(shown[0]["crops"]) == {"photo", "truth", "instance", "error"}  # type: ignore[arg-type]
    sizes = {_pixels(tmp_path / "instances" / f).shape for f in shown[0]["crops"].values()}  # type: ignore[attr-defined]
    assert len(sizes) == 1
    truth = _pixels(tmp_path / "instances" / "1.truth.png")
    assert 180 <= max(truth.shape[:2]) <= 240
    # 20 pixels with 12 around them: 44 at five times their size; a white line runs around the middle 100.
    assert truth.shape == (220, 220, 3)
    assert (truth[110, 59] == 255).all()
    assert (truth[110, 160] == 255).all()
    assert not (truth[110, 62:158] == 255).all(axis=-1).any()


@pytest.mark.parametrize("place", [(0, 0), (0, 140), (100, 0), (100, 140)])
def test_a_crop_ends_where_the_picture_ends(tmp_path: Path, place: tuple[int, int]) -> None:
    shown = _gallery([_row("0", _squares((120, 160), i1=(*place, 20)), _squares((120, 160)))], tmp_path)
    assert _pixels(tmp_path / "instances" / "1.truth.png").shape == (32 * 7, 32 * 7, 3)
    assert shown[0]["frame"] == "0"


def test_an_instance_as_large_as_the_picture_is_shown_whole(tmp_path: Path) -> None:
    true = np.ones((300, 400), dtype=np.int64)
    _gallery([_row("0", true, np.zeros_like(true))], tmp_path)
    assert _pixels(tmp_path / "instances" / "1.photo.jpg").shape == (180, 240, 3)


def test_only_the_worst_are_shown(tmp_path: Path) -> None:
    true = np.zeros((120, 160), dtype=np.int64)
    for i in range(40):
        row, column = divmod(i, 8)
        true[24 * row + 1 : 24 * row + 4 + i // 3, 20 * column + 1 : 20 * column + 4 + i // 3] = i + 1
    shown = _gallery([_row("0", true, np.zeros_like(true))], tmp_path)
    assert len(shown) == WORST
    pixels = [int(str(s["pixels"])) for s in shown]
    assert pixels == sorted(pixels, reverse=True)
    assert pixels[-1] >= sorted(np.bincount(true.ravel())[1:])[40 - WORST]


def test_a_perfect_result_has_an_empty_gallery(tmp_path: Path) -> None:
    true = _squares((60, 80), i1=(2, 2, 20))
    assert _gallery([replace(_row("0", true, true))], tmp_path) == []
