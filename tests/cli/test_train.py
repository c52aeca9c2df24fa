"""``panbench fit`` and its companions: composition of configs, run directories, resuming, finishing."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

FIT = ("fit", "--config", "main.yaml")
QUICK = (*FIT, "--run.finish", "false")


def _only_run(folder: Path, method: str = "*") -> Path:
    runs = [p.parent for p in folder.glob(f"runs/tiny/scene0000_00/{method}/*/manifest.json")]
    assert len(runs) == 1, runs
    return runs[0]


def _checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def _training_state(run: Path) -> list[torch.Tensor]:
    """Parameters and Adam's moments and step counts."""
    checkpoint = _checkpoint(run)
    state = [v for per in checkpoint["optimizer_states"][0]["state"].values() for v in per.values()]
    return [*checkpoint["state_dict"].values(), *state, torch.tensor(checkpoint["global_step"])]


def _equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_main_job_leaves_scores_a_table_and_pictures(configs: Path, panbench: Callable) -> None:
    answer = panbench(*FIT)
    assert answer.status == 0, answer.err
    run = _only_run(configs, "tinymethod-tiny")
    for name in (
        "config.yaml",
        "metrics.csv",
        "result.json",
        "table.md",
        "diagnosis.md",
        "predictions/manifest.json",
        "pictures/contact_sheet.png",
        "checkpoints/last.ckpt",
    ):
        assert (run / name).is_file(), name
    result = json.loads((run / "result.json").read_text())
    assert result["synthetic"] is True
    # The tiny method predicts the truth.
    assert result["metrics"]["PQ"] == 100.0
    assert result["metrics"]["PSNR"] > 60
    assert result["cost"]["gaussians"] == 8
    for word in ("scannet-paper@1", "panoptic-strict@1", "tinymethod-tiny", "raw-masks", "voxel-vote", "mWCov"):
        assert word in answer.out
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps"], manifest["backend"]) == ("finished", 20, "")


