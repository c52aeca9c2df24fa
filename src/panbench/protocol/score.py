"""The one scorer: predictions + truth + protocol → :class:`SceneResult`. Needs neither models nor a GPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from panbench import __version__
from panbench.errors import UserError
from panbench.metrics.functional import (
    PairCounts,
    concatenate,
    count_pairs,
    coverage_statistics,
    diagnose,
    panoptic_statistics,
    semantic_statistics,
)
from panbench.protocol.predictions import PredictionSet, check_classes
from panbench.protocol.protocol import Protocol
from panbench.protocol.results import ClassResult, InstanceResult, Origin, SceneResult, StoredCounts, split_hash
from panbench.scene import LabelSpace, PanopticMap, Scene

Truth = Mapping[str, PanopticMap] | Callable[[str], PanopticMap]

STRICT = "panoptic-strict@1"
PROTOCOL_METRICS = ("PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov", "mWCov")
LABEL_METRICS = (*PROTOCOL_METRICS, "mIoU_pooled", "mIoU_frame", "PQ_paper", "PQ_strict")
_ASPECT_TOLERANCE = 0.015  # colour 1296x968 and depth 640x480 of ScanNet differ by 0.4 %

log = logging.getLogger(__name__)


class SceneTruth(Mapping[str, PanopticMap]):
    """True labels of a scene's test frames by name, decoded when asked for.

    Raises:
        UserError: on reading a frame without ground truth.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._index = {scene.source.name(index): index for index in scene.test}

    def __getitem__(self, name: str) -> PanopticMap:
        truth = self._scene.source.load(self._index[name]).truth
        if truth is None:
            raise UserError(f"{self._scene.name}: test frame {name} has no ground truth: export its labels")
        return truth

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def paper_protocol(dataset: str) -> str:
    """The published protocol of a dataset: ``scannetpp-paper@1`` for ScanNet++, else ``scannet-paper@1``."""
    return "scannetpp-paper@1" if dataset == "scannetpp" else "scannet-paper@1"


def score(
    predictions: PredictionSet,
    truth: Truth,
    labels: LabelSpace,
    protocol: Protocol,
    *,
    dataset: str | None = None,
    scene: str | None = None,
    synthetic: bool | None = None,
    cost: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> SceneResult:
    """Score a predictions folder.

    Args:
        predictions: the folder.
        truth: true labels by frame name; their size may exceed the predictions'. A mapping names the frames to score
            (every one must have been predicted); with a function all predicted frames are scored.
        labels: label space of the truth; the predictions must use the same classes.
        protocol: the rules.
        dataset, scene, synthetic: where the manifest does not say, or is to be overruled.
        cost: cost columns of the result.
        provenance: added to the manifest's.
        origin: who made the predictions; None: a submission, with what its manifest says of masks and data. Hashes and
            the time are filled in where they are empty.

    Raises:
        UserError: if frames are missing, sizes do not fit, or the label spaces differ.
    """
    manifest = predictions.manifest
    _check_label_space(predictions, labels)
    names = list(truth) if isinstance(truth, Mapping) else predictions.names
    if not names:
        raise UserError(f"{predictions.folder}: there is no frame to score: give the truth of at least one frame")
    missing = [name for name in names if name not in set(predictions.names)]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"{predictions.folder}: no prediction for frame {listed}: predict all test frames")
    size = protocol.size.of(*manifest.image_size)
    parts: list[PairCounts] = []
    console = Console(stderr=True)
    for index, name in enumerate(
        track(names, "scoring", console=console, transient=True, disable=len(names) < 50 or not console.is_terminal)
    ):
        true = truth[name] if isinstance(truth, Mapping) else truth(name)
        pred = predictions.read(name)
        check_classes(pred.semantic.numpy(), labels, predictions.folder / "semantic" / f"{name}.png")
        maps = [np.asarray(m.cpu().numpy()) for m in (true.semantic, true.instance, pred.semantic, pred.instance)]
        _check_size(predictions, name, maps[0].shape, maps[2].shape)
        parts.append(count_pairs(*(resize_labels(m, size) for m in maps), frame=index))
    return _result(
        concatenate(parts),
        labels,
        protocol,
        {
            "dataset": manifest.dataset if dataset is None else dataset,
            "scene": manifest.scene if scene is None else scene,
            "synthetic": manifest.synthetic if synthetic is None else synthetic,
            "method": manifest.method,
            "seed": manifest.seed,
            "labels": manifest.labels,
            "commit": manifest.commit,
            "config": manifest.config,
            "source_size": manifest.image_size,
            "image_size": size,
            "frames": names,
            "split_hash": split_hash(names),
            "cost": dict(cost or {}),
            "provenance": {**manifest.provenance, **(provenance or {}), "scored_by": f"panbench {__version__}"},
            "origin": _complete(origin or Origin(), manifest.provenance),
        },
    )


