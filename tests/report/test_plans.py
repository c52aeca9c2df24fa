"""Plan files and the paper's figures, as the report reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from panbench.errors import UserError
from panbench.report.board_tables import paper_table, plan_table
from panbench.report.paper import paper
from panbench.report.plans import PlannedMethod, PlanOutline, read_plan

PLAN = {
    "name": "t1",
    "title": "Table one",
    "methods": [
        {"name": "ours", "paper": "Ours"},
        {"name": "OpenGaussian", "unavailable": "not built", "paper": "OpenGaussian"},
    ],
    "bases": {"3dgs": "../base/3dgs.yaml"},
    "heads": {"query": "../head/query.yaml"},
    "scenes": [{"name": "room0"}, "room1"],
    "paper": {"table": "I", "dataset": "scannet"},
}


def _write(folder: Path, plan: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return path


def test_a_plan_gives_its_rows_in_order_with_crossed_ones_last(tmp_path: Path) -> None:
    plan = read_plan(_write(tmp_path, PLAN))
    assert [m.name for m in plan.methods] == ["ours", "OpenGaussian", "3dgs-query"]
    assert plan.methods[1] == PlannedMethod("OpenGaussian", "OpenGaussian", "not built")
    assert (plan.scenes, plan.table, plan.dataset) == (("room0", "room1"), "I", "scannet")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("methods: [", "not YAML"),
        ("- a list", "is not a plan"),
        ({"name": "x", "methods": [{"config": "a.yaml"}]}, "every method needs a name"),
        ({"name": "x", "methods": {"a": 1}}, "methods: is no list"),
        ({"name": "x", "paper": "I"}, "paper: is no mapping"),
        ({"name": "x", "paper": {"table": "V", "dataset": "scannet"}}, "there is no table V on scannet: known: I"),
        (PLAN | {"methods": [{"name": "a", "paper": "Us"}]}, "a: the paper's Table I has no row 'Us': it has Panoptic"),
        ({"name": "x", "paper": {"table": "II", "dataset": "scannetpp"}}, "there is no table II on scannetpp"),
    ],
)
def test_a_plan_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, plan: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_plan(_write(tmp_path, plan))
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")


def test_the_paper_s_figures_are_those_printed() -> None:
    one = paper().tables["I"]
    assert one.datasets["scannet"]["Ours"] == [74.75, 74.75, 100.0, 74.95, 83.70, 73.18, 79.63]
    assert one.datasets["scannetpp"]["PVLFF"] == [52.24, 66.86, 65.56, 62.53, 70.31, 67.95, 75.47]
    assert [row[-1] for row in paper().tables["II"].datasets["scannet"].values()] == [76.43, 75.98, 79.63]
    assert len(one.datasets["scannet"]) == len(one.datasets["scannetpp"]) == 7
    # Every row of every table is as long as its heading, and the method's own row is the same in I, II and III.
    for table in paper().tables.values():
        assert {len(row) for rows in table.datasets.values() for row in rows.values()} == {len(table.columns)}
    own = {"I": "Ours", "II": "LI-GS", "III": "LB+WP"}
    assert len({tuple(paper().tables[n].datasets["scannet"][row]) for n, row in own.items()}) == 1


def test_tables_of_the_paper_are_grey_and_unranked_throughout() -> None:
    table = paper_table("IV", "scannet")
    assert [column.key for column in table.columns] == ["PQ", "mIoU", "mCov", "gaussians", "peak_memory_bytes"]
    assert {row.kind for row in table.rows} == {"paper"}
    assert [cell.text for cell in table.rows[0].cells] == ["74.60", "74.87", "73.26", "296", "18.59"]
    assert all(row.rank is None and not any(cell.best for cell in row.cells) for row in table.rows)


def test_rows_that_were_not_run_show_the_paper_s_figures_or_say_why() -> None:
    plan = PlanOutline(
        "t1",
        methods=(PlannedMethod("OpenGaussian", "OpenGaussian", "not built"), PlannedMethod("new idea")),
        table="I",
        dataset="scannet",
    )
    quoted, absent = plan_table(plan, None).rows
    assert (quoted.kind, quoted.cells[0].text) == ("paper", "48.73")
    assert quoted.label == "not run: not built; the paper's figures"
    assert (absent.kind, absent.label) == ("absent", "not run")
    assert all(cell.value is None for cell in absent.cells)
