"""What a finished run leaves with W&B (offline, read back by W&B's own tool) and TensorBoard."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb_stub import WandbStub

from panbench.errors import UserError
from panbench.metrics.functional import PairCounts
from panbench.protocol.results import SceneResult, StoredCounts
from panbench.report.diagnosis import class_table, confusion, instance_table
from panbench.training import loggers
from panbench.training.loggers import (
    WandbOptions,
    log_finished,
    tensorboard_logger,
    wandb_logger,
)
from panbench.training.run_dir import RunDirectory, RunManifest
from panbench.training.run_values import final_values, last_logged

CONFIG = """\
seed_everything: 3
trainer:
  accelerator: cpu
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
data: {class_path: tiny_method.TinyData}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of the tiny method with both loggers."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "main.yaml").write_text(CONFIG)
    # Offline is what a run is by itself; and a test in this process may have left W&B's own variables.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PANBENCH_BACKEND": "reference"}
    command = [sys.executable, "-m", "panbench", "fit", "--config", "main.yaml", "--run.wandb.enable=true"]
    subprocess.run([*command, "--run.tensorboard=true"], cwd=folder, env=environment, check=True, capture_output=True)
    [manifest] = folder.glob("runs/tiny/*/*/*/manifest.json")
    return RunDirectory(manifest.parent)


@pytest.fixture
def result(run: RunDirectory) -> SceneResult:
    return SceneResult.load(run.result)


