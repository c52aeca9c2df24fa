"""What follows training: predictions of the test frames, scores beside the anchors', the contact sheet, the table."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from rich.console import Console

from panbench.data.images import read_color
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.losses.photometric import psnr
from panbench.methods.raw_masks import raw_masks
from panbench.methods.voxel_vote import voxel_vote
from panbench.metrics.functional import depth_errors
from panbench.ops import ssim
from panbench.protocol.predictions import PredictionSet
from panbench.protocol.protocol import Protocol
from panbench.protocol.results import Origin, SceneResult
from panbench.protocol.score import STRICT, paper_protocol, score
from panbench.report.diagnosis import crops_of, diagnosis, in_words, worst_instances
from panbench.report.pictures import ObjectColors, SheetRow, contact_sheet, depth_span
from panbench.report.summary import METRICS, Row, markdown_summary, print_summary
from panbench.report.views import write_instances, write_views
from panbench.scene import Frame, PanopticMap, Scene
from panbench.training.files import write_text
from panbench.training.finite import spoilt
from panbench.training.run_dir import RunDirectory, RunManifest
from panbench.training.write_predictions import WritePredictions

log = logging.getLogger(__name__)

SHEET = "contact_sheet.png"
_SHEET_VIEWS = 6
_PRINTED = 5


class Finish:
    """The stages after training, on one run directory; each can be run again.

    Args:
        run: the run directory.
        manifest: its manifest; costs are added to it.
        protocols: ids to score under, the main one first; None: the dataset's published protocol and the strict one.
        config: the resolved configuration, for the predictions' manifest.

    Raises:
        UserError: for an unknown protocol.
    """

    def __init__(
        self, run: RunDirectory, manifest: RunManifest, protocols: Sequence[str] | None, config: Mapping[str, Any]
    ) -> None:
        ids = protocols or [paper_protocol(manifest.dataset), STRICT]
        self._protocols = [Protocol.load(name) for name in dict.fromkeys(ids)]
        self._run = run
        self._manifest = manifest
        self._config = config
        self._image_quality: dict[str, float] = {}
        self._scores: dict[str, float] = {}

    def predict(
        self, trainer: L.Trainer, model: L.LightningModule, datamodule: L.LightningDataModule, weights: Path | None
    ) -> None:
        """Write the predictions folder. ``weights``: checkpoint to load first; None uses the model as it is."""
        m = self._manifest
        scene: Scene = datamodule.scene  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        writer = WritePredictions(
            self._run.predictions,
            scene,
            method=m.method,
            seed=m.seed,
            config=self._config,
            provenance={"versions": m.versions, "machine": m.machine, "config_hash": m.hash, "backend": m.backend},
            commit=m.commit or "",
        )
        callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        loggers = trainer.loggers
        callbacks.append(writer)
        trainer.loggers = []  # a test from a checkpoint would log at step 0; see log()
        try:
            path = None if weights is None else str(weights)
            trainer.test(model, datamodule=datamodule, ckpt_path=path, weights_only=True, verbose=False)
        finally:
            callbacks.remove(writer)
            trainer.loggers = loggers
        gaussians = getattr(model, "gaussians", None)
        if isinstance(gaussians, Sized):
            m.cost["gaussians"] = float(len(gaussians))
        if isinstance(gaussians, GaussianSet):
            m.cost["gaussians_not_finite"] = float(spoilt(gaussians).gaussians)
        m.cost["peak_memory_bytes"] = max(m.cost.get("peak_memory_bytes", 0.0), _peak_memory(model.device))

    def score(self, scene: Scene) -> list[Row]:
        """Score the run, the raw masks and the voxel vote; write ``result.json``, ``results/`` and ``table.md``."""
        truth: dict[str, PanopticMap] = {f.name: f.truth for f in scene.frames(scene.test) if f.truth is not None}
        if len(truth) < len(scene.test) or not truth:
            log.warning("%s has no ground truth for all test frames: nothing to score", scene.name)
            return []
        m = self._manifest
        self._image_quality = image_quality(PredictionSet.open(self._run.predictions), scene)
        rows = [Row(m.method, self._scored(self._run.predictions, m.method, truth, scene, m.cost, self._image_quality))]
        for name, method in _ANCHORS.items():
            folder = self._run.anchors / name
            started = time.monotonic()
            method(scene, folder)
            cost = {"fit_seconds": time.monotonic() - started} if name != "raw-masks" else {}
            rows.append(Row(name, self._scored(folder, name, truth, scene, cost, {})))
        write_text(self._run.path / "table.md", markdown_summary(rows))
        self._scores = {f"{p}/{k}": r.metrics[k] for p, r in rows[0].results.items() for k in METRICS}
        return rows

    def log(self, loggers: Sequence[Logger]) -> None:
        """Give the image quality and the scores to the loggers, at the last step of training."""
        values = {f"test/{k.lower()}": v for k, v in self._image_quality.items()} | self._scores
        for logger in loggers:
            logger.log_metrics(values, step=self._manifest.steps)
            logger.save()

    def draw(self, scene: Scene) -> None:
        """Write pictures of test views spread evenly over the scene, and of the instances that were not found.

        The contact sheet and the pictures of the run lie in ``pictures/``, those of the other rows in
        ``anchors/NAME/pictures/``. Scores do not hang on pictures: if these cannot be written, a warning says so.
        """
        count = min(_SHEET_VIEWS, len(scene.test))
        chosen = [scene.test[round(i)] for i in np.linspace(0, len(scene.test) - 1, count)]
        try:
            self._draw(scene, chosen, self._run.predictions, self._run.pictures, None)
            for name in _ANCHORS:
                folder = self._run.anchors / name
                if folder.is_dir():
                    self._draw(scene, chosen, folder, folder / "pictures", name)
        except OSError as error:
            cause = error.strerror or str(error)
            log.warning("pictures are missing (%s): panbench test %s draws them again", cause, self._run.path)

    def diagnose(self) -> None:
        """Write ``diagnosis.md``: what went wrong, and where the pictures of it are; after :meth:`draw`."""
        if self._run.result.is_file():
            result = SceneResult.load(self._run.result)
            write_text(self._run.diagnosis, diagnosis(result, self._run.pictures / "instances", self._run.path))

    def _draw(self, scene: Scene, chosen: Sequence[int], predicted: Path, pictures: Path, anchor: str | None) -> None:
        predictions = PredictionSet.open(predicted)
        index = {scene.source.name(i): i for i in scene.test}
        rows = [_sheet_row(frame, predictions) for frame in scene.frames(chosen)]
        path = _result_path(self._run, anchor, 0, self._protocols[0].id)
        result = SceneResult.load(path) if path.is_file() else None
        objects = ObjectColors.of_rows(rows) if result is None else ObjectColors.of(result.counts.unpack())
        # One scale for all methods, where there is a sensor.
        measured = [f.depth.cpu().numpy() for f in scene.frames(chosen) if f.depth is not None]
        span = depth_span(measured or [row.depth for row in rows if row.depth is not None])
        if anchor is None:
            m = self._manifest
            title = f"{m.method} on {m.dataset} {m.scene}{' (synthetic)' if m.synthetic else ''}, seed {m.seed}"
            contact_sheet(rows, scene.labels, pictures / SHEET, title=title, objects=objects, span=span)
        write_views(pictures / "views", rows, scene.labels, objects, span)
        if result is not None:

            def view(name: str) -> SheetRow:
                return _sheet_row(scene.source.load(index[name]), predictions)

            write_instances(pictures / "instances", result, view, scene.labels, objects)

    def _scored(
        self,
        folder: Path,
        name: str,
        truth: Mapping[str, PanopticMap],
        scene: Scene,
        cost: Mapping[str, float],
        quality: Mapping[str, float],
    ) -> dict[str, SceneResult]:
        predictions = PredictionSet.open(folder)
        m = self._manifest
        own = name == m.method
        origin = Origin(
            trust="verified",
            run=str(self._run.path.resolve()),
            command=["panbench", *m.commands[0][1:]] if m.commands else [],
            # What a training-free row depends on is how the data is given to it: which frames, which depth.
            settings_hash=m.settings_hash if own else m.data_settings_hash,
            masks=str((self._config["data"].get("init_args") or {}).get("masks") or ""),
            mask_hash=scene.mask_hash,
            data_hash=scene.data_hash,
        )
        out: dict[str, SceneResult] = {}
        for i, protocol in enumerate(self._protocols):
            result = score(
                predictions, truth, scene.labels, protocol, synthetic=scene.synthetic, cost=cost, origin=origin
            )
            result.metrics.update(quality)
            result.save(_result_path(self._run, None if own else name, i, protocol.id))
            out[protocol.id] = result
        return out


def image_quality(predictions: PredictionSet, scene: Scene) -> dict[str, float]:
    """PSNR in dB and SSIM of the predicted colours, each the mean over the test frames; {} without colours.

    Where there are depth maps also their errors against the true depth, else against the sensor's: see
    :func:`depth_quality`.
    """
    values: list[tuple[float, float]] = []
    for frame in scene.frames(scene.test):
        color = predictions.color(frame.name)
        if color is None:
            return {}
        render, photo = color.float() / 255, frame.color.cpu().float() / 255
        values.append((float(psnr(render, photo)), float(ssim(render, photo))))
    means = np.mean(values, axis=0)
    return {"PSNR": float(means[0]), "SSIM": float(means[1])} | depth_quality(predictions, scene)


def depth_quality(predictions: PredictionSet, scene: Scene) -> dict[str, float]:
    """Errors of predicted depth (:class:`panbench.metrics.functional.DepthErrors`) over the pixels of all test frames.

    Returns:
        ``depth_l1`` and ``depth_rmse`` in cm, ``depth_delta`` and ``depth_known`` in per cent, against the true depth
        where all test frames have it. Else the same with ``sensor_`` before each name, against the sensor's depth of
        the test frames, whose noise is in those values. {} where there is nothing to compare.
    """

    def views(true: bool) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for frame in scene.frames(scene.test):
            depth, other = predictions.depth(frame.name), frame.true_depth if true else frame.depth
            if depth is not None and other is not None:
                yield depth.numpy(), other.cpu().numpy()

    for prefix, true in (("", True), ("sensor_", False)):
        pairs = list(views(true))
        if pairs and len(pairs) == len(scene.test):
            return {f"{prefix}depth_{name}": value for name, value in depth_errors(pairs)._asdict().items()}
    return {}


_ANCHORS: dict[str, Callable[[Scene, Path], Path]] = {"raw-masks": raw_masks, "voxel-vote": voxel_vote}


def show_result(run: RunDirectory, console: Console) -> None:
    """Print a finished run's table and where its files are."""
    rows = load_rows(run)
    if rows:
        print_summary(rows, console)
        print_worst(next(iter(rows[0].results.values())), run.pictures / "instances", console)
    for what, path in (
        ("pictures", run.pictures / SHEET),
        ("scores", run.result),
        ("table", run.path / "table.md"),
        ("diagnosis", run.diagnosis),
        ("predictions", run.predictions),
    ):
        if path.exists():
            console.print(f"{what:<12}{path}", highlight=False, soft_wrap=True, markup=False)


