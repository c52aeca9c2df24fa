"""The table at the end of a run: its scores beside the anchors', under each protocol, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from panbench.protocol.results import SceneResult

METRICS = ("PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov", "mWCov")
_NONE = "–"


@dataclass(frozen=True)
class Row:
    """One method of the table: its results by protocol, in the order of the table's sections."""

    name: str
    results: Mapping[str, SceneResult]


def print_summary(rows: Sequence[Row], console: Console) -> None:
    """Print one section a protocol, then one of image quality and cost; the best value of a column is bold.

    Args:
        rows: the run first; every row has the same protocols.
        console: where to.
    """
    first = _first(rows)
    console.print()
    console.print(f"[bold]{escape(_title(first))}[/]", highlight=False)
    for protocol in rows[0].results:
        table = Table(title=escape(protocol), title_justify="left", title_style="italic", box=None, padding=(0, 1))
        table.add_column("method", min_width=14)
        for metric in METRICS:
            table.add_column(metric, justify="right", min_width=5)
        best = {m: max((_score(r, protocol, m) for r in rows), default=math.nan) for m in METRICS}
        for row in rows:
            cells = [_bold(_score(row, protocol, m), best[m], len(rows) > 1) for m in METRICS]
            table.add_row(escape(row.name), *cells)
        console.print(table)
    costs = Table(title="image quality and cost", title_justify="left", title_style="italic", box=None, padding=(0, 1))
    costs.add_column("method", min_width=14)
    for column in _COSTS:
        costs.add_column(column, justify="right")
    for row in rows:
        costs.add_row(escape(row.name), *_cost_cells(_first([row])))
    console.print(costs)


def markdown_summary(rows: Sequence[Row]) -> str:
    """The same as Markdown: one table a protocol, one of costs."""
    lines = [f"# {_title(_first(rows))}", ""]
    for protocol in rows[0].results:
        lines += _markdown_table(
            protocol, METRICS, [(r.name, [_number(_score(r, protocol, m)) for m in METRICS]) for r in rows]
        )
    lines += _markdown_table("image quality and cost", _COSTS, [(r.name, _cost_cells(_first([r]))) for r in rows])
    return "\n".join(lines).rstrip() + "\n"


_COSTS = ("PSNR dB", "SSIM", "depth cm", "Gaussians", "time", "memory")


def _cost_cells(result: SceneResult) -> list[str]:
    cost = result.cost
    memory = cost.get("peak_memory_bytes")
    gaussians = cost.get("gaussians")
    ssim, depth = (result.metrics.get(key, math.nan) for key in ("SSIM", "depth_l1"))
    return [
        _number(result.metrics.get("PSNR", math.nan), 2),
        _number(ssim, 3),
        _number(depth, 2),
        _NONE if gaussians is None else f"{int(gaussians):,}",
        duration(cost["fit_seconds"]) if "fit_seconds" in cost else _NONE,
        _NONE if memory is None else f"{memory / 2**30:.2f} GiB",
    ]


def duration(seconds: float) -> str:
    """``0.8 s``, ``47 s``, ``3 min 12 s`` or ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _title(result: SceneResult) -> str:
    height, width = result.image_size
    what = " (synthetic)" if result.synthetic else ""
    frames = "1 test frame" if len(result.frames) == 1 else f"{len(result.frames)} test frames"
    return (
        f"{result.dataset} {result.scene}{what}: {frames} at {width}x{height}, "
        f"{len(result.per_class)} classes, seed {result.seed}"
    )


def _first(rows: Sequence[Row]) -> SceneResult:
    return next(iter(rows[0].results.values()))


def _score(row: Row, protocol: str, metric: str) -> float:
    return row.results[protocol].metrics.get(metric, math.nan)


def _number(value: float, digits: int = 1) -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _bold(value: float, best: float, contested: bool) -> str:
    return f"[bold]{_number(value)}[/]" if contested and value >= best else _number(value)


def _markdown_table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    return [
        f"| {title} | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows),
        "",
    ]
