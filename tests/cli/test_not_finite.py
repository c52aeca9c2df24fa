"""Values that are not finite, as the user of the command line meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from panbench.ops.backend import load_cpu

BOXES = """\
seed_everything: 3
trainer: trainer.yaml
model:
  class_path: LiGS
  init_args:
    head: {class_path: NoHead}
    voxel: 0.1
    flat_voxel: 0.1
data: {class_path: box_scene.BoxData}
"""
FIT = ("fit", "--config", "boxes.yaml", "--trainer.max_steps=4")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


@pytest.fixture
def boxes(configs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (configs / "boxes.yaml").write_text(BOXES)
    monkeypatch.setenv("PANBENCH_BACKEND", "cpu")
    return configs


@pytest.mark.usefixtures("boxes")
def test_a_loss_that_is_not_finite_is_one_line_and_status_two(panbench: Callable) -> None:
    answer = panbench(*FIT, "--model.colors_lr=1e38")
    assert answer.status == 2
    told = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert told[0].startswith("error: step 1, frame ")
    assert "the loss is not finite (photometric is " in told[0]
    assert "--fresh starts over" in told[0]


def test_spoilt_gaussians_of_a_checkpoint_are_in_the_result(boxes: Path, panbench: Callable) -> None:
    assert panbench(*FIT).status == 0
    (run,) = (path.parent for path in boxes.glob("runs/*/*/*/*/manifest.json"))
    assert json.loads((run / "result.json").read_text())["cost"]["gaussians_not_finite"] == 0
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["gaussians.scales"][:4, 1] = torch.nan
    torch.save(checkpoint, path)
    answer = panbench("test", str(run))
    assert answer.status == 0, answer.err
    assert "in the checkpoint, 4 of" in " ".join(answer.err.split())
    assert json.loads((run / "result.json").read_text())["cost"]["gaussians_not_finite"] == 4
