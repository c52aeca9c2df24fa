"""Mask sets: written, interrupted, resumed, read back; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panbench.errors import UserError
from panbench.masks.mask_set import FrameMasks, MaskSet, MaskWriter, content_hash
from panbench.scene import LabelSpace

LABELS = LabelSpace.from_dict(
    {"classes": [{"id": 1, "name": "wall", "thing": False}, {"id": 2, "name": "chair", "thing": True}]}, "two"
)


def writer(folder: Path, **changed: Any) -> MaskWriter:
    settings = {"threshold": 0.2, "prompts": ["wall", "chair"], **changed}
    return MaskWriter(folder, generator="test", settings=settings, labels=LABELS)


def masks(seed: int) -> FrameMasks:
    rng = np.random.default_rng(seed)
    semantic = rng.integers(0, 3, (6, 8)).astype(np.uint8)
    instance = np.where(semantic == 2, rng.integers(0, 60000, (6, 8)), 0).astype(np.uint16)
    return FrameMasks(semantic, instance, rng.integers(0, 256, (6, 8)).astype(np.uint8))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with writer(tmp_path / "masks_a") as out:
        for stem in ("2", "10", "1"):
            out.write(stem, masks(int(stem)))
    found = MaskSet.open(tmp_path / "masks_a")
    assert found.stems() == ["1", "2", "10"]
    for stem in found.stems():
        read, wanted = found.read(stem), masks(int(stem))
        np.testing.assert_array_equal(read.semantic, wanted.semantic)
        np.testing.assert_array_equal(read.instance, wanted.instance)
        np.testing.assert_array_equal(read.score, wanted.score)
    assert found.manifest is not None
    assert found.manifest.settings["prompts"] == ["wall", "chair"]
    assert found.manifest.sha256 == content_hash(found.folder, ["1", "10", "2"])


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "masks_a"

    def interrupted() -> None:
        with writer(folder) as out:
            out.write("0", masks(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(UserError, match="unfinished"):
        MaskSet.open(folder)
    with writer(folder) as out:
        assert out.done() == {"0"}
        out.write("1", masks(1))
    assert MaskSet.open(folder).stems() == ["0", "1"]


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_do_not_mix_with_what_is_there(tmp_path: Path, finished: bool) -> None:
    folder = tmp_path / "masks_a"
    out = writer(folder)
    out.write("0", masks(0))
    if finished:
        out.close()
    with pytest.raises(UserError, match=r"settings\.threshold 0\.2, not 0\.3"):
        writer(folder, threshold=0.3)


def test_masks_of_unknown_origin_are_left_alone(tmp_path: Path) -> None:
    with writer(tmp_path / "masks_a") as out:
        out.write("0", masks(0))
    (tmp_path / "masks_a" / "manifest.json").unlink()
    assert MaskSet.open(tmp_path / "masks_a").manifest is None
    with pytest.raises(UserError, match="unknown origin"):
        writer(tmp_path / "masks_a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic": np.full((6, 8), 3)}, "class ids"),
        ({"instance": np.full((6, 8), 70000)}, "instance ids"),
        ({"instance": np.ones((6, 8), int), "semantic": np.ones((6, 8), int)}, "stuff"),
        ({"score": np.zeros((5, 8), np.uint8)}, "one size"),
    ],
)
def test_impossible_masks_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = masks(0)
    fields = {"semantic": good.semantic, "instance": good.instance, "score": good.score, **change}
    with pytest.raises(ValueError, match=message):
        writer(tmp_path / "masks_a").write("0", FrameMasks(**fields))
    assert writer(tmp_path / "masks_a").done() == set()


@pytest.mark.parametrize("text", ["", "[]", '{"format": "panbench-masks", "generator": 3}', '{"format": "other"}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    with writer(tmp_path / "masks_a") as out:
        out.write("0", masks(0))
    (tmp_path / "masks_a" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: is no manifest"):
        MaskSet.open(tmp_path / "masks_a")


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    with writer(tmp_path / "masks_a") as out:
        out.write("0", masks(0))
    data = json.loads((tmp_path / "masks_a" / "manifest.json").read_text())
    assert (data["format"], data["version"], data["labels"], data["frames"]) == ("panbench-masks", 1, "shared", ["0"])
    assert data["classes"]["classes"][1]["name"] == "chair"


def test_a_set_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masks were made"), writer(tmp_path / "masks_a"):
        pass
