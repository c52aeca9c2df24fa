"""One table in three formats."""

from __future__ import annotations

import csv
import io
import math

import pytest

from panbench.report.statistics import Difference
from panbench.report.tables import Cell, Column, Row, Section, Table, csv_text, latex, mark_best, markdown, shown

PQ = Column("PQ", "PQ")
SIZE = Column("gaussians", "Gaussians", 1, "low", "k", 1e-3)
NOISE = Difference(-0.4, -1.2, 0.3, "scenes")
CLEAR = Difference(-9.0, -12.0, -6.0, "scenes")

TABLE = Table(
    "t",
    "Rooms & scans_1",
    "Method",
    (PQ, SIZE, Column("seeds", "Seeds", None)),
    (
        Section(
            "Run | here",
            (
                Row("a_b", (Cell(74.75, spread=0.31, n=9, best=True), Cell(162.7, best=True), Cell(text="3")), rank=1),
                Row("c", (Cell(74.35, difference=NOISE), Cell(170.0), Cell(text="3")), rank=2, label="own masks"),
                Row(
                    "d", (Cell(65.75, difference=CLEAR), Cell(math.nan), Cell(text="1")), note="not ranked: without r2"
                ),
            ),
        ),
        Section("Paper", (Row("p", (Cell(63.7, text="63.70"), Cell(), Cell()), "paper"),)),
    ),
    ("± is over 3 seeds.",),
)


def test_markdown_marks_the_best_the_noise_and_what_is_quoted() -> None:
    lines = markdown(TABLE).splitlines()
    assert "| Method | PQ | Gaussians (k) | Seeds |" in lines
    assert "|---|---:|---:|---|" in lines
    assert "| a\\_b | **74.8 ± 0.3** | **162.7** | 3 |" in lines
    assert "| c (own masks) | 74.3 ≈ | 170.0 | 3 |" in lines
    assert "| d | 65.8 | – | 1 |" in lines
    assert "| *p* | *63.70* | – | – |" in lines
    assert "| *Run \\| here* | | | |" in lines
    assert lines[-3:] == ["± is over 3 seeds.", "", "d: not ranked: without r2."]


def test_every_markdown_row_has_the_same_number_of_cells() -> None:
    rows = [line.replace("\\|", "") for line in markdown(TABLE).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}


def test_csv_has_the_numbers_behind_the_marks() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(TABLE))))
    assert [row["Method"] for row in rows] == ["a_b", "c", "d", "p"]
    assert (rows[0]["PQ"], rows[0]["PQ_sd"], rows[0]["PQ_n"], rows[0]["PQ_noise"]) == ("74.75", "0.31", "9", "")
    assert (rows[1]["PQ_difference"], rows[1]["PQ_low"], rows[1]["PQ_high"]) == ("-0.4", "-1.2", "0.3")
    assert (rows[1]["PQ_noise"], rows[2]["PQ_noise"]) == ("true", "false")
    assert (rows[2]["gaussians"], rows[3]["kind"], rows[3]["PQ"]) == ("", "paper", "63.7")
    assert "gaussians_low" not in rows[0]


def test_latex_is_a_booktabs_table_with_its_letters_escaped() -> None:
    text = latex(TABLE)
    for part in ("\\toprule", "\\midrule", "\\bottomrule", "Rooms \\& scans\\_1", "a\\_b", "Gaussians (k)", "{lrrl}"):
        assert part in text
    assert "\\textbf{74.8}\\,{\\scriptsize$\\pm$0.3}" in text
    assert "74.3$^{\\approx}$" in text
    assert "\\textcolor{gray}{63.70}" in text
    body = [line for line in text.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert {line.replace("\\&", "").count("&") for line in body} == {3}
    assert text.count("{") == text.count("}")


def test_columns_in_groups_have_rules_under_the_group() -> None:
    columns = (Column("a", "PQ", group="rooms"), Column("b", "SQ", group="rooms"), Column("c", "N"))
    text = latex(Table("t", "t", "Method", columns, (Section("", (Row("m", (Cell(1.0), Cell(2.0), Cell(3.0))),)),)))
    assert "\\multicolumn{2}{c}{rooms}" in text
    assert "\\cmidrule(lr){2-3}" in text


def test_the_best_is_what_looks_best_and_none_where_all_look_the_same() -> None:
    marks = mark_best((PQ, SIZE, PQ), [[74.76, 3.0, 5.0], [74.84, 2.0, 5.0], [60.0, math.nan, 5.0]])
    assert marks == [[True, False, False], [True, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1234567.0, 0, "1,234,567"), (-0.04, 1, "0.0"), (-0.4, 0, "0"), (math.nan, 1, "–"), (2.345, 2, "2.35")],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert Column("x", "x", digits).show(value) == text


def test_a_spread_is_shown_where_there_is_one() -> None:
    assert shown(Cell(70.0), PQ) == "70.0"
    assert shown(Cell(70.0, spread=0.25), PQ) == "70.0 ± 0.2"
