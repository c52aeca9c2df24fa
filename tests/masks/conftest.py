"""One built-in room for all tests of masks; each module may write into a copy of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from panbench.data.rooms import make_room


@pytest.fixture(scope="session")
def made_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("made"), size="tiny", seed=3, progress=False)


@pytest.fixture(scope="module")
def room(made_room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The room, with the mask sets clean, light, medium and heavy."""
    root = tmp_path_factory.mktemp("room")
    shutil.copytree(made_room.parent, root, dirs_exist_ok=True)
    return root / made_room.name
