"""Where instance queries start if masks are not grouped, to show what :mod:`~panbench.heads.seeding` is worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from panbench.heads.seeding import Seeds, thin
from panbench.scene import Frame, Scene

_VOXEL = 0.8  # metres
_PER_MASK = 3  # pixels drawn in each mask
_SCALE = 1.0  # metres, standard deviation of every seed
_SURFACE_STEP, _SURFACE_VOXEL = 8, 0.05  # pixels per axis, and metres, at which surfaces are sampled


def seeds_from_voxels(scene: Scene, count: int) -> Seeds:
    """At most ``count`` seeds of 1 m, one for each voxel of 0.8 m with mask points, at their mean.

    Three pixels with depth are drawn in every mask of every training frame. These are the rule and the numbers of
    PanopticRecon++, the predecessor whose queries the paper adopts; that the paper starts its queries so is our
    inference. Draws from torch's global generator.
    """
    points = [_mask_points(f) for f in scene.frames(scene.train) if f.masks is not None and f.depth is not None]
    return _scattered(thin([p.numpy() for p in points], _VOXEL), count)


def seeds_from_surfaces(scene: Scene, count: int) -> Seeds:
    """``count`` seeds of 1 m, uniform over the surfaces that the training frames' depth shows, whatever the masks say.

    Draws from torch's global generator.
    """
    lattice = slice(_SURFACE_STEP // 2, None, _SURFACE_STEP)
    points = [
        f.camera.unproject(f.depth)[lattice, lattice][f.depth[lattice, lattice] > 0]
        for f in scene.frames(scene.train)
        if f.depth is not None
    ]
    return _scattered(thin([p.float().numpy() for p in points], _SURFACE_VOXEL), count)


def _mask_points(frame: Frame) -> Tensor:
    assert frame.masks is not None
    assert frame.depth is not None
    places = []
    for number in frame.masks.instance.unique().tolist():
        inside = ((frame.masks.instance == number) & (frame.depth > 0)).nonzero()
        if number > 0:
            places.append(inside[torch.randperm(len(inside))[:_PER_MASK]])
    picked = torch.cat([*places, torch.zeros(0, 2, dtype=torch.int64)])
    return frame.camera.unproject(frame.depth)[picked[:, 0], picked[:, 1]].float()


def _scattered(points: np.ndarray, count: int) -> Seeds:
    means = points[torch.randperm(len(points))[:count].sort().values.numpy()]
    found = len(means)
    return Seeds(
        means=means,
        log_scales=np.full((found, 3), np.log(_SCALE), np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (found, 1)),
        points=means,
        owner=np.arange(found),
    )
