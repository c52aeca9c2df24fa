"""What the masks of all training views say about points in space, and how often they show each class."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.scene import Frame, Scene

_DEPTH_TOLERANCE = 0.06  # metres, plus 1 % of the depth: a point is seen where the sensor agrees this well


def seen_pixels(frame: Frame, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of a frame with depth at which points [P, 3] lie, and whether the sensor measured them there.

    Returns:
        Row and column [P], int64, inside the image; and [P], bool: in front of the camera, inside the image, and as far
        away as was measured. Where it is False, row and column mean nothing.
    """
    assert frame.depth is not None
    pixels, z = frame.camera.project(points)
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < frame.camera.width) & (y >= 0) & (y < frame.camera.height)
    x, y = x.clamp(0, frame.camera.width - 1), y.clamp(0, frame.camera.height - 1)
    measured = frame.depth[y, x]
    seen = inside & (measured > 0) & ((measured - z).abs() < _DEPTH_TOLERANCE + 0.01 * z)
    return y, x, seen


def class_votes(scene: Scene, points: Tensor, classes: int) -> Tensor:
    """How many training views show points [P, 3] (world, metres) in a mask of class c + 1: [P, classes].

    Views without depth or masks say nothing; neither do void pixels, nor those that see another surface.
    """
    votes = torch.zeros(len(points), classes + 1)
    rows = torch.arange(len(points))
    for frame in scene.frames(scene.train):
        if frame.depth is None or frame.masks is None:
            continue
        y, x, seen = seen_pixels(frame, points)
        votes[rows, torch.where(seen, frame.masks.semantic[y, x].long(), 0)] += 1
    return votes[:, 1:]


def class_pixels(scene: Scene, classes: int) -> Tensor:
    """Number of pixels of class c + 1 in the masks of all training frames: [classes], int64."""
    count = torch.zeros(classes + 1, dtype=torch.int64)
    for frame in scene.frames(scene.train):
        if frame.masks is not None:
            count += torch.bincount(frame.masks.semantic.flatten().long(), minlength=classes + 1)
    return count[1:]
