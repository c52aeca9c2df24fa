"""Reads a COLMAP reconstruction, text or binary, with the images it was made of.

::

    images/…                        or the folder given as --images
    sparse/0/{cameras,images,points3D}.{txt,bin}     also in sparse/, colmap/sparse/0/ or the folder itself
    depth/STEM.png                  optional: depth images, in the view of the colour images

Its world has no scale: ``scale`` metres are one unit. Pixel centres are at + 0.5, camera axes are OpenCV's.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from panbench.data.capture import Capture, CaptureFrame, beside, natural
from panbench.data.colmap_model import ColmapCamera, read_model
from panbench.data.undistort import Lens
from panbench.errors import UserError
from panbench.scene import Points

_PLACES = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "")


def find_model(source: Path) -> Path | None:
    """The folder of the reconstruction; None where there is none."""
    return next((source / p for p in _PLACES for s in ("bin", "txt") if (source / p / f"cameras.{s}").is_file()), None)


def read_colmap(
    source: Path, *, images: Path | None = None, depth: Path | None = None, depth_unit: float = 0.001
) -> Capture:
    """Read the registered images of a reconstruction, and its points as a cloud.

    Args:
        images: folder of the images; None: ``images`` in the source.
        depth: folder of depth images, named as the colour images; None: ``depth`` in the source, if it is there.
        depth_unit: metres of 1 in depth images.

    Raises:
        UserError: something is missing, damaged or not supported; names the file and the remedy.
    """
    model = find_model(source)
    if model is None:
        raise UserError(f"{source / _PLACES[0]}: has no cameras.bin or cameras.txt: give the folder above sparse/")
    reconstruction, cloud = read_model(model)
    folder = images or source / "images"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give that of the images as --images")
    depth = depth or source / "depth"
    lenses = {key: _lens(camera, model) for key, camera in reconstruction.cameras.items()}
    frames: list[CaptureFrame] = []
    for image in sorted(reconstruction.images, key=lambda i: natural(i.name)):
        path = folder / image.name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{model}: its image {image.name[:80]} lies outside of {folder}: give its folder as --images"
            )
        to_camera = np.array(image.to_camera, dtype=np.float64)
        to_world = np.eye(4)
        to_world[:3, :3], to_world[:3, 3] = to_camera[:, :3].T, -to_camera[:, :3].T @ to_camera[:, 3]
        measured = depth / PurePosixPath(image.name).with_suffix(".png")
        frames.append(
            CaptureFrame(
                name=image.name,
                color=path,
                lens=lenses[image.camera],
                camera_to_world=to_world,
                depth=measured if measured.is_file() else None,
            )
        )
    if not frames:
        raise UserError(f"{model}: no image is registered: the reconstruction failed, make another")
    found = [f.depth is not None for f in frames]
    if any(found) and not all(found):
        raise UserError(
            f"{depth}: has no depth of {frames[found.index(False)].name}: give depth of all images, or none"
        )
    index = next(p for s in ("bin", "txt") if (p := model / f"images.{s}").is_file())
    return beside(Capture("colmap", source, index, frames, depth_unit=depth_unit, points=_points(cloud)))


def _lens(camera: ColmapCamera, model: Path) -> Lens:
    try:
        return Lens.from_colmap(camera.model, camera.width, camera.height, camera.params)
    except ValueError as error:
        raise UserError(
            f"{model}: has a camera of model {camera.model}, which is not supported: undistort the images with "
            "colmap image_undistorter and give its output"
        ) from error


def _points(cloud: NDArray[np.float64]) -> Points | None:
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    return Points(cloud[:, :3].astype(np.float32), (cloud[:, 3:] / 255).astype(np.float32)) if len(cloud) else None
