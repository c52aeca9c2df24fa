"""Images in a ZIP archive, read where they are. Nothing is ever extracted, so a member's path leads nowhere."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from panbench.errors import UserError

MAX_MEMBER = 1 << 26  # bytes; the largest label images of ScanNet have 2.5 MB unpacked
_DENSEST = 1032  # deflate packs at most so many bytes into one
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_BROKEN = (OSError, ValueError, NotImplementedError, EOFError, IndexError, OverflowError, struct.error)


@dataclass(frozen=True)
class ZipMember:
    """A file in an archive (a :class:`panbench.data.file.File`)."""

    path: Path
    member: str
    header_offset: int
    packed: int
    length: int
    deflated: bool
    crc: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.member).stem

    def __str__(self) -> str:
        return f"{self.path}!{self.member}"

    def read_bytes(self) -> bytes:
        """Its content. The archive is opened each time, without reading its directory again: any process may call it.

        Raises:
            UserError: the archive is cut off or damaged, or holds more than its directory says.
            OSError: the archive cannot be read.
        """
        with self.path.open("rb", buffering=0) as file:
            header = os.pread(file.fileno(), _LOCAL_HEADER.size, self.header_offset)
            if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise self._damaged("its header is not where the directory says")
            _, name, extra = _LOCAL_HEADER.unpack(header)
            data = os.pread(file.fileno(), self.packed, self.header_offset + _LOCAL_HEADER.size + name + extra)
        if self.deflated:
            try:
                # One byte more than stated tells a lie, whatever it would swell to.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.length + 1)
            except zlib.error as error:
                raise self._damaged(str(error)) from error
        if len(data) != self.length:
            raise self._damaged(f"it does not hold the {self.length} bytes that the directory says")
        if zlib.crc32(data) != self.crc:
            raise self._damaged("its checksum is wrong")
        return data

    def _damaged(self, cause: str) -> UserError:
        return UserError(f"{self}: cannot be unpacked ({cause}): the archive is damaged, download it again")


def list_zip(path: Path, suffixes: Sequence[str], largest: int = MAX_MEMBER) -> list[ZipMember]:
    """The files of an archive that end in one of the suffixes (lower case, with dot), whatever folder they are in.

    ``largest`` is how many bytes one of them may have unpacked.

    Raises:
        UserError: there is no such archive, it is cut off or damaged, or a member is encrypted, packed in a way that is
            not read, or of a size that cannot be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [i for i in archive.infolist() if PurePosixPath(i.filename).suffix.lower() in suffixes]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: download it again") from error
    except (zipfile.BadZipFile, *_BROKEN) as error:
        raise UserError(f"{path}: is no whole ZIP archive ({error}): download it again") from error
    end = path.stat().st_size
    return [_member(path, info, end, largest) for info in infos]


def _member(path: Path, info: zipfile.ZipInfo, end: int, largest: int) -> ZipMember:
    shown = "".join(c if c.isprintable() else "?" for c in info.filename)
    where = f"{path}!{shown}"
    if info.flag_bits & _ENCRYPTED:
        raise UserError(f"{where}: is encrypted: download the archive again, or unpack it and pack it without password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{where}: is packed with method {info.compress_type}; stored and deflated files are read: pack it again"
        )
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    bound = _DENSEST * info.compress_size if deflated else info.compress_size
    if info.file_size > min(bound, largest):
        raise UserError(
            f"{where}: claims {info.file_size} bytes in {info.compress_size}; at most {largest} are read: the "
            "archive is damaged, download it again"
        )
    if info.header_offset < 0 or info.header_offset + info.compress_size > end:
        raise UserError(f"{where}: reaches beyond the end of the archive: it is cut off, download it again")
    return ZipMember(path, shown, info.header_offset, info.compress_size, info.file_size, deflated, info.CRC)
