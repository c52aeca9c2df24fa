"""Where a run is logged beside metrics.csv: Weights & Biases and TensorBoard, and what they get at its end."""

from __future__ import annotations

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
from panbench.report.diagnosis import Grid, class_table, confusion, crops_of, instance_table, markdown_grid
from panbench.training.finish import SHEET
from panbench.training.run_dir import RunDirectory, RunManifest
from panbench.training.run_values import final_values


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
    crops = {i: folder / kinds["error"] for i, kinds in crops_of(folder).items() if "error" in kinds}
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
        shown: Grid = (["true \\ predicted", *names], [[a, *map(int, matrix[i])] for i, a in enumerate(names[:-1])])
        for title, table in (
            ("per class", class_table(result)),
            ("per instance", instance_table(result)),
            ("confusion (pixels)", shown),
        ):
            writer.add_text(title, markdown_grid(table), step)
    if sheet.is_file():
        with Image.open(sheet) as image:
            writer.add_image("contact sheet", np.asarray(image.convert("RGB")), step, dataformats="HWC")
    writer.flush()


def _wandb_id(name: str) -> str:
    """W&B allows 64 characters without these; the end of the name is the hash."""
    return re.sub(r"[/\\#?%:\s]", "-", name)[-64:]
