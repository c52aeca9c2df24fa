"""Every command of ``panbench masks`` on a scene of every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_grounded_sam import save_models

from panbench.cli.main import run as main
from panbench.data.detect import find_scene, open_found
from panbench.data.scannet_raw_export import write_scannet_raw
from panbench.data.scannetpp_export import write_scannetpp
from panbench.masks.corrupt import read_noise
from panbench.masks.mask_set import MaskSet


@pytest.fixture(scope="module", params=["scannet-raw", "scannetpp"])
def scene(request: pytest.FixtureRequest, room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write = {"scannet-raw": write_scannet_raw, "scannetpp": write_scannetpp}[request.param]
    folder = write(room, tmp_path_factory.mktemp(request.param))
    assert find_scene(folder).layout == request.param
    return folder


def run(verb: str, *options: object) -> int:
    return main(["masks", verb, *map(str, options), "--quiet"])


def test_corrupt_score_fit_import_and_associate(scene: Path, tmp_path: Path) -> None:
    assert run("corrupt", scene, "--out", "exact", "--level", "clean") == 0
    assert run("corrupt", scene, "--out", "rough", "--level", "heavy", "--seed", "1") == 0
    opened = open_found(find_scene(scene), masks="exact")
    names = {opened.source.name(i) for i in (*opened.train, *opened.test)}
    assert set(MaskSet.open(scene / "masks_exact").stems()) == names
    for frame in opened.frames(opened.train[:2]):
        assert frame.masks is not None
        assert frame.truth is not None
        np.testing.assert_array_equal(frame.masks.semantic, frame.truth.semantic)

    metrics: dict[str, dict[str, float]] = {}
    for name in ("exact", "rough"):
        assert run("score", scene, "--masks", name, "--json", tmp_path / "score.json") == 0
        metrics[name] = json.loads((tmp_path / "score.json").read_text())["metrics"]
    assert metrics["exact"]["PQ"] == pytest.approx(100)
    assert metrics["rough"]["PQ"] < 80

    assert run("fit-noise", scene, "--masks", "exact", "--out", tmp_path / "noise.json") == 0
    assert read_noise(tmp_path / "noise.json").boundary == 0

    shutil.copytree(scene / "masks_rough", tmp_path / "elsewhere")
    assert run("import", "panopticrecon", tmp_path / "elsewhere", "--scene", scene, "--out", "moved") == 0
    for stem in names:
        moved, rough = (MaskSet.open(scene / f"masks_{name}").read(stem) for name in ("moved", "rough"))
        np.testing.assert_array_equal(moved.semantic, rough.semantic)
        np.testing.assert_array_equal(moved.instance, rough.instance)

    assert run("associate", scene, "--masks", "exact", "--out", "tracked") == 0
    assert run("score", scene, "--masks", "tracked", "--json", tmp_path / "score.json") == 0
    tracked = json.loads((tmp_path / "score.json").read_text())["metrics"]
    assert tracked["consistency"] > 80 > 1.3 * metrics["exact"]["consistency"]


def test_grounded_sam(scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra panbench[masks] is not installed")
    gdino, sam = save_models(tmp_path)
    assert run("grounded-sam", scene, "--gdino", gdino, "--sam", sam, "--frames", "test") == 0
    opened = open_found(find_scene(scene))
    assert set(MaskSet.open(scene / "masks_gsam").stems()) == {opened.source.name(i) for i in opened.test}


def test_a_folder_of_one_scene_stands_for_it_and_of_several_does_not(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scene0000_00", "scene0001_00"):
        assert find_scene(room.parent).folder == room.resolve()
        shutil.copytree(room, tmp_path / name, ignore=shutil.ignore_patterns("gt", "*.ply"))
    assert run("score", tmp_path, "--masks", "clean") != 0
    assert "holds 2 scenes (scene0000_00, scene0001_00): give the folder of one of them" in capsys.readouterr().err
