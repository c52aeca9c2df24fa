"""The configs of the tiny method, and the command line within this process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from panbench.cli import console
from panbench.cli.main import run
from panbench.ops import backend

MAIN = """\
seed_everything: 3
trainer: trainer.yaml
model:
  class_path: tiny_method.TinyMethod
  init_args:
    head: head/tiny.yaml
data:
  class_path: tiny_method.TinyData
  init_args: {gain: 1.0}
"""
HEAD = """\
class_path: tiny_method.TinyHead
init_args:
  num_queries: 4
  width: 3
"""
TRAINER = """\
accelerator: cpu
devices: 1
max_epochs: -1
max_steps: 20
check_val_every_n_epoch: null
limit_val_batches: 0
num_sanity_val_steps: 0
log_every_n_steps: 4
enable_model_summary: false
"""


@dataclass(frozen=True)
class Answer:
    """Exit status and what was written."""

    status: int
    out: str
    err: str


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with main.yaml, trainer.yaml and head/tiny.yaml; runs go there too."""
    (tmp_path / "head").mkdir()
    (tmp_path / "main.yaml").write_text(MAIN)
    (tmp_path / "head" / "tiny.yaml").write_text(HEAD)
    (tmp_path / "trainer.yaml").write_text(TRAINER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANBENCH_BACKEND", "reference")
    # The choice is made once per process: none is made yet here, and this one is not left to other tests.
    monkeypatch.setattr(backend, "_state", replace(backend._state, chosen=None, reason=""))
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


@pytest.fixture
def panbench(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Answer]]:
    """``panbench(*argv)`` in this process."""
    before = signal.getsignal(signal.SIGINT)

    def call(*argv: str) -> Answer:
        # The consoles keep the stream that they were made with; pytest has another one for every test.
        console.stdout.cache_clear()
        console.stderr.cache_clear()
        capsys.readouterr()
        status = run(argv)
        out, err = capsys.readouterr()
        return Answer(status, out, err)

    yield call
    signal.signal(signal.SIGINT, before)
