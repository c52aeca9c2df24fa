"""Images in ZIP archives: read where they are, and nothing a hostile archive says is believed."""

from __future__ import annotations

import io
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check, in_file
from PIL import Image

from panbench.data.images import read_integers
from panbench.data.scannet_files import by_number
from panbench.data.zip_file import list_zip
from panbench.errors import UserError

RANDOM = np.random.default_rng(0)
IDS = [RANDOM.integers(0, 65536, (20, 30), dtype=np.uint16) for _ in range(4)]


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def archive(names: list[str], method: int = zipfile.ZIP_DEFLATED, folder: str = "label-filt/") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as out:
        out.writestr(folder, b"")
        for name, image in zip(names, IDS, strict=False):
            out.writestr(folder + name, png(image))
    return stream.getvalue()


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "scene0000_00_2d-label-filt.zip"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_in_place(tmp_path: Path, method: int) -> None:
    path = stored(tmp_path, archive(["0.png", "10.png", "2.png", "info.txt"], method))
    members = by_number(list_zip(path, (".png",)))
    assert list(members) == [0, 2, 10]
    for number, image in ((0, IDS[0]), (10, IDS[1]), (2, IDS[2])):
        np.testing.assert_array_equal(read_integers(members[number]), image)
    assert str(members[2]) == f"{path}!label-filt/2.png"
    assert sorted(tmp_path.iterdir()) == [path]


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    members = list_zip(stored(tmp_path, archive(["0.png", "1.png", "2.png", "3.png"])), (".png",))
    with ThreadPoolExecutor(4) as pool:
        for k, image in enumerate(pool.map(read_integers, members * 20)):
            np.testing.assert_array_equal(image, IDS[k % 4])


def test_a_path_that_leads_out_of_the_archive_leads_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for folder in ("../", "/", "../../../../../../tmp/", "C:/"):
        (member,) = list_zip(stored(inside, archive(["7.png"], folder=folder)), (".png",))
        assert member.stem == "7"
        np.testing.assert_array_equal(read_integers(member), IDS[0])
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def patched(data: bytes, field: int, value: bytes) -> bytes:
    """The archive with a field of the last directory entry replaced, at an offset within the entry."""
    at = data.rindex(b"PK\1\2") + field
    return data[:at] + value + data[at + len(value) :]


WHOLE = archive(["0.png", "1.png"])
BAD = {
    "encrypted": (patched(WHOLE, 8, struct.pack("<H", 1)), r"1\.png: is encrypted"),
    "packed in another way": (patched(WHOLE, 10, struct.pack("<H", 12)), "packed with method 12"),
    "of absurd size": (patched(WHOLE, 24, struct.pack("<I", 3 << 30)), "claims 3221225472 bytes in"),
    "of a ratio that cannot be": (patched(WHOLE, 24, struct.pack("<I", 50_000_000)), "claims 50000000 bytes in"),
    "beyond the end": (patched(WHOLE, 42, struct.pack("<I", 1 << 30)), "reaches beyond the end"),
    "not an archive": (b"PK, but no archive", "is no whole ZIP archive"),
    "cut off": (WHOLE[:-30], "is no whole ZIP archive"),
    "with a frame twice": (archive(["1.png", "01.png"]), r"01\.png: is the same frame number as 1\.png"),
    "with a name that is no number": (archive(["first.png"]), "is not a frame number"),
    "with a number of absurd length": (archive(["1" * 5000 + ".png"]), "is not a frame number"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_archive_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        by_number(list_zip(stored(tmp_path, data), (".png",)))
    assert "\n" not in str(caught.value)


def test_a_member_that_swells_beyond_what_it_states_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("0.png", bytes(200 << 20))
    (member,) = list_zip(stored(tmp_path, patched(stream.getvalue(), 24, struct.pack("<I", 1000))), (".png",))
    with pytest.raises(UserError, match=r"0\.png: cannot be unpacked .*does not hold the 1000 bytes"):
        member.read_bytes()


def test_damaged_content_is_found_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(archive(["0.png"], zipfile.ZIP_STORED))
    data[data.index(b"IDAT") + 20] ^= 1
    (member,) = list_zip(stored(tmp_path, bytes(data)), (".png",))
    with pytest.raises(UserError, match="checksum is wrong"):
        read_integers(member)


def test_mutated_archives_give_a_value_or_one_line(tmp_path: Path) -> None:
    def parse(path: Path) -> None:
        for member in by_number(list_zip(path, (".png",))).values():
            read_integers(member)

    report = check(in_file(tmp_path / "m.zip", parse), [WHOLE, archive(["3.png"], zipfile.ZIP_STORED)], 200)
    assert report.refused > 50
