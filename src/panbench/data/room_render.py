"""Ray-cast pictures of a procedural room, with light baked once at its vertices.

Light is view-independent (area lights, shadows, three diffuse bounces) but for a small Blinn highlight, so a point has
one colour in all views up to that highlight. Labels are exact: the triangle that the pixel's centre ray meets.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray
from scipy import sparse

from panbench.data.room_layout import Light, Room
from panbench.data.room_textures import Material, TextureAtlas

Floats = NDArray[np.floating]
_CHUNK = 262144


@dataclass(frozen=True, eq=False)
class View:
    """What one camera sees, all [H, W].

    Attributes:
        color: linear radiance, float32 [H, W, 3]; 1 is white paper under the room's mean light.
        depth: z-depth, float32, metres, 0 = nothing hit.
        item: index of the object, int32, −1 = nothing hit.
        cosine: of the angle between surface and ray, float32 in [0, 1].
        albedo: mean linear albedo, float32.
    """

    color: Floats
    depth: Floats
    item: NDArray[np.int32]
    cosine: Floats
    albedo: Floats


class Hits(NamedTuple):
    """What rays met: triangle [N] (−1 = none), distance [N] in lengths of the ray's direction, the point's barycentric
    weights u, v [N] of the triangle's second and third corner, the triangle's normal [N, 3], not normalised."""

    face: NDArray[np.int32]
    distance: Floats
    u: Floats
    v: Floats
    normal: Floats


class RoomTracer:
    """Geometry of a room in one ray-casting structure, with textures and baked light.

    Args:
        room: what to draw.
        rng: for the light samples.
        rays: gather rays per vertex.
        detail: see :class:`TextureAtlas`.
    """

    def __init__(self, room: Room, rng: np.random.Generator, *, rays: int = 48, detail: int = 0) -> None:
        materials: dict[Material, int] = {}
        parts = [(index, m, t) for index, item in enumerate(room.items) for m, t in item.parts]
        for _, _, material in parts:
            materials.setdefault(material, len(materials))
        starts = np.cumsum([0] + [len(m.vertices) for _, m, _ in parts[:-1]])
        self.vertices = np.concatenate([m.vertices for _, m, _ in parts]).astype(np.float32)
        self.normals = np.concatenate([m.normals for _, m, _ in parts]).astype(np.float32)
        self.uv = np.concatenate([m.uv for _, m, _ in parts]).astype(np.float32)
        self.faces = np.concatenate([m.faces + s for (_, m, _), s in zip(parts, starts, strict=True)]).astype(np.int32)
        face_counts = [len(m.faces) for _, m, _ in parts]
        self.face_item = np.repeat(np.array([i for i, _, _ in parts], dtype=np.int32), face_counts)
        self.face_material = np.repeat(np.array([materials[t] for _, _, t in parts], dtype=np.int32), face_counts)
        self.vertex_item = np.repeat([i for i, _, _ in parts], [len(m.vertices) for _, m, _ in parts]).astype(np.int32)
        self.vertex_material = np.repeat([materials[t] for _, _, t in parts], [len(m.vertices) for _, m, _ in parts])
        self.atlas = TextureAtlas(list(materials), detail)
        self._gloss = np.array([m.gloss for m in materials], dtype=np.float32)
        self._shine = np.array([m.shine for m in materials], dtype=np.float32)
        self._glow = np.array([m.glow for m in materials], dtype=np.float32)
        self._lights = room.lights
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, self.vertices, self.faces)
        self.light = self._bake(rng, rays)
        self._corners = np.concatenate([self.light, self.uv], axis=1)

    # ---- rays ------------------------------------------------------------------------------------------------------
    def cast(self, origins: Floats, directions: Floats) -> Hits:
        """First hits of rays from ``origins`` [N, 3] (or one origin [3]) along ``directions`` [N, 3]."""
        directions = np.ascontiguousarray(directions, dtype=np.float32)
        origins = np.ascontiguousarray(np.broadcast_to(origins.astype(np.float32), directions.shape))
        found = self._scene.run(origins, directions, output=True)
        return Hits(found["primID"], found["tfar"], found["u"], found["v"], found["Ng"])

    def _blocked(self, origins: Floats, offsets: Floats) -> NDArray[np.bool_]:
        """Whether anything lies between ``origins`` and ``origins + offsets``."""
        reach = np.full(len(origins), 0.995, dtype=np.float32)
        return self._scene.run(origins, offsets, dists=reach, query="OCCLUDED") == 0

    # ---- light -----------------------------------------------------------------------------------------------------
    def _bake(self, rng: np.random.Generator, rays: int) -> Floats:
        """Irradiance / π at every vertex [V, 3], normalised so that its mean over the visible room is about 1."""
        start = self.vertices + 0.004 * self.normals
        smooth = self._smoother()
        direct = smooth @ (smooth @ self._direct(start, rng))
        hits = self._gather(start, rng, rays)
        albedo = self.atlas.mean_albedo[self.face_material]
        glow = (self._glow[self.face_material][:, None] * albedo).astype(np.float32)
        # Emitters that were sampled directly must not be gathered a second time.
        glow[self._glow[self.face_material] > 1.5] = 0.0
        total = direct
        for _ in range(3):
            radiosity = np.concatenate([albedo * total[self.faces].mean(1) + glow, np.zeros((1, 3), np.float32)])
            bounced = np.zeros_like(direct)
            for k in range(rays):
                bounced += radiosity[hits[k]]
            bounced = smooth @ (smooth @ (smooth @ (bounced / rays)))
            total = (direct + bounced).astype(np.float32)
        return (total / max(float(np.median(total.mean(1))), 1e-6)).astype(np.float32)

    def _direct(self, start: Floats, rng: np.random.Generator) -> Floats:
        """Light of all rectangular emitters: form factors, stratified 3 × 3, one jitter per vertex."""
        count = 3
        jitter = rng.random((2, len(start)), dtype=np.float32)

        def cell(task: tuple[Light, int]) -> tuple[NDArray[np.intp], Floats]:
            light, k = task
            centre, half_u, half_v, normal = (
                a.astype(np.float32) for a in (light.centre, light.half_u, light.half_v, light.normal)
            )
            area = 4 * float(np.linalg.norm(half_u) * np.linalg.norm(half_v))
            color = (light.color * area / (np.pi * count * count)).astype(np.float32)
            s = (2 * (k // count + jitter[0]) / count - 1).astype(np.float32)
            t = (2 * (k % count + jitter[1]) / count - 1).astype(np.float32)
            offset = centre + s[:, None] * half_u + t[:, None] * half_v - start
            form = np.maximum(_dot(offset, self.normals), 0) * np.maximum(-(offset @ normal), 0)
            form /= np.maximum(_dot(offset, offset), 0.01) ** 2
            lit = np.flatnonzero(form > 1e-3)
            lit = lit[~self._blocked(start[lit], offset[lit])]
            return lit, form[lit, None] * color

        out = np.zeros_like(start)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for lit, light in pool.map(cell, [(light, k) for light in self._lights for k in range(count * count)]):
                out[lit] += light
        return out

    def _gather(self, start: Floats, rng: np.random.Generator, rays: int) -> NDArray[np.int32]:
        """Triangles [rays, V] that cosine-distributed rays from each vertex meet (−1 = none)."""
        n = self.normals
        sign = np.where(n[:, 2] >= 0, 1.0, -1.0).astype(np.float32)
        a = -1.0 / (sign + n[:, 2])
        b = n[:, 0] * n[:, 1] * a
        tangent = np.stack([1 + sign * n[:, 0] ** 2 * a, sign * b, -sign * n[:, 0]], -1).astype(np.float32)
        bitangent = np.stack([b, sign + n[:, 1] ** 2 * a, -n[:, 1]], -1).astype(np.float32)
        turn = rng.random((2, len(start)), dtype=np.float32)

        def shoot(k: int) -> NDArray[np.int32]:
            # R2 low-discrepancy points, shifted per vertex.
            u = (turn[0] + np.float32(0.7548776662466927 * k)) % 1
            angle = np.float32(2 * np.pi) * ((turn[1] + np.float32(0.5698402909980532 * k)) % 1)
            radius, up = np.sqrt(u), np.sqrt(1 - u)
            direction = (radius * np.cos(angle))[:, None] * tangent + (radius * np.sin(angle))[:, None] * bitangent
            return self.cast(start, (direction + up[:, None] * n).astype(np.float32)).face

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(shoot, range(rays))))

    def _smoother(self) -> sparse.csr_matrix:
        """Row-normalised mean over a vertex and its mesh neighbours [V, V]."""
        edges = np.concatenate([self.faces[:, (0, 1)], self.faces[:, (1, 2)], self.faces[:, (2, 0)]])
        count = len(self.vertices)
        rows = np.concatenate([edges[:, 0], edges[:, 1], np.arange(count)])
        columns = np.concatenate([edges[:, 1], edges[:, 0], np.arange(count)])
        matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(count, count))
        matrix.data[:] = 1.0
        scale = 1.0 / np.asarray(matrix.sum(1)).ravel()
        return sparse.csr_matrix(sparse.diags(scale.astype(np.float32)) @ matrix)

    # ---- pictures --------------------------------------------------------------------------------------------------
    def render(self, camera_to_world: Floats, focal: float, width: int, height: int, samples: int = 2) -> View:
        """Draw one view (OpenCV axes, principal point in the image's middle).

        Args:
            camera_to_world: pose [4, 4].
            focal: focal length, pixels.
            width, height: image size.
            samples: colour samples per pixel side.
        """
        rotation = camera_to_world[:3, :3].astype(np.float32)
        origin = camera_to_world[:3, 3].astype(np.float32)
        fine = self._shade(_rays(rotation, focal * samples, width * samples, height * samples), origin, focal * samples)
        color = fine.reshape(height, samples, width, samples, 3).mean((1, 3))
        rays = _rays(rotation, focal, width, height)
        hit = self.cast(origin, rays)
        face = hit.face
        seen = face >= 0
        corners = self.vertices[self.faces[face]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        cosine = np.abs(_dot(normal, rays)) / np.maximum(np.sqrt(_dot(normal, normal) * _dot(rays, rays)), 1e-12)
        shape = (height, width)
        return View(
            color,
            np.where(seen, hit.distance, 0.0).astype(np.float32).reshape(shape),
            np.where(seen, self.face_item[face], -1).astype(np.int32).reshape(shape),
            np.where(seen, cosine, 1.0).astype(np.float32).reshape(shape),
            np.where(seen, self.atlas.mean_albedo[self.face_material[face]].mean(1), 1.0)
            .astype(np.float32)
            .reshape(shape),
        )

    def _shade(self, rays: Floats, origin: Floats, focal: float) -> Floats:
        out = np.zeros((len(rays), 3), dtype=np.float32)
        for low in range(0, len(rays), _CHUNK):
            part = rays[low : low + _CHUNK]
            hit = self.cast(origin, part)
            seen = np.flatnonzero(hit.face >= 0)
            face = hit.face[seen]
            u, v, depth = hit.u[seen], hit.v[seen], hit.distance[seen]
            corner = self.faces[face]
            values = self._corners[corner[:, 0]] * (1 - u - v)[:, None]
            values += self._corners[corner[:, 1]] * u[:, None]
            values += self._corners[corner[:, 2]] * v[:, None]
            ray = part[seen]
            flat = hit.normal[seen]
            slope = np.abs(_dot(flat, ray)) / np.maximum(np.sqrt(_dot(flat, flat) * _dot(ray, ray)), 1e-12)
            material = self.face_material[face]
            # Isotropic compromise between the footprint across (z/f) and along (z/f/cos) the slope.
            footprint = depth / focal / np.sqrt(np.clip(slope, 0.05, 1))
            albedo = self.atlas.sample(material, values[:, 3:5], footprint)
            color = albedo * (values[:, :3] + self._glow[material][:, None])
            shiny = np.flatnonzero(self._gloss[material] > 0)
            weight = np.stack([1 - u[shiny] - v[shiny], u[shiny], v[shiny]], -1)
            normals = np.einsum("nk,nkc->nc", weight, self.normals[corner[shiny]])
            points = origin + ray[shiny] * depth[shiny, None]
            color[shiny] += self._highlight(points, normals, ray[shiny], values[shiny, :3], material[shiny])
            # A sample beyond the film's white must not outweigh its neighbours in the pixel's mean (jagged edges).
            out[low + seen] = np.minimum(color, 3.0)
        return out

    def _highlight(
        self, points: Floats, normals: Floats, rays: Floats, light: Floats, material: NDArray[np.int32]
    ) -> Floats:
        """Blinn highlights of all lights [N, 3], dimmed where little light arrives."""
        view = -_unit(rays)
        normals = _unit(normals)
        normals = normals * np.sign(_dot(normals, view))[:, None]
        total = np.zeros(len(points), dtype=np.float32)
        for source in self._lights:
            towards = _unit(source.centre.astype(np.float32) - points)
            half = _unit(towards + view)
            total += np.maximum(_dot(half, normals), 0) ** self._shine[material] * (_dot(towards, normals) > 0)
        fresnel = (1 - np.clip(_dot(view, normals), 0, 1)) ** 5
        return ((total + 0.5 * fresnel) * self._gloss[material])[:, None] * light

    def vertex_colors(self) -> NDArray[np.uint8]:
        """sRGB colour of every vertex [V, 3]."""
        footprint = np.full(len(self.vertices), 0.03, dtype=np.float32)
        albedo = self.atlas.sample(self.vertex_material, self.uv, footprint)
        return np.round(display(albedo * (self.light + self._glow[self.vertex_material][:, None]), 1.0) * 255).astype(
            np.uint8
        )


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("ij,ij->i", a, b)


def _unit(a: Floats) -> Floats:
    return a / np.sqrt(np.maximum(_dot(a, a), 1e-12))[:, None]


def _rays(rotation: Floats, focal: float, width: int, height: int) -> Floats:
    """World directions [H·W, 3] of pixel centres; their camera z is 1, so hit distances are z-depths."""
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / np.float32(focal)
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / np.float32(focal)
    across, down = x[:, None] * rotation[:, 0], y[:, None] * rotation[:, 1] + rotation[:, 2]
    return (across[None] + down[:, None]).reshape(-1, 3).astype(np.float32, copy=False)


def display(radiance: NDArray[np.floating], exposure: float) -> NDArray[np.floating]:
    """Film-like curve with a toe and a shoulder, and a gamma: radiance ≥ 0 → [0, 1]."""
    value = (1 - np.exp(-1.25 * exposure * np.maximum(radiance, 0))) ** (1 / 2.2)
    return value + 0.45 * value * (1 - value) * (2 * value - 1)
