"""What the paper and this suite claim of methods, as comparisons that a results store can answer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from benchmark.report import table
from panbench.protocol.score import STRICT
from panbench.report.board_tables import MEASURED
from panbench.report.boards import Board, Entry
from panbench.report.paper import paper
from panbench.report.site import PlanPage
from panbench.report.statistics import Difference, difference, summarise
from panbench.report.tables import heading

Sign = Literal["<", ">", "="]
COLUMNS = {column.key: column for column in MEASURED}


class Claim(NamedTuple):
    """``left`` is less than, greater than or as good as ``right`` in a metric, in the results of a plan.

    Attributes:
        paper: number of the paper's table and its names of the two rows, where it has such a figure.
    """

    plan: str
    left: str
    sign: Sign
    right: str
    metric: str = "PQ"
    paper: tuple[str, str, str] | None = None


def _table3(masks: str) -> list[Claim]:
    plan, names = f"rooms_table3_{masks}", ("feature-blending", "label-blending", "label-blending-warping")
    rows = ("FB", "LB", "LB+WP")
    return [
        Claim(plan, names[i], "<", names[i + 1], metric, ("III", rows[i], rows[i + 1]))
        for i in (0, 1)
        for metric in ("PQ", "mIoU")
    ]


CLAIMS: tuple[Claim, ...] = (
    *(Claim("rooms_table2", base, "<", "3dgs-query", "depth_l1") for base in ("ligs-query", "2dgs-query")),
    *(Claim("rooms_table2", "ligs-query", "<", f"{b}-query", "gaussians") for b in ("3dgs", "2dgs", "surfels")),
    *(
        Claim("rooms_table2", "ligs-query", ">", f"{b}-query", "PQ", ("II", "LI-GS", b.upper()))
        for b in ("3dgs", "2dgs")
    ),
    *_table3("medium"),
    *_table3("heavy"),
    *(
        Claim("rooms_table4", f"{b}-query", "=", f"{b}-global", "PQ", ("IV", f"Local CA {name}", f"Global CA {name}"))
        for b, name in (("ligs", "LI-GS"), ("2dgs", "2DGS"))
    ),
    *(
        Claim(
            "rooms_table4", f"{b}-query", "<", f"{b}-global", "peak_memory_bytes",
            ("IV", f"Local CA {name}", f"Global CA {name}"),
        )
        for b, name in (("ligs", "LI-GS"), ("2dgs", "2DGS"))
    ),
    Claim("rooms_table4_heavy", "ligs-query", "=", "ligs-global", "PQ", ("IV", "Local CA LI-GS", "Global CA LI-GS")),
    Claim("rooms_best", "best", ">", "ligs-query", "PQ"),
    Claim("rooms_best", "best", ">", "ligs-query", "mIoU"),
)  # fmt: skip


def verdict(claim: Claim, change: Difference) -> str:
    """What a difference (left − right) and its interval say of a claim."""
    if math.isnan(change.value):
        return "not measured"
    if claim.sign == "=":
        return "yes: no difference beyond the noise" if change.noise else "**no**: they differ beyond the noise"
    wanted = change.value > 0 if claim.sign == ">" else change.value < 0
    if change.noise:
        return f"not shown: {'in the claimed direction' if wanted else 'against it'}, inside the noise"
    return "yes" if wanted else "**no**: the opposite"


def markdown(plans: Iterable[PlanPage], protocol: str = STRICT) -> str:
    """Every claim with what was measured; those whose plan has no results are left out.

    Args:
        plans: with their boards.
        protocol: whose scores count.
    """
    boards = {page.plan.name: [b for b in page.boards if b.key.protocol == protocol] for page in plans}
    rows: list[list[str]] = []
    for claim in CLAIMS:
        for board in boards.get(claim.plan, ()):
            row = _row(claim, board)
            rows += [] if row is None else [row]
    if not rows:
        return ""
    note = (
        f"Scores by `{protocol}`; mean over seeds, then rooms, ± the standard deviation over seeds of the mean over "
        "rooms. The difference stands with the 95 % interval of a bootstrap over rooms and seeds; where that holds 0, "
        "the difference lies inside the noise. Differences in the paper's tables are of other data and code."
    )
    head = ["plan", "claim", "metric", "left", "right", "difference", "in the paper", "measured"]
    return note + "\n\n" + table(head, rows)


def _row(claim: Claim, board: Board) -> list[str] | None:
    left, right = (_entry(board, name) for name in (claim.left, claim.right))
    if left is None or right is None:
        return None
    column, scenes = COLUMNS[claim.metric], board.defined_scenes(claim.metric)
    scale, digits = column.scale, column.digits or 0
    ours, theirs = (entry.samples(claim.metric, scenes) for entry in (left, right))
    summaries = [summarise(s, "mean") for s in (ours, theirs)]
    shown = [
        f"{s.mean * scale:.{digits}f}" + ("" if math.isnan(s.sd) else f" ± {s.sd * scale:.{digits}f}")
        for s in summaries
    ]
    change = difference(ours, theirs, "mean") if scenes and set(ours) == set(theirs) else _UNKNOWN
    told = "–" if math.isnan(change.value) else f"{change.value * scale:+.{digits}f}"
    if not math.isnan(change.low):
        told += f" [{change.low * scale:+.{digits}f}, {change.high * scale:+.{digits}f}]"
    sign = {"=": "as good as"}.get(claim.sign, claim.sign)
    return [
        claim.plan, f"{claim.left} {sign} {claim.right}", heading(column), *shown, told, _in_paper(claim),
        verdict(claim, change),
    ]  # fmt: skip


_UNKNOWN = Difference(math.nan, math.nan, math.nan, "")


def _entry(board: Board, method: str) -> Entry | None:
    """The method's entry; of several settings the newest."""
    mine = [e for e in board.entries if e.method == method and not e.training_free]
    return max(mine, key=lambda e: max(s.result.origin.created for s in e.all()), default=None)


def _in_paper(claim: Claim) -> str:
    if claim.paper is None:
        return "–"
    number, left, right = claim.paper
    quoted = paper().tables[number]
    if claim.metric not in quoted.columns:
        return "–"
    place, rows = quoted.columns.index(claim.metric), quoted.datasets["scannet"]
    return f"{rows[left][place] - rows[right][place]:+.2f}"
