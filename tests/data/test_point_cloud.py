"""Point clouds: PLY, LAS and PCD read back, and every kind of bad file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from panbench.data.point_cloud import MAX_POINTS, lzf_decompress, read_point_cloud, write_ply
from panbench.errors import UserError
from panbench.scene import Points

COUNT = 50
RANDOM = np.random.default_rng(0)
POSITIONS = RANDOM.uniform(-3, 3, (COUNT, 3)).astype(np.float32)
COLORS = RANDOM.integers(0, 256, (COUNT, 3)).astype(np.uint8)
NORMALS = (lambda n: n / np.linalg.norm(n, axis=1, keepdims=True))(RANDOM.normal(size=(COUNT, 3))).astype(np.float32)


def pack_lzf(data: bytes) -> bytes:
    """LZF by the book, greedy: the nearest earlier place of the next three bytes."""
    out, literal, at = bytearray(), bytearray(), 0

    def flush() -> None:
        for first in range(0, len(literal), 32):
            part = literal[first : first + 32]
            out.append(len(part) - 1)
            out.extend(part)
        literal.clear()

    while at < len(data):
        found = data.rfind(data[at : at + 3], max(0, at - 8192), at + 2) if at + 3 <= len(data) else -1
        if found < 0 or found >= at:
            literal.append(data[at])
            at += 1
            continue
        length = 3
        while length < 264 and at + length < len(data) and data[found + length] == data[at + length]:
            length += 1
        flush()
        back = at - found - 1
        code = length - 2
        out.append((min(code, 7) << 5) | (back >> 8))
        if code >= 7:
            out.append(code - 7)
        out.append(back & 255)
        at += length
    flush()
    return bytes(out)


def pcd(kind: str, *, padded: bool = False) -> bytes:
    bits = (COLORS[:, 0].astype(np.uint32) << 16) | (COLORS[:, 1].astype(np.uint32) << 8) | COLORS[:, 2]
    rgb = bits.view(np.float32)
    fields = ["x", "y", "z", "rgb", "normal_x", "normal_y", "normal_z"]
    counts = ["1"] * 7
    columns: list[np.ndarray] = [*POSITIONS.T, rgb, *NORMALS.T]
    if padded:
        fields, counts = [*fields[:3], "_", *fields[3:]], [*counts[:3], "4", *counts[3:]]
        columns.insert(3, np.zeros((COUNT, 4), np.float32))
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS {' '.join(fields)}\nSIZE {' '.join('4' * len(fields))}\nTYPE {' '.join('F' * len(fields))}\n"
        f"COUNT {' '.join(counts)}\nWIDTH {COUNT}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {COUNT}\nDATA {kind}\n"
    ).encode()
    table = np.concatenate([c.reshape(COUNT, -1) for c in columns], axis=1).astype("<f4")
    if kind == "ascii":
        lines = [" ".join(repr(float(v)) for v in row) for row in table]
        return header + ("\n".join(lines) + "\n").encode()
    if kind == "binary":
        return header + table.tobytes()
    plain = b"".join(np.ascontiguousarray(c, dtype="<f4").tobytes() for c in columns)
    packed = pack_lzf(plain)
    return header + struct.pack("<II", len(packed), len(plain)) + packed


def ply(path: Path, *, text: bool) -> None:
    table = np.zeros(COUNT, dtype=[(n, "f4") for n in ("x", "y", "z", "nx", "ny", "nz")] + [(n, "u1") for n in "rgb"])
    for k in range(3):
        table["xyz"[k]], table["n" + "xyz"[k]], table["rgb"[k]] = POSITIONS[:, k], NORMALS[:, k], COLORS[:, k]
    faces = np.array([([0, 1, 2],), ([2, 3, 4],)], dtype=[("vertex_indices", "i4", (3,))])
    PlyData([PlyElement.describe(table, "vertex"), PlyElement.describe(faces, "face")], text=text).write(str(path))


def check(points: Points, *, normals: bool = True) -> None:
    np.testing.assert_allclose(points.positions, POSITIONS, atol=1e-6)
    assert points.colors is not None
    np.testing.assert_allclose(points.colors * 255, COLORS, atol=1e-3)
    if normals:
        assert points.normals is not None
        np.testing.assert_allclose(points.normals, NORMALS, atol=1e-6)


@pytest.mark.parametrize("text", [True, False])
def test_a_ply_of_another_library_reads_back(tmp_path: Path, text: bool) -> None:
    ply(tmp_path / "cloud.ply", text=text)
    check(read_point_cloud(tmp_path / "cloud.ply"))


def test_our_ply_is_read_by_another_library_and_by_us(tmp_path: Path) -> None:
    path = tmp_path / "cloud.ply"
    write_ply(path, Points(POSITIONS, COLORS.astype(np.float32) / 255, NORMALS))
    rows = PlyData.read(str(path))["vertex"].data
    np.testing.assert_array_equal(np.stack([rows[a] for a in "xyz"], 1), POSITIONS)
    np.testing.assert_array_equal(np.stack([rows[a] for a in ("red", "green", "blue")], 1), COLORS)
    check(read_point_cloud(path))


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_pcd_reads_back(tmp_path: Path, kind: str, padded: bool) -> None:
    (tmp_path / "cloud.pcd").write_bytes(pcd(kind, padded=padded))
    check(read_point_cloud(tmp_path / "cloud.pcd"))


def test_a_las_of_another_library_reads_back(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales = [1e-7] * 3
    data = laspy.LasData(header)
    data.x, data.y, data.z = POSITIONS.astype(np.float64).T
    data.red, data.green, data.blue = COLORS.T.astype(np.uint16) * 257
    data.write(str(tmp_path / "cloud.las"))
    check(read_point_cloud(tmp_path / "cloud.las"), normals=False)
    data.red, data.green, data.blue = COLORS.T.astype(np.uint16)
    data.write(str(tmp_path / "eight_bit.las"))
    check(read_point_cloud(tmp_path / "eight_bit.las"), normals=False)
    content = (tmp_path / "cloud.las").read_bytes()
    (tmp_path / "cut.las").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"cut\.las: is no whole LAS file"):
        read_point_cloud(tmp_path / "cut.las")


def test_lzf_by_hand() -> None:
    # Three bytes as they are, then 4 repeated from 3 back (it reaches into itself), then 9 + 2 + 0 from 1 back.
    packed = bytes([2]) + b"abc" + bytes([(2 << 5) | 0, 2]) + bytes([(7 << 5) | 0, 2, 0])
    assert lzf_decompress(packed, 18) == b"abc" + b"abca" + b"a" * 11


@pytest.mark.parametrize(
    "packed", [b"\x05ab", b"\x20", b"\xe0", b"\xe0\x01", b"\x00a\x20\x05", b"\x00a", b"\x01ab\x01cd"]
)
def test_lzf_that_is_cut_off_or_wrong_is_an_error(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"before the start|cut off|came out|cannot hold"):
        lzf_decompress(packed, 3)


def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    holes = POSITIONS.copy()
    holes[::2] = np.nan
    write_ply(tmp_path / "cloud.ply", Points(holes, COLORS.astype(np.float32) / 255))
    points = read_point_cloud(tmp_path / "cloud.ply")
    np.testing.assert_array_equal(points.positions, POSITIONS[1::2])
    write_ply(tmp_path / "none.ply", Points(holes[::2]))
    with pytest.raises(UserError, match=r"none\.ply: has no finite points"):
        read_point_cloud(tmp_path / "none.ply")


def test_more_points_than_are_kept_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_POINTS > 10 * COUNT
    monkeypatch.setattr("panbench.data.point_cloud.MAX_POINTS", 20)
    write_ply(tmp_path / "cloud.ply", Points(POSITIONS))
    points = read_point_cloud(tmp_path / "cloud.ply")
    assert len(points) == 20
    assert (points.positions[:, None] == POSITIONS[None]).all(-1).any(1).all()


def test_a_cloud_far_from_the_origin_is_an_error(tmp_path: Path) -> None:
    write_ply(tmp_path / "cloud.ply", Points(POSITIONS + np.float32(500_000)))
    with pytest.raises(UserError, match="subtract one offset"):
        read_point_cloud(tmp_path / "cloud.ply")


HEADER = "VERSION 0.7\nFIELDS {f}\nSIZE {s}\nTYPE {t}\nCOUNT {c}\nWIDTH {n}\nHEIGHT 1\nPOINTS {n}\nDATA {d}\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.xyz", b"", "is no point cloud that can be read"),
        ("a.ply", b"", "is no whole PLY file"),
        ("a.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 9999999999\nproperty float x\nend_header\n",
         "promises 19999999998 rows and values in"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "with x, y, z"),
        ("a.pcd", b"VERSION 0.7\n", "no DATA line"),
        ("a.pcd", HEADER.format(f="x y z", s="4 4 4", t="F F F", c="1 1 1", n=10**12, d="binary").encode(),
         "1000000000000 points in 0 bytes"),
        ("a.pcd", HEADER.format(f="x y z", s="4 4 4", t="F F F", c="1 1 1", n=2, d="ascii").encode() + b"1 2 3\n",
         "1 rows of 3 numbers, not 2 of 3"),
        ("a.pcd", HEADER.format(f="x y", s="4 4", t="F F", c="1 1", n=1, d="ascii").encode() + b"1 2\n",
         "has no fields x, y and z, but x, y"),
        ("a.pcd", HEADER.format(f="x y z", s="4 4 3", t="F F F", c="1 1 1", n=1, d="binary").encode() + b"1" * 50,
         "do not fit"),
        ("a.pcd", HEADER.format(f="x y z", s="4 4 4", t="F F F", c="1 1 1", n=100, d="binary_compressed").encode()
         + struct.pack("<II", 4, 1200) + b"\x00" * 40, "cannot hold|came out"),
    ],
)  # fmt: skip
def test_a_bad_cloud_is_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        read_point_cloud(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cloud_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file: correct"):
        read_point_cloud(tmp_path / "none.ply")
