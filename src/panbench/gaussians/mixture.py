"""The surface that LI-GS holds its discs to: a mixture of thin plane-constrained Gaussians."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor, nn

from panbench.errors import UserError
from panbench.gaussians.planes import Floats, Ints, Planes, fit_planes, plane_segments
from panbench.gaussians.rotation import quats_with_normal, rotation_matrices

log = logging.getLogger(__name__)

THICKNESS = 0.004
"""Standard deviation of a component along its normal, metres (LI-GS, project page)."""
GREY = 0.1
"""κ, the metres that a step from black to white counts for, so that edges of texture part components."""
RANGE_SHARE = 0.005
"""Share of the range that a sensor's noise is taken for, where origins are known."""
STEPS = 4
MIN_MEMBERS = 3
NEIGHBORS = 4
"""Components that a disc is held to (LI-GS, eqs. 9–10, by a third party's account)."""
REACH = 0.5
"""Farthest component that is asked for a distance, metres."""
ALIKE = math.cos(math.radians(30))
FACING = 0.5
BANDWIDTH = 0.1
"""h of the weights of components, metres."""
_COVERAGE = 2.0  # standard deviations of a component that discs cover
_GOLDEN = math.pi * (3 - math.sqrt(5))
_BUFFERS = {
    "centers": (3,), "normals": (3,), "tangents": (2, 3), "deviations": (2,), "colors": (3,), "counts": (),
    "confidence": (),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Discs:
    """Discs that cover a mixture.

    Attributes:
        positions: [N, 3] metres. quats: rotations [N, 4] whose columns are the two tangents and the normal.
        radii: standard deviations along the tangents [N, 2], metres. component: which each covers [N].
    """

    positions: Tensor
    quats: Tensor
    radii: Tensor
    component: Tensor


class PlaneMixture(nn.Module):
    """K Gaussians, each in a plane, over a point cloud; what is fitted is in buffers, and so in checkpoints.

    Jiang et al. 2024 (LI-GS) fit plane-constrained mixtures in position and grey value to LiDAR; their equations we
    have not seen. **How it is fitted here, and every number but the thickness, is our inference**: planar voxels are
    grown to segments (:mod:`panbench.gaussians.planes`), and the points of each are grouped by k-means over two
    coordinates in the plane and the grey value.

    Attributes:
        centers: [K, 3] metres, on the plane. normals: [K, 3] unit, towards the sensors where those are known.
        tangents: the two main directions in the plane [K, 2, 3]. deviations: standard deviations along them σ1 ≥ σ2
            [K, 2], metres, not below the thickness. colors: [K, 3] in [0, 1]. counts: rays [K].
        confidence: q = N / (N + 20) · (1 − λ3/λ2) [K], of N rays whose points have variances λ1 ≥ λ2 ≥ λ3.
    """

    centers: Tensor
    normals: Tensor
    tangents: Tensor
    deviations: Tensor
    colors: Tensor
    counts: Tensor
    confidence: Tensor

    def __init__(self) -> None:
        """No components; :meth:`fit` makes some, :meth:`resize_like` makes room for those of a checkpoint."""
        super().__init__()
        self._resize(0)
        self._tree: tuple[Tensor, KDTree] | None = None

    def _resize(self, count: int) -> None:
        for name, shape in _BUFFERS.items():
            self.register_buffer(name, torch.zeros(count, *shape))

    def __len__(self) -> int:
        """K."""
        return len(self.centers)

    def __bool__(self) -> bool:
        """True: an empty mixture is still one."""
        return True

    def resize_like(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Make room for the components of a checkpoint.

        Raises:
            UserError: the checkpoint has no mixture.
        """
        saved = state.get(prefix + "centers")
        if saved is None:
            raise UserError(
                "the checkpoint has no mixture of planes: load it with the configuration that it was made with"
            )
        self._resize(len(saved))

    def fit(
        self,
        points: Tensor,
        colors: Tensor | None = None,
        normals: Tensor | None = None,
        origins: Tensor | None = None,
        counts: Tensor | None = None,
        *,
        spacing: float = 0.0,
        radius: float = 0.03,
        tolerance: float = 0.01,
    ) -> PlaneMixture:
        """Fit to points [N, 3] (world, metres) and return self. Deterministic.

        Args:
            colors: [N, 3] or grey [N], in [0, 1]. normals: [N, 3], towards the sensors.
            origins: where the sensor was [N, 3]; gives the side where there are no normals, and noise that grows with
                the range. Without either, the sides of normals are arbitrary.
            counts: rays averaged in each point [N]; 1 each by default.
            spacing: edge of the voxels that points were averaged on, metres, whose width is added to deviations.
            radius: two standard deviations of a component, on average, metres: 0.03 gives some 400 on a square metre.
            tolerance: largest rms distance of points to their plane, metres; 0.02 to 0.03 for LiDAR.

        Raises:
            UserError: points that are not [N, 3], none, not finite, or without a plane among them.
        """
        cloud = _checked(points, "points", 3)
        if not len(cloud):
            raise UserError("mixture: the point cloud is empty; give a scene with depth")
        if radius <= 0 or tolerance <= 0:
            raise UserError(f"mixture: radius {radius} and tolerance {tolerance} must be positive")
        rgb = np.full((len(cloud), 3), 0.5) if colors is None else _checked(colors, "colors", None)
        rgb = np.repeat(rgb[:, None], 3, axis=1) if rgb.ndim == 1 else rgb
        rays = np.ones(len(cloud)) if counts is None else _checked(counts, "counts", None)
        towards = None if normals is None else _checked(normals, "normals", 3)
        limit = np.full(len(cloud), tolerance)
        if origins is not None:
            back = _checked(origins, "origins", 3) - cloud
            towards = back if towards is None else towards
            limit = np.maximum(limit, RANGE_SHARE * np.linalg.norm(back, axis=1))
        middle = cloud.mean(axis=0)
        cloud = cloud - middle
        member, planes = plane_segments(cloud, towards, limit, normals=normals is not None)
        inside = np.flatnonzero(member >= 0)
        if not len(inside):
            raise UserError(
                f"mixture: no plane in {len(cloud)} points; they are too few or too noisy: give more depth frames, or "
                "raise mixture_tolerance"
            )
        member, cloud, rgb, rays = member[inside], cloud[inside], rgb[inside], rays[inside]
        flat, tangents = _in_plane(cloud, member, planes)
        grey = rgb @ np.array([0.299, 0.587, 0.114])
        part = _grouped(flat, grey, member, radius * math.sqrt(3))
        self._fill(cloud, rgb, rays, part, flat, member, planes, tangents, spacing, middle)
        log.info("mixture: %d components in %d planes, from %d points", len(self), len(planes.count), len(points))
        return self

    def _fill(
        self,
        cloud: Floats,
        rgb: Floats,
        rays: Floats,
        part: Ints,
        flat: Floats,
        member: Ints,
        planes: Planes,
        tangents: Floats,
        spacing: float,
        middle: Floats,
    ) -> None:
        count = int(part.max()) + 1
        some = np.bincount(part, minlength=count)
        owner = np.zeros(count, dtype=np.int64)
        owner[part] = member
        mean = _means(flat, part, some)
        x, y = (flat - mean[part]).T
        xx, xy, yy = (np.bincount(part, product, count) / some for product in (x * x, x * y, y * y))
        within = spacing**2 / 12  # a mean over a voxel hides that much
        values, vectors = np.linalg.eigh(np.stack([xx + within, xy, xy, yy + within], axis=1).reshape(-1, 2, 2))
        basis = tangents[owner]
        main = np.einsum("kji,kjd->kid", vectors[:, :, ::-1], basis)
        normal = planes.normal[owner]
        main[:, 1] = np.cross(normal, main[:, 0])  # right-handed
        spread = fit_planes(cloud, part, count).variance + within * np.array([1.0, 1.0, 0.0])
        weight = np.bincount(part, rays, count)
        center = planes.center[owner] + np.einsum("ki,kid->kd", mean, basis) + middle
        made = {
            "centers": center,
            "normals": normal,
            "tangents": main,
            "deviations": np.sqrt(values[:, ::-1].clip(THICKNESS**2)),
            "colors": _means(rgb, part, some),
            "counts": weight,
            "confidence": weight / (weight + 20) * (1 - spread[:, 2] / spread[:, 1].clip(1e-12)).clip(0, 1),
        }
        for name, array in made.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).to(self.centers))

    def covariances(self) -> Tensor:
        """[K, 3, 3] m², with the thickness along the normal."""
        inside = self.tangents * self.deviations[..., None]
        across = THICKNESS * self.normals[:, None]
        axes = torch.cat([inside, across], dim=1)
        return axes.mT @ axes

    # ------------------------------------------------------------------------------------------------------- queries

    @torch.no_grad()
    def nearest(self, points: Tensor, normals: Tensor | None = None, reach: float = REACH) -> Tensor:
        """The nearest components of points [N, 3]: int64 [N, 4], −1 where there are not as many.

        None is farther than ``reach``, in metres, and all of a point are turned like its first: |n · n_first| ≥
        cos 30°. The first is the nearest whose normal is within 60° of the point's own (``normals`` [N, 3], of unit
        length), so that a disc beside an edge stays with its own surface; else the nearest (our inference).
        """
        candidates = 2 * NEIGHBORS
        where = points.detach().cpu().numpy()
        out = torch.full((len(where), NEIGHBORS), -1, dtype=torch.int64, device=points.device)
        finite = np.flatnonzero(np.isfinite(where).all(axis=1))
        if not len(self) or not len(finite):
            return out
        distance, index = self._index().query(
            where[finite], k=candidates, distance_upper_bound=reach, workers=torch.get_num_threads()
        )
        rows = torch.from_numpy(finite).to(points.device)
        found = torch.from_numpy(np.isfinite(distance)).to(points.device)
        ids = torch.from_numpy(index).to(points.device).clamp(max=len(self) - 1)
        turned = self.normals[ids]
        first = torch.zeros(len(ids), 1, dtype=torch.int64, device=points.device)
        if normals is not None:
            own = (turned * normals.detach()[rows, None].to(turned)).sum(-1).abs()
            # argmax of a boolean: the first, which is the nearest.
            first = ((own >= FACING) & found).to(torch.uint8).argmax(1, keepdim=True)
        reference = turned.gather(1, first[..., None].expand(-1, -1, 3))
        alike = found & ((turned * reference).sum(-1).abs() >= ALIKE)
        order = (~alike).to(torch.uint8).argsort(dim=1, stable=True)[:, :NEIGHBORS]
        out[rows] = torch.where(alike, ids, -1).gather(1, order)
        return out

    def _index(self) -> KDTree:
        # Buffers are replaced when a checkpoint is loaded or the module moves: the tree goes with them.
        key = self.centers
        if self._tree is None or self._tree[0] is not key or self._tree[1].n != len(key):
            self._tree = key, KDTree(key.detach().cpu().numpy())
        return self._tree[1]

    @torch.no_grad()
    def weights(self, points: Tensor, ids: Tensor) -> Tensor:
        """a_ik ∝ q_k exp(−‖x − c_k‖² / 2h²) [N, 4] of components ``ids`` [N, 4]; rows sum to 1, or to 0 without any."""
        known = ids >= 0
        which = ids.clamp_min(0)
        square = (points[:, None] - self.centers[which]).square().sum(-1)
        logit = -square / (2 * BANDWIDTH**2) + self.confidence[which].clamp_min(1e-6).log()
        # The shift cancels in the quotient and keeps the largest at 1.
        shifted = logit.masked_fill(~known, -torch.inf)
        top = shifted.amax(1, keepdim=True)
        raw = (shifted - torch.where(top.isfinite(), top, 0.0)).exp()
        return raw / raw.sum(1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Feet of points [N, 3] on the nearest plane among their components, and signed distances [N], metres.

        Without a component in reach the foot is the point itself and the distance infinite.
        """
        ids = self.nearest(points)
        which = ids.clamp_min(0)
        if not len(self):
            return points.clone(), points.new_full((len(points),), torch.inf)
        normals = self.normals[which]
        signed = ((points[:, None] - self.centers[which]) * normals).sum(-1)
        signed = torch.where(ids >= 0, signed, torch.inf)
        best = signed.abs().argmin(1, keepdim=True)
        signed = signed.gather(1, best)
        normal = normals.gather(1, best[..., None].expand(-1, -1, 3))[:, 0]
        foot = torch.where(signed.isfinite(), points - signed * normal, points)
        return foot, signed[:, 0]

    def distance(self, points: Tensor) -> Tensor:
        """δ [N], metres: the least distance of points [N, 3] to the planes of their components; inf without any."""
        return self.project(points)[1].abs()

    def discs(self, radius: float) -> Discs:
        """Discs that cover the components: m = clamp(round(4σ1 · 4σ2 / π r²), 1, 16) on a spiral in the 2σ ellipse.

        Their standard deviations are 2σ / √m, clamped to [½, 3] r. LI-GS starts its surfels from its mixture; how many
        a component and where is our inference.

        Args:
            radius: r, metres.
        """
        long, short = self.deviations.unbind(1)
        number = (16 * long * short / (math.pi * radius**2)).round().clamp(1, 16).long()
        owner = torch.arange(len(self), device=number.device).repeat_interleave(number)
        share = number[owner]
        place = torch.arange(len(owner), device=number.device) - (number.cumsum(0) - number)[owner]
        # Seeds of a sunflower: equal areas, no two in line.
        away = _COVERAGE * ((place + 0.5) / share).sqrt() * (share > 1)
        angle = _GOLDEN * place
        offset = torch.stack([away * angle.cos(), away * angle.sin()], 1) * self.deviations[owner]
        positions = self.centers[owner] + (offset[..., None] * self.tangents[owner]).sum(1)
        radii = _COVERAGE * self.deviations[owner] / share.sqrt()[:, None]
        quats = quats_with_axes(self.tangents[:, 0], self.normals)[owner]
        return Discs(positions, quats, radii.clamp(0.5 * radius, 3 * radius), owner)


def quats_with_axes(first: Tensor, normals: Tensor) -> Tensor:
    """Unit quaternions [N, 4] whose rotation takes x to ``first`` and z to ``normals`` [N, 3], unit and orthogonal."""
    # The shortest turn is ill-conditioned where the normal is nearly −z: there, half a turn about x comes first.
    below = normals[..., 2:] < 0
    w, x, y, z = quats_with_normal(torch.where(below, -normals, normals)).unbind(-1)
    turn = torch.where(below, torch.stack([-x, w, z, -y], -1), torch.stack([w, x, y, z], -1))
    axes = rotation_matrices(turn)
    # What is left is a rotation about the normal: q · (cos θ/2, 0, 0, sin θ/2).
    half = torch.atan2((first * axes[..., 1]).sum(-1), (first * axes[..., 0]).sum(-1)) / 2
    c, s = half.cos(), half.sin()
    w, x, y, z = turn.unbind(-1)
    return torch.stack([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], -1)


def _checked(values: Tensor, name: str, width: int | None) -> Floats:
    array = values.detach().cpu().numpy().astype(np.float64)
    if width is not None and (array.ndim != 2 or array.shape[1] != width):
        raise UserError(f"mixture: {name} have shape {list(array.shape)}, not [N, {width}]")
    if not np.isfinite(array).all():
        wrong = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
        raise UserError(f"mixture: {wrong} of {len(array)} {name} are not finite; mend or drop them")
    return array


def _means(values: Floats, member: Ints, count: Ints) -> Floats:
    sums = [np.bincount(member, column, len(count)) for column in values.T]
    return np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]


