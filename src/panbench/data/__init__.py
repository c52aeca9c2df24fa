"""Scenes from files: readers, data modules, the built-in rooms. Importing this package loads nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panbench.data.base import SceneDataModule
    from panbench.data.scannet import ScanNetDataModule
    from panbench.data.scannetpp import ScanNetPPDataModule

__all__ = ["ScanNetDataModule", "ScanNetPPDataModule", "SceneDataModule"]

_HOMES = {
    "SceneDataModule": "panbench.data.base",
    "ScanNetDataModule": "panbench.data.scannet",
    "ScanNetPPDataModule": "panbench.data.scannetpp",
}


def __getattr__(name: str) -> object:
    # Lightning takes seconds to import: only who asks for a data module pays.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
