"""What may share a table does, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from panbench.metrics.functional import count_pairs
from panbench.protocol.results import SceneResult, StoredCounts
from panbench.protocol.store import ResultStore
from panbench.report.board_tables import (
    QUOTED,
    SCORES,
    SUBMITTED,
    TRAINING_FREE,
    VERIFIED,
    class_table,
    confusion_table,
    leaderboard,
    matrix,
    scene_table,
    verdict_table,
)
from panbench.report.boards import Board, Gathered, gather
from panbench.report.tables import Row, Table
from panbench.scene import LabelClass, LabelSpace
from results import LABELS, PAPER, STRICT, cell, grid, hashed, result

Gather = Callable[[Iterable[SceneResult]], Gathered]


@pytest.fixture
def gathered(tmp_path: Path) -> Gather:
    def gather_all(results: Iterable[SceneResult]) -> Gathered:
        store = ResultStore(tmp_path / "results")
        for item in results:
            store.add(item)
        return gather(store)

    return gather_all


def _rows(table: Table, section: str) -> list[Row]:
    return [row for s in table.sections if s.title == section for row in s.rows]


def _names(board: Board) -> set[str]:
    return {entry.name for entry in board.entries}


def test_protocols_and_mask_sets_have_boards_of_their_own(gathered: Gather) -> None:
    boards = gathered([result(protocol=p, masks=m) for p in (PAPER, STRICT) for m in ("clean", "medium")]).boards
    assert {(b.key.protocol, b.key.masks) for b in boards} == {
        (p, m) for p in (PAPER, STRICT) for m in ("clean", "medium")
    }
    assert len({board.slug for board in boards}) == 4


def test_synthetic_and_real_scenes_never_share_a_board(gathered: Gather) -> None:
    boards = gathered([result(), result(synthetic=False)]).boards
    assert sorted(board.data for board in boards) == ["scannet", "scannet (synthetic)"]


def _other_masks() -> SceneResult:
    out = result("odd")
    out.origin.mask_hash = "f" * 64
    return out


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (result("odd", image_size=(120, 160)), "image size: 160x120 and 320x240"),
        (result("odd", frames=["0", "7"]), "test frames: 2 and 4, 4 of them in one only"),
        (
            result("odd", space=LabelSpace("other", (*LABELS.classes, LabelClass(9, "sofa", True)))),
            "label space: other",
        ),
        (_other_masks(), "mask set: medium (ffffffff)"),
    ],
    ids=["image size", "split", "label space", "masks"],
)
def test_a_result_on_other_ground_is_held_apart_with_the_reason(
    gathered: Gather, odd: SceneResult, reason: str
) -> None:
    out = gathered([*grid({"a": 70.0, "b": 60.0}, scenes=["room0"]), odd])
    (board,) = out.boards
    assert "odd" not in _names(board)
    (held,) = out.held
    assert held.stored.result.method == "odd"
    assert reason in held.reasons[0]


def test_a_method_with_masks_of_its_own_joins_boards_of_any_masks(gathered: Gather) -> None:
    boards = gathered([result("a", masks=m) for m in ("clean", "medium")] + [result("own-masks", labels="own")]).boards
    assert [_names(board) for board in boards] == [{"a", "own-masks"}] * 2
    (row,) = [r for r in leaderboard(boards[0]).rows if r.name == "own-masks"]
    assert row.label == "own masks"


def test_alone_it_has_a_board_of_its_own(gathered: Gather) -> None:
    (board,) = gathered([result("own-masks", labels="own")]).boards
    assert board.masks == "own masks"


def test_one_name_with_two_settings_is_two_rows(gathered: Gather) -> None:
    (board,) = gathered([result("a", settings="x"), result("a", settings="y"), result("b")]).boards
    tags = {hashed("settings", s)[:6] for s in "xy"}
    assert _names(board) == {"b", *(f"a [{tag}]" for tag in tags)}


def test_of_equal_cells_the_newest_counts_and_the_others_are_repeats(gathered: Gather) -> None:
    old = result(pq=70.0, run="/one", created="2026-11-01T00:00:00+00:00")
    new = result(pq=71.5, run="/two", created="2026-11-02T00:00:00+00:00")
    out = gathered([old, new])
    (row,) = leaderboard(out.boards[0]).rows
    assert row.cells[0].value == 71.5
    (repeat,) = out.repeats
    assert [repeat.kept.result.metrics["PQ"], *(o.result.metrics["PQ"] for o in repeat.others)] == [71.5, 70.0]


def test_one_run_scored_twice_is_no_repeat(gathered: Gather) -> None:
    assert not gathered([result(created="2026-11-01"), result(created="2026-11-02", bench=cell("p", "a"))]).repeats


def test_training_free_rows_made_beside_every_seed_count_once(gathered: Gather) -> None:
    made = [result("voxel-vote", seed=None, pq=66.0, run=f"/run{i}", created=f"2026-11-0{i + 1}") for i in range(3)]
    out = gathered([result(), *made])
    assert not out.repeats
    (row,) = _rows(leaderboard(out.boards[0]), TRAINING_FREE)
    assert (row.cells[0].n, row.cells[-2].text) == (1, "none")


def test_verified_submitted_and_training_free_rows_stand_apart_and_only_the_first_two_are_ranked(
    gathered: Gather,
) -> None:
    out = gathered(
        [*grid({"a": 70.0, "b": 60.0}), *(result("theirs", f"room{i}", trust="submitted") for i in range(3))]
    )
    table = leaderboard(out.boards[0])
    assert [(r.name, r.rank) for r in _rows(table, VERIFIED)] == [("a", 1), ("b", 2)]
    assert [(r.name, r.rank, r.kind) for r in _rows(table, SUBMITTED)] == [("theirs", 1, "submitted")]
    assert [(r.name, r.rank) for r in _rows(table, TRAINING_FREE)] == [("voxel-vote", None), ("raw-masks", None)]


def test_a_row_without_all_scenes_is_shown_last_and_neither_ranked_nor_compared(gathered: Gather) -> None:
    out = gathered([*grid({"a": 70.0, "b": 60.0}), result("best-where-run", "room0", pq=95.0)])
    *ranked, last = _rows(leaderboard(out.boards[0]), VERIFIED)
    assert [row.rank for row in ranked] == [1, 2]
    assert (last.name, last.rank, last.note) == ("best-where-run", None, "not ranked: without room1, room2")
    assert last.cells[0].value == 95.0
    assert last.cells[0].difference is None
    assert not last.cells[0].best
    assert last.cells[-1].text == "1 of 3"


def test_close_rows_are_grey_and_clear_ones_are_not(gathered: Gather) -> None:
    rows = [result("a", f"room{i}", s, pq=70 + 0.5 * (s == i)) for i in range(3) for s in range(3)]
    rows += [result("near", f"room{i}", s, pq=70 + 0.5 * (s == 2 - i)) for i in range(3) for s in range(3)]
    rows += [result("far", f"room{i}", s, pq=55 + 0.5 * (s == i)) for i in range(3) for s in range(3)]
    shown = {row.name: row.cells[0] for row in leaderboard(gathered(rows).boards[0]).rows}
    assert {name: cell.grey for name, cell in shown.items()} == {"a": False, "near": True, "far": False}
    assert shown["far"].difference is not None


def test_of_errors_the_smallest_is_the_best_and_others_are_compared_with_it(gathered: Gather) -> None:
    errors = {"near": 1.5, "far": 9.0}
    rows = [
        result(name, f"room{i}", s, metrics={"depth_l1": error + 0.1 * s, "depth_delta": 100 - error})
        for name, error in errors.items()
        for i in range(3)
        for s in range(3)
    ]
    table = leaderboard(gathered([*rows, result("old", "room0", 0)]).boards[0])
    column = [c.key for c in table.columns].index("depth_l1")
    cells = {row.name: row.cells[column] for row in table.rows}
    assert cells["near"].best
    assert not cells["far"].best
    assert cells["far"].difference is not None
    assert cells["far"].difference.value == pytest.approx(7.5)
    assert cells["old"].value is not None  # made before depth was measured: shown as a dash
    assert math.isnan(cells["old"].value)


def test_confusions_are_shares_of_the_true_class_by_method(gathered: Gather) -> None:
    true = np.full((1, 10), LABELS.classes[0].id)
    seen = true.copy()
    seen[0, :3] = LABELS.classes[1].id
    none = np.zeros_like(true)
    wrong = StoredCounts.pack(count_pairs(true, none, seen, none))
    right = StoredCounts.pack(count_pairs(true, none, true, none))
    rows = [result("a", counts=wrong, pq=80), result("b", counts=right, pq=60)]
    table = confusion_table(gathered(rows).boards[0])
    assert table is not None
    names = [c.name for c in LABELS.classes]
    assert [row.name for row in table.rows] == [f"{names[0]} as {names[1]}"]
    assert [cell.value for cell in table.rows[0].cells] == [pytest.approx(30.0), 0.0]


def test_figures_of_the_paper_stand_beside_its_scenes_under_its_protocol_alone(gathered: Gather) -> None:
    theirs = {"scene": "scene0628_02", "synthetic": False}
    elsewhere = result(scene="scene0001_00", synthetic=False, masks="heavy")
    boards = gathered([result(**theirs), result(**theirs, protocol=STRICT), elsewhere, result()]).boards
    quoted = {board.title: [r.name for r in _rows(leaderboard(board), QUOTED)] for board in boards}
    assert quoted.pop(f"scannet, {PAPER}, medium masks")[-1] == "Ours"
    assert list(quoted.values()) == [[], [], []]


def test_the_mean_follows_the_protocol_s_rule_for_scores_and_no_rule_for_the_rest(gathered: Gather) -> None:
    (board,) = gathered(
        [result("a", s, pq=pq, cost={"fit_seconds": 60 * pq}) for s, pq in (("x", 70.24), ("y", 71.26))]
    ).boards
    table = leaderboard(board)
    (row,) = table.rows
    by = {column.key: c.value for column, c in zip(table.columns, row.cells, strict=True)}
    assert by["PQ"] == pytest.approx((70.2 + 71.3) / 2)
    assert by["fit_seconds"] == pytest.approx((70.24 + 71.26) / 2)
    assert by["PSNR"] == pytest.approx(20 + (70.24 + 71.26) / 20)


def test_scores_by_scene_lead_to_their_results(gathered: Gather) -> None:
    out = gathered(grid({"a": 70.0}, seeds=[0, 1]))
    table = scene_table(out.boards[0], SCORES[0])
    (row,) = _rows(table, VERIFIED)
    values = [70.0 + 3 * i for i in range(3)]
    assert [c.value for c in row.cells] == pytest.approx(values, abs=1.5)
    assert all(c.href.startswith("results.html#r-") for c in row.cells)


def test_classes_are_averaged_over_the_scenes_that_have_them(gathered: Gather) -> None:
    present, absent = result("a", "x", pq=70.0), result("a", "y", pq=50.0)
    absent.per_class[2].present = False
    table = class_table(gathered([present, absent]).boards[0], "PQ")
    assert table is not None
    by_class = {row.name: row.cells[-1].value for row in table.rows}
    assert by_class["wall"] == pytest.approx((68 + 48) / 2)
    assert by_class["chair"] == pytest.approx(64)
    assert table.rows[0].name == "wall"


def test_instances_are_counted_by_what_became_of_them(gathered: Gather) -> None:
    table = verdict_table(gathered([result("a", seed=0), result("a", seed=1)]).boards[0])
    (row,) = table.rows
    assert row.cells[0].value == pytest.approx(100 * 3 / 8)
    assert sum(c.value or 0 for c in row.cells[:6]) == pytest.approx(100)
    assert (row.cells[6].value, row.cells[7].value) == (0.5, 8)


def test_bases_and_heads_cross_and_holes_are_named(gathered: Gather) -> None:
    places = [("b1", "h1", 70.0), ("b1", "h2", 60.0), ("b2", "h1", 72.0)]
    rows = [
        result(f"{b}-{h}", f"room{i}", s, pq=pq + i, bench=cell("m", f"{b}-{h}", f"room{i}", base=b, head=h))
        for b, h, pq in places
        for i in range(2)
        for s in range(3)
    ]
    (board,) = gathered(rows).boards
    table = matrix(board, "m", SCORES[0])
    assert table is not None
    assert {row.name: [c.text or c.value for c in row.cells] for row in table.rows} == {
        "b1": [70.5, 60.5],
        "b2": [72.5, "not run"],
    }
    assert [c.best for row in table.rows for c in row.cells] == [False, False, True, False]
    assert matrix(board, "another plan", SCORES[0]) is None
