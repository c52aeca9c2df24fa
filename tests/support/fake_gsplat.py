"""A stand-in for the gsplat package in torch, on any device, from what its documentation says of the functions used.

Values of what is culled are NaN, as the real ones are undefined. Written by the pixel, and not after our reference.
"""

from __future__ import annotations

import importlib.machinery
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Alphas = Callable[[Tensor, float, float], Tensor]
"""Alphas of Gaussians [K] at a pixel centre."""


def install(monkeypatch: Any) -> types.ModuleType:
    """Make ``import gsplat`` give this module."""
    module = types.ModuleType("gsplat")
    module.__spec__ = importlib.machinery.ModuleSpec("gsplat", None)
    module.__dict__["__version__"] = "1.5.3"
    for function in (
        fully_fused_projection,
        fully_fused_projection_2dgs,
        isect_tiles,
        isect_offset_encode,
        rasterize_to_pixels,
        rasterize_to_pixels_2dgs,
        rasterize_to_indices_in_range,
        rasterize_to_indices_in_range_2dgs,
    ):
        module.__dict__[function.__name__] = function
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return module


# ------------------------------------------------------------------------------------------------------ projection


def _turn(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3], by turning the axes: v + 2 w (q × v) + 2 q × (q × v)."""
    unit = quats / quats.norm(dim=-1, keepdim=True)
    w, q = unit[:, None, :1], unit[:, None, 1:].expand(-1, 3, 3)
    axes = torch.eye(3, dtype=quats.dtype).expand(len(quats), 3, 3)
    once = torch.linalg.cross(q, axes)
    return (axes + 2 * w * once + 2 * torch.linalg.cross(q, once)).mT


def fully_fused_projection(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int,
    eps2d: float = 0.3, near_plane: float = 0.01, opacities: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """radii [1, N, 2] int32, means2d [1, N, 2], depths [1, N], conics [1, N, 3], compensations."""
    assert covars is None
    assert opacities is not None
    (view,), (lens,) = viewmats, Ks
    focal, middle = lens.diagonal()[:2], lens[:2, 2]
    points = means @ view[:3, :3].T + view[:3, 3]
    half = view[:3, :3] @ _turn(quats) * scales[:, None]
    covariance = half @ half.mT
    depth = points[:, 2]
    slope = points[:, :2] / depth[:, None]
    size = means.new_tensor([width, height])
    margin = 0.15 * size / focal
    held = slope.maximum(-middle / focal - margin).minimum((size - middle) / focal + margin)
    jacobian = torch.cat([torch.diag_embed(focal.expand(len(means), 2)), -(focal * held)[..., None]], dim=-1)
    jacobian = jacobian / depth[:, None, None]
    flat = jacobian @ covariance @ jacobian.mT + eps2d * torch.eye(2, dtype=means.dtype)
    inverse = torch.linalg.inv(flat)
    centers = slope * focal + middle
    extend = (2 * (255 * opacities).log()).sqrt().clamp(max=3.33)
    radii = (extend[:, None] * flat.diagonal(dim1=1, dim2=2).sqrt()).ceil().detach()
    seen = (depth > near_plane) & (centers + radii > 0).all(-1) & (centers - radii < size).all(-1)
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], dim=-1)
    values = [torch.where(seen[:, None], v, torch.nan) for v in (centers, depth[:, None], conics)]
    radii = torch.where(seen[:, None], radii, 0).int()
    return radii[None], values[0][None], values[1][None, :, 0], values[2][None], None


def fully_fused_projection_2dgs(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor, width: int, height: int,
    eps2d: float = 0.3, near_plane: float = 0.01,
) -> tuple[Tensor, ...]:  # fmt: skip
    """radii [1, N, 2] int32, means2d [1, N, 2], depths [1, N], ray_transforms [1, N, 3, 3], normals [1, N, 3]."""
    (view,), (lens,) = viewmats, Ks
    points = means @ view[:3, :3].T + view[:3, 3]
    rotation = view[:3, :3] @ _turn(quats)
    plane = torch.stack(
        [rotation[..., 0] * scales[:, :1], rotation[..., 1] * scales[:, 1:2], points], dim=-1
    )  # columns
    transforms = lens @ plane
    normals = rotation[..., 2]
    normals = torch.where((normals * points).sum(-1, keepdim=True) > 0, -normals, normals)
    centers = (points @ lens.T)[:, :2] / points[:, 2:]
    # No better box is needed here than one of half the picture around every disc in front of the camera.
    radii = torch.full_like(centers, max(width, height)).int()
    seen = points[:, 2] > near_plane
    seen &= ((centers > -radii) & (centers < centers.new_tensor([width, height]) + radii)).all(-1)
    radii = torch.where(seen[:, None], radii, 0)
    return (
        radii[None],
        torch.where(seen[:, None], centers, torch.nan)[None],
        torch.where(seen, points[:, 2], torch.nan)[None],
        torch.where(seen[:, None, None], transforms, torch.nan)[None],
        torch.where(seen[:, None], normals, torch.nan)[None],
    )


# ------------------------------------------------------------------------------------------------------- tile lists


def isect_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile_size: int, tile_width: int, tile_height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tiles_per_gauss [1, N], isect_ids [K] int64 (tile << 32 | bits of the depth) ascending, flatten_ids [K] int32."""
    assert radii.dtype == torch.int32
    assert (radii > 0).all()
    pairs: list[tuple[int, int]] = []
    counts = [0] * means2d.shape[1]
    bits = depths[0].float().view(torch.int32).tolist()
    for row, ((x, y), (rx, ry)) in enumerate(zip(means2d[0].tolist(), radii[0].tolist(), strict=True)):
        left, right = (math.floor((x - rx) / tile_size), math.ceil((x + rx) / tile_size))
        top, bottom = (math.floor((y - ry) / tile_size), math.ceil((y + ry) / tile_size))
        for j in range(max(top, 0), min(bottom, tile_height)):
            for i in range(max(left, 0), min(right, tile_width)):
                pairs.append((((j * tile_width + i) << 32) | bits[row], row))
                counts[row] += 1
    pairs.sort(key=lambda pair: pair[0])
    keys, rows = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs], dtype=torch.int32)
    return torch.tensor([counts], dtype=torch.int32), keys.long(), rows