def rescore(result: SceneResult, protocol: Protocol) -> SceneResult:
    """The same predictions under another protocol, from the counts alone.

    Raises:
        UserError: if that protocol counts at another image size (the predictions themselves are needed then), or the
            counts are damaged.
    """
    size = protocol.size.of(*result.source_size)
    if size != tuple(result.image_size):
        raise UserError(
            f"{protocol.id} counts {_by(result.source_size)} images at {_by(size)}, the result has counts at "
            f"{_by(result.image_size)}: score the predictions folder with --truth"
        )
    fields = {"dataset", "scene", "synthetic", "method", "seed", "labels", "commit", "config", "source_size"}
    fields |= {"image_size", "frames", "split_hash", "cost", "provenance", "origin", "bench"}
    try:
        counts = result.counts.unpack()
    except ValueError as error:
        raise UserError(f"{result.method} on {result.scene}: {error}: score the predictions again") from error
    new = _result(counts, result.space(), protocol, result.model_dump(include=fields))
    # Scores that do not come from labels (image quality) stay as they are.
    new.metrics = {**{k: v for k, v in result.metrics.items() if k not in LABEL_METRICS}, **new.metrics}
    return new


def _complete(origin: Origin, provenance: Mapping[str, Any]) -> Origin:
    found = {key: getattr(origin, key) or str(provenance.get(key) or "") for key in ("masks", "mask_hash", "data_hash")}
    created = origin.created or datetime.now(UTC).isoformat(timespec="seconds")
    return origin.model_copy(update={**found, "created": created})


def metrics_of(counts: PairCounts, labels: LabelSpace, protocol: Protocol) -> dict[str, float]:
    """:data:`PROTOCOL_METRICS` in percent by the rules of the protocol. ``counts`` knows its frames."""
    counts = _truth_rule(counts, protocol)
    scene = counts.scene()
    panoptic = panoptic_statistics(scene, labels, iou_threshold=protocol.iou_threshold, segments=protocol.segments)
    semantic = semantic_statistics(counts, labels)
    values = (
        *panoptic.mean(protocol.classes),
        *semantic.mean(protocol.semantic, protocol.classes),
        *coverage_statistics(scene, labels).mean(),
    )
    return {k: 100.0 * v for k, v in zip(PROTOCOL_METRICS, values, strict=True)}


