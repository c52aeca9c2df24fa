"""The table at the end: all rows, all protocols, the best in bold."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from panbench.metrics.functional import count_pairs
from panbench.protocol.results import SceneResult, StoredCounts
from panbench.report.summary import METRICS, Row, duration, markdown_summary, print_summary
from panbench.scene import LabelClass, LabelSpace

LABELS = LabelSpace("t", (LabelClass(1, "wall", thing=False),))


def _result(method: str, protocol: str, value: float, **cost: float) -> SceneResult:
    ones = np.ones((2, 2), dtype=np.int32)
    return SceneResult(
        protocol=protocol,
        protocol_hash="",
        dataset="scannet",
        scene="scene9100_00",
        synthetic=True,
        method=method,
        seed=0,
        labels="shared",
        label_space=LABELS.to_dict(),
        label_hash=LABELS.hash,
        source_size=(2, 2),
        image_size=(2, 2),
        frames=["0", "5"],
        split_hash="",
        metrics=dict.fromkeys(METRICS, value),
        per_class=[],
        instances=[],
        cost=cost,
        counts=StoredCounts.pack(count_pairs(ones, ones, ones, ones)),
    )


def _rows() -> list[Row]:
    protocols = ("scannet-paper@1", "panoptic-strict@1")
    ours = {p: _result("ours", p, 81.25, fit_seconds=192, peak_memory_bytes=2**31, gaussians=84312) for p in protocols}
    vote = {p: _result("voxel-vote", p, 64.0, fit_seconds=4.2) for p in protocols}
    ours["scannet-paper@1"].metrics |= {"PSNR": 27.318, "SSIM": 0.9012, "mCov": math.nan}
    return [Row("ours", ours), Row("voxel-vote", vote)]


def _printed(width: int, *, styled: bool = True) -> str:
    stream = io.StringIO()
    system = "standard" if styled else None
    print_summary(_rows(), Console(file=stream, width=width, force_terminal=True, color_system=system))
    return stream.getvalue()


def test_the_table_names_scene_protocols_metrics_and_costs() -> None:
    text = _printed(100)
    for word in ("scene9100_00 (synthetic)", "2 test frames at 2x2", "scannet-paper@1", "panoptic-strict@1", *METRICS):
        assert word in text
    for value in ("81.2", "64.0", "27.32", "0.901", "84,312", "3 min 12 s", "4.2 s", "2.00 GiB"):
        assert value in text


def test_the_table_fits_in_eighty_columns() -> None:
    text = _printed(80, styled=False)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_the_best_of_a_column_is_bold_and_an_undefined_score_is_a_dash() -> None:
    text = _printed(100)
    assert "\x1b[1m81.2\x1b[0m" in text
    assert "\x1b[1m64.0\x1b[0m" not in text.split("panoptic-strict@1")[1]
    assert "–" in text


def test_markdown_has_a_table_for_each_protocol_and_one_for_costs() -> None:
    text = markdown_summary(_rows())
    assert text.count("\n|---|") == 3
    assert "| voxel-vote | 64.0 | 64.0 |" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (47.2, "47 s"), (192, "3 min 12 s"), (3600, "1 h 00 min"), (7512, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