def isect_offset_encode(isect_ids: Tensor, n_images: int, tile_width: int, tile_height: int) -> Tensor:
    """First place of each tile in the list, int32 [1, tile_height, tile_width]."""
    assert n_images == 1
    first = torch.searchsorted(isect_ids >> 32, torch.arange(tile_width * tile_height))
    return first.int().view(1, tile_height, tile_width)


# ---------------------------------------------------------------------------------------------------------- blending


def _contributions(
    alphas_at: Alphas, width: int, height: int, tile: int, offsets: Tensor, ids: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each pixel, front to back: rows, alphas, and the light before each."""
    _, _, columns = offsets.shape
    starts = [*offsets.flatten().tolist(), len(ids)]
    out: list[tuple[Tensor, Tensor, Tensor]] = []
    for line in range(height):
        for column in range(width):
            t = line // tile * columns + column // tile
            rows = ids[starts[t] : starts[t + 1]].long()
            alpha = alphas_at(rows, column + 0.5, line + 0.5).clamp(max=0.999)
            kept = alpha >= 1 / 255
            rows, alpha = rows[kept], alpha[kept]
            after = (1 - alpha).cumprod(0)
            count = int((after > 1e-4).sum())
            before = torch.cat([torch.ones_like(after[:1]), after])[:count]
            out.append((rows[:count], alpha[:count], before))
    return out


class _Noted(torch.autograd.Function):
    """Hands means through, and notes on them, when their gradient comes, what ``pulls`` has gathered by then."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, pulls: Tensor) -> Tensor:
        ctx.save_for_backward(means2d)
        ctx.pulls = pulls
        return means2d.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (means2d,) = ctx.saved_tensors
        means2d.absgrad = ctx.pulls
        return grads[0], None


def _ellipsoids(means2d: Tensor, conics: Tensor, opacities: Tensor, pulls: Tensor | None = None) -> Alphas:
    """pulls [1, N, 2]: to be added to, in the backward pass, by every pixel's absolute gradient of the means."""
    places = means2d if pulls is None else _Noted.apply(means2d, pulls)

    def alphas(rows: Tensor, x: float, y: float) -> Tensor:
        place = places[0, rows]
        if pulls is not None:

            def gather(gradient: Tensor) -> None:
                pulls[0].index_add_(0, rows, gradient.abs())

            place.register_hook(gather)
        away = place - means2d.new_tensor([x, y])
        a, b, c = conics[0, rows].unbind(-1)
        sigma = 0.5 * (a * away[:, 0] ** 2 + c * away[:, 1] ** 2) + b * away[:, 0] * away[:, 1]
        return torch.where(sigma >= 0, opacities[0, rows] * (-sigma).exp(), 0)

    return alphas


def _discs(means2d: Tensor, transforms: Tensor, opacities: Tensor) -> Alphas:
    def alphas(rows: Tensor, x: float, y: float) -> Tensor:
        m = transforms[0, rows]
        # (u, v, 1) on the disc is at the pixel where both planes hold: two equations in u and v.
        planes = torch.stack([x * m[:, 2] - m[:, 0], y * m[:, 2] - m[:, 1]], dim=1)
        solution = torch.linalg.solve(planes[:, :, :2], -planes[:, :, 2])
        away = means2d[0, rows] - means2d.new_tensor([x, y])
        distance = torch.minimum(solution.square().sum(-1), 2 * away.square().sum(-1))
        return opacities[0, rows] * (-distance / 2).exp()

    return alphas


def _image(values: Tensor, found: list[tuple[Tensor, Tensor, Tensor]], width: int, height: int) -> tuple[Tensor, ...]:
    assert values.shape[-1] in (64, 128, 256, 512) or values.shape[-1] <= 32
    colors = torch.stack([(alpha * light) @ values[0, rows] for rows, alpha, light in found])
    alphas = torch.stack([(alpha * light).sum() for _, alpha, light in found])
    return colors.view(1, height, width, -1), alphas.view(1, height, width, 1)


def rasterize_to_pixels(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, image_width: int, image_height: int,
    tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor, absgrad: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Colours [1, H, W, C] and alphas [1, H, W, 1]; with absgrad the backward pass sets ``means2d.absgrad``."""
    size = (image_width, image_height)
    # What is not contiguous is copied, and the note would be on the copy.
    assert not absgrad or means2d.is_contiguous()
    shapes = _ellipsoids(means2d, conics, opacities, torch.zeros_like(means2d) if absgrad else None)
    return _image(colors, _contributions(shapes, *size, tile_size, isect_offsets, flatten_ids), *size)


def rasterize_to_pixels_2dgs(
    means2d: Tensor, ray_transforms: Tensor, colors: Tensor, opacities: Tensor, normals: Tensor, densify: Tensor,
    image_width: int, image_height: int, tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Colours [1, H, W, C], alphas [1, H, W, 1], normals, distortion and the median of the last colour."""
    assert normals.shape == (*means2d.shape[:2], 3)
    assert densify.shape == means2d.shape
    size = (image_width, image_height)
    shapes = _discs(means2d, ray_transforms, opacities)
    image, alphas = _image(colors, _contributions(shapes, *size, tile_size, isect_offsets, flatten_ids), *size)
    return image, alphas, torch.zeros(1, *size[::-1], 3), torch.zeros_like(alphas), torch.zeros_like(alphas)


def _indices(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.cat([rows for rows, _, _ in found]).int()
    pixels = torch.arange(len(found)).repeat_interleave(torch.tensor([len(rows) for rows, _, _ in found]))
    return rows, pixels, torch.zeros_like(pixels)


def rasterize_to_indices_in_range(
    range_start: int, range_end: int, transmittances: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor,
    image_width: int, image_height: int, tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gaussian ids [P], pixel ids [P] and image ids [P] of all contributions."""
    assert range_start == 0
    assert range_end * tile_size**2 > len(flatten_ids)
    assert (transmittances == 1).all()
    shapes = _ellipsoids(means2d, conics, opacities)
    return _indices(_contributions(shapes, image_width, image_height, tile_size, isect_offsets, flatten_ids))


def rasterize_to_indices_in_range_2dgs(
    range_start: int, range_end: int, transmittances: Tensor, means2d: Tensor, ray_transforms: Tensor,
    opacities: Tensor, image_width: int, image_height: int, tile_size: int, isect_offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As for ellipsoids."""
    assert range_start == 0
    assert range_end * tile_size**2 > len(flatten_ids)
    assert (transmittances == 1).all()
    shapes = _discs(means2d, ray_transforms, opacities)
    return _indices(_contributions(shapes, image_width, image_height, tile_size, isect_offsets, flatten_ids))
