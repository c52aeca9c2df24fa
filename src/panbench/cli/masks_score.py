"""``panbench masks score``: a mask set against the ground truth."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panbench.masks.score import LabelledView, MaskScore
    from panbench.scene import Scene

_WORST = 8


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("scene", type=Path, help="the scene's folder, with ground truth")
    parser.add_argument("--masks", required=True, metavar="NAME", help="the mask set: NAME or a path")
    parser.add_argument("--frames", choices=("train", "test", "all"), default="train", help="default: train")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, per view and class, to this file")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help=f"draw the {_WORST} worst views into this folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Score the masks; returns the exit status.

    Raises:
        UserError: the scene or its masks cannot be read, or no frame has both masks and truth.
    """
    from rich.progress import track

    from panbench.cli.console import stderr, stdout
    from panbench.data.detect import find_scene, open_found
    from panbench.errors import UserError
    from panbench.masks.score import score_masks
    from panbench.training.files import write_text

    scene = open_found(find_scene(options.scene), masks=options.masks)
    frames = {"train": scene.train, "test": scene.test, "all": sorted({*scene.train, *scene.test})}[options.frames]
    shown = track(frames, f"scoring {options.masks}", console=stderr(), disable=options.quiet)
    score = score_masks((view for index in shown if (view := _view(scene, index)) is not None), scene.labels)
    if not score.views:
        raise UserError(f"{options.scene}: no {options.frames} frame has both masks and ground truth to score")
    if options.json is not None:
        data = {"scene": scene.name, "synthetic": scene.synthetic, "masks": options.masks, **score.to_dict()}
        try:
            write_text(options.json, json.dumps(data, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{options.json}: cannot be written ({error.strerror or error}); name another") from error
    if options.pictures is not None:
        _draw(scene, score, frames, options.pictures)
    _show(score, stdout().print)
    return 0


def _view(scene: Scene, index: int) -> LabelledView | None:
    from panbench.masks.score import LabelledView

    frame = scene.source.load(index)
    if frame.masks is None or frame.truth is None:
        return None
    maps = (frame.masks.semantic, frame.masks.instance, frame.truth.semantic, frame.truth.instance)
    return LabelledView(frame.name, *(m.numpy() for m in maps))


def _show(score: MaskScore, out: Callable[[Any], None]) -> None:
    from rich.table import Table

    m = score.metrics
    totals = Table(box=None, padding=(0, 1), title=f"{len(score.views)} views, per cent", title_justify="left")
    names = ("PQ", "SQ", "RQ", "PQ_things", "recall", "precision", "mIoU", "mAcc", "void", "consistency")
    for name in names:
        totals.add_column(name.replace("_", " "), justify="right")
    totals.add_row(*(_number(m[name]) for name in names))
    out(totals)
    kinds = Table(box=None, padding=(0, 1), title="things of single views", title_justify="left")
    for name in (*score.verdicts, "made up", "border (px)", "stuff absent"):
        kinds.add_column(name, justify="right")
    made_up, absent = sum(v.hallucinated for v in score.views), sum(len(v.absent) for v in score.views)
    kinds.add_row(*(str(n) for n in score.verdicts.values()), str(made_up), f"{m['border']:.2f}", str(absent))
    out(kinds)
    classes = Table(box=None, padding=(0, 1), title="classes", title_justify="left")
    classes.add_column("class")
    columns = ("PQ", "SQ", "RQ", "IoU", "found", "missed", "made up")
    for name in columns:
        classes.add_column(name, justify="right")
    for row in score.classes:
        values = (row[name] for name in columns)
        classes.add_row(str(row["name"]), *(_number(v) if isinstance(v, float) else str(v) for v in values))
    out(classes)
    if score.confused:
        out("most confused: " + ", ".join(f"{t} as {p} {share:.0f} %" for t, p, share in score.confused[:5]))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _draw(scene: Scene, score: MaskScore, frames: Sequence[int], folder: Path) -> None:
    """One sheet a view: ids of different views have nothing to do with each other."""
    from panbench.errors import UserError
    from panbench.report.pictures import SheetRow, contact_sheet

    worst = [v.name for v in sorted(score.views, key=lambda v: v.mIoU) if not math.isnan(v.mIoU)][:_WORST]
    index_of = {scene.source.name(index): index for index in frames}
    for rank, name in enumerate(worst, start=1):
        frame = scene.source.load(index_of[name])
        assert frame.masks is not None
        assert frame.truth is not None
        row = SheetRow(
            name,
            frame.color.numpy(),
            frame.masks.semantic.numpy(),
            frame.masks.instance.numpy(),
            true_semantic=frame.truth.semantic.numpy(),
            true_instance=frame.truth.instance.numpy(),
        )
        title = f"{scene.name}, frame {name}: masks, and their errors"
        try:
            contact_sheet([row], scene.labels, folder / f"{rank}_{name}.png", title=title, width=320)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error}); name another folder") from error
