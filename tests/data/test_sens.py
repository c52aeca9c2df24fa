""".sens streams: indexed without reading images, decoded exactly, refused in one line when they are damaged."""

from __future__ import annotations

import io
import multiprocessing
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check, in_file
from PIL import Image

from panbench.data.depth_image import DepthImage, depth_size, read_depth
from panbench.data.images import read_color
from panbench.data.sens import SensFile, SensFrame, write_sens
from panbench.errors import UserError

RANDOM = np.random.default_rng(0)
WIDTH, HEIGHT, DEPTH_WIDTH, DEPTH_HEIGHT = 14, 9, 8, 6
POSES = [np.eye(4) + 0.25 * k * np.eye(4, k=3) for k in range(3)]
DEPTHS = [RANDOM.integers(0, 65536, (DEPTH_HEIGHT, DEPTH_WIDTH), dtype=np.uint16) for _ in POSES]
COLORS = [RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in POSES]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def by_hand(
    *,
    version: int = 4,
    name: bytes = b"StructureSensor",
    codecs: tuple[int, int] = (1, 1),
    sizes: tuple[int, int, int, int] = (WIDTH, HEIGHT, DEPTH_WIDTH, DEPTH_HEIGHT),
    shift: float = 1000.0,
    count: int = len(POSES),
    depths: list[bytes] | None = None,
    trailer: bytes = struct.pack("<Q", 0),
) -> bytes:
    """A stream written field by field as the format is stated, by nothing of ours."""
    out = struct.pack("<IQ", version, len(name)) + name
    for k in range(4):
        out += struct.pack("<16f", *range(16 * k, 16 * k + 16))
    out += struct.pack("<ii4IfQ", *codecs, *sizes, shift, count)
    for k, pose in enumerate(POSES):
        depth = zlib.compress(DEPTHS[k].astype("<u2").tobytes()) if depths is None else depths[k]
        color = png(COLORS[k])
        out += struct.pack("<16f", *pose.ravel()) + struct.pack("<4Q", 2**64 - 1, 7, len(color), len(depth))
        out += color + depth
    return out + trailer


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "scene0000_00.sens"
    path.write_bytes(data)
    return path


def test_a_stream_of_the_stated_format_holds_what_was_put_in(tmp_path: Path) -> None:
    sens = SensFile(stored(tmp_path, by_hand()))
    h = sens.header
    assert (h.sensor, h.color_codec, h.depth_codec, h.depth_shift) == ("StructureSensor", "png", "zlib_ushort", 1000.0)
    assert (h.color_size, h.depth_size) == ((WIDTH, HEIGHT), (DEPTH_WIDTH, DEPTH_HEIGHT))
    matrices = (h.color_intrinsic, h.color_extrinsic, h.depth_intrinsic, h.depth_extrinsic)
    for k, matrix in enumerate(matrices):
        np.testing.assert_array_equal(matrix, np.arange(16 * k, 16 * k + 16).reshape(4, 4))
    np.testing.assert_array_equal(sens.poses, POSES)
    for k in range(len(sens)):
        color, depth = sens.color(k), sens.depth(k)
        assert depth is not None
        assert (color.name, color.stem, str(color)) == (f"{k}.png", str(k), f"{sens.path} frame {k}")
        np.testing.assert_array_equal(read_color(color), COLORS[k])
        assert isinstance(depth, DepthImage)
        assert depth_size(depth) == (DEPTH_WIDTH, DEPTH_HEIGHT)
        np.testing.assert_array_equal(read_depth(depth), DEPTHS[k])


def test_depth_that_is_not_packed_is_read_too(tmp_path: Path) -> None:
    data = by_hand(codecs=(1, 0), depths=[d.astype("<u2").tobytes() for d in DEPTHS])
    depth = SensFile(stored(tmp_path, data)).depth(2)
    assert depth is not None
    np.testing.assert_array_equal(depth.read_depth(), DEPTHS[2])


@pytest.mark.parametrize("shift", [500.0, 1000.0, 4000.0])
def test_the_depth_shift_says_how_many_units_make_a_metre(tmp_path: Path, shift: float) -> None:
    depth = SensFile(stored(tmp_path, by_hand(shift=shift))).depth(0)
    assert depth is not None
    metres = DEPTHS[0].astype(np.float64) / shift
    np.testing.assert_allclose(depth.read_depth() / 1000, np.minimum(metres, 65.535), atol=0.0005 + 1e-12)


def test_a_written_stream_reads_back_and_is_the_stated_format(tmp_path: Path) -> None:
    path = tmp_path / "a.sens"
    header = replace(
        SensFile(stored(tmp_path, by_hand())).header, color_codec="png", depth_shift=2000.0, sensor="something else"
    )
    lost = np.full((4, 4), -np.inf)
    frames = [SensFrame(png(c), d, p, 5) for c, d, p in zip(COLORS, DEPTHS, [POSES[0], lost, POSES[2]], strict=True)]
    assert write_sens(path, header, iter(frames)) == 3
    sens = SensFile(path)
    assert sens.header.sensor == "something else"
    np.testing.assert_array_equal(sens.header.depth_extrinsic, header.depth_extrinsic)
    np.testing.assert_array_equal(np.isfinite(sens.poses).all((1, 2)), [True, False, True])
    for k in range(3):
        np.testing.assert_array_equal(read_color(sens.color(k)), COLORS[k])
    # Other readers need the number of inertial measurements at the end: 0.
    assert path.read_bytes()[-8:] == bytes(8)
    head = 4 + 8 + len("something else") + 4 * 64
    assert struct.unpack_from("<ii4IfQ", path.read_bytes(), head) == (1, 1, 14, 9, 8, 6, 2000.0, 3)


