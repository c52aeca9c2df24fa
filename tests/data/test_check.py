"""Each fault that a scene can have, planted in a room: it is found, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from panbench.cli.data import main
from panbench.data.check import check_scene, summary
from panbench.data.check_faults import Fault, Report
from panbench.data.detect import detect, find_scenes
from panbench.data.rooms import make_room
from panbench.errors import UserError

Plant = Callable[[Path], None]
MEDIUM = "masks_medium"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine frames with a pose (0 to 8), one without (9)."""
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=0, masks=("medium",), progress=False)


@pytest.fixture
def copy(room: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(room, tmp_path / room.name))


def check(folder: Path, quick: bool = False) -> Report:
    (found,) = find_scenes(folder)
    return check_scene(found, quick=quick, begin=lambda frames: lambda: None)


def kinds(report: Report) -> set[str]:
    """What was found beside the frame that the room lost on purpose."""
    return {fault.kind for fault in report.faults} - {"lost-pose"}


def only(report: Report, kind: str) -> Fault:
    assert kinds(report) == {kind}, [fault.line for fault in report.faults]
    (fault,) = (fault for fault in report.faults if fault.kind == kind)
    assert "\n" not in fault.line
    return fault


def poses(folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for path in sorted((folder / "pose").iterdir()):
        matrix = np.loadtxt(path)
        if np.isfinite(matrix).all():
            yield path, matrix


def repose(change: Callable[[np.ndarray], np.ndarray], *frames: int) -> Plant:
    def plant(folder: Path) -> None:
        for path, matrix in poses(folder):
            if not frames or int(path.stem) in frames:
                np.savetxt(path, change(matrix))

    return plant


def repaint(kind: str, change: Callable[[np.ndarray], np.ndarray], *frames: int) -> Plant:
    """Change the values of images, kept as PNG (colour too: its .jpg makes room for it)."""

    def plant(folder: Path) -> None:
        for path in sorted((folder / kind).iterdir()):
            if not frames or int(path.stem) in frames:
                values = change(np.array(Image.open(path)))
                path.unlink()
                Image.fromarray(values).save(path.with_suffix(".png"))

    return plant


def remove(*names: str) -> Plant:
    def plant(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return plant


def write(name: str, text: str) -> Plant:
    return lambda folder: (folder / name).write_text(text) and None


def cut(*names: str) -> Plant:
    def plant(folder: Path) -> None:
        for name in names:
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 2])

    return plant


