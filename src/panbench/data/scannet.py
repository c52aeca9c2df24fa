"""ScanNet-V2 scenes for the trainer; without a root, a built-in room in the same files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from panbench.data.base import SceneDataModule
from panbench.data.point_cloud import find_point_cloud, with_point_cloud
from panbench.data.scannet_reader import open_scene
from panbench.data.select import Select
from panbench.errors import UserError
from panbench.lock import in_turn
from panbench.scene import Scene

log = logging.getLogger(__name__)


class ScanNetDataModule(SceneDataModule):
    """One scene of ScanNet-V2, exported or as downloaded (:mod:`panbench.data.scannet_reader`)."""

    def __init__(
        self,
        root: str | None = None,
        scene: str | None = None,
        masks: str | None = "medium",
        image_size: tuple[int, int] | None = None,
        stride: int = 1,
        views: int | None = None,
        split_file: str | None = None,
        label_space: str | None = None,
        test_every: int = 5,
        cache_mb: int = 2048,
        room_size: Literal["tiny", "small", "full"] = "small",
        room_seed: int = 0,
        max_depth: float = 8.0,
        depth_noise: float = 0.0,
        select: Select = "even",
        point_cloud: str | None = None,
        axis_align: bool = False,
        order_seed: int | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            root: the release's folder (with ``scans/`` in it), a folder of scenes, or one scene's folder. None: a
                synthetic room, made once and kept in the cache folder (``PANBENCH_CACHE``, else ``~/.cache/panbench``).
            scene: name of the scene under root; may be left out where root has only one.
            masks: NAME of the folder ``masks_NAME`` in the scene, or a path to such a folder; "none": without.
            image_size: (width, height) to work at; None: that of the colour images.
            stride: keep every stride-th frame (of the training frames only where a split file rules).
            views: keep so many training frames, chosen by ``select``; None: all.
            split_file: JSON ``{"train": [...], "test": [...]}``; None: ``splits.json`` in the scene, else test_every.
            label_space: nyu40, scannet20, scannet200, the name of one of the paper's scenes, or a path; None:
                ``classes.json`` in the scene, else the paper's for the scene's name, else scannet20.
            test_every: every n-th kept frame is test where there is no split file; 0: none.
            cache_mb: memory for decoded frames, MiB; frames beyond it are decoded each time.
            room_size: size of the built-in room.
            room_seed: which built-in room.
            max_depth: metres; measurements beyond count as none.
            depth_noise: adds Gaussian noise of depth_noise · z² metres to the depth z of training frames; 0: none.
            select: which frames ``views`` keeps: "even", "sharpest", "coverage" (:func:`panbench.data.select.choose`).
            point_cloud: a .ply, .las, .laz or .pcd file in the world of the poses, metres: a path, or the name of a
                file in the scene's folder. Gaussians start from it, and frames without depth get its points as depth.
            axis_align: put ``axisAlignment`` of ``<scene>.txt`` on top of the poses.
            order_seed: seed of the frame order; None: that of ``seed_everything``.
        """
        super().__init__(order_seed)
        self.root = root
        self.scene_name = scene
        self.masks = masks
        self.image_size = image_size
        self.stride = stride
        self.views = views
        self.split_file = split_file
        self.label_space = label_space
        self.test_every = test_every
        self.cache_mb = cache_mb
        self.room_size: Literal["tiny", "small", "full"] = room_size
        self.room_seed = room_seed
        self.max_depth = max_depth
        self.depth_noise = depth_noise
        self.select: Select = select
        self.point_cloud = point_cloud
        self.axis_align = axis_align

    def open_scene(self) -> Scene:
        """Find the folder (or make the room) and open it."""
        if self.root is None:
            if self.scene_name is not None:
                raise UserError(
                    f"data.scene is {self.scene_name}, data.root is not given: set it to the folder of scenes"
                )
            folder = built_in_room(self.room_size, self.room_seed)
        else:
            folder = find_scene(Path(self.root).expanduser(), self.scene_name)
        scene = open_scene(
            folder,
            masks=self.masks,
            image_size=None if self.image_size is None else (self.image_size[0], self.image_size[1]),
            stride=self.stride,
            split_file=None if self.split_file is None else Path(self.split_file).expanduser(),
            label_space=self.label_space,
            test_every=self.test_every,
            cache_bytes=self.cache_mb << 20,
            max_depth=self.max_depth,
            views=self.views,
            depth_noise=self.depth_noise,
            select=self.select,
            axis_align=self.axis_align,
        )
        if self.point_cloud is None:
            return scene
        return with_point_cloud(scene, find_point_cloud(folder, self.point_cloud), self.cache_mb << 20)


def find_scene(
    root: Path,
    scene: str | None,
    mark: str | Sequence[str] = ("color", "*.sens"),
    below: Sequence[str] = ("scans", "scans_test"),
) -> Path:
    """The scene's folder: ``root/scene``, ``root/scans/scene``, or root itself, or the only scene in one of these.

    Args:
        mark: what a scene's folder is known by: names or patterns, of which one is enough.
        below: folders of root that scenes may lie in.

    Raises:
        UserError: there is none, or there are several and no name is given.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: correct data.root")
    marks = [mark] if isinstance(mark, str) else list(mark)

    def is_scene(folder: Path) -> bool:
        return folder.is_dir() and any(next(folder.glob(m), None) is not None for m in marks)

    if scene in (None, root.resolve().name) and is_scene(root):
        return root.resolve()  # the folder's name is the scene's name, also for "."
    places = [root, *(root / name for name in below if (root / name).is_dir())]
    if scene is not None:
        for place in places:
            if is_scene(place / scene):
                return place / scene
    known = {p.name: p for place in reversed(places) for p in place.iterdir() if is_scene(p) and p.name[0] != "."}
    if scene is None and len(known) == 1:
        return next(iter(known.values()))
    wanted = "give data.scene" if scene is None else f"{scene} is not there"
    names = sorted(known)
    kinds = " or ".join(marks)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if not names:
        shown = (
            f"none that holds {kinds}: correct data.root, or convert captures of other forms with panbench data import"
        )
    raise UserError(f"{root}: {wanted}; scenes: {shown}")


def made_once(place: Path, find: Callable[[], Path | None], make: Callable[[], Path]) -> Path:
    """What ``find`` finds, else what ``make`` makes in ``place``. Runs that start together share what the first makes.

    Raises:
        UserError: the place cannot be written, or from ``make``.
    """
    found = find()
    if found is not None:
        return found
    try:
        with in_turn(place):
            return find() or make()
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written ({error.strerror or error}); set PANBENCH_CACHE to a folder that can be"
        ) from error


def built_in_room(size: Literal["tiny", "small", "full"], seed: int) -> Path:
    """Folder of a built-in room; it is made at the first use (``small``: about a quarter of a minute)."""
    # The generator pulls in the ray caster: only who has no data needs it.
    from panbench.data.rooms import VERSION, make_room

    base = Path(os.environ.get("PANBENCH_CACHE") or Path.home() / ".cache" / "panbench")
    out = base / "rooms" / f"v{VERSION}-{size}-{seed}"
    folder = made_once(
        out,
        lambda: next((p.parent for p in out.glob("*/synthetic.json")), None),
        lambda: make_room(out, size=size, seed=seed),
    )
    log.warning("no data.root given: using the SYNTHETIC room %s; its results say nothing about real scenes", folder)
    return folder
