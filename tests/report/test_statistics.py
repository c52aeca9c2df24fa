"""Means, spreads and intervals, against closed forms and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panbench.report.statistics import Summary, common_seeds, difference, mean_over_scenes, summarise

TWO = {"a": {0: 70.0, 1: 72.0, 2: 74.0}, "b": {0: 50.0, 1: 53.0, 2: 50.0}}


def test_the_mean_is_over_seeds_then_over_scenes() -> None:
    uneven = {"a": {0: 10.0, 1: 20.0, 2: 30.0}, "b": {0: 80.0}}
    assert summarise(uneven, "mean").mean == (20.0 + 80.0) / 2


def test_the_spread_is_that_of_the_table_that_one_seed_would_have_given() -> None:
    by_seed = [(70 + 50) / 2, (72 + 53) / 2, (74 + 50) / 2]
    assert summarise(TWO, "mean") == Summary(
        pytest.approx(np.mean(by_seed)), pytest.approx(np.std(by_seed, ddof=1)), 3, 2
    )


def test_only_seeds_that_every_scene_has_tell_of_spread() -> None:
    partly = {"a": {0: 70.0, 1: 72.0}, "b": {1: 50.0, 2: 53.0}}
    assert common_seeds(partly) == [1]
    assert math.isnan(summarise(partly, "mean").sd)


def test_the_paper_s_rule_rounds_the_scenes_first() -> None:
    assert mean_over_scenes([74.24, 75.26], "rounded-mean") == pytest.approx((74.2 + 75.3) / 2)
    assert mean_over_scenes([74.24, 75.26], "mean") == pytest.approx(74.75)


def test_nothing_and_undefined_scores_have_no_mean() -> None:
    assert math.isnan(mean_over_scenes([], "mean"))
    assert math.isnan(summarise({"a": {0: 70.0, 1: math.nan}}, "mean").mean)


def test_the_interval_over_many_scenes_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    shift = rng.normal(1.0, 2.0, size=200)
    level = rng.normal(60.0, 15.0, size=200)
    one = {f"s{i}": {0: float(level[i] + shift[i])} for i in range(200)}
    two = {f"s{i}": {0: float(level[i])} for i in range(200)}
    d = difference(one, two, "mean")
    error = shift.std() / math.sqrt(200)
    assert d.over == "scenes"
    assert d.value == pytest.approx(shift.mean())
    # The scenes' own levels, 7 times as wide, do not enter: the rows are paired.
    assert (d.low, d.high) == (
        pytest.approx(shift.mean() - 1.96 * error, abs=0.03),
        pytest.approx(shift.mean() + 1.96 * error, abs=0.03),
    )


def test_within_one_scene_the_seeds_of_both_rows_are_drawn_apart() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(70, 1.0, size=60), rng.normal(69, 2.0, size=60)
    d = difference({"s": dict(enumerate(a.tolist()))}, {"s": dict(enumerate(b.tolist()))}, "mean")
    error = math.sqrt(a.var() / 60 + b.var() / 60)
    assert d.over == "seeds"
    assert d.high - d.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_scenes_and_seeds_add_their_variances() -> None:
    rng = np.random.default_rng(5)
    scenes, seeds = 80, 5
    effect = rng.normal(0.0, 1.5, size=scenes)
    one = {f"s{i}": {k: float(effect[i] + rng.normal(0, 3.0)) for k in range(seeds)} for i in range(scenes)}
    two = {f"s{i}": {k: float(rng.normal(0, 3.0)) for k in range(seeds)} for i in range(scenes)}
    d = difference(one, two, "mean")
    means = np.asarray([np.mean(list(one[s].values())) - np.mean(list(two[s].values())) for s in one])
    within = (
        np.asarray([np.var(list(r[s].values())) / seeds for r in (one, two) for s in r]).reshape(2, scenes).sum(axis=0)
    )
    error = math.sqrt((means.var() + within.mean()) / scenes)
    assert d.over == "scenes and seeds"
    assert d.high - d.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_a_clear_difference_is_none_of_noise_and_a_small_one_is() -> None:
    base = {f"s{i}": {0: 60.0 + i} for i in range(6)}
    clear = {s: {0: v[0] + 5 + 0.1 * i} for i, (s, v) in enumerate(base.items())}
    small = {s: {0: v[0] + (0.4 if i % 2 else -0.5)} for i, (s, v) in enumerate(base.items())}
    assert not difference(clear, base, "mean").noise
    assert difference(small, base, "mean").noise


def test_one_scene_and_one_seed_show_nothing_to_be_a_difference() -> None:
    d = difference({"s": {0: 90.0}}, {"s": {0: 10.0}}, "mean")
    assert (d.over, d.noise) == ("", True)
    assert math.isnan(d.low)


def test_rows_of_different_scenes_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="different scenes"):
        difference({"a": {0: 1.0}}, {"b": {0: 1.0}}, "mean")


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=4), min_size=1, max_size=4), st.floats(-20, 20))
def test_a_row_shifted_by_a_constant_differs_by_it_and_the_answer_is_always_the_same(
    table: list[list[float]], shift: float
) -> None:
    row = {f"s{i}": dict(enumerate(values)) for i, values in enumerate(table)}
    moved = {s: {k: v + shift for k, v in seeds.items()} for s, seeds in row.items()}
    one, two = difference(moved, row, "mean", resamples=200), difference(moved, row, "mean", resamples=200)
    assert one.value == pytest.approx(shift, abs=1e-9)
    assert (one.low, one.high) == (two.low, two.high) or math.isnan(one.low)
    if not math.isnan(one.low):
        assert one.low <= one.value + 1e-9
        assert one.high >= one.value - 1e-9
