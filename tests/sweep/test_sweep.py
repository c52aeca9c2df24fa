"""``panbench sweep`` with real runs of the tiny method, killed in the middle, and the same file under W&B's agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_stub import SWEEP, WandbStub

from panbench.cli import console
from panbench.cli.main import run
from panbench.resources import asset
from panbench.sweep.runner import expand_command, planned_trials, preview
from panbench.sweep.spec import load_sweep

SHIPPED = sorted((asset("configs") / "sweep").glob("*.yaml"))
FILE = """\
name: tiny
project: panbench
program: panbench
method: grid
metric: {name: gaussians, goal: maximize}
parameters:
  model.grow_at: {values: [50, 2, soon]}
command: ["${env}", panbench, fit, --config=main.yaml, "${args}"]
"""


def _panbench(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "panbench", *argv], cwd=place, capture_output=True, text=True)


def _trials(place: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(place.glob("sweeps/*/trials/*.json"))]


def test_a_dry_run_shows_the_commands_and_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.stdout.cache_clear()  # pytest has another stream for every test
    (place / "tiny.yaml").write_text(FILE)
    assert run(["sweep", "tiny.yaml", "--dry-run", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tail = "-m panbench fit --config=main.yaml --model.grow_at="
    assert [line.partition(tail)[2] for line in lines] == ["50", "2"]
    assert not (place / "sweeps").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("panbench, fit", "python, train.py", "tiny.yaml: command: panbench sweep runs panbench fit only"),
        ("grid", "grit", "tiny.yaml: method: Input should be 'grid', 'random' or 'bayes'"),
        ("method: grid", "method: random", "method random has no end: give --count N here, or run_cap in the file"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    console.stderr.cache_clear()
    (place / "tiny.yaml").write_text(FILE.replace(old, new))
    assert run(["sweep", "tiny.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "sweeps").exists()


@pytest.mark.slow
def test_a_sweep_ends_with_the_best_values_as_a_config(place: Path) -> None:
    (place / "tiny.yaml").write_text(FILE)
    done = _panbench(place, "sweep", "tiny.yaml", "--workers", "2")
    assert done.returncode == 1, done.stderr  # a trial failed
    trials = _trials(place)
    assert [t["status"] for t in trials] == ["done", "done", "failed"]
    # The tiny method starts with 4 Gaussians and doubles them at grow_at, if it gets there.
    assert [t["value"] for t in trials] == [4, 8, None]
    assert "grow_at" in trials[2]["error"]
    assert "trial 2 failed (exit status 2:" in done.stderr
    order = [line.split()[0] for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert order == ["1", "0", "2"]
    [folder] = place.glob("sweeps/tiny-*")
    assert len((folder / "trials.csv").read_text().splitlines()) == 4
    best = _panbench(place, "fit", "--config", "main.yaml", "--config", str(folder / "best.yaml"), "--print_config")
    assert yaml.safe_load(best.stdout)["model"]["init_args"]["grow_at"] == 2


@pytest.mark.slow
def test_a_sweep_that_was_killed_loses_no_trial(place: Path) -> None:
    text = FILE.replace("[50, 2, soon]", "[2, 50, 3]")
    (place / "tiny.yaml").write_text(text)
    command = [sys.executable, "-m", "panbench", "sweep", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(_trials(place)) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    first = _trials(place)
    assert [t["status"] for t in first] == ["done", "running"]
    done = _panbench(place, "sweep", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert [(t["status"], t["value"]) for t in _trials(place)] == [("done", 8), ("done", 4), ("done", 8)]
    assert _trials(place)[0] == first[0]
    assert "trial 0 started" not in done.stderr


@pytest.mark.slow
def test_a_stopped_sweep_stops_its_trials(place: Path) -> None:
    (place / "tiny.yaml").write_text(
        FILE.replace("[50, 2, soon]", "[2, 50]").replace("${args}", "--trainer.max_steps=1000000")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "panbench", "sweep", "tiny.yaml"], cwd=place, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not list(place.glob("runs/*/*/*/*/manifest.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the same command continues" in err
    assert [t["status"] for t in _trials(place)] == ["running"]
    lock = next(place.glob("sweeps/*/work/*.lock"))
    assert subprocess.run(["flock", "-n", str(lock), "true"]).returncode == 0  # nobody holds it any more


@pytest.mark.slow
def test_the_same_file_runs_under_wandb_agent(place: Path) -> None:
    """Registered by the real `wandb sweep`, run by the real `wandb agent`; only the server is a stand-in."""
    text = FILE.replace("[50, 2, soon]", "[50, 2]")
    (place / "tiny.yaml").write_text(text)
    # What `panbench` on PATH is: the command of an installed panbench.
    (place / "bin").mkdir()
    script = place / "bin" / "panbench"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m panbench "$@"\n')
    script.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_AGENT_REPORT_INTERVAL": "1",
    }
    # The last trial is the run of the first again, which is finished by then.
    trials = [{"model.grow_at": grow_at} for grow_at in (50, 2, 50)]
    with WandbStub(trials) as stub:
        environment["WANDB_BASE_URL"] = stub.url
        command = [sys.executable, "-m", "wandb"]
        wandb = {"cwd": place, "env": environment, "capture_output": True, "text": True, "timeout": 240}
        registered = subprocess.run([*command, "sweep", "tiny.yaml"], **wandb)
        assert f"wandb agent somebody/panbench/{SWEEP}" in registered.stderr
        agent = subprocess.run([*command, "agent", f"somebody/panbench/{SWEEP}"], **wandb)
    assert stub.config == yaml.safe_load(text)
    assert [values for _, values in stub.sent] == trials, agent.stderr
    # What the server then knows: the runs under its own ids, their parameters, and the metric of the sweep.
    assert sorted(stub.runs) == ["trial0", "trial1", "trial2"], agent.stderr
    for run_id, values, gaussians in (("trial0", 50, 4), ("trial1", 2, 8), ("trial2", 50, 4)):
        known = stub.runs[run_id]
        assert known["sweep"] == SWEEP
        assert known["config"]["model.grow_at"] == values
        assert known["config"]["settings"]["model"]["init_args"]["grow_at"] == values
        assert known["summary"]["gaussians"] == gaussians
        assert known["summary"]["PQ"] == 100
        assert {name.split("_")[0] for name in known["files"] if name.startswith("media/")} >= {
            *("media/images/contact", "media/table/per", "media/table/confusion")
        }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_sweep_has_trials_that_parse(path: Path) -> None:
    from panbench.cli.train import PanbenchCLI, _make_short_names_known, _with_found_configs

    class Parsed(PanbenchCLI):
        def instantiate_classes(self) -> None:
            pass

    if "bayes" in path.read_text():
        pytest.importorskip("optuna")
    sweep = load_sweep(path)
    assert sweep.metric is not None
    _make_short_names_known()
    for trial in preview(sweep, 0, [], planned_trials(sweep, None)):
        command = expand_command(sweep, trial.values)
        options = command[command.index("fit") + 1 :]
        config = Parsed(_with_found_configs(options)).config
        for name, value in trial.values.items():
            if name.startswith("model.head."):
                assert config.model.init_args.head.init_args[name.rpartition(".")[2]] == value
