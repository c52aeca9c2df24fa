"""Plans of procedural rooms: a polygonal shell with door and windows, and furniture that does not collide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panbench.data import room_shapes as shapes
from panbench.data.room_furniture import Item, Workshop
from panbench.data.room_shapes import Floats, Mesh
from panbench.data.room_textures import Color, Material

_CELL = 0.05
_DOOR_HEIGHT, _DOOR_WIDTH, _DOOR_INSET = 2.04, 0.92, 0.05
_SILL, _LINTEL, _WINDOW_INSET = 0.88, 2.08, 0.16
_WALL_TONES: tuple[Color, ...] = (
    (0.90, 0.87, 0.80), (0.78, 0.84, 0.80), (0.86, 0.80, 0.74), (0.80, 0.83, 0.88), (0.92, 0.91, 0.89),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Light:
    """Rectangular emitter: a corner-free quad ``centre ± half_u ± half_v`` of radiance ``color``; faces ``normal``."""

    centre: Floats
    half_u: Floats
    half_v: Floats
    normal: Floats
    color: Floats


@dataclass(frozen=True, eq=False)
class Room:
    """A furnished room.

    Attributes:
        items: every object, shell first; the index is ScanNet's objectId.
        lights: emitters.
        polygon: floor outline [P, 2], counter-clockwise, metres.
        height: of the ceiling, metres.
    """

    items: tuple[Item, ...]
    lights: tuple[Light, ...]
    polygon: Floats
    height: float


def inside(polygon: Floats, points: Floats) -> NDArray[np.bool_]:
    """Whether points [..., 2] lie inside a simple polygon (even-odd rule)."""
    x, y = points[..., 0], points[..., 1]
    result = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            result ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return result


class _Plan:
    """Where things stand: an occupancy grid of the floor and the taken stretches of each wall."""

    def __init__(self, polygon: Floats, height: float, rng: np.random.Generator) -> None:
        self.polygon, self.height, self.rng = polygon, height, rng
        self.low = polygon.min(0)
        count = np.ceil((polygon.max(0) - self.low) / _CELL).astype(int)
        x, y = (self.low[k] + (np.arange(count[k]) + 0.5) * _CELL for k in (0, 1))
        self.cells = np.stack(np.meshgrid(x, y), -1)
        self.taken = ~inside(polygon, self.cells)
        self.starts, ends = polygon, np.roll(polygon, -1, axis=0)
        edges = ends - self.starts
        self.lengths = np.linalg.norm(edges, axis=1)
        self.along = edges / self.lengths[:, None]
        self.inward = np.stack([-self.along[:, 1], self.along[:, 0]], -1)
        self.openings: list[list[tuple[str, float, float, float, float]]] = [[] for _ in polygon]
        self.high: list[list[tuple[float, float]]] = [[] for _ in polygon]
        self.items: list[Item] = []

    def wall_point(self, wall: int, t: float, off: float) -> Floats:
        """Point at ``t`` metres along a wall and ``off`` metres into the room [2]."""
        return self.starts[wall] + t * self.along[wall] + off * self.inward[wall]

    def wall_yaw(self, wall: int) -> float:
        """Yaw that turns an item's back to a wall."""
        n = -self.inward[wall]
        return float(np.arctan2(n[1], n[0]) - np.pi / 2)

    def footprint(self, x: float, y: float, yaw: float, w: float, d: float) -> NDArray[np.bool_]:
        """Cells of the floor under a rectangle [rows, columns]."""
        delta = self.cells - np.array([x, y])
        c, s = np.cos(yaw), np.sin(yaw)
        return (np.abs(delta[..., 0] * c + delta[..., 1] * s) <= w / 2) & (
            np.abs(-delta[..., 0] * s + delta[..., 1] * c) <= d / 2
        )

    def claim(self, x: float, y: float, yaw: float, w: float, d: float) -> bool:
        """Take a rectangle of floor if it is free and wholly inside the room."""
        mask = self.footprint(x, y, yaw, w, d)
        # A rectangle that pokes out of the grid covers fewer cells than its area.
        if (mask & self.taken).any() or mask.sum() * _CELL**2 < 0.9 * w * d:
            return False
        self.taken |= mask
        return True

    def free_high(self, wall: int, t: float, w: float) -> bool:
        """Whether a wall is bare above furniture height around ``t``."""
        return all(t + w / 2 <= a or t - w / 2 >= b for a, b in self.high[wall])

    def at_wall(
        self, w: float, d: float, *, tall: bool = False, front: float = 0.0, walls: Sequence[int] = ()
    ) -> tuple[float, float, float, int] | None:
        """Find room for a w × d footprint with its back to some wall and ``front`` metres kept clear before it.

        Returns:
            (x, y, yaw, wall), or None if there is none.
        """
        order = list(walls) or list(self.rng.permutation(len(self.lengths)))
        for wall in order:
            span = self.lengths[wall] - w
            if span < 0.02:
                continue
            # Corners first: rooms are furnished from the walls and corners inwards.
            tries = np.concatenate(
                [[w / 2 + 0.04, self.lengths[wall] - w / 2 - 0.04], w / 2 + span * self.rng.random(20)]
            )
            for t in tries:
                if tall and not self.free_high(wall, float(t), w):
                    continue
                off = d / 2 + 0.03
                x, y = self.wall_point(wall, float(t), off + front / 2)
                yaw = self.wall_yaw(wall)
                mask = self.footprint(x, y, yaw, w, d + front)
                if (mask & self.taken).any() or mask.sum() * _CELL**2 < 0.9 * w * (d + front):
                    continue
                x, y = self.wall_point(wall, float(t), off)
                self.taken |= self.footprint(x, y, yaw, w + 0.04, d)
                if tall:
                    self.high[wall].append((float(t) - w / 2, float(t) + w / 2))
                return float(x), float(y), yaw, int(wall)
        return None

    def in_open(self, w: float, d: float, tries: int = 60) -> tuple[float, float, float] | None:
        """Find room for a w × d footprint away from the walls: (x, y, yaw), or None."""
        free = self.cells[~self.taken]
        centre = free.mean(0)
        order = np.argsort(np.linalg.norm(free - centre, axis=1) + self.rng.random(len(free)) * 1.2)
        for index in order[:: max(1, len(order) // tries)]:
            x, y = free[index]
            yaw = float(self.rng.choice([0.0, np.pi / 2]) + self.rng.normal(0, 0.06))
            if self.claim(float(x), float(y), yaw, w, d):
                return float(x), float(y), yaw
        return None

    def put(self, item: Item, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        self.items.append(item.placed(x, y, z, yaw))

    def put_on(
        self, item: Item, at: tuple[float, float, float], dx: float, dy: float, z: float, turn: float = 0.0
    ) -> None:
        """Put an item on another one that stands at (x, y, yaw), shifted by (dx, dy) in that one's frame."""
        x, y, yaw = at
        c, s = np.cos(yaw), np.sin(yaw)
        self.put(item, x + c * dx - s * dy, y + s * dx + c * dy, z, yaw + turn)

    def hang(self, item: Item, z: float, tries: int = 40) -> bool:
        """Hang an item on a bare stretch of wall with its centre at height z."""
        w = item.size[0] + 0.1
        for _ in range(tries):
            wall = int(self.rng.choice(len(self.lengths), p=self.lengths / self.lengths.sum()))
            if self.lengths[wall] < w + 0.1:
                continue
            t = float(self.rng.uniform(w / 2, self.lengths[wall] - w / 2))
            if self.free_high(wall, t, w):
                x, y = self.wall_point(wall, t, 0.002)
                self.put(item, float(x), float(y), z, self.wall_yaw(wall))
                self.high[wall].append((t - w / 2, t + w / 2))
                return True
        return False


def _outline(rng: np.random.Generator, tiny: bool) -> Floats:
    """Floor polygon: chamfered, L-shaped or slanted; never a plain rectangle."""
    if tiny:
        w, d, kind = float(rng.uniform(3.4, 3.8)), float(rng.uniform(3.0, 3.4)), 0
    else:
        w, d, kind = float(rng.uniform(6.4, 7.2)), float(rng.uniform(5.0, 5.6)), int(rng.integers(3))
    if kind == 0:
        c = 0.7 if tiny else 1.1
        points = [(0, 0), (w, 0), (w, d - c), (w - c, d), (0, d)]
    elif kind == 1:
        a, b = float(rng.uniform(1.3, 1.8)), float(rng.uniform(1.0, 1.4))
        points = [(0, 0), (w, 0), (w, d - b), (w - a, d - b), (w - a, d), (0, d)]
    else:
        points = [(0, 0), (w, 0), (w - 0.7, d), (0, d)]
    polygon = np.asarray(points, dtype=float) - np.array([w / 2, d / 2])
    turn = shapes.yaw_matrix(float(rng.uniform(-0.35, 0.35)))[:2, :2]
    return polygon @ turn.T


def _window_item(plan: _Plan, shop: Workshop, wall: int, a0: float, a1: float) -> Item:
    """Reveals, frame, mullion and a pane that shows the outdoors, in an opening of a wall."""
    out = -plan.inward[wall]
    out3, along, up = np.array([*out, 0.0]), np.array([*plan.along[wall], 0.0]), np.array([0.0, 0.0, 1.0])
    p0 = np.array([*plan.wall_point(wall, a0, 0.0), _SILL])
    w, h, step = a1 - a0, _LINTEL - _SILL, shop.step
    white = shop.painted((0.93, 0.93, 0.91))
    parts: list[tuple[Mesh, Material]] = [
        (shapes.panel(p0, along, out3, (w, _WINDOW_INSET), step), white),
        (shapes.panel(p0 + h * up, out3, along, (_WINDOW_INSET, w), step), white),
        (shapes.panel(p0, out3, up, (_WINDOW_INSET, h), step), white),
        (shapes.panel(p0 + w * along, up, out3, (h, _WINDOW_INSET), step), white),
    ]
    for index, (mesh, material) in enumerate(parts):
        centre = mesh.vertices.mean(0)
        middle = p0 + 0.5 * w * along + 0.5 * h * up + 0.08 * out3
        if (mesh.normals[0] * (middle - centre)).sum() < 0:
            parts[index] = (Mesh(mesh.vertices, -mesh.normals, mesh.uv, mesh.faces[:, ::-1]), material)
    pane = shapes.panel(p0 + w * along + 0.13 * out3, -along, up, (w, h), step)
    pane = pane.with_uv(np.clip(pane.uv / np.array([w, h]), 0.004, 0.996))
    parts.append((pane, Material("outdoors", (1, 1, 1), tile=1.0, seed=shop.new_seed(), glow=1.9, pixels=512)))
    yaw = plan.wall_yaw(wall)
    centre = p0 + 0.5 * w * along + 0.11 * out3
    bars = [
        ((w, 0.05, 0.06), 0.0, 0.03),
        ((w, 0.05, 0.06), 0.0, h - 0.03),
        ((0.06, 0.05, h), -w / 2 + 0.03, h / 2),
        ((0.06, 0.05, h), w / 2 - 0.03, h / 2),
        ((0.07, 0.05, h), 0.0, h / 2),
        ((w, 0.04, 0.035), 0.0, h * 0.68),
    ]
    for size, x, z in bars:
        mesh = shapes.box(size, step, 0.01).turned(yaw=yaw)
        parts.append((mesh.moved(*(centre + x * np.array([np.cos(yaw), np.sin(yaw), 0]) + z * up)), white))
    sill = shapes.box((w + 0.1, _WINDOW_INSET + 0.05, 0.03), step, 0.008).turned(yaw=yaw)
    parts.append((sill.moved(*(p0 + 0.5 * w * along + 0.055 * out3 - 0.012 * up)), white))
    return Item("window", tuple(parts), (w, _WINDOW_INSET, h))


def _door_item(plan: _Plan, shop: Workshop, wall: int, a0: float, a1: float) -> Item:
    """Leaf, jambs, architrave and handle in an opening of a wall."""
    out3, along = np.array([*-plan.inward[wall], 0.0]), np.array([*plan.along[wall], 0.0])
    up, w, h, step = np.array([0.0, 0.0, 1.0]), a1 - a0, _DOOR_HEIGHT, shop.step
    p0 = np.array([*plan.wall_point(wall, a0, 0.0), 0.0])
    wood = shop.wood()
    plain: Color = (0.90, 0.90, 0.87)
    painted = shop.rng.random() < 0.5
    leaf = Material(
        "door", plain if painted else wood.color, plain if painted else wood.accent, 1.0, shop.new_seed(), 0.1
    )
    frame = shop.painted(plain) if painted else wood
    face = shapes.panel(p0 + w * along + _DOOR_INSET * out3, -along, up, (w, h), step)
    face = face.with_uv(np.clip(face.uv / np.array([w, h]), 0.004, 0.996))
    parts: list[tuple[Mesh, Material]] = [(face, leaf)]
    yaw = plan.wall_yaw(wall)
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    middle = p0 + 0.5 * w * along
    for size, x, z in (
        ((0.09, 0.11, h + 0.07), -w / 2 - 0.02, (h + 0.07) / 2),
        ((0.09, 0.11, h + 0.07), w / 2 + 0.02, (h + 0.07) / 2),
        ((w + 0.1, 0.11, 0.09), 0.0, h + 0.03),
    ):
        parts.append(
            (shapes.box(size, step, 0.01).turned(yaw=yaw).moved(*(middle + x * right + z * up + 0.035 * out3)), frame)
        )
    knob = middle + (w / 2 - 0.12) * right + 1.02 * up + (_DOOR_INSET - 0.05) * out3
    bar = shapes.tube([(0.05, 0.05, 0), (0.05, 0, 0), (-0.08, 0, 0)], 0.011, step)
    parts.append((bar.turned(yaw=yaw).moved(*knob), shop.metal()))
    return Item("door", tuple(parts), (w, 0.1, h))


def _curtain_item(plan: _Plan, shop: Workshop, wall: int, t: float, width: float, material: Material) -> Item:
    """Pleated curtain hanging before a wall around ``t`` metres along it."""
    folds, phase = width / 0.11, float(shop.rng.uniform(0, 6.3))

    def cloth(u: Floats, v: Floats) -> Floats:
        wave = np.sin(2 * np.pi * folds * u / width + phase + 0.5 * np.sin(2.1 * v + phase))
        depth = 0.085 + (0.030 + 0.012 * (1 - v / 2.2)) * wave
        x = u - width / 2 + 0.012 * np.cos(4 * np.pi * folds * u / width + phase)
        return np.stack([x, -depth, v], -1)

    mesh = shapes.sheet(cloth, shapes.samples(0.0, width, 0.02), shapes.samples(0.06, 2.28, shop.step * 1.5))
    x, y = plan.wall_point(wall, t, 0.0)
    return Item("curtain", ((mesh, material),), (width, 0.15, 2.28)).placed(
        float(x), float(y), 0.0, plan.wall_yaw(wall)
    )


def _shell(plan: _Plan, shop: Workshop) -> list[Item]:
    """Walls (one object each), floor, ceiling, doors and windows."""
    rng, step, height = shop.rng, shop.step, plan.height
    tone, accent = _WALL_TONES[rng.integers(len(_WALL_TONES))], int(np.argsort(plan.lengths)[-rng.integers(1, 4)])
    plaster = Material("plaster", tone, tile=1.6, seed=shop.new_seed(), pixels=512)
    special = (
        Material("brick", (0.64, 0.36, 0.28), (0.72, 0.68, 0.62), 1.0, shop.new_seed(), pixels=512),
        Material("wallpaper", tone, (0.62, 0.68, 0.66), 0.8, shop.new_seed(), pixels=512),
        Material("stripes", tone, (0.72, 0.74, 0.70), 0.9, shop.new_seed(), pixels=512),
    )[rng.integers(3)]
    skirting = shop.painted((0.90, 0.89, 0.86), 0.1)
    up = np.array([0.0, 0.0, 1.0])
    items: list[Item] = []
    extras: list[Item] = []
    for wall, length in enumerate(plan.lengths.tolist()):
        along = np.array([*plan.along[wall], 0.0])
        start = np.array([*plan.starts[wall], 0.0])
        holes = [(length - a1, length - a0, z0, z1) for _, a0, a1, z0, z1 in plan.openings[wall]]
        mesh = shapes.panel(start + length * along, -along, up, (length, height), step, holes)
        parts: list[tuple[Mesh, Material]] = [
            (mesh.with_uv(mesh.uv + rng.uniform(0, 2, 2)), special if wall == accent else plaster)
        ]
        doors = sorted((a0, a1) for kind, a0, a1, _, _ in plan.openings[wall] if kind == "door")
        cuts = [0.0, *(t for a0, a1 in doors for t in (a0 - 0.07, a1 + 0.07)), length]
        for a, b in zip(cuts[::2], cuts[1::2], strict=True):
            if b - a > 0.05:
                board = shapes.box((b - a, 0.014, 0.085), step * 1.5, 0.004).turned(yaw=plan.wall_yaw(wall))
                x, y = plan.wall_point(wall, (a + b) / 2, 0.008)
                parts.append((board.moved(float(x), float(y), 0.0425), skirting))
        items.append(Item("wall", tuple(parts), (length, 0.0, height)))
        for kind, a0, a1, _, _ in plan.openings[wall]:
            extras.append((_door_item if kind == "door" else _window_item)(plan, shop, wall, a0, a1))
    wood = shop.wood()
    floors = (
        Material("planks", wood.color, wood.accent, 1.6, shop.new_seed(), 0.14, 30.0, pixels=512),
        Material("parquet", wood.color, wood.accent, 1.2, shop.new_seed(), 0.14, 30.0, pixels=512),
        Material("tiles", (0.72, 0.70, 0.66), (0.55, 0.53, 0.50), 1.6, shop.new_seed(), 0.2, 40.0, pixels=512),
        Material("carpet", (0.50, 0.50, 0.54), (0.64, 0.63, 0.64), 0.8, shop.new_seed(), pixels=512),
    )
    white = Material("plaster", (0.93, 0.93, 0.92), tile=1.6, seed=shop.new_seed(), pixels=512)
    low, high = plan.polygon.min(0), plan.polygon.max(0)
    size = (float(high[0] - low[0]), float(high[1] - low[1]))
    x, y = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    ground = _clipped(shapes.panel(np.array([*low, 0.0]), x, y, size, step), plan.polygon)
    sky = _clipped(shapes.panel(np.array([low[0], low[1], height]), y, x, (size[1], size[0]), step * 1.6), plan.polygon)
    items.insert(0, Item("floor", ((ground, floors[rng.choice(4, p=[0.45, 0.25, 0.15, 0.15])]),), (*size, 0.0)))
    items.append(Item("ceiling", ((sky, white),), (*size, 0.0)))
    return items + extras


def _clipped(mesh: Mesh, polygon: Floats) -> Mesh:
    """The part of a flat mesh over a polygon, with one row of cells of margin (hidden behind the walls)."""
    centre = mesh.vertices[mesh.faces].mean(1)[:, :2]
    keep = np.zeros(len(centre), dtype=bool)
    for dx in (-0.12, 0.0, 0.12):
        for dy in (-0.12, 0.0, 0.12):
            keep |= inside(polygon, centre + np.array([dx, dy]))
    used, faces = np.unique(mesh.faces[keep], return_inverse=True)
    return Mesh(mesh.vertices[used], mesh.normals[used], mesh.uv[used], faces.reshape(-1, 3).astype(np.int32))


def _open_walls(plan: _Plan, shop: Workshop, windows: int) -> list[Light]:
    """Decide door and windows; returns the windows as emitters."""
    rng = shop.rng
    order = [int(w) for w in np.argsort(-plan.lengths)]
    lights: list[Light] = []
    curtain = shop.cloth(("stripes", "fabric", "dots", "fabric"), 0.7)
    for wall in order[:windows]:
        width = float(min(rng.uniform(1.4, 1.9), plan.lengths[wall] - 1.4))
        t = float(rng.uniform(0.35, 0.65)) * plan.lengths[wall]
        a0, a1 = t - width / 2, t + width / 2
        plan.openings[wall].append(("window", a0, a1, _SILL, _LINTEL))
        plan.high[wall].append((a0 - 0.45, a1 + 0.45))
        # Curtains keep the strip before the window free of tall things; low furniture may stand below.
        for side in (a0 - 0.16, a1 + 0.16):
            plan.items.append(_curtain_item(plan, shop, wall, side, 0.42, curtain))
            x, y = plan.wall_point(wall, side, 0.1)
            plan.taken |= plan.footprint(float(x), float(y), plan.wall_yaw(wall), 0.46, 0.22)
        heater = shop.radiator(width * 0.8)
        x, y = plan.wall_point(wall, t, 0.06)
        plan.put(heater, float(x), float(y), 0.0, plan.wall_yaw(wall))
        plan.taken |= plan.footprint(float(x), float(y), plan.wall_yaw(wall), width * 0.8, 0.16)
        out = -plan.inward[wall]
        lights.append(
            Light(
                np.array([*(plan.wall_point(wall, t, -0.10)), (_SILL + _LINTEL) / 2]),
                np.array([*plan.along[wall], 0.0]) * width / 2,
                np.array([0, 0, (_LINTEL - _SILL) / 2]),
                np.array([*-out, 0.0]),
                np.array([0.92, 0.98, 1.08]) * 3.0,
            )
        )
    wall = order[min(windows, len(order) - 1)]
    t = float(rng.choice([0.75, plan.lengths[wall] - 0.75]))
    plan.openings[wall].append(("door", t - _DOOR_WIDTH / 2, t + _DOOR_WIDTH / 2, 0.0, _DOOR_HEIGHT))
    plan.high[wall].append((t - _DOOR_WIDTH / 2 - 0.12, t + _DOOR_WIDTH / 2 + 0.12))
    x, y = plan.wall_point(wall, t, 0.45)
    plan.taken |= plan.footprint(float(x), float(y), plan.wall_yaw(wall), _DOOR_WIDTH + 0.2, 0.9)
    return lights


def _ceiling_lights(plan: _Plan, shop: Workshop, count: int) -> list[Light]:
    """Flat glowing panels under the ceiling."""
    free = plan.cells[inside(plan.polygon, plan.cells)]
    centre, spread = free.mean(0), np.linalg.svd(free - free.mean(0), full_matrices=False)[2][0]
    extent = float(np.abs((free - centre) @ spread).max())
    lights: list[Light] = []
    glow = Material("plain", (0.95, 0.94, 0.90), tile=0.5, seed=shop.new_seed(), glow=2.6, pixels=64)
    rim = shop.metal()
    for k in range(count):
        x, y = centre + spread * extent * (0.0 if count == 1 else (2 * k - 1) * 0.48)
        frame = shapes.box((0.66, 0.66, 0.05), shop.step, 0.01).moved(float(x), float(y), plan.height - 0.026)
        face = shapes.panel(
            np.array([x - 0.29, y - 0.29, plan.height - 0.053]),
            np.array([0, 1.0, 0]),
            np.array([1.0, 0, 0]),
            (0.58, 0.58),
            shop.step,
        )
        plan.items.append(Item("light", ((frame, rim), (face, glow)), (0.66, 0.66, 0.05)))
        lights.append(
            Light(np.array([x, y, plan.height - 0.06]), np.array([0.29, 0, 0]), np.array([0, 0.29, 0]),
                  np.array([0, 0, -1.0]), np.array([1.06, 1.0, 0.90]) * 11.0)
        )  # fmt: skip
    return lights


def _rug_item(shop: Workshop, w: float, d: float) -> Item:
    mesh = shapes.box((w, d, 0.014), shop.step, 0.005)
    uv = np.clip(mesh.vertices[:, :2] / np.array([w, d]) + 0.5, 0.004, 0.996)
    cloth = shop.cloth()
    knit = Material("rug", cloth.color, cloth.accent, 1.0, shop.new_seed(), pixels=512)
    return Item("mat", ((mesh.with_uv(uv).moved(z=0.008), knit),), (w, d, 0.02))


def _lounge(plan: _Plan, shop: Workshop) -> None:
    """Sofa with pillows, coffee table on a rug before it, an armchair."""
    sofa = shop.couch(int(shop.rng.integers(2, 4)))
    spot = plan.at_wall(sofa.size[0], sofa.size[1], front=1.15)
    if spot is None:
        return
    at = spot[:3]
    plan.put(sofa, spot[0], spot[1], 0.0, spot[2])
    pillow = shop.pillow()
    for dx, item in ((-1, pillow), (1, pillow)):
        x = dx * (sofa.size[0] / 2 - 0.42)
        leaning = Item(item.label, tuple((m.turned(pitch=1.15), t) for m, t in item.parts), item.size)
        plan.put_on(leaning, at, x, 0.05, 0.665, 0.25 * dx)
    low = shop.table(1.0, 0.55, 0.42, "coffee table")
    ahead = -(sofa.size[1] / 2 + 0.32 + 0.28)
    plan.put_on(_rug_item(shop, float(shop.rng.uniform(1.9, 2.3)), 1.35), at, 0.0, ahead + 0.05, 0.0)
    c, s = np.cos(at[2]), np.sin(at[2])
    if plan.claim(at[0] - s * ahead, at[1] + c * ahead, at[2], 1.0, 0.55):
        plan.put_on(low, at, 0.0, ahead, 0.015)
        plan.put_on(shop.book_stack(), at, -0.25, ahead + 0.05, 0.435, 0.4)
        plan.put_on(shop.plant(0.34), at, 0.28, ahead - 0.04, 0.435)
    for side in (-1, 1):
        dx, dy = side * (sofa.size[0] / 2 + 0.30), -1.15
        x, y = at[0] + c * dx - s * dy, at[1] + s * dx + c * dy
        yaw = at[2] - side * np.pi / 2
        seat = shop.couch(1)
        if plan.claim(x, y, yaw, seat.size[0], seat.size[1]):
            plan.put(seat, x, y, 0.0, yaw)
            break


def _bedroom(plan: _Plan, shop: Workshop) -> None:
    """Bed with two pillows between look-alike nightstands with look-alike lamps."""
    width = float(shop.rng.choice([1.0, 1.45]))
    bed = shop.bed(width)
    stand = shop.cabinet(0.46, 0.38, 0.5, 1, 2, "nightstand")
    spot = plan.at_wall(width + 1.14, bed.size[1]) or plan.at_wall(width + 0.1, bed.size[1])
    if spot is None:
        return
    at = spot[:3]
    plan.put(bed, spot[0], spot[1], 0.0, spot[2])
    pillow = shop.pillow(0.56, 0.38)
    for dx in (-0.25 * width, 0.25 * width) if width > 1.2 else (0.0,):
        plan.put_on(pillow, at, dx, bed.size[1] / 2 - 0.32, 0.505)
    lamp = shop.desk_lamp()
    c, s = np.cos(at[2]), np.sin(at[2])
    for side in (-1, 1):
        dx, dy = side * (width / 2 + 0.31), bed.size[1] / 2 - 0.25
        x, y = at[0] + c * dx - s * dy, at[1] + s * dx + c * dy
        if plan.footprint(x, y, at[2], 0.46, 0.38).sum() * _CELL**2 > 0.15 and bool(
            inside(plan.polygon, np.array([x, y]))
        ):
            plan.put_on(stand, at, dx, dy, 0.0)
            plan.put_on(lamp, at, dx, dy + 0.04, 0.5)


def _study(plan: _Plan, shop: Workshop, desks: int) -> None:
    """Look-alike desks with monitor, keyboard and office chair."""
    desk, chair, screen = shop.desk(), shop.office_chair(), shop.monitor(0.56, "monitor")
    keys, bin_ = shop.keyboard(), shop.trash_can()
    for k in range(desks):
        spot = plan.at_wall(desk.size[0], desk.size[1], front=0.75)
        if spot is None:
            return
        at = spot[:3]
        plan.put(desk, spot[0], spot[1], 0.0, spot[2])
        plan.put_on(screen, at, -0.12, 0.12, 0.74, float(shop.rng.normal(0, 0.12)))
        plan.put_on(keys, at, -0.12, -0.18, 0.74, float(shop.rng.normal(0, 0.05)))
        extra: Callable[[], Item] = shop.desk_lamp if k == 0 else shop.book_stack
        plan.put_on(extra(), at, 0.42, 0.08, 0.74)
        c, s = np.cos(at[2]), np.sin(at[2])
        dx, dy = float(shop.rng.normal(-0.12, 0.06)), -float(shop.rng.uniform(0.42, 0.6))
        x, y = at[0] + c * dx - s * dy, at[1] + s * dx + c * dy
        plan.claim(x, y, at[2], 0.5, 0.5)
        plan.put_on(chair, at, dx, dy, 0.0, np.pi + float(shop.rng.normal(0, 0.5)))
        for side in (-1, 1):
            bx, by = side * (desk.size[0] / 2 + 0.2), 0.1
            x, y = at[0] + c * bx - s * by, at[1] + s * bx + c * by
            if plan.claim(x, y, at[2], 0.31, 0.31):
                plan.put_on(bin_, at, bx, by, 0.0)
                break


def _dining(plan: _Plan, shop: Workshop, tiny: bool = False) -> None:
    """Table with look-alike chairs around it and things on it."""
    round_top = bool(shop.rng.random() < 0.4)
    w, d = (0.95, 0.7) if tiny else ((1.1, 1.1) if round_top else (float(shop.rng.uniform(1.25, 1.5)), 0.82))
    spot = plan.in_open(w + (0.3 if tiny else 0.5), d + (0.7 if tiny else 0.95))
    if spot is None:
        return
    table, chair = shop.table(w, d, 0.75, "table" if tiny else "dining table"), shop.chair()
    plan.put(table, spot[0], spot[1], 0.0, spot[2])
    places = (
        [(-w / 4, d / 2 + 0.12, 0.0), (w / 4, -d / 2 - 0.12, np.pi)]
        if tiny
        else [
            (-w / 4, d / 2 + 0.14, 0.0),
            (w / 4, d / 2 + 0.14, 0.0),
            (-w / 4, -d / 2 - 0.14, np.pi),
            (w / 4, -d / 2 - 0.14, np.pi),
        ]
    )
    if round_top and not tiny:
        places = [(0.68 * np.sin(a), 0.68 * np.cos(a), -a) for a in (0.2, 1.75, 3.3, 4.8)]
    for dx, dy, turn in places:
        pull = float(shop.rng.uniform(0.0, 0.16))
        plan.put_on(
            chair,
            spot,
            dx + float(shop.rng.normal(0, 0.03)),
            dy + pull * np.sign(dy),
            0.0,
            turn + float(shop.rng.normal(0, 0.15)),
        )
    plan.put_on(shop.plant(0.4), spot, -0.2, 0.05, 0.75)
    plan.put_on(shop.carton(0.2) if tiny else shop.book_stack(), spot, 0.22, -0.08, 0.75, 0.5)


def _shelves(plan: _Plan, shop: Workshop) -> None:
    """Two look-alike bookshelves filled with books and boxes."""
    shelf, boards = shop.bookshelf(0.82, 1.9, 5)
    for _ in range(2):
        spot = plan.at_wall(0.82, 0.30, tall=True, front=0.5)
        if spot is None:
            break
        plan.put(shelf, spot[0], spot[1], 0.0, spot[2])
        for z in boards:
            if shop.rng.random() < 0.82:
                width = float(shop.rng.uniform(0.3, 0.7))
                plan.put_on(
                    shop.books(width), spot[:3], float(shop.rng.uniform(-0.37 + width / 2, 0.37 - width / 2)), -0.03, z
                )
            else:
                plan.put_on(shop.carton(0.22), spot[:3], 0.12, -0.02, z)


def _cupboards(plan: _Plan, shop: Workshop) -> None:
    """A wardrobe with look-alike cartons on top, a sideboard with a TV and a plant."""
    tall = shop.cabinet(1.0, 0.56, 1.85, 2, 1)
    spot = plan.at_wall(1.0, 0.56, tall=True, front=0.4)
    if spot is not None:
        plan.put(tall, spot[0], spot[1], 0.0, spot[2])
        carton = shop.carton(0.34)
        for dx, turn in ((-0.22, 0.1), (0.25, -0.15)):
            plan.put_on(carton, spot[:3], dx, 0.0, 1.85, turn)
    low = shop.cabinet(1.4, 0.42, 0.62, 3, 1)
    spot = plan.at_wall(1.4, 0.42, front=0.5)
    if spot is not None:
        plan.put(low, spot[0], spot[1], 0.0, spot[2])
        plan.put_on(shop.monitor(0.95, "tv"), spot[:3], -0.1, 0.02, 0.62)
        plan.put_on(shop.plant(0.36), spot[:3], 0.55, 0.0, 0.62)


def _loose(plan: _Plan, shop: Workshop, tiny: bool) -> None:
    """Lamps, plants, bins, cartons and a bag where room is left; pictures, boards and a clock on the walls."""
    lamp, plant, bin_ = shop.floor_lamp(), shop.plant(1.15), shop.trash_can()
    for item in (lamp, plant) if tiny else (lamp, plant, lamp, plant, bin_, bin_, shop.bag()):
        side = min(item.size[0], item.size[1], 0.6)
        spot = plan.at_wall(side, side)
        if spot is not None:
            plan.put(
                item, spot[0], spot[1], 0.0, float(shop.rng.uniform(0, 6.3)) if item.label != "backpack" else spot[2]
            )
    if not tiny:
        big, small = shop.carton(0.42), shop.carton(0.3)
        spot = plan.at_wall(big.size[0], big.size[1])
        if spot is not None:
            plan.put(big, spot[0], spot[1], 0.0, spot[2])
            plan.put_on(small, spot[:3], 0.03, 0.02, big.size[2], 0.3)
        plan.hang(shop.whiteboard(1.5, 0.95), 1.55)
        plan.hang(shop.clock(), 1.95)
    picture = shop.picture(0.55, 0.42)
    for item in (picture,) if tiny else (picture, picture, shop.picture(0.9, 0.62)):
        plan.hang(item, float(shop.rng.uniform(1.5, 1.65)))


def design_room(rng: np.random.Generator, *, tiny: bool, step: float) -> Room:
    """Make a room.

    Args:
        rng: source of all choices.
        tiny: a small chamber with a handful of objects instead of a furnished living room, study or bedroom.
        step: vertex spacing of the meshes, metres.
    """
    shop = Workshop(rng, step)
    height = float(rng.uniform(2.45, 2.65))
    plan = _Plan(_outline(rng, tiny), height, rng)
    lights = _open_walls(plan, shop, 1 if tiny else 2)
    if tiny:
        _dining(plan, shop, tiny=True)
        spot = plan.at_wall(0.8, 0.4, front=0.3)
        if spot is not None:
            plan.put(shop.cabinet(0.8, 0.4, 0.7, 2, 1), spot[0], spot[1], 0.0, spot[2])
            plan.put_on(shop.desk_lamp(), spot[:3], -0.2, 0.0, 0.7)
            plan.put_on(shop.carton(0.24), spot[:3], 0.18, 0.0, 0.7, 0.3)
    else:
        _lounge(plan, shop)
        theme = int(rng.integers(3))
        if theme != 1:
            _bedroom(plan, shop)
        _shelves(plan, shop)
        _study(plan, shop, 2 if theme == 1 else 1)
        _dining(plan, shop)
        _cupboards(plan, shop)
    lights += _ceiling_lights(plan, shop, 1 if tiny else 2)
    _loose(plan, shop, tiny)
    return Room(tuple(_shell(plan, shop) + plan.items), tuple(lights), plan.polygon, height)
