"""Pseudo-masks: each error does what its name says, and quality falls from preset to preset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from panbench.data.mask_noise import PRESETS, MaskNoise, MaskNoiser, PseudoMask, mask_quality
from panbench.scene import LabelClass, LabelSpace

WALL, FLOOR, CHAIR, TABLE, OTHER = 1, 2, 3, 4, 5
LABELS = LabelSpace(
    "test",
    (
        LabelClass(WALL, "wall", thing=False),
        LabelClass(FLOOR, "floor", thing=False),
        LabelClass(CHAIR, "chair", thing=True),
        LabelClass(TABLE, "table", thing=True),
        LabelClass(OTHER, "other", thing=False, evaluate=False),
    ),
)
SHAPE = (120, 160)


def _scene(frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A wall over a floor; two touching chairs, one more chair, one table, drifting to the right."""
    semantics, instances = [], []
    for t in range(frames):
        semantic, instance = np.full(SHAPE, WALL, np.uint8), np.full(SHAPE, 1, np.uint8)
        semantic[70:], instance[70:] = FLOOR, 2
        for number, (top, left, height, width, category) in enumerate(
            [(50, 10, 40, 20, CHAIR), (50, 30, 40, 20, CHAIR), (60, 110, 30, 30, CHAIR), (20, 70, 50, 30, TABLE)], 3
        ):
            box = (slice(top, top + height), slice(left + t % 9, left + t % 9 + width))
            semantic[box], instance[box] = category, number
        semantics.append(semantic)
        instances.append(instance)
    return semantics, instances


def _run(noise: MaskNoise, frames: int = 40, seed: int = 0) -> list[PseudoMask]:
    semantics, instances = _scene(frames)
    noiser = MaskNoiser(noise, LABELS, frames, seed)
    return [noiser.frame(t, semantics[t], instances[t]) for t in range(frames)]


def _chairs(mask: PseudoMask) -> int:
    return mask.classes.count(CHAIR)


def test_clean_masks_are_the_truth_up_to_ids() -> None:
    semantics, instances = _scene(5)
    for mask, semantic, instance in zip(_run(PRESETS["clean"], 5), semantics, instances, strict=True):
        np.testing.assert_array_equal(mask.semantic, semantic)
        pairs = {(int(a), int(b)) for a, b in zip(mask.instance.ravel(), instance.ravel(), strict=True) if b >= 3}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 4
        assert not mask.instance[semantic < CHAIR].any()


@pytest.mark.parametrize("preset", PRESETS)
def test_ids_run_from_one_and_have_the_class_of_their_pixels(preset: str) -> None:
    for mask in _run(PRESETS[preset]):
        for number in np.unique(mask.instance[mask.instance > 0]):
            assert set(mask.semantic[mask.instance == number].tolist()) == {mask.classes[number - 1]}
        assert not mask.instance[np.isin(mask.semantic, (0, WALL, FLOOR, OTHER))].any()
        assert (mask.score > 0).tolist() == (mask.semantic > 0).tolist()


def test_ids_mean_nothing_from_frame_to_frame() -> None:
    _, instances = _scene(30)
    masks = _run(PRESETS["clean"], 30)
    of_table = {int(m.instance[i == 6][0]) for m, i in zip(masks, instances, strict=True)}
    assert of_table == {1, 2, 3, 4}


def test_frames_do_not_depend_on_the_order_they_are_asked_for() -> None:
    semantics, instances = _scene(6)
    forwards = MaskNoiser(PRESETS["heavy"], LABELS, 6, 7)
    backwards = MaskNoiser(PRESETS["heavy"], LABELS, 6, 7)
    a = [forwards.frame(t, semantics[t], instances[t]) for t in range(6)]
    b = [backwards.frame(t, semantics[t], instances[t]) for t in reversed(range(6))][::-1]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.semantic, other.semantic)
        np.testing.assert_array_equal(one.instance, other.instance)
        np.testing.assert_array_equal(one.score, other.score)


def test_misses_have_the_stated_rate_and_last_for_several_frames() -> None:
    seen = []
    for seed in range(8):
        masks = _run(MaskNoise(missed=(0.0, 0.0, 0.3)), 120, seed)
        seen.append([TABLE in m.classes for m in masks])
    missed = ~np.array(seen)
    assert missed.mean() == pytest.approx(0.3, abs=0.08)
    follows = (missed[:, 1:] & missed[:, :-1]).sum() / missed[:, :-1].sum()
    assert follows > 0.55


def test_touching_things_of_one_class_merge_and_others_do_not() -> None:
    for mask in _run(MaskNoise(merged=1.0)):
        assert sorted(mask.classes) == [CHAIR, CHAIR, TABLE]


def test_only_the_largest_piece_of_a_thing_is_kept() -> None:
    semantic, instance = np.full(SHAPE, WALL, np.uint8), np.ones(SHAPE, np.uint8)
    semantic[20:60, 20:100], instance[20:60, 20:100] = TABLE, 2
    semantic[:, 40:44], instance[:, 40:44] = WALL, 1
    mask = MaskNoiser(MaskNoise(fragment=1.0), LABELS, 1, 0).frame(0, semantic, instance)
    assert not (mask.semantic[20:60, 20:40] == TABLE).any()
    assert (mask.semantic[20:60, 44:100] == TABLE).all()


def test_a_part_is_less_than_the_whole() -> None:
    semantics, _ = _scene(40)
    for mask, semantic in zip(_run(MaskNoise(part=1.0)), semantics, strict=True):
        largest = max(np.bincount(mask.instance[(semantic == TABLE) & (mask.instance > 0)]))
        assert 0.25 * 1500 < largest < 0.75 * 1500


