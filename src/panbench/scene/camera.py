"""Pinhole camera: OpenCV axes (x right, y down, z forward), metres, pixel centres at +0.5."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Camera:
    """One view of a scene.

    Attributes:
        width, height: image size in pixels.
        fx, fy, cx, cy: intrinsics in pixels; the centre of pixel (i, j) is (i + 0.5, j + 0.5).
        world_to_camera: rigid transform [4, 4], float32, metres.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: Tensor

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"camera size {self.width}x{self.height} is not positive")
        if tuple(self.world_to_camera.shape) != (4, 4):
            raise ValueError(f"world_to_camera has shape {tuple(self.world_to_camera.shape)}, not (4, 4)")

    @property
    def rotation(self) -> Tensor:
        """World-to-camera rotation [3, 3]."""
        return self.world_to_camera[:3, :3]

    @property
    def translation(self) -> Tensor:
        """World-to-camera translation [3], metres."""
        return self.world_to_camera[:3, 3]

    @property
    def position(self) -> Tensor:
        """Camera centre in the world [3], metres: -Rᵀ t."""
        return -self.rotation.T @ self.translation

    @property
    def camera_to_world(self) -> Tensor:
        """Inverse of world_to_camera [4, 4] (closed form for a rigid transform)."""
        out = torch.eye(4, dtype=self.world_to_camera.dtype, device=self.world_to_camera.device)
        out[:3, :3] = self.rotation.T
        out[:3, 3] = self.position
        return out

    @property
    def intrinsics(self) -> Tensor:
        """Matrix K [3, 3], pixels."""
        return torch.tensor(
            [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]],
            dtype=self.world_to_camera.dtype,
            device=self.world_to_camera.device,
        )

    def to(self, *args: object, **kwargs: object) -> Camera:
        """Same camera with its pose moved or cast as by ``Tensor.to``."""
        return replace(self, world_to_camera=self.world_to_camera.to(*args, **kwargs))  # type: ignore[call-overload]

    def resized(self, width: int, height: int) -> Camera:
        """Same view at another size; intrinsics scale per axis (pixel centres at +0.5 need no shift)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def rays(self) -> Tensor:
        """Directions K⁻¹ (x + ½, y + ½, 1)ᵀ in camera axes [H, W, 3]; z = 1, so ``rays * depth`` are points."""
        pose = self.world_to_camera
        x = (torch.arange(self.width, dtype=pose.dtype, device=pose.device) + 0.5 - self.cx) / self.fx
        y = (torch.arange(self.height, dtype=pose.dtype, device=pose.device) + 0.5 - self.cy) / self.fy
        return torch.stack(
            [
                x.expand(self.height, -1),
                y[:, None].expand(-1, self.width),
                torch.ones(self.height, self.width, dtype=pose.dtype, device=pose.device),
            ],
            dim=-1,
        )

    def unproject(self, depth: Tensor) -> Tensor:
        """World points [H, W, 3] of a z-depth map [H, W], metres (eq. 8). Depth 0 gives the camera centre."""
        points = self.rays() * depth[..., None]
        return points @ self.rotation + self.position

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel coordinates [..., 2] and z-depth [...] of world points [..., 3]. No culling."""
        local = points @ self.rotation.T + self.translation
        z = local[..., 2]
        safe = torch.where(z.abs() < 1e-8, torch.full_like(z, 1e-8), z)
        x = self.fx * local[..., 0] / safe + self.cx
        y = self.fy * local[..., 1] / safe + self.cy
        return torch.stack([x, y], dim=-1), z
