"""Mask sets out of true labels: reproducible, resumable, marked as what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from panbench.cli.main import run as main
from panbench.data.mask_noise import PRESETS, MaskNoise, MaskNoiser
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.masks.corrupt import read_noise
from panbench.masks.mask_set import FrameMasks, MaskSet, MaskWriter
from panbench.scene import LabelClass, LabelSpace


def corrupt(room: Path, out: str, *more: str) -> int:
    return main(["masks", "corrupt", str(room), "--out", out, "--quiet", *more])


def manifest_of(room: Path, name: str) -> dict[str, object]:
    return json.loads((room / f"masks_{name}" / "manifest.json").read_text())


def test_clean_masks_are_the_truth_and_train(room: Path) -> None:
    assert corrupt(room, "exact", "--level", "clean") == 0
    scene = open_scene(room, masks="exact")
    assert len(MaskSet.open(room / "masks_exact").stems()) == len(scene.train) + len(scene.test)
    for frame in scene.frames([*scene.train, *scene.test]):
        assert frame.masks is not None
        assert frame.truth is not None
        np.testing.assert_array_equal(frame.masks.semantic, frame.truth.semantic)
        pairs = {
            *zip(frame.masks.instance.reshape(-1).tolist(), frame.truth.instance.reshape(-1).tolist(), strict=True)
        }
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_an_interrupted_run_ends_with_the_same_masks(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert corrupt(room, "whole", "--level", "heavy", "--seed", "5") == 0
    write, calls = MaskWriter.write, [0]

    def interrupted(self: MaskWriter, stem: str, masks: FrameMasks) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        write(self, stem, masks)

    with monkeypatch.context() as patch:
        patch.setattr(MaskWriter, "write", interrupted)
        assert corrupt(room, "parts", "--level", "heavy", "--seed", "5") != 0
    with pytest.raises(UserError, match="unfinished"):
        MaskSet.open(room / "masks_parts")
    with pytest.raises(UserError, match="unfinished"):
        open_scene(room, masks="parts")
    assert corrupt(room, "parts", "--level", "heavy", "--seed", "5") == 0
    assert manifest_of(room, "parts") == manifest_of(room, "whole")
    assert corrupt(room, "other", "--level", "heavy", "--seed", "6") == 0
    assert manifest_of(room, "other")["sha256"] != manifest_of(room, "whole")["sha256"]


def test_the_manifest_says_how_and_other_settings_are_refused(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert corrupt(room, "lighter", "--level", "light", "--seed", "2") == 0
    data = manifest_of(room, "lighter")
    assert (data["generator"], data["synthetic"], data["labels"]) == ("panbench masks corrupt", True, "shared")
    assert data["settings"] == json.loads(
        json.dumps({**vars(PRESETS["light"]), "level": "light", "seed": 2, "frames": 9})
    )
    assert corrupt(room, "lighter", "--level", "light", "--seed", "3") != 0
    assert "settings.seed 2, not 3" in capsys.readouterr().err
    assert corrupt(room, "a/b", "--level", "light") != 0
    assert "name the mask set with letters" in capsys.readouterr().err


def test_rates_of_a_file(room: Path, tmp_path: Path) -> None:
    file = tmp_path / "noise.json"
    file.write_text(json.dumps({"format": "panbench-mask-noise", "version": 1, "rates": {"stuff_absent": 1.0}}))
    assert corrupt(room, "bare", "--noise", str(file)) == 0
    scene = open_scene(room, masks="bare")
    things = scene.labels.is_thing()
    for frame in scene.frames(scene.train):
        assert frame.masks is not None
        assert things[frame.masks.semantic[frame.masks.semantic > 0]].all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"rates": {"missed": [0.1, 0.2]}}', "rates.missed"),
        ('{"rates": {"merged": 1.5}}', "merged is 1.5; it must lie in 0 ... 1"),
        ('{"rates": {"boundary": NaN}}', "boundary is nan"),
        ('{"rates": {"boundary": 1e9}}', "boundary"),
        ('{"rates": {"thing_score": [0, 1]}}', "thing_score is 0"),
        ('{"rates": {"boundry": 1}}', "rates.boundry"),
        ('{"rates": {}, "version": 2}', "version"),
        ('{"rates": {"merged": "\\u0007"}}', "rates.merged"),
        ("[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_damaged_file_is_told_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "noise.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"is no noise file") as error:
        read_noise(file)
    assert told in str(error.value)
    assert str(error.value).isprintable()


def test_a_missing_and_a_huge_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_noise(tmp_path / "none.json")
    (tmp_path / "huge.json").write_bytes(b" " * (1 << 21))
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_noise(tmp_path / "huge.json")


def test_large_ids_have_a_fate_of_their_own() -> None:
    labels = LabelSpace("wide", tuple(LabelClass(c, f"class {c}", thing=True) for c in (1, 300)))
    semantic, instance = np.full((40, 60), 300), np.full((40, 60), 70_000)
    instance[:, 30:] = 90_000
    noise = MaskNoise(missed=(0.5, 0.5, 0.5), persistence=0.0)
    one, two = MaskNoiser(noise, labels, 250, 1), MaskNoiser(noise, labels, 250, 1)
    shown = np.array([[bool(one.frame(t, semantic, instance).semantic[20, c]) for c in (5, 55)] for t in range(250)])
    assert shown.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.1)
    assert np.corrcoef(shown.T)[0, 1] == pytest.approx(0, abs=0.25)
    last = two.frame(249, semantic, instance)
    assert [bool(last.semantic[20, c]) for c in (5, 55)] == shown[249].tolist()
    assert set(np.unique(last.semantic)) <= {0, 300}


def test_a_scene_without_truth_is_told(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / room.name
    shutil.copytree(
        room,
        bare,
        ignore=shutil.ignore_patterns("label-filt", "instance-filt", "*.ply", "*.segs.json", "*.aggregation.json"),
    )
    assert corrupt(bare, "x", "--level", "light") != 0
    assert "has no ground truth" in capsys.readouterr().err
    assert not (bare / "masks_x").exists()
