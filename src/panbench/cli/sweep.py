"""The verb ``panbench sweep``: run a W&B sweep file on this machine, without a server."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panbench.cli.options import positive, stoppable
from panbench.errors import UserError

if TYPE_CHECKING:
    from panbench.sweep.runner import SweepFolder, Trial
    from panbench.sweep.spec import SweepFile

log = logging.getLogger(__name__)

_SHOWN = 20  # trials in the final table; trials.csv has all


def main(argv: Sequence[str]) -> int:
    """Run ``panbench sweep ...``; returns the exit status: 1 if a trial failed.

    Raises:
        UserError: with cause and remedy, if the file is wrong or nothing can be written.
        Interrupted: on Ctrl-C or SIGTERM, after what ran was ended.
    """
    args = _parser().parse_args(list(argv))

    from panbench.resources import find_config
    from panbench.sweep.runner import SweepFolder, expand_command, planned_trials
    from panbench.sweep.spec import load_sweep
    from panbench.training.files import write_text

    path = find_config(args.file)
    sweep = load_sweep(path)
    try:
        expand_command(sweep, {})  # what is quickly told to be wrong comes first
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    total = planned_trials(sweep, args.count)
    folder = SweepFolder(args.folder, sweep, path.stem, args.seed)
    if args.dry_run:
        return _show_commands(folder, sweep, total, args.seed)
    with folder.locked():
        write_text(folder.path / "sweep.yaml", path.read_text(encoding="utf-8"))
        _run(folder, sweep, total, args)
        return _close(folder, sweep, total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="panbench sweep",
        description="Run a sweep file of Weights & Biases on this machine, without a server: grid, random, or bayes "
        "(Optuna's TPE). The command of the file must be panbench fit. After a crash the same command continues. The "
        "same file works with `wandb sweep` and `wandb agent`. See docs/sweeps.md.",
        epilog="panbench sweep configs/sweep/bases.yaml --dry-run",
    )
    parser.add_argument("file", metavar="FILE", help="sweep file, e.g. configs/sweep/bases.yaml")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="stop at N trials, earlier ones included (or run_cap in the file)"
    )
    parser.add_argument("--workers", type=positive, default=1, metavar="K", help="trials side by side (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of random and bayes; another seed is another sweep")
    parser.add_argument("--folder", type=Path, default=Path("sweeps"), help="state and logs (default: sweeps)")
    parser.add_argument("--retry-failed", action="store_true", help="run trials that failed before once more")
    parser.add_argument("--dry-run", action="store_true", help="show the commands of the trials; run nothing")
    return parser


def _show_commands(folder: SweepFolder, sweep: SweepFile, total: int, seed: int) -> int:
    from panbench.cli.console import stdout
    from panbench.sweep.runner import expand_command, preview

    shown = preview(sweep, seed, folder.trials(), total)
    for trial in shown:
        command = shlex.join(expand_command(sweep, trial.values))
        stdout().print(f"{trial.number}: {command}", markup=False, highlight=False, soft_wrap=True)
    if len(shown) < total:
        stdout().print(f"{total - len(shown)} more, which depend on the values of these", highlight=False)
    return 0


def _run(folder: SweepFolder, sweep: SweepFile, total: int, args: argparse.Namespace) -> None:
    from panbench.bench.local import LocalEngine, visible_gpus
    from panbench.report.summary import duration
    from panbench.sweep.runner import run_sweep

    side_by_side = args.workers > 1
    engine = LocalEngine(args.workers, devices=visible_gpus() if side_by_side else ())
    threads = max(1, (os.cpu_count() or 1) // args.workers) if side_by_side else None
    log.info("%d trials; state and logs: %s", total, folder.path)

    def started(trial: Trial) -> None:
        values = " ".join(f"{name}={_short(value)}" for name, value in trial.flat().items())
        log.info("trial %d started: %s; its log: %s", trial.number, values, folder.log_path(trial.number))

    def ended(trial: Trial) -> None:
        if trial.status == "failed":
            log.error("trial %d failed (%s); its log: %s", trial.number, trial.error, folder.log_path(trial.number))
            return
        value = "" if sweep.metric is None else f": {sweep.metric.name} {_short(trial.value)}"
        log.info("trial %d done in %s%s", trial.number, duration(trial.seconds), value)

    with stoppable():
        run_sweep(
            folder,
            sweep,
            engine,
            total=total,
            seed=args.seed,
            retry_failed=args.retry_failed,
            threads=threads,
            started=started,
            ended=ended,
        )


def _close(folder: SweepFolder, sweep: SweepFile, total: int) -> int:
    """Write trials.csv and best.yaml, print the table."""
    from rich.markup import escape
    from rich.table import Table

    from panbench.cli.console import stdout
    from panbench.report.summary import duration
    from panbench.sweep.runner import overrides, ranked
    from panbench.training.files import write_text

    trials = ranked(folder.trials(), sweep)
    metric = "" if sweep.metric is None else sweep.metric.name
    names = list(dict.fromkeys(name for trial in trials for name in trial.flat()))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "status", *([metric] if metric else []), *names, "seconds", "run", "error"])
    for t in trials:
        value = [] if not metric else ["" if t.value is None else t.value]
        rows.writerow([t.number, t.status, *value, *(t.flat().get(n, "") for n in names), t.seconds, t.run, t.error])
    write_text(folder.path / "trials.csv", text.getvalue())

    varied = [name for name in names if len({str(trial.flat().get(name)) for trial in trials}) > 1]
    table = Table(box=None, padding=(0, 1))
    for title in ("trial", *([metric] if metric else []), *varied, "time"):
        table.add_column(escape(title), justify="right")
    for t in trials[:_SHOWN]:
        value = [] if not metric else ["failed" if t.status == "failed" else _short(t.value)]
        time = duration(t.seconds) if metric or t.status == "done" else t.status
        table.add_row(str(t.number), *value, *(escape(_short(t.flat().get(n))) for n in varied), time)
    console = stdout()
    console.print(table)
    if len(trials) > _SHOWN:
        console.print(f"and {len(trials) - _SHOWN} more", highlight=False)
    console.print(f"trials      {folder.path / 'trials.csv'}", highlight=False, soft_wrap=True, markup=False)
    if trials and trials[0].value is not None:
        write_text(folder.best, overrides(trials[0], sweep))
        console.print(
            f"best        {folder.best}: panbench fit --config RECIPE --config {folder.best}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    elif folder.best.exists():
        folder.best.unlink()
    failed = sum(trial.status == "failed" for trial in trials)
    if failed:
        log.error("%d of %d trials failed; --retry-failed runs them again", failed, len(trials))
    elif len(trials) < total:
        log.info("the target was reached after %d of %d trials", len(trials), total)
    return 1 if failed else 0


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
