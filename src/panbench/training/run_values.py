"""The numbers that a run ends with, under the names that loggers and sweeps know them by."""

from __future__ import annotations

import csv
import math
import re

from panbench.report.summary import METRICS
from panbench.training.finish import load_rows
from panbench.training.run_dir import RunDirectory


def final_values(run: RunDirectory) -> dict[str, float]:
    """Scores and costs of a finished run; {} without scores. Undefined scores are left out.

    ``PQ``, ``mIoU``, ``PSNR``, … are those of ``result.json`` (the run's main protocol), ``fit_seconds``,
    ``gaussians``, … its costs. The scores of each protocol are there as ``scannet_paper_1_PQ`` too. All names are
    letters, digits and underscores, because W&B can sort by no others.

    Raises:
        UserError: if a result cannot be read.
    """
    rows = load_rows(run)
    if not rows:
        return {}
    results = rows[0].results
    main = next(iter(results.values()))
    values = {**main.metrics, **main.cost}
    for protocol, result in results.items():
        values |= {f"{plain_name(protocol)}_{k}": result.metrics[k] for k in METRICS if k in result.metrics}
    return {plain_name(name): value for name, value in values.items() if not math.isnan(value)}


def last_logged(run: RunDirectory) -> dict[str, float]:
    """The last value of every column of ``metrics.csv``: ``train/loss``, ``val/psnr``, ….

    Raises:
        OSError: if the file cannot be read; one that is not there is empty.
    """
    path = run.path / "metrics.csv"
    out: dict[str, float] = {}
    if path.is_file():
        with path.open(newline="") as stream:
            for row in csv.DictReader(stream):
                out |= {name: float(value) for name, value in row.items() if value and name != "step"}
    return out


def plain_name(name: str) -> str:
    """``scannet-paper@1`` as ``scannet_paper_1``."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII)
