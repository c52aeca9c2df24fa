"""Hand-held camera paths through procedural rooms: collision-free, smooth, and seeing every object from many sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import distance_transform_edt, gaussian_filter1d, label
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from panbench.data.room_layout import Room, inside
from panbench.data.room_render import RoomTracer

Floats = NDArray[np.floating]
_CELL = 0.1
_LOW_WIDTH, _LOW_HEIGHT = 32, 24
_SECTORS = 8


def look_at(eye: Floats, yaw: float, pitch: float, roll: float = 0.0) -> Floats:
    """Camera-to-world matrix [4, 4] (OpenCV axes) at ``eye``; ``yaw`` from +x about z, ``pitch`` up, radians."""
    forward = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([c * right + s * down, c * down - s * right, forward], axis=-1)
    pose[:3, 3] = eye
    return pose


@dataclass(frozen=True, eq=False)
class _Views:
    """Candidate views: eyes [C, 3], yaw and pitch [C], share of the picture that each item covers [C, items]."""

    eyes: Floats
    yaw: Floats
    pitch: Floats
    share: Floats
    sector: NDArray[np.int64]


class _Walkable:
    """Where a camera can be: a grid over the floor with walking costs."""

    def __init__(self, room: Room, tracer: RoomTracer) -> None:
        self.low = room.polygon.min(0)
        count = np.ceil((room.polygon.max(0) - self.low) / _CELL).astype(int)
        x, y = (self.low[k] + (np.arange(count[k]) + 0.5) * _CELL for k in (0, 1))
        self.cells = np.stack(np.meshgrid(x, y), -1)
        within = inside(room.polygon, self.cells)
        top = np.float32(room.height - 0.12)
        origins = np.concatenate([self.cells.reshape(-1, 2), np.full((within.size, 1), top)], 1).astype(np.float32)
        down = np.broadcast_to(np.array([0.0, 0.0, -1.0]), origins.shape)
        hit = tracer.cast(origins, down)
        ground = np.where(hit.face >= 0, top - hit.distance, 0.0).reshape(within.shape)
        padded = np.pad(within & (ground < 1.0), 1)
        clearance = np.asarray(distance_transform_edt(padded))[1:-1, 1:-1] * _CELL
        free = clearance > 0.33
        parts = np.zeros(free.shape, dtype=np.int32)
        label(free, output=parts)
        if not parts.any():
            raise RuntimeError("the room leaves no place for a camera")
        self.free = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        self.cost = np.where(ground > 0.2, 5.0, 1.0)
        self.index = np.full(self.free.shape, -1)
        self.index[self.free] = np.arange(self.free.sum())
        self.points = self.cells[self.free]
        self.standing = np.flatnonzero(self.cost[self.free] < 2)
        self.graph = self._graph()

    def _graph(self) -> sparse.csr_matrix:
        rows, columns, weights = [], [], []
        height, width = self.free.shape
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            a = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
            b = (slice(dy, height), slice(max(0, dx), width + min(0, dx)))
            both = self.free[a] & self.free[b]
            rows.append(self.index[a][both])
            columns.append(self.index[b][both])
            weights.append(np.hypot(dx, dy) * _CELL * (self.cost[a] + self.cost[b])[both] / 2)
        n = len(self.points)
        half = sparse.csr_matrix(
            (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)
        )
        return sparse.csr_matrix(half + half.T)

    def nearest(self, point: Floats) -> int:
        return int(np.argmin(((self.points - point) ** 2).sum(1)))

    def walk(self, start: Floats, end: Floats) -> Floats:
        """Shortest walk between two floor points [P, 2]."""
        a, b = self.nearest(start), self.nearest(end)
        before = dijkstra(self.graph, indices=a, return_predecessors=True)[1]
        nodes = [b]
        while nodes[-1] != a:
            nodes.append(int(before[nodes[-1]]))
        return np.concatenate([start[None], self.points[nodes[::-1]], end[None]])


def _candidates(
    ground: _Walkable, tracer: RoomTracer, focal: float, width: int, height: int, rng: np.random.Generator, count: int
) -> _Views:
    """Random standing views of the room with what they see, blocked ones left out."""
    places = ground.points[rng.choice(ground.standing, count)] + rng.uniform(-0.04, 0.04, (count, 2))
    turns = 10
    eyes = np.concatenate([places, rng.uniform(1.25, 1.65, (count, 1))], 1).repeat(turns, 0)
    yaw = (2 * np.pi * np.arange(turns) / turns)[None] + rng.uniform(0, 2 * np.pi, (count, 1))
    yaw = yaw.ravel()
    pitch = rng.uniform(-0.50, -0.05, len(yaw))
    items = int(tracer.face_item.max()) + 1
    share, near = np.zeros((len(yaw), items)), np.zeros(len(yaw))
    rays, origins = [], []
    for k in range(len(yaw)):
        rays.append(_low_rays(look_at(eyes[k], yaw[k], pitch[k]), focal, width, height))
        origins.append(np.broadcast_to(eyes[k].astype(np.float32), rays[-1].shape))
    hit = tracer.cast(np.concatenate(origins), np.concatenate(rays))
    seen = np.where(hit.face >= 0, tracer.face_item[hit.face], 0).reshape(len(yaw), -1)
    depth = np.where(hit.face >= 0, hit.distance, 0).reshape(len(yaw), -1)
    for k in range(len(yaw)):
        share[k] = np.bincount(seen[k], minlength=items) / seen.shape[1]
        near[k] = np.quantile(depth[k], 0.3)
    good = near > min(1.3, float(np.quantile(near, 0.5)))
    middle = np.stack([np.bincount(tracer.vertex_item, tracer.vertices[:, k]) for k in (0, 1)], -1)
    middle /= np.maximum(np.bincount(tracer.vertex_item), 1)[:, None]
    offset = eyes[good, None, :2] - middle
    sector = (
        np.floor((np.arctan2(offset[..., 1], offset[..., 0]) / (2 * np.pi) + 0.5) * _SECTORS).astype(np.int64)
        % _SECTORS
    )
    return _Views(eyes[good], yaw[good], pitch[good], share[good], sector)


def _low_rays(pose: Floats, focal: float, width: int, height: int) -> NDArray[np.float32]:
    x = ((np.arange(_LOW_WIDTH) + 0.5) / _LOW_WIDTH - 0.5) * width / focal
    y = ((np.arange(_LOW_HEIGHT) + 0.5) / _LOW_HEIGHT - 0.5) * height / focal
    local = np.stack([*np.broadcast_arrays(x[None], y[:, None]), np.ones((_LOW_HEIGHT, _LOW_WIDTH))], -1).reshape(-1, 3)
    return np.ascontiguousarray((local @ pose[:3, :3].T).astype(np.float32))


def _choose(views: _Views, count: int, need: Floats) -> list[int]:
    """Greedy choice of views: each object again and again, preferably from sides it was not seen from."""
    weight = np.clip(views.share / 0.012, 0, 1) * need
    times = np.zeros(views.share.shape[1])
    sides = np.zeros((views.share.shape[1], _SECTORS))
    everything = np.arange(views.share.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        novelty = 0.65**times * 0.5 ** sides[everything, views.sector]
        gain = (weight * novelty).sum(1)
        for other in chosen:
            close = np.linalg.norm(views.eyes - views.eyes[other], axis=1)
            turned = np.abs(np.angle(np.exp(1j * (views.yaw - views.yaw[other]))))
            gain *= 1 - 0.6 * np.exp(-((close / 0.5) ** 2) - (turned / 0.6) ** 2)
        best = int(np.argmax(gain))
        chosen.append(best)
        seen = np.clip(views.share[best] / 0.012, 0, 1)
        times += seen
        np.add.at(sides, (everything, views.sector[best]), seen)
    return chosen


def _tour(views: _Views, chosen: list[int]) -> list[int]:
    """Closed tour over the chosen views: nearest neighbour, then 2-opt; metres plus turn in radians."""
    eyes, yaw = views.eyes[chosen], views.yaw[chosen]
    cost = np.linalg.norm(eyes[:, None] - eyes[None], axis=-1) + np.abs(
        np.angle(np.exp(1j * (yaw[:, None] - yaw[None])))
    )
    order, left = [0], set(range(1, len(chosen)))
    while left:
        following = min(left, key=lambda k: (cost[order[-1], k], k))
        order.append(following)
        left.remove(following)
    improved = True
    while improved:
        improved = False
        for i in range(1, len(order) - 1):
            for j in range(i + 1, len(order)):
                a, b, c, d = order[i - 1], order[i], order[j], order[(j + 1) % len(order)]
                if cost[a, c] + cost[b, d] < cost[a, b] + cost[c, d] - 1e-9:
                    order[i : j + 1] = order[i : j + 1][::-1]
                    improved = True
    return [chosen[k] for k in order]


def _poses(
    views: _Views, tour: list[int], ground: _Walkable, tree: KDTree, frames: int, rng: np.random.Generator
) -> Floats:
    """Walk the tour, and back to its start if it has more than two stops: poses [frames, 4, 4], evenly spread over
    way and turning."""
    eyes, angles, steps = [], [], []
    stops = [*tour, tour[0]] if len(tour) > 2 else tour
    turn, pitch, heights = np.unwrap(views.yaw[stops]), views.pitch[stops], views.eyes[stops, 2]
    for k in range(len(stops) - 1):
        start, end = views.eyes[stops[k], :2], views.eyes[stops[k + 1], :2]
        way = ground.walk(start, end)
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
        effort = along[-1] + 0.9 * abs(turn[k + 1] - turn[k])
        t = np.linspace(0, 1, max(4, int(effort * 24)), endpoint=False)
        ease = t - np.sin(2 * np.pi * t) / (2 * np.pi) * 0.35
        flat = np.stack([np.interp(ease * along[-1], along, way[:, j]) for j in (0, 1)], -1)
        eyes.append(np.column_stack([flat, heights[k] + (heights[k + 1] - heights[k]) * ease]))
        angles.append(
            np.column_stack([turn[k] + (turn[k + 1] - turn[k]) * ease, pitch[k] + (pitch[k + 1] - pitch[k]) * ease])
        )
        steps.append(np.full(len(t), effort / len(t)))
    path, angle, step = np.concatenate(eyes), np.concatenate(angles), np.concatenate(steps)
    spin = turn[-1] - turn[0]
    ramp = np.linspace(0, spin, len(path), endpoint=False)
    ends = "wrap" if len(tour) > 2 else "nearest"
    angle[:, 0] = gaussian_filter1d(angle[:, 0] - ramp, 6.0, mode=ends) + ramp
    angle[:, 1] = gaussian_filter1d(angle[:, 1], 6.0, mode=ends)
    # Round the corners as far as the furniture allows.
    smooth = path
    for sigma in (8.0, 5.0, 3.0, 1.5):
        smooth = gaussian_filter1d(path, sigma, axis=0, mode=ends)
        if tree.query(smooth)[0].min() > 0.22:
            break
    moments = np.concatenate([[0.0], np.cumsum(step)])[:-1]
    when = np.linspace(0, moments[-1], frames)
    pick = np.interp(when, moments, np.arange(len(path)))
    low = np.minimum(pick.astype(int), len(path) - 2)
    part = (pick - low)[:, None]
    eye = smooth[low] * (1 - part) + smooth[low + 1] * part
    view = angle[low] * (1 - part) + angle[low + 1] * part
    shake = gaussian_filter1d(rng.standard_normal((frames, 6)), 1.0, axis=0, mode="nearest") * 1.9
    eye = eye + 0.008 * shake[:, :3]
    view = view + 0.012 * shake[:, 3:5]
    return np.stack([look_at(eye[k], view[k, 0], view[k, 1], 0.015 * shake[k, 5]) for k in range(frames)])


def plan_path(
    room: Room,
    tracer: RoomTracer,
    *,
    frames: int,
    focal: float,
    width: int,
    height: int,
    test: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Floats:
    """Camera-to-world poses [frames, 4, 4] of a closed walk through a room (of a short stretch below 30 frames).

    Objects that the first walk shows too rarely in training frames, or never in a test frame, get views of their own
    in up to three further walks; the best walk is returned.

    Args:
        frames, focal, width, height: of the film.
        test: which frames are test views [frames].
        rng: source of all choices.

    Raises:
        RuntimeError: if furniture leaves no place to stand.
    """
    ground = _Walkable(room, tracer)
    views = _candidates(ground, tracer, focal, width, height, rng, 40 if frames < 30 else 110)
    tree = KDTree(tracer.vertices)
    # A short film is one stretch between two views, so that its frames overlap.
    keys = 2 if frames < 30 else min(round(frames / 5.0), 40)
    need = np.ones(views.share.shape[1])
    best: tuple[int, Floats] | None = None
    for _ in range(4):
        poses = _poses(views, _tour(views, _choose(views, keys, need)), ground, tree, frames, rng)
        rays = np.concatenate([_low_rays(p, focal, width, height) for p in poses])
        origins = np.repeat(poses[:, :3, 3].astype(np.float32), _LOW_WIDTH * _LOW_HEIGHT, axis=0)
        hit = tracer.cast(origins, rays).face
        item = np.where(hit >= 0, tracer.face_item[hit], 0).reshape(frames, -1)
        shown = np.stack([np.bincount(row, minlength=len(need)) >= 2 for row in item])
        lacking = (shown[~test].sum(0) < min(3, frames // 4)) | (shown[test].sum(0) < 1)
        if best is None or lacking.sum() < best[0]:
            best = (int(lacking.sum()), poses)
        if not lacking.any():
            break
        need = need * np.where(lacking, 3.0, 1.0)
    assert best is not None
    return best[1]
