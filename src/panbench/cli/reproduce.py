"""``panbench reproduce RESULT.json``: run a result again from its record and say whether the new scores agree.

The configuration in the record is run by ``panbench fit`` into a folder of its own. A metric is *identical*, or it lies
*within* the spread of the seeds, or *outside* of it. The spread is the 95 % prediction interval for one more run,

    mean ± t(0.975, n − 1) · s · √(1 + 1/n),

over the results of the same method, settings and ground in the store that differ in the seed alone, the record
included. With fewer than three seeds there is none, and differences are given as they are.

Exit status: 0 reproduced, 1 outside, 2 could not be run or compared, 3 different with no spread to judge by.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, get_args

from panbench.cli.errors import INTERRUPTED
from panbench.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from panbench.protocol.results import SceneResult
    from panbench.scene import Scene

log = logging.getLogger(__name__)

Verdict = Literal["identical", "within", "outside", "differs"]

OUTSIDE, UNDECIDED = 1, 3
LEAST_SEEDS = 3

# Of the recorded configuration these decide neither the result nor where it goes this time.
_NOT_COMPARED = ("run", "fresh", "checkpoint", "progress")
_UNCOMPARED_DATA = ("root", "cache_mb")


@dataclass(frozen=True)
class Judged:
    """One metric of the record and of the new run.

    ``low`` and ``high`` bound the spread; nan without one. ``differs``: not identical, and there is no spread.
    """

    name: str
    recorded: float
    again: float
    low: float
    high: float
    verdict: Verdict


def main(argv: Sequence[str]) -> int:
    """Run ``panbench reproduce``.

    Raises:
        UserError: if the record cannot be run again, or what it was made from is no longer the same.
        Interrupted: if the run was stopped; the same command continues it.
    """
    args = _arguments(argv)
    from panbench.cli.console import quieten_lightning, stdout
    from panbench.cli.train import open_cli
    from panbench.protocol.compare import obstacles
    from panbench.protocol.results import SceneResult

    recorded = SceneResult.load(args.result)
    _check_record(args.result, recorded)
    options = [f"--config={_write_config(recorded, args.runs)}", *(f"--{pair}" for pair in args.set)]
    quieten_lightning()
    cli = open_cli(options)
    folder = cli.run_dir.path.resolve()
    if recorded.origin.run and folder == Path(recorded.origin.run).resolve():
        raise UserError(f"{folder}: is the recorded run itself: choose another folder with --runs")
    _check_data(args.result, recorded, cli.datamodule.scene, args.allow_data_change)
    run = cli.run_dir
    if run.exists() and run.result.is_file() and run.manifest().status == "finished" and not args.fresh:
        log.info("%s was reproduced before; --fresh runs it again", folder)
    else:
        _fit([*options, "--fresh"] if args.fresh else options)

    again = _result_of(folder, recorded.protocol)
    reasons = [r for r in obstacles(recorded, again) if not (args.allow_data_change and r.startswith("mask set"))]
    if reasons:
        raise UserError(f"{args.result}: cannot be compared with the new run: {'; '.join(reasons)}")
    seeds = _seeds(recorded, args.store)
    lines = judge(recorded.metrics, again.metrics, [result.metrics for result in seeds])
    _show(stdout(), recorded, again, lines, len(seeds))
    stdout().print(f"run         {folder}", highlight=False, soft_wrap=True, markup=False)
    stdout().print(conclusion(lines, len(seeds)), highlight=False, soft_wrap=True, markup=False)
    verdicts = {line.verdict for line in lines}
    return OUTSIDE if "outside" in verdicts else UNDECIDED if "differs" in verdicts else 0


def judge(
    recorded: Mapping[str, float], again: Mapping[str, float], seeds: Sequence[Mapping[str, float]]
) -> list[Judged]:
    """Compare each metric that both runs have with the spread of ``seeds``: the metrics of one run a seed."""
    out: list[Judged] = []
    for name in (name for name in recorded if name in again):
        old, new = recorded[name], again[name]
        values = [metrics[name] for metrics in seeds if not math.isnan(metrics.get(name, math.nan))]
        low, high = spread(values)
        verdict: Verdict
        # Sums of floats may be taken in another order on another machine: that is no difference.
        if (math.isnan(old) and math.isnan(new)) or math.isclose(old, new, rel_tol=1e-9):
            verdict = "identical"
        elif math.isnan(low):
            verdict = "differs"
        else:
            verdict = "within" if low <= new <= high else "outside"
        out.append(Judged(name, old, new, low, high, verdict))
    return out


def spread(values: Sequence[float]) -> tuple[float, float]:
    """95 % prediction interval for one more value; (nan, nan) for fewer than three."""
    from scipy.stats import t

    n = len(values)
    if n < LEAST_SEEDS:
        return math.nan, math.nan
    half = float(t.ppf(0.975, n - 1)) * stdev(values) * math.sqrt(1 + 1 / n)
    return mean(values) - half, mean(values) + half


def conclusion(lines: Sequence[Judged], seeds: int) -> str:
    """One line that says whether the result was reproduced."""
    by = {verdict: [line.name for line in lines if line.verdict == verdict] for verdict in get_args(Verdict)}
    if by["outside"]:
        return f"not reproduced: {', '.join(by['outside'])} outside of the spread of {seeds} seeds"
    if by["differs"]:
        return (
            f"different, and there is no spread to judge by: {seeds} of at least {LEAST_SEEDS} seeds are known; "
            "panbench bench makes more, --store says where they are"
        )
    if by["within"]:
        return f"reproduced: {len(by['identical'])} metrics identical, {len(by['within'])} within {seeds} seeds' spread"
    return f"reproduced: all {len(lines)} metrics identical"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "panbench reproduce",
        description="Run a result again from its record; say whether the scores are the same, within the spread of the "
        "seeds, or outside of it.",
        epilog="status: 0 reproduced, 1 outside of the spread, 2 error, 3 different with no spread to judge by",
    )
    parser.add_argument("result", type=Path, metavar="RESULT.json", help="a result of panbench fit")
    parser.add_argument("--store", type=Path, default=Path("results"), help="where the other seeds are (results)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override, such as data.root=FOLDER"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduced"), help="root of the new run (%(default)s)")
    parser.add_argument("--allow-data-change", action="store_true", help="go on if scene or masks are not the same")
    parser.add_argument("--fresh", action="store_true", help="run again what was reproduced before")
    args = parser.parse_args(argv)
    for pair in args.set:
        if "=" not in pair:
            raise UserError(f"--set {pair}: is not KEY=VALUE, such as data.root=FOLDER")
    return args


def _check_record(path: Path, recorded: SceneResult) -> None:
    """What can be told from the record alone."""
    from panbench.protocol.protocol import Protocol

    if not isinstance(recorded.config.get("model"), dict):
        raise UserError(
            f"{path}: {recorded.method} was not made by panbench fit, its record holds no configuration to run: "
            "give the result.json of a run"
        )
    if Protocol.load(recorded.protocol).hash != recorded.protocol_hash:
        raise UserError(
            f"{path}: was scored by other rules than the {recorded.protocol} that is installed: "
            "score both with one version of panbench"
        )


def _write_config(recorded: SceneResult, runs: Path) -> Path:
    """The recorded configuration as a file that goes to ``runs``, named by its content."""
    import yaml

    from panbench.training.files import write_text
    from panbench.training.run_dir import tracked_hash

    config = dict(recorded.config)
    run = dict(config.get("run") or {})
    run |= {"root": str(runs), "method": recorded.method, "receipt": None, "finish": True}
    run["wandb"] = dict(run.get("wandb") or {}) | {"enable": False}
    config |= {"run": run, "fresh": False}
    path = runs / f"{recorded.method}-{tracked_hash(config)[:16]}.yaml"
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def _check_data(path: Path, recorded: SceneResult, scene: Scene, allowed: bool) -> None:
    """Refuse to train on another scene than the record's."""
    from panbench.protocol.results import split_hash

    frames = [scene.source.name(i) for i in scene.test]
    for what, old, new in (
        ("scene", f"{recorded.dataset} {recorded.scene}", f"{scene.dataset} {scene.name}"),
        ("test frames", recorded.split_hash, split_hash(frames)),
        ("classes", recorded.label_hash, scene.labels.hash),
    ):
        if old != new:
            raise UserError(f"{path}: {what}: {_brief(old)} in the record, {_brief(new)} here: give the recorded scene")
    changed = [
        f"{what}: {_brief(old)} in the record, {_brief(new)} here"
        for what, old, new in (
            ("files of the scene", recorded.origin.data_hash, scene.data_hash),
            ("masks", recorded.origin.mask_hash, scene.mask_hash),
        )
        if old and old != new
    ]
    if changed and not allowed:
        raise UserError(
            f"{path}: {'; '.join(changed)}: give the recorded data with --set data.root=FOLDER, or --allow-data-change"
        )
    for line in changed:
        log.warning("%s", line)


