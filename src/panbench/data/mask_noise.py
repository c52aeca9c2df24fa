"""Pseudo-masks with the kinds of error that Grounded-SAM makes, made from true labels.

A frame's true segments become detections; detections are missed (for several frames on end), merged, cut, split,
confused, moved at their borders; stuff goes missing or has holes; things are seen that are not there. Each detection
has one score and the highest score wins a pixel, so what nobody claims is void. Instance ids are shuffled in every
frame.
Rates are engineering choices that reach plausible totals (docs/rooms.md has the measured quality), not measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.ndimage import binary_dilation, binary_erosion, label, uniform_filter
from scipy.special import ndtr

from panbench.scene import VOID, LabelSpace

Mask = NDArray[np.bool_]
Labels = NDArray[np.integer]

_CONFUSED: Mapping[str, tuple[str, ...]] = {
    "chair": ("sofa", "table"), "sofa": ("chair", "bed"), "table": ("desk", "box", "cabinet"),
    "desk": ("table", "cabinet"), "cabinet": ("shelf", "desk"),
    "shelf": ("cabinet",), "bed": ("sofa", "table"), "whiteboard": ("wall", "picture"),
    "door": ("wall", "cabinet"), "curtain": ("wall",), "window": ("wall", "picture"), "trash can": ("box", "plant"),
    "box": ("trash can", "cabinet"), "picture": ("window", "whiteboard"), "monitor": ("picture", "box"),
    "pillow": ("sofa", "box"), "rug": ("floor",), "books": ("box",), "lamp": ("plant",), "plant": ("lamp",),
    "ceiling": ("wall",),
}  # fmt: skip
_TABLED = 256  # objects whose fate is drawn together; those of larger ids are drawn one by one


@dataclass(frozen=True)
class MaskNoise:
    """Rates of each error.

    Attributes:
        missed: chance to miss a thing that covers < 0.3 %, 0.3–2 %, > 2 % of the picture.
        persistence: correlation of misses from frame to frame.
        merged: chance that two touching things of one class become one detection.
        fragment: chance that only the largest piece of an occluded thing is kept.
        part: chance that a detection is cut in two (half of the time both parts are kept).
        confused: chance that one detection gets a wrong class.
        confused_always: chance that an object is one that gets the same wrong class in 70 % of its views.
        boundary: standard deviation of the border's displacement, pixels of a 640-column image.
        bleeding: chance of a blob over the border.
        stuff_absent: chance that a stuff class is absent from a frame.
        holes: share of a stuff segment that is missing.
        hallucinated: mean number of things per frame that are not there.
        thing_score, stuff_score: parameters of the Beta distributions of the detections' scores.

    Raises:
        ValueError: a chance outside 0 … 1, or another value that cannot be; names it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # for those that come from files

    missed: tuple[float, float, float] = (0.0, 0.0, 0.0)
    persistence: float = 0.85
    merged: float = 0.0
    fragment: float = 0.0
    part: float = 0.0
    confused: float = 0.0
    confused_always: float = 0.0
    boundary: float = 0.0
    bleeding: float = 0.0
    stuff_absent: float = 0.0
    holes: float = 0.0
    hallucinated: float = 0.0
    thing_score: tuple[float, float] = (5.0, 5.0)
    stuff_score: tuple[float, float] = (4.0, 7.0)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low, high = _RANGES.get(name, (0.0, 1.0))
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if not (math.isfinite(number) and low <= number <= high):
                    raise ValueError(f"{name} is {number:g}; it must lie in {low:g} ... {high:g}")


_RANGES: Mapping[str, tuple[float, float]] = {
    "boundary": (0.0, 64.0), "hallucinated": (0.0, 100.0), "thing_score": (1e-3, 1e4), "stuff_score": (1e-3, 1e4),
}  # fmt: skip

PRESETS: Mapping[str, MaskNoise] = {
    "clean": MaskNoise(),
    "light": MaskNoise((0.20, 0.07, 0.02), 0.85, 0.05, 0.30, 0.04, 0.03, 0.05, 1.0, 0.05, 0.05, 0.04, 0.1),
    "medium": MaskNoise((0.40, 0.15, 0.05), 0.85, 0.12, 0.50, 0.08, 0.05, 0.08, 1.8, 0.10, 0.12, 0.08, 0.3),
    "heavy": MaskNoise((0.60, 0.30, 0.12), 0.85, 0.25, 0.60, 0.15, 0.12, 0.20, 4.0, 0.20, 0.30, 0.15, 0.8),
}


