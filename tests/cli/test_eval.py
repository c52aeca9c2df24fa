from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panbench.data.scannet_reader import open_scene
from panbench.protocol import PredictionWriter, SceneResult
from panbench.scene import Scene

Panbench = Callable[..., Any]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Six frames of 16 x 12 in ScanNet's layout: a wall and a chair that moves; frames 0 and 5 are test."""
    folder = tmp_path / "scene0000_00"
    for part in ("color", "pose", "intrinsic", "label-filt", "instance-filt"):
        (folder / part).mkdir(parents=True)
    matrix = np.eye(4)
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", np.diag([14.0, 14.0, 1, 1]) + _centre(7.5, 5.5))
    for i in range(6):
        label, instance = np.full((12, 16), 1, np.uint16), np.zeros((12, 16), np.uint8)
        label[3:9, i : i + 6], instance[3:9, i : i + 6] = 2, 1
        Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(folder / "color" / f"{i}.jpg")
        Image.fromarray(label).save(folder / "label-filt" / f"{i}.png")
        Image.fromarray(instance).save(folder / "instance-filt" / f"{i}.png")
        np.savetxt(folder / "pose" / f"{i}.txt", matrix)
    classes = [{"id": 1, "name": "wall", "thing": False}, {"id": 2, "name": "chair", "thing": True}]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "gt_map": {"1": 1, "2": 2}}))
    return open_scene(folder, masks=None)


def _centre(cx: float, cy: float) -> np.ndarray:
    out = np.zeros((4, 4))
    out[0, 2], out[1, 2] = cx, cy
    return out


@pytest.fixture
def run_folder(tmp_path: Path, scene: Scene) -> Path:
    """A run directory whose predictions are the truth."""
    with PredictionWriter.for_scene(tmp_path / "run" / "predictions", scene, method="oracle", seed=1) as writer:
        for frame in scene.frames(scene.test):
            assert frame.truth is not None
            writer.write(frame.name, frame.truth)
    return tmp_path / "run"


def truth_of(tmp_path: Path) -> str:
    return str(tmp_path / "scene0000_00")


@pytest.mark.parametrize("inside", ["", "predictions"])
def test_a_folder_is_scored_against_the_scene(
    panbench: Panbench, run_folder: Path, tmp_path: Path, inside: str
) -> None:
    answer = panbench("eval", str(run_folder / inside), "--truth", truth_of(tmp_path))
    assert answer.status == 0, answer.err
    assert "oracle on scene0000_00, seed 1: 2 frames at 16x12, labels shared" in answer.out
    assert "scannet-paper@1" in answer.out
    assert "mIoU pooled | mIoU per frame | PQ paper | PQ strict |  mCov | mWCov" in answer.out
    assert "true instances: 1 found" in answer.out


def test_json_is_the_whole_result(panbench: Panbench, run_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "out" / "result.json"
    answer = panbench(
        "eval", str(run_folder), "--truth", truth_of(tmp_path), "--json",
        "--protocol", "panoptic-strict@1", "--save", str(saved),
    )  # fmt: skip
    result = SceneResult.model_validate_json(answer.out)
    assert result.protocol == "panoptic-strict@1"
    assert result.metrics["PQ"] == pytest.approx(100)
    assert result == SceneResult.load(saved)


def test_a_scored_run_needs_no_truth_for_another_protocol(panbench: Panbench, run_folder: Path, tmp_path: Path) -> None:
    panbench("eval", str(run_folder), "--truth", truth_of(tmp_path), "--save", str(run_folder / "result.json"))
    (run_folder / "predictions" / "manifest.json").unlink()
    answer = panbench("eval", str(run_folder), "--protocol", "panoptic-strict@1")
    assert answer.status == 0, answer.err
    assert "panoptic-strict@1" in answer.out


def test_counting_again_keeps_costs_and_image_quality(panbench: Panbench, run_folder: Path, tmp_path: Path) -> None:
    panbench("eval", str(run_folder), "--truth", truth_of(tmp_path), "--save", str(run_folder / "result.json"))
    old = SceneResult.load(run_folder / "result.json")
    old.cost["fit_seconds"], old.metrics["PSNR"] = 12.0, 20.0
    old.save(run_folder / "result.json")
    again = panbench("eval", str(run_folder), "--truth", truth_of(tmp_path), "--json")
    assert SceneResult.model_validate_json(again.out) == old


def test_somebody_elses_pngs_are_scored(panbench: Panbench, run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "predictions" / "manifest.json").unlink()
    answer = panbench("eval", str(run_folder / "predictions"), "--truth", truth_of(tmp_path))
    assert answer.status == 0, answer.err
    assert "predictions on scene0000_00: 2 frames at 16x12, labels own" in answer.out


def lose_frame(run: Path) -> None:
    manifest = json.loads((run / "predictions" / "manifest.json").read_text())
    manifest["frames"].remove("5")
    (run / "predictions" / "manifest.json").write_text(json.dumps(manifest))


def other_scene(run: Path) -> None:
    path = run / "predictions" / "manifest.json"
    path.write_text(path.read_text().replace('"scene": "scene0000_00"', '"scene": "scene0001_00"'))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda run: None, [], "was never scored: give the scene folder with the true labels as --truth SCENE"),
        (lambda run: None, ["--protocol", "scannet", "--truth", "SCENE"], "unknown protocol 'scannet'"),
        (lambda run: None, ["--truth", "nowhere"], "nowhere: no such folder"),
        (lose_frame, ["--truth", "SCENE"], "no prediction for frame 5: predict all test frames"),
        (other_scene, ["--truth", "SCENE"], "holds predictions of scene0001_00"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    panbench: Panbench,
    run_folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    options: list[str],
    message: str,
) -> None:
    damage(run_folder)
    answer = panbench("eval", str(run_folder), *(truth_of(tmp_path) if o == "SCENE" else o for o in options))
    assert answer.status == 2
    *progress, error = answer.err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert len(progress) <= 1  # what was read
    assert answer.out == ""


def test_a_folder_that_does_not_exist_is_told(panbench: Panbench, tmp_path: Path) -> None:
    answer = panbench("eval", str(tmp_path / "nowhere"))
    assert answer.status == 2
    assert "no such folder: give a predictions folder or a run directory" in answer.err
