from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panbench.errors import UserError
from panbench.protocol import PredictionSet, PredictionWriter
from panbench.scene import LabelSpace, PanopticMap

MakeFolder = Callable[..., Path]


def test_what_was_written_is_read_back(make_folder: MakeFolder, truth: dict[str, PanopticMap]) -> None:
    predictions = PredictionSet.open(make_folder())
    assert predictions.names == ["0", "5", "10"]
    for name, map_ in truth.items():
        got = predictions.read(name)
        assert (got.semantic == map_.semantic).all()
        assert (got.instance == map_.instance).all()
        assert predictions.color(name) is not None


def test_the_manifest_says_where_the_folder_comes_from(make_folder: MakeFolder, labels: LabelSpace) -> None:
    folder = make_folder(config={"lr": 0.1}, provenance={"mask_hash": "abc"}, commit="1234", synthetic=True)
    manifest = PredictionSet.open(folder).manifest
    assert (manifest.method, manifest.seed, manifest.commit, manifest.synthetic) == ("oracle", 7, "1234", True)
    assert (manifest.config, manifest.provenance) == ({"lr": 0.1}, {"mask_hash": "abc"})
    assert (manifest.labels, manifest.label_hash, manifest.image_size) == ("shared", labels.hash, (12, 16))
    for relative, digest in manifest.files.items():
        assert hashlib.sha256((folder / relative).read_bytes()).hexdigest() == digest
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    assert on_disk == set(manifest.files)


def test_depth_is_kept_to_the_millimetre_and_normals_to_a_hundredth(tmp_path: Path, labels: LabelSpace) -> None:
    flat = PanopticMap(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    depth = torch.tensor([[0.0, 1.2344], [3.0, 70.0]])
    normal = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, -1.0]], [[0.6, -0.8, 0.0], [1.0, 0.0, 0.0]]])
    with PredictionWriter(tmp_path / "p", method="m", labels=labels) as writer:
        writer.write("a", flat, depth=depth, normal=normal)
    got = PredictionSet.open(tmp_path / "p").depth("a")
    assert got is not None
    assert got.tolist() == [[0.0, pytest.approx(1.234)], [3.0, pytest.approx(65.535)]]
    with Image.open(tmp_path / "p" / "normal" / "a.png") as image:
        coded = np.asarray(image).astype(float)
    assert coded[0, 0].tolist() == [0, 0, 0]
    decoded = coded[coded.any(-1)] / 127.5 - 1
    assert np.allclose(decoded, normal[normal.abs().sum(-1) > 0].numpy(), atol=0.01)


def test_a_folder_that_failed_half_way_leaves_no_trace(tmp_path: Path, labels: LabelSpace) -> None:
    flat = PanopticMap(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))

    def crash() -> None:
        with PredictionWriter(tmp_path / "p", method="m", labels=labels) as writer:
            writer.write("a", flat)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert list(tmp_path.iterdir()) == []


def test_new_predictions_replace_old_ones_whole(make_folder: MakeFolder, labels: LabelSpace) -> None:
    folder = make_folder()
    flat = PanopticMap(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    with PredictionWriter(folder, method="m", labels=labels) as writer:
        writer.write("z", flat)
    assert PredictionSet.open(folder).names == ["z"]
    assert sorted(p.name for p in folder.rglob("*.png")) == ["z.png", "z.png"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path, labels: LabelSpace) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no predictions folder"):
        PredictionWriter(tmp_path, method="m", labels=labels)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("semantic", "instance", "message"),
    [(3, 0, "class 3 is not in label space"), (2, 70000, "do not fit 0 … 65535"), (2, -1, "do not fit")],
)
def test_a_method_cannot_write_labels_that_the_folder_cannot_hold(
    tmp_path: Path, labels: LabelSpace, semantic: int, instance: int, message: str
) -> None:
    writer = PredictionWriter(tmp_path / "p", method="m", labels=labels)
    with pytest.raises(ValueError, match=message):
        writer.write("a", PanopticMap(torch.full((2, 2), semantic), torch.full((2, 2), instance)))


