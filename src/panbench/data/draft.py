"""Folders that appear in one step: written as a draft beside their place, then renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from panbench.errors import UserError


@contextmanager
def appearing(target: Path, mark: str) -> Generator[Path]:
    """A draft folder beside ``target`` that takes its place when the block ends well, and goes away if not.

    Args:
        mark: a file or folder that says that what stands at ``target`` was written by this program and may be replaced.

    Raises:
        UserError: something else stands there, or the folder cannot be written.
    """
    if target.exists() and not (target / mark).exists():
        raise UserError(
            f"{target}: is there already and was not written by panbench (no {mark} in it): choose another folder"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield draft
            draft.chmod(0o755)
            if target.exists():
                old = draft.with_name(draft.name + ".old")
                target.rename(old)
                draft.rename(target)
                shutil.rmtree(old)
            else:
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
