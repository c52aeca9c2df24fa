"""``panbench bench`` with configurations of panbench, in this process; its cells run in their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panbench.protocol.store import ResultStore

PLAN = """\
name: tiny
title: A tiny plan
config: main.yaml
set: {trainer.max_steps: 4}
methods:
  - {name: narrow}
  - {name: wide, set: {model.head.width: 5}}
  - {name: later, unavailable: nobody wrote it}
scenes: [{name: only}]
seeds: [3]
"""


@pytest.fixture
def plan(configs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (configs / "plan.yaml").write_text(PLAN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return configs


def test_a_dry_run_shows_what_would_run_and_runs_nothing(plan: Path, panbench: Callable[..., Any]) -> None:
    answer = panbench("bench", "plan.yaml", "--dry-run")
    assert answer.status == 0
    out = answer.out
    assert "A tiny plan" in out
    assert "cannot run yet: nobody wrote it" in out
    assert "wide/only/s3: panbench fit --config" in out
    assert "--model.head.width=5" in out
    assert not (plan / "bench").exists()


@pytest.mark.slow
def test_a_plan_runs_once_and_only_what_is_missing(plan: Path, panbench: Callable[..., Any]) -> None:
    answer = panbench("bench", "plan.yaml", "--only", "narrow")
    assert answer.status == 0, answer.err
    answer = panbench("bench", "plan.yaml")
    assert "started  narrow" not in answer.err
    assert "done     wide/only/s3" in answer.err
    assert "2 of 2 cells done" in answer.out
    found = [s.result for s in ResultStore(plan / "results")]
    assert {r.method for r in found} == {"narrow", "wide", "raw-masks", "voxel-vote"}
    own = {r.method: r for r in found if r.seed is not None}
    assert own["narrow"].origin.settings_hash != own["wide"].origin.settings_hash
    assert own["wide"].origin.trust == "verified"
    assert (own["wide"].origin.mask_hash, own["wide"].origin.data_hash) == ("masks", "data")
    # A setting that decides the result makes another cell.
    (plan / "head" / "tiny.yaml").write_text((plan / "head" / "tiny.yaml").read_text().replace("4", "6"))
    assert "2 of 2" not in panbench("bench", "plan.yaml", "--dry-run").out


def test_a_pattern_that_matches_nothing_says_how_cells_are_called(plan: Path, panbench: Callable[..., Any]) -> None:
    answer = panbench("bench", "plan.yaml", "--only", "broad")
    assert answer.status == 2
    assert "matches no cell; they are named like narrow/only/s3" in answer.err


def test_cells_without_their_data_wait_and_do_not_fail(plan: Path, panbench: Callable[..., Any]) -> None:
    text = (
        (plan / "plan.yaml")
        .read_text()
        .replace("{name: only}", "{name: only, set: {data.root: scans, data.scene: s1}}")
    )
    (plan / "plan.yaml").write_text(text)
    answer = panbench("bench", "plan.yaml")
    assert answer.status == 1
    assert "no data: scans/s1 is not there; its cells wait for it" in answer.out
    assert "0 of 2 cells done, 2 missing" in answer.out


def test_a_batch_script_runs_the_plan_with_the_same_options(plan: Path, panbench: Callable[..., Any]) -> None:
    answer = panbench(
        "bench", "plan.yaml", "--only", "wide*", "--store", "my results", "--slurm", "job.sh", "--nodes", "3"
    )
    assert answer.status == 0
    text = (plan / "job.sh").read_text()
    assert "#SBATCH --nodes=3" in text
    subprocess.run(["bash", "-n", "job.sh"], cwd=plan, check=True)
    # What the shell makes of the last command.
    command = text[text.index("panbench bench") : text.rindex('"$PLAN"')].replace("'\\''", "'")
    words = shlex.split(command)
    assert words[words.index("--only") + 1] == "wide*"
    assert words[words.index("--store") + 1] == "my results"
