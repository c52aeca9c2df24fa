"""One built-in room for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from panbench.data.rooms import make_room
from panbench.data.scannet import ScanNetDataModule

RoomData = Callable[[int, int], ScanNetDataModule]


@pytest.fixture(scope="session")
def room_data(tmp_path_factory: pytest.TempPathFactory) -> RoomData:
    """Makes a data module of the tiny room with clean masks at (width, height)."""
    folder = make_room(tmp_path_factory.mktemp("rooms"), size="tiny", masks=("clean",), progress=False)

    def open_at(width: int, height: int) -> ScanNetDataModule:
        return ScanNetDataModule(root=str(folder), masks="clean", image_size=(width, height), order_seed=0)

    return open_at
