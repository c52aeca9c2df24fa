"""metrics.csv keeps one row a step through resumes and new columns."""

from __future__ import annotations

import csv
from pathlib import Path

from panbench.training.metrics_csv import MetricsCsv


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_values_of_one_step_share_a_row_and_columns_may_come_later(tmp_path: Path) -> None:
    log = MetricsCsv(tmp_path)
    log.log_metrics({"loss": 0.5, "epoch": 0}, step=10)
    log.log_metrics({"psnr": 20.25}, step=10)
    log.log_metrics({"loss": 0.25, "pq": 70.0}, step=20)
    log.finalize("success")
    assert _rows(tmp_path) == [
        {"step": "10", "loss": "0.5", "psnr": "20.25", "pq": ""},
        {"step": "20", "loss": "0.25", "psnr": "", "pq": "70"},
    ]


def test_a_resumed_run_drops_the_rows_that_it_makes_again(tmp_path: Path) -> None:
    first = MetricsCsv(tmp_path)
    for step in (10, 20, 30):
        first.log_metrics({"loss": float(step)}, step=step)
    first.save()
    second = MetricsCsv(tmp_path)
    second.start_at(20)
    second.log_metrics({"loss": -1.0}, step=30)
    second.save()
    assert [(r["step"], r["loss"]) for r in _rows(tmp_path)] == [("10", "10"), ("20", "20"), ("30", "-1")]


def test_scoring_later_keeps_the_rows_of_training(tmp_path: Path) -> None:
    first = MetricsCsv(tmp_path)
    first.log_metrics({"loss": 1.0}, step=10)
    first.save()
    second = MetricsCsv(tmp_path)
    second.log_metrics({"PQ": 80.0}, step=10)
    second.save()
    assert _rows(tmp_path) == [{"step": "10", "loss": "1", "PQ": "80"}]


def test_nothing_logged_writes_nothing(tmp_path: Path) -> None:
    MetricsCsv(tmp_path).finalize("success")
    assert not list(tmp_path.iterdir())
