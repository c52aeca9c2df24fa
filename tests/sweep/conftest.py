"""A working folder in which the tiny method can be swept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

MAIN = """\
seed_everything: 3
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: -1
  max_steps: 8
  check_val_every_n_epoch: null
  limit_val_batches: 0
  num_sanity_val_steps: 0
  log_every_n_steps: 4
  enable_model_summary: false
model:
  class_path: tiny_method.TinyMethod
  init_args:
    head: {class_path: tiny_method.TinyHead, init_args: {num_queries: 4, width: 3}}
data:
  class_path: tiny_method.TinyData
  init_args: {gain: 1.0}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with main.yaml. Processes started in it find panbench and the tiny method."""
    (tmp_path / "main.yaml").write_text(MAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANBENCH_BACKEND", "reference")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    return tmp_path
