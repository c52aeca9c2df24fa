"""``panbench reproduce``: the record is enough to run a result again, and the judgement is what the seeds allow."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from panbench.cli import console
from panbench.cli.errors import explained
from panbench.cli.reproduce import conclusion, judge, main, spread
from panbench.protocol.results import SceneResult
from panbench.protocol.store import ResultStore

FIT = ("fit", "--config", "main.yaml")


class Answer(NamedTuple):
    """Exit status and what was written."""

    status: int
    out: str
    err: str


@pytest.fixture
def reproduce(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Answer]]:
    """``reproduce(*argv)`` in this process; the run itself is another one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    before = signal.getsignal(signal.SIGINT)

    def call(*argv: str | Path) -> Answer:
        console.stdout.cache_clear()
        console.stderr.cache_clear()
        console.set_up_logging()
        capsys.readouterr()
        status = explained(main)([str(a) for a in argv])
        return Answer(status, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def record(configs: Path, panbench: Callable[..., Any]) -> Path:
    """Result of a finished run of the tiny method."""
    assert panbench(*FIT, "--model.lr=0.2", "--model.head.width=5").status == 0
    return next(configs.glob("runs/tiny/scene0000_00/*/*/result.json"))


def _edit(path: Path, to: Path, **changes: Any) -> Path:
    """A copy of a result; ``metrics`` and ``origin`` are merged into what is there."""
    result = SceneResult.load(path)
    fields = result.model_dump()
    for key, value in changes.items():
        fields[key] = {**fields[key], **value} if isinstance(value, dict) and key != "config" else value
    return SceneResult.model_validate(fields).save(to)


def _fill(store: Path, record: Path, values: dict[int, float], **changes: Any) -> None:
    """Results of other seeds whose PQ has these values."""
    for seed, value in values.items():
        path = _edit(record, store.parent / "one.json", seed=seed, metrics={"PQ": value}, **changes)
        ResultStore(store).add(SceneResult.load(path))


@pytest.mark.slow
def test_a_run_is_made_again_from_its_result_alone(
    configs: Path, reproduce: Callable[..., Answer], record: Path
) -> None:
    original = record.read_bytes()
    moved = configs / "elsewhere.json"
    moved.write_bytes(original)
    for name in ("main.yaml", "trainer.yaml", "head/tiny.yaml"):
        (configs / name).unlink()
    answer = reproduce(moved)
    assert answer.status == 0, answer.err
    assert "reproduced: all " in answer.out
    assert "metrics identical" in answer.out
    assert record.read_bytes() == original
    again = next(configs.glob("runs/reproduced/tiny/scene0000_00/*/*/result.json"))
    # Settings, seed and scene are the same, so the folder's name is the same.
    assert again.parent.name == record.parent.name
    model = yaml.safe_load((again.parent / "config.yaml").read_text())["model"]["init_args"]
    assert (model["lr"], model["head"]["init_args"]["width"]) == (0.2, 5)
    assert "settings    the same" in answer.out
    assert "environment the same" in answer.out


@pytest.mark.slow
def test_a_finished_reproduction_is_compared_again_and_run_again_when_asked(
    configs: Path, reproduce: Callable[..., Answer], record: Path
) -> None:
    reproduce(record)
    weights = next(configs.glob("runs/reproduced/tiny/*/*/*/checkpoints/last.ckpt"))
    before = weights.stat().st_mtime_ns
    second = reproduce(record)
    assert second.status == 0
    assert "was reproduced before; --fresh runs it again" in second.err
    assert weights.stat().st_mtime_ns == before
    # The same run under the other protocol.
    other = record.parent / "results" / "run.panoptic-strict@1.json"
    answer = reproduce(other)
    assert (answer.status, "panoptic-strict@1" in answer.out) == (0, True)
    assert weights.stat().st_mtime_ns == before
    assert reproduce(record, "--fresh").status == 0
    assert weights.stat().st_mtime_ns > before


@pytest.mark.slow
def test_the_verdict_is_that_of_the_other_seeds(configs: Path, reproduce: Callable[..., Answer], record: Path) -> None:
    # The new run has PQ 100. A record of 90 is alone, then among seeds that lie near it, then among scattered ones.
    claimed = _edit(record, configs / "claimed.json", metrics={"PQ": 90.0})
    alone = reproduce(claimed)
    assert alone.status == 3
    assert "different, and there is no spread to judge by: 1 of at least 3 seeds are known" in alone.out
    assert "+10" in alone.out
    _fill(configs / "near", claimed, {4: 90.5, 5: 89.5})
    near = reproduce(claimed, "--store", configs / "near")
    assert near.status == 1
    assert "not reproduced: PQ outside of the spread of 3 seeds" in near.out
    _fill(configs / "far", claimed, {4: 99.0, 5: 94.0})
    far = reproduce(claimed, "--store", configs / "far")
    assert far.status == 0
    assert "1 within 3 seeds' spread" in far.out


@pytest.mark.slow
def test_results_of_other_settings_masks_or_methods_are_no_spread(
    configs: Path, reproduce: Callable[..., Answer], record: Path
) -> None:
    claimed = _edit(record, configs / "claimed.json", metrics={"PQ": 90.0})
    store = configs / "results"
    _fill(store, claimed, {4: 89.0, 5: 99.0}, origin={"settings_hash": "f" * 64})
    _fill(store, claimed, {4: 89.0, 5: 99.0}, origin={"mask_hash": "f" * 64})
    _fill(store, claimed, {4: 89.0, 5: 99.0}, method="another")
    # Of one seed the newest counts, and the record is its own seed.
    _fill(store, claimed, {3: 50.0, 4: 50.0}, origin={"created": "2020-01-01T00:00:00+00:00"})
    answer = reproduce(claimed)
    assert answer.status == 3
    assert "2 of at least 3 seeds are known" in answer.out


@pytest.mark.slow
def test_what_differs_about_settings_and_machine_is_shown(
    configs: Path, reproduce: Callable[..., Answer], record: Path
) -> None:
    old = SceneResult.load(record)
    provenance = {**old.provenance, "versions": {**old.provenance["versions"], "torch": "1.0"}, "backend": "cuda"}
    claimed = _edit(record, configs / "claimed.json", provenance=provenance, commit="a" * 40 + "+changes")
    answer = reproduce(claimed, "--set", "model.lr=0.3", "data.root=elsewhere")
    assert answer.status == 0, answer.err
    assert "settings    model.init_args.lr: 0.2 -> 0.3" in answer.out
    assert "environment versions.torch: 1.0 -> " in answer.out
    assert f"environment commit: {'a' * 12}+changes -> " in answer.out
    assert "data.init_args.root" not in answer.out


@pytest.mark.slow
def test_other_data_is_refused_before_training_unless_allowed(
    configs: Path, reproduce: Callable[..., Answer], record: Path
) -> None:
    claimed = _edit(record, configs / "claimed.json", origin={"data_hash": "a" * 64, "mask_hash": "b" * 64})
    answer = reproduce(claimed)
    assert answer.status == 2
    assert "files of the scene: aaaaaaaa in the record, data here; masks: bbbbbbbb in the record" in answer.err
    assert "--set data.root=FOLDER, or --allow-data-change" in answer.err
    assert not list(configs.glob("runs/reproduced/tiny"))
    allowed = reproduce(claimed, "--allow-data-change")
    assert allowed.status == 0, allowed.err
    assert "warning: masks: bbbbbbbb in the record, masks here" in allowed.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {}}, "was not made by panbench fit, its record holds no configuration to run"),
        ({"protocol_hash": "0" * 64}, "was scored by other rules than the scannet-paper@1 that is installed"),
        ({"scene": "scene0001_00"}, "scene: tiny scene0001_00 in the record, tiny scene0000_00 here"),
        ({"split_hash": "0" * 64}, "test frames: 00000000 in the record"),
        ({"label_hash": "0" * 64}, "classes: 00000000 in the record"),
    ],
)
def test_what_cannot_be_run_or_compared_is_one_line(
    configs: Path, reproduce: Callable[..., Answer], record: Path, changes: dict[str, Any], message: str
) -> None:
    answer = reproduce(_edit(record, configs / "claimed.json", **changes))
    assert answer.status == 2
    assert message in answer.err.splitlines()[-1]
    assert not list(configs.glob("runs/reproduced/tiny"))


