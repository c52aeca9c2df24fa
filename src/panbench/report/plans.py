"""What a report reads of a plan file: its names, their order, and the paper's table that it mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from panbench.authored import read_mapping
from panbench.errors import UserError
from panbench.report.paper import paper


@dataclass(frozen=True)
class PlannedMethod:
    """A row of a plan's table: its name, the paper's row beside it and why it cannot be run, where there is one."""

    name: str
    paper: str = ""
    unavailable: str = ""


@dataclass(frozen=True)
class PlanOutline:
    """A plan as far as tables are concerned.

    Attributes:
        name, title, description: as in the file.
        methods: in order; crossed bases and heads follow the listed methods.
        bases, heads: names in order; empty unless crossed.
        scenes: names in order.
        axis: what its study varies, "" for none.
        table, dataset: the paper's table that it mirrors and the data set in it, "" for none.
    """

    name: str
    title: str = ""
    description: str = ""
    methods: tuple[PlannedMethod, ...] = ()
    bases: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    axis: str = ""
    table: str = ""
    dataset: str = ""


def read_plan(path: Path) -> PlanOutline:
    """Read a plan file.

    Raises:
        UserError: if it cannot be read, is no plan, or names a table that the paper does not have.
    """
    plan = read_mapping(path, "a plan")
    if not isinstance(plan.get("name"), str):
        raise UserError(f"{path}: is no plan: it has no name")
    bases, heads = (tuple(map(str, plan.get(key) or ())) for key in ("bases", "heads"))
    listed = [_method(path, item) for item in _items(path, plan, "methods")]
    crossed = [PlannedMethod(f"{base}-{head}") for base in bases for head in heads]
    quoted, study = _mapping(path, plan, "paper"), _mapping(path, plan, "study")
    table, dataset = str(quoted.get("table") or ""), str(quoted.get("dataset") or "")
    if table and dataset not in (paper().tables[table].datasets if table in paper().tables else ()):
        known = ", ".join(f"{n} ({', '.join(t.datasets)})" for n, t in paper().tables.items())
        raise UserError(f"{path}: paper: there is no table {table} on {dataset or 'no dataset'}: known: {known}")
    for method in listed if table else ():
        rows = paper().tables[table].datasets[dataset]
        if method.paper and method.paper not in rows:
            raise UserError(
                f"{path}: methods: {method.name}: the paper's Table {table} has no row {method.paper!r}: "
                f"it has {', '.join(rows)}"
            )
    return PlanOutline(
        name=plan["name"],
        title=str(plan.get("title") or ""),
        description=str(plan.get("description") or ""),
        methods=(*listed, *crossed),
        bases=bases,
        heads=heads,
        scenes=tuple(str(item["name"] if isinstance(item, dict) else item) for item in _items(path, plan, "scenes")),
        axis=str(study.get("axis") or ""),
        table=table,
        dataset=dataset,
    )


def _method(path: Path, item: object) -> PlannedMethod:
    if not isinstance(item, dict) or not item.get("name"):
        raise UserError(f"{path}: methods: every method needs a name")
    method = cast("dict[str, Any]", item)
    return PlannedMethod(str(method["name"]), str(method.get("paper") or ""), str(method.get("unavailable") or ""))


def _items(path: Path, plan: Mapping[str, Any], key: str) -> list[Any]:
    items = plan.get(key) or []
    if not isinstance(items, list):
        raise UserError(f"{path}: {key}: is no list")
    return cast("list[Any]", items)


def _mapping(path: Path, plan: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    items = plan.get(key) or {}
    if not isinstance(items, dict):
        raise UserError(f"{path}: {key}: is no mapping")
    return cast("dict[str, Any]", items)
