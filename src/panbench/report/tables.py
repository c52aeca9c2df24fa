"""The one model of a table, and the table as Markdown, CSV and LaTeX. The site draws the same model as HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from panbench.report.statistics import Difference

NONE = "–"

Kind = Literal["verified", "submitted", "paper", "absent"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: name in CSV.
        title: heading.
        digits: decimals; None for text.
        better: which end is good, "" for neither.
        unit: shown behind the heading.
        scale: factor from stored to shown values.
        group: heading above the heading, "" for none.
        help: one sentence for readers who do not know the column.
    """

    key: str
    title: str
    digits: int | None = 1
    better: Literal["high", "low", ""] = "high"
    unit: str = ""
    scale: float = 1.0
    group: str = ""
    help: str = ""

    @property
    def numeric(self) -> bool:
        """True for numbers."""
        return self.digits is not None

    def show(self, value: float) -> str:
        """A value with its decimals; a dash for nan."""
        if math.isnan(value):
            return NONE
        text = f"{value:,.{self.digits or 0}f}"
        return f"0{text[2:]}" if text.startswith("-0") and not float(text.replace(",", "")) else text


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: the number that is shown, in the column's unit; None for text.
        text: shown instead of a number.
        spread: standard deviation; nan without one.
        n: values behind the mean: seeds × scenes.
        best: this is the best value of its column among the ranked rows.
        difference: to the best row; None for the best row and where rows cannot be paired.
        href: where the cell leads, relative to the site; "" nowhere.
        note: what a reader should know of this cell.
    """

    value: float | None = None
    text: str = ""
    spread: float = math.nan
    n: int = 0
    best: bool = False
    difference: Difference | None = None
    href: str = ""
    note: str = ""

    @property
    def grey(self) -> bool:
        """True if the difference to the best row lies inside the noise."""
        return self.difference is not None and not math.isnan(self.difference.value) and self.difference.noise


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: heading of the row.
        cells: one a column.
        kind: ``verified``, ``submitted``, ``paper`` (quoted) or ``absent`` (not run).
        rank: place among the ranked rows; None for rows that are not ranked.
        label: small print under the name.
        note: why it is not ranked, or what else to know.
        key: identity across tables.
    """

    name: str
    cells: tuple[Cell, ...]
    kind: Kind = "verified"
    rank: int | None = None
    label: str = ""
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Section:
    """Rows under one heading; rows of different sections are never compared. "" needs no heading."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        slug: file name without its ending.
        title: caption.
        head: heading of the column of names.
        columns: without that of names.
        sections: with at least one row each.
        notes: sentences below the table.
    """

    slug: str
    title: str
    head: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> list[Row]:
        """Rows of all sections."""
        return [row for section in self.sections for row in section.rows]


def mark_best(columns: Sequence[Column], rows: Sequence[Sequence[float]]) -> list[list[bool]]:
    """Which values [row][column] are the best of their column as shown; none where all look the same."""
    out = [[False] * len(columns) for _ in rows]
    for c, column in enumerate(columns):
        known = [row[c] for row in rows if not math.isnan(row[c])]
        if column.better == "" or len({column.show(v) for v in known}) < 2:
            continue
        best = max(known) if column.better == "high" else min(known)
        for r, row in enumerate(rows):
            out[r][c] = not math.isnan(row[c]) and column.show(row[c]) == column.show(best)
    return out


def shown(cell: Cell, column: Column) -> str:
    """The cell as plain text: ``74.8 ± 0.3``, text, or a dash."""
    if cell.text or cell.value is None:
        return cell.text or NONE
    text = column.show(cell.value)
    return text if math.isnan(cell.spread) else f"{text} ± {column.show(cell.spread)}"


def heading(column: Column) -> str:
    """Title and unit."""
    return f"{column.title} ({column.unit})" if column.unit else column.title


