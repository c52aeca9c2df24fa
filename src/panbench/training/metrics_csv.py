"""metrics.csv of a run: one row a logged step, and a resumed run goes on where its checkpoint was."""

from __future__ import annotations

import csv
import io
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from panbench.training.files import write_text


class MetricsCsv(Logger):
    """Writes ``RUN/metrics.csv``, and goes on with the one that is there.

    Args:
        folder: the run directory.
        every_seconds: longest time that rows stay in memory only; a checkpoint writes them too.
    """

    def __init__(self, folder: str | Path, every_seconds: float = 5.0) -> None:
        super().__init__()
        self._path = Path(folder) / "metrics.csv"
        self._every = every_seconds
        self._rows: dict[int, dict[str, str]] | None = None
        self._written = 0.0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run directory keeps the whole configuration in config.yaml."""

    def start_at(self, step: int) -> None:
        """Training goes on from ``step``: drop the rows of later steps, which it will make again."""
        rows = self._read()
        for later in [s for s in rows if s > step]:
            del rows[later]

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of ``step``. A column appears with the first value it has."""
        step = 0 if step is None else step
        # There is one endless epoch, whose number Lightning adds to everything.
        values = {key: f"{float(value):.6g}" for key, value in metrics.items() if key != "epoch"}
        self._read().setdefault(step, {}).update(values)
        if time.monotonic() - self._written > self._every:
            self.save()

    def save(self) -> None:
        if self._rows is None:
            return
        columns = dict.fromkeys(key for row in self._rows.values() for key in row)
        text = io.StringIO()
        table = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
        table.writeheader()
        for step in sorted(self._rows):
            table.writerow({"step": step, **self._rows[step]})
        write_text(self._path, text.getvalue())
        self._written = time.monotonic()

    def finalize(self, status: str) -> None:
        self.save()

    def _read(self) -> dict[int, dict[str, str]]:
        if self._rows is None:
            self._rows = {}
            if self._path.is_file():
                with self._path.open(newline="") as stream:
                    for row in csv.DictReader(stream):
                        step = int(row.pop("step"))
                        self._rows[step] = {key: value for key, value in row.items() if value}
        return self._rows
