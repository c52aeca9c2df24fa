"""Running sweeps: what is run, in which state they may be interrupted, and what comes of it.

An engine that computes the metric from the command stands for the processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from panbench.bench.engine import Outcome, Task
from panbench.errors import UserError
from panbench.sweep.runner import (
    SweepFolder,
    Trial,
    expand_command,
    overrides,
    planned_trials,
    preview,
    ranked,
    run_sweep,
)
from panbench.sweep.spec import SweepFile

COMMAND = ["${env}", "panbench", "fit", "--config=main.yaml", "${args}"]


def sweep_file(**keys: Any) -> SweepFile:
    standard = {
        "method": "grid",
        "program": "panbench",
        "metric": {"name": "score", "goal": "maximize"},
        "parameters": {"x": {"values": [1, 2, 3, 4]}},
        "command": COMMAND,
    }
    return SweepFile.model_validate({**standard, **keys})


class Bench:
    """An engine whose tasks log ``score(values)``, one after another; they fail where that raises.

    ``die_after``: raises KeyboardInterrupt, as Ctrl-C would, when that many tasks have started.
    """

    def __init__(self, folder: Path, score: Callable[..., float], die_after: int | None = None) -> None:
        self.ran: list[dict[str, float]] = []
        self._folder = folder
        self._score = score
        self._die_after = die_after

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Iterator[Outcome]:
        for task in tasks:
            started(task)
            found = (re.match("--([a-z])=(.*)", word) for word in task.commands[0])
            numbers = {match[1]: float(match[2]) for match in found if match}
            self.ran.append(numbers)
            if self._die_after is not None and len(self.ran) == self._die_after:
                raise KeyboardInterrupt
            try:
                score = self._score(**numbers)
            except ValueError as error:
                yield Outcome(task.key, 2, 1.0, "here", error=str(error))
                continue
            run = self._folder / "runs" / task.key
            run.mkdir(parents=True, exist_ok=True)
            (run / "metrics.csv").write_text(f"step,score\n1,0.5\n2,{score}\n")
            receipt = next(w for w in task.commands[0] if w.startswith("--run.receipt=")).partition("=")[2]
            Path(receipt).write_text(json.dumps({"run": str(run)}))
            yield Outcome(task.key, 0, 1.0, "here")

    def stop(self) -> None:
        raise AssertionError("nobody asks this engine to stop")


def go(folder: SweepFolder, sweep: SweepFile, bench: Bench, total: int, **options: Any) -> list[Trial]:
    run_sweep(
        folder, sweep, bench, total=total, seed=0, started=lambda trial: None, ended=lambda trial: None, **options
    )
    return folder.trials()


def values(trials: Iterable[Trial]) -> list[Mapping[str, Any]]:
    return [trial.values for trial in trials]


def test_every_point_of_a_grid_is_run_once_and_ranked_by_the_last_value_of_the_metric(tmp_path: Path) -> None:
    sweep = sweep_file()
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    trials = go(folder, sweep, Bench(tmp_path, lambda x: -((x - 3) ** 2)), planned_trials(sweep, None))
    assert [t.status for t in trials] == ["done"] * 4
    assert [t.values["x"] for t in ranked(trials, sweep)] == [3, 2, 4, 1]
    assert [t.value for t in trials] == [-4, -1, 0, -1]


def test_minimizing_ranks_the_other_way_round(tmp_path: Path) -> None:
    sweep = sweep_file(metric={"name": "score"})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    trials = go(folder, sweep, Bench(tmp_path, lambda x: x), 4)
    assert [t.values["x"] for t in ranked(trials, sweep)] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["random", "bayes"])
@pytest.mark.parametrize("die_after", [1, 3])
def test_a_sweep_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, method: str, die_after: int) -> None:
    if method == "bayes":
        pytest.importorskip("optuna")
    sweep = sweep_file(method=method, parameters={"x": {"min": 0.0, "max": 1.0}, "y": {"values": [1, 2]}})

    def score(x: float, y: float) -> float:
        return x * y

    whole = SweepFolder(tmp_path / "whole", sweep, "s", 0)
    expected = go(whole, sweep, Bench(tmp_path / "a", score), 14)
    folder = SweepFolder(tmp_path / "cut", sweep, "s", 0)
    with pytest.raises(KeyboardInterrupt):
        go(folder, sweep, Bench(tmp_path / "b", score, die_after), 14)
    assert folder.trials()[-1].status == "running"
    rest = Bench(tmp_path / "b", score)
    assert values(go(folder, sweep, rest, 14)) == values(expected)
    assert len(rest.ran) == 14 - (die_after - 1)  # the one that was cut off, and those after it
    assert [t.value for t in folder.trials()] == [t.value for t in expected]


def test_more_trials_can_be_asked_for_later(tmp_path: Path) -> None:
    sweep = sweep_file(method="random", parameters={"x": {"min": 0.0, "max": 1.0}})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    first = go(folder, sweep, Bench(tmp_path, lambda x: x), 3)
    more = Bench(tmp_path, lambda x: x)
    assert values(go(folder, sweep, more, 5))[:3] == values(first)
    assert len(more.ran) == 2


def test_a_trial_that_fails_stops_no_other_and_runs_again_only_when_asked(tmp_path: Path) -> None:
    def fragile(x: float) -> float:
        if x == 2:
            raise ValueError("exit status 2: no such thing")
        return x

    sweep = sweep_file()
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    trials = go(folder, sweep, Bench(tmp_path, fragile), 4)
    assert [t.status for t in trials] == ["done", "failed", "done", "done"]
    assert trials[1].error == "exit status 2: no such thing"
    assert ranked(trials, sweep)[-1].number == 1
    idle = Bench(tmp_path, fragile)
    go(folder, sweep, idle, 4)
    assert idle.ran == []
    healed = Bench(tmp_path, lambda x: x)
    trials = go(folder, sweep, healed, 4, retry_failed=True)
    assert healed.ran == [{"x": 2}]
    assert [t.status for t in trials] == ["done"] * 4
    assert trials[1].error == ""


def test_bayes_is_not_told_of_trials_that_failed(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def fragile(x: float) -> float:
        if x > 0.5:
            raise ValueError("exit status 1")
        return x

    sweep = sweep_file(method="bayes", parameters={"x": {"min": 0.0, "max": 1.0}})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    trials = go(folder, sweep, Bench(tmp_path, fragile), 12)
    assert {t.status for t in trials} == {"done", "failed"}


def test_no_trial_starts_once_the_target_is_reached(tmp_path: Path) -> None:
    sweep = sweep_file(metric={"name": "score", "goal": "maximize", "target": 2})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    assert len(go(folder, sweep, Bench(tmp_path, lambda x: x), 4)) == 2
    below = sweep_file(metric={"name": "score", "target": -3})
    folder = SweepFolder(tmp_path / "sweeps", below, "s", 0)
    assert len(go(folder, below, Bench(tmp_path, lambda x: -x), 4)) == 3


def test_a_metric_that_is_not_logged_fails_the_trial_with_the_nearest_name(tmp_path: Path) -> None:
    sweep = sweep_file(metric={"name": "scores"})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    [trial] = go(folder, sweep, Bench(tmp_path, lambda x: x), 1)
    assert trial.status == "failed"
    assert trial.error == f"metric scores is not among the values of {tmp_path}/runs/0000: did you mean score?"


def test_other_parameters_are_another_sweep_and_another_description_is_not(tmp_path: Path) -> None:
    def path(sweep: SweepFile, seed: int = 0) -> Path:
        return SweepFolder(tmp_path, sweep, "s", seed).path

    sweep = sweep_file()
    assert path(sweep_file(description="x", run_cap=2, project="p")) == path(sweep)
    others = [path(sweep_file(parameters={"x": {"values": [1, 2]}})), path(sweep_file(method="random")), path(sweep, 1)]
    assert len({path(sweep), *others}) == 4


def test_trials_of_equal_values_wait_for_each_other(tmp_path: Path) -> None:
    sweep = sweep_file()
    folder = SweepFolder(tmp_path, sweep, "s", 0)
    locks = [folder.task(sweep, Trial(number=n, values={"x": x}), {}).lock for n, x in enumerate((1, 2, 1))]
    assert locks[0] == locks[2] != locks[1]


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    sweep = sweep_file()
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    go(folder, sweep, Bench(tmp_path, lambda x: x), 2)
    damaged = folder.path / "trials" / "0001.json"
    damaged.write_text('{"number": 1')
    with pytest.raises(UserError, match=r"0001\.json is damaged .*; remove it, and its trial is made again"):
        folder.trials()


def test_a_sweep_runs_once_at_a_time(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, sweep_file(), "s", 0)
    with folder.locked(), pytest.raises(UserError, match=r"process \d+ runs this sweep already"), folder.locked():
        pass


def test_how_many_trials_there_are() -> None:
    x = {"x": {"min": 0.0, "max": 1.0}}
    assert planned_trials(sweep_file(), None) == 4
    assert planned_trials(sweep_file(), 3) == 3
    assert planned_trials(sweep_file(run_cap=2), 3) == 2
    assert planned_trials(sweep_file(method="random", parameters=x, run_cap=5), None) == 5
    with pytest.raises(UserError, match="method random has no end: give --count N here, or run_cap in the file"):
        planned_trials(sweep_file(method="random", parameters=x), None)


def test_the_preview_is_what_then_runs(tmp_path: Path) -> None:
    sweep = sweep_file(method="random", parameters={"x": {"min": 0.0, "max": 1.0}})
    folder = SweepFolder(tmp_path / "sweeps", sweep, "s", 0)
    shown = values(preview(sweep, 0, [], 4))
    assert values(go(folder, sweep, Bench(tmp_path, lambda x: x), 4)) == shown


ODD_VALUES = {"lr": 1e-05, "flag": True, "off": False, "name": "a b", "none": "null", "sizes": [1, 2], "sub": {"k": 1}}


@pytest.mark.parametrize(
    "macro",
    [
        *("args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals"),
        *("args_json", "args_append_hydra", "args_override_hydra"),
    ],
)
def test_macros_are_filled_in_as_wandb_does(macro: str) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    words = expand_command(sweep_file(command=["panbench", "fit", f"${{{macro}}}"]), ODD_VALUES)
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in ODD_VALUES.items()}})
    assert words[4:] == theirs[macro]


def test_environment_variables_are_filled_in_as_wandb_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    monkeypatch.setenv("DATA", "/data")
    command = ["panbench", "fit", "--data.root=${envvar:DATA}/x/${envvar:ABSENT}", "--a=1"]
    assert expand_command(sweep_file(command=command), {})[3:] == create_sweep_command(list(command))[1:]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["${env}", "${interpreter}", "train.py", "${args}"], "command: panbench sweep runs panbench fit only"),
        (["panbench", "eval", "${args}"], "command: panbench sweep runs panbench fit only"),
        (["panbench", "fit", "${arguments}"], r"command: \$\{arguments\} cannot be filled in; known: "),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(command: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand_command(sweep_file(command=command), {})


def test_the_best_values_are_written_as_overrides() -> None:
    trial = Trial(
        number=7, values={"model": "configs/base/ligs.yaml", "model.head.dim": 3, "a": {"b": "null"}}, value=2
    )
    text = overrides(trial, sweep_file())
    assert text.startswith("# Trial 7: score 2.0")
    content = yaml.safe_load(text)
    base = Path(content.pop("model"))
    assert base.is_absolute()
    assert base.is_file()
    assert content == {"model.head.dim": 3, "a.b": None}
