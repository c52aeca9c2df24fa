"""Results that are valid but made up: as many methods, scenes and seeds as a test of tables or of a store needs.

The scores are given, not counted: ``counts`` holds a few pixels that only tell results apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from panbench.metrics.functional import count_pairs
from panbench.protocol import Protocol
from panbench.protocol.results import (
    BenchCell,
    ClassResult,
    InstanceResult,
    Origin,
    SceneResult,
    StoredCounts,
    split_hash,
)
from panbench.scene import LabelClass, LabelSpace

LABELS = LabelSpace(
    "made-up",
    (
        LabelClass(1, "wall", thing=False),
        LabelClass(2, "floor", thing=False),
        LabelClass(3, "chair", thing=True),
        LabelClass(4, "table", thing=True),
        LabelClass(5, "trash can", thing=True),
    ),
)
FRAMES = ("0", "40", "80", "120")
PAPER, STRICT = "scannet-paper@1", "panoptic-strict@1"
_VERDICTS = ("found", "found", "found", "split", "merged", "wrong class", "missed", "poor")


def hashed(*parts: object) -> str:
    """A sha256 that follows from what it is given."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cell(plan: str, method: str, scene: str = "room0", **more: Any) -> BenchCell:
    """A place in a plan."""
    key = "-".join(str(part) for part in (method, more.get("variant", ""), scene) if part)
    return BenchCell(plan=plan, cell=key, method=method, scene=scene, **more)


def result(
    method: str = "ligs-query",
    scene: str = "room0",
    seed: int | None = 0,
    *,
    pq: float = 70.0,
    protocol: str = PAPER,
    masks: str = "medium",
    settings: str | None = None,
    trust: str = "verified",
    created: str = "2026-11-20T10:00:00+00:00",
    run: str | None = None,
    bench: BenchCell | None = None,
    metrics: Mapping[str, float] | None = None,
    cost: Mapping[str, float] | None = None,
    **fields: Any,
) -> SceneResult:
    """One result. All scores follow from ``pq``; other fields of :class:`SceneResult` by name.

    Args:
        settings: what the settings' hash is made of; None: the method's name.
        run: run directory; None: one that follows from method, scene and seed.
        metrics, cost: values to change or add.
    """
    rng = np.random.default_rng(int(hashed(method, scene, seed, pq)[:8], 16))
    ones = np.ones((2, 2 + int(rng.integers(1, 4000))), dtype=np.int32)
    free = seed is None and method in ("raw-masks", "voxel-vote")
    settings_hash = "" if free else hashed("settings", method if settings is None else settings)
    scores = {
        "PQ": pq, "SQ": pq + 0.45 * (100 - pq), "RQ": pq + 0.6 * (100 - pq), "mIoU": pq + 1.5, "mAcc": pq + 6.0,
        "mCov": pq - 2.5, "mWCov": pq + 3.0, "mIoU_pooled": pq + 2.0, "mIoU_frame": pq + 1.5, "PQ_paper": pq,
        "PQ_strict": pq - 3.0,
    }  # fmt: skip
    costs: dict[str, float] = {}
    if not free:
        scores |= {"PSNR": 20 + pq / 10, "SSIM": 0.6 + pq / 300}
        costs = {"gaussians": 1000.0 * round(300 - pq), "fit_seconds": 8 * pq, "peak_memory_bytes": pq * 2.0**24}
    frames = list(fields.pop("frames", FRAMES))
    names = fields.pop("space", LABELS)
    where = run if run is not None else f"/elsewhere/runs/scannet/{scene}/{method}/s{seed}-{settings_hash[:8]}"
    values: dict[str, Any] = {
        "protocol": protocol,
        "protocol_hash": Protocol.load(protocol).hash,
        "dataset": "scannet",
        "scene": scene,
        "synthetic": True,
        "method": method,
        "seed": seed,
        "labels": "shared",
        "commit": "0" * 40,
        "label_space": names.to_dict(),
        "label_hash": names.hash,
        "source_size": (240, 320),
        "image_size": (240, 320),
        "frames": frames,
        "split_hash": split_hash(frames),
        "metrics": scores | dict(metrics or {}),
        "per_class": [_class(c, pq) for c in names.classes],
        "instances": [_instance(i, pq) for i in range(len(_VERDICTS))],
        "cost": costs | dict(cost or {}),
        "provenance": {"backend": "cpu", "config_hash": hashed(method, seed)},
        "origin": Origin(
            trust=trust,  # type: ignore[arg-type]
            created=created,
            run="" if trust == "submitted" else where,
            command=["panbench", "fit", "--config", f"configs/{method}.yaml", "--seed_everything", str(seed)],
            settings_hash=settings_hash,
            masks=masks,
            mask_hash=hashed("masks", scene, masks),
            data_hash=hashed("data", scene),
        ),
        "bench": bench,
        "counts": StoredCounts.pack(count_pairs(ones, ones, ones, ones)),
    }
    return SceneResult.model_validate(values | fields)


