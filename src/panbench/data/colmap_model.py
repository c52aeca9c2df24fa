"""Reads a COLMAP model in a process of its own: ``python -m panbench.data.colmap_model MODEL OUT``.

COLMAP ends the whole process over damaged models, and may ask for any amount of memory first. Here that costs a child.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from panbench.errors import UserError

_NAMES = ("cameras", "images", "points3D")
_MEMORY_BASE, _MEMORY_RATIO = 2 << 30, 64  # bytes: what pycolmap itself takes, and per byte of the model
_NO_PYCOLMAP = 3  # exit status
_LOG_PREFIX = re.compile(r"^[IWEF]\d{8} [\d:.]+ +\d+ \S+\] ")


class ColmapCamera(BaseModel):
    """A camera: the name of its model, size in pixels, parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: list[float]


class ColmapImage(BaseModel):
    """A registered image: its name, key of its camera, world to camera as 3 rows of 4."""

    name: str
    camera: int
    to_camera: list[list[float]]


class ColmapModel(BaseModel):
    """Cameras by key, and the registered images."""

    cameras: dict[int, ColmapCamera]
    images: list[ColmapImage]


def read_model(model: Path) -> tuple[ColmapModel, NDArray[np.float64]]:
    """The model, and its points [P, 6]: x, y, z in its units and red, green, blue of 255.

    Raises:
        UserError: pycolmap is not installed, a file is missing, or the model is damaged.
    """
    for name in _NAMES:
        if not any((model / f"{name}.{suffix}").is_file() for suffix in ("bin", "txt")):
            raise UserError(f"{model / name}.bin: no such file, nor {name}.txt: export the model again")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "panbench.data.colmap_model", str(model), folder]
        try:
            child = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        except OSError as error:
            raise UserError(f"{model}: cannot start {sys.executable} to read it: {error}") from error
        if child.returncode == _NO_PYCOLMAP:
            raise UserError(f"{model}: reading COLMAP models needs pycolmap: pip install 'panbench[data]'")
        try:
            if child.returncode:
                raise ValueError(_cause(child.stderr.decode(errors="replace")))
            text = (Path(folder) / "model.json").read_bytes()
            return ColmapModel.model_validate_json(text), np.load(Path(folder) / "points.npy", allow_pickle=False)
        except (OSError, ValueError, ValidationError) as error:
            cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(f"{model}: is no whole COLMAP model ({cause}): export it again") from error


def _cause(log: str) -> str:
    """The line of a log that says most: the first that is no trace."""
    lines = [_LOG_PREFIX.sub("", line).strip() for line in log.splitlines()]
    told = [line for line in lines if line and not line.startswith(("@", "***", "Traceback", "File "))]
    errors = [line for line in told if "Error" in line or "Check failed" in line or "bad_alloc" in line]
    return (errors or told or ["pycolmap stopped"])[-1][:160]


def _limit_memory(model: Path) -> None:
    if sys.platform != "linux":  # elsewhere the limit is not kept
        return
    import resource

    size = sum(path.stat().st_size for path in model.iterdir() if path.is_file())
    limit = _MEMORY_BASE + _MEMORY_RATIO * size
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> int:
    """Read the model, write ``model.json`` and ``points.npy``."""
    model, out = map(Path, sys.argv[1:])
    try:
        import pycolmap
    except ImportError:
        return _NO_PYCOLMAP
    _limit_memory(model)
    read: Any = pycolmap.Reconstruction(str(model))
    images: list[ColmapImage] = []
    for key in read.reg_image_ids():
        image = read.images[key]
        pose = image.cam_from_world
        # A property before version 3.13, a method since.
        rigid: Any = pose() if callable(pose) else pose
        matrix: list[list[float]] = np.asarray(rigid.matrix(), dtype=np.float64).tolist()
        images.append(ColmapImage(name=image.name, camera=image.camera_id, to_camera=matrix))
    cameras = {
        key: ColmapCamera(model=c.model.name, width=c.width, height=c.height, params=[float(v) for v in c.params])
        for key, c in read.cameras.items()
    }
    rows = [(*read.points3D[key].xyz, *read.points3D[key].color) for key in sorted(read.points3D)]
    text = json.dumps(ColmapModel(cameras=cameras, images=images).model_dump())  # with NaN, which pydantic leaves out
    (out / "model.json").write_text(text)
    np.save(out / "points.npy", np.array(rows, dtype=np.float64).reshape(-1, 6))
    return 0


if __name__ == "__main__":
    sys.exit(main())
