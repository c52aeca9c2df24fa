"""Masks of other programs: what comes in, what is refused, in which words."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from panbench.cli.main import run as main
from panbench.data.capture_export import write_panoptic_lifting
from panbench.data.images import read_packed_ids
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.masks.mask_set import FrameMasks, MaskSet


@pytest.fixture
def script(room: Path, tmp_path: Path) -> Path:
    """The room's masks as PanopticRecon's script writes them: two folders, no manifest, no scores."""
    folder = tmp_path / "GroundedSAM"
    for kind in ("semantic_image", "instance_image"):
        shutil.copytree(room / "masks_heavy" / kind, folder / kind)
    return folder


def run(room: Path, form: str, folder: Path, out: str, *more: str) -> int:
    return main(["masks", "import", form, str(folder), "--scene", str(room), "--out", out, "--quiet", *more])


def change(folder: Path, edit: Callable[[np.ndarray], np.ndarray], *kinds: str) -> None:
    for kind in kinds or ("semantic_image", "instance_image"):
        for path in (folder / kind).glob("*.png"):
            Image.fromarray(edit(np.asarray(Image.open(path)))).save(path)


def same_masks(a: FrameMasks, b: FrameMasks) -> None:
    np.testing.assert_array_equal(a.semantic, b.semantic)
    pairs = {*zip(a.instance.reshape(-1).tolist(), b.instance.reshape(-1).tolist(), strict=True)}
    assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})
    assert (a.instance > 0).tolist() == (b.instance > 0).tolist()


# ------------------------------------------------------------------------------------------- PanopticRecon's script


def test_folders_of_the_script(room: Path, script: Path) -> None:
    # A stuff mask that won a pixel does not clear the instance below it there.
    source = MaskSet.open(room / "masks_heavy")
    change(script, lambda image: np.where(image == 0, 99, image).astype(np.uint8), "instance_image")
    (script / "thing_semantic_label.json").write_text(json.dumps({"3.jpg": [1, 2, 3]}))
    assert run(room, "panopticrecon", script, "script") == 0
    made = MaskSet.open(room / "masks_script")
    scene = open_scene(room, masks="script")
    assert made.stems() == sorted((scene.source.name(i) for i in (*scene.train, *scene.test)), key=int)
    things = scene.labels.is_thing()
    for stem in made.stems():
        got, given = made.read(stem), source.read(stem)
        wanted = np.where(given.instance == 0, 99, given.instance)
        same_masks(got, FrameMasks(given.semantic, np.where(things[given.semantic], wanted, 0)))
        assert got.instance.dtype == np.uint16
        assert got.score is None
    assert made.manifest is not None
    assert (made.manifest.generator, made.manifest.labels) == ("panbench masks import", "shared")
    assert made.manifest.settings["source"] == "GroundedSAM"
    assert made.manifest.settings["source_generator"] == "PanopticRecon's Grounded-SAM script"
    assert not made.manifest.synthetic


def test_a_mask_set_of_another_place_keeps_what_its_manifest_says(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "masks_heavy", tmp_path / "masks_heavy")
    assert run(room, "panopticrecon", tmp_path / "masks_heavy", "copy", "--own") == 0
    made = MaskSet.open(room / "masks_copy")
    assert made.manifest is not None
    assert made.manifest.synthetic
    assert made.manifest.labels == "own"
    assert made.manifest.settings["source_generator"] == "panbench rooms"
    for stem in made.stems():
        np.testing.assert_array_equal(made.read(stem).score, MaskSet.open(tmp_path / "masks_heavy").read(stem).score)


def jpeg(folder: Path) -> None:
    for path in (folder / "semantic_image").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


def jpeg_called_png(folder: Path) -> None:
    for path in (folder / "instance_image").glob("*.png"):
        Image.open(path).save(path, "JPEG")


def many_listed(folder: Path) -> None:
    (folder / "thing_semantic_label.json").write_text(json.dumps({f"{k}.jpg": [1] * 200 for k in range(10)}))


def damaged_list(folder: Path) -> None:
    (folder / "thing_semantic_label.json").write_text('{"0.jpg": 3}')


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (jpeg, "is a JPEG (10 such files), which garbles class ids"),
        (jpeg_called_png, "is a JPEG, which garbles ids"),
        (lambda f: change(f, lambda i: np.where(i == 1, 130, i).astype(np.uint8), "instance_image"), "beyond 127 in 8"),
        (many_listed, "beyond 127 in 8 bits"),
        (damaged_list, "thing_semantic_label.json: is damaged"),
        (lambda f: change(f, lambda i: np.where(i == 1, 99, i).astype(np.uint8), "semantic_image"), "does not: 99"),
        (lambda f: change(f, lambda i: i[:, :100]), "cropped or stretched"),
        (lambda f: shutil.rmtree(f / "semantic_image"), "holds no PNG file"),
        (lambda f: shutil.rmtree(f / "instance_image"), "no such file"),
        (lambda f: [p.rename(p.with_stem(f"9{p.stem}")) for p in f.rglob("*.png")], "is one of scene9103_00"),
        (lambda f: [shutil.copy(p, p.with_stem(f"0{p.stem}")) for p in [*f.rglob("*.png")]], "same frame number"),
    ],
)  # fmt: skip
def test_what_is_refused(
    room: Path, script: Path, damage: Callable[[Path], Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(script)
    assert run(room, "panopticrecon", script, "refused") != 0
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("error:"))
    assert told in line
    assert not (room / "masks_refused").exists()


def test_scaled_masks_pass_and_stretched_ones_on_request(room: Path, script: Path) -> None:
    change(script, lambda image: image[::2, ::2])
    assert run(room, "panopticrecon", script, "half") == 0
    assert MaskSet.open(room / "masks_half").read("1").semantic.shape == (60, 80)
    change(script, lambda image: image[:, ::2])
    assert run(room, "panopticrecon", script, "narrow") != 0
    assert run(room, "panopticrecon", script, "narrow", "--resize") == 0
    narrow, half = (MaskSet.open(room / f"masks_{name}").read("1").semantic for name in ("narrow", "half"))
    np.testing.assert_array_equal(narrow, half[:, ::2].repeat(2, axis=0).repeat(4, axis=1))


def test_frames_are_matched_by_number_and_missing_ones_told(
    room: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (json.loads((room / "splits.json").read_text())[part] for part in ("train", "test"))
    for path in [*script.rglob("*.png")]:
        path.rename(path.with_stem(path.stem.zfill(6)))
    for stem in (train[0], test[0]):
        for kind in ("semantic_image", "instance_image"):
            (script / kind / f"{stem.zfill(6)}.png").unlink()
    assert run(room, "panopticrecon", script, "some") == 0
    told = capsys.readouterr().err
    assert f"1 training frames have no masks, {train[0]} among them" in told
    # The scene's lost frame has masks, too.
    assert "1 masks are of no frame that is used" in told
    assert set(MaskSet.open(room / "masks_some").stems()) == {*train[1:], *test[1:]}


def test_classes_are_mapped_by_a_file(
    room: Path, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = open_scene(room, masks=None).labels
    wall, floor = (next(c.id for c in labels.classes if c.name == n) for n in ("wall", "floor"))
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({str(wall): "floor", str(floor): None}))
    assert run(room, "panopticrecon", script, "mapped", "--classes", str(file)) == 0
    made, source = (MaskSet.open(room / f"masks_{name}").read("1") for name in ("mapped", "heavy"))
    table = np.arange(labels.size)
    table[[wall, floor]] = floor, 0
    np.testing.assert_array_equal(made.semantic, table[source.semantic])
    for text, told in (('{"1": "lawn"}', "has no class lawn"), ('{"1": 2}', "or null for void"), ("", "or null")):
        file.write_text(text)
        assert run(room, "panopticrecon", script, "again", "--classes", str(file)) != 0
        assert told in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- Panoptic Lifting


def test_folders_of_panoptic_lifting(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_panoptic_lifting(room, tmp_path, masks="heavy")
    assert run(room, "panoptic-lifting", folder, "m2f") == 0
    made, source = MaskSet.open(room / "masks_m2f"), MaskSet.open(room / "masks_heavy")
    for stem in made.stems():
        got, wanted = made.read(stem), source.read(stem)
        same_masks(got, wanted)
        assert got.score is not None
        assert wanted.score is not None
        assert np.abs(got.score.astype(int) - wanted.score).max() <= 1
    assert made.manifest is not None
    assert made.manifest.synthetic
    assert made.manifest.settings["classes"]["wall"] == "wall"

    # Without its classes.json the ids mean the 21 classes of its ScanNet scenes.
    (folder / "classes.json").unlink()
    assert run(room, "panoptic-lifting", folder, "m2f21") != 0
    assert "has classes that scene9103_00 does not:" in capsys.readouterr().err


def pickled(path: Path) -> None:
    np.savez(path, confidence=np.array([{"a": 1}], dtype=object), allow_pickle=True)


def bomb(path: Path) -> None:
    small = path.parent / "bomb.zip"
    if not small.exists():
        with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("confidence.npy", bytes(300 << 20))
    shutil.copyfile(small, path)


@pytest.mark.parametrize("write", [pickled, bomb, lambda path: path.write_bytes(b"PK\3\4")])
def test_hostile_probabilities_are_refused(
    room: Path, tmp_path: Path, write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_panoptic_lifting(room, tmp_path, masks="heavy")
    for path in (folder / "m2f_probabilities").glob("*.npz"):
        write(path)
    assert run(room, "panoptic-lifting", folder, "hostile") != 0
    assert any(".npz" in line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))


# --------------------------------------------------------------------------------------------------------------- COCO


def write_coco(room: Path, folder: Path, **changed: Any) -> Path:
    """The room's masks in COCO's format: sparse segment ids beyond 65536, scores, classes by prompts and capitals."""
    source, labels = MaskSet.open(room / "masks_heavy"), open_scene(room, masks=None).labels
    (folder / "panoptic").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, stem in enumerate(source.stems()):
        masks = source.read(stem)
        pixels, infos = np.zeros((*masks.semantic.shape, 3), dtype=np.uint8), []
        keys = np.stack([masks.semantic, masks.instance], axis=2)
        for n, (category, instance) in enumerate(np.unique(keys.reshape(-1, 2), axis=0).tolist()):
            if category == 0:
                continue
            color = (7 * n + 1, 250 - n, n % 3)
            pixels[(keys == (category, instance)).all(axis=2)] = color
            infos.append(
                {"id": color[0] + 256 * color[1] + 65536 * color[2], "category_id": 10 * category, "score": n / 100,
                 "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "panoptic" / f"mask{k}.png")
        images.append({"id": k, "file_name": f"{stem}.jpg", "width": 160, "height": 120})
        annotations.append({"image_id": k, "file_name": f"mask{k}.png", "segments_info": infos})
    categories = [
        {"id": 10 * c.id, "name": (c.prompts[-1] if c.prompts else c.name).upper(), "isthing": int(c.thing)}
        for c in labels.classes
    ]
    data = {"info": {}, "images": images, "annotations": annotations, "categories": categories, **changed}
    (folder / "panoptic.json").write_text(json.dumps(data))
    return folder


def test_coco_panoptic(room: Path, tmp_path: Path) -> None:
    folder = write_coco(room, tmp_path / "coco")
    # "other" has prompts of its own in the room, one of which is its name here.
    assert run(room, "coco", folder, "coco") == 0
    made, source = MaskSet.open(room / "masks_coco"), MaskSet.open(room / "masks_heavy")
    for stem in made.stems():
        got, wanted = made.read(stem), source.read(stem)
        same_masks(got, wanted)
        keys = np.stack([wanted.semantic, wanted.instance], axis=2)
        order = np.unique(keys.reshape(-1, 2), axis=0).tolist()
        assert got.score is not None
        for n, key in enumerate(order):
            inside = (keys == key).all(axis=2)
            assert (got.score[inside] == (round(2.55 * n) if key[0] else 0)).all()
    assert run(room, "coco", folder / "panoptic.json", "file") == 0


def test_crowds_are_labelled_but_no_instances(room: Path, tmp_path: Path) -> None:
    folder = write_coco(room, tmp_path / "coco")
    data = json.loads((folder / "panoptic.json").read_text())
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
            del segment["score"]
    (folder / "panoptic.json").write_text(json.dumps(data))
    assert run(room, "coco", folder, "crowd") == 0
    got = MaskSet.open(room / "masks_crowd").read("1")
    assert not got.instance.any()
    assert got.score is None
    np.testing.assert_array_equal(got.semantic, MaskSet.open(room / "masks_heavy").read("1").semantic)


def test_packed_ids_by_hand(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    assert read_packed_ids(tmp_path / "a.png").tolist() == [[1, 256, 65536, 16777215]]
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="has mode L; packed ids need three channels"):
        read_packed_ids(tmp_path / "b.png")
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "c.png", "JPEG")
    with pytest.raises(UserError, match="JPEG, which garbles ids"):
        read_packed_ids(tmp_path / "c.png")


FIRST = {"image_id": 0, "file_name": "mask0.png", "segments_info": []}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"annotations": [FIRST]}, "which its annotation does not list"),
        ({"annotations": []}, "has no annotations"),
        ({"annotations": [FIRST, FIRST]}, "annotates 0 twice"),
        ({"annotations": [{**FIRST, "file_name": "../mask0.png"}]}, "which is no file name"),
        ({"annotations": [{**FIRST, "file_name": "none.png"}]}, "is neither in"),
        ({"annotations": [{**FIRST, "segments_info": [{"id": 5, "category_id": 3}]}]}, "category 3, which is not"),
        ({"annotations": [{**FIRST, "segments_info": [{"id": 1 << 24, "category_id": 3}]}]}, "less than 16777216"),
        ({"annotations": [{**FIRST, "segments_info": [{"id": 5, "category_id": 3, "score": 2}]}]}, "score"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories of one id"),
        ({"categories": None}, "categories"),
    ],
)  # fmt: skip
def test_contradictory_annotations_are_refused(
    room: Path, tmp_path: Path, changed: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_coco(room, tmp_path / "coco", **changed)
    assert run(room, "coco", folder, "refused") != 0
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("error:"))
    assert told in line


def test_unknown_categories_are_named_and_mapped(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_coco(room, tmp_path / "coco")
    data = json.loads((folder / "panoptic.json").read_text())
    data["categories"][0]["name"] = "wall-other-merged"
    (folder / "panoptic.json").write_text(json.dumps(data))
    assert run(room, "coco", folder, "merged") != 0
    assert "does not: wall-other-merged: map them with --classes FILE" in capsys.readouterr().err
    (tmp_path / "map.json").write_text('{"wall-other-merged": "wall"}')
    assert run(room, "coco", folder, "merged", "--classes", str(tmp_path / "map.json")) == 0
    got, wanted = (MaskSet.open(room / f"masks_{name}").read("2") for name in ("merged", "heavy"))
    same_masks(got, wanted)
