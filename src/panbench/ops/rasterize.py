"""Tile lists and alpha blending of any number of channels in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from panbench.ops import gsplat, reference
from panbench.ops.backend import Backend, resolve
from panbench.ops.project import KIND_CODE, Kind


class Bins(NamedTuple):
    """Which visible Gaussians may touch which tile of 16 × 16 pixels.

    Attributes:
        tile_offsets: [T + 1], int32; tile t (row-major) owns ``tile_ids[tile_offsets[t]:tile_offsets[t + 1]]``.
        tile_ids: [K], int32; rows of the geometry, front to back, ties by row.
    """

    tile_offsets: Tensor
    tile_ids: Tensor


class Blended(NamedTuple):
    """A blended view.

    Attributes:
        image: [H, W, C] = Σ w f over a background of zero, w = α T.
        alpha: [H, W] = Σ w.
        depth: [H, W] = Σ w d, metres; divide by alpha for the expected depth. d is the depth of the centre
            (ellipsoids) or of the ray's hit (discs).
        median: [H, W], metres: d of the last Gaussian in front of which T > ½; 0 where there is none.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    median: Tensor


def bin(geometry: Tensor, width: int, height: int, *, kind: Kind, backend: Backend | None = None) -> Bins:
    """List the Gaussians of every tile, front to back.

    Args:
        geometry: [M, 7 or 13] of :func:`panbench.ops.project`.
        width, height: image size in pixels.
    """
    chosen = resolve(backend, geometry.device.type, rasterizing=True)
    if chosen == "gsplat":
        return Bins(*gsplat.bin(geometry, width, height, kind=kind))
    if chosen == "reference":
        return Bins(*reference.bin(geometry, width, height, kind=kind))
    return Bins(*torch.ops.panbench.bin(geometry.detach(), width, height, KIND_CODE[kind]))


def blend(
    geometry: Tensor,
    features: Tensor,
    bins: Bins,
    width: int,
    height: int,
    *,
    kind: Kind,
    near: float,
    detached: int = 0,
    backend: Backend | None = None,
) -> Blended:
    """Blend features front to back (eqs. 1, 6, 7).

    α = min(0.99, opacity · G), skipped below 1/255; a pixel stops, exclusively, where T (1 − α) ≤ 1e-4.

    Args:
        geometry: [M, 7 or 13] of :func:`panbench.ops.project`.
        features: [M, C], C ≥ 1.
        bins: of :func:`bin` for the same geometry and size.
        detached: the last so many channels send no gradient into ``geometry``.
        near: discs hit in front of this depth are skipped, metres.
    """
    sizes = (width, height)
    chosen = resolve(backend, geometry.device.type, rasterizing=True)
    if chosen == "gsplat":
        out = gsplat.blend(geometry, features, *bins, *sizes, kind=kind, detached=detached, near=near)
    elif chosen == "reference":
        out = reference.blend(geometry, features, *bins, *sizes, kind=kind, detached=detached, near=near)
    else:
        out = torch.ops.panbench.blend(geometry, features.contiguous(), *bins, *sizes, KIND_CODE[kind], detached, near)
    return Blended(*out)
