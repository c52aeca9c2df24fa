"""The results store: a folder of results that never change, each named by the hash of what it says.

::

    STORE/<dataset>/<scene>/<protocol>/<method>-<16 hex digits>.json

A file is written once, in one piece, read-only. Its name follows from its content, so equal results are one file, two
stores merge by copying, and a change of a file shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from panbench.errors import UserError
from panbench.protocol.results import SceneResult
from panbench.training.files import write_text

_DIGITS = 16


@dataclass(frozen=True, eq=False)
class StoredResult:
    """A result, its hash and its file."""

    hash: str
    path: Path
    result: SceneResult


def content(result: SceneResult) -> str:
    """The text that is stored: canonical JSON (sorted keys, no spaces) and a newline."""
    return json.dumps(result.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def content_hash(result: SceneResult) -> str:
    """sha256 over :func:`content`."""
    return hashlib.sha256(content(result).encode()).hexdigest()


class ResultStore:
    """Reads and adds to a results store; the folder is made with the first result.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def add(self, result: SceneResult) -> str:
        """Store a result, unless it is there already. Returns its hash.

        Raises:
            OSError: if it cannot be written; nothing is left behind then.
        """
        text = content(result)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._write(self._path(result, digest), text)
        return digest

    def merge(self, other: ResultStore) -> int:
        """Copy what another store has and this one lacks; returns how many results that were.

        Raises:
            UserError: at a file of the other store that is no result.
        """
        added = 0
        for found in other:
            added += self._write(self._path(found.result, found.hash), found.path.read_text(encoding="utf-8"))
        return added

    def __contains__(self, digest: str) -> bool:
        return self._find(digest) is not None

    def get(self, digest: str) -> StoredResult:
        """The result whose hash begins with ``digest`` (at least 4 hex digits).

        Raises:
            UserError: if there is none, or more than one.
        """
        path = self._find(digest)
        if path is None:
            raise UserError(f"{self.folder}: no result {digest}: panbench results list shows what there is")
        return self._load(path)

    def paths(self) -> list[Path]:
        """Files of all results, sorted."""
        return sorted(path for path in self.folder.glob("*/*/*/*.json") if not path.name.startswith("."))

    def __iter__(self) -> Iterator[StoredResult]:
        """All results, by path.

        Raises:
            UserError: at a file that is no result.
        """
        for path in self.paths():
            yield self._load(path)

    def faults(self) -> Iterator[tuple[Path, str]]:
        """Files that are not what they were when they were stored, each with what is wrong."""
        for path in self.paths():
            try:
                raw = path.read_bytes()
                result = SceneResult.parse(raw)
                result.counts.unpack()
            except OSError as error:
                yield path, f"cannot be read ({error.strerror})"
            except ValidationError as error:
                yield path, f"is no result ({error.errors()[0]['msg']})"
            except ValueError as error:
                yield path, f"is damaged ({error})"
            else:
                digest = hashlib.sha256(raw).hexdigest()
                if not path.stem.endswith(digest[:_DIGITS]):
                    yield path, "was changed after it was stored: its content has another hash than its name"
                elif path != self._path(result, digest):
                    yield path, f"lies in the wrong folder: it is {self._path(result, digest).relative_to(self.folder)}"

    @staticmethod
    def _write(path: Path, text: str) -> bool:
        if path.exists():
            return False
        write_text(path, text)
        path.chmod(0o444)
        return True

    def _find(self, digest: str) -> Path | None:
        if not re.fullmatch(r"[0-9a-f]{4,64}", digest):
            raise UserError(f"{digest!r} is no hash of a result: give at least four of its hexadecimal digits")
        short = digest[:_DIGITS]
        found = [path for path in self.paths() if path.stem.rpartition("-")[2].startswith(short)]
        if len(found) > 1:
            raise UserError(f"{self.folder}: {digest} is {len(found)} results: give more digits")
        return found[0] if found else None

    def _load(self, path: Path) -> StoredResult:
        result = SceneResult.load(path)
        return StoredResult(hashlib.sha256(path.read_bytes()).hexdigest(), path, result)

    def _path(self, result: SceneResult, digest: str) -> Path:
        parts = (result.dataset or "unknown", result.scene or "unknown", result.protocol)
        return self.folder.joinpath(*map(_safe, parts), f"{_safe(result.method)}-{digest[:_DIGITS]}.json")


def _safe(name: str) -> str:
    """A name as part of a path: what is neither a letter, a digit nor one of ``._@+-`` becomes ``_``."""
    return re.sub(r"[^\w.@+-]", "_", name).lstrip(".") or "_"