def test_a_systematic_confusion_is_the_same_class_in_most_frames() -> None:
    semantics, instances = _scene(100)
    noiser = MaskNoiser(MaskNoise(confused_always=1.0), _things_only(LABELS), 100, 0)
    shown = [int(noiser.frame(t, semantics[t], instances[t]).semantic[40, 90]) for t in range(100)]
    assert set(shown) == {TABLE, CHAIR}
    assert np.mean([c == CHAIR for c in shown]) == pytest.approx(0.7, abs=0.12)


def test_borders_move_by_the_stated_amount() -> None:
    shape = (480, 640)
    semantic, instance = np.full(shape, WALL, np.uint8), np.ones(shape, np.uint8)
    semantic[:, 320:], instance[:, 320:] = TABLE, 2
    shifts = []
    for t in range(12):
        mask = MaskNoiser(MaskNoise(boundary=3.0), _things_only(LABELS), 12, t).frame(0, semantic, instance)
        rows = slice(40, 440)
        table = mask.semantic == TABLE
        shifts.append(320 - (640 - table[rows].sum(1)))
    moved = np.stack(shifts).astype(float)
    assert moved.std(axis=1).mean() == pytest.approx(3.0, rel=0.3)  # waves along the border
    assert moved.std() == pytest.approx(np.hypot(3.0, 1.5), rel=0.35)  # and a bias per detection


def _things_only(labels: LabelSpace) -> LabelSpace:
    """The same labels without stuff, so that the thing's border is not hidden by a better-scored wall."""
    return LabelSpace(labels.name, tuple(c for c in labels.classes if c.thing))


def test_absent_stuff_leaves_void_and_holes_have_their_share() -> None:
    absent = _run(MaskNoise(stuff_absent=1.0), 5)
    assert all(not np.isin(m.semantic, (WALL, FLOOR)).any() for m in absent)
    semantics, _ = _scene(20)
    holed = _run(MaskNoise(holes=0.2), 20)
    share = np.mean([(m.semantic[s == WALL] == 0).mean() for m, s in zip(holed, semantics, strict=True)])
    assert share == pytest.approx(0.2, abs=0.05)


def test_hallucinations_come_at_their_rate_with_low_scores() -> None:
    semantic = np.full(SHAPE, WALL, np.uint8)
    noiser = MaskNoiser(MaskNoise(hallucinated=0.8, stuff_absent=1.0), LABELS, 300, 0)
    masks = [noiser.frame(t, semantic, np.ones(SHAPE, np.uint8)) for t in range(300)]
    assert np.mean([len(m.classes) for m in masks]) == pytest.approx(0.8, abs=0.15)
    scores = np.concatenate([m.score[m.score > 0] for m in masks])
    assert scores.min() >= 51
    assert scores.max() <= 97


def test_quality_falls_from_preset_to_preset() -> None:
    semantics, instances = _scene(40)
    scores = [
        mask_quality(iter(_run(PRESETS[name])), iter(semantics), iter(instances), LABELS)
        for name in ("clean", "light", "medium", "heavy")
    ]
    assert scores[0]["mIoU_all"] == scores[0]["PQ"] == 100.0
    for key in ("mIoU_all", "PQ_things"):
        values = [s[key] for s in scores]
        assert values == sorted(values, reverse=True)


def test_mask_quality_agrees_with_a_plain_count() -> None:
    """Against loops over pixels and over pairs of segments."""
    semantics, instances = _scene(3)
    masks = _run(PRESETS["medium"], 3)
    got = mask_quality(iter(masks), iter(semantics), iter(instances), LABELS)
    intersection, union = np.zeros(6), np.zeros(6)
    tally = {c: [0.0, 0, 0, 0] for c in (WALL, FLOOR, CHAIR, TABLE)}
    for mask, semantic, instance in zip(masks, semantics, instances, strict=True):
        for true, guess in zip(semantic.ravel().tolist(), mask.semantic.ravel().tolist(), strict=True):
            union[true] += 1
            if true == guess:
                intersection[true] += 1
            else:
                union[guess] += 1
        for category, row in tally.items():
            thing = category in (CHAIR, TABLE)
            real = [
                (semantic == category) & ((instance == i) | (not thing))
                for i in (np.unique(instance) if thing else [0])
            ]
            made = [
                (mask.semantic == category) & ((mask.instance == i) | (not thing))
                for i in (np.unique(mask.instance) if thing else [0])
            ]
            real, made = ([m for m in group if m.sum() >= 30] for group in (real, made))
            pairs = [(a & b).sum() / (a | b).sum() for a in real for b in made]
            hits = [p for p in pairs if p > 0.5]
            row[0] += sum(hits)
            row[1] += len(hits)
            row[2] += len(made) - len(hits)
            row[3] += len(real) - len(hits)
    present = [WALL, FLOOR, CHAIR, TABLE]
    assert got["mIoU_all"] == pytest.approx(100 * np.mean(intersection[present] / union[present]), abs=0.06)
    pq = [s / (tp + (fp + fn) / 2) for s, tp, fp, fn in tally.values()]
    assert got["PQ"] == pytest.approx(100 * np.mean(pq), abs=0.06)


def test_every_error_alone_costs_quality() -> None:
    semantics, instances = _scene(40)
    errors = {
        "missed": (0.3, 0.3, 0.3), "merged": 1.0, "part": 0.5, "confused": 0.3, "boundary": 4.0, "bleeding": 0.8,
        "stuff_absent": 0.3, "holes": 0.1, "hallucinated": 1.0,
    }  # fmt: skip
    for name, value in errors.items():
        masks = _run(replace(MaskNoise(), **{name: value}))
        quality = mask_quality(iter(masks), iter(semantics), iter(instances), LABELS)
        assert quality["PQ"] < 99.5, name
