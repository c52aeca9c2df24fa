"""Tile lists and alpha blending of any number of channels in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from panbench.ops import gsplat, reference
from panbench.ops.backend import Backend, resolve
from panbench.ops.label_sums import maps_of, numbers_of
from panbench.ops.project import KIND_CODE, Kind
from panbench.ops.reference import LabelSums, LabelTargets


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
        labels: [H, W, L], the same of the label channels.
        alpha: [H, W] = Σ w.
        depth: [H, W] = Σ w d, metres; divide by alpha for the expected depth. d is the depth of the centre
            (ellipsoids) or of the ray's hit (discs).
        median: [H, W], metres: d of the last Gaussian in front of which T > ½; 0 where there is none.
        sums: of ``labels`` against the targets; None without targets.
    """

    image: Tensor
    labels: Tensor
    alpha: Tensor
    depth: Tensor
    median: Tensor
    sums: LabelSums | None


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
    labels: Tensor | None = None,
    detached: bool = False,
    targets: LabelTargets | None = None,
    backend: Backend | None = None,
) -> Blended:
    """Blend features and labels front to back (eqs. 1, 6, 7), and sum up what the labels' losses need.

    α = min(0.99, opacity · G), skipped below 1/255; a pixel stops, exclusively, where T (1 − α) ≤ 1e-4.

    Labels differ from features in that they may leave geometry alone, and in their sums: losses that are made of these
    cost no further pass over the label image, and no image of gradients.

    Args:
        geometry: [M, 7 or 13] of :func:`panbench.ops.project`.
        features: [M, C]. labels: [M, L]; None: L = 0. C + L ≥ 1.
        bins: of :func:`bin` for the same geometry and size.
        near: discs hit in front of this depth are skipped, metres.
        detached: labels send no gradient into ``geometry``.
        targets: what the label image is compared with.
    """
    sizes = (width, height)
    if labels is None:
        labels = features.new_empty(len(features), 0)
    chosen = resolve(backend, geometry.device.type, rasterizing=True)
    if chosen in ("reference", "gsplat"):
        composed = gsplat.blend if chosen == "gsplat" else reference.blend
        channels = [features.shape[1], labels.shape[1]]
        image, alpha, depth, median = composed(
            geometry,
            torch.cat([features, labels], dim=1),
            *bins,
            *sizes,
            kind=kind,
            detached=channels[1] if detached else 0,
            near=near,
        )
        image, label_image = image.split(channels, dim=-1)
        sums = None if targets is None else reference.label_sums(label_image, targets)
        return Blended(image, label_image, alpha, depth, median, sums)
    settings = (*sizes, KIND_CODE[kind], detached, near)
    image, label_image, alpha, depth, median, *sums = torch.ops.panbench.blend(
        geometry,
        features.contiguous(),
        labels.contiguous(),
        *bins,
        *((None, None, None) if targets is None else maps_of(targets)),
        *settings,
        *((0, 0, labels.shape[1], False, 1e-4) if targets is None else numbers_of(targets)),
    )
    return Blended(image, label_image, alpha, depth, median, None if targets is None else LabelSums(*sums))
