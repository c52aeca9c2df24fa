"""Which frames to keep where not all are wanted: evenly, the sharpest, or those that cover the poses."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.ndimage import laplace

from panbench.data.file import File
from panbench.data.images import read_color
from panbench.errors import UserError

Select = Literal["even", "sharpest", "coverage"]
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A frame that may be kept: its colour image and its pose, camera to world [4, 4], OpenCV axes, metres."""

    color: File
    camera_to_world: NDArray[np.float64]


def choose(candidates: Sequence[Candidate], views: int | None, how: Select, place: object) -> list[int]:
    """Positions of ``views`` of the candidates, ascending. Deterministic.

    "even" takes the middle ones of as many equal parts of the path. "sharpest" takes in each part the image with the
    largest variance of the Laplacian (:func:`sharpness`); it decodes all images. "coverage" takes frames far from each
    other in position and viewing direction (:func:`farthest`).

    Args:
        candidates: in the order of the path.
        views: how many; None: all.
        place: the scene, for messages.

    Raises:
        UserError: there are fewer candidates, or an image cannot be read.
    """
    count = len(candidates)
    if views is None or not count:
        return list(range(count))
    if views > count:
        raise UserError(
            f"{place}: has {count} frames to choose from, {views} are asked for: ask for no more, or for all"
        )
    if how == "coverage":
        return sorted(farthest(np.stack([c.camera_to_world for c in candidates]), views))
    if how == "even":
        return [(2 * i + 1) * count // (2 * views) for i in range(views)]
    sharp = _all_sharpness([c.color for c in candidates])
    edges = [i * count // views for i in range(views + 1)]
    return [first + int(np.argmax(sharp[first:last])) for first, last in itertools.pairwise(edges)]


def sharpness(color: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey image; the larger, the sharper (Pech-Pacheco et al. 2000).

    Args:
        color: [H, W, 3]. Compare images of one size and one place only: texture raises it as focus does.
    """
    grey = color.astype(np.float32) @ LUMA
    # Kernel 0 1 0, 1 -4 1, 0 1 0; the border mirrored at its outermost pixels.
    return float(laplace(grey, mode="mirror").var(dtype=np.float64))


def farthest(camera_to_world: NDArray[np.float64], count: int) -> list[int]:
    """Farthest-point sampling over poses [F, 4, 4]: the first frame, then always the one farthest from all chosen.

    Two poses are apart by the root of the sum of squares of their distance and of the distance of their viewing
    directions times the rms distance of all positions from their mean, so that turning round counts as much as crossing
    the scene. The greedy choice leaves no frame farther from a chosen one than twice what is possible (Gonzalez 1985).

    Returns:
        ``count`` positions in the order in which they were chosen; of equally far frames the earlier.
    """
    position = camera_to_world[:, :3, 3]
    spread = float(np.sqrt(np.square(position - position.mean(axis=0)).sum(axis=1).mean()))
    # A camera on a tripod only turns: any positive weight then gives the same order.
    feature = np.concatenate([position, (spread or 1.0) * camera_to_world[:, :3, 2]], axis=1)
    chosen = [0]
    apart = np.linalg.norm(feature - feature[0], axis=1)
    while len(chosen) < count:
        # A chosen frame is not chosen again, not even among frames of one pose.
        apart[chosen[-1]] = -1.0
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(feature - feature[chosen[-1]], axis=1))
    return chosen


def _all_sharpness(images: Sequence[File]) -> NDArray[np.float64]:
    console = Console(stderr=True)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        values = pool.map(lambda image: sharpness(read_color(image)), images)
        shown = track(
            values, "sharpness", len(images), console=console, transient=True, disable=not console.is_terminal
        )
        return np.array(list(shown))