def _fit(options: Sequence[str]) -> None:
    """``panbench fit`` in a process of its own, whose output is shown. A Ctrl-C is its to answer."""
    before = signal.signal(signal.SIGINT, _leave_to_child)
    try:
        status = subprocess.run([sys.executable, "-m", "panbench", "fit", *options], check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if status == INTERRUPTED:
        raise Interrupted("the same command continues")
    if status < 0:
        raise UserError(f"the run was killed by signal {-status}: the same command continues it")
    if status:
        raise UserError(f"the run ended with status {status}; its message stands above: the same command continues it")


def _leave_to_child(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which the child would inherit."""


def _result_of(folder: Path, protocol: str) -> SceneResult:
    """The run's result under a protocol."""
    from panbench.protocol.protocol import Protocol
    from panbench.protocol.results import SceneResult
    from panbench.protocol.score import rescore

    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no result: the scene lacks the true labels of its test frames")
    found = [SceneResult.load(p) for p in (path, *sorted((folder / "results").glob("run.*.json")))]
    return next((r for r in found if r.protocol == protocol), None) or rescore(found[0], Protocol.load(protocol))


def _seeds(recorded: SceneResult, store: Path) -> list[SceneResult]:
    """The record and, of each other seed, the newest stored result that differs from it in nothing but the seed."""
    from panbench.protocol.compare import ground
    from panbench.protocol.store import ResultStore

    alike: dict[int | None, SceneResult] = {}
    if recorded.origin.settings_hash:
        same = ("method", "labels")
        for stored in ResultStore(store):
            other = stored.result
            if (
                all(getattr(other, name) == getattr(recorded, name) for name in same)
                and other.origin.settings_hash == recorded.origin.settings_hash
                and ground(other) == ground(recorded)
                and (other.seed not in alike or other.origin.created > alike[other.seed].origin.created)
            ):
                alike[other.seed] = other
    alike[recorded.seed] = recorded
    return list(alike.values())


def _show(console: Console, recorded: SceneResult, again: SceneResult, lines: Sequence[Judged], seeds: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from panbench.training.run_dir import differences

    console.print()
    for title, changes in (
        ("settings", differences(_settings(recorded), _settings(again))),
        ("environment", differences(_environment(recorded), _environment(again))),
    ):
        for change in changes or ["the same"]:
            console.print(f"{title:<12}{change}", highlight=False, soft_wrap=True, markup=False)
    table = Table(box=None, padding=(0, 1), title=escape(recorded.protocol), title_justify="left")
    for column, justify in (("metric", "left"), ("recorded", "right"), ("again", "right"), ("difference", "right")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column(f"spread of {seeds} seeds" if seeds >= LEAST_SEEDS else "spread", justify="right")
    table.add_column("")
    for line in lines:
        bounds = "-" if math.isnan(line.low) else f"{line.low:.3f} to {line.high:.3f}"
        difference = "0" if line.verdict == "identical" else f"{line.again - line.recorded:+.3g}"
        table.add_row(line.name, f"{line.recorded:.3f}", f"{line.again:.3f}", difference, bounds, line.verdict)
    for name, unit, scale in (("fit_seconds", "s", 1), ("peak_memory_bytes", "GiB", 2**30), ("gaussians", "", 1)):
        if name in recorded.cost and name in again.cost:
            old, new = recorded.cost[name] / scale, again.cost[name] / scale
            digits = 2 if scale > 1 else 0
            values = (f"{old:,.{digits}f}", f"{new:,.{digits}f}", f"{new - old:+,.{digits}f}")
            label = name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")
            table.add_row(f"{label}, {unit}" if unit else label, *values, "", "not judged")
    console.print(table)


def _settings(result: SceneResult) -> dict[str, Any]:
    """What decides the result, of a recorded configuration."""
    config = {key: value for key, value in result.config.items() if key not in _NOT_COMPARED}
    data = dict(config.get("data") or {})
    arguments = dict(data.get("init_args") or {})
    data["init_args"] = {key: value for key, value in arguments.items() if key not in _UNCOMPARED_DATA}
    return config | {"data": data}


def _environment(result: SceneResult) -> dict[str, Any]:
    provenance = result.provenance
    commit, _, changed = result.commit.partition("+")
    return {
        "commit": f"{commit[:12]}{'+' if changed else ''}{changed}",
        **{key: provenance[key] for key in ("versions", "machine", "backend", "scored_by") if key in provenance},
    }


def _brief(text: str) -> str:
    """The first digits of a hash; other names whole."""
    return text[:8] if len(text) == 64 else text or "none"
