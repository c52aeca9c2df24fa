"""Furniture for procedural rooms: one function a kind, each returning an :class:`Item` in its own frame.

Frame of an item: origin on the floor (or on the surface that carries it) below its centre, z up, its back towards +y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from panbench.data import room_shapes as shapes
from panbench.data.room_shapes import Floats, Mesh
from panbench.data.room_textures import Color, Material

_WOODS: tuple[tuple[Color, Color], ...] = (
    ((0.72, 0.55, 0.36), (0.60, 0.42, 0.25)),
    ((0.56, 0.36, 0.22), (0.42, 0.25, 0.14)),
    ((0.84, 0.72, 0.54), (0.75, 0.61, 0.42)),
    ((0.40, 0.28, 0.21), (0.29, 0.19, 0.14)),
    ((0.66, 0.42, 0.28), (0.52, 0.30, 0.18)),
)
_PAINTS: tuple[Color, ...] = ((0.92, 0.91, 0.88), (0.36, 0.44, 0.52), (0.80, 0.84, 0.80), (0.30, 0.32, 0.33))
_CLOTHS: tuple[tuple[Color, Color], ...] = (
    ((0.55, 0.60, 0.66), (0.35, 0.40, 0.48)),
    ((0.74, 0.66, 0.54), (0.58, 0.48, 0.36)),
    ((0.40, 0.52, 0.46), (0.78, 0.76, 0.64)),
    ((0.70, 0.36, 0.28), (0.88, 0.78, 0.62)),
    ((0.30, 0.36, 0.52), (0.80, 0.80, 0.82)),
    ((0.84, 0.68, 0.32), (0.92, 0.88, 0.78)),
    ((0.62, 0.42, 0.54), (0.86, 0.78, 0.80)),
    ((0.26, 0.50, 0.54), (0.74, 0.84, 0.82)),
)


@dataclass(frozen=True, eq=False)
class Item:
    """An object before or after it is put in the room.

    Attributes:
        label: ScanNet raw category.
        parts: meshes with their materials.
        size: (width, depth, height) of the footprint box, metres.
    """

    label: str
    parts: tuple[tuple[Mesh, Material], ...]
    size: tuple[float, float, float]

    def placed(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Item:
        """Same item turned by ``yaw`` radians and put at (x, y, z)."""
        return replace(self, parts=tuple((m.turned(yaw).moved(x, y, z), material) for m, material in self.parts))


def _item(label: str, parts: Sequence[tuple[Mesh, Material]]) -> Item:
    points = np.concatenate([m.vertices for m, _ in parts])
    low, high = points.min(0), points.max(0)
    width, depth = 2 * max(high[0], -low[0]), 2 * max(high[1], -low[1])
    return Item(label, tuple(parts), (float(width), float(depth), float(high[2])))


class Workshop:
    """Makes items with random proportions and materials. An item made once and placed twice is a look-alike pair.

    Args:
        rng: source of all choices.
        step: vertex spacing, metres.
    """

    def __init__(self, rng: np.random.Generator, step: float) -> None:
        self.rng, self.step = rng, step

    # ---- materials -------------------------------------------------------------------------------------------------
    def new_seed(self) -> int:
        """Seed of a new texture."""
        return int(self.rng.integers(0, 2**31))

    def _jitter(self, color: Color, spread: float = 0.03) -> Color:
        r, g, b = np.clip(np.asarray(color) + self.rng.normal(0, spread, 3), 0.04, 0.97).tolist()
        return (r, g, b)

    def wood(self, gloss: float = 0.10) -> Material:
        color, accent = _WOODS[self.rng.integers(len(_WOODS))]
        return Material("wood", self._jitter(color, 0.02), accent, 0.9, self.new_seed(), gloss, 40.0)

    def painted(self, color: Color | None = None, gloss: float = 0.08) -> Material:
        chosen = color or _PAINTS[self.rng.integers(len(_PAINTS))]
        return Material("plain", self._jitter(chosen, 0.015), chosen, 0.8, self.new_seed(), gloss, 35.0, pixels=128)

    def cloth(self, patterns: Sequence[str] = ("fabric", "plaid", "stripes", "dots"), tile: float = 0.55) -> Material:
        color, accent = _CLOTHS[self.rng.integers(len(_CLOTHS))]
        return Material(str(self.rng.choice(patterns)), self._jitter(color), accent, tile, self.new_seed())

    def leather(self) -> Material:
        colors: tuple[Color, ...] = ((0.46, 0.30, 0.20), (0.26, 0.24, 0.24), (0.86, 0.82, 0.74), (0.55, 0.26, 0.20))
        return Material(
            "leather", self._jitter(colors[self.rng.integers(len(colors))]), tile=0.35, seed=self.new_seed(),
            gloss=0.10, shine=25.0,
        )  # fmt: skip

    def metal(self, dark: bool = False) -> Material:
        return Material(
            "plain", (0.24, 0.24, 0.26) if dark else (0.72, 0.73, 0.75), tile=0.5, seed=self.new_seed(), gloss=0.35,
            shine=60.0, pixels=64,
        )  # fmt: skip

    def plastic(self, color: Color) -> Material:
        return Material(
            "plain", self._jitter(color, 0.02), tile=0.5, seed=self.new_seed(), gloss=0.18, shine=50.0, pixels=128
        )

    # ---- shapes ----------------------------------------------------------------------------------------------------
    def _board(self, size: Sequence[float], at: Sequence[float], bevel: float = 0.006, pitch: float = 0.0) -> Mesh:
        """Box whose texture starts somewhere else on every board."""
        mesh = shapes.box(size, self.step, bevel)
        mesh = mesh.with_uv(mesh.uv + self.rng.uniform(0, 3, 2))
        return mesh.turned(pitch=pitch).moved(*at)

    def _decal(self, width: float, height: float, at: Sequence[float], pitch: float = 0.0) -> Mesh:
        """Upright rectangle facing -y with uv in 0..1, for pictures and screens."""
        mesh = shapes.panel(
            np.array([-width / 2, 0.0, -height / 2]), np.array([1.0, 0, 0]), np.array([0, 0, 1.0]),
            (width, height), self.step,
        )  # fmt: skip
        mesh = mesh.with_uv(np.clip(mesh.uv / np.array([width, height]), 0.004, 0.996))
        return mesh.turned(pitch=pitch).moved(*at)

    # ---- seats -----------------------------------------------------------------------------------------------------
    def chair(self) -> Item:
        """Dining chair with slats or spindles, sometimes a seat pad."""
        frame = self.wood() if self.rng.random() < 0.75 else self.painted()
        w, d, seat, top = 0.44, 0.43, 0.45, float(self.rng.uniform(0.86, 0.98))
        parts: list[tuple[Mesh, Material]] = [(self._board((w, d, 0.035), (0, 0, seat - 0.018), 0.012), frame)]
        for x in (-1, 1):
            front = [(x * (w / 2 - 0.03), -d / 2 + 0.03, seat - 0.02), (x * (w / 2 - 0.01), -d / 2 + 0.01, 0)]
            back = [
                (x * (w / 2 - 0.025), d / 2 + 0.05, 0), (x * (w / 2 - 0.03), d / 2 - 0.02, seat),
                (x * (w / 2 - 0.03), d / 2 + 0.06, top),
            ]  # fmt: skip
            parts += [
                (shapes.tube(front, (0.022, 0.016), self.step), frame),
                (shapes.tube(back, 0.019, self.step), frame),
            ]
            side = [(x * (w / 2 - 0.02), -d / 2 + 0.02, 0.2), (x * (w / 2 - 0.025), d / 2 + 0.02, 0.2)]
            parts.append((shapes.tube(side, 0.011, self.step), frame))
        if self.rng.random() < 0.5:
            for z in np.linspace(seat + 0.16, top - 0.05, 3):
                y = d / 2 - 0.02 + 0.08 * (z - seat) / (top - seat)
                parts.append((self._board((w - 0.06, 0.018, 0.075), (0, y, z), 0.006), frame))
        else:
            y = d / 2 + 0.05
            parts.append((self._board((w - 0.03, 0.024, 0.085), (0, y, top - 0.04), 0.01), frame))
            for x in np.linspace(-w / 2 + 0.09, w / 2 - 0.09, 4):
                parts.append((shapes.tube([(x, d / 2 - 0.02, seat), (x, y, top - 0.06)], 0.009, self.step, 6), frame))
        if self.rng.random() < 0.6:
            parts.append(
                (shapes.cushion((w - 0.04, d - 0.05, 0.05), self.step).moved(0, -0.01, seat + 0.02), self.cloth())
            )
        return _item("chair", parts)

    def office_chair(self) -> Item:
        """Swivel chair on a five-star foot."""
        plastic, pad = self.plastic((0.17, 0.17, 0.19)), self.cloth(("fabric",))
        parts: list[tuple[Mesh, Material]] = [
            (shapes.cylinder(0.028, 0.08, 0.44, self.step), self.metal()),
            (shapes.cushion((0.50, 0.48, 0.10), self.step, 0.2).moved(0, -0.02, 0.48), pad),
            (shapes.cushion((0.46, 0.09, 0.56), self.step, 0.0).turned(pitch=-0.14).moved(0, 0.25, 0.86), pad),
            (shapes.tube([(0, 0.12, 0.44), (0, 0.27, 0.46), (0, 0.29, 0.75)], 0.024, self.step), plastic),
        ]
        for k in range(5):
            angle = 2 * np.pi * k / 5 + 0.3
            c, s = float(np.cos(angle)), float(np.sin(angle))
            parts.append((shapes.tube([(0, 0, 0.10), (0.29 * c, 0.29 * s, 0.065)], (0.028, 0.018), self.step), plastic))
            wheel = shapes.revolve([[(0.0, -0.03), (0.022, -0.02), (0.03, 0), (0.022, 0.02), (0.0, 0.03)]], self.step)
            parts.append((wheel.moved(0.29 * c, 0.29 * s, 0.032), plastic))
        for x in (-0.27, 0.27):
            parts.append(
                (shapes.tube([(x * 0.8, 0.02, 0.46), (x, 0.02, 0.50), (x, 0.02, 0.64)], 0.016, self.step), plastic)
            )
            parts.append((self._board((0.06, 0.26, 0.03), (x, -0.01, 0.66), 0.012), plastic))
        return _item("office chair", parts)

    def couch(self, seats: int) -> Item:
        """Sofa of ``seats`` seats; one seat is an armchair."""
        cover = self.leather() if self.rng.random() < 0.35 else self.cloth(("fabric", "fabric", "stripes"))
        arm, seat_w, d = 0.17, 0.62 if seats > 1 else 0.60, 0.86
        w = seats * seat_w + 2 * arm
        arm_h = float(self.rng.uniform(0.56, 0.64))
        parts: list[tuple[Mesh, Material]] = [
            (self._board((w - 0.06, d - 0.06, 0.24), (0, 0, 0.19), 0.02), cover),
            (self._board((w - 0.04, 0.20, 0.62), (0, d / 2 - 0.12, 0.50), 0.07, pitch=-0.10), cover),
        ]
        for x in (-1, 1):
            parts.append(
                (self._board((arm, d - 0.04, arm_h - 0.08), (x * (w - arm) / 2, 0, (arm_h + 0.08) / 2), 0.06), cover)
            )
            for y in (-d / 2 + 0.08, d / 2 - 0.08):
                parts.append(
                    (shapes.cylinder(0.022, 0.0, 0.09, self.step).moved(x * (w / 2 - 0.09), y), self.metal(True))
                )
        for k in range(seats):
            x = (k - (seats - 1) / 2) * seat_w
            parts.append(
                (self._lay(shapes.cushion((seat_w - 0.01, 0.60, 0.15), self.step, 0.2)).moved(x, -0.09, 0.39), cover)
            )
            back = self._lay(shapes.cushion((seat_w - 0.02, 0.40, 0.15), self.step, 0.35))
            parts.append((back.turned(pitch=np.pi / 2 - 0.22).moved(x, 0.19, 0.63), cover))
        return _item("couch" if seats > 1 else "armchair", parts)

    def _lay(self, mesh: Mesh) -> Mesh:
        return mesh.with_uv(mesh.uv + self.rng.uniform(0, 3, 2))

    # ---- tables ----------------------------------------------------------------------------------------------------
    def table(self, w: float, d: float, h: float, label: str, top: Material | None = None) -> Item:
        """Four legs and an apron, or a round top on a pedestal when w == d."""
        frame = self.wood(0.16)
        top = top or frame
        if w == d:
            parts: list[tuple[Mesh, Material]] = [
                (self._flat_uv(shapes.cylinder(w / 2, h - 0.035, h, self.step)), top),
                (
                    shapes.revolve(
                        [
                            [(0.0, 0.0), (0.26, 0.0)],
                            [
                                (0.26, 0.0),
                                (0.25, 0.03),
                                (0.06, 0.10),
                                (0.045, 0.3),
                                (0.07, h - 0.06),
                                (0.14, h - 0.035),
                            ],
                        ],
                        self.step,
                    ),
                    frame,
                ),
            ]
            return _item(label, parts)
        leg = 0.06 if h > 0.6 else 0.05
        parts = [(self._board((w, d, 0.036), (0, 0, h - 0.018), 0.01), top)]
        for x in (-1, 1):
            parts.append((self._board((0.02, d - 0.16, 0.075), (x * (w / 2 - 0.07), 0, h - 0.075), 0.004), frame))
            for y in (-1, 1):
                parts.append(
                    (
                        self._board(
                            (leg, leg, h - 0.036), (x * (w / 2 - 0.06), y * (d / 2 - 0.06), (h - 0.036) / 2), 0.01
                        ),
                        frame,
                    )
                )
        for y in (-1, 1):
            parts.append((self._board((w - 0.16, 0.02, 0.075), (0, y * (d / 2 - 0.07), h - 0.075), 0.004), frame))
        if h < 0.6:
            parts.append((self._board((w - 0.1, d - 0.1, 0.02), (0, 0, 0.14), 0.005), frame))
        return _item(label, parts)

    def _flat_uv(self, mesh: Mesh) -> Mesh:
        """Texture laid on from above (grain runs straight over a round top)."""
        return mesh.with_uv(mesh.vertices[:, :2] + mesh.vertices[:, 2:] + self.rng.uniform(0, 3, 2))

    def desk(self) -> Item:
        """Writing desk with a drawer block."""
        body, legs = self.wood(0.14), self.metal(True)
        w, d, h = float(self.rng.uniform(1.2, 1.4)), 0.66, 0.74
        parts: list[tuple[Mesh, Material]] = [(self._board((w, d, 0.03), (0, 0, h - 0.015), 0.006), body)]
        for y in (-1, 1):
            parts.append(
                (
                    self._board((0.045, 0.045, h - 0.03), (-w / 2 + 0.05, y * (d / 2 - 0.05), (h - 0.03) / 2), 0.005),
                    legs,
                )
            )
        parts.append((self._board((0.40, d - 0.06, h - 0.06), (w / 2 - 0.22, 0.0, (h - 0.06) / 2 + 0.03), 0.006), body))
        for k in range(3):
            z = 0.14 + 0.215 * k
            parts.append((self._board((0.37, 0.02, 0.20), (w / 2 - 0.22, -d / 2 + 0.025, z), 0.006), body))
            parts.append((self._board((0.12, 0.02, 0.014), (w / 2 - 0.22, -d / 2 + 0.005, z + 0.05), 0.005), legs))
        parts.append((self._board((w - 0.1, 0.015, 0.3), (0, d / 2 - 0.05, h - 0.18), 0.003), body))
        return _item("desk", parts)

    # ---- storage ---------------------------------------------------------------------------------------------------
    def cabinet(self, w: float, d: float, h: float, columns: int, rows: int, label: str = "cabinet") -> Item:
        """Closed cupboard or chest with ``columns`` × ``rows`` fronts and knobs."""
        body = self.wood() if self.rng.random() < 0.5 else self.painted()
        front = body if self.rng.random() < 0.5 else self.painted()
        knob = self.metal()
        parts: list[tuple[Mesh, Material]] = [
            (self._board((w, d - 0.03, h - 0.06), (0, 0.01, h / 2 + 0.03), 0.006), body),
            (self._board((w - 0.06, d - 0.08, 0.06), (0, 0.02, 0.03), 0.004), self.painted((0.2, 0.19, 0.19))),
            (self._board((w + 0.02, d, 0.025), (0, 0, h - 0.0125), 0.006), body),
        ]
        fw, fh = (w - 0.02) / columns, (h - 0.11) / rows
        for i in range(columns):
            for j in range(rows):
                x, z = -w / 2 + 0.01 + fw * (i + 0.5), 0.07 + fh * (j + 0.5)
                parts.append((self._board((fw - 0.012, 0.02, fh - 0.012), (x, -d / 2 + 0.018, z), 0.006), front))
                side = 0.0 if rows > 1 else (0.4 * fw if i % 2 == 0 else -0.4 * fw)
                ball = shapes.revolve([[(0.0, -0.014), (0.012, -0.006), (0.012, 0.006), (0.0, 0.014)]], self.step, 10)
                parts.append((ball.turned(pitch=np.pi / 2).moved(x + side, -d / 2, z), knob))
        return _item(label, parts)

    def bookshelf(self, w: float, h: float, shelves: int) -> tuple[Item, list[float]]:
        """Open shelf; also the heights of its boards' upper sides, from the lowest."""
        body, d, t = (self.wood() if self.rng.random() < 0.6 else self.painted()), 0.30, 0.022
        parts: list[tuple[Mesh, Material]] = [
            (self._board((w - 0.02, 0.012, h - 0.04), (0, d / 2 - 0.008, h / 2), 0.003), body),
            (self._board((w, d, t), (0, 0, h - t / 2), 0.004), body),
        ]
        for x in (-1, 1):
            parts.append((self._board((t, d, h - t), (x * (w - t) / 2, 0, (h - t) / 2), 0.004), body))
        boards = [0.07 + (h - 0.09) * k / shelves for k in range(shelves)]
        for z in boards:
            parts.append((self._board((w - 2 * t, d - 0.012, t), (0, -0.006, z - t / 2), 0.004), body))
        return _item("bookshelf", parts), boards

    def bed(self, w: float) -> Item:
        """Frame, mattress, blanket and headboard."""
        frame, length = self.wood(), 2.05
        quilt, linen = self.cloth(("plaid", "stripes", "dots", "fabric"), 0.8), self.painted((0.92, 0.91, 0.88), 0.0)
        parts: list[tuple[Mesh, Material]] = [
            (self._board((w, length, 0.20), (0, 0, 0.21), 0.02), frame),
            (self._board((w + 0.06, 0.06, 0.95), (0, length / 2 + 0.01, 0.475), 0.02), frame),
            (shapes.cushion((w - 0.04, length - 0.06, 0.22), self.step, 0.04).moved(0, -0.01, 0.40), linen),
        ]
        for x in (-1, 1):
            for y in (-1, 1):
                parts.append(
                    (self._board((0.07, 0.07, 0.14), (x * (w / 2 - 0.05), y * (length / 2 - 0.05), 0.07), 0.01), frame)
                )
        phase = self.rng.uniform(0, 6.3, 4)

        def blanket(u: Floats, v: Floats) -> Floats:
            over = np.maximum(np.abs(u) - w / 2, 0.0)
            x = np.clip(u, -w / 2 - 0.012, w / 2 + 0.012)
            ripple = 0.008 * np.sin(9 * u + phase[0] + 2 * np.sin(4 * v + phase[1])) + 0.006 * np.sin(
                13 * v + phase[2] + u
            )
            z = 0.535 + ripple - over * 0.95
            edge = 0.02 * np.clip(over * 8, 0, 1) * np.sin(16 * v + phase[3])
            return np.stack([x + np.sign(u) * (0.02 * np.clip(over * 10, 0, 1) + edge), v, z], -1)

        drop = 0.26
        top = shapes.sheet(
            blanket, shapes.samples(-w / 2 - drop, w / 2 + drop, self.step),
            shapes.samples(-length / 2 - 0.02, length / 2 - 0.62, self.step),
        )  # fmt: skip
        parts.append((self._lay(top), quilt))
        fold = shapes.cushion((w + 0.03, 0.26, 0.06), self.step, 0.1).moved(0, length / 2 - 0.66, 0.545)
        parts.append((self._lay(fold), quilt))
        return _item("bed", parts)

    # ---- small things ----------------------------------------------------------------------------------------------
    def floor_lamp(self) -> Item:
        """Pole with a glowing shade."""
        metal, h = self.metal(bool(self.rng.random() < 0.5)), float(self.rng.uniform(1.45, 1.65))
        parts = [
            (shapes.cylinder(0.14, 0.0, 0.025, self.step), metal),
            (shapes.tube([(0, 0, 0.02), (0, 0, h - 0.1)], 0.012, self.step), metal),
            (self._shade(0.19, 0.13, h - 0.27, h), self._glowing()),
        ]
        return _item("lamp", parts)

    def desk_lamp(self) -> Item:
        """Small lamp with a turned foot."""
        foot = self.plastic((0.75, 0.45, 0.30) if self.rng.random() < 0.5 else (0.35, 0.52, 0.58))
        line = [(0.075, 0.0), (0.08, 0.02), (0.045, 0.06), (0.065, 0.13), (0.03, 0.2), (0.012, 0.24), (0.012, 0.32)]
        parts = [(shapes.revolve([line], self.step), foot), (self._shade(0.13, 0.08, 0.27, 0.45), self._glowing())]
        return _item("lamp", parts)

    def _shade(self, low_r: float, high_r: float, low: float, high: float) -> Mesh:
        return shapes.revolve([[(low_r, low), (high_r, high)], [(high_r, high), (0.0, high - 0.005)]], self.step)

    def _glowing(self) -> Material:
        return Material("fabric", (0.93, 0.86, 0.70), tile=0.3, seed=self.new_seed(), glow=0.9, pixels=128)

    def monitor(self, w: float, label: str) -> Item:
        """Flat screen on a foot, showing windows with text."""
        h, case = w * 0.58, self.plastic((0.14, 0.14, 0.15))
        z = h / 2 + 0.09
        colors: tuple[tuple[Color, Color], ...] = (
            ((0.2, 0.3, 0.45), (0.4, 0.55, 0.6)),
            ((0.3, 0.2, 0.35), (0.6, 0.4, 0.4)),
        )
        low, high = colors[self.rng.integers(2)]
        parts = [
            (self._board((w, 0.035, h), (0, 0.02, z), 0.012), case),
            (
                self._decal(w - 0.03, h - 0.03, (0, -0.0005, z)),
                Material("screen", low, high, 1.0, self.new_seed(), 0.12, 90.0, 0.35),
            ),
            (self._board((0.06, 0.03, 0.16), (0, 0.05, 0.09), 0.008), case),
            (self._board((min(0.3, w * 0.5), 0.18, 0.014), (0, 0.04, 0.007), 0.006), case),
        ]
        return _item(label, parts)

    def keyboard(self) -> Item:
        """Desktop keyboard."""
        base = self.plastic((0.18, 0.18, 0.19))
        keys = shapes.panel(
            np.array([-0.21, -0.065, 0.0225]), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), (0.42, 0.13), self.step
        )
        keys = keys.with_uv(np.clip(keys.uv / np.array([0.42, 0.13]), 0.01, 0.99))
        top = Material("keys", (0.12, 0.12, 0.13), (0.62, 0.62, 0.64), 1.0, self.new_seed())
        return _item("keyboard", [(self._board((0.44, 0.15, 0.022), (0, 0, 0.011), 0.006), base), (keys, top)])

    def trash_can(self) -> Item:
        """Open tapered bin."""
        h, colors = 0.34, ((0.30, 0.42, 0.55), (0.75, 0.75, 0.72), (0.25, 0.26, 0.27), (0.70, 0.35, 0.28))
        body = self.plastic(colors[self.rng.integers(len(colors))])
        lines = [
            [(0.0, 0.0), (0.115, 0.0)], [(0.115, 0.0), (0.15, h)], [(0.15, h), (0.155, h + 0.008), (0.142, h)],
            [(0.142, h), (0.108, 0.03)], [(0.108, 0.03), (0.0, 0.03)],
        ]  # fmt: skip
        return _item("trash can", [(shapes.revolve(lines, self.step), body)])

    def plant(self, h: float) -> Item:
        """Pot with arching leaves."""
        pot_h, pot_r = 0.22 * h + 0.05, 0.13 * h + 0.03
        pots: tuple[Color, ...] = ((0.72, 0.42, 0.30), (0.90, 0.89, 0.86), (0.40, 0.46, 0.50))
        pot = self.plastic(pots[self.rng.integers(len(pots))])
        earth = Material("carpet", (0.30, 0.22, 0.16), (0.20, 0.14, 0.10), 0.2, self.new_seed(), pixels=64)
        greens: tuple[tuple[Color, Color], ...] = (
            ((0.32, 0.52, 0.26), (0.50, 0.66, 0.36)), ((0.26, 0.44, 0.30), (0.66, 0.74, 0.48)),
        )  # fmt: skip
        green, rib = greens[self.rng.integers(len(greens))]
        leaf = Material("leaf", self._jitter(green), rib, 1.0, self.new_seed(), 0.12, 20.0, pixels=128)
        parts: list[tuple[Mesh, Material]] = [
            (
                shapes.revolve(
                    [
                        [(0.0, 0.0), (0.72 * pot_r, 0.0)],
                        [(0.72 * pot_r, 0.0), (pot_r, pot_h)],
                        [(pot_r, pot_h), (0.9 * pot_r, pot_h - 0.01)],
                    ],
                    self.step,
                ),
                pot,
            ),
            (shapes.revolve([[(0.95 * pot_r, pot_h - 0.015), (0.0, pot_h - 0.005)]], self.step), earth),
        ]
        count = int(self.rng.integers(16, 24))
        for k in range(count):
            yaw = 2.399963 * k + float(self.rng.uniform(-0.2, 0.2))
            rise = float(self.rng.uniform(0.35, 1.0))
            reach, width = h * (0.52 - 0.26 * rise), h * float(self.rng.uniform(0.045, 0.07))
            top = pot_h + (h - pot_h) * rise

            def blade(u: Floats, v: Floats, reach: float = reach, width: float = width, top: float = top) -> Floats:
                out = reach * u**1.25
                lift = pot_h - 0.02 + (top - pot_h) * np.sin(0.62 * np.pi * u) * 1.06
                half = width * np.sin(np.pi * np.clip(0.08 + 0.92 * u, 0, 1)) ** 0.7
                return np.stack([out, (v - 0.5) * 2 * half, lift + 0.3 * half * np.abs(v - 0.5)], -1)

            mesh = shapes.sheet(blade, np.linspace(0.0, 1.0, 9), np.linspace(0.0, 1.0, 3))
            parts.append((mesh.turned(yaw=yaw), leaf))
        return _item("plant", parts)

    def books(self, width: float, tall: float = 0.24) -> Item:
        """Row of standing books, the last ones leaning or lying."""
        covers = [
            Material("spine", self._jitter(_CLOTHS[i][0], 0.06), _CLOTHS[i][1], 0.24, self.new_seed(), 0.05, pixels=64)
            for i in self.rng.choice(len(_CLOTHS), 4, replace=False)
        ]
        parts: list[tuple[Mesh, Material]] = []
        x = -width / 2
        while x < width / 2 - 0.02:
            t = float(min(self.rng.uniform(0.022, 0.05), width / 2 - x))
            h, d = tall * float(self.rng.uniform(0.72, 1.0)), float(self.rng.uniform(0.14, 0.18))
            parts.append((self._board((t - 0.002, d, h), (x + t / 2, 0, h / 2), 0.003), covers[self.rng.integers(4)]))
            x += t
        return _item("book", parts)

    def book_stack(self) -> Item:
        """A few books lying on one another."""
        parts: list[tuple[Mesh, Material]] = []
        z = 0.0
        for _ in range(int(self.rng.integers(2, 5))):
            t, i = float(self.rng.uniform(0.025, 0.045)), self.rng.integers(len(_CLOTHS))
            cover = Material(
                "spine", self._jitter(_CLOTHS[i][0], 0.06), _CLOTHS[i][1], 0.25, self.new_seed(), 0.05, pixels=64
            )
            book = shapes.box((0.24, 0.17, t), self.step, 0.004).turned(yaw=float(self.rng.normal(0, 0.15)))
            parts.append((book.moved(0, 0, z + t / 2), cover))
            z += t
        return _item("book", parts)

    def carton(self, size: float) -> Item:
        """Closed cardboard box with tape and prints."""
        w, d, h = (size * float(self.rng.uniform(a, b)) for a, b in ((1.0, 1.3), (0.8, 1.0), (0.6, 0.9)))
        mesh = self._board((w, d, h), (0, 0, h / 2), 0.006)
        card = Material("cardboard", self._jitter((0.72, 0.57, 0.40)), (0.82, 0.74, 0.58), max(w, d), self.new_seed())
        return _item("box", [(mesh, card)])

    def pillow(self, w: float = 0.44, d: float = 0.44) -> Item:
        """Scatter cushion lying flat."""
        mesh = shapes.cushion((w, d, 0.14), min(self.step, 0.03), 0.45).moved(0, 0, 0.075)
        return _item("pillow", [(self._lay(mesh), self.cloth(tile=0.4))])

    def picture(self, w: float, h: float) -> Item:
        """Framed painting; hangs with its back at y = 0, centre at z = 0."""
        frame = self.wood() if self.rng.random() < 0.6 else self.painted()
        a, b = _CLOTHS[self.rng.integers(len(_CLOTHS))]
        art = Material("painting", self._jitter(a, 0.08), b, 1.0, self.new_seed(), 0.05, 60.0)
        return _item(
            "picture",
            [
                (self._board((w, 0.03, h), (0, -0.016, 0), 0.008), frame),
                (self._decal(w - 0.07, h - 0.07, (0, -0.0325, 0)), art),
            ],
        )

    def whiteboard(self, w: float, h: float) -> Item:
        """Wall board with handwriting; hangs like a picture."""
        frame = self.metal()
        ink = Material("writing", (0.87, 0.88, 0.88), tile=1.0, seed=self.new_seed(), gloss=0.2, shine=70.0, pixels=512)
        tray = self._board((w * 0.5, 0.07, 0.015), (0, -0.05, -h / 2 + 0.01), 0.004)
        return _item(
            "whiteboard",
            [
                (self._board((w, 0.02, h), (0, -0.011, 0), 0.006), frame),
                (tray, frame),
                (self._decal(w - 0.04, h - 0.04, (0, -0.0225, 0)), ink),
            ],
        )

    def clock(self) -> Item:
        """Round wall clock; hangs like a picture."""
        rim = self.plastic((0.25, 0.25, 0.27))
        disc = shapes.revolve([[(0.16, 0.0), (0.16, 0.035)], [(0.16, 0.035), (0.14, 0.035)]], self.step, 32)
        face = shapes.revolve([[(0.145, 0.028), (0.0, 0.028)]], self.step, 32)
        face = face.with_uv(face.vertices[:, :2] / 0.32 + 0.5)
        dial = Material("clock", (0.93, 0.92, 0.88), tile=1.0, seed=self.new_seed())
        return _item("clock", [(disc.turned(pitch=np.pi / 2), rim), (face.turned(pitch=np.pi / 2), dial)])

    def bag(self) -> Item:
        """Backpack standing on the floor."""
        cloth = self.cloth(("fabric", "plaid"), 0.4)
        parts = [
            (shapes.cushion((0.32, 0.20, 0.44), self.step, 0.0).moved(0, 0, 0.22), cloth),
            (shapes.cushion((0.24, 0.10, 0.22), self.step, 0.0).moved(0, -0.13, 0.14), cloth),
            (
                shapes.tube(
                    [(-0.05, 0.04, 0.42), (-0.04, 0.05, 0.49), (0.04, 0.05, 0.49), (0.05, 0.04, 0.42)], 0.012, self.step
                ),
                self.plastic((0.2, 0.2, 0.2)),
            ),
        ]
        return _item("backpack", parts)

    def radiator(self, w: float) -> Item:
        """Ribbed radiator that stands before a wall."""
        white = self.painted((0.91, 0.91, 0.89), 0.15)
        parts: list[tuple[Mesh, Material]] = [
            (self._board((w, 0.03, 0.03), (0, 0.0, 0.16), 0.01), white),
            (self._board((w, 0.03, 0.03), (0, 0.0, 0.62), 0.01), white),
        ]
        for x in np.linspace(-w / 2 + 0.04, w / 2 - 0.04, max(4, int(w / 0.085))):
            parts.append((self._board((0.055, 0.07, 0.54), (float(x), 0, 0.39), 0.02), white))
        return _item("radiator", parts)