def grid(
    methods: Mapping[str, float],
    scenes: Sequence[str] = ("room0", "room1", "room2"),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    noise: float = 0.4,
    protocols: Iterable[str] = (PAPER,),
    **more: Any,
) -> Iterator[SceneResult]:
    """Results of every method (name: PQ) on every scene with every seed, and the training-free rows beside each run."""
    for s, scene in enumerate(scenes):
        for protocol in protocols:
            for method, pq in methods.items():
                for seed in seeds:
                    rng = np.random.default_rng(int(hashed(method, scene, seed)[:8], 16))
                    score = pq + 3.0 * s + noise * float(rng.normal())
                    yield result(method, scene, seed, pq=score, protocol=protocol, **more)
            beside = result(next(iter(methods)), scene, seeds[0], protocol=protocol, **more).origin.run
            masks = more.get("masks", "medium")
            for name, pq in (("raw-masks", 36.0), ("voxel-vote", 66.0)):
                yield result(name, scene, None, pq=pq + 3.0 * s, protocol=protocol, masks=masks, run=beside)


def crossed(
    plan: str,
    bases: Mapping[str, float],
    heads: Mapping[str, float],
    scenes: Sequence[str] = ("room0", "room1", "room2"),
    seeds: Sequence[int] = (0, 1, 2),
    leave_out: Iterable[tuple[str, str]] = (),
) -> Iterator[SceneResult]:
    """Results of a plan that crosses bases and heads; PQ is the sum of theirs, but for seeds and scenes."""
    for base, low in bases.items():
        for head, high in heads.items():
            if (base, head) in set(leave_out):
                continue
            name = f"{base}-{head}"
            for s, scene in enumerate(scenes):
                for seed in seeds:
                    rng = np.random.default_rng(int(hashed(name, scene, seed)[:8], 16))
                    place = cell(plan, name, scene, base=base, head=head)
                    yield result(name, scene, seed, pq=low + high + 3.0 * s + 0.4 * float(rng.normal()), bench=place)


def study(
    plan: str,
    axis: str,
    points: Mapping[float | str, Mapping[str, float]],
    scenes: Sequence[str] = ("room0", "room1"),
    seeds: Sequence[int] = (0, 1, 2),
    **more: Any,
) -> Iterator[SceneResult]:
    """Results of a study: PQ of every method at every point. A point that is text is a mask set."""
    for order, (x, methods) in enumerate(points.items()):
        masks = x if isinstance(x, str) else "medium"
        for method, pq in methods.items():
            for scene in scenes:
                for seed in seeds:
                    rng = np.random.default_rng(int(hashed(method, x, scene, seed)[:8], 16))
                    place = cell(plan, method, scene, variant=str(x), axis=axis, x=x, order=order)
                    settings = method if isinstance(x, str) else f"{method} {axis} {x}"
                    score = pq + 0.8 * float(rng.normal())
                    yield result(
                        method, scene, seed, pq=score, masks=masks, settings=settings, bench=place,
                        run=f"/elsewhere/runs/{plan}/{scene}/{method}/{x}-s{seed}", **more,
                    )  # fmt: skip


def write_pictures(folder: Path, shade: int, views: Sequence[str] = ("0", "40"), instances: int = 3) -> None:
    """``pictures`` of a run directory: every view in one grey, so that a picture tells whose it is."""
    size = (48, 64)
    index: list[dict[str, object]] = []
    (folder / "views").mkdir(parents=True)
    for v, view in enumerate(views):
        kinds: dict[str, str] = {}
        for k, kind in enumerate(
            ("photo", "render", "semantic", "instance", "truth_semantic", "truth_instance", "error")
        ):
            kinds[kind] = f"{view}.{kind}.png"
            Image.fromarray(np.full((*size, 3), (shade, 20 * k, 50 * v), dtype=np.uint8)).save(
                folder / "views" / kinds[kind]
            )
        index.append({"name": view, "kinds": kinds})
    (folder / "views" / "index.json").write_text(json.dumps({"views": index, "size": size}))
    (folder / "instances").mkdir()
    entries: list[dict[str, object]] = []
    for i in range(instances):
        crops: dict[str, str] = {}
        for kind in ("photo", "truth", "instance", "error"):
            crops[kind] = f"{i + 1}.{kind}.png"
            Image.fromarray(np.full((24, 24, 3), shade, dtype=np.uint8)).save(folder / "instances" / crops[kind])
        facts = {"true_id": i + 1, "class_name": "chair" if i % 2 else "table", "verdict": ("missed", "split")[i % 2]}
        entries.append(facts | {"coverage": 10.0 * i, "pixels": 400 - 50 * i, "frame": views[0], "crops": crops})
    (folder / "instances" / "index.json").write_text(json.dumps({"instances": entries}))


def _class(item: LabelClass, pq: float) -> ClassResult:
    score = max(pq - 2.0 * item.id, 0.0)
    return ClassResult(
        id=item.id, name=item.name, thing=item.thing, present=True, PQ=score, SQ=score + 5, RQ=score + 8,
        true_positives=3, false_positives=1, false_negatives=1, iou=score + 1, accuracy=score + 4,
        true_pixels=40000 // item.id, pred_pixels=39000 // item.id,
    )  # fmt: skip


def _instance(index: int, pq: float) -> InstanceResult:
    verdict = _VERDICTS[index]
    coverage = pq if verdict == "found" else pq / 3
    return InstanceResult(
        true_id=index + 1, true_class=3, class_name="chair", pixels=900 - 80 * index, coverage=coverage,
        best_id=index + 1, best_class=3, parts=[(index + 1, coverage / 100)], merged_with=[], frames=3,
        switches=index % 2,
        verdict=verdict,  # type: ignore[arg-type]
    )  # fmt: skip
