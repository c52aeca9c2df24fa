"""``panbench masks fit-noise``: the error rates of a mask set, for ``panbench masks corrupt``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from panbench.masks.corrupt import NoiseFile

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("scene", type=Path, help="the scene's folder")
    parser.add_argument("--masks", required=True, metavar="NAME", help="the mask set: NAME or a path")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--reference", metavar="NAME", help="mask set that counts as the truth; default: the scene's ground truth"
    )
    parser.add_argument("--most", type=int, default=200, metavar="N", help="frames to look at (default: 200)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Fit the rates and write them; returns the exit status.

    Raises:
        UserError: scene or masks cannot be read, no frame has both sides, or the file cannot be written.
    """
    from panbench.cli.console import stdout
    from panbench.data.detect import find_scene
    from panbench.errors import UserError
    from panbench.masks.fit_noise import fit_scene
    from panbench.training.files import write_text

    fitted = fit_scene(
        find_scene(options.scene), options.masks, options.reference, most=options.most, progress=not options.quiet
    )
    try:
        write_text(options.out, fitted.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written ({error.strerror or error}); name another") from error
    source = fitted.source
    title = f"{source['scene']}: {source['masks']} against {source['reference']}, {source['frames']} frames"
    stdout().print(title, soft_wrap=True, markup=False, highlight=False)
    stdout().print(_table(fitted))
    _log.info("wrote %s: panbench masks corrupt SCENE --out NAME --noise %s", options.out, options.out)
    return 0


def _table(fitted: NoiseFile) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    table.add_column("rate")
    table.add_column("value", justify="right")
    table.add_column("cases", justify="right")  # "default": nothing in the masks could tell
    for name, value in vars(fitted.rates).items():
        values = value if isinstance(value, tuple) else (value,)
        for place, number in enumerate(values):
            key = f"{name}.{place}" if isinstance(value, tuple) else name
            told = fitted.observed.get(key) or fitted.observed.get(name, {})
            cases = (
                f"{told['of']:g}" if told.get("fitted") and "of" in told else ("" if told.get("fitted") else "default")
            )
            table.add_row(key, f"{number:.3f}", cases)
    return table
