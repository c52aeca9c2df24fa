"""Image files: every mode holds the values that were written, and what is damaged or absurd is refused in one line."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzzing import Blob, check
from PIL import Image

from panbench.data.images import MAX_PIXELS, MAX_SIDE, image_size, read_color, read_integers
from panbench.errors import UserError

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(0, 256, (13, 17, 3), dtype=np.uint8)
IDS = RANDOM.integers(0, 65536, (13, 17), dtype=np.uint16)


def png(bits: int, kind: int, width: int, height: int, raw: bytes) -> bytes:
    """A PNG written by hand: bits per value, colour type (0 grey, 2 RGB, 3 palette), rows with their filter bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(3)) * (1 << bits)) if kind == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def encoded(array: np.ndarray, form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [0, 3])
def test_ids_of_few_bits_are_read_as_written(bits: int, kind: int) -> None:
    # Tools that shrink PNGs write label images with few bits. Grey of 2 and 4 bit must not come back stretched.
    values = RANDOM.integers(0, 1 << bits, (5, 16), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(5, -1), axis=-1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    np.testing.assert_array_equal(read_integers(Blob("1.png", png(bits, kind, 16, 5, rows))), values)


def test_sixteen_bits_keep_all_values_as_ids_and_the_upper_half_as_colour() -> None:
    data = encoded(IDS)
    np.testing.assert_array_equal(read_integers(Blob("1.png", data)), IDS)
    np.testing.assert_array_equal(read_color(Blob("1.png", data)), np.repeat((IDS >> 8)[..., None], 3, axis=-1))
    wide = RANDOM.integers(0, 65536, (13, 17, 3), dtype=np.uint16)
    ok, buffer = cv2.imencode(".png", wide[..., ::-1])
    assert ok
    assert np.abs(read_color(Blob("1.png", buffer.tobytes())).astype(int) - wide / 257).max() <= 1


def test_ids_written_by_another_library_are_read() -> None:
    for values in (IDS, (IDS & 255).astype(np.uint8)):
        np.testing.assert_array_equal(read_integers(Blob("1.png", cv2.imencode(".png", values)[1].tobytes())), values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_colour_of_any_mode_becomes_three_channels(mode: str) -> None:
    image = Image.fromarray(COLOR).convert(mode)
    found = read_color(Blob("1.png", encoded(COLOR, mode=mode)))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    if mode == "RGB":
        np.testing.assert_array_equal(found, COLOR)


def test_jpegs_are_decoded_as_another_library_does() -> None:
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[:, None], 48, axis=1)[..., None].repeat(3, axis=-1)
    data = encoded(smooth, "JPEG", quality=95)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(read_color(Blob("1.jpg", data)).astype(int) - other.astype(int)).max() <= 2
    assert image_size(Blob("1.jpg", data)) == (48, 64)


def test_the_size_asked_for_is_given() -> None:
    assert read_color(Blob("1.png", encoded(COLOR)), (8, 6)).shape == (6, 8, 3)


def test_a_jpeg_is_no_place_for_ids() -> None:
    with pytest.raises(UserError, match=r"^1\.jpg: is a JPEG, which garbles ids and depth: export it again as PNG"):
        read_integers(Blob("1.jpg", encoded((IDS & 255).astype(np.uint8), "JPEG")))
    with pytest.raises(UserError, match=r"has mode RGB; ids and depth need one"):
        read_integers(Blob("1.png", encoded(COLOR)))


@pytest.mark.parametrize(
    ("width", "height"),
    [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (MAX_SIDE, MAX_PIXELS // MAX_SIDE + 1), (2**31 - 1,) * 2],
)
def test_absurd_sizes_are_refused_by_the_header(width: int, height: int) -> None:
    body = bytes(1 << 17)  # enough of it that the size could be true
    jpeg = bytearray(encoded(COLOR, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    for name, data in (("a.png", png(8, 2, width, height, body)), ("a.jpg", bytes(jpeg) + body)):
        for read in (image_size, read_color):
            started = time.process_time()
            with pytest.raises(UserError, match=r"^a\....: claims to be \d+x\d+; at most 16384 pixels a side and"):
                read(Blob(name, data))
            assert time.process_time() - started < 0.2


def test_a_short_file_that_claims_many_pixels_is_refused_before_memory_is_taken() -> None:
    for read in (read_color, read_integers):
        with pytest.raises(
            UserError, match=r"\d+ bytes cannot hold 8192x8192 pixels\): the file is cut off or damaged"
        ):
            read(Blob("a.png", png(8, 0, 8192, 8192, b"")))


def test_an_even_image_of_the_densest_kind_is_still_read() -> None:
    # One colour only: as few bytes a pixel as PNG and JPEG can be. The limit must not refuse what is true.
    black = np.zeros((2048, 2048), dtype=np.uint8)
    assert not read_integers(Blob("1.png", encoded(black, compress_level=9))).any()
    for options in ({}, {"progressive": True, "optimize": True}):
        assert read_color(Blob("1.jpg", encoded(black, "JPEG", quality=1, **options))).max() <= 1


def test_what_is_missing_or_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"7\.png: no such file"):
        image_size(tmp_path / "7.png")
    (tmp_path / "8.png").mkdir()
    with pytest.raises(UserError, match=r"8\.png: cannot be decoded"):
        image_size(tmp_path / "8.png")
    with pytest.raises(UserError, match=r"neither PNG nor JPEG"):
        read_color(Blob("1.png", b"%!PS-Adobe-3.0 EPSF-3.0\n"))  # Pillow would hand this one to an interpreter


def test_damaged_images_are_read_or_refused_in_one_line() -> None:
    jpegs = [encoded(COLOR, "JPEG"), encoded(COLOR, "JPEG", progressive=True)]
    check(lambda data: read_color(Blob("1", data)), [encoded(COLOR), *jpegs], 150)
    few = (IDS & 15).astype(np.uint8)
    check(lambda data: read_integers(Blob("1", data)), [encoded(IDS), encoded(few), encoded(few, mode="P")], 150)
