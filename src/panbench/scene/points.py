"""A scanned point cloud of a scene: its points, and which of them a camera sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter
from scipy.spatial import KDTree

from panbench.scene.camera import Camera

NEAR = 0.05
"""Points closer to a camera than this do not count, metres."""
REACH = 1.5
"""Half the width of what a point hides, in spacings of the cloud: neighbours overlap, and leave no holes."""
SLACK = 4.0
"""Points less than this behind what hides them still count, in spacings or widths of a pixel: surfaces are slanted."""
WIDEST = 16
"""Half the width of what a point hides at most, pixels."""
_SAMPLE = 20_000


@dataclass(frozen=True, eq=False)
class Points:
    """Points on the surfaces of a scene, in the world of its poses.

    Attributes:
        positions: float32 [N, 3], metres.
        colors: float32 [N, 3] in [0, 1], or None.
        normals: float32 [N, 3] of unit length, on either side of the surface, or None.
    """

    positions: NDArray[np.float32]
    colors: NDArray[np.float32] | None = None
    normals: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def spacing(self) -> float:
        """Median distance of a point to the nearest other one, metres (of 20,000 points where there are more)."""
        if len(self) < 2:
            return 0.0
        some = self.positions[:: max(1, len(self) // _SAMPLE)]
        distance, _ = KDTree(self.positions).query(some, k=2)
        return float(np.median(distance[:, 1]))

    def seen_by(self, camera: Camera) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """The points that a camera sees: indices [M], pixels [M] (row · width + column), z-depths [M], metres.

        Every point hides what is behind it in a square about as wide as the cloud's spacing; what is hidden by less
        than four spacings counts as seen, since a slanted surface would hide itself. The pixels need not be unique.
        """
        pose = camera.world_to_camera.numpy().astype(np.float64)
        local = self.positions @ pose[:3, :3].T.astype(np.float32) + pose[:3, 3].astype(np.float32)
        index = np.flatnonzero(local[:, 2] > NEAR)
        local = local[index]
        z = local[:, 2]
        column = np.floor(camera.fx * local[:, 0] / z + camera.cx)
        row = np.floor(camera.fy * local[:, 1] / z + camera.cy)
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        index, z = index[inside], z[inside]
        pixel = row[inside].astype(np.int64) * camera.width + column[inside].astype(np.int64)
        size = camera.width * camera.height
        reach = np.minimum(np.round(REACH * self.spacing * camera.fx / z), WIDEST).astype(np.int64)
        front = np.full((camera.height, camera.width), np.inf, dtype=np.float32)
        for half in np.unique(reach).tolist():
            near = np.full(size, np.inf, dtype=np.float32)
            of_this = reach == half
            np.minimum.at(near, pixel[of_this], z[of_this])
            spread = minimum_filter(near.reshape(front.shape), size=2 * half + 1, mode="constant", cval=np.inf)
            front = np.minimum(front, spread)
        seen = z <= front.ravel()[pixel] + SLACK * np.maximum(self.spacing, z / camera.fx)
        return index[seen], pixel[seen], z[seen]

    def depth(self, camera: Camera) -> NDArray[np.float32]:
        """Mean z-depth [H, W] of the seen points in each pixel, metres; 0 where there is none."""
        _, pixel, z = self.seen_by(camera)
        size = camera.width * camera.height
        count = np.bincount(pixel, minlength=size)
        mean = np.bincount(pixel, z, size) / np.maximum(count, 1)
        return mean.astype(np.float32).reshape(camera.height, camera.width)
