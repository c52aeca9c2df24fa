"""Gaussians onto one pinhole image: ellipsoids by the affine approximation of EWA splatting (3DGS), discs by the exact
map from their plane to the image (2DGS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["ellipsoid", "disc"]

ALPHA_MIN = 1.0 / 255.0
"""A contribution below this is not blended, so a Gaussian that never reaches it is not visible."""

LOW_PASS = 0.5**0.5
"""Standard deviation, in pixels, of the screen-space filter that keeps small and edge-on discs visible."""

DISC_CUT = 3.0
"""Cut-off, in standard deviations, that defines the screen centre of a disc. Fixed, so that images do not depend on
how tightly discs are culled."""

# Beyond these the float32 back ends could not hold the intermediate values.
_MAX_COORDINATE = 1e10
_MAX_DETERMINANT = 1e30


@dataclass(frozen=True)
class _View:
    """What ``project`` was asked for, with the pose in the dtype of the Gaussians."""

    pose: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    kind: Kind
    eps2d: float


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] in the order w, x, y, z, normalised here."""
    w, x, y, z = functional.normalize(quats, dim=-1, eps=1e-20).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


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
    """Project Gaussians and drop those that cannot reach alpha 1/255 in any pixel.

    Dropped are Gaussians with a parameter that is not finite or a zero quaternion, with camera depth not above
    ``near``, with opacity below 1/255, with an extent beyond what float32 can hold, and those whose bounding box at the
    cut-off k = sqrt(2 ln(255 opacity)) misses the image.

    Args:
        means: [N, 3], world, metres.
        quats: [N, 4], w x y z, any positive norm.
        log_scales: [N, 3] for ellipsoids, [N, 2] for discs (a third column is ignored), log metres.
        opacity_logits: [N].
        world_to_camera: [4, 4], rigid, metres, OpenCV axes.
        fx, fy, cx, cy: intrinsics, pixels.
        width, height: image size, pixels.
        kind: "ellipsoid" or "disc".
        near: depth of the near plane, metres.
        eps2d: added to both variances of a projected ellipsoid, px²; unused for discs.

    Returns:
        ids [M], int64, ascending: the rows that are visible.
        geometry [M, G]: for ellipsoids (G = 7) mean x, mean y, conic a, b, c, opacity, depth of the centre; for discs
            (G = 13) the rows M_u, M_v, M_w of the map from the disc's plane to the image, c_x, c_y, opacity, depth of
            the centre. c is the centre of the projected 3-sigma disc, or the projected mean where that disc crosses
            the camera plane. Pixels and metres.
        normals [M, 3]: unit, camera axes, facing the camera: the third axis of a disc, the shortest of an ellipsoid.
    """
    if kind == "disc":
        log_scales = log_scales[:, :2]
    view = _View(world_to_camera.to(means), fx, fy, cx, cy, width, height, kind, eps2d)
    with torch.no_grad():
        finite = torch.cat([means, quats, log_scales, opacity_logits[:, None]], dim=-1).isfinite().all(-1)
        depth = means @ view.pose[2, :3] + view.pose[2, 3]
        candidate = finite & (depth > near) & (depth < _MAX_COORDINATE)
        candidate &= (torch.sigmoid(opacity_logits) >= ALPHA_MIN) & (quats.square().sum(-1) > 0)
        ids = candidate.nonzero()[:, 0]
        *_, visible = _geometry(means[ids], quats[ids], log_scales[ids], opacity_logits[ids], view)
        ids = ids[visible]
    # Computed again on the visible rows alone, so that no dropped row can send a NaN into a gradient.
    geometry, normals, _ = _geometry(means[ids], quats[ids], log_scales[ids], opacity_logits[ids], view)
    return ids, geometry, normals