def test_a_writer_refuses_depth_of_another_size(tmp_path: Path) -> None:
    header = SensFile(stored(tmp_path, by_hand())).header
    with pytest.raises(ValueError, match="the header says"):
        write_sens(tmp_path / "b.sens", header, [SensFrame(b"", DEPTHS[0].T, POSES[0])])
    with pytest.raises(ValueError, match="not raw_ushort"):
        write_sens(tmp_path / "b.sens", replace(header, depth_codec="raw_ushort"), [])


def test_five_thousand_frames_open_at_once_and_without_reading_images(tmp_path: Path) -> None:
    # Payloads of 200 KB that are holes in the file: reading them would take a gigabyte.
    path = tmp_path / "long.sens"
    head = by_hand(count=5000, sizes=(640, 480, 640, 480))[: 4 + 8 + 15 + 256 + 36]
    with path.open("wb") as file:
        file.write(head)
        for k in range(5000):
            file.write(struct.pack("<16f", *(POSES[0] * 1.0).ravel()) + struct.pack("<4Q", k, k, 150_000, 50_000))
            file.seek(200_000, 1)
        file.write(struct.pack("<Q", 0))
    tracemalloc.start()
    started = time.perf_counter()
    sens = SensFile(path)
    took = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sens) == 5000
    assert sens.color(4999).offset + 200_000 + 8 == path.stat().st_size
    assert took < 3
    assert peak < 16 << 20


def test_payloads_are_read_by_other_processes(tmp_path: Path) -> None:
    sens = SensFile(stored(tmp_path, by_hand()))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (read,) = pool.map(read_color, [sens.color(1)])
    np.testing.assert_array_equal(read, COLORS[1])


BOMB = zlib.compress(bytes(1 << 26))
BAD = {
    "of another version": (by_hand(version=3), "is version 3, not 4"),
    "occi depth": (by_hand(codecs=(1, 2)), "depth images are packed as occi_ushort; .* SensReader"),
    "raw colour": (by_hand(codecs=(0, 1)), "colour images are packed as raw"),
    "unheard-of codec": (by_hand(codecs=(9, 1)), "packed as number 9"),
    "absurd name": (struct.pack("<IQ", 4, 2**63) + b"x" * 99, "sensor's name has"),
    "absurd size": (by_hand(sizes=(WIDTH, HEIGHT, 2**31, 2)), "claims images of 2147483648x2"),
    "no pixels": (by_hand(sizes=(WIDTH, 0, 8, 6)), "claims images of 14x0"),
    "no depth shift": (by_hand(shift=0.0), "depth shift is 0"),
    "absurd number of frames": (by_hand(count=2**62), "claims 4611686018427387904 frames"),
    "cut within the header": (by_hand()[:100], "ends within its header"),
    "cut before a frame": (by_hand()[:-700], r"the file is cut off|ends"),
    "empty": (b"", "ends within its header"),
    "absurd payload": (by_hand(depths=[b"", b"", b"\0" * 70_000]), "claims 70000 bytes for one image of frame 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_stream_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = stored(tmp_path, data)
    with pytest.raises(UserError, match=message) as caught:
        SensFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (BOMB, "holds more instead of the 96 bytes of 8x6"),
        (zlib.compress(bytes(10)), "holds 10 bytes instead of the 96"),
        (zlib.compress(bytes(96))[:-6], "holds|cannot be decoded"),
        (b"no stream", "cannot be decoded"),
    ],
)
def test_a_damaged_depth_payload_is_refused_whatever_it_would_swell_to(
    tmp_path: Path, payload: bytes, message: str
) -> None:
    depth = SensFile(stored(tmp_path, by_hand(depths=[payload[:60_000], b"", b""]))).depth(0)
    assert depth is not None
    with pytest.raises(UserError, match=rf"scene0000_00\.sens depth of frame 0: .*({message}).*download it again"):
        depth.read_depth()


def test_a_file_that_shrinks_after_it_was_indexed_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, by_hand())
    sens = SensFile(path)
    path.write_bytes(by_hand()[:400])
    depth = sens.depth(2)
    assert depth is not None
    for read in (lambda: read_color(sens.color(2)), depth.read_depth):
        with pytest.raises(UserError, match=r"ended .* bytes too early"):
            read()


def test_mutated_streams_give_a_value_or_one_line(tmp_path: Path) -> None:
    def parse(path: Path) -> None:
        sens = SensFile(path)
        for k in range(min(len(sens), 5)):
            read_color(sens.color(k))
            depth = sens.depth(k)
            if depth is not None:
                depth.read_depth()

    report = check(in_file(tmp_path / "m.sens", parse), [by_hand()], 200)
    assert report.refused > 50
