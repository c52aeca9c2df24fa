"""Where a run is logged beside metrics.csv: Weights & Biases and TensorBoard, and what they get at its end."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from panbench.errors import UserError
from panbench.protocol.results import SceneResult
from panbench.training.finish import SHEET
from panbench.training.run_dir import RunDirectory, RunManifest
from panbench.training.run_values import final_values

Table = tuple[list[Any], list[list[Any]]]  # column titles, rows


@dataclass
class WandbOptions:
    """Weights & Biases, through Lightning's logger.

    Attributes:
        enable: log there as well. metrics.csv is written in any case. A run that ``wandb agent`` started is always
            logged, under the agent's id and in W&B's own mode ($WANDB_MODE; online if that is not set).
        offline: keep the run on this machine (``wandb sync`` sends it later); false needs a login.
        project, entity, group, tags: as in W&B.
    """

    enable: bool = False
    offline: bool = True
    project: str = "panbench"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list[str])


def under_agent() -> bool:
    """True if ``wandb agent`` started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def wandb_logger(
    options: WandbOptions, manifest: RunManifest, run: RunDirectory, config: Callable[[], object]
) -> Logger | None:
    """The W&B logger that a run is to have, or None. Nothing is started before the first value is logged.

    Args:
        options: the run's.
        manifest: names the run.
        run: its folder; ``wandb/`` is made there.
        config: gives the resolved configuration. It goes below ``settings``: a sweep owns the names of its parameters.
    """
    if not options.enable and not under_agent():
        return None
    m = manifest
    name = f"{m.scene}-{m.method}-s{m.seed}-{m.hash[:8]}"
    own: dict[str, Any] = {}
    if not under_agent():
        mode = "offline" if options.offline else "online"
        own = {"id": _wandb_id(name), "project": options.project, "entity": options.entity, "mode": mode}
    return WandbLogger(
        name=name,
        save_dir=str(run.path.resolve()),  # the service of W&B has a working folder of its own
        group=options.group,
        tags=options.tags,
        config={
            **{key: getattr(m, key) for key in ("dataset", "scene", "synthetic", "method", "seed", "hash", "commit")},
            "settings": config(),
        },
        **own,
    )


def tensorboard_logger(run: RunDirectory) -> Logger:
    """A TensorBoard logger that writes ``RUN/tensorboard``.

    Raises:
        UserError: if TensorBoard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir=str(run.path), name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise UserError("run.tensorboard needs TensorBoard: pip install 'panbench[tensorboard]'") from error


def log_finished(loggers: Sequence[Logger], run: RunDirectory, manifest: RunManifest) -> None:
    """Give W&B and TensorBoard what a finished run left: its scores and costs, tables, confusion, contact sheet.

    A W&B run is closed with it.

    Raises:
        UserError: if a result cannot be read.
    """
    values = final_values(run)
    result = SceneResult.load(run.result) if run.result.is_file() else None
    sheet = run.pictures / SHEET
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger, values, result, run, sheet, manifest.steps)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger, values, result, sheet, manifest.steps)


def class_table(result: SceneResult) -> Table:
    """Scores of every class that is there or was predicted."""
    columns = ["class", "thing", "PQ", "SQ", "RQ", "IoU", "accuracy", "TP", "FP", "FN", "true pixels"]
    rows = [
        [
            *(c.name, c.thing, *map(_defined, (c.PQ, c.SQ, c.RQ, c.iou, c.accuracy))),
            *(c.true_positives, c.false_positives, c.false_negatives, c.true_pixels),
        ]
        for c in result.per_class
        if c.present or c.pred_pixels
    ]
    return columns, rows


def instance_table(result: SceneResult) -> Table:
    """What became of every true instance, the worst damage first."""
    columns = ["id", "class", "verdict", "coverage", "pixels", "best id", "parts", "merged with", "frames", "switches"]
    worst = sorted(result.instances, key=lambda i: -i.pixels * (100 - (_defined(i.coverage) or 0)))
    rows = [
        [
            *(i.true_id, i.class_name, i.verdict, _defined(i.coverage), i.pixels, i.best_id),
            *(len(i.parts), len(i.merged_with), i.frames, i.switches),
        ]
        for i in worst
    ]
    return columns, rows


def confusion(result: SceneResult) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """Pixels of each class [row] that were given each class [column], over all frames.

    Void in the truth is not counted; void that was predicted is the last class.
    """
    counts = result.counts.unpack()
    classes = result.space().classes
    names = [c.name for c in classes] + ["void"]
    column = {c.id: i for i, c in enumerate(classes)}
    void = len(classes)
    matrix = np.zeros((void + 1, void + 1), dtype=np.int64)
    for true, predicted, pixels in zip(counts.true_class, counts.pred_class, counts.pixels, strict=True):
        if int(true) in column:
            matrix[column[int(true)], column.get(int(predicted), void)] += pixels
    return names, matrix


def _to_wandb(
    logger: WandbLogger,
    values: Mapping[str, float],
    result: SceneResult | None,
    run: RunDirectory,
    sheet: Path,
    step: int,
) -> None:
    import wandb

    content: dict[str, Any] = {**values, "trainer/global_step": step}
    if result is not None:
        columns, rows = class_table(result)
        content["per_class"] = wandb.Table(columns=columns, data=rows)
        content["per_instance"] = _instances_with_pictures(result, run)
        names, matrix = confusion(result)
        cells = [[a, b, int(matrix[i, j])] for i, a in enumerate(names[:-1]) for j, b in enumerate(names)]
        content["confusion"] = wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells),
            {key: key for key in ("Actual", "Predicted", "nPredictions")},
            {"title": "Pixels by true and predicted class"},
        )
    if sheet.is_file():
        content["contact_sheet"] = wandb.Image(str(sheet))
    experiment: Any = logger.experiment
    experiment.log(content)
    experiment.finish()


def _instances_with_pictures(result: SceneResult, run: RunDirectory) -> Any:
    """The table of instances, with crops of those that were not found where the run drew them."""
    import wandb

    columns, rows = instance_table(result)
    folder = run.pictures / "instances"
    index = folder / "index.json"
    crops: dict[int, Path] = {}
    if index.is_file():
        for instance in json.loads(index.read_text())["instances"]:
            if "error" in instance["crops"]:
                crops[instance["true_id"]] = folder / instance["crops"]["error"]
    if crops:
        columns = [*columns, "error"]
        rows = [[*row, wandb.Image(str(crops[row[0]])) if row[0] in crops else None] for row in rows]
    return wandb.Table(columns=columns, data=rows)


def _to_tensorboard(
    logger: TensorBoardLogger, values: Mapping[str, float], result: SceneResult | None, sheet: Path, step: int
) -> None:
    from PIL import Image

    writer = logger.experiment
    for name, value in values.items():
        writer.add_scalar(f"final/{name}", value, step)
    if result is not None:
        names, matrix = confusion(result)
        shown: Table = (["true \\ predicted", *names], [[a, *map(int, matrix[i])] for i, a in enumerate(names[:-1])])
        for title, table in (
            ("per class", class_table(result)),
            ("per instance", instance_table(result)),
            ("confusion (pixels)", shown),
        ):
            writer.add_text(title, _markdown(table), step)
    if sheet.is_file():
        with Image.open(sheet) as image:
            writer.add_image("contact sheet", np.asarray(image.convert("RGB")), step, dataformats="HWC")
    writer.flush()


def _markdown(table: Table) -> str:
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *([_shown(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _wandb_id(name: str) -> str:
    """W&B allows 64 characters without these; the end of the name is the hash."""
    return re.sub(r"[/\\#?%:\s]", "-", name)[-64:]
