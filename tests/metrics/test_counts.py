from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from panbench.metrics.functional import PairCounts, concatenate, count_pairs
from panbench.metrics.functional.counts import majority

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def label_maps(draw: st.DrawFn) -> list[np.ndarray]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    return [draw(hnp.arrays(np.int64, shape, elements=st.integers(0, top))) for top in (4, 70000, 4, 3)]


def naive(maps: list[np.ndarray]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(int(v) for v in pixel) for pixel in zip(*(m.reshape(-1) for m in maps), strict=True))


def as_counter(counts: PairCounts) -> Counter[tuple[int, ...]]:
    return Counter({tuple(row[1:5]): row[5] for row in counts.rows.tolist()})


@SETTINGS
@given(label_maps())
def test_counts_are_those_of_a_pixel_by_pixel_tally(maps: list[np.ndarray]) -> None:
    counts = count_pairs(*maps)
    assert as_counter(counts) == naive(maps)
    assert len(counts) == len(naive(maps))


@SETTINGS
@given(label_maps(), st.integers(0, 6))
def test_two_halves_added_are_the_whole(maps: list[np.ndarray], cut: int) -> None:
    halves = concatenate([count_pairs(*(m[part] for m in maps)) for part in (slice(cut), slice(cut, None))])
    assert (halves.rows == count_pairs(*maps).rows).all()


@SETTINGS
@given(label_maps(), label_maps())
def test_frames_stay_apart_until_the_scene_is_asked_for(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    both = concatenate([count_pairs(*first, frame=0), count_pairs(*second, frame=1)])
    assert both.pixels[both.frame == 0].sum() == first[0].size
    assert as_counter(both.scene()) == naive(first) + naive(second)


def test_ids_beyond_a_packed_word_are_counted_all_the_same() -> None:
    big = np.array([[2**40, 2**40, 0]])
    counts = count_pairs(np.ones_like(big), big, np.ones_like(big), big + 1)
    assert as_counter(counts) == {(1, 2**40, 1, 2**40 + 1): 2, (1, 0, 1, 1): 1}


def test_an_empty_image_has_no_counts() -> None:
    assert len(count_pairs(*[np.zeros((0, 4), dtype=int)] * 4)) == 0


def test_maps_of_different_shapes_are_rejected() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        count_pairs(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((2, 3)))


def test_negative_labels_are_rejected() -> None:
    with pytest.raises(ValueError, match="negative"):
        count_pairs(np.zeros((1, 1)), np.zeros((1, 1)), np.full((1, 1), -1), np.zeros((1, 1)))


def test_a_tied_vote_goes_to_the_smallest_class_and_void_may_win() -> None:
    ids, classes = np.array([7, 7, 3, 3, 9]), np.array([5, 2, 0, 4, 6])
    voted, winner = majority(ids, classes, np.array([4, 4, 3, 2, 1]))
    assert voted.tolist() == [3, 7, 9]
    assert winner.tolist() == [0, 2, 6]


def test_sixteen_frames_are_counted_in_well_under_a_tenth_of_a_second() -> None:
    y, x = np.mgrid[:240, :320]
    truth, shifted = ((x + d) // 37 + 9 * (y // 31) for d in (0, 5))
    best = min(_seconds(truth, shifted) for _ in range(5))
    assert best < 0.1


def _seconds(truth: np.ndarray, shifted: np.ndarray) -> float:
    start = time.perf_counter()
    for frame in range(16):
        count_pairs(truth % 20, truth, shifted % 20, shifted, frame)
    return time.perf_counter() - start
