"""Error rates of a mask set: the noise model of :mod:`panbench.data.mask_noise` fitted to it.

Each rate has a statistic, a count of what the rate does to masks (:class:`_Count`). Errors hide each other: a part cut
off looks smaller, a thing behind a better-scored wall has other borders. So the statistics are calibrated: the model
corrupts the same truth with the rates found so far, the same statistics are taken of that, and each rate moves by the
difference, with ever smaller steps (stochastic approximation of indirect inference), until the model shows what
the masks show. The share of objects that are always confused and the scores are the maximum of a likelihood and
moments, not calibrated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects
from scipy.special import ndtri, xlog1py, xlogy
from scipy.stats import multivariate_normal

from panbench.data.detect import Found, open_found
from panbench.data.mask_noise import MaskNoise, MaskNoiser, confused_with, connected_pieces, touch
from panbench.data.scannet_reader import find_masks
from panbench.errors import UserError
from panbench.masks.corrupt import NoiseFile
from panbench.masks.mask_set import MaskSet, content_hash
from panbench.masks.score import LabelledView
from panbench.scene import VOID, LabelSpace

Ids = NDArray[np.integer]
Mask = NDArray[np.bool_]

_SMALLEST = 20  # pixels of a thing that is looked at; the model drops masks under 12
_LARGE = 80  # pixels of a thing whose shape is judged
_COVERED = 0.25  # share of a thing that a mask must cover to be one of it
_MAIN = 0.6  # from which on it is one even if more of it lies on another of the same class
_ROUNDS = 6
_WIDTH = 320  # pixels of a row that are looked at, about
_FEWEST_MISSES = 4.0  # joint misses that the persistence is fitted to

# Statistic: by how much the rate moves per difference. Larger where the statistic sees only some of the cases.
_GAINS = {
    "missed.0": 1.0, "missed.1": 1.0, "missed.2": 1.0, "merged": 1.1, "fragment": 1.0, "part": 1.1, "boundary": 1.3,
    "bleeding": 1.3, "stuff_absent": 1.0, "holes": 1.0, "hallucinated": 1.5,
}  # fmt: skip
_HALF_PIXEL = 0.25  # standard deviation in pixels at which rounding hides nearly all of a displacement
_MOST = {"boundary": 64.0, "hallucinated": 100.0}


@dataclass
class _Count:
    """Cases in which an error showed (or a sum of what was measured), of all cases in which it could."""

    cases: float = 0.0
    of: float = 0.0

    @property
    def rate(self) -> float:
        return self.cases / self.of if self.of else 0.0


@dataclass
class _Evidence:
    """What the views of a mask set show.

    Attributes:
        counts: by statistic.
        confused: by object the views with a wrong class, and all views in which its mask was found.
        fates: by object and place in the scene its size class, and whether it was missed.
        scores: of found things, of found stuff.
    """

    counts: dict[str, _Count] = field(default_factory=lambda: defaultdict(_Count))
    confused: dict[int, _Count] = field(default_factory=lambda: defaultdict(_Count))
    fates: dict[int, dict[int, tuple[int, bool]]] = field(default_factory=lambda: defaultdict(dict))
    scores: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def add(self, name: str, cases: float, of: float = 1.0) -> None:
        self.counts[name].cases += cases
        self.counts[name].of += of


@dataclass(frozen=True, eq=False)
class FitView:
    """A view to fit.

    Attributes:
        place: of the frame in the scene: neighbours differ by one.
        labels: masks and truth.
        score: 255 × score of the masks [H, W]; None: not known.
    """

    place: int
    labels: LabelledView
    score: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class NoiseFit:
    """A fitted model.

    Attributes:
        noise: the rates.
        observed: by rate: ``cases`` of ``of`` that the statistic counted, its ``statistic``, and whether the rate was
            ``fitted``; one that nothing in the views could show keeps its default.
    """

    noise: MaskNoise
    observed: dict[str, dict[str, Any]]


def fit_noise(
    views: Sequence[FitView], labels: LabelSpace, *, associated: bool = True, progress: bool = False
) -> NoiseFit:
    """Fit the noise model to masks.

    The statistics, over things of at least 20 pixels:

    - ``missed``: a thing is missed if no mask covers a quarter of it with most of its own pixels, or 60 % if it is that
      of another thing of its class.
    - ``persistence``: the correlation at which the model expects as many misses in both of two neighbouring frames as
      there are. Needs ids of the truth that hold over frames.
    - ``merged``: of two found things of one class within 3 pixels of each other, a mask covers a quarter of both.
    - ``fragment``: of found things in several pieces (the others a tenth or more), those of which only the
      largest piece is masked.
    - ``part``: found things with two masks of a fifth each, or of which the masks cover less than 78 %.
    - ``confused``, ``confused_always``: maximum likelihood of a mixture of binomials over objects, whose wrong views
      have chance ``confused``, or 0.7 and more for a share ``confused_always`` of the objects. Without ids that hold
      over frames all confusions count as ``confused``.
    - ``boundary``: mean distance of the true border from the mask's, its largest fifth left out, in pixels of 640
      columns. This one moves by the ratio, not the difference.
    - ``bleeding``: found things whose mask reaches 3 % of the picture's width beyond them.
    - ``stuff_absent``: stuff that covers 1 % of the picture and is labelled to less than a tenth.
    - ``holes``: unlabelled share of the inside of other stuff.
    - ``hallucinated``: masks per frame that are of no thing and lie mostly beside things, but not on unlabelled truth.
    - ``thing_score``, ``stuff_score``: Beta distributions with the mean and variance of the scores of found masks.

    Args:
        views: in the order of their places. Sizes of maps may be anything; a row of about 320 pixels is enough.
        labels: label space of both sides.
        associated: ids of the true things hold over frames.
        progress: show a progress bar.
    """
    seen = _evidence(views, labels)
    known = {name for name in _GAINS if seen.counts[name].of > 0}
    values = {name: seen.counts[name].rate * (_GAINS[name] if name in known else 0.0) for name in _GAINS}
    values = {name: _clipped(name, v) for name, v in values.items()}
    if views and values["boundary"] > 0:
        values["boundary"] = max(values["boundary"], _HALF_PIXEL * 640 / views[0].labels.semantic.shape[1])
    start = MaskNoise()
    confused, always = _confusions(seen.confused, associated)
    thing_score, stuff_score = (
        _beta(found, default)
        for found, default in zip(seen.scores, (start.thing_score, start.stuff_score), strict=True)
    )
    persistence = _persistence(seen.fates) if associated else None
    base = MaskNoise(
        persistence=start.persistence if persistence is None else persistence,
        confused=confused,
        confused_always=always,
        thing_score=thing_score,
        stuff_score=stuff_score,
    )
    frames = 1 + max((view.place for view in views), default=0)
    rounds = track(range(_ROUNDS), "fitting", console=Console(stderr=True), disable=not progress)
    for k in rounds:
        noiser = MaskNoiser(_with(base, values), labels, frames, k)
        made = _evidence((_simulated(noiser, view) for view in views), labels)
        step = 1.0 if k < 2 else 1.0 / k
        for name in known - {"boundary"}:
            difference = seen.counts[name].rate - made.counts[name].rate
            values[name] = _clipped(name, values[name] + step * _GAINS[name] * difference)
        values["boundary"] *= _ratio(seen.counts["boundary"].rate, made.counts["boundary"].rate) ** step
        wrong = _confusions(made.confused, associated)[0]
        base = replace(base, confused=min(max(base.confused + step * (confused - wrong), 0.0), 1.0))
        again = None if persistence is None else _persistence(made.fates)
        if persistence is not None and again is not None:
            rho = base.persistence + step * (persistence - again)
            base = replace(base, persistence=min(max(rho, 0.0), 0.99))
    observed: dict[str, dict[str, Any]] = {
        name: {
            "cases": round(seen.counts[name].cases, 3),
            "of": seen.counts[name].of,
            "statistic": round(seen.counts[name].rate, 4),
            "fitted": name in known,
        }
        for name in _GAINS
    }
    masks_of = sum(c.of for c in seen.confused.values())
    observed["confused"] = {"cases": sum(c.cases for c in seen.confused.values()), "of": masks_of, "fitted": masks_of > 0}  # fmt: skip  # noqa: E501
    observed["confused_always"] = {"of": len(seen.confused), "fitted": associated and masks_of > 0}
    observed["persistence"] = {"fitted": persistence is not None}
    for name, found in zip(("thing_score", "stuff_score"), seen.scores, strict=True):
        observed[name] = {"of": len(found), "fitted": len(found) > 1}
    return NoiseFit(_rounded(_with(base, values)), observed)


def _with(base: MaskNoise, values: dict[str, float]) -> MaskNoise:
    single = {name: value for name, value in values.items() if not name.startswith("missed.")}
    return replace(base, missed=(values["missed.0"], values["missed.1"], values["missed.2"]), **single)


def _clipped(name: str, value: float) -> float:
    return min(max(value, 0.0), _MOST.get(name, 1.0))


def _ratio(wanted: float, made: float) -> float:
    """By how much a scale grows, at most twofold: below a pixel the distance of borders is far from proportional."""
    if wanted <= 0:
        return 0.5
    return 2.0 if made <= 0 else min(max(wanted / made, 0.5), 2.0)


def _rounded(noise: MaskNoise) -> MaskNoise:
    def short(value: Any) -> Any:
        return tuple(round(v, 4) for v in value) if isinstance(value, tuple) else round(value, 4)

    return MaskNoise(**{name: short(value) for name, value in vars(noise).items()})


def _simulated(noiser: MaskNoiser, view: FitView) -> FitView:
    true = view.labels
    made = noiser.frame(view.place, true.true_semantic, true.true_instance)
    masks = replace(true, semantic=made.semantic, instance=made.instance)
    return FitView(view.place, masks, made.score)


# ------------------------------------------------------------------------------------------------------- the statistics


def _evidence(views: Iterable[FitView], labels: LabelSpace) -> _Evidence:
    out = _Evidence()
    for view in views:
        things = _Things(view, labels)
        things.count(out)
        _count_stuff(view, labels, out)
    return out


class _Things:
    """The true things of a view and the masks of them."""

    def __init__(self, view: FitView, labels: LabelSpace) -> None:
        self.view, self.labels, true = view, labels, view.labels
        is_thing = labels.is_thing()
        on_thing = is_thing[true.true_semantic]
        self.ids, self.true = _numbered(np.where(on_thing, true.true_instance, 0))
        self.mask_ids, self.masks = _numbered(np.where(is_thing[true.semantic], true.instance, 0))
        rows, columns = len(self.ids) + 1, len(self.mask_ids) + 1
        # Pixels of thing i (0: none) under mask j (0: none).
        self.table = np.bincount((self.true * columns + self.masks).reshape(-1), minlength=rows * columns)
        self.table = self.table.reshape(rows, columns)
        self.area = self.table.sum(axis=1)
        self.boxes = [box for box in find_objects(self.true) if box is not None]
        mask_size = self.table.sum(axis=0)
        self.classes = [VOID] + [int(true.true_semantic[self._first(self.true, i)]) for i in range(1, rows)]
        self.mask_classes = [VOID] + [int(true.semantic[self._first(self.masks, j)]) for j in range(1, columns)]
        main = self.table[1:, 1:].argmax(axis=0) + 1 if rows > 1 else np.zeros(columns - 1, dtype=np.int64)
        under = self.table[:, 1:]
        most = main == np.arange(rows)[:, None]
        alike = np.array(self.classes)[:, None] == np.array(self.classes)[main]
        mine = (under >= _COVERED * self.area[:, None]) & (most | (alike & (under >= _MAIN * self.area[:, None])))
        self.of = _places(mine & (under > 0))
        # Smaller parts of things: masks that lie mostly on one.
        self.parts = _places(most & (2 * under >= mask_size[1:]) & (under > 0))
        self.mask_size = mask_size

    @staticmethod
    def _first(numbers: NDArray[np.int64], number: int) -> tuple[int, int]:
        y, x = divmod(int(np.argmax(numbers.reshape(-1) == number)), numbers.shape[1])
        return y, x

    def count(self, out: _Evidence) -> None:
        pixels, judged = self.true.size, [i for i in range(1, len(self.area)) if self.area[i] >= _SMALLEST]
        merged = self._merged(judged, out)
        for i in judged:
            share = self.area[i] / pixels
            size = 0 if share < 0.003 else (1 if share < 0.02 else 2)
            as_stuff = not self.of[i] and self._taken_for_stuff(i)
            missed = not self.of[i] and not as_stuff
            number = int(self.ids[i - 1])
            out.add(f"missed.{size}", missed)
            out.fates[number][self.view.place] = (size, missed)
            if missed or i in merged:
                continue
            best = max(self.of[i], key=lambda j, i=i: int(self.table[i, j])) if self.of[i] else 0
            wrong = as_stuff or self.mask_classes[best] != self.classes[i]
            out.confused[number].cases += wrong
            out.confused[number].of += 1
            if as_stuff:
                continue
            if self.view.score is not None:
                out.scores[0].append(float(np.median(self.view.score[self.masks == best])) / 255)
            if self.area[i] >= _LARGE:
                self._count_shape(i, out)
        known = self.view.labels.true_semantic != VOID
        unknown = np.bincount(self.masks[~known], minlength=len(self.mask_size))
        mine = {j for masks in self.of for j in masks}
        made_up = [
            j
            for j in range(1, len(self.mask_size))
            if j not in mine and 2 * self.table[0, j] > self.mask_size[j] >= 12 and 2 * unknown[j] < self.mask_size[j]
        ]
        out.add("hallucinated", len(made_up))

    def _taken_for_stuff(self, i: int) -> bool:
        """Whether most of a thing bears a stuff class that the model takes it for."""
        box = self.boxes[i - 1]
        inside = self.true[box] == i
        classes = np.bincount(self.view.labels.semantic[box][inside], minlength=self.labels.size)
        stuff = set(self.labels.stuff_ids)
        return any(2 * classes[c] > self.area[i] for c in confused_with(self.classes[i], self.labels) if c in stuff)

    def _merged(self, judged: list[int], out: _Evidence) -> set[int]:
        found = [i for i in judged if self.of[i]]
        merged: set[int] = set()
        for k, i in enumerate(found):
            for other in found[:k]:
                if self.classes[i] != self.classes[other] or not self._touch(i, other):
                    continue
                both = any(
                    self.table[i, j] >= _COVERED * self.area[i] and self.table[other, j] >= _COVERED * self.area[other]
                    for j in self.of[i]
                )
                out.add("merged", both)
                if both:
                    merged |= {i, other}
        # A mask may also cover things beyond the one it stands for: their shape is not judged either.
        shared = [j for j in range(1, len(self.mask_size)) if sum(j in self.of[i] for i in found) > 1]
        return merged | {i for i in found if any(j in self.of[i] for j in shared)}

    def _touch(self, i: int, other: int) -> bool:
        a, b = self.boxes[i - 1], self.boxes[other - 1]
        if any(p.start > q.stop + 3 or q.start > p.stop + 3 for p, q in zip(a, b, strict=True)):
            return False
        box = tuple(
            slice(max(min(p.start, q.start) - 4, 0), max(p.stop, q.stop) + 4) for p, q in zip(a, b, strict=True)
        )
        return touch(self.true[box] == i, self.true[box] == other)

    def _count_shape(self, i: int, out: _Evidence) -> None:
        """Fragments, parts, borders of a found thing that has masks of its own."""
        width = self.true.shape[1]
        margin = int(np.ceil(0.1 * width)) + 2
        box = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in self.boxes[i - 1])
        thing = self.true[box] == i
        own = sorted({*self.of[i], *self.parts[i]})
        covered = np.isin(self.masks[box], own)
        whole, fragment = thing, False
        pieces, count = connected_pieces(thing)
        if count > 1:
            largest = pieces == 1 + int(np.argmax(np.bincount(pieces.reshape(-1))[1:]))
            rest = thing & ~largest
            if rest.sum() >= max(12, 0.1 * self.area[i]):
                fragment = bool(covered[rest].mean() < 0.3)
                out.add("fragment", fragment)
            if fragment:
                whole = largest
        if whole.sum() < _LARGE:
            return
        sizes = [int((self.masks[box][whole] == j).sum()) for j in own]
        split = sum(s >= 0.2 * whole.sum() for s in sizes) > 1
        part = split or bool(covered[whole].mean() < 0.78)
        out.add("part", part)
        if fragment or part:
            return
        beyond = np.asarray(distance_transform_edt(~thing))[covered]
        out.add("bleeding", float(beyond.max(initial=0.0) >= 0.03 * width))
        borders = [m & ~np.asarray(binary_erosion(m, border_value=1), dtype=bool) for m in (thing, covered)]
        if borders[0].any() and borders[1].any():
            apart = np.sort(np.asarray(distance_transform_edt(~borders[1]))[borders[0]])
            kept = apart[: max(1, int(0.8 * len(apart)))]
            out.add("boundary", float(kept.mean()) * 640 / width)


def _count_stuff(view: FitView, labels: LabelSpace, out: _Evidence) -> None:
    true, pixels = view.labels, view.labels.true_semantic.size
    inset = 1 + round(0.02 * true.true_semantic.shape[1])
    for category in labels.stuff_ids:
        here = true.true_semantic == category
        area = int(here.sum())
        if area < 0.01 * pixels:
            continue
        labelled = here & (true.semantic == category)
        absent = bool(labelled.sum() < 0.1 * area)
        out.add("stuff_absent", absent)
        if absent:
            continue
        inside = np.asarray(binary_erosion(here, iterations=inset, border_value=1), dtype=bool)
        out.add("holes", float((true.semantic[inside] == VOID).sum()), float(inside.sum()))
        if view.score is not None:
            out.scores[1].append(float(np.median(view.score[labelled])) / 255)


def _places(table: Mask) -> list[list[int]]:
    """Of each row the columns, counted from 1, that are True."""
    return [(np.flatnonzero(row) + 1).tolist() for row in table]


def _numbered(ids: Ids) -> tuple[Ids, NDArray[np.int64]]:
    """The ids without 0, ascending, and the map with their places 1 ... n in that list instead."""
    found, place = np.unique(ids, return_inverse=True)
    place = place.reshape(ids.shape).astype(np.int64)
    return (found[1:], place) if found[0] == 0 else (found, place + 1)


# -------------------------------------------------------------------------------------------- what is solved directly


def _confusions(objects: dict[int, _Count], associated: bool) -> tuple[float, float]:
    """``confused``, ``confused_always`` of greatest likelihood."""
    wrong = np.array([c.cases for c in objects.values()])
    number = np.array([c.of for c in objects.values()])
    if not number.sum():
        return 0.0, 0.0
    if not associated:
        return float(wrong.sum() / number.sum()), 0.0
    c = np.linspace(0, 0.6, 121)[:, None, None]
    share = np.linspace(0, 0.8, 81)[None, :, None]

    def likelihood(chance: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp(xlogy(wrong, chance) + xlog1py(number - wrong, -chance))

    mixed = (1 - share) * likelihood(c) + share * likelihood(0.7 + 0.3 * c)
    total = np.log(np.maximum(mixed, 1e-300)).sum(axis=2)
    best = np.unravel_index(int(np.argmax(total)), total.shape)
    return float(c[best[0], 0, 0]), float(share[0, best[1], 0])


def _persistence(fates: dict[int, dict[int, tuple[int, bool]]]) -> float | None:
    """The correlation of the latent chance from frame to frame; None: too few misses to tell."""
    misses = np.zeros((3, 2))
    pairs = np.zeros((3, 3))
    joint = 0.0
    for fate in fates.values():
        for place, (size, missed) in fate.items():
            misses[size] += (missed, 1)
            follows = fate.get(place + 1)
            if follows is not None:
                pairs[size, follows[0]] += 1
                joint += missed and follows[1]
    if joint < _FEWEST_MISSES:
        return None
    chance = np.clip(misses[:, 0] / np.maximum(misses[:, 1], 1), 1e-6, 1 - 1e-6)
    limit = ndtri(chance)

    frozen: Any = multivariate_normal

    def expected(rho: float) -> float:
        normal = frozen(mean=[0, 0], cov=[[1, rho], [rho, 1]])
        return float(
            sum(pairs[a, b] * normal.cdf([limit[a], limit[b]]) for a in range(3) for b in range(3) if pairs[a, b])
        )

    low, high = 0.0, 0.99
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < joint else (low, middle)
    return (low + high) / 2


def _beta(scores: list[float], default: tuple[float, float]) -> tuple[float, float]:
    """Parameters of the Beta distribution of that mean and variance."""
    if len(scores) < 2:
        return default
    mean = min(max(float(np.mean(scores)), 0.01), 0.99)
    variance = max(float(np.var(scores)), 1e-4)
    weight = min(max(mean * (1 - mean) / variance - 1, 0.1), 1e3)
    return mean * weight, (1 - mean) * weight


# ------------------------------------------------------------------------------------------------------------ of scenes


def fit_scene(
    found: Found, masks: str, reference: str | None = None, *, most: int = 200, progress: bool = True
) -> NoiseFile:
    """Fit the noise model to a mask set of a scene.

    Args:
        masks: the set: NAME or a path.
        reference: the set that counts as the truth: NAME or a path; None: the scene's ground truth.
        most: frames that are looked at, in runs of ten neighbours spread over the scene.

    Raises:
        UserError: scene or sets cannot be read, or no frame has both sides.
    """
    if most < 1:
        raise UserError(f"--most {most} must be at least 1")
    folder, against = find_masks(found.folder, masks), find_masks(found.folder, reference)
    if folder is None:
        raise UserError(f"--masks {masks}: names no mask set: give the one to fit the noise to")
    manifest, trusted = MaskSet.open(folder).manifest, None if against is None else MaskSet.open(against).manifest
    size = _reduced(found)
    scene = open_found(found, masks=masks, image_size=size)
    other = scene if against is None else open_found(found, masks=reference, image_size=size)
    if [scene.source.name(i) for i in range(len(scene.source))] != [
        other.source.name(i) for i in range(len(other.source))
    ]:
        raise UserError(f"{against}: has masks of other frames than {folder}: make both of all frames")
    indices = sorted({*scene.train, *scene.test})
    chosen = _runs(len(indices), most)
    console = Console(stderr=True)
    views: list[FitView] = []
    for place in track(chosen, "reading", console=console, disable=not progress):
        frame = scene.source.load(indices[place])
        true = frame.truth if against is None else other.source.load(indices[place]).masks
        if frame.masks is None or true is None:
            continue
        maps = (m.numpy() for m in (frame.masks.semantic, frame.masks.instance, true.semantic, true.instance))
        score = frame.masks.score
        scores = None if score is None else np.round(score.numpy() * 255).astype(np.uint8)
        views.append(FitView(place, LabelledView(frame.name, *maps), scores))
    if not views:
        raise UserError(
            f"{found.folder}: no frame has both masks and ground truth: use a scene with labels, or give --reference"
        )
    associated = against is None or (trusted is not None and trusted.associated)
    fit = fit_noise(views, scene.labels, associated=associated, progress=progress)
    source = {
        "scene": scene.name,
        "synthetic": scene.synthetic,
        "masks": folder.name,
        "masks_generator": "" if manifest is None else manifest.generator,
        "masks_sha256": content_hash(folder, sorted(view.labels.name for view in views)),
        "reference": "ground truth" if against is None else against.name,
        "frames": len(views),
        "size": list(size),
    }
    return NoiseFile(rates=fit.noise, source=source, observed=fit.observed)


def _reduced(found: Found) -> tuple[int, int]:
    camera = open_found(found).source.camera(0)
    step = max(1, round(camera.width / _WIDTH))
    return camera.width // step, camera.height // step


def _runs(count: int, most: int, length: int = 10) -> list[int]:
    """At most ``most`` of the places 0 ... count - 1, in runs of neighbours."""
    if count <= most:
        return list(range(count))
    number = max(1, most // length)
    starts = np.linspace(0, count - min(length, most), number).astype(int).tolist()
    return sorted({s + k for s in starts for k in range(min(length, most))})
