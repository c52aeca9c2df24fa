"""Projection, tile lists and blending by the public functions of gsplat, for comparison; chosen only by name.

What gsplat does not give is made in torch from what it gives: normals of ellipsoids, and, from its list of (pixel,
Gaussian) pairs, the depth of a disc's hits, the median depth and the distortion. It differs from the other back ends in
these:

- alpha is limited at 0.999, not 0.99;
- a disc is culled by its box at three deviations, and is also drawn where it is hit in front of the near plane; such
  hits count with the depth of its centre;
- absolute gradients are its own, in parts of 512 channels, which are not those of a distortion.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.weak import TensorWeakRef

from panbench.errors import UserError
from panbench.ops.build import BuildError
from panbench.ops.reference.project import ALPHA_MIN, Kind, cut_squared, disc_box, disc_center, rotation_matrices
from panbench.ops.reference.rasterize import TILE

_ALPHA_MAX = 0.999
_CHANNELS = 32
"""Channels of one call: gsplat keeps a pixel's channels in registers, and is compiled for powers of two."""
_MOST_CHANNELS = 512  # that it is compiled for
_RADIUS = 1 << 20  # pixels, of what has no bounded footprint
_BATCHES = 1 << 20  # more than any tile's list has


def load() -> Any:
    """The package.

    Raises:
        BuildError: it is not installed or too old, or there is no GPU that torch can use.
    """
    if importlib.util.find_spec("gsplat") is None:
        raise BuildError("gsplat is not installed; install it: pip install 'gsplat>=1.5,<2'")
    if torch.version.cuda is None:
        raise BuildError(f"gsplat needs CUDA, and torch {torch.__version__} is built without it; install a CUDA build")
    if not torch.cuda.is_available():
        raise BuildError("gsplat needs a GPU, and torch finds none; nvidia-smi says whether the driver does")
    try:
        module = importlib.import_module("gsplat")
    except (ImportError, OSError) as error:
        raise BuildError(f"gsplat cannot be imported: {error}") from error
    version = str(getattr(module, "__version__", "0"))
    if not version.startswith("1.") or int(version.split(".")[1]) < 5:
        raise BuildError(f"gsplat {version} is installed, this needs 1.5 or later: pip install 'gsplat>=1.5,<2'")
    return module