def test_a_finished_run_shows_its_table_again_without_training(configs: Path, panbench: Callable) -> None:
    first = panbench(*FIT)
    run = _only_run(configs)
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    again = panbench(*FIT)
    assert again.status == 0
    assert again.out == first.out
    assert "is finished; --fresh starts it over" in again.err
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_fresh_starts_over_and_leaves_other_files(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    run = _only_run(configs)
    (run / "notes.txt").write_text("mine")
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    answer = panbench(*QUICK, "--fresh")
    assert answer.status == 0
    assert "resuming" not in answer.err
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns > before
    assert (run / "notes.txt").read_text() == "mine"


def test_twelve_steps_and_eight_resumed_equal_twenty_bit_for_bit(
    configs: Path, panbench: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    panbench(*QUICK, "--run.root", "straight")
    monkeypatch.setenv("TINY_INTERRUPT_AT", "12")
    stopped = panbench(*QUICK)
    assert stopped.status == 130
    assert "stopped: at step 12; the same command continues from there" in stopped.err
    run = _only_run(configs)
    assert _checkpoint(run)["global_step"] == 12
    resumed = panbench(*QUICK)
    assert resumed.status == 0
    assert "resuming from" in resumed.err
    straight = next((configs / "straight").glob("tiny/*/*/*"))
    assert straight.name == run.name
    assert _equal(_training_state(straight), _training_state(run))
    assert (straight / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_command_to_the_same_end(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK, "--run.root", "straight")
    command = [sys.executable, "-m", "panbench.cli.main", *QUICK, "--checkpoint.every_n_steps", "4"]
    paths = os.pathsep.join(p for p in sys.path if p)
    killed = subprocess.run(command, env=os.environ | {"TINY_KILL_AT": "14", "PYTHONPATH": paths}, capture_output=True)
    assert killed.returncode == -9
    run = _only_run(configs)
    assert _checkpoint(run)["global_step"] == 12
    # As if the kill had come in the middle of writing the next checkpoint.
    (run / "checkpoints" / "last.ckpt.part").write_bytes(b"half")
    resumed = panbench(*QUICK, "--checkpoint.every_n_steps", "4")
    assert resumed.status == 0
    assert "writing a checkpoint was cut off; going on from the one before it" in resumed.err
    assert not (run / "checkpoints" / "last.ckpt.part").exists()
    assert _equal(_training_state(next((configs / "straight").glob("tiny/*/*/*"))), _training_state(run))
    steps = [int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open())]
    assert steps == [3, 7, 11, 15, 19]


def test_a_run_that_was_killed_while_scoring_is_scored_without_training(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    run = _only_run(configs)
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    answer = panbench(*FIT)
    assert answer.status == 0
    assert (run / "result.json").is_file()
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_settings_that_decide_nothing_keep_the_run(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    answer = panbench(*QUICK, "--data.root=elsewhere", "--trainer.log_every_n_steps=2", "--progress.per_second=1")
    assert answer.status == 0
    assert _only_run(configs)


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("--model.lr=0.2", "model.init_args.lr: 0.1 -> 0.2"),
        ("--data.gain=2", "data.gain: 1.0 -> 2.0"),
        ("--trainer.max_steps=8", "trainer.max_steps: 20 -> 8"),
        ("--model.head.width=5", "model.init_args.head.init_args.width: 3 -> 5"),
    ],
)
def test_a_setting_that_decides_the_result_makes_a_new_run_and_says_what_differs(
    configs: Path, panbench: Callable, option: str, difference: str
) -> None:
    panbench(*QUICK)
    answer = panbench(*QUICK, option)
    assert answer.status == 0
    assert f"differs in {difference}" in answer.err
    assert len(list(configs.glob("runs/tiny/scene0000_00/*/*"))) == 2


def test_another_seed_is_another_run(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    panbench(*QUICK, "--seed_everything=4")
    names = sorted(p.name[:3] for p in configs.glob("runs/tiny/scene0000_00/*/*"))
    assert names == ["s3-", "s4-"]


def test_heads_are_swapped_by_file_and_overridden_by_key(configs: Path, panbench: Callable) -> None:
    wide = "class_path: tiny_method.WideHead\ninit_args: {depth: 7, num_queries: 9, width: 2}\n"
    (configs / "head" / "wide.yaml").write_text(wide)
    answer = panbench(*QUICK, "--model.head", "head/wide.yaml", "--model.head.num_queries", "11", "--model.lr=0.3")
    assert answer.status == 0, answer.err
    run = _only_run(configs, "tinymethod-wide")
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert model["lr"] == 0.3
    assert model["head"]["class_path"] == "tiny_method.WideHead"
    assert model["head"]["init_args"] == {"depth": 7, "num_queries": 11, "width": 2}


def test_nested_files_are_found_from_another_folder(
    configs: Path, panbench: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    answer = panbench("fit", "--config", str(configs / "main.yaml"), "--run.finish=false")
    assert answer.status == 0, answer.err
    assert _only_run(elsewhere)


def test_a_folder_stands_for_its_run(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    run = _only_run(configs)
    predicted = panbench("predict", str(run))
    assert predicted.status == 0, predicted.err
    assert predicted.out.strip().endswith("predictions")
    assert not (run / "result.json").exists()
    tested = panbench("test", str(run))
    assert tested.status == 0, tested.err
    assert "voxel-vote" in tested.out
    assert panbench("validate", str(run), "--trainer.limit_val_batches=1.0").status == 0


def test_nothing_to_test_is_one_line(configs: Path, panbench: Callable) -> None:
    answer = panbench("test", "--config", "main.yaml")
    assert answer.status == 2
    assert "has no checkpoint: run panbench fit with the same options first" in answer.err


def test_a_folder_without_a_run_is_one_line(configs: Path, panbench: Callable) -> None:
    assert "head is not a run directory" in panbench("test", "head").err


def test_a_damaged_checkpoint_is_one_line_that_names_it(
    configs: Path, panbench: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_INTERRUPT_AT", "12")
    panbench(*QUICK)
    path = _only_run(configs) / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    answer = panbench(*QUICK)
    assert answer.status == 2
    assert "last.ckpt cannot be read as a checkpoint" in answer.err
    assert "--fresh starts the run over" in answer.err


def test_a_run_belongs_to_one_process(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    with (_only_run(configs) / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answer = panbench(*QUICK)
    assert answer.status == 2
    assert "is already working in" in answer.err
    assert panbench(*QUICK).status == 0


def test_an_output_folder_that_cannot_be_written_is_found_before_training(configs: Path, panbench: Callable) -> None:
    (configs / "taken").write_text("a file")
    answer = panbench(*QUICK, "--run.root", "taken")
    assert answer.status == 2
    assert answer.err.splitlines()[-1].startswith("error: cannot write to taken/tiny/scene0000_00")
    assert "choose another folder with --run.root" in answer.err


def test_a_read_only_output_folder_is_found_before_training(configs: Path, panbench: Callable) -> None:
    locked = configs / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:  # mode bits do not stop root, but sysfs makes no folders for anyone
        locked = Path("/sys")
    answer = panbench(*QUICK, "--run.root", str(locked))
    assert answer.status == 2
    assert answer.err.splitlines()[-1].startswith(f"error: cannot write to {locked}/tiny")


@pytest.mark.slow
def test_wandb_logs_offline_into_the_run_directory(configs: Path, panbench: Callable) -> None:
    import wandb

    answer = panbench(*QUICK, "--run.wandb.enable=true")
    wandb.finish()  # as at the end of the process
    assert answer.status == 0, answer.err
    assert list(_only_run(configs).glob("wandb/offline-run-*/*.wandb"))


def test_wandb_is_not_imported_unless_it_is_asked_for(configs: Path) -> None:
    code = (
        "import sys; from panbench.cli.main import run; status = run(sys.argv[1:]);"
        "sys.exit(status or ('wandb' in sys.modules) * 7)"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code, *QUICK], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_run_and_the_rows_beside_it_have_pictures_of_the_same_views(configs: Path, panbench: Callable) -> None:
    assert panbench(*FIT).status == 0
    run = _only_run(configs)
    indices = {}
    for name, folder in {
        "run": run / "pictures",
        "raw-masks": run / "anchors" / "raw-masks" / "pictures",
        "voxel-vote": run / "anchors" / "voxel-vote" / "pictures",
    }.items():
        indices[name] = json.loads((folder / "views" / "index.json").read_text())
        assert all((folder / "views" / f).is_file() for v in indices[name]["views"] for f in v["kinds"].values())
        # The tiny masks are the truth, and so is the tiny method: there is nothing to show but that.
        assert json.loads((folder / "instances" / "index.json").read_text()) == {"instances": []}
    assert {tuple(view["name"] for view in index["views"]) for index in indices.values()} == {("30",)}
    assert indices["run"]["size"] == [18, 24]
    assert "render" in indices["run"]["views"][0]["kinds"]
    assert "render" not in indices["raw-masks"]["views"][0]["kinds"]
    # Written again by the verb that renders again.
    (run / "pictures" / "views" / "index.json").unlink()
    assert panbench("test", str(run)).status == 0
    assert (run / "pictures" / "views" / "index.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_disk_that_is_full_when_pictures_are_drawn_leaves_the_scores(configs: Path, panbench: Callable) -> None:
    panbench(*QUICK)
    run = _only_run(configs)
    (run / "pictures").mkdir()
    (run / "pictures" / "contact_sheet.png.part").symlink_to("/dev/full")
    answer = panbench(*FIT)
    assert answer.status == 0, answer.err
    assert "warning: pictures are missing (No space left on device): panbench test runs/tiny" in answer.err
    assert json.loads((run / "result.json").read_text())["metrics"]["PQ"] == 100.0
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
    assert panbench("test", str(run)).status == 0
    assert (run / "pictures" / "contact_sheet.png").is_file()


def test_a_training_free_row_is_told_apart_by_how_the_data_is_given_to_it(configs: Path, panbench: Callable) -> None:
    hashes = {}
    for name, option in {"plain": "--data.root=here", "method": "--model.lr=0.2", "data": "--data.gain=2"}.items():
        assert panbench(*FIT, option, "--run.root", name).status == 0
        run = next((configs / name).glob("tiny/*/*/*"))
        files = ("result.json", "results/voxel-vote.scannet-paper@1.json")
        hashes[name] = [json.loads((run / file).read_text())["origin"]["settings_hash"] for file in files]
    assert all(len(h) == 64 for pair in hashes.values() for h in pair)
    assert len({own for own, _ in hashes.values()}) == 3
    assert hashes["plain"][1] == hashes["method"][1] != hashes["data"][1]
