"""The verb ``panbench report``: the results store as a static site, and every table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from panbench.errors import UserError

_EPILOG = """\
The site opens from its folder: no server, no network. Tables are in OUT/tables, each as .md, .csv and .tex.

  panbench report                                     the store results/ as site/
  panbench report --plan configs/bench/table1.yaml    also the rows of a plan that were not run
  panbench report --tables-only --out docs/tables     no pages, only tables
"""


def main(argv: Sequence[str]) -> int:
    """Run ``panbench report ...``; returns the exit status.

    Raises:
        UserError: without a store, for a plan that cannot be read, or if the site would replace something else.
    """
    parser = argparse.ArgumentParser(
        prog="panbench report",
        description="Make a static site from a results store: leaderboards, plans, studies, pictures, commands.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store", type=Path, default=Path("results"), metavar="FOLDER", help="results store (default: results)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write; an earlier report there is replaced (default: site)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="run directories, for pictures (default runs)"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="plan files: their order of methods, and what was not run; those of --bench are read anyway",
    )
    parser.add_argument(
        "--bench", type=Path, default=Path("bench"), metavar="FOLDER", help="bench folders with plans (default: bench)"
    )
    parser.add_argument(
        "--tables-only", action="store_true", help="write only the tables, into OUT itself (default: tables)"
    )
    args = parser.parse_args(list(argv))

    from panbench.protocol.store import ResultStore
    from panbench.report.plans import read_plan
    from panbench.report.site import compile_report, write_site, write_tables

    if not args.store.is_dir():
        raise UserError(f"{args.store}: no such folder: give the results store as --store FOLDER")
    # A plan on the command line takes the place of the copy that its bench folder keeps.
    plans = {plan.name: plan for plan in map(read_plan, [*sorted(args.bench.glob("*/plan.yaml")), *args.plan])}
    report = compile_report(ResultStore(args.store), list(plans.values()))
    if args.tables_only:
        folder = args.out or Path("tables")
        write_tables(report, folder)
        sys.stdout.write(f"{len(report.tables())} tables in {folder}\n")
        return 0
    index = write_site(report, args.out or Path("site"), args.runs, args.store)
    sys.stdout.write(f"{index}\n")
    return 0
