"""Which layout a folder holds, and one way to open a scene whatever its layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from panbench.errors import UserError
from panbench.scene import Scene


@dataclass(frozen=True)
class Found:
    """A scene's folder and its layout, a key of :data:`LAYOUTS`."""

    folder: Path
    layout: str


def _is_exported(folder: Path) -> bool:
    return (folder / "color").is_dir() and any((folder / name).is_dir() for name in ("pose", "intrinsic", "depth"))


def _is_raw(folder: Path) -> bool:
    return (folder / f"{folder.name}.sens").is_file()


def _is_scannetpp(folder: Path) -> bool:
    # The DSLR images, or the iPhone's video.
    return (folder / "dslr").is_dir() or (folder / "iphone" / "pose_intrinsic_imu.json").is_file()


# layout: (what it is, how a folder of it is known). The first that fits is taken.
LAYOUTS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "scannet": ("ScanNet-V2, exported", _is_exported),
    "scannet-raw": ("ScanNet-V2 as downloaded (.sens)", _is_raw),
    "scannetpp": ("ScanNet++", _is_scannetpp),
}
_BRANCHES = ("data", "scans", "scans_test")  # where the releases keep their scenes


def detect(folder: Path) -> str | None:
    """The layout of a scene's folder; None if it is none."""
    return next((name for name, (_, fits) in LAYOUTS.items() if fits(folder)), None)


def find_scenes(root: Path, scene: str | None = None) -> list[Found]:
    """Root itself if it is a scene, else the scenes in it (or in the ``data/`` or ``scans/`` in it), by name.

    Args:
        scene: only the one of this name.

    Raises:
        UserError: there is none.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give a scene's folder, or a folder of scenes")
    root = root.resolve()
    layout = detect(root)
    if layout is not None and scene in (None, root.name):
        return [Found(root, layout)]
    found: dict[str, Found] = {}
    for branch in (root, *(root / name for name in _BRANCHES)):
        for folder in sorted(branch.iterdir()) if branch.is_dir() else ():
            layout = detect(folder) if folder.is_dir() and not folder.name.startswith(".") else None
            if layout is not None and scene in (None, folder.name):
                found.setdefault(folder.name, Found(folder, layout))
    if not found:
        what = "no scene" if scene is None else f"no scene {scene}"
        known = ", ".join(text for text, _ in LAYOUTS.values())
        raise UserError(f"{root}: holds {what} in a known layout ({known}): give another folder, or import it first")
    return [found[name] for name in sorted(found)]


def find_scene(folder: Path) -> Found:
    """The one scene that a folder is or holds.

    Raises:
        UserError: it holds none, or several.
    """
    found = find_scenes(folder)
    if len(found) > 1:
        names = ", ".join(f.folder.name for f in found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(f"{folder}: holds {len(found)} scenes ({names}): give the folder of one of them")
    return found[0]


def open_found(
    found: Found, masks: str | None = None, image_size: tuple[int, int] | None = None, cache_bytes: int = 0
) -> Scene:
    """Open a scene of any layout, with depth of any range.

    Args:
        found: the scene.
        masks: NAME of a mask set of it, or a path; None: without.
        image_size: (width, height) of all maps; None: as stored.
        cache_bytes: budget of the cache of decoded frames; 0 for looking at each once.

    Raises:
        UserError: from the layout's reader.
    """
    if found.layout == "scannetpp":
        from panbench.data.scannetpp_reader import open_scene as open_scannetpp

        return open_scannetpp(
            found.folder, masks=masks, image_size=image_size, cache_bytes=cache_bytes, max_depth=ANY_DEPTH
        )
    from panbench.data.scannet_reader import open_scene

    return open_scene(found.folder, masks=masks, image_size=image_size, cache_bytes=cache_bytes, max_depth=ANY_DEPTH)


ANY_DEPTH = 65.534  # metres: all that 16 bit of millimetres hold, but for the mark "no measurement"


def mask_sets(folder: Path) -> list[str]:
    """Names of the mask sets in a scene's folder."""
    return sorted(p.name.removeprefix("masks_") for p in folder.glob("masks_*") if p.is_dir())