def moved(x: float, y: float, z: float, turn: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    shift = np.eye(4)
    shift[:3, 3] = x, y, z
    shift[np.ix_((0, 2), (0, 2))] = [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    return lambda matrix: matrix @ shift


def in_millimetres(matrix: np.ndarray) -> np.ndarray:
    out = matrix.copy()
    out[:3, 3] *= 1000
    return out


def reverse_path(folder: Path) -> None:
    found = list(poses(folder))
    for (path, _), (_, matrix) in zip(found, reversed(found), strict=True):
        np.savetxt(path, matrix)


def cut_out(values: np.ndarray) -> np.ndarray:
    """Thirty per cent of the rows."""
    out = values.copy()
    out[int(0.3 * len(out)) :] = 0
    return out


def shorter(folder: Path) -> None:
    """Depth squeezed to 160 x 90, without intrinsics of its own."""
    repaint("depth", lambda v: v[(np.arange(90) * 4 + 2) // 3])(folder)
    (folder / "intrinsic/intrinsic_depth.txt").unlink()


def reencode_as_next(folder: Path) -> None:
    Image.open(folder / "color/4.jpg").save(folder / "color/5.jpg", quality=70)


def blurred(values: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(values).filter(ImageFilter.GaussianBlur(4)))


def darker(values: np.ndarray) -> np.ndarray:
    return (values * 0.55).astype(np.uint8)


def twice_the_size(folder: Path) -> None:
    path = folder / "intrinsic/intrinsic_color.txt"
    matrix = np.loadtxt(path)
    matrix[:2] *= 2
    np.savetxt(path, matrix)


def unlisted_classes(folder: Path) -> None:
    data = json.loads((folder / "classes.json").read_text())
    data["gt_map"] = {}
    (folder / "classes.json").write_text(json.dumps(data))


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# A point of a robot's camera (x forward, y left, z up) in OpenCV's axes.
ROBOT = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])

# kind of the one fault found: what is planted, severity, what its line says
FAULTS: dict[str, tuple[Plant, str, str, str]] = {
    "OpenGL axes": (repose(lambda m: m @ OPENGL), "camera-axes", "error", r"as camera to world, OpenGL axes: convert"),
    "world to camera": (repose(np.linalg.inv), "camera-axes", "error", r"as world to camera, OpenCV axes: convert"),
    "OpenGL view matrix": (
        repose(lambda m: OPENGL @ np.linalg.inv(m)), "camera-axes", "error", r"as world to camera, OpenGL axes",
    ),
    "a robot's axes": (
        repose(lambda m: m @ ROBOT), "camera-axes", "error", r"as camera to world, axes x forward, y left, z up",
    ),
    "depth in units of 0.2 mm": (
        repaint("depth", lambda v: (v.astype(np.uint32) * 5).astype(np.uint16)), "depth-scale", "error",
        r"depth: depth fits the poses if it is multiplied by 0\.2; its median as it is read is 1\d",
    ),
    "depth in centimetres": (
        repaint("depth", lambda v: np.round(v / 10).astype(np.uint16)), "depth-scale", "error", r"multiplied by 10;",
    ),
    "depth in metres": (
        repaint("depth", lambda v: np.round(v / 1000).astype(np.uint16)), "depth-scale", "error",
        r"median.* 0\.00\d m",
    ),
    "positions in millimetres": (repose(in_millimetres), "pose-scale", "error", r"positions are 1000 times too large"),
    "poses of other frames": (reverse_path, "inconsistent", "error", r"no other reading is better: check that poses"),
    "mirrored pose": (repose(lambda m: m @ np.diag([-1.0, 1, 1, 1]), 4), "not-rigid", "error", r"mirrors .*1 frame: 4"),
    "scaled poses": (repose(lambda m: m @ np.diag([2.0, 2, 2, 1]), 4, 5), "not-rigid", "error", r"scales.*s: 4, 5"),
    "a pose far off": (repose(moved(6, 0, 0), 4), "pose-jump", "warning", r"lies far from the frames .*1 frame: 4\)"),
    "a pose a little off": (
        repose(moved(0, 0.1, 0.2, 0.5), 4), "pose-jump", "warning", r"does not meet that of the frames beside.*: 4\)",
    ),
    "the first pose off": (repose(moved(0, 0.1, 0.2, 0.5), 0), "pose-jump", "warning", r"\(1 frame: 0\)"),
    "a frozen picture": (
        lambda folder: shutil.copy(folder / "color/4.jpg", folder / "color/5.jpg") and None, "duplicate", "warning",
        r"the picture is the one of the frame before \(1 frame: 5\)",
    ),
    "a picture encoded again": (reencode_as_next, "duplicate", "warning", r"before, with another pose \(1 frame: 5\)"),
    "blur": (repaint("color", blurred, 3), "blur", "warning", r"color: far less sharp .*\(1 frame: 3\)"),
    "exposure": (repaint("color", darker, 3), "exposure", "warning", r"brightness jumps.*\(1 frame: 3\)"),
    "holes": (repaint("depth", cut_out, 6), "depth-holes", "warning", r"more than 60% have no depth \(1 frame: 6\)"),
    "cut images": (cut("color/3.jpg"), "unreadable", "error", r"color/3\.jpg: cannot be decoded .*copy or export it"),
    "a pose of words": (write("pose/3.txt", "a b"), "unreadable", "error", r"pose/3\.txt: is not a text file of num"),
    "no depth image": (remove("depth/3.png", "depth/5.png"), "missing-file", "error", r"depth: no depth .*: 3, 5\)"),
    "no pose": (remove("pose/3.txt"), "missing-file", "error", r"pose: no pose \(1 frame: 3\)"),
    "no colour image": (remove("color/9.jpg"), "missing-file", "error", r"no colour image for a depth.*: 9\)"),
    "a stray file": (write("pose/first.txt", "1"), "stray-file", "error", r"first\.txt: its name is not a frame"),
    "another size": (
        repaint("color", lambda v: v[::2, ::2], 3), "image-size", "error", r"80x60, but most colour images are 160x120",
    ),
    "another ratio": (shorter, "aspect", "error", r"depth is 160x90, colour 160x120.*: give intrinsic/intrinsic_depth"),
    "intrinsics of another size": (
        twice_the_size, "intrinsics", "error", r"do not fit images of 160x120: the centre is off .* state colorWidth",
    ),
    "no intrinsics": (remove("intrinsic/intrinsic_color.txt"), "intrinsics", "error", r"color\.txt: is not a text"),
    "empty mask": (
        repaint(f"{MEDIUM}/semantic_image", np.zeros_like, 3), "empty-mask", "warning", r"no pixel has a class .*: 3\)",
    ),
    "missing mask": (
        remove(*(f"{MEDIUM}/{kind}/3.png" for kind in ("semantic_image", "instance_image", "score"))), "missing-mask",
        "error", r"semantic_image: no mask of a training frame \(1 frame: 3\)",
    ),
    "mask of another size": (
        repaint(f"{MEDIUM}/score", lambda v: v[::2], 3), "image-size", "error", r"differs in size from the class image",
    ),
    "strange class": (
        repaint(f"{MEDIUM}/semantic_image", lambda v: np.where(v == v.max(), 99, v).astype(np.uint8), 3),
        "label-outside", "error", r"class id 99 is not in the label space \(1 frame: 3\)",
    ),
    "things without instance": (
        repaint(f"{MEDIUM}/instance_image", np.zeros_like, 3), "no-instance", "warning", r"masks_medium: pixels of",
    ),
    "true things without instance": (
        repaint("instance-filt", np.zeros_like, 3), "no-instance", "warning", r"label-filt: pixels of things",
    ),
    "raw ids that no class has": (unlisted_classes, "no-truth", "warning", r"none of its raw ids is in gt_map"),
    "no label of a test frame": (
        remove("label-filt/5.png", "instance-filt/5.png"), "missing-file", "error", r"label-filt: no label .*: 5\)",
    ),
    "no classes": (remove("classes.json"), "classes", "error", r"classes\.json: no such file"),
    "strange split": (
        write("splits.json", '{"train": ["1", "2", "77"], "test": ["0"]}'), "split", "error", r"does not have .*: 77\)",
    ),
    "broken split": (write("splits.json", "[1]"), "split", "error", r"splits\.json: is not \{"),
    "no depth at all": (lambda folder: shutil.rmtree(folder / "depth"), "no-depth", "warning", r"holds no depth"),
}  # fmt: skip


def test_a_room_as_it_is_made_has_no_faults_but_the_frame_it_lost(room: Path) -> None:
    report = check(room)
    assert kinds(report) == set()
    (lost,) = report.faults
    assert (lost.kind, lost.severity, lost.frames) == ("lost-pose", "warning", ("9",))
    assert report.errors == 0
    assert (report.frames, report.looked_at) == (10, 9)
    assert report.measures["agreeing"] > 0.97
    assert report.measures["depth_error"] < 0.01
    assert 1.0 < report.measures["depth_median_m"] < 4.0
    assert "10 frames, 9 decoded; median depth" in summary(report)
    assert "0 errors, 1 warning" in summary(report)


@pytest.mark.parametrize("case", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(copy: Path, case: str) -> None:
    plant, kind, severity, line = FAULTS[case]
    plant(copy)
    fault = only(check(copy), kind)
    assert fault.severity == severity

    assert re.search(line, fault.line), fault.line


def test_all_faults_are_told_not_only_the_first(copy: Path) -> None:
    for plant in (
        cut("color/3.jpg", "depth/3.png", "label-filt/2.png"), remove("pose/1.txt"), write("splits.json", "{}"),
        repaint("color", darker, 6), repose(moved(6, 0, 0), 7),
    ):  # fmt: skip
        plant(copy)
    report = check(copy)
    found = {(f.kind, Path(f.file).name) for f in report.faults}
    assert found == {
        ("unreadable", "3.jpg"), ("unreadable", "3.png"), ("unreadable", "2.png"), ("missing-file", "pose"),
        ("split", "splits.json"), ("exposure", "color"), ("pose-jump", "pose"), ("lost-pose", "pose"),
    }  # fmt: skip
    assert [f.severity for f in report.faults] == sorted(f.severity for f in report.faults)
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["format"], data["version"], data["scene"]) == ("panbench-data-check", 1, copy.name)
    assert {f["kind"] for f in data["faults"]} == {f.kind for f in report.faults}
    assert all(f["remedy"] and f["what"] for f in data["faults"])


def test_the_quick_check_decodes_couples_only_and_still_sees_flipped_axes(copy: Path, tmp_path: Path) -> None:
    # A longer film: the same nine frames to and fro.
    order = [*range(9), *range(8, -1, -1)] * 3
    film = tmp_path / "film" / copy.name
    for kind, suffix in (
        ("color", "jpg"),
        ("depth", "png"),
        ("pose", "txt"),
        ("label-filt", "png"),
        ("instance-filt", "png"),
    ):
        (film / kind).mkdir(parents=True)
        for place, frame in enumerate(order):
            shutil.copy(copy / kind / f"{frame}.{suffix}", film / kind / f"{place}.{suffix}")
    shutil.copytree(copy / "intrinsic", film / "intrinsic")
    shutil.copy(copy / "classes.json", film)
    report = check(film, quick=True)
    assert (report.frames, report.looked_at) == (54, 24)
    # At each end of the film the same frame stands twice, with the same pose.
    assert kinds(report) <= {"duplicate"}
    repose(lambda m: m @ OPENGL)(film)
    assert "camera-axes" in kinds(check(film, quick=True))


def test_scenes_are_found_below_a_root_and_told_by_their_layout(copy: Path, tmp_path: Path) -> None:
    assert detect(copy) == "scannet"
    assert detect(tmp_path) is None
    assert [f.folder for f in find_scenes(tmp_path)] == [copy.resolve()]
    for branch in ("scans", "data"):
        shutil.copytree(copy / "pose", tmp_path / branch / f"scene_{branch}" / "pose")
        (tmp_path / branch / f"scene_{branch}" / "color").mkdir()
    assert [f.folder.name for f in find_scenes(tmp_path)] == [copy.name, "scene_data", "scene_scans"]
    assert [f.folder.name for f in find_scenes(tmp_path, "scene_data")] == ["scene_data"]
    with pytest.raises(UserError, match=r"holds no scene nope in a known layout"):
        find_scenes(tmp_path, "nope")
    with pytest.raises(UserError, match=r"no such folder"):
        find_scenes(tmp_path / "nope")


# -------------------------------------------------------------------------------------------------- the command line


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_the_exit_status_tells_errors_from_warnings(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", copy, "--quiet") == 0
    assert "lost-pose" in capsys.readouterr().out
    assert run("check", copy, "--quiet", "--strict") == 1
    repose(lambda m: m @ OPENGL)(copy)
    assert run("check", copy, "--quiet", "--json", tmp_path / "r.json", "--sheet", tmp_path / "s.png") == 1
    out = capsys.readouterr().out
    assert re.search(r"^  error    camera-axes    /.*/pose: depth of two frames meets in \d+%", out, re.MULTILINE)
    assert [f["kind"] for f in json.loads((tmp_path / "r.json").read_text())["faults"]] == ["camera-axes", "lost-pose"]
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 5 * 200


def test_several_scenes_are_checked_and_told_one_after_another(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(copy, tmp_path / "scene0000_01")
    remove("pose/3.txt")(copy)
    assert run("check", tmp_path, "--quiet", "--json", tmp_path / "r.json") == 1
    assert [r["scene"] for r in json.loads((tmp_path / "r.json").read_text())] == ["scene0000_01", copy.name]
    assert run("check", tmp_path, "--scene", "scene0000_01", "--quiet") == 0
    capsys.readouterr()
    assert run("info", tmp_path, "--json") == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)] == ["scene0000_01", copy.name]
    with pytest.raises(UserError, match=r"a sheet shows one scene, there are 2: choose one with --scene"):
        run("check", tmp_path, "--sheet", tmp_path / "s.png")
    with pytest.raises(UserError, match=r"holds 2 scenes: choose one with --scene \(scene0000_01, "):
        run("preview", tmp_path, "--out", tmp_path / "p.png")


def test_info_tells_what_is_there(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", copy, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layout"], told["synthetic"], told["frames"], told["train"], told["test"]) == (
        "scannet",
        True,
        9,
        7,
        2,
    )
    assert told["size"] == [160, 120]
    assert told["focal"] == pytest.approx([144.0, 144.0], abs=1e-3)
    assert told["center"] == pytest.approx([80.0, 60.0], abs=1e-3)
    low, high, median = told["depth"]
    every = np.concatenate([np.array(Image.open(p)).ravel() for p in (copy / "depth").iterdir()])
    assert every[every > 0].min() / 1000 <= low < median < high <= every.max() / 1000
    assert told["truth"]
    assert {"chair", "table"} < set(told["things"])
    assert {"wall", "floor"} < set(told["stuff"])
    assert told["masks"][0]["name"] == "medium"
    assert told["masks"][0]["frames"] == len(list((copy / MEDIUM / "semantic_image").iterdir()))
    head = (copy / f"{copy.name}_vh_clean_2.ply").read_bytes()[:500]
    assert told["points"][f"{copy.name}_vh_clean_2.ply"] == int(re.search(rb"element vertex (\d+)", head)[1])
    assert run("info", copy) == 0
    assert "focal length 144.00 144.00, centre 80.00 60.00 pixels" in capsys.readouterr().out


def test_info_of_a_broken_scene_says_why_and_what_helps(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove("pose/3.txt")(copy)
    assert run("info", copy) == 0
    out = capsys.readouterr().out
    assert "cannot be opened: " in out
    assert "has no pose of its frame number" in out
    assert "panbench data check tells everything" in out
    assert "masks    medium: " in out


def test_a_preview_shows_the_frames_even_of_a_scene_that_is_refused(copy: Path, tmp_path: Path) -> None:
    assert run("preview", copy, "--out", tmp_path / "p.png", "--frames", 3) == 0
    with Image.open(tmp_path / "p.png") as picture:
        whole = np.asarray(picture.convert("RGB"))
    assert whole.std() > 20
    remove("pose/3.txt")(copy)
    assert run("preview", copy, "--out", tmp_path / "q.png", "--frames", 3) == 0
    with pytest.raises(UserError, match=r"x\.jpg: pictures are written as PNG"):
        run("preview", copy, "--out", tmp_path / "x.jpg")
    with pytest.raises(UserError, match=r"--frames is 0: show at least one"):
        run("preview", copy, "--out", tmp_path / "x.png", "--frames", 0)
