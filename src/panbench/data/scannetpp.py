"""ScanNet++ scenes for the trainer; without a root, a built-in room in the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from panbench.data import scannet
from panbench.data.base import SceneDataModule
from panbench.data.point_cloud import find_point_cloud, with_point_cloud
from panbench.data.scannetpp_reader import MARKS, CameraChoice, Overlap, is_scene, open_scene
from panbench.data.select import Select
from panbench.errors import UserError
from panbench.scene import Scene


class ScanNetPPDataModule(SceneDataModule):
    """The DSLR images, or the iPhone's video, of one ScanNet++ scene (:mod:`panbench.data.scannetpp_reader`)."""

    def __init__(
        self,
        root: str | None = None,
        scene: str | None = None,
        masks: str | None = "medium",
        image_size: tuple[int, int] | None = None,
        stride: int = 1,
        views: int | None = None,
        include_bad: bool = False,
        label_space: str | None = None,
        cache_mb: int = 2048,
        room_size: Literal["tiny", "small", "full"] = "small",
        room_seed: int = 0,
        max_depth: float = 8.0,
        depth_noise: float = 0.0,
        select: Select = "even",
        point_cloud: str | None = None,
        camera: CameraChoice = "auto",
        overlap: Overlap = "smallest",
        test_every: int = 5,
        order_seed: int | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            root: folder of the data set (with ``data/`` in it), of scenes, or one scene's folder. None: a synthetic
                room, made once and kept in the cache folder (``PANBENCH_CACHE``, else ``~/.cache/panbench``).
            scene: name of the scene under root; may be left out where root has only one.
            masks: NAME of the folder ``masks_NAME`` in the scene, or a path to such a folder; "none": without.
            image_size: (width, height) to work at; None: that of the images (1752 x 1168 as released).
            stride: keep every stride-th training frame; of the iPhone's, every stride-th frame.
            views: keep so many training frames, chosen by ``select``; None: all.
            include_bad: keep training frames that ScanNet++ marks as bad.
            label_space: name of a label space that comes with panbench, or the path of a ``classes.json`` or of the
                release's ``top100.txt``. None: the scene's ``classes.json``, else the one of the scene's name.
            cache_mb: memory for decoded frames, MiB; frames beyond it are decoded each time.
            room_size: size of the built-in room.
            room_seed: which built-in room.
            max_depth: metres; surfaces beyond have no depth.
            depth_noise: adds Gaussian noise of depth_noise · z² metres to the depth z of training frames; 0: none.
            select: which frames ``views`` keeps: "even", "sharpest", "coverage" (:func:`panbench.data.select.choose`).
            point_cloud: a .ply, .las, .laz or .pcd file in the world of the poses, metres: a path, or the name of a
                file in the scene's folder. Gaussians start from it, and frames without depth get its points as depth.
            camera: "undistorted": the undistorted DSLR images; "fisheye": those of the lens, undistorted here, which
                needs OpenCV; "iphone": the video with its depth; "auto": the first of these that is there.
            overlap: which of several annotated objects a vertex belongs to: "smallest", or "last" listed.
            test_every: of iPhone frames every n-th kept one is test; 0: none. DSLR images have a split.
            order_seed: seed of the frame order; None: that of ``seed_everything``.
        """
        super().__init__(order_seed)
        self.root = root
        self.scene_name = scene
        self.masks = masks
        self.image_size = image_size
        self.stride = stride
        self.views = views
        self.include_bad = include_bad
        self.label_space = label_space
        self.cache_mb = cache_mb
        self.room_size: Literal["tiny", "small", "full"] = room_size
        self.room_seed = room_seed
        self.max_depth = max_depth
        self.depth_noise = depth_noise
        self.select: Select = select
        self.point_cloud = point_cloud
        self.camera: CameraChoice = camera
        self.overlap: Overlap = overlap
        self.test_every = test_every

    def open_scene(self) -> Scene:
        """Find the folder (or make the room) and open it."""
        if self.root is None:
            if self.scene_name is not None:
                raise UserError(
                    f"data.scene is {self.scene_name}, data.root is not given: set it to the folder of scenes"
                )
            folder = _built_in(self.room_size, self.room_seed)
        else:
            folder = find_scene(Path(self.root).expanduser(), self.scene_name)
        scene = open_scene(
            folder,
            masks=self.masks,
            image_size=None if self.image_size is None else (self.image_size[0], self.image_size[1]),
            stride=self.stride,
            label_space=self.label_space,
            include_bad=self.include_bad,
            cache_bytes=self.cache_mb << 20,
            max_depth=self.max_depth,
            views=self.views,
            depth_noise=self.depth_noise,
            select=self.select,
            camera=self.camera,
            overlap=self.overlap,
            test_every=self.test_every,
        )
        if self.point_cloud is None:
            return scene
        return with_point_cloud(scene, find_point_cloud(folder, self.point_cloud), self.cache_mb << 20)


def find_scene(root: Path, scene: str | None) -> Path:
    """The scene's folder: ``root/data/scene``, ``root/scene``, root itself, or the only scene there.

    Raises:
        UserError: there is none, or there are several and no name is given.
    """
    if not (scene is None and is_scene(root)) and (root / "data").is_dir():
        root = root / "data"
    return scannet.find_scene(root, scene, mark=MARKS)


def _built_in(size: Literal["tiny", "small", "full"], seed: int) -> Path:
    """Folder of a built-in room in ScanNet++'s files, written once beside the room in ScanNet's."""
    # Only who has no data needs the writer.
    from panbench.data.scannetpp_export import scene_name, write_scannetpp

    room = scannet.built_in_room(size, seed)
    out = room.parent / "scannetpp"
    folder = out / scene_name(room)
    return scannet.made_once(out, lambda: folder if folder.is_dir() else None, lambda: write_scannetpp(room, out))