def resize_labels(image: NDArray[np.integer[Any]], size: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """Label map [H, W] at ``size`` = (rows, columns), exactly as Pillow's NEAREST picks pixels."""
    if image.shape == size:
        return image
    rows, columns = (_pillow_nearest(old, new) for old, new in zip(image.shape, size, strict=True))
    return image[rows[:, None], columns]


def _pillow_nearest(count: int, wanted: int) -> NDArray[np.int32]:
    """Index of the pixel of a line of ``count`` that Pillow picks for each of ``wanted``.

    Asked from Pillow itself: it accumulates the position in floating point, so a formula differs at some sizes.
    """
    line = Image.fromarray(np.arange(count, dtype=np.int32)[None, :])
    return np.asarray(line.resize((wanted, 1), Image.Resampling.NEAREST))[0]


def _result(counts: PairCounts, labels: LabelSpace, protocol: Protocol, facts: dict[str, Any]) -> SceneResult:
    metrics = metrics_of(counts, labels, protocol)
    ruled = _truth_rule(counts, protocol)
    semantic = semantic_statistics(ruled, labels)
    metrics["mIoU_pooled"] = 100.0 * semantic.mean("pooled", "present")[0]
    metrics["mIoU_frame"] = 100.0 * semantic.mean("frame-mean", "all")[0]
    for key, name in (("PQ_paper", paper_protocol(facts["dataset"])), ("PQ_strict", STRICT)):
        other = Protocol.load(name)
        if other.size.of(*facts["source_size"]) == tuple(facts["image_size"]):
            metrics[key] = metrics_of(counts, labels, other)["PQ"]
    return SceneResult(
        protocol=protocol.id,
        protocol_hash=protocol.hash,
        label_space=labels.to_dict(),
        label_hash=labels.hash,
        metrics=metrics,
        per_class=_per_class(ruled, labels, protocol),
        instances=_instances(ruled, labels),
        counts=StoredCounts.pack(counts),
        **facts,
    )


def _per_class(counts: PairCounts, labels: LabelSpace, protocol: Protocol) -> list[ClassResult]:
    p = panoptic_statistics(counts, labels, iou_threshold=protocol.iou_threshold, segments=protocol.segments)
    s = semantic_statistics(counts, labels)
    iou, accuracy = s.iou(protocol.semantic), s.accuracy(protocol.semantic)
    return [
        ClassResult(
            id=c.id,
            name=c.name,
            thing=c.thing,
            present=bool(p.present[i] or s.true_pixels[i] or s.pred_pixels[i]),
            PQ=100.0 * float(p.quality[i]),
            SQ=100.0 * float(p.segmentation[i]),
            RQ=100.0 * float(p.recognition[i]),
            true_positives=int(p.true_positives[i]),
            false_positives=int(p.false_positives[i]),
            false_negatives=int(p.false_negatives[i]),
            iou=100.0 * float(iou[i]),
            accuracy=100.0 * float(accuracy[i]),
            true_pixels=int(s.true_pixels[i]),
            pred_pixels=int(s.pred_pixels[i]),
        )
        for i, c in enumerate(c for c in labels.classes if c.evaluate)
    ]


def _instances(counts: PairCounts, labels: LabelSpace) -> list[InstanceResult]:
    names = labels.names()
    out: list[InstanceResult] = []
    for d in diagnose(counts, labels):
        fields = dataclasses.asdict(d)
        out.append(InstanceResult(class_name=names[d.true_class], coverage=100.0 * fields.pop("iou"), **fields))
    return out


def _truth_rule(counts: PairCounts, protocol: Protocol) -> PairCounts:
    limit = protocol.largest_true_id
    return counts if limit is None else counts.without_true_ids_above(limit)


def _check_label_space(predictions: PredictionSet, labels: LabelSpace) -> None:
    own = predictions.labels
    if own is None:
        return
    left, right = ({c.id: (c.name, c.thing) for c in space.classes} for space in (own, labels))
    for class_id in sorted(left.keys() | right.keys()):
        if left.get(class_id) != right.get(class_id):
            raise UserError(
                f"{predictions.folder}: class {class_id} is {_described(left.get(class_id))} in the predictions but "
                f"{_described(right.get(class_id))} in the truth: predict with the label space of the scene"
            )


def _described(entry: tuple[str, bool] | None) -> str:
    return "absent" if entry is None else f"{entry[0]!r} ({'thing' if entry[1] else 'stuff'})"


def _check_size(predictions: PredictionSet, name: str, true: tuple[int, ...], pred: tuple[int, ...]) -> None:
    """The truth may be larger (it is reduced), not smaller, and must show the same field of view."""
    skew = abs((true[1] * pred[0]) / (true[0] * pred[1]) - 1)
    if true[0] < pred[0] or true[1] < pred[1] or skew > _ASPECT_TOLERANCE:
        raise UserError(
            f"{predictions.folder}: frame {name} is {_by(pred)}, its truth {_by(true)}: "
            "write predictions at the size of the truth, or smaller at its aspect ratio"
        )


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