def test_a_method_cannot_write_a_frame_twice_nor_at_two_sizes(tmp_path: Path, labels: LabelSpace) -> None:
    writer = PredictionWriter(tmp_path / "p", method="m", labels=labels)
    writer.write("a", PanopticMap(torch.ones(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)))
    for name, side, message in (("a", 2, "taken"), ("../b", 2, "no file stem"), ("b", 3, "the frames before it")):
        flat = PanopticMap(torch.ones(side, side, dtype=torch.int64), torch.zeros(side, side, dtype=torch.int64))
        with pytest.raises(ValueError, match=message):
            writer.write(name, flat)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def repaint(path: Path) -> None:
    Image.fromarray(np.ones((12, 16), dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "semantic" / "5.png"), r"semantic/5\.png: cut off or no PNG .*copy or write"),
        (lambda folder: repaint(folder / "semantic" / "5.png"), r"semantic/5\.png: differs from the sha256"),
        (lambda folder: (folder / "instance" / "10.png").unlink(), r"instance/10\.png: missing"),
        (lambda folder: truncate(folder / "manifest.json"), r"manifest\.json: file: Invalid JSON"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    make_folder: MakeFolder, damage: Callable[[Path], None], message: str
) -> None:
    folder = make_folder()
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        PredictionSet.open(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_another_format_is_not_guessed_at(make_folder: MakeFolder) -> None:
    path = make_folder() / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(UserError, match="format_version"):
        PredictionSet.open(path.parent)


def test_an_empty_folder_is_no_predictions_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty or no predictions folder"):
        PredictionSet.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        PredictionSet.open(tmp_path / "nowhere")


def test_a_folder_without_frames_is_told(tmp_path: Path, labels: LabelSpace) -> None:
    PredictionWriter(tmp_path / "p", method="m", labels=labels).close()
    with pytest.raises(UserError, match="holds no frames"):
        PredictionSet.open(tmp_path / "p")


def foreign(folder: Path) -> Path:
    """Somebody else's output: the PNGs without a manifest."""
    (folder / "manifest.json").unlink()
    return folder


def test_pngs_without_a_manifest_can_be_read(make_folder: MakeFolder, truth: dict[str, PanopticMap]) -> None:
    predictions = PredictionSet.open(foreign(make_folder("theirs")))
    assert predictions.names == ["0", "5", "10"]
    assert (predictions.manifest.method, predictions.manifest.labels) == ("theirs", "own")
    assert (predictions.read("5").instance == truth["5"].instance).all()


def test_of_a_foreign_folder_both_maps_of_a_frame_are_needed(make_folder: MakeFolder) -> None:
    folder = foreign(make_folder())
    (folder / "instance" / "5.png").unlink()
    with pytest.raises(UserError, match=r"instance/5\.png: missing, though semantic/5\.png exists"):
        PredictionSet.open(folder)


def test_of_a_foreign_folder_every_map_must_have_one_size(make_folder: MakeFolder) -> None:
    folder = foreign(make_folder())
    Image.fromarray(np.ones((6, 8), dtype=np.uint16)).save(folder / "semantic" / "5.png")
    with pytest.raises(UserError, match=r"semantic/5\.png: is 8x6, but the folder's images are 16x12"):
        PredictionSet.open(folder).read("5")


def test_a_class_outside_the_label_space_is_told_with_its_file(make_folder: MakeFolder) -> None:
    folder = make_folder()
    image = np.ones((12, 16), dtype=np.uint16)
    image[:2, :3] = 9
    Image.fromarray(image).save(folder / "semantic" / "5.png")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["semantic/5.png"] = hashlib.sha256((folder / "semantic" / "5.png").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"semantic/5\.png: class id 9 \(6 pixels\) is not in label space three"):
        PredictionSet.open(folder).read("5")
