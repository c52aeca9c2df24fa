"""A pure-torch rasterizer of the form that gsplat's torch reference has: a flat list of (pixel, Gaussian) pairs.

Attributes are gathered for every pair, transmittance is a scan over the pairs of a pixel, features are multiplied pair
by pair and added into the image by ``index_add``; autograd does the way back. As in the timings of that reference that
this one stands in for, the list of the pairs that contribute is given to it for free.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.scene import Camera

_ALPHA_MAX, _ALPHA_MIN, _TRANSMITTANCE_MIN = 0.99, 1 / 255, 1e-4
_CHUNK = 4_000_000  # candidate pairs looked at together


class Pairs(NamedTuple):
    """Contributing pairs of a view, by pixel, front to back: pixel [P] and row of the visible Gaussians [P], int64."""

    pixel: Tensor
    row: Tensor


def project(geometry: tuple[Tensor, ...], camera: Camera, near: float) -> tuple[Tensor, Tensor]:
    """Visible ids [M] and screen geometry [M, 7] of ellipsoids, differentiable."""
    means, quats, log_scales, logits = geometry
    ids, screen, _ = reference.project(
        means,
        quats,
        log_scales,
        logits,
        camera.world_to_camera,
        camera.fx,
        camera.fy,
        camera.cx,
        camera.cy,
        camera.width,
        camera.height,
        kind="ellipsoid",
        near=near,
    )
    return ids, screen


@torch.no_grad()
def list_pairs(screen: Tensor, width: int, height: int) -> Pairs:
    """The pairs that contribute, of projected ellipsoids [M, 7]."""
    order = screen[:, 6].argsort(stable=True)
    x, y, a, b, c, opacity, _ = screen[order].double().unbind(-1)
    half = (2 * (255 * opacity).log().clamp_min(0) / (a * c - b * b))[:, None] * torch.stack([c, a], -1)
    half = half.sqrt()
    center = torch.stack([x, y], -1)
    limit = half.new_tensor([width, height])
    low = (center - half - 0.5).ceil().clamp_min(0).long()
    high = (center + half - 0.5).floor().minimum(limit - 1).long()
    span = (high - low + 1).clamp_min(0)
    counts = span[:, 0] * span[:, 1]
    pixels, owners = [], []
    # Whole Gaussians at a time, about a chunk of candidates each.
    for part in torch.split(torch.arange(len(order)), max(1, _CHUNK * len(order) // max(int(counts.sum()), 1))):
        owner = part.repeat_interleave(counts[part])
        rank = torch.arange(len(owner)) - (counts[part].cumsum(0) - counts[part]).repeat_interleave(counts[part])
        column, line = low[owner, 0] + rank % span[owner, 0], low[owner, 1] + rank // span[owner, 0]
        alpha = _alphas(screen[order], owner, column, line)
        pixels.append((line * width + column)[alpha >= _ALPHA_MIN])
        owners.append(owner[alpha >= _ALPHA_MIN])
    pixel, owner = torch.cat(pixels), torch.cat(owners)
    # A stable sort keeps the Gaussians of a pixel front to back.
    pixel, by_pixel = pixel.sort(stable=True)
    row = order[owner[by_pixel]]
    alpha = _alphas(screen, row, pixel % width, pixel // width)
    behind = _light_before(alpha, pixel) + torch.log1p(-alpha.double())
    keep = behind > math.log(_TRANSMITTANCE_MIN)
    return Pairs(pixel[keep], row[keep])


def blend(screen: Tensor, features: Tensor, pairs: Pairs, width: int, height: int) -> Tensor:
    """Image [H, W, C] of projected ellipsoids [M, 7] with features [M, C], differentiable in both."""
    pixel, row = pairs
    alpha = _alphas(screen, row, pixel % width, pixel // width)
    weight = alpha * _light_before(alpha, pixel).exp().to(alpha)
    image = features.new_zeros(height * width, features.shape[1])
    return image.index_add(0, pixel, weight[:, None] * features[row]).unflatten(0, (height, width))


def _alphas(screen: Tensor, row: Tensor, column: Tensor, line: Tensor) -> Tensor:
    x, y, a, b, c, opacity, _ = screen[row].unbind(-1)
    dx, dy = x - (column + 0.5), y - (line + 0.5)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    return (opacity * torch.exp(-sigma.clamp_min(0))).clamp(max=_ALPHA_MAX)


def _light_before(alpha: Tensor, pixel: Tensor) -> Tensor:
    """Logarithm of the transmittance in front of each pair [P], float64: one scan over millions needs the digits."""
    opaque = torch.log1p(-alpha.double())
    before = opaque.cumsum(0) - opaque
    first = torch.searchsorted(pixel, pixel)
    return before - before[first]
