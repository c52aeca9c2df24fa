"""A seeded furnished room of Gaussians, and cameras inside of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from panbench.gaussians.rotation import quats_with_normal
from panbench.scene import Camera

ROOM = (5.0, 4.0, 2.8)
"""Length, width and height, metres; the floor is z = 0."""
CAMERAS = 8
NEAR = 0.1

BOXES, SIDES, BOX_FACES = 14, 6, 5
SURFACES = SIDES + BOXES * BOX_FACES

_FLOATERS = 0.04
_CLEAR = 1.3  # no furniture within this distance of the middle, metres: cameras stand there
_FOCAL = 577 / 640  # ScanNet's, in image widths
_DRAWS = 12  # random numbers that a Gaussian takes


@dataclass(frozen=True, eq=False)
class Gaussians:
    """The Gaussians of a workload, float32.

    Attributes:
        means: [N, 3], metres. quats: [N, 4], w x y z. log_scales: [N, 3], the third along the normal.
        opacity_logits: [N].
        surface: [N], int64: 0 to 5 the sides of the room, then five faces for each box, then one id for all floaters.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    surface: Tensor

    @property
    def geometry(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What projection takes."""
        return self.means, self.quats, self.log_scales, self.opacity_logits

    def features(self, channels: int, seed: int = 0) -> Tensor:
        """Features [N, C] in 0 … 1: those of the surface, and a little noise."""
        generator = torch.Generator().manual_seed(seed)
        per_surface = torch.rand(SURFACES + 1, channels, generator=generator)
        noise = torch.rand(len(self.means), channels, generator=generator)
        return 0.9 * per_surface[self.surface] + 0.1 * noise


def furnished_room(count: int, seed: int = 0) -> Gaussians:
    """Gaussians on the sides of a room and on furniture boxes, and floaters between them.

    96 % lie on surfaces, uniformly by area; σ is 1 to 5 cm (log-uniform) along the first axis, 0.4 to 1 of that along
    the second, 0.15 to 0.5 along the normal; 77 % of the opacities exceed ½. A smaller room is the first part of a
    larger one.
    """
    corners, sides, normals = _faces(seed)
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1)
    # One row a Gaussian: the first rows are the same for every count.
    draw = np.random.default_rng([seed, 1]).random((count, _DRAWS))
    face = np.searchsorted(np.cumsum(area) / area.sum(), draw[:, 0]).clip(max=len(area) - 1)
    along = draw[:, 1, None] * sides[face, 0] + draw[:, 2, None] * sides[face, 1]
    means, normal, surface = corners[face] + along, normals[face], face.astype(np.int64)
    floats = draw[:, 3] < _FLOATERS
    direction = ndtri(draw[:, 4:7].clip(1e-9, 1 - 1e-9))
    means[floats] = draw[floats, 0:3] * ROOM
    normal[floats] = (direction / np.linalg.norm(direction, axis=-1, keepdims=True))[floats]
    surface[floats] = SURFACES

    half = np.pi * draw[:, 7]
    spin = np.stack([np.cos(half), np.zeros(count), np.zeros(count), np.sin(half)], axis=-1)
    first = np.log(0.01) + np.log(5.0) * draw[:, 8]
    scales = np.stack(
        [first, first + np.log(0.4 + 0.6 * draw[:, 9]), first + np.log(0.15 + 0.35 * draw[:, 10])], axis=-1
    )
    # P(logit > 0) = 0.77 for a normal of mean 1.48 and deviation 2.
    logits = 1.48 + 2 * ndtri(draw[:, 11].clip(1e-6, 1 - 1e-6))
    upright = quats_with_normal(_tensor(normal))
    return Gaussians(
        _tensor(means), _product(upright, _tensor(spin)), _tensor(scales), _tensor(logits), torch.from_numpy(surface)
    )


def cameras(width: int, height: int, count: int = CAMERAS) -> list[Camera]:
    """Cameras on a ring in the room, each looking past the middle at the far side."""
    out: list[Camera] = []
    middle = torch.tensor([ROOM[0] / 2, ROOM[1] / 2, 0.0])
    for k in range(count):
        angle = 2 * math.pi * k / count + 0.2
        arm = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
        side = torch.tensor([-arm[1], arm[0], 0.0])
        eye = middle + 0.8 * arm + torch.tensor([0.0, 0.0, 1.3 + 0.3 * (k % 2)])
        target = middle - 1.5 * arm + (0.5 - (k % 3) / 2) * side + torch.tensor([0.0, 0.0, 0.9])
        focal = _FOCAL * width
        out.append(Camera(width, height, focal, focal, width / 2, height / 2, _looking_at(eye, target)))
    return out


def _faces(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Corner [F, 3], sides [F, 2, 3] and unit normal [F, 3] of the rectangles that bear Gaussians."""
    faces = _box_faces(np.zeros(3), np.array(ROOM))
    rng = np.random.default_rng([seed, 0])
    room = np.array(ROOM)
    for _ in range(BOXES):
        size = rng.uniform([0.4, 0.4, 0.4], [1.0, 0.8, 1.8])
        low = np.zeros(3)
        while True:
            low[:2] = rng.uniform(0, room[:2] - size[:2])
            nearest = np.clip(room[:2] / 2, low[:2], low[:2] + size[:2]) - room[:2] / 2
            if np.hypot(*nearest) > _CLEAR:
                break
        # Nobody sees the underside.
        faces += _box_faces(low, low + size)[1:]
    corners, sides, normals = zip(*faces, strict=True)
    return np.stack(corners), np.stack(sides), np.stack(normals)


def _box_faces(
    low: NDArray[np.float64], high: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Corner, sides and normal of the six faces, the bottom first."""
    out: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = []
    for axis in (2, 0, 1):
        for corner in (low, high):
            start = low.copy()
            start[axis] = corner[axis]
            sides = np.zeros((2, 3))
            for side, other in enumerate(k for k in range(3) if k != axis):
                sides[side, other] = high[other] - low[other]
            out.append((start, sides, np.eye(3)[axis]))
    return out


def _looking_at(eye: Tensor, target: Tensor) -> Tensor:
    """World-to-camera pose [4, 4], world z up."""
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Products [N, 4] of quaternions w x y z: first the rotation b, then a."""
    w, v = a[:, :1], a[:, 1:]
    x, u = b[:, :1], b[:, 1:]
    return torch.cat([w * x - (v * u).sum(-1, keepdim=True), w * u + x * v + torch.linalg.cross(v, u)], dim=-1)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()