def _inspected(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Summary, all records and the files folder of the one offline run below a folder."""
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    summary, records = (
        subprocess.run([*command, *more, str(path)], capture_output=True, text=True, check=True).stdout
        for more in (("--summary",), ())
    )
    return json.loads(summary), [json.loads(line) for line in records.splitlines()], path.parent / "files"


def _table(files: Path, name: str) -> dict[str, Any]:
    [path] = files.glob(f"media/table/{name}_*.table.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_wandb_has_configuration_scores_costs_tables_and_pictures(run: RunDirectory, result: SceneResult) -> None:
    summary, records, files = _inspected(run.path)
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    config = summary["config"]
    assert config["settings"]["model"]["init_args"]["head"]["init_args"]["width"] == 3
    assert (config["dataset"], config["scene"], config["seed"], config["synthetic"]) == (
        "tiny",
        "scene0000_00",
        3,
        True,
    )
    final = summary["summary"]
    for name, value in final_values(run).items():
        assert final[name] == pytest.approx(value), name
    assert final["PQ"] == result.metrics["PQ"]
    assert final["scannet-paper@1/PQ"] == result.metrics["PQ"]
    assert final["fit_seconds"] == pytest.approx(result.cost["fit_seconds"])
    losses = {int(row["trainer/global_step"]): row["train/loss"] for row in history if "train/loss" in row}
    with (run.path / "metrics.csv").open(newline="") as stream:
        rows = {int(row["step"]): row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]}
    assert losses.keys() == rows.keys()
    assert all(losses[step] == pytest.approx(float(rows[step]), rel=1e-4) for step in rows)

    classes = _table(files, "per_class")
    assert [row[0] for row in classes["data"]] == ["wall", "chair"]
    assert classes["data"][1][classes["columns"].index("PQ")] == 100
    assert _table(files, "per_instance")["data"][0][:3] == [7, "chair", "found"]
    cells = {(a, b): n for a, b, n in _table(files, "confusion_table")["data"]}
    chair = 8 * 8  # pixels, in the tiny scene
    assert cells == {
        **dict.fromkeys(((a, b) for a in ("wall", "chair") for b in ("wall", "chair", "void")), 0),
        ("chair", "chair"): chair,
        ("wall", "wall"): 24 * 18 - chair,
    }
    [sheet] = files.glob("media/images/contact_sheet_*.png")
    assert sheet.read_bytes() == (run.pictures / "contact_sheet.png").read_bytes()


@pytest.mark.slow
def test_an_offline_run_is_synced_later(run: RunDirectory) -> None:
    [folder] = run.path.glob("wandb/offline-run-*")
    with WandbStub([]) as stub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": "0" * 40}
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=run.path)
    manifest = run.manifest()
    name = f"scene0000_00-tinymethod-tiny-s3-{manifest.hash[:8]}"
    assert list(stub.runs) == [name], done.stderr
    assert stub.runs[name]["summary"]["PQ"] == 100
    assert stub.runs[name]["config"]["hash"] == manifest.hash


@pytest.mark.slow
def test_tensorboard_has_the_same(run: RunDirectory, result: SceneResult) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name, value in final_values(run).items():
        assert events.Scalars(f"final/{name}")[-1].value == pytest.approx(value, rel=1e-5)
    assert [e.step for e in events.Scalars("train/loss")] == [3, 7]
    assert "scannet-paper@1/PQ" in scalars
    assert events.Images("contact sheet")[-1].step == 8
    text = events.Tensors("per class/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| chair | True | 100.0 |" in text
    assert "confusion (pixels)/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
def test_starting_over_starts_the_logs_over(run: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory(tmp_path / "run")
    for name in ("wandb/offline-run-1/run-1.wandb", "tensorboard/events", "notes.txt"):
        path = copy.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    copy.clear()
    assert [p.name for p in copy.path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_final_values_are_named_so_that_wandb_can_sort_by_them(run: RunDirectory, result: SceneResult) -> None:
    values = final_values(run)
    assert all(name.isidentifier() and name.isascii() for name in values)
    assert values["PQ"] == values["scannet_paper_1_PQ"] == result.metrics["PQ"]
    assert values["panoptic_strict_1_mIoU"] == 100
    assert values["gaussians"] == 8
    last = last_logged(run)
    assert last["test/psnr"] == pytest.approx(values["PSNR"], rel=1e-5)
    assert last["panoptic-strict@1/mIoU"] == 100


def test_a_run_without_scores_has_no_final_values(tmp_path: Path) -> None:
    assert final_values(RunDirectory(tmp_path)) == {}
    assert last_logged(RunDirectory(tmp_path)) == {}


@pytest.mark.slow
def test_confusion_counts_every_pixel_of_known_truth(result: SceneResult) -> None:
    rng = np.random.default_rng(0)
    table = np.stack([rng.integers(0, n, 50) for n in (3, 3, 4, 3, 4, 100)], axis=1)
    result.counts = StoredCounts.pack(PairCounts.from_rows(table))
    names, matrix = confusion(result)
    assert names == ["wall", "chair", "void"]
    expected = np.zeros((3, 3), dtype=int)
    for _, true_class, _, pred_class, _, pixels in table:
        if true_class > 0:
            expected[true_class - 1, pred_class - 1] += pixels  # class 0 is the last column
    assert np.array_equal(matrix, expected)


@pytest.mark.slow
def test_undefined_scores_are_empty_cells_and_the_worst_instance_comes_first(result: SceneResult) -> None:
    result.per_class[0].PQ = float("nan")
    columns, rows = class_table(result)
    assert rows[0][columns.index("PQ")] is None
    whole = result.instances[0]
    half = whole.model_copy(update={"true_id": 9, "coverage": 50.0, "verdict": "split"})
    result.instances = [whole, half]
    assert [row[0] for row in instance_table(result)[1]] == [9, 7]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")


def _manifest(**keys: Any) -> RunManifest:
    names = {"dataset": "d", "scene": "s", "method": "m", "seed": 0, "tracked": {}, "hash": "0123456789"}
    return RunManifest.model_validate({**names, **keys})


def test_wandb_is_left_alone_unless_asked_for(tmp_path: Path) -> None:
    assert wandb_logger(WandbOptions(), _manifest(), RunDirectory(tmp_path), dict) is None


def test_a_run_is_known_to_wandb_by_its_scene_method_seed_and_hash(tmp_path: Path) -> None:
    logger: Any = wandb_logger(WandbOptions(enable=True), _manifest(), RunDirectory(tmp_path), dict)
    assert logger._wandb_init["id"] == logger._wandb_init["name"] == "s-m-s0-01234567"
    assert (logger._wandb_init["mode"], logger._wandb_init["project"]) == ("offline", "panbench")
    long = _manifest(method="a b/c" + "x" * 100)
    logger = wandb_logger(WandbOptions(enable=True, offline=False), long, RunDirectory(tmp_path), dict)
    assert logger._wandb_init["mode"] == "online"
    identifier = logger._wandb_init["id"]
    assert len(identifier) == 64
    assert identifier.endswith("-s0-01234567")
    assert not set("/\\#?%: ") & set(identifier)


@pytest.mark.usefixtures("agent")
def test_under_an_agent_a_run_is_logged_as_the_agent_says(tmp_path: Path) -> None:
    logger: Any = wandb_logger(WandbOptions(), _manifest(), RunDirectory(tmp_path), dict)
    assert logger is not None
    assert logger._wandb_init["id"] is None
    assert not {"mode", "entity"} & logger._wandb_init.keys()


def test_tensorboard_that_is_not_installed_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(**keys: object) -> None:
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr(loggers, "TensorBoardLogger", absent)
    with pytest.raises(UserError, match=r"run\.tensorboard needs TensorBoard: pip install 'panbench\[tensorboard\]'"):
        tensorboard_logger(RunDirectory(tmp_path))


@pytest.fixture
def finished(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run without its logs, whose chair was not found and therefore drawn."""
    copy = RunDirectory(tmp_path / "run")
    copy.pictures.mkdir(parents=True)
    copy.result.write_bytes(run.result.read_bytes())
    crops = copy.pictures / "instances"
    crops.mkdir()
    Image.new("RGB", (4, 4), "red").save(crops / "7.error.png")
    index = {"instances": [{"true_id": 7, "class_name": "chair", "crops": {"error": "7.error.png"}}]}
    (crops / "index.json").write_text(json.dumps(index))
    return copy


@pytest.mark.slow
def test_instances_that_were_not_found_are_shown_in_their_table(finished: RunDirectory) -> None:
    logger = wandb_logger(WandbOptions(enable=True), _manifest(), finished, dict)
    assert logger is not None
    log_finished([logger], finished, _manifest(steps=5))
    _, records, _ = _inspected(finished.path)
    contents = [c for r in records if r["type"] == "artifact" for c in r["artifact"]["manifest"]["contents"]]
    [picture] = [c for c in contents if c["path"].endswith(".png")]
    assert Image.open(picture["local_path"]).getpixel((0, 0)) == (255, 0, 0)
