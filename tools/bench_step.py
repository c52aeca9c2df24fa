"""Measure training steps per second of `panbench fit` (LI-GS with the query head), and where their time goes.

python tools/bench_step.py                       # both cases, a few minutes
python tools/bench_step.py --cases synthetic --windows 3

`synthetic` starts from 50k Gaussians, 320x240, 20 classes and some 64 queries; `room` is the built-in small room with
the shipped settings. Every case is saved as soon as it is measured, in docs/performance_step.json, and written into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from benchmark import report
from benchmark.machine import facts
from benchmark.steps import PARTS, Pace, marked
from benchmark.timing import CONTENDED, summary
from panbench.cli.console import quieten_lightning
from panbench.cli.train import PanbenchCLI
from panbench.errors import Interrupted, UserError
from panbench.resources import find_config
from panbench.threads import brief_waits
from panbench.training.files import write_text
from panbench.training.memory import keep_freed_memory

MARKER = "bench_step"
CASES = {
    "synthetic": [
        "--model.voxel=0.072",  # makes 50 thousand Gaussians of these frames
        "--model.flat_voxel=0",
        "--model.head.max_queries=64",
        "--model.head.prune_after=0",
        "--data=benchmark.room_frames.RoomFramesModule",
    ],
    "room": [],
}
TITLES = {"synthetic": "synthetic room", "room": "built-in small room"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    out.add_argument("--skip", type=int, default=40, help="first steps, not timed")
    out.add_argument("--windows", type=int, default=5, help="how many windows are timed")
    out.add_argument(
        "--steps", type=int, default=40, help="steps of a window; a multiple of 4, so that all do the same"
    )
    out.add_argument("--profile", type=int, default=40, help="steps that are profiled after that; a multiple of 4")
    out.add_argument("--threads", type=int, default=torch.get_num_threads())
    out.add_argument("--out", type=Path, default=Path("docs/performance_step.json"), help="file of all results")
    out.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="page to write into")
    return out


def run_case(name: str, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train for as many steps as are measured; returns what was found.

    Raises:
        UserError: the training ended before everything was measured.
    """
    with tempfile.TemporaryDirectory() as folder, console.status(f"{name}: starting") as status:
        pace = Pace(
            arguments.skip,
            arguments.windows,
            arguments.steps,
            arguments.profile,
            lambda what: status.update(f"{name}: {what}"),
        )
        options = ["--config", str(find_config("configs/ligs_scannet.yaml")), *CASES[name]]
        cli = PanbenchCLI([*options, f"--run.root={folder}", "--trainer.enable_progress_bar=false"])
        cli.run_dir.create()
        callbacks: list[Callback] = cli.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        callbacks.append(pace)
        with marked(cli.model):
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    if not pace.finished:
        raise UserError(f"{name}: training ended at step {cli.trainer.global_step}; take fewer or shorter --windows")
    return {"facts": pace.facts, "samples": pace.samples, "parts": pace.parts}


def markdown(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    columns = [_column(case) for case in results["cases"].values()]
    head = ["", *(TITLES[name] for name in results["cases"])]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    m = results["machine"]
    note = (
        f"Steps of `panbench fit --config configs/ligs_scannet.yaml` on {m['processor']}, {results['threads']} "
        f"threads, commit {m['commit']}, after {results['skip']} steps; labels are rendered in every other step. The "
        "parts come from a profile of further steps, which the profiler slows down: shares are those of profiled time, "
        f"ms are that share of a step. c: other processes used more than {CONTENDED:.2f} of a core."
    )
    return note + "\n\n" + report.table(head, rows)


def _column(case: dict[str, Any]) -> dict[str, str]:
    """One case's cells by row."""
    step = summary(case["samples"])
    assert step is not None
    whole = sum(case["parts"].values())
    shares = {part: case["parts"][part] / whole for part in PARTS}
    return {
        "Gaussians, image": "{gaussians}, {width}x{height}".format(**case["facts"]),
        "classes, queries": "{classes}, {queries}".format(**case["facts"]),
        "ms per step": report.spread(step),
        "**steps per second**": f"**{1e3 / step.median:.1f}**{'' if step.clean else ' c'}",
        **{part: f"{share * step.median:.2f} ms, {100 * share:.1f} %" for part, share in shares.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, save, write the page."""
    arguments = parser().parse_args(argv)
    console = Console()
    quieten_lightning()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": facts(), "threads": arguments.threads, "skip": arguments.skip, "cases": {}}
    try:
        for name in arguments.cases:
            results["cases"][name] = run_case(name, arguments, console)
            write_text(arguments.out, json.dumps(results, indent=1) + "\n")
        report.splice(arguments.page, MARKER, markdown(results))
        console.print(markdown(results), highlight=False, soft_wrap=True)
    except UserError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 2
    except (KeyboardInterrupt, Interrupted):
        console.print(f"stopped; {arguments.out} has the cases that were measured whole")
        return 130
    return 0


if __name__ == "__main__":
    if brief_waits():  # as `panbench` does; torch, imported above, has read the environment
        os.execv(sys.executable, sys.orig_argv)
    sys.exit(main())