def print_worst(result: SceneResult, pictures: Path, console: Console) -> None:
    """Print the instances that went wrong most, with the pictures of their errors."""
    worst, crops = worst_instances(result, _PRINTED), crops_of(pictures)
    if not worst:
        return
    lost = sum(i.verdict != "found" for i in result.instances)
    console.print(f"{lost} of {len(result.instances)} instances were not found; the worst:", highlight=False)
    for i in worst:
        told = f"  {i.class_name} {i.true_id}: {i.verdict}, {in_words(i, result)}"
        picture = crops.get(i.true_id, {}).get("error")
        shown = f"  {pictures / picture}" if picture else ""
        console.print(told + shown, highlight=False, soft_wrap=True, markup=False)


def load_rows(run: RunDirectory) -> list[Row]:
    """The scored rows of a run directory, the run first; empty without scores.

    Raises:
        UserError: if a result cannot be read.
    """
    if not run.result.is_file():
        return []
    main = SceneResult.load(run.result)
    found: dict[str, dict[str, SceneResult]] = {main.method: {main.protocol: main}}
    for path in sorted(run.results.glob("*.json")):
        result = SceneResult.load(path)
        found.setdefault(result.method, {})[result.protocol] = result
    order = {main.protocol: 0}
    return [
        Row(name, dict(sorted(by.items(), key=lambda item: (order.get(item[0], 1), item[0]))))
        for name, by in found.items()
    ]


