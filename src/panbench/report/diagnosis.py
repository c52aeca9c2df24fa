"""What went wrong in one result: its instances, its classes, which classes it took for which; as data and as a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panbench.protocol.results import InstanceResult, SceneResult

Grid = tuple[list[Any], list[list[Any]]]
"""Column titles, rows; None is an undefined score."""

VERDICTS = ("found", "poor", "split", "merged", "wrong class", "missed")
_WORST = 12
_CONFUSIONS = 12


def class_table(result: SceneResult) -> Grid:
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


def instance_table(result: SceneResult) -> Grid:
    """What became of every true instance, the worst damage first."""
    columns = ["id", "class", "verdict", "coverage", "pixels", "best id", "parts", "merged with", "frames", "switches"]
    rows = [
        [
            *(i.true_id, i.class_name, i.verdict, _defined(i.coverage), i.pixels, i.best_id),
            *(len(i.parts), len(i.merged_with), i.frames, i.switches),
        ]
        for i in sorted(result.instances, key=lambda i: (-damage(i), i.true_id))
    ]
    return columns, rows


def damage(instance: InstanceResult) -> float:
    """Pixels of an instance, over all frames, that its best prediction does not explain: pixels · (1 − IoU)."""
    return instance.pixels * (1 - (_defined(instance.coverage) or 0.0) / 100)


def worst_instances(result: SceneResult, count: int) -> list[InstanceResult]:
    """The instances that were not found, those with most damage first."""
    lost = (i for i in result.instances if i.verdict != "found")
    return sorted(lost, key=lambda i: (-damage(i), i.true_id))[:count]


def confusion(result: SceneResult) -> tuple[list[str], NDArray[np.int64]]:
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


def largest_confusions(result: SceneResult, count: int) -> Grid:
    """The pairs of a class and another one that was predicted in its place, most pixels first."""
    names, matrix = confusion(result)
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows: list[list[Any]] = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[i, j]:
            rows.append([names[i], names[j], int(wrong[i, j]), 100.0 * float(wrong[i, j] / matrix[i].sum())])
    return ["true class", "predicted class", "pixels", "% of the true class"], rows


def crops_of(folder: Path) -> dict[int, Mapping[str, str]]:
    """Files of the crops by kind, by true id, as ``folder/index.json`` names them; {} without it."""
    index = folder / "index.json"
    if not index.is_file():
        return {}
    return {item["true_id"]: item["crops"] for item in json.loads(index.read_text())["instances"]}


def in_words(instance: InstanceResult, result: SceneResult) -> str:
    """What happened to an instance of a result, in a phrase."""
    covered = f"IoU {_defined(instance.coverage) or 0.0:.0f} %"
    merged = set(instance.merged_with)
    others = ", ".join(f"{i.class_name} {i.true_id}" for i in result.instances if i.true_id in merged)
    told = {
        "missed": "nothing covers it" if not instance.best_id else f"hardly covered, {covered}",
        "split": f"shared by {len(instance.parts)} predictions, {covered}",
        "merged": f"in one prediction with {others}, {covered}",
        "wrong class": f"taken for {result.space().names()[instance.best_class]}, {covered}",
    }.get(instance.verdict, covered)
    switches = f"; another id in {instance.switches} of {instance.frames} frames" if instance.switches else ""
    return told + switches


def diagnosis(result: SceneResult, pictures: Path, base: Path) -> str:
    """The page ``diagnosis.md`` of a run.

    Args:
        result: under the run's main protocol.
        pictures: folder with the crops of instances.
        base: folder of the page, which its links are relative to.
    """
    crops = crops_of(pictures)
    verdicts = Counter(i.verdict for i in result.instances)
    switches = sum(i.switches for i in result.instances)
    shown = sum(i.frames for i in result.instances)
    seen = ", ".join(f"{verdicts[v]} {v}" for v in VERDICTS if verdicts[v]) or "none"
    lines = [
        f"# What went wrong: {result.method} on {result.scene}, seed {result.seed}",
        "",
        f"{result.protocol}, {len(result.frames)} test frames. True instances: {len(result.instances)} ({seen}). Along "
        f"the path an instance had another id than its own in {switches} of {shown} sightings.",
        "",
        "## The worst instances",
        "",
        "Those that were not found, most lost pixels first. Pictures: the photo with the true outline, the truth, the "
        "predicted instances, the errors.",
        "",
    ]
    rows: list[list[Any]] = []
    for i in worst_instances(result, _WORST):
        files = crops.get(i.true_id, {})
        where = (pictures / name for name in files.values())
        links = " ".join(
            f"[{kind}]({path.relative_to(base).as_posix()})" for kind, path in zip(files, where, strict=True)
        )
        rows.append([i.class_name, i.true_id, i.verdict, in_words(i, result), round(damage(i)), links or "–"])
    lines += [markdown_grid((["class", "id", "verdict", "what happened", "pixels lost", "pictures"], rows)), ""]
    for title, grid in (
        ("Largest confusions of classes", largest_confusions(result, _CONFUSIONS)),
        ("Classes", class_table(result)),
        ("All instances", instance_table(result)),
        ("Pixels by true (row) and predicted (column) class", _confusion_grid(result)),
    ):
        lines += [f"## {title}", "", markdown_grid(grid), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_grid(grid: Grid) -> str:
    """A table as Markdown."""
    columns, rows = grid
    lines = [columns, ["---"] * len(columns), *([_shown(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _confusion_grid(result: SceneResult) -> Grid:
    """The matrix without the classes that are neither there nor predicted."""
    names, matrix = confusion(result)
    there = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    rows = [[names[i], *map(int, matrix[i, there])] for i in there if matrix[i].any()]
    return ["true \\ predicted", *(names[i] for i in there)], rows


def _shown(value: object) -> str:
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
