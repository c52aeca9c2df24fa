"""The iPhone's part of ScanNet++: video, depth of every packing, poses; rooms written and read back; bad files."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import lz4.block
import numpy as np
import pytest
import torch
from PIL import Image

from panbench.data import scannet_reader
from panbench.data.detect import find_scenes
from panbench.data.images import image_size, read_color, resize_nearest
from panbench.data.info import scene_info
from panbench.data.iphone import DEPTH_SIZE, DepthFile, VideoFile, read_poses
from panbench.data.iphone_export import Packing, pack_depth, write_iphone, write_video
from panbench.data.mesh import MeshCaster, read_mesh
from panbench.data.rooms import make_room
from panbench.data.scannetpp import ScanNetPPDataModule
from panbench.data.scannetpp_export import write_scannetpp
from panbench.data.scannetpp_labels import read_label_space
from panbench.data.scannetpp_reader import open_scene, read_annotation
from panbench.errors import UserError

PACKINGS: tuple[Packing, ...] = ("lz4", "deflate", "one stream")
POSES = "iphone/pose_intrinsic_imu.json"
RANDOM = np.random.default_rng(0)


def depths(count: int) -> list[np.ndarray]:
    """Depth images that do not pack to nothing: noise of 8 bits on a slope, holes, and the largest value."""
    slope = np.linspace(500, 6000, DEPTH_SIZE[0])[None].repeat(DEPTH_SIZE[1], axis=0)
    out = [(slope + RANDOM.integers(0, 256, slope.shape) + n).astype(np.uint16) for n in range(count)]
    for image in out:
        image[:7] = 0
        image[8, 9] = 65535
    return out


# ------------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("packing", PACKINGS)
def test_depth_is_read_exactly_in_any_order(tmp_path: Path, packing: Packing) -> None:
    images = depths(150 if packing == "one stream" else 5)  # a stream has places to enter it every 64 frames
    (tmp_path / "depth.bin").write_bytes(pack_depth(images, packing))
    depth = DepthFile(tmp_path / "depth.bin", 1000)
    assert (depth.packing, len(depth)) == (packing, len(images))
    for number in (0, 1, 4, 2, len(images) - 1, 0, len(images) // 2, len(images) // 2 + 1):
        found = depth.frame(number)
        assert found.size == (256, 192)
        np.testing.assert_array_equal(found.read_depth(), images[number])


def test_depth_is_what_the_formats_say(tmp_path: Path) -> None:
    """Packed here by hand, not by the writer."""
    image = depths(1)[0]
    metres = (image / 1000).astype("<f4")
    metres[0, :5] = [np.nan, np.inf, -1.0, 1e30, 0.0014]
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    deflated = packer.compress(metres.tobytes()) + packer.flush()
    blocks = [lz4.block.compress(image.astype("<u2").tobytes(), mode="high_compression", store_size=False)] * 2
    forms = {
        "lz4": b"".join(struct.pack("<I", len(b)) + b for b in blocks),
        "deflate": struct.pack("<I", len(deflated)) + deflated,
        "one stream": deflated,
    }
    for packing, data in forms.items():
        (tmp_path / "depth.bin").write_bytes(data)
        depth = DepthFile(tmp_path / "depth.bin", 10)
        assert depth.packing == packing
        expected = image.copy()
        if packing != "lz4":
            expected[0, :5] = [0, 0, 0, 65535, 1]
        np.testing.assert_array_equal(depth.frame(0).read_depth(), expected)


def test_a_stream_is_looked_through_no_farther_than_wanted(tmp_path: Path) -> None:
    (tmp_path / "depth.bin").write_bytes(pack_depth(depths(9), "one stream"))
    assert len(DepthFile(tmp_path / "depth.bin", 4)) == 4


def bomb(packing: str) -> bytes:
    """Little that swells to 128 MiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    data = b"".join(packer.compress(zeros) for _ in range(1 << 7)) + packer.flush()
    return data if packing == "one stream" else struct.pack("<I", len(data)) + data


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", r"depth\.bin: ends within frame 0|holds neither"),
    "cut": (lambda data: data[:-100], r"depth\.bin: ends within frame 2: it is cut off"),
    "noise": (lambda data: RANDOM.bytes(len(data)), r"depth\.bin: holds neither blocks of LZ4 or deflate nor a stream"),
    "bomb": (lambda _: bomb("deflate"), r"depth\.bin: "),
    "huge length": (
        lambda data: data[:4] + data[4:] + struct.pack("<I", 0xFFFFFFFF) + b"x",
        r"depth\.bin: ends within frame 3",
    ),
    "long block": (
        lambda data: data + struct.pack("<I", 300_000) + bytes(300_000),
        r"depth\.bin: claims 300000 bytes for frame 3",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_depth_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    (tmp_path / "depth.bin").write_bytes(damage(pack_depth(depths(3), "lz4")))
    with pytest.raises(UserError, match=message) as caught:
        DepthFile(tmp_path / "depth.bin", 10)
    assert "\n" not in str(caught.value)


def test_a_damaged_frame_spoils_no_other(tmp_path: Path) -> None:
    images = depths(3)
    data = bytearray(pack_depth(images, "lz4"))
    at = 8 + struct.unpack("<I", data[:4])[0]
    data[at : at + 200] = b"\xff" * 200
    (tmp_path / "depth.bin").write_bytes(data)
    depth = DepthFile(tmp_path / "depth.bin", 3)
    with pytest.raises(UserError, match=r"depth of frame 1 cannot be read") as caught:
        depth.read(1)
    assert "\n" not in str(caught.value)
    for number in (2, 0):
        np.testing.assert_array_equal(depth.read(number), images[number])


def test_a_stream_that_swells_without_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "depth.bin").write_bytes(bomb("one stream"))
    depth = DepthFile(tmp_path / "depth.bin", 20)
    assert len(depth) == 20
    assert not depth.read(19).any()