def test_the_record_is_not_its_own_proof(configs: Path, reproduce: Callable[..., Answer], record: Path) -> None:
    answer = reproduce(record, "--runs", "runs")
    assert answer.status == 2
    assert "is the recorded run itself: choose another folder with --runs" in answer.err


def test_an_override_needs_a_value(configs: Path, reproduce: Callable[..., Answer]) -> None:
    answer = reproduce("result.json", "--set", "data.root")
    assert answer.err == "error: --set data.root: is not KEY=VALUE, such as data.root=FOLDER\n"


def test_a_setting_that_is_gone_is_named(configs: Path, reproduce: Callable[..., Answer], record: Path) -> None:
    config = SceneResult.load(record).config
    config["model"]["init_args"]["rate"] = 1
    answer = reproduce(_edit(record, configs / "claimed.json", config=config))
    assert answer.status == 2
    assert "rate" in answer.err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_that_is_killed_continues_with_the_same_command(configs: Path, record: Path) -> None:
    command = [sys.executable, "-c", "import sys; from panbench.cli.reproduce import main; from panbench.cli.errors "
               "import explained; sys.exit(explained(main)(sys.argv[1:]))"]  # fmt: skip
    command += [str(record), "--set", "checkpoint.every_n_steps=4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed = subprocess.run(command, env=environment | {"TINY_KILL_AT": "14"}, capture_output=True, text=True)
    assert killed.returncode == 2
    assert "the run was killed by signal 9: the same command continues it" in killed.stderr
    stopped = subprocess.run(command, env=environment | {"TINY_INTERRUPT_AT": "16"}, capture_output=True, text=True)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == "stopped: the same command continues"
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from" in finished.stderr


def test_the_spread_holds_one_more_value_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    for n in (3, 5, 10):
        held = 0
        for _ in range(2000):
            *known, new = random.normal(60, 2, n + 1)
            low, high = spread(known)
            held += low <= new <= high
        assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_two_values_have_no_spread() -> None:
    assert all(math.isnan(bound) for bound in spread([1.0, 2.0]))


def test_each_metric_is_judged_for_itself() -> None:
    seeds = [{"PQ": 50.0, "SQ": 70.0, "RQ": 60.0}, {"PQ": 52.0, "SQ": 70.0}, {"PQ": 51.0, "SQ": 70.0}]
    old = {"PQ": 50.0, "SQ": 70.0, "RQ": 60.0, "mIoU": math.nan, "PSNR": 30.0, "SSIM": 0.9}
    new = {"PQ": 51.5, "SQ": 70.1, "RQ": 61.0, "mIoU": math.nan, "PSNR": 30.0 * (1 + 1e-12)}
    verdicts = {line.name: line.verdict for line in judge(old, new, seeds)}
    # SSIM is not known of the new run; RQ of one seed only; SQ is 70 for every seed, so 70.1 is outside.
    assert verdicts == {"PQ": "within", "SQ": "outside", "RQ": "differs", "mIoU": "identical", "PSNR": "identical"}


def test_an_undefined_score_is_not_the_same_as_a_number() -> None:
    seeds = [{"PQ": 50.0}, {"PQ": 52.0}, {"PQ": 51.0}]
    assert judge({"PQ": 50.0}, {"PQ": math.nan}, seeds)[0].verdict == "outside"
    assert judge({"PQ": math.nan}, {"PQ": 50.0}, [])[0].verdict == "differs"


def test_the_conclusion_names_what_is_outside() -> None:
    seeds = [{"PQ": 50.0, "SQ": 1.0}, {"PQ": 52.0, "SQ": 1.0}, {"PQ": 51.0, "SQ": 1.0}]
    lines = judge({"PQ": 50.0, "SQ": 1.0}, {"PQ": 70.0, "SQ": 1.0}, seeds)
    assert conclusion(lines, 3) == "not reproduced: PQ outside of the spread of 3 seeds"
