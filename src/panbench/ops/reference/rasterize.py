"""Alpha blending of projected Gaussians, tile by tile: W · F with W the blending weights of a tile (eqs. 1, 6, 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panbench.ops.reference.project import ALPHA_MIN, Kind, cut_squared, disc_box

TILE = 16
ALPHA_MAX = 0.99
# 1e-4, and a hair more than rounding: two saturated Gaussians leave (1 - 0.99)^2 and stop a pixel in any precision.
TRANSMITTANCE_MIN = 1e-4 * (1 + 1e-6)

# Boxes are widened by this many pixels, so that rounding never drops a tile whose pixel still reaches 1/255.
_MARGIN = 0.01


def bin(geometry: Tensor, width: int, height: int, *, kind: Kind) -> tuple[Tensor, Tensor]:
    """List, for each tile of 16x16 pixels, the Gaussians whose bounding box meets it, front to back.

    Args:
        geometry: [M, G] as ``project`` gives it.
        width, height: image size, pixels.
        kind: "ellipsoid" or "disc".

    Returns:
        tile_offsets [T + 1], int32: tile t (row-major) owns tile_ids[tile_offsets[t] : tile_offsets[t + 1]].
        tile_ids [K], int32: rows of ``geometry``, by depth of the centre, ties by row.
    """
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    device = geometry.device
    with torch.no_grad():
        order = geometry[:, -1].argsort(stable=True)
        box = _boxes(geometry[order].double(), kind)
        limit = box.new_tensor([tiles_x, tiles_y])
        first = ((box[:, :2] - _MARGIN) / TILE).floor().clamp_min(0).minimum(limit).long()
        last = ((box[:, 2:] + _MARGIN) / TILE).floor().clamp_min(-1).minimum(limit - 1).long()
        span = (last - first + 1).clamp_min(0)
        counts = span[:, 0] * span[:, 1]
        # One entry per (Gaussian, tile) pair, Gaussians front to back; a stable sort by tile keeps that order.
        owner = torch.arange(len(order), device=device).repeat_interleave(counts)
        rank = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
        columns = span[owner, 0]
        tile = (first[owner, 1] + rank // columns) * tiles_x + first[owner, 0] + rank % columns
        by_tile = tile.argsort(stable=True)
        per_tile = torch.bincount(tile, minlength=tiles_x * tiles_y)
        offsets = torch.cat([per_tile.new_zeros(1), per_tile.cumsum(0)])
    return offsets.int(), order[owner[by_tile]].int()


def _boxes(geometry: Tensor, kind: Kind) -> Tensor:
    """Screen boxes (x0, y0, x1, y1) [M, 4] outside of which alpha < 1/255."""
    if kind == "disc":
        return disc_box(geometry[:, :9].unflatten(-1, (3, 3)), geometry[:, 9:11], geometry[:, 11])
    a, b, c = geometry[:, 2:5].unbind(-1)
    determinant = a * c - b * b
    half = (cut_squared(geometry[:, 5])[:, None] * torch.stack([c, a], dim=-1) / determinant[:, None]).sqrt()
    # A conic rounded so far that it is not positive definite has no bounded footprint.
    half = torch.where(((determinant > 0) & (c > 0))[:, None], half, torch.inf)
    return torch.cat([geometry[:, :2] - half, geometry[:, :2] + half], dim=-1)


def blend(
    geometry: Tensor,
    features: Tensor,
    tile_offsets: Tensor,
    tile_ids: Tensor,
    width: int,
    height: int,
    *,
    kind: Kind,
    detached: int = 0,
    near: float,
    distort: bool = False,
    absolute: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Blend features, front to back, over a background of zero.

    A Gaussian's alpha is min(0.99, opacity · G); it is skipped below 1/255, and a pixel stops, without blending it, at
    the first Gaussian that would leave a transmittance of 1e-4 or less. No gradient passes where alpha is clamped.
    The depth of a hit is that of the centre for ellipsoids and that of the ray's intersection with the plane for discs,
    also where the low-pass filter decides alpha; discs hit in front of ``near`` are skipped.

    Args:
        geometry: [M, G] as ``project`` gives it.
        features: [M, C].
        tile_offsets, tile_ids: as ``bin`` gives them.
        width, height: image size, pixels.
        kind: "ellipsoid" or "disc".
        detached: the last so many channels send no gradient into ``geometry``.
        near: smallest depth of a hit on a disc, metres; unused for ellipsoids.
        distort: give the distortion.
        absolute: [M, 2]; gets as its gradient what the pixels send to the means of ellipsoids, each in absolute value.

    Returns:
        image [H, W, C], the weighted sum of features.
        alpha [H, W], the sum of weights.
        depth [H, W], the weighted sum of hit depths, metres (not divided by alpha).
        median [H, W], the depth of the last blended hit that found more than half of the light left, 0 where there is
            none; its gradient goes to that hit alone.
        distortion [H, W], the sum over pairs j < i of w_i w_j (1/d_i - 1/d_j)^2, 1/m^2; None unless asked for.
    """
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    sizes = tile_offsets.diff().tolist()
    rows = tile_ids.long()
    steps = torch.arange(TILE, dtype=geometry.dtype, device=geometry.device) + 0.5
    pixels = torch.stack([steps.repeat(TILE), steps.repeat_interleave(TILE)], dim=-1)
    tiles = []
    watched = geometry[:, :0] if absolute is None else absolute
    candidates = zip(*(t[rows].split(sizes) for t in (geometry, features, watched)), strict=True)
    for tile, (local, values, watch) in enumerate(candidates):
        corner = pixels.new_tensor([tile % tiles_x * TILE, tile // tiles_x * TILE])
        tiles.append(_blend_tile(local, values, corner, pixels, kind, detached, near, distort, watch))
    image, alpha, depth, median, *distortion = (
        torch.stack(maps)
        .unflatten(1, (TILE, TILE))
        .unflatten(0, (tiles_y, tiles_x))
        .transpose(1, 2)
        .flatten(2, 3)
        .flatten(0, 1)[:height, :width]
        for maps in zip(*tiles, strict=True)
    )
    return image, alpha, depth, median, distortion[0] if distort else None


def _blend_tile(
    geometry: Tensor,
    features: Tensor,
    corner: Tensor,
    pixels: Tensor,
    kind: Kind,
    detached: int,
    near: float,
    distort: bool,
    watch: Tensor,
) -> tuple[Tensor, ...]:
    """Image [P, C], alpha, depth, median and, if asked for, distortion [P] of the pixels [P, 2] of a tile.

    Args:
        pixels: centres relative to the tile's corner.
        watch: [M, 2], which gets the absolute gradients of the means, or [M, 0].
    """
    alphas, depths = _hits(geometry, corner, pixels, kind, near, watch)
    # The product only falls, so the first Gaussian that reaches the limit and all behind it are the ones below it.
    blended = ((1 - alphas.detach()).cumprod(-1) > TRANSMITTANCE_MIN) & (alphas > 0)
    alphas = torch.where(blended, alphas, 0)
    ones = torch.ones_like(pixels[:, :1])
    transmittance = torch.cat([ones, (1 - alphas).cumprod(-1)], dim=-1)
    weights = transmittance[:, :-1] * alphas
    attached = features.shape[1] - detached
    image = torch.cat([weights @ features[:, :attached], weights.detach() @ features[:, attached:]], dim=-1)
    # Column 0 stands for "no such hit".
    columns = torch.arange(1, alphas.shape[1] + 1, device=alphas.device)
    nearer = columns * (blended & (transmittance[:, :-1] > 0.5))
    last = torch.cat([torch.zeros_like(ones, dtype=nearer.dtype), nearer], dim=-1).amax(-1, keepdim=True)
    median = torch.cat([torch.zeros_like(ones), depths], dim=-1).gather(-1, last)[:, 0]
    maps = (image, 1 - transmittance[:, -1], (weights * depths).sum(-1), median)
    return (*maps, _distortion(weights, depths, blended)) if distort else maps


def _distortion(weights: Tensor, depths: Tensor, blended: Tensor) -> Tensor:
    """Σ_{j<i} w_i w_j (1/d_i − 1/d_j)² [P] of weights and depths [P, M]: Σ w Σ w q² − (Σ w q)² with q = 1/d − c, any c.

    c is 1/d of the pixel's first hit, so that float32 need not subtract large numbers; as nothing depends on it, it is
    a constant to the gradient.
    """
    if not depths.shape[1]:
        return depths.sum(-1)
    first = torch.where(blended.any(-1, keepdim=True), depths.gather(-1, blended.int().argmax(-1, keepdim=True)), 1)
    first = first.detach()
    depths = torch.where(blended, depths, first)
    q = (first - depths) / (first * depths)
    return weights.sum(-1) * (weights * q * q).sum(-1) - (weights * q).sum(-1).square()


class _Watched(torch.autograd.Function):
    """Hands values [P, M, 2] through; to the rows [M, 2] goes the sum over P of the absolute gradients of these."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0].abs().sum(0)


def _hits(
    geometry: Tensor, corner: Tensor, pixels: Tensor, kind: Kind, near: float, watch: Tensor
) -> tuple[Tensor, Tensor]:
    """Alphas [P, M], 0 where skipped, and depths [P, M] of the Gaussians at the pixels."""
    if kind == "disc":
        distance2, depths, hit = _disc_hits(geometry, corner, pixels, near)
        opacity = geometry[:, 11]
    else:
        distance2, depths, hit = _ellipsoid_hits(geometry, corner, pixels, watch)
        opacity = geometry[:, 5]
    # clamp passes no gradient above the limit.
    alphas = (opacity * torch.exp(-0.5 * distance2)).clamp(max=ALPHA_MAX)
    return torch.where(hit & (alphas >= ALPHA_MIN), alphas, 0), depths


def _ellipsoid_hits(geometry: Tensor, corner: Tensor, pixels: Tensor, watch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    offsets = (geometry[:, :2] - corner) - pixels[:, None]
    if watch.shape[1]:
        offsets: Tensor = _Watched.apply(offsets, watch)  # pyright: ignore[reportAssignmentType]
    dx, dy = offsets.unbind(-1)
    a, b, c = geometry[:, 2:5].unbind(-1)
    distance2 = a * dx * dx + 2 * b * dx * dy + c * dy * dy
    hit = distance2 >= 0  # negative only where rounding has spoilt the conic
    depths = geometry[:, 6].expand(len(pixels), -1)
    return torch.where(hit, distance2, 0), depths, hit


def _disc_hits(geometry: Tensor, corner: Tensor, pixels: Tensor, near: float) -> tuple[Tensor, Tensor, Tensor]:
    row_w = geometry[:, 6:9]
    # Relative to the tile's corner the products below lose far fewer digits.
    row_u = geometry[:, 0:3] - corner[0] * row_w
    row_v = geometry[:, 3:6] - corner[1] * row_w
    # The pixel's two planes p_x M_w - M_u and p_y M_w - M_v meet in zeta, which is affine in the pixel.
    x, y = pixels[:, :1, None], pixels[:, 1:, None]
    zeta = (
        torch.linalg.cross(row_u, row_v) + x * torch.linalg.cross(row_v, row_w) + y * torch.linalg.cross(row_w, row_u)
    )
    with torch.no_grad():
        depths = (zeta[..., :2] / zeta[..., 2:] * row_w[:, :2]).sum(-1) + row_w[:, 2]
        hit = (zeta[..., 2] != 0) & depths.isfinite() & (depths >= near)
    # Where there is no hit any finite value will do: it is masked, and its gradient stays finite.
    divisor = torch.where(hit, zeta[..., 2], 1)
    u, v = zeta[..., 0] / divisor, zeta[..., 1] / divisor
    depths = u * row_w[:, 0] + v * row_w[:, 1] + row_w[:, 2]
    on_disc = u * u + v * v
    on_screen = 2 * ((geometry[:, 9:11] - corner) - pixels[:, None]).square().sum(-1)
    return torch.where(on_disc <= on_screen, on_disc, on_screen), torch.where(hit, depths, 0), hit
