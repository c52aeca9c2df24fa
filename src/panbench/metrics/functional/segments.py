"""From (class, id) pixels to the segments that panoptic quality matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from panbench.metrics.functional.counts import Ints, group_sum, majority
from panbench.scene import VOID, LabelSpace

SegmentRule = Literal["scene-vote", "stuff-by-class"]


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one side (truth or prediction) of a scene.

    Attributes:
        of_row: segment of each row of counts [R]; 0 = void.
        label: class of each segment [S + 1], void first.
        instance: instance id of a thing segment, 0 for all others [S + 1].
    """

    of_row: Ints
    label: Ints
    instance: Ints


def build_segments(classes: Ints, ids: Ints, pixels: Ints, labels: LabelSpace, rule: SegmentRule) -> Segments:
    """Group the rows of scene-wide counts into segments.

    ``scene-vote`` (specs/metrics.md 2.2, as the paper's group publishes it): an id is one segment and has the majority
    class of all its pixels in the scene, whatever each pixel says; ids voted into one stuff class are one segment; the
    pixels without an id form one more segment per class, so a stuff class can have two. An id voted into a class that
    is not evaluated is void as a whole.

    ``stuff-by-class`` (the COCO reading): pixels of a stuff class are one segment per class, their ids are ignored;
    an id is one segment of its thing pixels, of their majority class. Pixels of classes that are not evaluated are
    void. Thing pixels without an id form one segment per class.

    Args:
        classes, ids, pixels: [R] rows of counts of one side.
    """
    evaluated = np.asarray(labels.evaluated_ids, dtype=np.int64)
    things = np.asarray(sorted(set(labels.thing_ids) & set(labels.evaluated_ids)), dtype=np.int64)
    if rule == "stuff-by-class":
        ids = np.where(np.isin(classes, things), ids, 0)
    voted_id, voted_class = majority(ids, classes, pixels)
    position = np.searchsorted(voted_id, ids)
    label = np.where(ids > 0, voted_class[position] if len(ids) else 0, classes)
    label = np.where(np.isin(label, evaluated), label, VOID)
    instance = np.where(np.isin(label, things), ids, 0)
    from_id = (ids > 0).astype(np.int64)
    # Key of a segment: its class, whether it grew from ids, and the id of a thing. Void is one group of its own.
    key = [np.where(label == VOID, 0, part) for part in (label, from_id, instance)]
    (seg_label, _, seg_instance), _ = group_sum(key, pixels)
    of_row = _position([*key], pixels)
    if len(seg_label) == 0 or seg_label[0] != VOID:
        seg_label, seg_instance = np.insert(seg_label, 0, VOID), np.insert(seg_instance, 0, 0)
        of_row = of_row + 1
    return Segments(of_row, seg_label, seg_instance)


def _position(keys: list[Ints], pixels: Ints) -> Ints:
    """Index [R] of each row's key tuple among the sorted unique key tuples."""
    if len(pixels) == 0:
        return np.zeros(0, dtype=np.int64)
    _, inverse = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    return inverse.reshape(-1)
