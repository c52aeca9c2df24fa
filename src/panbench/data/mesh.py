"""Triangle meshes: reading them from PLY, and what a camera sees of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from plyfile import PlyParseError

from panbench.data.ply import read_ply
from panbench.errors import UserError
from panbench.scene import Camera


def read_mesh(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices [V, 3], metres, and triangles [F, 3] of a PLY file.

    Raises:
        UserError: the file is missing, cut off, has no triangles, or names vertices that it does not have.
    """
    try:
        # With the length of its lists known, a binary file is read as a table and not row by row.
        data = read_ply(path, known_list_len={"face": {"vertex_indices": 3}})
        vertex, face = data["vertex"], data["face"]
        vertices = np.stack([np.asarray(vertex[axis], dtype=np.float32) for axis in "xyz"], axis=1)
        rows: NDArray[Any] = np.asarray(face["vertex_indices"])
        if rows.ndim == 1 and len(rows):  # a text file is read as a list of lists
            rows = np.stack(list(rows))
        if len(rows) and rows.shape[1:] != (3,):
            raise ValueError("its faces are no triangles")
        faces = rows.astype(np.int32)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: download the scene's mesh again") from error
    except (OSError, PlyParseError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: is no whole PLY file of triangles ({error}): copy or download it again") from error
    if not len(faces):
        raise UserError(f"{path}: has no triangles: download the scene's mesh again")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(f"{path}: its triangles name vertices that it does not have: copy or download it again")
    if not np.isfinite(vertices).all():
        raise UserError(f"{path}: has vertices that are not finite: copy or download it again")
    return vertices, faces


class MeshCaster:
    """Casts the ray of every pixel's centre at a mesh."""

    def __init__(self, vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> None:
        """Args: vertices [V, 3], metres; faces [F, 3]."""
        self._faces = faces
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.ascontiguousarray(vertices), np.ascontiguousarray(faces))

    def view(self, camera: Camera) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """z-depth [H, W], metres, 0 where nothing is hit, and the first vertex of the triangle hit [H, W], −1 there.

        The first vertex stands for its triangle, as in the label images of the ScanNet++ toolbox.
        """
        pose = camera.world_to_camera.numpy().astype(np.float64)
        x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
        y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
        rays = np.stack([*np.meshgrid(x, y), np.ones((camera.height, camera.width))], axis=-1).reshape(-1, 3)
        # Rays of length 1 along z: the distance to a hit, in lengths of its ray, is the z-depth.
        directions = np.ascontiguousarray(rays @ pose[:3, :3], dtype=np.float32)
        center = (-pose[:3, :3].T @ pose[:3, 3]).astype(np.float32)
        origins = np.ascontiguousarray(np.broadcast_to(center, directions.shape))
        found = self._scene.run(origins, directions, output=True)
        hit = found["primID"] >= 0
        depth = np.where(hit, found["tfar"], 0).astype(np.float32)
        vertex = np.where(hit, self._faces[np.where(hit, found["primID"], 0), 0], -1).astype(np.int64)
        return depth.reshape(camera.height, camera.width), vertex.reshape(camera.height, camera.width)
