"""``panbench data check``: find what is wrong with scenes before anything is trained on them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Callable, Generator
from pathlib import Path

from panbench.errors import UserError

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="a scene's folder, or a folder of scenes")
    parser.add_argument("--scene", help="only the scene of this name")
    parser.add_argument("--quick", action="store_true", help="decode 24 frames of a scene, not all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report, with all frames and numbers")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="also draw frames with depth, labels and how their depth meets"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 for warnings, too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.epilog = "Exit status: 0 without errors, 1 with. docs/data.md says what each fault means."


def run(options: argparse.Namespace) -> int:
    """Check the scenes; 0 if there is no error in them, else 1.

    Raises:
        UserError: there is no scene, or the report cannot be written.
    """
    from panbench.cli.console import stdout
    from panbench.data.check import check_scene, summary, to_show
    from panbench.data.detect import find_scenes
    from panbench.data.preview import write_check_sheet
    from panbench.training.files import write_text

    scenes = find_scenes(options.root, options.scene)
    if options.sheet is not None and len(scenes) > 1:
        raise UserError(f"{options.root}: a sheet shows one scene, there are {len(scenes)}: choose one with --scene")
    reports: list[dict[str, object]] = []
    errors = warnings = 0
    for found in scenes:
        with _progress(found.folder.name, options.quiet) as begin:
            report = check_scene(found, quick=options.quick, begin=begin)
        lines = [f"{report.scene} ({report.layout}): {summary(report)}"]
        lines += [f"  {fault.severity:<8} {fault.kind:<14} {fault.line}" for fault in report.faults]
        stdout().print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
        errors += report.errors
        warnings += len(report.faults) - report.errors
        reports.append(report.to_dict())
        if options.sheet is not None:
            _log.info("wrote %s", write_check_sheet(to_show(found), report, options.sheet))
    if options.json is not None:
        write_text(options.json, json.dumps(reports[0] if len(reports) == 1 else reports, indent=1) + "\n")
    return int(errors > 0 or (options.strict and warnings > 0))


@contextlib.contextmanager
def _progress(name: str, quiet: bool) -> Generator[Callable[[int], Callable[[], object]], None, None]:
    """Gives a function that starts the bar with the number of frames, and returns what advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from panbench.cli.console import stderr

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), disable=quiet, transient=True) as bar:

        def begin(frames: int) -> Callable[[], object]:
            task = bar.add_task(f"{name}: frames", total=frames)
            return lambda: bar.advance(task)

        yield begin
