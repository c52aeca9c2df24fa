"""Copies of finished runs on storage that machines share: whatever fsspec can write to (a folder, s3://, gs://, sftp://).

For clusters whose nodes share no disk. A copy is whole once its manifest is there, and the manifest is written last;
what an upload that broke off has sent already is in a journal, and is not sent again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pydantic

from panbench.errors import UserError
from panbench.training.files import replacing

MANIFEST = "upload.json"
_JOURNAL = "upload.json.journal"
_CHUNK = 2**20
_JOURNAL_BYTES = 64 * 2**20  # sent between two entries of the journal
_SIDE_BY_SIDE = 8
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"}  # show an object only once it is whole


class _File(pydantic.BaseModel, frozen=True, extra="forbid"):
    bytes: int
    sha256: str


class _Listing(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a copy consists of, by path relative to its top."""

    schema_version: int = 1
    files: dict[str, _File] = {}


def upload(folder: Path, url: str, *, skip: Sequence[str] = ("checkpoints",)) -> int:
    """Make ``url`` a copy of a folder; sends what is not there yet, large files first.

    Args:
        folder: what to copy. Files that end in ``.part`` are half written, and are left out.
        url: the copy's own folder; a plain path is one of this machine.
        skip: names (or patterns) of files and folders to leave out.

    Returns:
        bytes sent.

    Raises:
        UserError: the folder is not there, or the storage cannot be reached or written to.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder to upload")
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _skipped(path.relative_to(folder), (*skip, "*.part"))
    }
    with _storage(url) as store:
        whole = store.listing(MANIFEST)
        known = (whole or store.listing(_JOURNAL) or _Listing()).files
        sizes = store.sizes()
        done = {name: known[name] for name, path in paths.items() if _same(path, known.get(name), sizes.get(name))}
        if whole and done.keys() == paths.keys() == known.keys():
            return 0
        # From here on the copy is not whole.
        store.write(_JOURNAL, _Listing(files=done))
        store.remove(MANIFEST)
        sent = noted = 0
        missing = sorted(paths.keys() - done.keys(), key=lambda name: (-paths[name].stat().st_size, name))
        store.make_folders(missing)
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            jobs = {pool.submit(store.send, paths[name], name): name for name in missing}
            try:
                for job in as_completed(jobs):
                    done[jobs[job]] = job.result()
                    sent += job.result().bytes
                    if sent >= noted + _JOURNAL_BYTES:
                        noted = sent
                        store.write(_JOURNAL, _Listing(files=done))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                store.write(_JOURNAL, _Listing(files=done))
                raise
        store.write(MANIFEST, _Listing(files=done))
        for name in (_JOURNAL, *sorted(known.keys() - done.keys())):
            store.remove(name)
    return sent


def fetch(url: str, folder: Path, *, only: Sequence[str] = ("*",)) -> int:
    """Make ``folder`` hold what an upload copied; gets what is not there yet and checks what it gets.

    Args:
        url: as given to :func:`upload`.
        folder: where to; other files in it stay.
        only: patterns of the paths to get (``result.json``, ``results/*``).

    Returns:
        bytes received.

    Raises:
        UserError: no whole copy is there, a file of it is damaged, or the storage cannot be reached.
    """
    received = 0
    with _storage(url) as store:
        listing = store.listing(MANIFEST)
        if listing is None:
            raise UserError(f"{url}: no whole copy of a run there ({MANIFEST} is missing): upload it (again)")
        for name, file in listing.files.items():
            if not any(fnmatch(name, pattern) for pattern in only):
                continue
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts:
                raise UserError(f"{url}/{MANIFEST}: {name!r} lies outside the copy: do not use it")
            path = folder / inside
            if path.is_file() and _same(path, file, file.bytes):
                continue
            with store.open(name) as source, replacing(path) as target:
                if _copy(source, target) != file:
                    raise UserError(
                        f"{url}/{name}: not what was uploaded (wrong SHA-256): remove it there and upload again"
                    )
            received += file.bytes
    return received


class _Store:
    """The files of one copy."""

    def __init__(self, files: Any, top: str) -> None:
        self._files = files
        self._top = top
        protocol: str | tuple[str, ...] = files.protocol
        self._is_object_store = bool(_OBJECT_STORES & set([protocol] if isinstance(protocol, str) else protocol))

    def _at(self, name: str) -> str:
        return f"{self._top}/{name}"

    def open(self, name: str) -> IO[bytes]:
        return self._files.open(self._at(name), "rb")

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is there."""
        self._files.invalidate_cache()
        if not self._files.exists(self._top):
            return {}
        found: dict[str, dict[str, Any]] = self._files.find(self._top, detail=True)
        start = len(self._top.rstrip("/")) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items()}

    def listing(self, name: str) -> _Listing | None:
        try:
            with self.open(name) as stream:
                return _Listing.model_validate_json(stream.read())
        except FileNotFoundError:
            return None
        except pydantic.ValidationError as problem:
            raise UserError(f"{self._at(name)}: not a list of files that panbench wrote: remove it") from problem

    def make_folders(self, names: Sequence[str]) -> None:
        for folder in sorted({str(PurePosixPath(self._at(name)).parent) for name in names}):
            self._files.makedirs(folder, exist_ok=True)

    def send(self, path: Path, name: str) -> _File:
        with path.open("rb") as source, self._replacing(name) as target:
            return _copy(source, target)

    def write(self, name: str, listing: _Listing) -> None:
        self.make_folders([name])
        with self._replacing(name) as stream:
            stream.write(listing.model_dump_json(indent=1).encode())

    def remove(self, name: str) -> None:
        if self._files.exists(self._at(name)):
            self._files.rm_file(self._at(name))

    @contextmanager
    def _replacing(self, name: str) -> Generator[IO[bytes], None, None]:
        """A file that appears under its name once it is complete."""
        path = self._at(name)
        part = path if self._is_object_store else f"{path}.part"
        with self._files.open(part, "wb") as stream:
            yield stream
        if part != path:
            self._files.mv(part, path)


@contextmanager
def _storage(url: str) -> Generator[_Store, None, None]:
    """Open the storage of a URL; what goes wrong with it is told in one line."""
    from fsspec.core import url_to_fs

    try:
        files, top = cast("tuple[Any, str]", url_to_fs(url))
    except ImportError as problem:  # says which package to install
        raise UserError(f"{url}: {problem}") from problem
    except ValueError as problem:
        raise UserError(f"{url}: {problem}: give a folder or a URL that fsspec knows") from problem
    try:
        yield _Store(files, top.rstrip("/"))
    except OSError as problem:
        reason = problem.strerror or str(problem) or type(problem).__name__
        raise UserError(f"{url}: {reason}: are the address and the access to it right, and is there room?") from problem


def _skipped(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(part, pattern) for part in path.parts for pattern in patterns)


def _same(path: Path, file: _File | None, size: int | None) -> bool:
    """Whether a local file is the one that is listed, and as large in the storage as it should be."""
    if file is None or size != file.bytes or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _copy(source: IO[bytes], target: IO[bytes]) -> _File:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size += len(chunk)
        target.write(chunk)
    return _File(bytes=size, sha256=digest.hexdigest())


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def _main(arguments: Sequence[str]) -> int:
    """``python -m panbench.bench.artifacts RECEIPT URL``: upload the run that a receipt names; a command of a task."""
    receipt, url = arguments
    try:
        try:
            run = json.loads(Path(receipt).read_text())["run"]
        except (OSError, ValueError, KeyError) as problem:
            raise UserError(f"{receipt}: not the receipt of a run (written by --run.receipt): {problem}") from problem
        upload(Path(run), url)
    except UserError as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
