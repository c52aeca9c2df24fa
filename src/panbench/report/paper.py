"""The figures that the paper prints, to stand beside ours: quoted, never averaged, ranked or compared."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any, cast

import yaml
from pydantic import BaseModel, ConfigDict

from panbench.report.tables import Cell, Column, Row

SOURCE = "quoted from the paper; other data, training and evaluation code: not to be compared with rows of this suite"


class PaperTable(BaseModel):
    """One table of the paper: figures by data set, row and column."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    columns: list[str]
    own_labels: list[str] = []
    datasets: dict[str, dict[str, list[float]]]

    def row(self, dataset: str, name: str, columns: tuple[Column, ...], label: str = "") -> Row | None:
        """The named row with the figures that it has of these columns; None if the paper has no such row.

        ``label`` is its small print, to which own masks are added.
        """
        figures = self.datasets.get(dataset, {}).get(name)
        if figures is None:
            return None
        known = dict(zip(self.columns, figures, strict=True))
        cells = tuple(_cell(known.get(column.key), column) for column in columns)
        own = "own masks" if name in self.own_labels else ""
        small = ", ".join(part for part in (label, own) if part)
        return Row(name, cells, "paper", label=small, key=f"paper/{dataset}/{name}")

    def rows(self, dataset: str, columns: tuple[Column, ...]) -> list[Row]:
        """All rows of one data set."""
        found = (self.row(dataset, name, columns) for name in self.datasets.get(dataset, {}))
        return [row for row in found if row is not None]


class Paper(BaseModel):
    """The paper, the scenes it was run on by data set, and its tables by number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    authors: str
    scenes: dict[str, list[str]]
    tables: dict[str, PaperTable]


@functools.cache
def paper() -> Paper:
    """The shipped figures."""
    text = (files("panbench.report") / "paper.yaml").read_text(encoding="utf-8")
    return Paper.model_validate(cast("dict[str, Any]", yaml.safe_load(text)))


def _cell(figure: float | None, column: Column) -> Cell:
    if figure is None:
        return Cell()
    return Cell(figure, text=f"{figure:g}" if column.key == "gaussians" else f"{figure:.2f}", note=SOURCE)
