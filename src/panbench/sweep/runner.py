"""A sweep on disk, and running its trials on an engine.

``SWEEPS/<name>-<hash8>/`` holds one small file a trial, written before the trial starts and when it has ended, each
time in one piece. A sweep that was killed goes on with the trials that had not ended, with the values they had.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from panbench.bench.engine import Engine, Outcome, Task
from panbench.errors import UserError
from panbench.lock import held
from panbench.resources import find_config
from panbench.sweep.search import Known, Suggest, Values, grid_size, make_search
from panbench.sweep.spec import SweepFile
from panbench.training.files import write_text


class Trial(BaseModel):
    """One trial.

    Attributes:
        number: from 0.
        values: of its parameters, nested ones below their parent.
        point: see :class:`panbench.sweep.search.Suggestion`.
        status: running (or cut off while it ran), done, failed.
        value: of the sweep's metric; None without one.
        error: one line on why it failed.
        run: its run directory.
        seconds, attempts: of its processes.
    """

    number: int
    values: Values
    point: dict[str, float] = Field(default_factory=dict)
    status: Literal["running", "done", "failed"] = "running"
    value: float | None = None
    error: str = ""
    run: str = ""
    seconds: float = 0.0
    attempts: int = 0

    def flat(self) -> dict[str, Any]:
        """The values by dotted name."""
        return dict(_flat(self.values))


def expand_command(sweep: SweepFile, values: Values) -> list[str]:
    """The command of a trial, its macros filled in as ``wandb agent`` does; one macro a word.

    Raises:
        UserError: for an unknown macro, or a command that is not panbench fit.
    """
    flags = [f"{name}={value}" for name, value in values.items()]
    filled: dict[str, list[str]] = {
        "env": ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "program": [sweep.program],
        "args": [f"--{flag}" for flag in flags],
        "args_no_hyphens": flags,
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in values.items()
            if value is not False
        ],
        "args_json": [json.dumps(values)],
        "args_append_hydra": [f"+{flag}" for flag in flags],
        "args_override_hydra": [f"++{flag}" for flag in flags],
    }
    words: list[str] = []
    for word in sweep.command:
        if word.startswith("${") and word.endswith("}") and not word.startswith("${envvar:"):
            if word[2:-1] not in filled:
                raise UserError(f"command: {word} cannot be filled in; known: {', '.join(f'${{{m}}}' for m in filled)}")
            words += filled[word[2:-1]]
        else:
            words.append(_with_variables(word))
    place = next((i for i, w in enumerate(words) if w == "panbench" or w.endswith("/panbench")), None)
    if place is None or words[place + 1 : place + 2] != ["fit"]:
        raise UserError(
            "command: panbench sweep runs panbench fit only, to know where its result is; "
            'write [panbench, fit, --config=FILE, "${args}"], or run the file with wandb agent'
        )
    if words[place - 1 : place] != ["-m"]:
        # The panbench that reads this file, whatever is on PATH.
        words[place : place + 1] = [sys.executable, "-m", "panbench"]
    return words


class SweepFolder:
    """The state of a sweep on disk.

    Args:
        root: folder of all sweeps.
        sweep: the sweep.
        name: of its folder; what decides the trials is hashed into it.
        seed: of the search.
    """

    def __init__(self, root: Path, sweep: SweepFile, name: str, seed: int) -> None:
        decides = {
            "sweep": sweep.model_dump(
                mode="json", include={"method", "parameters", "metric", "command", "program"}, exclude_unset=True
            ),
            "seed": seed,
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        self.path = root / f"{name}-{digest[:8]}"
        self.best = self.path / "best.yaml"

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the sweep for this process; the kernel drops the lock with it.

        Raises:
            UserError: if another process has it, or nothing can be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path} ({error.strerror}); choose another folder with --folder"
            ) from error
        with held(self.path, "runs this sweep already"):
            yield

    def trials(self) -> list[Trial]:
        """All trials so far, by number.

        Raises:
            UserError: if one cannot be read.
        """
        out: list[Trial] = []
        for path in sorted((self.path / "trials").glob("*.json")):
            try:
                out.append(Trial.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
                raise UserError(f"{path} is damaged ({cause}); remove it, and its trial is made again") from error
        return sorted(out, key=lambda trial: trial.number)

    def save(self, trial: Trial) -> None:
        """Write a trial's file."""
        write_text(self.path / "trials" / f"{trial.number:04d}.json", trial.model_dump_json(indent=1) + "\n")

    def log_path(self, number: int) -> Path:
        """Where a trial's output is."""
        return self.path / "logs" / f"{number:04d}.log"

    def receipt(self, number: int) -> Path:
        """The file in which a trial says where its run is."""
        return self.path / "work" / f"{number:04d}.receipt.json"

    def task(self, sweep: SweepFile, trial: Trial, environment: Mapping[str, str]) -> Task:
        """What an engine runs for a trial."""
        receipt = self.receipt(trial.number).resolve()
        receipt.parent.mkdir(parents=True, exist_ok=True)
        # Trials of equal values are one run: the second waits for the first, and finds it finished.
        run = hashlib.sha256(json.dumps(trial.values, sort_keys=True).encode()).hexdigest()[:16]
        return Task(
            key=f"{trial.number:04d}",
            commands=((*expand_command(sweep, trial.values), f"--run.receipt={receipt}"),),
            log=self.log_path(trial.number).resolve(),
            lock=receipt.with_name(f"{run}.lock"),
            folder=Path.cwd(),
            environment=environment,
        )