def markdown(table: Table) -> str:
    """GitHub's Markdown: best values bold, those that cannot be told from the best marked ≈, quoted rows in italics."""
    columns = table.columns
    lines = [
        f"**{_md(table.title)}**",
        "",
        f"| {_md(table.head)} | {' | '.join(_md(heading(c)) for c in columns)} |",
        f"|---|{''.join('---:|' if c.numeric else '---|' for c in columns)}",
    ]
    for section in table.sections:
        if section.title:
            lines.append(f"| *{_md(section.title)}* |{' |' * len(columns)}")
        for row in section.rows:
            cells = [_md_cell(cell, column, row) for cell, column in zip(row.cells, columns, strict=True)]
            name = _md(row.name) + (f" ({_md(row.label)})" if row.label else "")
            lines.append(f"| {f'*{name}*' if row.kind == 'paper' else name} | {' | '.join(cells)} |")
    for note in _notes(table):
        lines += ["", _md(note)]
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """One line a row. A numeric column has its value, and beside it ``_sd`` and ``_n``; where rows were compared also
    the difference to the best row, the ends of its interval and whether it is noise."""
    compared = [any(row.cells[i].difference for row in table.rows) for i in range(len(table.columns))]
    header = ["section", table.head, "kind", "rank"]
    for column, more in zip(table.columns, compared, strict=True):
        header.append(column.key)
        if column.numeric:
            header += [f"{column.key}_sd", f"{column.key}_n"]
            if more:
                header += [f"{column.key}_{what}" for what in ("difference", "low", "high", "noise")]
    header.append("note")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for section in table.sections:
        for row in section.rows:
            out = [section.title, row.name, row.kind, "" if row.rank is None else str(row.rank)]
            for cell, column, more in zip(row.cells, table.columns, compared, strict=True):
                if not column.numeric:
                    out.append(cell.text)
                    continue
                out += [_number(cell.value), _number(cell.spread), str(cell.n or "")]
                if more:
                    d = cell.difference
                    out += ["", "", "", ""] if d is None else [_number(d.value), _number(d.low), _number(d.high)]
                    out += [] if d is None else [str(d.noise).lower()]
            out.append("; ".join(part for part in (row.label, row.note) if part))
            writer.writerow(out)
    return stream.getvalue()


def latex(table: Table) -> str:
    """A LaTeX table with booktabs; needs ``\\usepackage{booktabs,xcolor}``. Spread is small, quoted rows are grey."""
    columns = table.columns
    spec = "l" + "".join("r" if column.numeric else "l" for column in columns)
    lines = [
        "% needs \\usepackage{booktabs,xcolor}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(table.title)}}}",
        f"  \\label{{tab:{table.slug}}}",
        f"  \\begin{{tabular}}{{{spec}}}",
        "    \\toprule",
    ]
    if any(column.group for column in columns):
        lines += ["    " + line for line in _tex_groups(columns)]
    lines += [f"    {_tex(table.head)} & {' & '.join(_tex(heading(c)) for c in columns)} \\\\", "    \\midrule"]
    for i, section in enumerate(table.sections):
        if i:
            lines.append("    \\midrule")
        if section.title:
            lines.append(f"    \\multicolumn{{{len(columns) + 1}}}{{l}}{{\\emph{{{_tex(section.title)}}}}} \\\\")
        for row in section.rows:
            name = _tex(row.name) + (f" {{\\scriptsize {_tex(row.label)}}}" if row.label else "")
            cells = [name, *(_tex_cell(cell, column) for cell, column in zip(row.cells, columns, strict=True))]
            if row.kind == "paper":
                cells = [f"\\textcolor{{gray}}{{{cell}}}" for cell in cells]
            lines.append(f"    {' & '.join(cells)} \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    lines += [f"  % {note}" for note in _notes(table)]
    lines.append("\\end{table}")
    return "\n".join(lines) + "\n"


def _notes(table: Table) -> list[str]:
    rows = [f"{row.name}: {row.note}." for row in table.rows if row.note and row.kind != "absent"]
    return [*table.notes, *dict.fromkeys(rows)]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _md(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _md_cell(cell: Cell, column: Column, row: Row) -> str:
    text = _md(shown(cell, column))
    if text == NONE:
        return text
    if row.kind == "paper":
        return f"*{text}*"
    return f"**{text}**" if cell.best else f"{text} ≈" if cell.grey else text


_TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "≈": "$\\approx$",
    "≥": "$\\geq$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _tex_cell(cell: Cell, column: Column) -> str:
    if cell.text or cell.value is None:
        return _tex(cell.text or NONE)
    value = _tex(column.show(cell.value))
    value = f"\\textbf{{{value}}}" if cell.best else value
    if not math.isnan(cell.spread):
        value += f"\\,{{\\scriptsize$\\pm${column.show(cell.spread)}}}"
    return f"{value}$^{{\\approx}}$" if cell.grey else value


def _tex_groups(columns: Sequence[Column]) -> list[str]:
    cells, rules, at = [""], list[str](), 2
    runs: list[tuple[str, int]] = []
    for column in columns:
        if runs and runs[-1][0] == column.group:
            runs[-1] = (column.group, runs[-1][1] + 1)
        else:
            runs.append((column.group, 1))
    for group, width in runs:
        cells.append(f"\\multicolumn{{{width}}}{{c}}{{{_tex(group)}}}" if group or width > 1 else "")
        if group:
            rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    return [f"{' & '.join(cells)} \\\\", " ".join(rules)]
