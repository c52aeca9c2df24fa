"""Charts are drawings that say what they show and stay within their frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from panbench.report.charts import HEIGHT, WIDTH, Axis, Point, Series, lines, log_ticks, nice_ticks, scatter

ONE = Series("a <b> & c", (Point(1.0, 70.0, 0.5), Point(10.0, 72.0), Point(100.0, 60.0)), 0)
TWO = Series("other", (Point(1.0, 65.0), Point(100.0, 64.0)), 1)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (88.9, 90.4, [89, 89.5, 90]),
        (0.0, 0.05, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_logarithmic_ticks_are_round_too() -> None:
    assert log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(0.5, 5e6) == [10.0**p for p in range(7)]


@pytest.mark.parametrize("draw", [lines, scatter])
def test_a_chart_is_a_named_drawing_within_its_frame(draw: Callable[..., str]) -> None:
    text = draw([ONE, TWO], Axis("Gaussians", log=True), Axis("PQ"), title="PQ against N", description="a: 70")
    root = ElementTree.fromstring(text)
    assert (root.get("role"), root.get("aria-label")) == ("img", "PQ against N. a: 70")
    dots = [e for e in root.iter() if e.tag == "circle"]
    assert len(dots) == 5
    assert all(0 <= float(e.get("cx", "nan")) <= WIDTH and 0 <= float(e.get("cy", "nan")) <= HEIGHT for e in dots)
    assert dots[0][0].text == "a <b> & c: Gaussians 1, PQ 70"
    assert "nan" not in text


def test_higher_is_up_and_more_is_right() -> None:
    root = ElementTree.fromstring(lines([ONE], Axis("x"), Axis("y"), title="t", description="d"))
    dots = [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in root.iter() if e.tag == "circle"]
    assert dots[0][0] < dots[1][0] < dots[2][0]
    assert dots[2][1] > dots[0][1] > dots[1][1]


def test_names_of_crowded_points_do_not_cover_each_other() -> None:
    crowd = [Series(f"method {i}", (Point(10.0 + 0.01 * i, 70.0 + 0.01 * i),), i) for i in range(6)]
    far = Series("far", (Point(30.0, 40.0),), 6)
    root = ElementTree.fromstring(scatter([*crowd, far], Axis("x"), Axis("y"), title="t", description="d"))
    at = [(float(e.get("x", "")), float(e.get("y", ""))) for e in root.iter() if e.get("class") == "name"]
    assert len(at) == 7
    assert all(abs(a[1] - b[1]) >= 10 or abs(a[0] - b[0]) >= 40 for i, a in enumerate(at) for b in at[:i])


def test_one_point_and_named_positions_are_drawn() -> None:
    text = lines([Series("a", (Point(1, 70.0, math.nan),))], Axis("noise", names=("clean", "heavy")), Axis("PQ"),
                 title="t", description="d")  # fmt: skip
    words = [e.text for e in ElementTree.fromstring(text).iter() if e.tag == "text"]
    assert {"clean", "heavy", "a", "noise", "PQ"} <= set(words)
