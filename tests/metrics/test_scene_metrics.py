from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torchmetrics import Metric, MetricCollection

from panbench.metrics import Coverage, PanopticQuality, SemanticQuality
from panbench.metrics.functional import concatenate, count_pairs
from panbench.protocol import Protocol, protocol_ids
from panbench.protocol.score import metrics_of
from panbench.scene import LabelClass, LabelSpace, PanopticMap

LABELS = LabelSpace(
    "four",
    (
        LabelClass(1, "wall", False),
        LabelClass(2, "chair", True),
        LabelClass(3, "table", True),
        LabelClass(4, "other", True, evaluate=False),
    ),
)
Pair = tuple[PanopticMap, PanopticMap]


def noisy_scene(frames: int = 4) -> list[Pair]:
    generator = np.random.default_rng(3)
    y, x = np.mgrid[:20, :30]
    out: list[Pair] = []
    for f in range(frames):
        ids = (x + 2 * f) // 8 + 4 * (y // 10)
        classes = ids % 5
        noise = generator.random(ids.shape) < 0.2
        pred_classes = np.where(noise, generator.integers(0, 5, ids.shape), classes)
        pred_ids = np.where(noise, generator.integers(0, 7, ids.shape), (ids * 3) % 7)
        pred, true = (
            PanopticMap(torch.from_numpy(c), torch.from_numpy(i)) for c, i in ((pred_classes, pred_ids), (classes, ids))
        )
        out.append((pred, true))
    return out


def build(protocol: Protocol) -> dict[str, Metric]:
    return {
        "panoptic": PanopticQuality(
            LABELS,
            iou_threshold=protocol.iou_threshold,
            segments=protocol.segments,
            average=protocol.classes,
        ),
        "semantic": SemanticQuality(LABELS, rule=protocol.semantic, average=protocol.classes),
        "coverage": Coverage(LABELS),
    }


def functional(pairs: list[Pair], protocol: Protocol) -> dict[str, float]:
    counts = [
        count_pairs(t.semantic.numpy(), t.instance.numpy(), p.semantic.numpy(), p.instance.numpy(), frame=i)
        for i, (p, t) in enumerate(pairs)
    ]
    return metrics_of(concatenate(counts), LABELS, protocol)


def merged(metrics: dict[str, Metric]) -> dict[str, float]:
    return {k: float(v) for metric in metrics.values() for k, v in metric.compute().items()}


@pytest.mark.parametrize("name", protocol_ids())
def test_metric_objects_equal_the_functions(name: str) -> None:
    protocol, pairs = Protocol.load(name), noisy_scene()
    metrics = build(protocol)
    for metric in metrics.values():
        for pred, true in pairs:
            metric.update(pred, true)
    assert merged(metrics) == pytest.approx(functional(pairs, protocol), abs=1e-9)


@pytest.mark.parametrize("name", protocol_ids())
def test_two_processes_together_equal_one(name: str) -> None:
    protocol, pairs = Protocol.load(name), noisy_scene()
    left, right = build(protocol), build(protocol)
    for key in left:
        for pred, true in pairs[:1]:
            left[key].update(pred, true)
        for pred, true in pairs[1:]:
            right[key].update(pred, true)
        gather(left[key], right[key])
    assert merged(left) == pytest.approx(functional(pairs, protocol), abs=1e-9)


def gather(metric: Metric, other: Metric) -> None:
    """What torchmetrics does between processes: concatenate list states, add the others, by their own reduction."""
    for name, reduce in metric._reductions.items():
        mine, theirs = getattr(metric, name), getattr(other, name)
        if isinstance(mine, list):
            setattr(metric, name, [torch.cat([*mine, *theirs])])
        else:
            assert callable(reduce)
            setattr(metric, name, reduce(torch.stack([mine, theirs])))


def test_a_reset_metric_starts_a_new_scene() -> None:
    pairs = noisy_scene()
    metric = PanopticQuality(LABELS)
    metric.update(*pairs[0])
    metric.reset()
    metric.update(*pairs[1])
    fresh = PanopticQuality(LABELS)
    fresh.update(*pairs[1])
    assert metric.compute() == fresh.compute()


def test_metrics_live_in_a_collection_and_survive_pickling() -> None:
    pairs = noisy_scene()
    collection = MetricCollection(build(Protocol.load("panoptic-strict@1")))
    for pred, true in pairs:
        collection.update(pred, true)
    again = pickle.loads(pickle.dumps(collection))
    got = {key: float(value) for key, value in again.compute().items()}
    assert got == pytest.approx(functional(pairs, Protocol.load("panoptic-strict@1")), abs=1e-9)


def test_a_scene_without_frames_has_no_panoptic_quality() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert torch.isnan(PanopticQuality(LABELS).compute()["PQ"])


def test_an_unknown_metric_is_an_attribute_error() -> None:
    import panbench.metrics

    with pytest.raises(AttributeError, match="Nonsense"):
        _ = panbench.metrics.Nonsense
