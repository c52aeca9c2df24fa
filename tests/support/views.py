"""Views of Gaussians, ordinary and awkward, and how results of two back ends are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from panbench.ops.project import Kind
from panbench.scene import Camera

KINDS: list[Kind] = ["ellipsoid", "disc"]
NEAR = 0.2
BAND = 2e-3
"""Share of pixels that may sit at a threshold."""


@dataclass(frozen=True)
class Case:
    """A view of Gaussians, float32."""

    width: int
    height: int
    means: Tensor
    quats: Tensor
    log_scales: Tensor
    opacity_logits: Tensor

    @property
    def parameters(self) -> list[Tensor]:
        return [self.means, self.quats, self.log_scales, self.opacity_logits]

    @property
    def camera(self) -> Camera:
        pose = torch.eye(4)
        angle = 0.4
        pose[0, 0] = pose[2, 2] = math.cos(angle)
        pose[0, 2], pose[2, 0] = math.sin(angle), -math.sin(angle)
        pose[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
        focal = 0.7 * max(self.width, self.height)
        return Camera(self.width, self.height, focal, 1.1 * focal, 0.52 * self.width, 0.47 * self.height, pose)


def random_case(
    count: int = 300, width: int = 70, height: int = 50, seed: int = 0, size: float = -3.2, opacity: float = 0.0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    z = 0.5 + 3 * torch.rand(count, 1, generator=generator)
    local = torch.cat([(torch.rand(count, 2, generator=generator) * 2 - 1) * z, z], dim=-1)
    case = Case(
        width,
        height,
        local,
        torch.randn(count, 4, generator=generator),
        size + torch.randn(count, 3, generator=generator),
        opacity + 2 * torch.randn(count, generator=generator),
    )
    camera = case.camera
    return replace(case, means=(local - camera.translation) @ camera.rotation)


def single() -> Case:
    return random_case(1, seed=3)


def empty() -> Case:
    case = random_case(4)
    return Case(case.width, case.height, *(p[:0] for p in case.parameters))


def behind() -> Case:
    case = random_case(5)
    camera = case.camera
    local = case.means @ camera.rotation.T + camera.translation
    return replace(case, means=(-local - camera.translation) @ camera.rotation)


def some_behind() -> Case:
    case = random_case(40, seed=1, size=-2.0)
    means = case.means.clone()
    means[::2] = behind().means[0]
    return replace(case, means=means)


def huge() -> Case:
    """Scales of 10 m: every Gaussian covers the picture, most discs cross the camera plane."""
    case = random_case(12, seed=4, opacity=-2.0)
    return replace(case, log_scales=torch.full_like(case.log_scales, math.log(10.0)))


def points() -> Case:
    """Every other Gaussian has next to no extent, in two axes or in one."""
    case = random_case(60, seed=5)
    scales = case.log_scales.clone()
    scales[::2] = -30.0
    scales[::4, 0] = -2.0
    return replace(case, log_scales=scales)


def edge_on() -> Case:
    """Discs whose planes hold, exactly or nearly, the ray to their centres."""
    case = random_case(60, seed=6, size=-2.0)
    camera = case.camera
    local = case.means @ camera.rotation.T + camera.translation
    normal = torch.linalg.cross(local, torch.tensor([0.3, -1.0, 0.2]).expand_as(local))
    normal = torch.nn.functional.normalize(normal, dim=-1) @ camera.rotation
    normal[::2] += 1e-3 * torch.nn.functional.normalize(local[::2] @ camera.rotation, dim=-1)
    # The quaternion that takes z to the normal.
    quats = torch.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], torch.zeros(60)], dim=-1)
    return replace(case, quats=quats)


def duplicates() -> Case:
    """Every Gaussian five times, so that depths tie, with features that differ."""
    case = random_case(30, seed=7, size=-2.0)
    return Case(case.width, case.height, *(p.repeat(5, *[1] * (p.dim() - 1)) for p in case.parameters))


def spoilt() -> Case:
    """Parameters that are not numbers, or not finite, here and there."""
    case = random_case(90, seed=8)
    means, quats, scales, logits = (p.clone() for p in case.parameters)
    means[0, 1], means[1, 2], means[2, 0] = math.nan, math.inf, -math.inf
    quats[3, 0], quats[4, 3], quats[5] = math.nan, math.inf, 0.0
    scales[6, 0], scales[7, 1], scales[8, 0], scales[9, 1] = math.nan, math.inf, -math.inf, 90.0
    logits[10], logits[11], logits[12] = math.nan, -math.inf, math.inf
    return replace(case, means=means, quats=quats, log_scales=scales, opacity_logits=logits)


def opaque() -> Case:
    """Most alphas are clamped, and most pixels stop early."""
    return random_case(400, seed=9, size=-2.0, opacity=6.0)


CASES: dict[str, Callable[[], Case]] = {
    "random": random_case,
    "dense": lambda: random_case(2500, 100, 75, seed=2, size=-4.0, opacity=1.0),
    "empty": empty,
    "single": single,
    "behind": behind,
    "some behind": some_behind,
    "huge": huge,
    "points": points,
    "edge-on": edge_on,
    "one pixel": lambda: random_case(200, 1, 1, size=-1.5),
    "one row": lambda: random_case(200, 33, 1, size=-2.5),
    "one column": lambda: random_case(200, 1, 47, size=-2.5),
    "odd size": lambda: random_case(200, 61, 31, seed=11),
    "whole tiles": lambda: random_case(200, 64, 48, seed=12),
    "duplicates": duplicates,
    "spoilt": spoilt,
    "opaque": opaque,
}


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str, dim: int | None = None) -> None:
    """Error at most ``tolerance`` of the largest entry (per column, if the rows' dimension is given)."""
    assert found.shape == expected.shape, what
    assert found.isfinite().all(), f"{what}: not finite"
    if found.numel() == 0:
        return
    size = expected.abs().amax(dim=dim, keepdim=True) if dim is not None else expected.abs().max()
    excess = ((found.double() - expected).abs() - tolerance * size).max().item()
    assert excess <= 1e-12, f"{what}: error exceeds {tolerance:g} of {size.flatten().tolist()[:13]} by {excess:g}"


def doubles(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.is_floating_point()) for t in tensors]


def singles(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]


def random_like(t: Tensor, seed: int) -> Tensor:
    return torch.randn(t.shape, generator=torch.Generator().manual_seed(seed))


def agreeing_pixels(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Where [H, W] all maps [H, W, ...] agree: everywhere but in the band of the thresholds."""
    agree = torch.ones(found[0].shape[:2], dtype=torch.bool)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.shape == reference.shape
        assert mine.dtype == torch.float32
        assert mine.isfinite().all()
        error = (mine.double() - reference).detach().abs().reshape(*agree.shape, -1).amax(-1)
        agree &= error <= 2e-5 * reference.detach().abs().max() + 1e-7
    assert (~agree).float().mean() <= BAND, f"{(~agree).sum()} of {agree.numel()} pixels differ"
    return agree


def masked_upstream(maps: list[Tensor], agree: Tensor) -> list[Tensor]:
    return [random_like(m, seed) * agree.reshape(*agree.shape, *[1] * (m.dim() - 2)) for seed, m in enumerate(maps)]
