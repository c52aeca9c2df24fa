"""Reads a COLMAP reconstruction, text or binary, with the images it was made of.

::

    images/…                        or the folder given as --images
    sparse/0/{cameras,images,points3D}.{txt,bin}     also in sparse/, colmap/sparse/0/ or the folder itself
    depth/STEM.png                  optional: depth images, in the view of the colour images

Its world has no scale: ``scale`` metres are one unit. Pixel centres are at + 0.5, camera axes are OpenCV's.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from panbench.data.capture import Capture, CaptureFrame, beside, natural
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
    reconstruction = _read_model(model)
    folder = images or source / "images"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: give that of the images as --images")
    depth = depth or source / "depth"
    lenses = {key: _lens(camera, model) for key, camera in reconstruction.cameras.items()}
    registered = sorted(
        (reconstruction.images[k] for k in reconstruction.reg_image_ids()), key=lambda i: natural(i.name)
    )
    frames: list[CaptureFrame] = []
    for image in registered:
        path = folder / image.name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{model}: its image {image.name[:80]} lies outside of {folder}: give its folder as --images"
            )
        pose: Any = image.cam_from_world
        # A property before version 3.13, a method since.
        rigid: Any = pose() if callable(pose) else pose
        to_camera = np.asarray(rigid.matrix(), dtype=np.float64)
        to_world = np.eye(4)
        to_world[:3, :3], to_world[:3, 3] = to_camera[:, :3].T, -to_camera[:, :3].T @ to_camera[:, 3]
        measured = depth / PurePosixPath(image.name).with_suffix(".png")
        frames.append(
            CaptureFrame(
                name=image.name,
                color=path,
                lens=lenses[image.camera_id],
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
    return beside(Capture("colmap", source, index, frames, depth_unit=depth_unit, points=_points(reconstruction)))


def _read_model(model: Path) -> Any:
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(f"{model}: reading COLMAP models needs pycolmap: pip install 'panbench[data]'") from error
    for name in ("cameras", "images", "points3D"):
        if not any((model / f"{name}.{suffix}").is_file() for suffix in ("bin", "txt")):
            raise UserError(f"{model / name}.bin: no such file, nor {name}.txt: export the model again")
    try:
        return pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError, OSError, IndexError, KeyError, MemoryError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{model}: is no whole COLMAP model ({first[:120]}): export it again") from error


def _lens(camera: Any, model: Path) -> Lens:
    try:
        return Lens.from_colmap(camera.model.name, camera.width, camera.height, tuple(camera.params))
    except ValueError as error:
        raise UserError(
            f"{model}: has a camera of model {camera.model.name}, which is not supported: undistort the images with "
            "colmap image_undistorter and give its output"
        ) from error


def _points(reconstruction: Any) -> Points | None:
    rows = [reconstruction.points3D[k] for k in sorted(reconstruction.points3D)]
    if not rows:
        return None
    positions = np.array([row.xyz for row in rows], dtype=np.float32)
    colors = np.array([row.color for row in rows], dtype=np.float32) / np.float32(255)
    finite = np.isfinite(positions).all(axis=1)
    return Points(positions[finite], colors[finite]) if finite.any() else None
