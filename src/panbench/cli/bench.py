"""The verb ``panbench bench``: run a plan, or what is missing of it."""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from panbench.cli.options import positive, stoppable
from panbench.errors import UserError

if TYPE_CHECKING:
    from panbench.bench.engine import Engine
    from panbench.bench.plan import Cell, Plan
    from panbench.bench.runner import BenchFolder, CellRecord, State

log = logging.getLogger(__name__)

_LITTLE_SPACE = 2 << 30


def main(argv: Sequence[str]) -> int:
    """Run ``panbench bench ...``; returns the exit status: 1 if a cell failed.

    Raises:
        UserError: with cause and remedy, if the plan is wrong or nothing can be written.
        Interrupted: on Ctrl-C or SIGTERM, after what ran was ended.
    """
    args = _parser().parse_args(list(argv))

    from panbench.bench.plan import cells, find_plan, load_plan
    from panbench.bench.runner import BenchFolder
    from panbench.protocol.store import ResultStore
    from panbench.training.files import write_text

    path = find_plan(args.plan)
    plan = load_plan(path)
    wanted = _only(cells(plan, path), args.only)
    if args.slurm is not None:
        return _write_slurm(args, path)
    bench = BenchFolder(args.folder / plan.name, ResultStore(args.store), args.runs, plan)
    state = bench.state(wanted, retry_failed=args.retry_failed)
    workers = _workers(args, plan)
    _show_plan(plan, state, args, workers)
    if args.dry_run:
        _show_cells(state)
        return 0
    if not state.pending:
        return _close(plan, bench, state.cells, args)
    with bench.locked():
        # Once more, now that no other runner changes it.
        state = bench.state(wanted, retry_failed=args.retry_failed)
        write_text(bench.folder / "plan.yaml", path.read_text(encoding="utf-8"))
        _run(bench, state, _engine(args, plan, workers), workers if args.engine == "local" else 1)
    return _close(plan, bench, state.cells, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panbench bench",
        description="Run every cell (method, scene, seed) of a plan that has no result yet. After a crash the "
        "same command continues. What a plan is: docs/bench.md.",
        epilog="panbench bench configs/bench/quick.yaml && panbench report",
    )
    parser.add_argument("plan", metavar="FILE", help="plan, e.g. configs/bench/quick.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run, and with which commands; run nothing"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="only cells whose method/scene/seed match, e.g. 'ligs-*' or '*/room 0/s1'; may be given again",
    )
    parser.add_argument("--retry-failed", action="store_true", help="run cells that failed before once more")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="where cells run (default: local)")
    parser.add_argument("--workers", type=positive, metavar="N", help="local: cells side by side (default: what fits)")
    parser.add_argument("--address", help="ray: of the cluster, or auto; default: a cluster of this machine alone")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="tries more for a cell that was killed")
    parser.add_argument("--folder", type=Path, default=Path("bench"), help="state and logs (default: bench)")
    parser.add_argument("--store", type=Path, default=Path("results"), help="results store (default: results)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="run directories (default: runs)")
    parser.add_argument(
        "--slurm", type=Path, metavar="OUT.sh", help="write a batch script that runs the plan, run nothing"
    )
    slurm = parser.add_argument_group("for --slurm")
    slurm.add_argument("--nodes", type=positive, default=1)
    slurm.add_argument("--gpus-per-node", type=int, default=1)
    slurm.add_argument("--cpus-per-node", type=positive, default=16)
    slurm.add_argument("--time", default="24:00:00", help="limit of the job")
    slurm.add_argument("--partition")
    return parser


def _only(all_cells: Sequence[Cell], patterns: Sequence[str] | None) -> list[Cell]:
    if patterns is None:
        return list(all_cells)
    chosen = [c for c in all_cells if any(fnmatch(c.name, p) or fnmatch(c.name, f"{p}/*") for p in patterns)]
    if not chosen:
        raise UserError(f"--only {' '.join(patterns)} matches no cell; they are named like {all_cells[0].name}")
    return chosen


def _workers(args: argparse.Namespace, plan: Plan) -> int:
    """Cells side by side on this machine: as many as its GPUs, or its cores, hold."""
    if args.workers is not None:
        return args.workers
    from panbench.bench.local import visible_gpus

    needs, cores = plan.resources, os.cpu_count() or 1
    by_cores = max(1, int(cores / needs.cpus)) if needs.cpus else 1
    if needs.gpus:
        return max(1, min(by_cores if needs.cpus else cores, int(len(visible_gpus()) / needs.gpus)))
    return by_cores


def _engine(args: argparse.Namespace, plan: Plan, workers: int) -> Engine:
    if args.engine == "ray":
        from panbench.bench.ray import RayEngine

        return RayEngine(args.address, retries=args.retries)
    from panbench.bench.local import LocalEngine, visible_gpus

    return LocalEngine(workers, retries=args.retries, devices=visible_gpus() if plan.resources.gpus else ())


def _write_slurm(args: argparse.Namespace, path: Path) -> int:
    from panbench.bench.slurm import script
    from panbench.training.files import write_text

    options = ["--folder", str(args.folder), "--store", str(args.store), "--runs", str(args.runs)]
    options += [word for pattern in args.only or () for word in ("--only", pattern)]
    options += ["--retry-failed"] if args.retry_failed else []
    text = script(
        path,
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        cpus_per_node=args.cpus_per_node,
        time=args.time,
        partition=args.partition,
        options=[*options, "--retries", str(args.retries)],
    )
    write_text(args.slurm, text)
    log.info("wrote %s; submit it with: sbatch %s", args.slurm, args.slurm)
    return 0


def _show_plan(plan: Plan, state: State, args: argparse.Namespace, workers: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from panbench.bench.runner import estimate
    from panbench.cli.console import stdout
    from panbench.report.summary import duration

    console = stdout()
    console.print(f"[bold]{escape(plan.title or plan.name)}[/]", highlight=False)
    table = Table(box=None, padding=(0, 1))
    for title in ("method", "cells", "done", "failed", "to run"):
        table.add_column(title, justify="left" if title == "method" else "right")
    pending = {cell.key for cell in state.pending}
    for method in plan.all_methods():
        own = [cell for cell in state.cells if cell.method.name == method.name]
        if method.unavailable is not None:
            table.add_row(escape(method.name), f"[dim]cannot run yet: {escape(method.unavailable)}[/]", "", "", "")
        elif own:
            counts = (len(own), *(sum(c.key in keys for c in own) for keys in (state.done, state.failed, pending)))
            table.add_row(escape(method.name), *map(str, counts))
    console.print(table)
    for key, record in state.failed.items():
        if key not in pending:
            console.print(
                f"failed before: {record.name}: {record.error}", markup=False, highlight=False, soft_wrap=True
            )
    if state.failed and not args.retry_failed:
        console.print("--retry-failed runs them again", highlight=False)
    for folder in sorted(set(state.absent.values())):
        console.print(
            f"no data: {folder} is not there; its cells wait for it", markup=False, highlight=False, soft_wrap=True
        )
    if state.pending:
        seconds, known = estimate(args.folder, plan, state.pending)
        if known:
            side = f" with {workers} side by side" if args.engine == "local" and workers > 1 else ""
            shown = duration(seconds * len(state.pending) / known / (workers if args.engine == "local" else 1))
            console.print(f"about {shown}{side}, judging by past cells", highlight=False)
        else:
            console.print("how long that takes is not known: nothing of the kind ran here before", highlight=False)


def _show_cells(state: State) -> None:
    from panbench.cli.console import stdout

    for cell in state.pending:
        what = " ".join(("panbench fit", *cell.options) if cell.options else cell.program or (str(cell.predictions),))
        stdout().print(f"{cell.name}: {what}", markup=False, highlight=False, soft_wrap=True)


def _run(bench: BenchFolder, state: State, engine: Engine, workers: int) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from panbench.bench.runner import free_bytes, run_cells
    from panbench.cli.console import stderr
    from panbench.report.summary import duration

    free = free_bytes(bench.folder)
    if free < _LITTLE_SPACE:
        log.warning("only %.1f GiB are free where %s is", free / 2**30, bench.folder)
    # Cells side by side share the cores; on a cluster it is Ray that says how many a cell has.
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=stderr()
    )
    running: dict[str, str] = {}
    counts: Counter[str] = Counter()
    with progress:
        bar = progress.add_task("cells", total=len(state.pending))

        def describe() -> None:
            shown = ", ".join(running.values())
            progress.update(bar, description=f"{shown[:70]}{'…' if len(shown) > 70 else ''}" or "cells")

        def started(cell: Cell) -> None:
            running[cell.key] = cell.name
            log.info("started  %s; its log: %s", cell.name, bench.log_path(cell.key))
            describe()

        def ended(cell: Cell, record: CellRecord) -> None:
            running.pop(cell.key, None)
            counts[record.status] += 1
            if record.status == "done":
                log.info("done     %s in %s", cell.name, duration(record.seconds))
            else:
                log.error("%s failed (%s); its log: %s", cell.name, record.error, bench.log_path(cell.key))
            progress.advance(bar)
            describe()

        with stoppable():
            run_cells(bench, state.pending, engine, threads=threads, started=started, ended=ended)


def _close(plan: Plan, bench: BenchFolder, all_cells: Sequence[Cell], args: argparse.Namespace) -> int:
    """Say how the whole plan stands, and what comes next."""
    from panbench.cli.console import stdout

    state = bench.state(all_cells)
    console = stdout()
    missing = len(state.cells) - len(state.done) - len(state.failed)
    parts = [f"{len(state.done)} of {len(state.cells)} cells done"]
    parts += [f"{len(state.failed)} failed"] if state.failed else []
    parts += [f"{missing} missing"] if missing else []
    console.print(", ".join(parts), highlight=False)
    if state.done:
        default = "" if args.store == Path("results") else f" --store {args.store}"
        console.print(
            f"results are in {args.store}; panbench report{default} makes tables and pages of them", soft_wrap=True
        )
    return 1 if state.failed or missing else 0
