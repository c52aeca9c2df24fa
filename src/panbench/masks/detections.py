"""From the answers of an open-vocabulary detector to the masks of a frame: phrases, boxes, compositing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from panbench.masks.mask_set import FrameMasks
from panbench.scene import LabelSpace

Floats = NDArray[np.floating]

CLS, SEP, DOT = 101, 102, 1012
"""Token ids that bound the segments of a caption; the detector has them built in."""


@dataclass(frozen=True)
class Caption:
    """A part of the prompts that fits the detector.

    Attributes:
        text: "floor. trash can. chair."
        phrases: its segments. classes: the class id of each.
    """

    text: str
    phrases: tuple[str, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes [n, 4] (x0, y0, x1, y1) as shares of the picture, their scores [n] in [0, 1], and class ids [n]."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def chosen(self, rows: NDArray[np.integer]) -> Detections:
        """Some of them."""
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows])


def captions(labels: LabelSpace, count_tokens: Callable[[str], int], limit: int = 256) -> list[Caption]:
    """The prompts of all classes (the name, where a class has none) in as few captions as hold ``limit`` tokens each.

    Raises:
        ValueError: a prompt alone is longer than that, is empty, or belongs to two classes.
    """
    owner: dict[str, int] = {}
    for c in labels.classes:
        for prompt in c.prompts or (c.name,):
            phrase = " ".join(prompt.lower().replace(".", " ").split())
            if not phrase:
                raise ValueError(f"class {c.name} has the empty prompt {prompt!r}")
            if owner.setdefault(phrase, c.id) != c.id:
                raise ValueError(f"the prompt {phrase!r} belongs to two classes")
    out: list[Caption] = []
    part: list[str] = []

    def caption(phrases: Sequence[str]) -> Caption:
        return Caption(" ".join(f"{p}." for p in phrases), tuple(phrases), tuple(owner[p] for p in phrases))

    for phrase in owner:
        if part and count_tokens(caption([*part, phrase]).text) > limit:
            out.append(caption(part))
            part = []
        part.append(phrase)
        if len(part) == 1 and count_tokens(caption(part).text) > limit:
            raise ValueError(f"the prompt {phrase!r} is longer than {limit} tokens")
    return [*out, caption(part)] if part else out


def read_boxes(
    probabilities: Floats,
    boxes: Floats,
    tokens: Sequence[int],
    caption: Caption,
    decode: Callable[[Sequence[int]], str],
    *,
    box_threshold: float,
    text_threshold: float,
    strict: bool,
) -> Detections:
    """Boxes whose best token reaches ``box_threshold``, with the class of the caption's segment that token lies in.

    This is what GroundingDINO's authors call ``remove_combined``: a phrase never reaches over a dot. A best token that
    is a dot belongs to the segment before it.

    Args:
        probabilities: of each box and token [n, T]. boxes: [n, 4], centre, width and height as shares of the picture.
        tokens: ids of the caption's tokens [T]. decode: text of some token ids.
        text_threshold: tokens of the segment from here on make the phrase; without any there is no detection.
        strict: the phrase must be the whole segment, as in PanopticRecon's script; otherwise any part of it will do.
    """
    bounds = [k for k, token in enumerate(tokens) if token in (CLS, SEP, DOT)]
    # The segments between bounds that hold any token, in order, are the caption's phrases.
    spans = [(a + 1, b) for a, b in pairwise(bounds) if b > a + 1]
    segment_of = {end: k for k, (_, end) in enumerate(spans)}
    kept: list[int] = []
    classes: list[int] = []
    for row in np.flatnonzero(probabilities.max(axis=1, initial=0) > box_threshold).tolist():
        best = int(probabilities[row].argmax())
        place = bisect_left(bounds, best)
        segment = segment_of.get(bounds[place]) if place < len(bounds) else None
        if segment is None or segment >= len(caption.phrases):
            continue
        start, end = spans[segment]
        said = [tokens[k] for k in range(start, end) if probabilities[row, k] > text_threshold]
        if not said or (strict and decode(said) != decode(tokens[start:end])):
            continue
        kept.append(row)
        classes.append(caption.classes[segment])
    center, size = boxes[kept, :2], boxes[kept, 2:]
    corners = np.concatenate([center - size / 2, center + size / 2], axis=1).clip(0, 1)
    return Detections(corners, probabilities[kept].max(axis=1, initial=0), np.array(classes, dtype=np.int64))


def joined(parts: Sequence[Detections]) -> Detections:
    """Detections of several captions as one list."""
    return Detections(
        np.concatenate([p.boxes for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.classes for p in parts]),
    )


def without_huge(found: Detections, largest: float) -> Detections:
    """Without boxes that are both wider and taller than this share of the picture."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    return found.chosen(np.flatnonzero((sides <= largest).any(axis=1)))


def without_doubles(found: Detections, threshold: float) -> Detections:
    """Greedy suppression within classes: a box goes if a better one of its class has IoU > ``threshold``."""
    order = np.argsort(-found.scores, kind="stable")
    kept: list[int] = []
    for row in order.tolist():
        if not any(
            found.classes[k] == found.classes[row] and box_iou(found.boxes[k], found.boxes[row]) > threshold
            for k in kept
        ):
            kept.append(row)
    return found.chosen(np.sort(np.array(kept, dtype=np.int64)))


def box_iou(a: Floats, b: Floats) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 for empty ones."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(sides.clip(0)))
    either = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - both
    return both / either if either > 0 else 0.0


def composite(masks: NDArray[np.bool_], scores: Floats, classes: NDArray[np.int64], labels: LabelSpace) -> FrameMasks:
    """One map of many masks: at each pixel the mask with the highest score wins; of equal ones the first.

    A stuff mask that wins clears the instance below it.

    Args:
        masks: [n, H, W]. scores: [n]. classes: [n].

    Returns:
        Instances 1 … in the order of ``masks``, without gaps; hidden ones have no number.
    """
    shape = masks.shape[1:]
    best, owner = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for k in range(len(masks)):
        wins = masks[k] & (scores[k] > best)
        best[wins], owner[wins] = scores[k], k + 1
    category = np.append(0, classes)
    thing = np.append(False, labels.is_thing()[classes]) if len(classes) else np.array([False])
    shown = np.unique(owner[owner > 0])
    number = np.zeros(len(masks) + 1, dtype=np.int64)
    visible = shown[thing[shown]]
    number[visible] = np.arange(1, len(visible) + 1)
    return FrameMasks(category[owner], number[owner], np.round(255 * best.clip(0, 1)).astype(np.uint8))