def _result_path(run: RunDirectory, anchor: str | None, index: int, protocol: str) -> Path:
    if anchor is None and index == 0:
        return run.result
    return run.results / f"{anchor or 'run'}.{protocol}.json"


def _sheet_row(frame: Frame, predictions: PredictionSet) -> SheetRow:
    map_, truth = predictions.read(frame.name), frame.truth
    color, depth = predictions.color(frame.name), predictions.depth(frame.name)
    return SheetRow(
        name=frame.name,
        photo=frame.color.cpu().numpy(),
        semantic=map_.semantic.numpy(),
        instance=map_.instance.numpy(),
        render=None if color is None else color.numpy(),
        depth=None if depth is None else depth.numpy(),
        normal=_read_normal(predictions.folder / "normal" / f"{frame.name}.png"),
        true_semantic=None if truth is None else truth.semantic.cpu().numpy(),
        true_instance=None if truth is None else truth.instance.cpu().numpy(),
    )


def _read_normal(path: Path) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if not path.exists():
        return None
    coded = read_color(path)
    normal = coded.astype(np.float32) / 127.5 - 1.0
    normal[(coded == 0).all(axis=-1)] = 0.0
    return normal


def _peak_memory(device: torch.device) -> float:
    """Bytes: the most that torch held on a GPU, or the most that the process had on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