def confused_with(category: int, labels: LabelSpace) -> list[int]:
    """The classes that a class is taken for; [] if there is no other."""
    by_name = {c.name: c.id for c in labels.classes if c.evaluate}
    alike = [by_name[n] for n in _CONFUSED.get(labels.names()[category], ()) if n in by_name]
    return alike or [c for c in labels.thing_ids if c != category]


@dataclass(frozen=True, eq=False)
class PseudoMask:
    """Masks of one frame.

    Attributes:
        semantic: class id [H, W], 0 = void.
        instance: 1 … n in this frame [H, W], 0 = stuff or none.
        score: 255 × detection score [H, W].
        classes: class of instance 1 … n. An instance that others cover keeps its entry.
    """

    semantic: Labels
    instance: Labels
    score: NDArray[np.uint8]
    classes: list[int]


@dataclass(eq=False)
class _Detection:
    mask: Mask
    category: int
    score: float
    objects: tuple[int, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class _Fate:
    """An object's luck in each frame [F], whether it is one of the always confused, and which wrong class it gets."""

    luck: NDArray[np.floating]
    always: bool
    taste: float


class MaskNoiser:
    """Makes pseudo-masks of a scene, frame by frame; frames may be asked for in any order.

    Args:
        noise: error rates.
        labels: label space of the masks; its non-evaluated classes are treated as stuff.
        frames: number of frames of the scene.
        seed: of all choices.
    """

    def __init__(self, noise: MaskNoise, labels: LabelSpace, frames: int, seed: int) -> None:
        self._noise, self._labels, self._seed = noise, labels, seed
        self._clean = noise == MaskNoise(persistence=noise.persistence)
        rng = np.random.default_rng([seed, 1])
        objects = _TABLED
        latent = np.empty((frames, objects))
        latent[0] = rng.standard_normal(objects)
        for t in range(1, frames):
            fresh = rng.standard_normal(objects)
            latent[t] = noise.persistence * latent[t - 1] + np.sqrt(1 - noise.persistence**2) * fresh
        self._fates = {
            k: _Fate(ndtr(latent[:, k]), bool(always), float(taste))
            for k, (always, taste) in enumerate(
                zip(rng.random(objects) < noise.confused_always, rng.random(objects), strict=True)
            )
        }
        self._frames = frames
        self._names = labels.names()
        self._is_thing = labels.is_thing()

    def frame(self, index: int, semantic: Labels, instance: Labels) -> PseudoMask:
        """Pseudo-masks of frame ``index``.

        Args:
            semantic: true class ids [H, W].
            instance: true scene-level object ids [H, W]; ids on stuff are ignored.
        """
        rng = np.random.default_rng([self._seed, 2, index])
        detections = self._things(index, semantic, instance, rng)
        detections = self._stuff(semantic, rng) + detections
        if not self._clean:
            self._hallucinate(detections, semantic.shape, rng)
        return self._composite(detections, semantic.shape, rng)

    def _fate(self, number: int) -> _Fate:
        """What becomes of an object over the frames: a function of seed and id, whichever object is asked for first."""
        if number not in self._fates:
            rng = np.random.default_rng([self._seed, 3, number])
            fresh, rho = rng.standard_normal(self._frames), self._noise.persistence
            latent = fresh.copy()
            for t in range(1, self._frames):
                latent[t] = rho * latent[t - 1] + np.sqrt(1 - rho**2) * fresh[t]
            always, taste = rng.random(2).tolist()
            self._fates[number] = _Fate(ndtr(latent), always < self._noise.confused_always, taste)
        return self._fates[number]

    # ---- detections ------------------------------------------------------------------------------------------------
    def _things(self, index: int, semantic: Labels, instance: Labels, rng: np.random.Generator) -> list[_Detection]:
        noise, size = self._noise, semantic.size
        on_things = self._is_thing[semantic]
        ids = np.flatnonzero(np.bincount(instance[on_things], minlength=1))
        found: list[_Detection] = []
        for i in ids[ids > 0].tolist():
            mask = (instance == i) & on_things
            category = int(semantic[mask][0])
            share = mask.sum() / size
            chance = noise.missed[0 if share < 0.003 else (1 if share < 0.02 else 2)]
            if self._fate(i).luck[index] < chance:
                continue
            found.append(_Detection(mask, category, float(np.clip(rng.beta(*noise.thing_score), 0.2, 0.95)), (i,)))
        if self._clean:
            return found
        waves = _Waves(semantic.shape, rng, 6.0)
        out: list[_Detection] = []
        for detection in self._merge(found, rng):
            detection.mask = self._largest_piece(detection.mask, rng)
            detection.category = self._confuse(detection, rng)
            for mask in self._parts(detection.mask, rng):
                out.append(_Detection(self._border(mask, waves, rng), detection.category, detection.score))
        return out

    def _merge(self, found: list[_Detection], rng: np.random.Generator) -> list[_Detection]:
        out: list[_Detection] = []
        for detection in found:
            partner = None
            for other in out:
                if (
                    other.category == detection.category
                    and rng.random() < self._noise.merged
                    and touch(other.mask, detection.mask)
                ):
                    partner = other
                    break
            if partner is None:
                out.append(detection)
            else:
                partner.mask = partner.mask | detection.mask
                partner.objects += detection.objects
        return out

    def _largest_piece(self, mask: Mask, rng: np.random.Generator) -> Mask:
        if rng.random() >= self._noise.fragment:
            return mask
        box = _bounds(mask, 0)
        pieces, count = connected_pieces(mask[box])
        if count < 2:
            return mask
        out = np.zeros_like(mask)
        out[box] = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        return out

    def _parts(self, mask: Mask, rng: np.random.Generator) -> list[Mask]:
        if rng.random() >= self._noise.part:
            return [mask]
        rows, columns = np.nonzero(mask)
        angle = rng.uniform(0, 2 * np.pi)
        along = np.cos(angle) * columns + np.sin(angle) * rows
        cut = np.quantile(along, rng.uniform(0.3, 0.7))
        first, second = np.zeros_like(mask), np.zeros_like(mask)
        first[rows[along <= cut], columns[along <= cut]] = True
        second[rows[along > cut], columns[along > cut]] = True
        return [first, second] if rng.random() < 0.5 else [first if rng.random() < 0.5 else second]

    def _confuse(self, detection: _Detection, rng: np.random.Generator) -> int:
        fate = self._fate(detection.objects[0])
        systematic, occasional, pick = rng.random(), rng.random(), float(rng.random())
        if fate.always and systematic < 0.7:
            return self._wrong_class(detection.category, fate.taste)
        if occasional < self._noise.confused:
            return self._wrong_class(detection.category, pick)
        return detection.category

    def _wrong_class(self, category: int, pick: float) -> int:
        choices = confused_with(category, self._labels) or [category]
        return choices[min(int(pick * len(choices)), len(choices) - 1)]

    def _stuff(self, semantic: Labels, rng: np.random.Generator) -> list[_Detection]:
        noise = self._noise
        out: list[_Detection] = []
        present = [
            c for c in np.flatnonzero(np.bincount(semantic.ravel())).tolist() if c != VOID and not self._is_thing[c]
        ]
        if self._clean:
            return [_Detection(semantic == c, c, 0.5) for c in present]
        waves, wide = _Waves(semantic.shape, rng, 6.0), _Waves(semantic.shape, rng, 18.0)
        for category in present:
            absent, score = rng.random() < noise.stuff_absent, float(np.clip(rng.beta(*noise.stuff_score), 0.2, 0.95))
            if absent:
                continue
            mask = semantic == category
            wrong = self._wrong_class(category, float(rng.random())) if rng.random() < noise.confused else category
            if not self._is_thing[wrong]:
                category = wrong
            if noise.holes > 0:
                holes = wide.patch(semantic.shape, rng)
                mask = mask & (ndtr(holes) > noise.holes)
            out.append(_Detection(self._border(mask, waves, rng), category, score))
        return out

    def _hallucinate(self, detections: list[_Detection], shape: tuple[int, ...], rng: np.random.Generator) -> None:
        things = self._labels.thing_ids
        height, width = shape
        for _ in range(int(rng.poisson(self._noise.hallucinated)) if things else 0):
            centre = rng.random(2) * (height, width)
            radius = rng.uniform(0.04, 0.12, 2) * width
            mask = _ellipse(shape, centre, radius, float(rng.uniform(0, np.pi)))
            detections.append(_Detection(mask, int(rng.choice(things)), float(rng.uniform(0.2, 0.38))))

    # ---- borders ---------------------------------------------------------------------------------------------------
    def _border(self, mask: Mask, waves: _Waves, rng: np.random.Generator) -> Mask:
        """Wavy, grown or shrunk border, sometimes with a blob over it.

        Displacing the whole mask by a smooth random field moves its border by the field's component along the normal,
        without a distance transform per detection.
        """
        width = mask.shape[1]
        sigma = self._noise.boundary * width / 640
        bias = int(np.round(rng.normal(0, 0.5 * sigma)))
        bleeds, where, radius = rng.random() < self._noise.bleeding, rng.random(), rng.uniform(0.03, 0.08) * width
        if not mask.any():
            return mask
        if sigma > 0:
            box = _bounds(mask, int(np.ceil(4 * sigma)) + 2)
            rows, columns = np.mgrid[box]
            dy, dx = (sigma * waves.patch(rows.shape, rng) for _ in range(2))
            y = np.clip(np.rint(rows + dy).astype(np.int64), 0, mask.shape[0] - 1)
            x = np.clip(np.rint(columns + dx).astype(np.int64), 0, width - 1)
            moved = mask[y, x]
            if bias > 0:
                moved = binary_dilation(moved, iterations=bias)
            elif bias < 0:
                thinner = binary_erosion(moved, iterations=-bias, border_value=1)
                moved = thinner if thinner.sum() > 0.3 * moved.sum() else moved
            mask = np.zeros_like(mask)
            mask[box] = moved
        if bleeds and mask.any():
            box = _bounds(mask, 0)
            edge = np.argwhere(mask[box] & ~np.asarray(binary_erosion(mask[box]), dtype=bool))
            centre = edge[int(where * len(edge))] + (box[0].start, box[1].start)
            mask = mask | _ellipse(mask.shape, centre, np.array([radius, radius]), 0.0)
        return mask

    def _composite(self, detections: list[_Detection], shape: tuple[int, ...], rng: np.random.Generator) -> PseudoMask:
        semantic = np.zeros(shape, np.uint8 if self._labels.size <= 256 else np.uint16)
        instance = np.zeros(shape, np.uint8 if len(detections) < 256 else np.uint16)
        score = np.zeros(shape, np.float32)
        detections = [d for d in detections if self._clean or d.mask.sum() >= 12]
        things = [k for k, d in enumerate(detections) if self._is_thing[d.category]]
        number = dict(zip(things, (rng.permutation(len(things)) + 1).tolist(), strict=True))
        classes = [0] * len(things)
        for k, detection in enumerate(detections):
            if k in number:
                classes[number[k] - 1] = detection.category
            wins = detection.mask & (detection.score > score)
            semantic[wins] = detection.category
            instance[wins] = number.get(k, 0)
            score[wins] = detection.score
        if self._clean:
            score = np.where(semantic > 0, np.float32(0.95), np.float32(0))
        return PseudoMask(semantic, instance, np.round(score * 255).astype(np.uint8), classes)


class _Waves:
    """Smooth unit-variance noise, cut at random offsets from one periodic field.

    Three box filters stand for a Gaussian of ``length`` pixels (of a 640-column image) at a cost that does not grow.
    """

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator, length: float) -> None:
        height, width = shape
        noise = rng.standard_normal((height + 64, width + 64), dtype=np.float32)
        size = max(2, round(2 * length * width / 640))
        smooth = noise
        for _ in range(3):
            smooth = uniform_filter(smooth, size, mode="wrap")
        smooth -= smooth.mean()
        smooth /= smooth.std()
        self._field = np.concatenate([np.concatenate([smooth, smooth], 1)] * 2, 0)
        self._period = smooth.shape

    def patch(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        y, x = (int(rng.integers(p)) for p in self._period)
        return self._field[y : y + shape[0], x : x + shape[1]]


def connected_pieces(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Connected pieces 1 … count of a mask."""
    pieces = np.zeros(mask.shape, dtype=np.int32)
    count = label(mask, output=pieces)
    return pieces, int(np.max(pieces)) if count else 0


def _bounds(mask: Mask, margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(int(rows[0]) - margin, 0), min(int(rows[-1]) + margin + 1, mask.shape[0])),
        slice(max(int(columns[0]) - margin, 0), min(int(columns[-1]) + margin + 1, mask.shape[1])),
    )


def touch(a: Mask, b: Mask) -> bool:
    """Whether two masks come within 3 pixels of each other."""
    box = _bounds(a, 4)
    return bool((np.asarray(binary_dilation(a[box], iterations=3), dtype=bool) & b[box]).any())


def _ellipse(shape: tuple[int, ...], centre: NDArray[np.floating], radius: NDArray[np.floating], angle: float) -> Mask:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    y, x = rows - centre[0], columns - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    return ((c * x + s * y) / radius[1]) ** 2 + ((c * y - s * x) / radius[0]) ** 2 <= 1


def mask_quality(
    masks: Iterator[PseudoMask], semantics: Iterator[Labels], instances: Iterator[Labels], labels: LabelSpace
) -> dict[str, float]:
    """How good pseudo-masks are against the truth, in per cent; void in a mask counts as wrong.

    ``mIoU_per_frame``: mean over frames of the mean IoU of the classes present. ``mIoU_all``, ``mAcc_all``: one
    confusion matrix of all frames.
    ``PQ``, ``SQ``, ``RQ``: segments of single views (at least 30 px, IoU > 0.5), counted over all
    views per class, then averaged over classes; ``_things``: over thing classes only. ``void_px``: unlabelled share.
    """
    size = labels.size
    evaluated = np.zeros(size, dtype=bool)
    evaluated[list(labels.evaluated_ids)] = True
    is_thing = labels.is_thing()
    confusion = np.zeros((size, size), dtype=np.int64)
    tally = np.zeros((size, 4))  # summed IoU, TP, FP, FN
    per_frame: list[float] = []
    void = total = 0
    for mask, semantic, instance in zip(masks, semantics, instances, strict=True):
        counted = evaluated[semantic]
        frame = np.bincount(semantic[counted].astype(np.int64) * size + mask.semantic[counted], minlength=size * size)
        frame = frame.reshape(size, size)
        confusion += frame
        union = frame.sum(1) + frame.sum(0) - np.diag(frame)
        present = evaluated & (frame.sum(1) > 0)
        if present.any():
            per_frame.append(float((np.diag(frame)[present] / union[present]).mean()))
        void += int((mask.semantic[counted] == VOID).sum())
        total += int(counted.sum())
        _tally_segments(tally, mask, semantic, np.where(is_thing[semantic], instance, 0), counted, evaluated)
    union = confusion.sum(1) + confusion.sum(0) - np.diag(confusion)
    seen = evaluated & (confusion.sum(1) > 0)
    summed, tp, fp, fn = tally.T
    sq, rq = summed / np.maximum(tp, 1), tp / np.maximum(tp + (fp + fn) / 2, 1e-9)
    out = {
        "mIoU_per_frame": float(np.mean(per_frame)) if per_frame else 0.0,
        "mIoU_all": float((np.diag(confusion)[seen] / union[seen]).mean()),
        "mAcc_all": float((np.diag(confusion)[seen] / confusion.sum(1)[seen]).mean()),
    }
    for suffix, chosen in (("", seen), ("_things", seen & is_thing)):
        chosen = chosen & (tp + fp + fn > 0)
        if chosen.any():
            out |= {
                f"PQ{suffix}": float((sq * rq)[chosen].mean()),
                f"SQ{suffix}": float(sq[chosen].mean()),
                f"RQ{suffix}": float(rq[chosen].mean()),
            }
    out["void_px"] = void / max(total, 1)
    return {k: round(100 * v, 1) for k, v in out.items()}


def _tally_segments(
    tally: NDArray[np.float64],
    mask: PseudoMask,
    semantic: Labels,
    instance: NDArray[np.integer],
    counted: Mask,
    evaluated: Mask,
) -> None:
    """Add the matches of one view to ``tally`` [classes, (ΣIoU, TP, FP, FN)]."""
    true, true_area = _segments(semantic[counted], instance[counted])
    guess, guess_area = _segments(mask.semantic[counted], mask.instance[counted])
    width = len(guess_area)
    counts = np.bincount(true * width + guess, minlength=len(true_area) * width)
    pairs = np.flatnonzero(counts)
    true_keys, guess_keys = list(true_area), list(guess_area)
    matched_true: set[int] = set()
    matched_guess: set[int] = set()
    for pair, both in zip(pairs.tolist(), counts[pairs].tolist(), strict=True):
        t, g = true_keys[pair // width], guess_keys[pair % width]
        overlap = both / (true_area[t] + guess_area[g] - both)
        if t >> 8 == g >> 8 and overlap > 0.5 and true_area[t] >= 30:
            tally[t >> 8, :2] += (overlap, 1)
            matched_true.add(t)
            matched_guess.add(g)
    for t, area in true_area.items():
        if t not in matched_true and area >= 30:
            tally[t >> 8, 3] += 1
    for g, area in guess_area.items():
        if g not in matched_guess and area >= 30 and evaluated[g >> 8]:
            tally[g >> 8, 2] += 1


def _segments(semantic: Labels, instance: NDArray[np.integer]) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Index of each pixel's segment [N], and the area of each segment by its key class · 256 + id, in index order."""
    key = semantic.astype(np.int64) * 256 + instance
    area = np.bincount(key, minlength=1)
    keys = np.flatnonzero(area)
    lookup = np.zeros(len(area), dtype=np.int64)
    lookup[keys] = np.arange(len(keys))
    return lookup[key], dict(zip(keys.tolist(), area[keys].tolist(), strict=True))
