"""The verb ``panbench eval``: score a predictions folder, or a run directory again. No training, no GPU."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from panbench.errors import UserError

if TYPE_CHECKING:
    from panbench.protocol import SceneResult
    from panbench.protocol.results import Origin
    from panbench.scene import Scene

_SIDE_BY_SIDE = {
    "mIoU_pooled": "mIoU pooled",
    "mIoU_frame": "mIoU per frame",
    "PQ_paper": "PQ paper",
    "PQ_strict": "PQ strict",
    "mCov": "mCov",
    "mWCov": "mWCov",
}


@dataclass(frozen=True)
class _Found:
    """What the folder on the command line holds."""

    predictions: Path
    result: Path | None


def main(argv: Sequence[str]) -> int:
    """Run ``panbench eval ...``; returns the exit status.

    With ``--truth`` the predictions are counted against the scene's test frames. Without it, a run directory that was
    scored before is scored from the counts in its result, which takes milliseconds and needs no data.

    Raises:
        UserError: with cause and remedy, if something is missing, damaged or does not fit.
    """
    parser = argparse.ArgumentParser(
        prog="panbench eval", description="Score a predictions folder or a run directory under a named protocol."
    )
    parser.add_argument("folder", type=Path, help="predictions folder, or run directory")
    parser.add_argument(
        "--protocol", help="name@version; default: the published one of the dataset, or that of the earlier result"
    )
    parser.add_argument("--truth", type=Path, metavar="SCENE", help="scene folder with the true labels")
    parser.add_argument("--split", type=Path, metavar="FILE", help="split file instead of the scene's splits.json")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the result to a file")
    args = parser.parse_args(list(argv))

    found = _find(args.folder)
    if args.truth is not None:
        result = _count(found, args.truth, args.split, args.protocol)
    elif found.result is not None:
        result = _recount(found.result, args.protocol)
    else:
        raise UserError(f"{args.folder}: was never scored: give the scene folder with the true labels as --truth SCENE")
    if args.save is not None:
        result.save(args.save)
    sys.stdout.write(result.model_dump_json(indent=1) + "\n" if args.json else _text(result))
    return 0


def _find(folder: Path) -> _Found:
    """Tell a run directory from a predictions folder.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give a predictions folder or a run directory")
    predictions = folder / "predictions" if (folder / "predictions").is_dir() else folder
    results = (folder / "result.json", folder.parent / "result.json" if folder.name == "predictions" else None)
    return _Found(predictions, next((path for path in results if path is not None and path.is_file()), None))


def _count(found: _Found, truth: Path, split: Path | None, protocol: str | None) -> SceneResult:
    from panbench.protocol import PredictionSet, Protocol, SceneTruth, score
    from panbench.protocol.score import paper_protocol

    # What is quickly told to be wrong comes before a scene is read.
    rules = None if protocol is None else Protocol.load(protocol)
    predictions = PredictionSet.open(found.predictions)
    scene = _open_truth(truth, split)
    manifest = predictions.manifest
    if manifest.scene and manifest.scene != scene.name:
        raise UserError(
            f"{found.predictions}: holds predictions of {manifest.scene}, {truth} is {scene.name}: give the right scene"
        )
    cost, quality, origin = _kept(found.result)
    result = score(
        predictions,
        SceneTruth(scene),
        scene.labels,
        rules or Protocol.load(paper_protocol(scene.dataset)),
        dataset=scene.dataset,
        scene=scene.name,
        synthetic=manifest.synthetic or scene.synthetic,
        cost=cost,
        provenance={"truth_hash": scene.data_hash},
        origin=origin,
    )
    result.metrics.update(quality)
    return result


def _recount(path: Path, protocol: str | None) -> SceneResult:
    from panbench.protocol import Protocol, SceneResult, rescore

    old = SceneResult.load(path)
    return rescore(old, Protocol.load(protocol or old.protocol))


def _kept(path: Path | None) -> tuple[dict[str, float], dict[str, float], Origin | None]:
    """Costs, image quality and origin of an earlier result of the run; counting labels again does not change them."""
    if path is None:
        return {}, {}, None
    from panbench.protocol import SceneResult
    from panbench.protocol.score import LABEL_METRICS

    old = SceneResult.load(path)
    return old.cost, {k: v for k, v in old.metrics.items() if k not in LABEL_METRICS}, old.origin


def _open_truth(folder: Path, split: Path | None) -> Scene:
    from panbench.data import scannet_reader, scannetpp_reader

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give the scene folder as --truth SCENE")
    if scannetpp_reader.is_scene(folder):
        if split is not None:
            raise UserError(f"--split {split}: a ScanNet++ scene has its own split: leave --split out")
        scene = scannetpp_reader.open_scene(folder.resolve(), masks=None, cache_bytes=0)
    else:
        scene = scannet_reader.open_scene(folder.resolve(), masks=None, split_file=split, cache_bytes=0)
    if not scene.test:
        raise UserError(f"{folder}: has no test frames: give a split file as --split FILE")
    return scene


def _text(result: SceneResult) -> str:
    """What a person wants to see: the protocol's scores, the side-by-side row, what became of the instances."""
    rows, columns = result.image_size
    what = f"{result.scene} (synthetic)" if result.synthetic else result.scene
    seed = "" if result.seed is None else f", seed {result.seed}"
    lines = [
        f"{result.method} on {what}{seed}: {len(result.frames)} frames at {columns}x{rows}, labels {result.labels}",
        "",
        f"{result.protocol} ({result.protocol_hash[:12]})",
        *_table(("PQ", "SQ", "RQ", "mIoU", "mAcc", "mCov", "mWCov"), result),
        "",
        "side by side",
        *_table(_SIDE_BY_SIDE, result),
        "",
    ]
    verdicts = Counter(instance.verdict for instance in result.instances)
    shown = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()) or "none"
    return "\n".join([*lines, f"true instances: {shown}", ""])


def _table(columns: dict[str, str] | Sequence[str], result: SceneResult) -> list[str]:
    titles = [columns[c] if isinstance(columns, dict) else c for c in columns]
    values = [f"{result.metrics[c]:.1f}" if c in result.metrics else "-" for c in columns]
    widths = [max(len(t), len(v)) for t, v in zip(titles, values, strict=True)]
    return [" | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (titles, values)]