def project(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    opacity_logits: Tensor,
    world_to_camera: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    *,
    kind: Kind,
    near: float,
    eps2d: float = 0.3,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`panbench.ops.reference.project`."""
    if kind == "disc":
        log_scales = log_scales[:, :2]
    with torch.no_grad():
        finite = torch.cat([means, quats, log_scales, opacity_logits[:, None]], dim=-1).isfinite().all(-1)
        ahead = means @ world_to_camera[2, :3] + world_to_camera[2, 3] > near
        drawn = (torch.sigmoid(opacity_logits) >= ALPHA_MIN) & (quats.square().sum(-1) > 0)
        ids = (finite & ahead & drawn).nonzero()[:, 0]
    means, quats, scales, opacity = means[ids], quats[ids], log_scales[ids].exp(), opacity_logits[ids].sigmoid()
    if not len(ids):
        return ids, _nothing(means, (0, 13 if kind == "disc" else 7)), _nothing(means, (0, 3))
    intrinsics = means.new_tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    camera = (world_to_camera[None], intrinsics[None], width, height)
    library = load()
    if kind == "disc":
        scales = torch.cat([scales, torch.ones_like(scales[:, :1])], dim=-1)
        radii, _, depths, rows, normals = library.fully_fused_projection_2dgs(
            means, quats, scales, *camera, near_plane=near
        )
        seen = (radii[0] > 0).all(-1).nonzero()[:, 0]
        # What is not seen has no defined values: it is left out before anything is made of it.
        rows, normals = rows[0, seen], normals[0, seen]
        shape = torch.cat([rows.flatten(1), disc_center(rows)], dim=-1)
    else:
        radii, centers, depths, conics, _ = library.fully_fused_projection(
            means, None, quats, scales, *camera, eps2d=eps2d, near_plane=near, opacities=opacity.detach()
        )
        seen = (radii[0] > 0).all(-1).nonzero()[:, 0]
        shape = torch.cat([centers[0, seen], conics[0, seen]], dim=-1)
        points = means[seen] @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        normals = _shortest_axes(quats[seen], scales[seen], points, world_to_camera)
    geometry = torch.cat([shape, opacity[seen, None], depths[0, seen, None]], dim=-1)
    return ids[seen], geometry, normals


def bin(geometry: Tensor, width: int, height: int, *, kind: Kind) -> tuple[Tensor, Tensor]:
    """As :func:`panbench.ops.reference.bin`, by boxes around the centres."""
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    if not len(geometry):
        empty = torch.zeros(tiles_x * tiles_y + 1, dtype=torch.int32, device=geometry.device)
        return empty, empty[:0]
    library = load()
    geometry = geometry.detach()
    centers, half = _boxes(geometry, kind)
    radii = half.ceil().nan_to_num(_RADIUS, posinf=_RADIUS).clamp(1, _RADIUS).int()
    _, keys, rows = library.isect_tiles(
        centers[None], radii[None], geometry[None, :, -1].contiguous(), TILE, tiles_x, tiles_y
    )
    starts = library.isect_offset_encode(keys, 1, tiles_x, tiles_y).flatten()
    return torch.cat([starts, starts.new_tensor([len(rows)])]).int(), rows.int()


def blend(
    geometry: Tensor,
    features: Tensor,
    tile_offsets: Tensor,
    tile_ids: Tensor,
    width: int,
    height: int,
    *,
    kind: Kind,
    detached: int,
    near: float,
    distort: bool = False,
    absolute: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """As :func:`panbench.ops.reference.blend`.

    Raises:
        UserError: distortion and absolute gradients at once.
    """
    if distort and absolute is not None:
        raise UserError("gsplat gives no absolute gradients of a distortion; leave out one of them, or choose auto")
    if not len(tile_ids):
        still = geometry.sum() * 0 if absolute is None else geometry.sum() * 0 + absolute.sum() * 0
        maps = [_nothing(geometry, (height, width)) + still for _ in range(4)]
        image = _nothing(features, (height, width, features.shape[1])) + features.sum() * 0
        return image, maps[0], maps[1], maps[2], maps[3] if distort else None
    lists = (width, height, TILE, tile_offsets[:-1].view(1, -(-height // TILE), -(-width // TILE)), tile_ids)
    attached = features.shape[1] - detached
    # The depth of the centre is one channel more; that gives alpha even where no other channel is attached.
    moving = torch.cat([features[:, :attached], geometry[:, -1:]], dim=1)
    image, alpha = _pixels(geometry, moving, lists, kind, absolute)
    image, depth = image.split([attached, 1], dim=-1)
    if detached:
        image = torch.cat([image, _pixels(geometry.detach(), features[:, attached:], lists, kind)[0]], dim=-1)
    pairs = _pairs(geometry, lists, kind)
    hits, median, distortion = _along_rays(geometry, *pairs, (width, height), kind, near, distort)
    return image, alpha, depth[..., 0] if kind == "ellipsoid" else hits, median, distortion


def _nothing(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_zeros(shape)


def _shortest_axes(quats: Tensor, scales: Tensor, points: Tensor, world_to_camera: Tensor) -> Tensor:
    """Unit normals [M, 3] of ellipsoids at camera-space points, facing the camera."""
    rotation = world_to_camera[:3, :3] @ rotation_matrices(quats)
    axis = scales.argmin(-1)[:, None, None].expand(-1, 3, 1)
    normals = rotation.gather(-1, axis)[..., 0]
    return torch.where((normals * points).sum(-1, keepdim=True) > 0, -normals, normals)


def _boxes(geometry: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Centres [M, 2] and half sides [M, 2] of boxes outside of which alpha < 1/255; NaN or ∞: everywhere."""
    if kind == "disc":
        centers = geometry[:, 9:11].contiguous()
        low, high = disc_box(geometry[:, :9].unflatten(-1, (3, 3)), centers, geometry[:, 11]).split(2, dim=-1)
        return centers, torch.maximum(centers - low, high - centers)
    a, b, c = geometry[:, 2:5].unbind(-1)
    variances = torch.stack([c, a], dim=-1) / (a * c - b * b)[:, None]
    return geometry[:, :2].contiguous(), (cut_squared(geometry[:, 5])[:, None] * variances).sqrt()


def _shape(geometry: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [1, M, 2], conics [1, M, 3] or ray transforms [1, M, 3, 3], opacities [1, M]: as gsplat takes them."""
    if kind == "disc":
        return geometry[None, :, 9:11], geometry[None, :, :9].unflatten(-1, (3, 3)), geometry[None, :, 11]
    return geometry[None, :, :2], geometry[None, :, 2:5], geometry[None, :, 5]


class _Watched(torch.autograd.Function):
    """Hands centres [1, M, 2] through; to ``absolute`` [M, 2] goes what gsplat notes on them in its backward pass."""

    @staticmethod
    def forward(ctx: Any, centers: Tensor, absolute: Tensor) -> Tensor:
        return centers.contiguous().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], ctx.watched().absgrad[0]


def _watched(centers: Tensor, absolute: Tensor) -> Tensor:
    out: Any = _Watched.apply(centers, absolute)
    # Not the tensor itself, which holds what made it: that is a circle.
    if out.grad_fn is not None:
        out.grad_fn.watched = TensorWeakRef(out)
    return out


def _pixels(
    geometry: Tensor, values: Tensor, lists: tuple[Any, ...], kind: Kind, absolute: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Image [H, W, C] of values [M, C], C ≥ 1, and alpha [H, W]."""
    library = load()
    centers, shapes, opacities = _shape(geometry, kind)
    images: list[Tensor] = []
    alphas: list[Tensor] = []
    # The sum of the parts' absolute gradients is no absolute gradient: all channels at once, if it can be.
    for part in values[None].split(_CHANNELS if absolute is None else _MOST_CHANNELS, dim=-1):
        if kind == "disc":
            unused = torch.zeros_like(values[None, :, :1])
            image, alpha, *_ = library.rasterize_to_pixels_2dgs(
                *(centers, shapes, part, opacities, unused.expand(-1, -1, 3), unused.expand(-1, -1, 2)), *lists
            )
        else:
            options: dict[str, bool] = {}
            if absolute is not None:
                channels, options = part.shape[-1], {"absgrad": True}
                part = pad(part, (0, (1 << (channels - 1).bit_length()) - channels))
            seen = centers if absolute is None else _watched(centers, absolute)
            image, alpha = library.rasterize_to_pixels(seen, shapes, part, opacities, *lists, **options)
            for out in (image, alpha):
                if absolute is not None and out.grad_fn is not None:
                    out.grad_fn.metadata["centers"] = seen  # torch lets go of it before it is asked for the note
        images.append(image[0])
        alphas.append(alpha[0, ..., 0])
    return torch.cat(images, dim=-1)[..., : values.shape[1]], alphas[0]


@torch.no_grad()
def _pairs(geometry: Tensor, lists: tuple[Any, ...], kind: Kind) -> tuple[Tensor, Tensor]:
    """Rows of the geometry [P] and pixels [P] of all contributions, by pixel and front to back."""
    width, height, *_ = lists
    library = load()
    draw = library.rasterize_to_indices_in_range_2dgs if kind == "disc" else library.rasterize_to_indices_in_range
    rows, pixels, *_ = draw(0, _BATCHES, geometry.new_ones(1, height, width), *_shape(geometry, kind), *lists)
    return rows.long(), pixels.long()


def _along_rays(
    geometry: Tensor, rows: Tensor, pixels: Tensor, size: tuple[int, int], kind: Kind, near: float, distort: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Σ w d, the median of d and, if asked for, the distortion [H, W] over the pairs.

    Σ w d is zero for ellipsoids, which have it as a channel.
    """
    width, height = size
    count = width * height
    points = torch.stack([pixels % width, pixels // width], dim=-1) + 0.5
    if kind == "disc":
        alphas, depths = _disc_hits(geometry[rows], points, near)
    else:
        with torch.set_grad_enabled(distort and torch.is_grad_enabled()):
            alphas = _ellipsoid_alphas(geometry[rows], points)
        depths = geometry[rows, 6]
    # One sum over millions of pairs needs the digits of float64.
    opaque = torch.log1p(-alphas.double())
    before = opaque.cumsum(0) - opaque
    first = torch.searchsorted(pixels, pixels)
    light = (before - before[first]).exp().to(alphas)
    total = geometry.new_zeros(count)
    if kind == "disc":
        total = total.index_add(0, pixels, alphas * light * depths)
    front = (light > 0.5).nonzero()[:, 0]
    last = torch.full((count,), -1, device=pixels.device).scatter_reduce(0, pixels[front], front, "amax")
    found = last >= 0
    median = torch.where(found, depths[last.clamp_min(0)], 0) if len(depths) else geometry.new_zeros(count)
    distortion = None
    if distort:
        # About the pixel's first hit, as the reference does it.
        nearest = depths[first].detach()
        q = (nearest - depths) / (nearest * depths)
        sums = torch.stack([torch.ones_like(q), q, q * q], dim=-1) * (alphas * light)[:, None]
        weight, mean, square = geometry.new_zeros(count, 3).index_add(0, pixels, sums).unbind(-1)
        distortion = (weight * square - mean * mean).view(height, width)
    return total.view(height, width), median.view(height, width), distortion


def _ellipsoid_alphas(geometry: Tensor, points: Tensor) -> Tensor:
    """Alphas [P] of ellipsoids [P, 7] at pixel centres [P, 2]."""
    dx, dy = (geometry[:, :2] - points).unbind(-1)
    a, b, c, opacity = geometry[:, 2:6].unbind(-1)
    return (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=_ALPHA_MAX)


def _disc_hits(geometry: Tensor, points: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """Alphas [P] and depths [P], metres, where the rays of pixel centres [P, 2] hit discs [P, 13]."""
    row_u, row_v, row_w = geometry[:, :9].unflatten(-1, (3, 3)).unbind(1)
    zeta = torch.linalg.cross(points[:, :1] * row_w - row_u, points[:, 1:] * row_w - row_v)
    u, v = zeta[:, 0] / zeta[:, 2], zeta[:, 1] / zeta[:, 2]
    distance = torch.minimum(u * u + v * v, 2 * (geometry[:, 9:11] - points).square().sum(-1))
    depths = u * row_w[:, 0] + v * row_w[:, 1] + row_w[:, 2]
    alphas = (geometry[:, 11] * torch.exp(-0.5 * distance)).clamp(max=_ALPHA_MAX)
    return alphas, torch.where(depths >= near, depths, geometry[:, 12])
