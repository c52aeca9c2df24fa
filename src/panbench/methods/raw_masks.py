"""The pseudo-masks as they are: what the supervision itself scores, without any fusion of views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from panbench.errors import UserError
from panbench.protocol.predictions import PredictionWriter
from panbench.scene import PanopticMap, Scene


def raw_masks(scene: Scene, out: Path) -> Path:
    """Write the pseudo-masks of the test frames as the predictions folder ``out`` and return it.

    The masks of a frame know nothing of other frames, so ids are made unique per frame: an object seen in five frames
    counts as five. Semantic scores say how good the labels are, panoptic ones what an association would have to add.

    Raises:
        UserError: if a test frame has no masks.
    """
    used = 0
    with PredictionWriter.for_scene(out, scene, method="raw-masks") as writer:
        for frame in scene.frames(scene.test):
            if frame.masks is None:
                raise UserError(f"{scene.name}: test frame {frame.name} has no pseudo-masks to score: make them first")
            local = frame.masks.instance.numpy()
            ids, position = np.unique(local, return_inverse=True)
            scene_id = np.where(ids > 0, used + np.cumsum(ids > 0), 0)
            used = int(scene_id.max(initial=used))
            instance = torch.from_numpy(scene_id[position].reshape(local.shape))
            writer.write(frame.name, PanopticMap(frame.masks.semantic, instance))
    return out