def _in_plane(points: Floats, member: Ints, planes: Planes) -> tuple[Floats, Floats]:
    """Coordinates of points in their planes [N, 2], and the tangents of each plane [P, 2, 3]."""
    normal = planes.normal
    away = np.eye(3)[np.abs(normal).argmin(axis=1)]
    first = np.cross(normal, away)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    tangents: Floats = np.stack([first, np.cross(normal, first)], axis=1).astype(np.float64)
    local = points - planes.center[member]
    flat: Floats = (local[:, None] * tangents[member]).sum(2)
    return flat, tangents


def _grouped(flat: Floats, grey: Floats, member: Ints, tile: float) -> Ints:
    """Component of each point: k-means over (a, b, κ · grey) within planes, seeded by square tiles."""
    # Planes lie so far apart along a fourth axis that no point goes to another one.
    gap = 10 * (np.abs(flat).max() + GREY + tile)
    place = np.column_stack([flat, GREY * grey, gap * member])
    cell = np.floor(flat / tile).astype(np.int64)
    cell -= cell.min(axis=0)
    span = cell.max(axis=0) + 1
    part = np.unique((member * span[0] + cell[:, 0]) * span[1] + cell[:, 1], return_inverse=True)[1].reshape(-1)
    for _ in range(STEPS):
        count = np.bincount(part)
        owner = np.zeros(len(count), dtype=np.int64)
        owner[part] = member
        # What a tile cuts off at a rim goes to its neighbours; the largest of a plane always stays.
        largest = np.zeros(int(member.max()) + 1, dtype=np.int64)
        np.maximum.at(largest, owner, count)
        seeds = _means(place, part, count)[(count >= MIN_MEMBERS) | (count == largest[owner])]
        part = KDTree(seeds).query(place, workers=torch.get_num_threads())[1]
        part = np.unique(part, return_inverse=True)[1].reshape(-1)
    return part.astype(np.int64)