# ------------------------------------------------------------------------------------------------------------- video


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    base = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return [np.roll(base, n, axis=1) for n in range(70)]


@pytest.fixture(scope="module")
def video(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "rgb.mkv"
    write_video(path, pictures, lossless=True)
    return path


def test_pictures_are_found_by_their_place_in_any_order(video: Path, pictures: list[np.ndarray]) -> None:
    found = VideoFile(video)
    assert (len(found), found.size) == (70, (64, 48))
    for number in (*range(70), 3, 2, 69, 29, 30, 31, 5, 60, 61, 0, 69):
        frame = found.frame(number)
        np.testing.assert_array_equal(read_color(frame), pictures[number], err_msg=str(number))
    assert image_size(found.frame(0)) == (64, 48)
    assert found.frame(12).stem == "frame_000012"
    (video.parent / "12.png").write_bytes(found.frame(12).read_bytes())
    np.testing.assert_array_equal(np.asarray(Image.open(video.parent / "12.png")), pictures[12])
    small = Image.fromarray(pictures[7]).resize((32, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(read_color(found.frame(7), (32, 24)), np.asarray(small))


@pytest.mark.parametrize(("codec", "options"), [
    ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0", "crf": "10"}),
    ("libx265", {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:log-level=none", "crf": "10"}),
])  # fmt: skip
def test_any_picture_of_open_groups_is_that_of_decoding_all(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    rows, columns = np.mgrid[:48, :64]
    with av.open(str(tmp_path / "rgb.mkv"), "w") as container:
        stream: Any = container.add_stream(codec, rate=60, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(50):
            wave = 128 + 100 * np.sin(0.2 * rows + 0.3 * columns + 0.4 * n)
            picture = av.VideoFrame.from_ndarray(wave[..., None].repeat(3, axis=2).astype(np.uint8), format="rgb24")
            picture.pts = n
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "rgb.mkv")) as container:
        shown = [int(packet.pts) for packet in container.demux(video=0) if packet.size and packet.pts is not None]
    assert shown != sorted(shown)  # pictures are stored in another order than they are shown in
    with av.open(str(tmp_path / "rgb.mkv")) as container:
        every = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    found = VideoFile(tmp_path / "rgb.mkv")
    assert len(found) == len(every) == 50
    for number in (0, 23, 24, 11, 12, 13, 22, 25, 49, 10, 36, 35, 34):
        np.testing.assert_array_equal(found.read(number), every[number], err_msg=str(number))


def test_colours_are_those_of_the_tagged_matrix(tmp_path: Path) -> None:
    y, u, v = 120, 90, 200
    for tag, red, blue in ((1, 0.2126, 0.0722), (5, 0.299, 0.114)):
        path = tmp_path / f"{tag}.mkv"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=60)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
            stream.codec_context.colorspace = tag
            flat = np.broadcast_to(np.array([y, u, v], np.uint8)[:, None, None], (3, 48, 64)).copy()
            picture = av.VideoFrame.from_ndarray(flat, format="yuv444p")
            picture.pts, picture.colorspace = 0, tag
            container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        # ITU-R BT.709 and BT.601, limited range.
        luma, r_y, b_y = (y - 16) / 219, 2 * (1 - red) * (v - 128) / 224, 2 * (1 - blue) * (u - 128) / 224
        r, b = luma + r_y, luma + b_y
        g = (luma - red * r - blue * b) / (1 - red - blue)
        np.testing.assert_allclose(VideoFile(path).read(0)[5, 5], np.array([r, g, b]) * 255, atol=4)


@pytest.mark.parametrize("case", ["empty", "text", "head", "no such file"])
def test_a_damaged_video_is_refused_in_one_line(tmp_path: Path, video: Path, case: str) -> None:
    data = video.read_bytes()
    path = tmp_path / "rgb.mkv"
    if case != "no such file":
        path.write_bytes({"empty": b"", "text": b"hello", "head": data[:300]}[case])
    with pytest.raises(UserError, match=r"rgb\.mkv: ") as caught:
        VideoFile(path)
    assert "\n" not in str(caught.value)


def outcome(path: Path) -> str:
    """Whether some of a video's pictures were read; if not, that one line says so."""
    try:
        found = VideoFile(path)
        for number in range(0, len(found), 9):
            assert found.read(number).shape == (found.size[1], found.size[0], 3)
    except UserError as error:
        text = str(error)
    else:
        return "read"
    assert text.isprintable()
    assert "rgb.mkv: " in text
    return "refused"


def test_flipped_bits_give_a_picture_or_one_line(tmp_path: Path, video: Path) -> None:
    data = video.read_bytes()
    outcomes: list[str] = []
    for seed in range(25):
        random = np.random.default_rng(seed)
        flipped = bytearray(data)
        for at in random.integers(0, len(data) if seed % 2 else 2000, 20):
            flipped[at] ^= 1 << int(random.integers(8))
        (tmp_path / "rgb.mkv").write_bytes(flipped)
        outcomes.append(outcome(tmp_path / "rgb.mkv"))
    assert {*outcomes} == {"read", "refused"}


def test_of_a_cut_video_is_read_what_is_there(tmp_path: Path, video: Path, pictures: list[np.ndarray]) -> None:
    data = video.read_bytes()
    (tmp_path / "rgb.mkv").write_bytes(data[: len(data) // 2])
    found = VideoFile(tmp_path / "rgb.mkv")
    assert 20 < len(found) < 50
    for number in (0, 15, 3):
        np.testing.assert_array_equal(found.read(number), pictures[number])


# ------------------------------------------------------------------------------------------------------ written rooms


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=3, masks=["heavy"], progress=False)


@pytest.fixture(scope="module")
def written(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_iphone(room, tmp_path_factory.mktemp("iphone") / "data", lossless=True)


@pytest.fixture
def iphone(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_room_reads_back_as_the_room_it_was(room: Path, written: Path, tmp_path: Path, packing: Packing) -> None:
    if packing == "lz4":
        folder = written
    else:
        folder = tmp_path / "data" / written.name
        shutil.copytree(written, folder)
        images = [resize_nearest(np.asarray(Image.open(p)), 256, 192).astype(np.uint16)
                  for p in sorted((room / "depth").iterdir(), key=lambda p: int(p.stem))]  # fmt: skip
        (folder / "iphone/depth.bin").write_bytes(pack_depth(images, packing))
    before = scannet_reader.open_scene(room, masks="heavy")
    after = ScanNetPPDataModule(root=str(folder.parents[1] if packing == "lz4" else tmp_path), masks="heavy").scene
    assert (after.dataset, after.synthetic) == ("scannetpp", True)
    assert (after.train, after.test) == (before.train, before.test)  # each fifth of the frames that have a pose
    vertices, faces = read_mesh(folder / "scans/mesh_aligned_0.05.ply")
    caster = MeshCaster(vertices, faces)
    labels = read_annotation(folder, len(vertices), read_label_space(folder, None)[1], "smallest")
    assert labels is not None
    thing = after.labels.is_thing()
    for index in range(len(before.source)) if packing == "lz4" else (0, 5):
        old, new = before.source.load(index), after.source.load(index)
        assert new.name == f"frame_{int(old.name):06d}"
        torch.testing.assert_close(new.camera.world_to_camera, old.camera.world_to_camera, atol=1e-6, rtol=0)
        for a, b in ((new.camera.fx, old.camera.fx), (new.camera.cx, old.camera.cx), (new.camera.cy, old.camera.cy)):
            assert a == pytest.approx(b)
        assert torch.equal(new.color, old.color)
        stored = resize_nearest(np.asarray(Image.open(room / f"depth/{old.name}.png")), 256, 192)
        # Stored at 256x192 and looked up at 160x120: the pixel that holds each one's centre.
        expected = resize_nearest(stored, 160, 120).astype(np.float64)
        assert new.depth is not None
        np.testing.assert_allclose(new.depth.numpy(), np.where(expected <= 8000, expected, 0) / 1000, atol=1e-6)
        _, vertex = caster.view(new.camera)
        assert new.truth is not None
        semantic = np.where(vertex >= 0, labels.semantic[vertex], 0)
        np.testing.assert_array_equal(new.truth.semantic.numpy(), semantic)
        instance = np.where((vertex >= 0) & thing[semantic], labels.instance[vertex], 0)
        np.testing.assert_array_equal(new.truth.instance.numpy(), instance)
        assert (new.masks is None) == (old.masks is None)
        if new.masks is not None and old.masks is not None:
            assert torch.equal(new.masks.semantic, old.masks.semantic)


def test_at_its_own_size_depth_is_the_stored_one(room: Path, written: Path) -> None:
    scene = open_scene(written, masks=None, image_size=DEPTH_SIZE, max_depth=60)
    frame = scene.source.load(4)
    number = int(frame.name.removeprefix("frame_"))
    stored = resize_nearest(np.asarray(Image.open(room / f"depth/{number}.png")), 256, 192)
    assert frame.depth is not None
    np.testing.assert_array_equal(np.round(frame.depth.numpy() * 1000).astype(int), stored)


def test_lossy_colours_are_near(room: Path, tmp_path: Path) -> None:
    """H.264 at CRF 16 halves the resolution of colour: brightness is what tells whether it is the right picture."""
    folder = write_iphone(room, tmp_path)
    scene, before = open_scene(folder, masks=None), scannet_reader.open_scene(room, masks=None)
    for index in (0, 3, len(before.source) - 1):
        a, b = (
            s.source.load(index).color.double() @ torch.tensor([0.299, 0.587, 0.114]).double() for s in (scene, before)
        )
        assert 10 * torch.log10(255**2 / (a - b).square().mean()) > 34


def test_stride_test_every_and_views_thin_the_frames(written: Path) -> None:
    def names(part: str, **options: Any) -> list[int]:
        scene = open_scene(written, masks=None, **options)
        return [int(scene.source.name(i)[6:]) for i in getattr(scene, part)]

    every = sorted(names("train", test_every=0))
    assert not names("test", test_every=0)
    assert names("test", test_every=3) == every[::3]
    assert names("train", stride=2, test_every=4) == [n for k, n in enumerate(every[::2]) if k % 4]
    assert len(names("train", views=3)) == 3
    assert len(names("train", views=3, select="sharpest")) == 3
    with pytest.raises(UserError, match=r"no training frames are left"):
        names("train", test_every=1)


def test_frames_without_a_finite_pose_are_left_out_and_each_has_its_own_intrinsics(iphone: Path) -> None:
    data = json.loads((iphone / POSES).read_text())
    lost = [key for key, value in data.items() if not np.isfinite(value["aligned_pose"]).all()]
    good = [key for key in data if key not in lost]
    del data[good[1]]["aligned_pose"]
    data[good[2]]["intrinsic"][0][0] *= 1.01
    (iphone / POSES).write_text(json.dumps(data))
    scene = open_scene(iphone, masks=None, test_every=0)
    names = [scene.source.name(i) for i in range(len(scene.source))]
    assert names == [key for key in good if key != good[1]]
    cameras = [scene.source.camera(i) for i in range(len(names))]
    assert cameras[1].fx == pytest.approx(1.01 * cameras[0].fx)
    assert cameras[2].fx == cameras[0].fx
    assert cameras[1].cx == cameras[0].cx


def test_what_the_mask_video_hides_has_neither_depth_nor_labels(iphone: Path) -> None:
    count = len(json.loads((iphone / POSES).read_text()))
    shown = np.full((120, 160, 3), 255, np.uint8)
    shown[:, :64] = 0
    write_video(iphone / "iphone/rgb_mask.mkv", [shown] * count)
    with_mask = open_scene(iphone, masks=None).source.load(2)
    (iphone / "iphone/rgb_mask.mkv").unlink()
    without = open_scene(iphone, masks=None).source.load(2)
    assert with_mask.depth is not None
    assert without.depth is not None
    assert with_mask.truth is not None
    assert without.truth is not None
    assert not with_mask.depth[:, :63].any()
    assert not with_mask.truth.semantic[:, :63].any()
    assert torch.equal(with_mask.depth[:, 65:], without.depth[:, 65:])
    assert torch.equal(with_mask.truth.semantic[:, 65:], without.truth.semantic[:, 65:])
    assert torch.equal(with_mask.color, without.color)


def test_the_iphone_is_taken_where_nothing_else_is(room: Path, written: Path, tmp_path: Path) -> None:
    both = write_scannetpp(room, tmp_path)
    (both / "iphone").symlink_to(written / "iphone")
    first = [open_scene(both, masks=None, camera=c).source.name(0)[:3] for c in ("auto", "undistorted", "iphone")]
    assert first == ["DSC", "DSC", "fra"]
    assert open_scene(written, masks=None).source.name(0).startswith("frame_")
    with pytest.raises(UserError, match=r"pose_intrinsic_imu\.json: no such file: .*data\.camera"):
        open_scene(write_scannetpp(room, tmp_path / "x"), masks=None, camera="iphone")


def test_data_info_tells_of_it(written: Path) -> None:
    (found,) = find_scenes(written.parent)
    info = scene_info(found)
    assert (found.layout, info.problem, info.size, info.truth) == ("scannetpp", "", (160, 120), True)
    assert info.depth


# ---------------------------------------------------------------------------------------------------------- bad files


def change(**changes: Any) -> Callable[[Path], None]:
    """Replace keys of the second frame that has a pose."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / POSES).read_text())
        key = [k for k, v in data.items() if np.isfinite(v["aligned_pose"]).all()][1]
        data[key].update(changes)
        (folder / POSES).write_text(json.dumps(data))

    return apply


def cut_video(folder: Path) -> None:
    path = folder / "iphone/rgb.mkv"
    video = VideoFile(path)
    write_video(path.with_name("short.mkv"), [video.read(n) for n in range(5)])
    path.with_name("short.mkv").replace(path)


FLIPPED = np.diag([1.0, 1.0, -1.0, 1.0]).tolist()
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / POSES).write_text("{"), r"pose_intrinsic_imu\.json: is no JSON file"),
    "list": (lambda f: (f / POSES).write_text("[]"), r"is no object with the frames by name"),
    "key": (lambda f: (f / POSES).write_text('{"a\\nb": {}}'), r"'a\\nb' is no name of a frame"),
    "unaligned": (lambda f: (f / POSES).write_text('{"frame_000000": {"pose": []}}'), r"no frame has a finite aligned"),
    "flipped": (change(aligned_pose=FLIPPED), r"frame_00000\d cannot be used \(the pose is no rotation"),
    "shape": (change(aligned_pose=[1, 2]), r"frame_00000\d cannot be used"),
    "focal": (change(intrinsic=[[-1, 0, 80], [0, 1, 60], [0, 0, 1]]), r"intrinsics -1 1 80 60 do not fit pictures"),
    "other size": (change(intrinsic=[[1500, 0, 960], [0, 1500, 720], [0, 0, 1]]), r"do not fit pictures of 160x120"),
    "no depth": (lambda f: (f / "iphone/depth.bin").unlink(), r"depth\.bin: no such file"),
    "no video": (lambda f: (f / "iphone/rgb.mkv").unlink(), r"rgb\.mkv: no such file"),
    "short video": (cut_video, r"rgb\.mkv: has 5 frames, pose_intrinsic_imu\.json names \d+ more: it is cut off"),
    "short depth": (
        lambda f: (f / "iphone/depth.bin").write_bytes(pack_depth(depths(4), "lz4")),
        r"depth\.bin: has 4 frames, pose_intrinsic_imu\.json names \d+ more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_in_one_line(iphone: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(iphone)
    with pytest.raises(UserError, match=message) as caught:
        open_scene(iphone, masks=None)
    assert "\n" not in str(caught.value)


def test_poses_are_read_as_they_are(tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    pose[:3, 3] = [1.5, -2.0, 0.25]
    k = [[150.0, 0, 81.0], [0, 151.0, 59.0], [0, 0, 1]]
    frames = {"frame_000003": {"aligned_pose": pose.tolist(), "intrinsic": k}, "frame_000001": {"pose": pose.tolist()}}
    (tmp_path / "p.json").write_text(json.dumps(frames))
    found = read_poses(tmp_path / "p.json", (160, 120))
    assert list(found) == [1, 3]
    assert found[1] is None
    assert found[3] is not None
    np.testing.assert_allclose(found[3].camera_to_world, pose, atol=1e-15)
    p = found[3].pinhole
    assert (p.fx, p.fy, p.cx, p.cy) == (150, 151, 81, 59)
