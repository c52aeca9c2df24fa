"""Grounded-SAM from folders on disk to a mask set that trains, with tiny random models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_grounded_sam import save_models

from panbench.cli.main import run as main
from panbench.data.scannet_reader import open_scene
from panbench.masks.grounded_sam import GroundedSam, GroundedSamSettings, _check_folder
from panbench.masks.mask_set import MaskSet

pytest.importorskip("transformers", reason="the extra panbench[masks] is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def command(room: Path, models: tuple[Path, Path], *more: str) -> int:
    gdino, sam = map(str, models)
    return main(["masks", "grounded-sam", str(room), "--gdino", gdino, "--sam", sam, "--quiet", *more])


def test_masks_of_a_scene_and_going_on(
    room: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scene = open_scene(room, masks=None)
    assert command(room, models, "--frames", "test", "--batch", "2") == 0
    found = MaskSet.open(room / "masks_gsam")
    assert found.stems() == [scene.source.name(i) for i in scene.test]
    before = {stem: found.read(stem) for stem in found.stems()}
    things = scene.labels.is_thing()
    for masks in before.values():
        assert masks.semantic.shape == (120, 160)
        assert masks.semantic.max() > 0, "random weights find something everywhere"
        assert not masks.instance[~things[masks.semantic]].any()
        assert masks.score is not None
        assert (masks.score[masks.semantic > 0] >= round(255 * 0.2)).all()

    # The rest; what was there stays as it is.
    times = {p: p.stat().st_mtime_ns for p in (room / "masks_gsam").rglob("*.png")}
    assert command(room, models, "--batch", "3") == 0
    assert "frames have their masks already" in capsys.readouterr().err
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    opened = open_scene(room, masks="gsam")
    assert all(frame.masks is not None for frame in opened.frames(opened.train))

    manifest = MaskSet.open(room / "masks_gsam").manifest
    assert manifest is not None
    assert not manifest.synthetic
    assert len(manifest.frames) == len(scene.train) + len(scene.test)
    assert len(manifest.settings["models"]["gdino"]["sha256"]) == 64
    assert "coffee table." in manifest.settings["captions"][0]

    assert command(room, models, "--box-threshold", "0.3") != 0
    assert "settings.box_threshold 0.2, not 0.3" in capsys.readouterr().err


def test_a_batch_is_its_pictures_one_by_one(room: Path, models: tuple[Path, Path]) -> None:
    scene = open_scene(room, masks=None)
    model = GroundedSam(str(models[0]), str(models[1]), scene.labels, GroundedSamSettings(nms=0.5), "cpu")
    images = [scene.source.load(index).color.numpy() for index in scene.test[:2]]
    together = model.segment(images)
    for image, masks in zip(images, together, strict=True):
        (alone,) = model.segment([image])
        # Products of other sizes round differently: a pixel may change hands.
        assert (alone.semantic != masks.semantic).mean() < 0.01


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_folder_that_lacks_something_is_told(models: tuple[Path, Path], tmp_path: Path, gone: str) -> None:
    from panbench.errors import UserError

    shutil.copytree(models[0], tmp_path / "gdino")
    (tmp_path / "gdino" / gone).unlink()
    with pytest.raises(UserError, match=gone.split(".")[0]):
        _check_folder(str(tmp_path / "gdino"), "--gdino", ("tokenizer.json", "vocab.txt"))


def test_a_folder_that_is_not_there_is_told(
    room: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(room, (Path("/no/such/model"), models[1])) != 0
    assert "no such folder" in capsys.readouterr().err
    assert not (room / "masks_elsewhere").exists()


def test_damaged_weights_are_told(
    room: Path, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models[1], tmp_path / "sam")
    weights = tmp_path / "sam" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: 1 << 12])
    assert command(room, (models[0], tmp_path / "sam"), "--out", "other") != 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error:") and "cannot be loaded" in line for line in lines)


@pytest.mark.parametrize("option", ["--box-threshold", "--nms"])
def test_thresholds_are_checked(
    room: Path, models: tuple[Path, Path], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(room, models, option, "1.5") != 0
    assert "must lie between 0 and 1" in capsys.readouterr().err


def test_random_numbers_are_not_touched(room: Path, models: tuple[Path, Path]) -> None:
    scene = open_scene(room, masks=None)
    model = GroundedSam(str(models[0]), str(models[1]), scene.labels, GroundedSamSettings(), "cpu")
    image = scene.source.load(0).color.numpy()
    first, second = model.segment([image])[0], model.segment([image])[0]
    np.testing.assert_array_equal(first.semantic, second.semantic)
    np.testing.assert_array_equal(first.instance, second.instance)
