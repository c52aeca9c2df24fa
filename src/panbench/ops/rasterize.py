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
        distortion: [H, W] = Σ_{j<i} w_i w_j (1/d_i − 1/d_j)², 1/m²; None unless asked for. The distortion of 2DGS in
            its L2 form, of depths mapped to [0, 1] between a near plane n and a far plane f, is (f n / (f − n))² of it.
    """

    image: Tensor
    labels: Tensor
    alpha: Tensor
    depth: Tensor
    median: Tensor
    sums: LabelSums | None
    distortion: Tensor | None


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
    detached: bool | int = False,
    targets: LabelTargets | None = None,
    distort: bool = False,
    absolute: Tensor | None = None,
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
        detached: labels send no gradient into ``geometry``; an int: the last so many of them.
        targets: what the label image is compared with.
        distort: give the distortion too.
        absolute: [M, 2], whose values are not read; its gradient becomes Σ |∂L/∂(mean_x, mean_y)| over the pixels,
            which tells a Gaussian that pixels pull apart from one at rest. Ellipsoids only.

    Raises:
        ValueError: ``absolute`` with discs or of another shape, or more labels detached than there are.
    """
    sizes = (width, height)
    if labels is None:
        labels = features.new_empty(len(features), 0)
    still = labels.shape[1] if detached is True else int(detached)
    if not 0 <= still <= labels.shape[1]:
        raise ValueError(f"{still} labels cannot be detached, there are {labels.shape[1]}")
    if absolute is not None and (kind != "ellipsoid" or absolute.shape != (len(geometry), 2)):
        raise ValueError(f"absolute gradients [M, 2] are those of ellipsoids; got {list(absolute.shape)} for {kind}s")
    chosen = resolve(backend, geometry.device.type, rasterizing=True)
    if chosen in ("reference", "gsplat"):
        composed = gsplat.blend if chosen == "gsplat" else reference.blend
        channels = [features.shape[1], labels.shape[1]]
        image, alpha, depth, median, distortion = composed(
            geometry,
            torch.cat([features, labels], dim=1),
            *bins,
            *sizes,
            kind=kind,
            detached=still,
            near=near,
            distort=distort,
            absolute=absolute,
        )
        image, label_image = image.split(channels, dim=-1)
        sums = None if targets is None else reference.label_sums(label_image, targets)
        return Blended(image, label_image, alpha, depth, median, sums, distortion)
    settings = (*sizes, KIND_CODE[kind], still, near)
    image, label_image, alpha, depth, median, *sums, distortion = torch.ops.panbench.blend(
        geometry,
        features.contiguous(),
        labels.contiguous(),
        *bins,
        *((None, None, None) if targets is None else maps_of(targets)),
        *settings,
        *((0, 0, labels.shape[1], False, 1e-4) if targets is None else numbers_of(targets)),
        distort,
        absolute,
    )
    made = None if targets is None else LabelSums(*sums)
    return Blended(image, label_image, alpha, depth, median, made, distortion if distort else None)
