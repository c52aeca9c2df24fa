"""Errors of depth maps on cases whose answer follows on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from panbench.metrics.functional import depth_errors

TRUTH = np.full((4, 6), 2.0)


def test_a_plane_that_is_moved_is_off_by_that_much() -> None:
    found = depth_errors([(TRUTH + 0.03, TRUTH)])
    assert found.l1 == pytest.approx(3.0)
    assert found.rmse == pytest.approx(3.0)
    assert found.delta == 100.0
    assert found.known == 100.0


def test_the_sign_of_an_error_does_not_matter_and_large_ones_weigh_more_in_rmse() -> None:
    depth = TRUTH.copy()
    depth[:2] -= 0.3
    found = depth_errors([(depth, TRUTH)])
    assert found.l1 == pytest.approx(15.0)
    assert found.rmse == pytest.approx(30.0 / math.sqrt(2))
    assert found.delta == pytest.approx(50.0)  # 30 cm are 15 % of 2 m


def test_five_per_cent_are_of_the_true_depth() -> None:
    near, far = np.full((1, 2), 1.0), np.full((1, 2), 10.0)
    assert depth_errors([(near + 0.2, near)]).delta == 0.0
    assert depth_errors([(far + 0.2, far)]).delta == 100.0


def test_views_are_pooled_by_pixels_and_not_averaged_by_view() -> None:
    one, three = np.full((1, 1), 1.0), np.full((1, 3), 1.0)
    assert depth_errors([(one + 0.4, one), (three, three)]).l1 == pytest.approx(10.0)


def test_only_pixels_count_where_both_depths_are_known() -> None:
    depth, truth = TRUTH.copy(), TRUTH.copy()
    depth[0], truth[1] = 0.0, 0.0
    found = depth_errors([(depth, truth)])
    assert found.l1 == 0.0
    assert found.known == pytest.approx(100 * 12 / 18)


def test_without_such_a_pixel_there_is_no_error() -> None:
    assert math.isnan(depth_errors([(0 * TRUTH, TRUTH)]).l1)
    assert depth_errors([(0 * TRUTH, TRUTH)]).known == 0.0
    assert all(math.isnan(value) for value in depth_errors([]))
