"""Triangle meshes for procedural rooms: rounded boxes, revolved profiles, tubes, sheets, cushions.

Every shape is dense enough for light to be baked at its vertices (``step`` metres between them), carries smooth
normals and texture coordinates in metres, and shares no vertex with another shape, so a vertex has one owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles of one material.

    Attributes:
        vertices: positions [V, 3], metres, z up.
        normals: unit shading normals [V, 3].
        uv: texture coordinates [V, 2], metres along the surface (or 0..1 where a shape says so).
        faces: vertex indices [F, 3], counter-clockwise seen from outside.
    """

    vertices: Floats
    normals: Floats
    uv: Floats
    faces: NDArray[np.int32]

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """Same mesh shifted by (x, y, z) metres."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def turned(self, yaw: float = 0.0, pitch: float = 0.0) -> Mesh:
        """Same mesh rotated about the x axis by ``pitch``, then about the z axis by ``yaw`` (radians)."""
        rotation = yaw_matrix(yaw) @ pitch_matrix(pitch)
        return replace(self, vertices=self.vertices @ rotation.T, normals=self.normals @ rotation.T)

    def with_uv(self, uv: Floats) -> Mesh:
        """Same mesh with other texture coordinates."""
        return replace(self, uv=uv)


def yaw_matrix(angle: float) -> Floats:
    """Rotation [3, 3] about z by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def pitch_matrix(angle: float) -> Floats:
    """Rotation [3, 3] about x by ``angle`` radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several, vertices kept apart."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]).astype(np.int32),
    )


def grid_faces(rows: int, columns: int, keep: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """Triangles [F, 3] of a vertex grid [rows, columns] stored row-major; ``keep`` [rows-1, columns-1] drops cells."""
    index = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    quads = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], axis=2)
    return (quads if keep is None else quads[keep]).reshape(-1, 3)


def samples(low: float, high: float, step: float) -> Floats:
    """Coordinates from low to high, at most ``step`` apart, ends included."""
    return np.linspace(low, high, max(2, int(np.ceil((high - low) / step - 1e-9)) + 1))


def _smooth_normals(vertices: Floats, faces: NDArray[np.int32]) -> Floats:
    """Area-weighted vertex normals [V, 3]; vertices at the same place share theirs."""
    corners = vertices[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    _, place = np.unique(np.round(vertices, 5), axis=0, return_inverse=True)
    place = place.reshape(-1)
    total = np.stack(
        [np.bincount(place[faces].ravel(), np.repeat(face_normals[:, k], 3), place.max() + 1) for k in range(3)], -1
    )
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return total[place]


def box(size: Sequence[float], step: float, bevel: float = 0.008) -> Mesh:
    """Box with rounded edges, centred at the origin; ``size`` (x, y, z) and ``bevel`` radius in metres.

    Texture u runs along the longest side of each face, so that wood grain follows boards.
    """
    half = np.asarray(size, dtype=float) / 2
    radius = min(bevel, 0.45 * half.min())
    axes: list[Floats] = [np.concatenate([[-h], samples(-(h - radius), h - radius, step), [h]]) for h in half.tolist()]
    parts: list[Mesh] = []
    for axis in range(3):
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        a, b = np.meshgrid(axes[i], axes[j])
        for side in (1.0, -1.0):
            on_cube = np.empty((*a.shape, 3))
            on_cube[..., i], on_cube[..., j], on_cube[..., axis] = a, b, side * half[axis]
            inner = np.clip(on_cube, -(half - radius), half - radius)
            direction = on_cube - inner
            direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
            vertices = (inner + radius * direction).reshape(-1, 3)
            first, second = (i, j) if half[i] >= half[j] else (j, i)
            faces = grid_faces(*a.shape)
            parts.append(
                Mesh(
                    vertices,
                    direction.reshape(-1, 3),
                    vertices[:, (first, second)] + half[[first, second]],
                    faces if side > 0 else faces[:, ::-1],
                )
            )
    return joined(parts)


def cushion(size: Sequence[float], step: float, puff: float = 0.35) -> Mesh:
    """Stuffed box: rounded, its top and bottom bulge by ``puff`` times half its height and its corners draw in."""
    half = np.asarray(size, dtype=float) / 2
    base = box(size, step, bevel=0.55 * float(half.min()) * 2 * 0.8)
    p = base.vertices.copy()
    x, y = np.clip(p[:, 0] / half[0], -1, 1), np.clip(p[:, 1] / half[1], -1, 1)
    bulge = (1 - x**4) * (1 - y**4)
    p[:, 2] *= 1 - puff + 2 * puff * bulge
    p[:, 0] *= 1 - 0.06 * y**2
    p[:, 1] *= 1 - 0.06 * x**2
    return replace(base, vertices=p, normals=_smooth_normals(p, base.faces))


def revolve(profile: Sequence[Sequence[tuple[float, float]]], step: float, segments: int | None = None) -> Mesh:
    """Surface of revolution about z.

    Args:
        profile: polylines of (radius, z), metres; smooth inside a polyline, a hard edge between two. Listed so that the
            outside lies to the right of the direction of travel (upwards along an outer wall).
        step: largest distance between vertices.
        segments: around the axis; from ``step`` if None.
    """
    parts: list[Mesh] = []
    for line in profile:
        points = np.asarray(line, dtype=float)
        dense = [points[:1]]
        for a, b in pairwise(points):
            t = samples(0.0, 1.0, step / max(float(np.linalg.norm(b - a)), 1e-6))[1:, None]
            dense.append(a + t * (b - a))
        rz = np.concatenate(dense)
        widest = float(rz[:, 0].max())
        count = segments or int(np.clip(np.ceil(2 * np.pi * widest / step), 10, 48))
        angle = np.linspace(0.0, 2 * np.pi, count + 1)
        tangent = np.gradient(rz, axis=0)
        outward = np.stack([tangent[:, 1], -tangent[:, 0]], -1)
        outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
        circle = np.stack([np.cos(angle), np.sin(angle)], -1)
        vertices = np.concatenate(
            [rz[:, None, :1] * circle, np.broadcast_to(rz[:, None, 1:], (len(rz), count + 1, 1))], -1
        ).reshape(-1, 3)
        normals = np.concatenate(
            [outward[:, None, :1] * circle, np.broadcast_to(outward[:, None, 1:], (len(rz), count + 1, 1))], -1
        ).reshape(-1, 3)
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(rz, axis=0), axis=1))])
        uv = np.stack(np.broadcast_arrays(angle * widest, along[:, None]), -1).reshape(-1, 2)
        parts.append(Mesh(vertices, normals, uv, grid_faces(len(rz), count + 1)))
    return joined(parts)


def cylinder(radius: float, low: float, high: float, step: float) -> Mesh:
    """Closed upright cylinder between two heights."""
    return revolve([[(0.0, low), (radius, low)], [(radius, low), (radius, high)], [(radius, high), (0.0, high)]], step)


def tube(points: Sequence[Sequence[float]], radius: float | Sequence[float], step: float, sides: int = 8) -> Mesh:
    """Round bar along a polyline [P, 3]; ``radius`` may vary from point to point. Ends are closed to a point."""
    path = np.asarray(points, dtype=float)
    radii = np.broadcast_to(np.asarray(radius, dtype=float), (len(path),))
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    t = samples(0.0, float(lengths[-1]), step)
    dense = np.stack([np.interp(t, lengths, path[:, k]) for k in range(3)], -1)
    r = np.interp(t, lengths, radii)
    dense = np.concatenate([dense[:1], dense, dense[-1:]])
    r = np.concatenate([[1e-4], r, [1e-4]])
    t = np.concatenate([t[:1], t, t[-1:]])
    tangent = np.gradient(dense, axis=0)
    tangent[0], tangent[-1] = tangent[1], tangent[-2]
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    helper = np.array([1.0, 0.0, 0.0]) if abs(tangent[:, 0]).max() < 0.9 else np.array([0.0, 1.0, 0.0])
    first = np.cross(tangent, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    second = np.cross(tangent, first)
    angle = np.linspace(0.0, 2 * np.pi, sides + 1)
    normals = first[:, None] * np.cos(angle)[:, None] + second[:, None] * np.sin(angle)[:, None]
    vertices = dense[:, None] + r[:, None, None] * normals
    uv = np.stack(np.broadcast_arrays(t[:, None], angle * float(radii.max())), -1)
    return Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), uv.reshape(-1, 2), grid_faces(len(dense), sides + 1))


def sheet(surface: Callable[[Floats, Floats], Floats], u: Floats, v: Floats) -> Mesh:
    """Open surface ``surface(u, v) -> [..., 3]`` over a grid; normals along ∂u × ∂v; uv is (u, v)."""
    a, b = np.meshgrid(u, v)
    points = surface(a, b)
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    return Mesh(
        points.reshape(-1, 3), normals.reshape(-1, 3), np.stack([a, b], -1).reshape(-1, 2), grid_faces(*a.shape)
    )


def panel(
    origin: Floats,
    along: Floats,
    up: Floats,
    size: tuple[float, float],
    step: float,
    holes: Sequence[tuple[float, float, float, float]] = (),
) -> Mesh:
    """Flat rectangle at ``origin`` spanned by unit vectors ``along`` × ``up``, facing along × up.

    Args:
        size: extent along both, metres.
        holes: (a0, a1, b0, b1) openings in panel coordinates; grid lines follow their edges.
    """
    cuts_a = sorted({0.0, size[0], *(h[0] for h in holes), *(h[1] for h in holes)})
    cuts_b = sorted({0.0, size[1], *(h[2] for h in holes), *(h[3] for h in holes)})
    a = np.unique(np.concatenate([samples(p, q, step) for p, q in pairwise(cuts_a)]))
    b = np.unique(np.concatenate([samples(p, q, step) for p, q in pairwise(cuts_b)]))
    centre_a, centre_b = np.meshgrid((a[1:] + a[:-1]) / 2, (b[1:] + b[:-1]) / 2)
    keep = np.ones(centre_a.shape, dtype=bool)
    for a0, a1, b0, b1 in holes:
        keep &= ~((centre_a > a0) & (centre_a < a1) & (centre_b > b0) & (centre_b < b1))
    grid_a, grid_b = np.meshgrid(a, b)
    vertices = origin + grid_a[..., None] * along + grid_b[..., None] * up
    normal = np.cross(along, up)
    return Mesh(
        vertices.reshape(-1, 3),
        np.broadcast_to(normal, (grid_a.size, 3)).copy(),
        np.stack([grid_a, grid_b], -1).reshape(-1, 2),
        grid_faces(*grid_a.shape, keep),
    )
