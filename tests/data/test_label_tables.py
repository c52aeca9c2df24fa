"""The label table by the names of its columns; the label spaces that come with panbench against what is published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from panbench.data.label_tables import (
    LabelTable,
    find_label_table,
    label_space_file,
    packaged_label_spaces,
    read_labels,
)
from panbench.errors import UserError
from panbench.scene import LabelSpace

NYU40 = re.split(
    ", ",
    "wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves, "
    "curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television, paper, towel, "
    "shower curtain, box, whiteboard, person, nightstand, toilet, sink, lamp, bathtub, bag, otherstructure, "
    "otherfurniture, otherprop",
)
SCANNET20 = {*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39}


def table(tmp_path: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = ("id", "raw_category", "nyu40id")) -> Path:
    path = tmp_path / "scannetv2-labels.combined.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in (columns, *rows)))
    return path


def packaged(name: str) -> LabelSpace:
    return LabelSpace.load(label_space_file(Path("nowhere"), name))


def test_columns_are_found_by_name_whatever_their_place(tmp_path: Path) -> None:
    path = table(tmp_path, ("7", "x", "2", "chair"), columns=("nyu40id", "more", "id", "raw_category"))
    read = LabelTable.read(path)
    assert (read.ids, read.nyu40) == ({"chair": 2}, {2: 7})


def test_of_a_repeated_id_the_last_row_holds_and_an_empty_nyu40id_is_otherprop(tmp_path: Path) -> None:
    read = LabelTable.read(table(tmp_path, ("1", "wall", "1"), ("9", "desk", "14"), ("9", "thing", ""), ("3", "x", "")))
    assert read.nyu40 == {1: 1, 9: 40, 3: 40}
    assert read.ids == {"wall": 1, "desk": 9, "thing": 9, "x": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column id"),
        ("id\traw_category\n1\twall\n", "has no column nyu40id"),
        ("id\traw_category\tnyu40id\n1\twall\t1\nx\ty\t2\n", "line 3 has no whole number"),
        ("id\traw_category\tnyu40id\n1\n", "line 2 has no whole number"),
        ("id\traw_category\tnyu40id\n1\twall\tone\n", "line 2 has no whole number"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        LabelTable.read(path)
    assert "\n" not in str(caught.value)


def test_the_table_is_found_in_the_release_or_among_its_tasks(tmp_path: Path) -> None:
    scene = tmp_path / "scans" / "scene0000_00"
    scene.mkdir(parents=True)
    assert find_label_table(scene) is None
    (tmp_path / "tasks").mkdir()
    below = table(tmp_path / "tasks")
    assert find_label_table(scene) == below
    above = table(tmp_path)
    assert find_label_table(scene) == above


# ----------------------------------------------------------------------------------------------------------- packaged


def test_nyu40_and_scannet20_are_the_published_classes() -> None:
    nyu40, scannet20 = packaged("nyu40"), packaged("scannet20")
    assert [c.name for c in nyu40.classes] == NYU40
    assert nyu40.raw_to_class == {k: k for k in range(1, 41)}
    assert set(scannet20.raw_to_class) == SCANNET20
    names = scannet20.names()
    assert {k: names[c] for k, c in scannet20.raw_to_class.items()} == {k: NYU40[k - 1] for k in SCANNET20}
    assert scannet20.size == 21


def test_scannet200_has_two_hundred_raw_ids_of_which_some_are_known() -> None:
    space = packaged("scannet200")
    names = space.names()
    assert len(space.classes) == len(space.raw_to_class) == 200
    assert sorted(space.raw_to_class.values()) == list(range(1, 201))
    # Raw ids that the paper's evaluator and the label table state, too.
    known = {1: "wall", 2: "chair", 3: "floor", 24: "coffee table", 52: "whiteboard", 77: "laptop", 97: "recycling bin",
             131: "jacket", 161: "doorframe", 609: "projector screen", 1169: "trash bin", 1191: "mattress"}  # fmt: skip
    assert {k: names[space.raw_to_class[k]] for k in known} == known


def test_generic_spaces_hold_wall_floor_and_ceiling_as_stuff_and_nothing_else() -> None:
    for name, stuff in (
        ("nyu40", {"wall", "floor", "ceiling"}), ("scannet20", {"wall", "floor"}),
        ("scannet200", {"wall", "floor", "ceiling"}),
    ):  # fmt: skip
        assert {c.name for c in packaged(name).classes if not c.thing} == stuff


# Specs of the published evaluation: things, stuff, mapped but not evaluated; class id: raw ids.
PAPER = {
    "scene0087_02": (
        {2: {2, 23}, 3: {6, 39, 1313}, 4: {4, 24}}, {1: {3}, 5: {1}, 7: {21}, 8: {5}, 9: {131}}, {6: {101, 53}}
    ),
    "scene0088_00": ({2: {2}, 3: {4}}, {1: {3}, 4: {1}, 5: {52}, 7: {5, 161}}, {6: {56}}),
    "scene0420_01": (
        {2: {2}, 3: {4}, 5: {56, 97}, 9: {7}}, {1: {3}, 4: {1, 41}, 6: {16}, 7: {5}, 8: {89}}, {10: {609}}
    ),
    "scene0628_02": (
        {2: {2}, 3: {4, 9}, 7: {56, 1169, 97}, 8: {48}, 10: {26}, 11: {77}}, {1: {3}, 4: {1, 41}, 6: {16}, 12: {5}},
        {5: {89}, 9: {131}, 13: {1275}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("scene", PAPER)
def test_the_papers_scenes_map_as_its_evaluator_does(scene: str) -> None:
    things, stuff, void = PAPER[scene]
    space = packaged(scene)
    by_class: dict[int, set[int]] = {}
    for raw, class_id in space.raw_to_class.items():
        by_class.setdefault(class_id, set()).add(raw)
    assert by_class == {**things, **stuff, **void}
    assert set(space.evaluated_ids) == {*things, *stuff}
    assert set(space.thing_ids) == set(things)
    assert all(c.prompts for c in space.classes)


def test_the_papers_scenes_have_thirty_three_evaluated_classes() -> None:
    assert sum(len(packaged(scene).evaluated_ids) for scene in PAPER) == 33


def test_prompts_of_one_space_belong_to_one_class_each() -> None:
    for name in packaged_label_spaces():
        prompts = [p for c in packaged(name).classes for p in c.prompts]
        assert len(prompts) == len(set(prompts)), name


# ---------------------------------------------------------------------------------------------------------- resolving


def test_ids_of_nyu40_are_resolved_by_the_users_label_table(tmp_path: Path) -> None:
    scene = tmp_path / "scene0001_00"
    scene.mkdir()
    table(tmp_path, ("1", "wall", "1"), ("10", "office chair", "5"), ("300", "odd chair", "5"), ("41", "ceiling", "22"))
    labels = read_labels(scene, "scannet20")
    assert labels.raw_to_class == {1: 1, 10: 5, 300: 5}
    assert read_labels(scene, "nyu40").raw_to_class == {1: 1, 10: 5, 300: 5, 41: 22}


def test_without_a_label_table_a_space_of_nyu40_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tsv: no such file, but label space nyu40 .*--label_map") as caught:
        read_labels(tmp_path / "scene0001_00", "nyu40")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        "[", "[]", "3", '{"classes": 5}', '{"classes": [3]}', "[" * 100_000, '{"classes": []}',
        '{"classes": [{"id": 70000, "name": "x", "thing": true}]}',
        '{"classes": [{"id": 1, "name": "x", "thing": true}], "gt_map": {"-3": 1}}',
        '{"classes": [{"id": 1, "name": "x", "thing": true}], "gt_map": {"9999999999": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_label_space_is_refused_in_one_line(tmp_path: Path, data: str) -> None:
    (tmp_path / "classes.json").write_text(data)
    with pytest.raises(UserError, match=r"classes\.json: ") as caught:
        read_labels(tmp_path, None)
    assert "\n" not in str(caught.value)


def test_packaged_files_are_written_as_the_readers_expect() -> None:
    for name in packaged_label_spaces():
        data = json.loads(label_space_file(Path("nowhere"), name).read_bytes())
        assert data["name"] == name
        assert data.get("gt_map_key", "id") in ("id", "nyu40id")