def run_sweep(
    folder: SweepFolder,
    sweep: SweepFile,
    engine: Engine,
    *,
    total: int,
    seed: int,
    retry_failed: bool = False,
    threads: int | None = None,
    started: Callable[[Trial], None],
    ended: Callable[[Trial], None],
) -> None:
    """Run what is missing of ``total`` trials; a trial that fails does not stop the others.

    No new trial starts once one has reached the metric's target.

    Raises:
        UserError: if bayes lacks Optuna, or a trial's file is damaged.
        OSError: if the folder cannot be written.
    """
    trials = {trial.number: trial for trial in folder.trials()}
    suggest = make_search(sweep, seed)
    environment = {"COLUMNS": "120"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    again = {n for n, t in trials.items() if t.status == "running" or (retry_failed and t.status == "failed")}

    def tasks() -> Iterator[Task]:
        for number in range(total):
            if _target_reached(sweep, list(trials.values())):
                return
            if number not in trials:
                trials[number] = _new_trial(suggest, number, list(trials.values()))
            elif number not in again:
                continue
            trial = trials[number]
            trial.status, trial.error = "running", ""
            folder.save(trial)
            folder.receipt(number).unlink(missing_ok=True)
            yield folder.task(sweep, trial, environment)

    with closing(engine.run(tasks(), lambda task: started(trials[int(task.key)]))) as outcomes:
        for outcome in outcomes:
            if outcome.error == "stopped":
                continue  # asked for; the trial goes on next time
            trial = trials[int(outcome.key)]
            _keep(folder, sweep, trial, outcome)
            ended(trial)


def ranked(trials: Sequence[Trial], sweep: SweepFile) -> list[Trial]:
    """The best first; then those without a value, by number."""
    if sweep.metric is None:
        return list(trials)
    sign = -1.0 if sweep.metric.goal == "maximize" else 1.0
    return sorted(trials, key=lambda t: (t.value is None, 0.0 if t.value is None else sign * t.value, t.number))


def overrides(trial: Trial, sweep: SweepFile) -> str:
    """A trial's values as a config file, to be given after the recipe: ``--config RECIPE --config best.yaml``."""
    values: dict[str, Any] = {}
    for name, value in trial.flat().items():
        if isinstance(value, str) and value.endswith(".yaml"):
            value = str(find_config(value).resolve())  # a path in a config file is relative to that file
        values[name] = None if value == "null" else value
    metric = "" if sweep.metric is None else f": {sweep.metric.name} {trial.value}"
    head = f"# Trial {trial.number}{metric}; {trial.run}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def planned_trials(sweep: SweepFile, count: int | None) -> int:
    """How many trials a sweep has.

    Raises:
        UserError: if it has no end.
    """
    limits = [n for n in (grid_size(sweep), sweep.run_cap, count) if n is not None]
    if not limits:
        raise UserError(f"method {sweep.method} has no end: give --count N here, or run_cap in the file")
    return min(limits)


def preview(sweep: SweepFile, seed: int, trials: Sequence[Trial], total: int) -> list[Trial]:
    """The trials of a sweep as far as they are known before running: of bayes only those there are and the next."""
    suggest = make_search(sweep, seed)
    known = {trial.number: trial for trial in trials}
    out: list[Trial] = []
    for number in range(total):
        new = number not in known
        out.append(_new_trial(suggest, number, trials) if new else known[number])
        if new and sweep.method == "bayes":
            break
    return out


def _new_trial(suggest: Suggest, number: int, trials: Sequence[Trial]) -> Trial:
    earlier = [Known(t.point, t.value) for t in trials if t.point and (t.value is not None or t.status == "running")]
    suggestion = suggest(number, earlier)
    return Trial(number=number, values=suggestion.values, point=suggestion.point)


def _target_reached(sweep: SweepFile, trials: Sequence[Trial]) -> bool:
    metric = sweep.metric
    return metric is not None and any(t.value is not None and metric.reached(t.value) for t in trials)


def _keep(folder: SweepFolder, sweep: SweepFile, trial: Trial, outcome: Outcome) -> None:
    """Write down how a trial ended.

    Raises:
        UserError: if it failed because the disk is full; it has not ended then, and runs again.
    """
    if "the disk is full" in outcome.error or "quota is used up" in outcome.error:
        raise UserError(f"trial {trial.number}: {outcome.error}")
    trial.seconds, trial.attempts = round(outcome.seconds, 3), outcome.attempts
    trial.status, trial.error = ("done", "") if outcome.status == 0 else ("failed", outcome.error)
    if trial.status == "done":
        try:
            trial.run, trial.value = _result(folder.receipt(trial.number), sweep)
        except UserError as error:
            trial.status, trial.error = "failed", str(error)
    folder.save(trial)


def _result(receipt: Path, sweep: SweepFile) -> tuple[str, float | None]:
    """A finished trial's run directory and its value of the metric."""
    from panbench.training.run_dir import RunDirectory
    from panbench.training.run_values import final_values, last_logged

    try:
        run = RunDirectory(Path(json.loads(receipt.read_text())["run"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{receipt} does not name the run ({error}); run the trial again") from error
    if sweep.metric is None:
        return str(run.path), None
    values = last_logged(run) | final_values(run)
    name = sweep.metric.name
    if name not in values:
        near = difflib.get_close_matches(name, values, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(values) or 'none'}"
        raise UserError(f"metric {name} is not among the values of {run.path}: {hint}")
    return str(run.path), values[name]


def _with_variables(word: str) -> str:
    """``${envvar:NAME}`` filled in; the name itself where there is no such variable, as W&B does."""
    out, rest = "", word
    while (start := rest.find("${envvar:")) >= 0 and (end := rest.find("}", start)) >= 0:
        name = rest[start + len("${envvar:") : end]
        out += rest[:start] + os.environ.get(name, name)
        rest = rest[end + 1 :]
    return out + rest


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            yield f"{above}{name}", value