def _geometry(
    means: Tensor, quats: Tensor, log_scales: Tensor, opacity_logits: Tensor, view: _View
) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry, normals and visibility of Gaussians in front of the camera."""
    points = means @ view.pose[:3, :3].T + view.pose[:3, 3]
    rotation = view.pose[:3, :3] @ rotation_matrices(quats)
    opacity = torch.sigmoid(opacity_logits)
    bounded = (points.abs() < _MAX_COORDINATE).all(-1)
    if view.kind == "disc":
        rows = _disc_rows(points, rotation, log_scales, view)
        center = disc_center(rows)
        box = disc_box(rows, center, opacity)
        bounded &= (log_scales.exp() < _MAX_COORDINATE).all(-1)
        geometry = torch.cat([rows.flatten(1), center, opacity[:, None], points[:, 2:]], dim=-1)
        axis = torch.full_like(points[:, :1], 2, dtype=torch.int64)
    else:
        mean, covariance, determinant = _affine(points, rotation, log_scales, view)
        xx, xy, yy = covariance.unbind(-1)
        conic = torch.stack([yy, -xy, xx], dim=-1) / determinant[:, None]
        half = (cut_squared(opacity)[:, None] * torch.stack([xx, yy], dim=-1)).sqrt()
        box = torch.cat([mean - half, mean + half], dim=-1)
        bounded &= determinant < _MAX_DETERMINANT
        geometry = torch.cat([mean, conic, opacity[:, None], points[:, 2:]], dim=-1)
        axis = log_scales.argmin(-1, keepdim=True)
    normals = rotation.gather(-1, axis[:, None, :].expand(-1, 3, -1))[..., 0]
    away = (normals * points).sum(-1, keepdim=True) > 0
    normals = torch.where(away, -normals, normals)
    x0, y0, x1, y1 = box.unbind(-1)
    visible = bounded & (x1 > 0) & (x0 < view.width) & (y1 > 0) & (y0 < view.height)
    return geometry, normals, visible


def cut_squared(opacity: Tensor) -> Tensor:
    """Squared Mahalanobis distance beyond which opacity * exp(-d²/2) < 1/255."""
    return 2 * torch.log(255 * opacity).clamp_min(0)


def _affine(points: Tensor, rotation: Tensor, log_scales: Tensor, view: _View) -> tuple[Tensor, Tensor, Tensor]:
    """Screen means [M, 2], covariances (xx, xy, yy) [M, 3] with the low-pass term, and their determinants [M]."""
    z = points[:, 2]
    u, v = points[:, 0] / z, points[:, 1] / z
    mean = torch.stack([view.fx * u + view.cx, view.fy * v + view.cy], dim=-1)
    # Outside the picture the affine approximation is evaluated at the border, which keeps it bounded.
    margin_x, margin_y = 0.15 * view.width / view.fx, 0.15 * view.height / view.fy
    u = u.clamp(-view.cx / view.fx - margin_x, (view.width - view.cx) / view.fx + margin_x)
    v = v.clamp(-view.cy / view.fy - margin_y, (view.height - view.cy) / view.fy + margin_y)
    # Rows of J R diag(s), J = [fx, 0, -fx u; 0, fy, -fy v] / z: half of the product that is the covariance.
    axes = rotation * log_scales.exp()[:, None, :]
    row_x = (view.fx / z)[:, None] * (axes[:, 0] - u[:, None] * axes[:, 2])
    row_y = (view.fy / z)[:, None] * (axes[:, 1] - v[:, None] * axes[:, 2])
    xx, yy, xy = row_x.square().sum(-1), row_y.square().sum(-1), (row_x * row_y).sum(-1)
    # det(C0 + eps I) by Lagrange's identity: no difference of large numbers, so needles keep a good conic.
    area = torch.linalg.cross(row_x, row_y).square().sum(-1)
    determinant = area + view.eps2d * (xx + yy) + view.eps2d * view.eps2d
    return mean, torch.stack([xx + view.eps2d, xy, yy + view.eps2d], dim=-1), determinant


def _disc_rows(points: Tensor, rotation: Tensor, log_scales: Tensor, view: _View) -> Tensor:
    """M = K [s_0 r_0 | s_1 r_1 | t] [M, 3, 3]: (x z, y z, z) = M (u, v, 1) for a point (u, v) of the disc."""
    plane = torch.cat([rotation[:, :, :2] * log_scales[:, None].exp(), points[:, :, None]], dim=-1)
    row_u = view.fx * plane[:, 0] + view.cx * plane[:, 2]
    row_v = view.fy * plane[:, 1] + view.cy * plane[:, 2]
    return torch.stack([row_u, row_v, plane[:, 2]], dim=1)


def disc_ellipse(rows: Tensor, cut2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the disc cut at squared radius ``cut2`` [M] lies on the screen: centre [M, 2], squared half extents [M, 2],
    and whether the cut disc is wholly in front of the camera [M]; elsewhere the other two mean nothing (but are
    finite)."""
    row_w = rows[:, 2]
    ahead = cut2 * row_w[:, :2].square().sum(-1) - row_w[:, 2].square()
    in_front = ahead < 0
    safe = torch.where(in_front, ahead, -torch.ones_like(ahead))
    factors = torch.stack([cut2, cut2, -torch.ones_like(cut2)], dim=-1) / safe[:, None]
    center = (factors[:, None] * rows[:, :2] * row_w[:, None]).sum(-1)
    half2 = center.square() - (factors[:, None] * rows[:, :2].square()).sum(-1)
    return center, half2, in_front


def disc_center(rows: Tensor) -> Tensor:
    """Screen centre [M, 2] of the 3-sigma disc, or the projected mean where that disc crosses the camera plane."""
    center, _, in_front = disc_ellipse(rows, rows.new_full((len(rows),), DISC_CUT**2))
    return torch.where(in_front[:, None], center, rows[:, :2, 2] / rows[:, 2:, 2])


def disc_box(rows: Tensor, center: Tensor, opacity: Tensor) -> Tensor:
    """Screen box (x0, y0, x1, y1) [M, 4] outside of which alpha < 1/255: the whole plane (infinite) for a disc that
    crosses the camera plane at its opacity's cut-off."""
    cut2 = cut_squared(opacity)
    middle, half2, in_front = disc_ellipse(rows, cut2)
    half = half2.clamp_min(0).sqrt()
    reach = LOW_PASS * cut2.sqrt()[:, None]
    low = torch.minimum(middle - half, center - reach)
    high = torch.maximum(middle + half, center + reach)
    box = torch.cat([low, high], dim=-1)
    everywhere = box.new_tensor([-torch.inf, -torch.inf, torch.inf, torch.inf])
    return torch.where(in_front[:, None], box, everywhere)
