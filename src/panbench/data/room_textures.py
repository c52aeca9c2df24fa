"""Procedural textures: tileable images per material, packed with their mip levels for fast bilinear look-up.

Colours in a texture are the square root of linear albedo, 8 bit; :meth:`TextureAtlas.sample` returns linear albedo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

Floats = NDArray[np.floating]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks. Two objects that share a material (and its seed) look the same.

    Attributes:
        pattern: name of a texture function of this module.
        color, accent: main and second colour, sqrt-encoded RGB in [0, 1].
        tile: metres of surface that one texture repeat covers (1.0 for shapes with uv in 0..1).
        seed: of the texture's randomness.
        gloss, shine: strength and exponent of the Blinn highlight.
        glow: emitted radiance, relative to white paper under the room's mean light.
        pixels: texture size, a power of two.
    """

    pattern: str
    color: Color
    accent: Color = (0.5, 0.5, 0.5)
    tile: float = 1.0
    seed: int = 0
    gloss: float = 0.0
    shine: float = 30.0
    glow: float = 0.0
    pixels: int = 256


def _noise(rng: np.random.Generator, n: int, slope: float, stretch: float = 1.0) -> Floats:
    """Tileable Gaussian noise [n, n], unit variance, amplitude ∝ 1/f^slope; ``stretch`` > 1 draws it out along u."""
    fy = np.fft.fftfreq(n)[:, None] * n
    fx = np.fft.rfftfreq(n)[None, :] * n * stretch
    frequency = np.sqrt(fx**2 + fy**2)
    frequency[0, 0] = 1.0
    amplitude = frequency**-slope
    amplitude[0, 0] = 0.0
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
    field = np.fft.irfft2(spectrum, s=(n, n))
    return field / field.std()


def _axes(n: int) -> tuple[Floats, Floats]:
    """u [1, n] and v [n, 1] of texel centres in 0..1 (v upwards with the row)."""
    t = (np.arange(n) + 0.5) / n
    return t[None, :], t[:, None]


def _mix(a: Color | Floats, b: Color | Floats, weight: Floats) -> Floats:
    return np.asarray(a) * (1 - weight[..., None]) + np.asarray(b) * weight[..., None]


def _plain(m: Material, n: int, rng: np.random.Generator) -> Floats:
    grain = 0.018 * _noise(rng, n, 0.6) + 0.02 * _noise(rng, n, 1.6)
    return np.asarray(m.color) * (1 + grain[..., None])


def _plaster(m: Material, n: int, rng: np.random.Generator) -> Floats:
    bumps = gaussian_filter(rng.standard_normal((n, n)), 1.2, mode="wrap")
    relief = np.roll(bumps, 1, 0) - np.roll(bumps, -1, 0)
    tone = 0.022 * relief / relief.std() + 0.03 * _noise(rng, n, 1.4)
    return np.asarray(m.color) * (1 + tone[..., None])


def _wallpaper(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    leaves = np.sin(8 * np.pi * u + 1.3 * np.sin(8 * np.pi * v)) * np.sin(8 * np.pi * v + 1.1 * np.cos(8 * np.pi * u))
    stripe = np.broadcast_to(np.sin(16 * np.pi * u) > 0.2, (n, n))
    mask = gaussian_filter(((leaves > 0.45) | ((leaves < -0.6) & stripe)).astype(float), 0.8, mode="wrap")
    out = _mix(m.color, m.accent, mask)
    return out * (1 + 0.03 * _noise(rng, n, 1.0)[..., None])


def _stripes(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, _ = _axes(n)
    band = np.broadcast_to(((u * 6) % 1 < 0.42).astype(float), (n, n))
    thin = np.broadcast_to((np.abs((u * 6) % 1 - 0.71) < 0.06).astype(float), (n, n))
    return _weave(_mix(m.color, m.accent, np.maximum(band, thin)), n, rng)


def _weave(base: Floats, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    threads = np.sin(2 * np.pi * u * n / 8) * np.sin(2 * np.pi * v * n / 8)
    tone = 0.06 * threads + 0.05 * _noise(rng, n, 0.4) + 0.05 * _noise(rng, n, 1.6)
    return base * (1 + tone[..., None])


def _fabric(m: Material, n: int, rng: np.random.Generator) -> Floats:
    return _weave(np.broadcast_to(np.asarray(m.color), (n, n, 3)), n, rng)


def _plaid(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    a = ((u * 4) % 1 < 0.4).astype(float) + 0.6 * (np.abs((u * 4) % 1 - 0.7) < 0.05)
    b = ((v * 4) % 1 < 0.4).astype(float) + 0.6 * (np.abs((v * 4) % 1 - 0.7) < 0.05)
    return _weave(_mix(m.color, m.accent, np.clip((a + b) / 2, 0, 1)), n, rng)


def _dots(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    row = np.floor(v * 8)
    cell_u, cell_v = (u * 8 + 0.5 * (row % 2)) % 1 - 0.5, (v * 8) % 1 - 0.5
    mask = (np.hypot(cell_u, np.broadcast_to(cell_v, (n, n))) < 0.24).astype(float)
    return _weave(_mix(m.color, m.accent, gaussian_filter(mask, 0.7, mode="wrap")), n, rng)


def _wood(m: Material, n: int, rng: np.random.Generator) -> Floats:
    _, v = _axes(n)
    warp = 0.10 * _noise(rng, n, 1.8, stretch=5.0)
    rings = np.sin(2 * np.pi * (v * 5 + warp * 3)) + 0.5 * np.sin(2 * np.pi * (v * 13 + warp * 6))
    fibre = _noise(rng, n, 0.7, stretch=18.0)
    tone = 0.5 + 0.28 * rings + 0.10 * fibre
    return _mix(m.color, m.accent, np.clip(tone, 0, 1)) * (1 + 0.05 * fibre[..., None])


def _planks(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    rows = 8
    row = np.floor(v * rows).astype(int).repeat(n, 1)
    shift = rng.random(rows)[row]
    board = np.floor((u + shift) * 2).astype(int) % 2
    tone = rng.normal(0, 0.11, (rows, 2))[row, board]
    wood = _wood(m, n, rng)
    offset = rng.integers(0, n, (rows, 2))[row, board]
    columns = (np.arange(n)[None, :] + offset) % n
    wood = wood[(np.arange(n)[:, None] + offset // 3) % n, columns]
    edge_v = np.abs((v * rows) % 1 - 0.5).repeat(n, 1) > 0.5 - 0.6 * rows / n
    edge_u = np.abs(((u + shift) * 2) % 1 - 0.5) > 0.5 - 1.2 / n
    return wood * (1 + tone[..., None]) * np.where(edge_u | edge_v, 0.55, 1.0)[..., None]


def _parquet(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    cells = 4
    cu, cv = np.floor(u * cells).astype(int), np.floor(v * cells).astype(int)
    upright = ((cu + cv) % 2).astype(bool)
    fu, fv = (u * cells) % 1, (v * cells) % 1
    across = np.where(upright, np.broadcast_to(fu, (n, n)), np.broadcast_to(fv, (n, n)))
    strip = np.floor(across * 4).astype(int)
    tone = rng.normal(0, 0.10, (cells, cells, 4))[
        np.broadcast_to(cv, (n, n)), np.broadcast_to(cu, (n, n)), np.clip(strip, 0, 3)
    ]
    wood = _wood(m, n, rng)
    wood = np.where(upright[..., None], np.swapaxes(wood, 0, 1), wood)
    edge = (np.abs((across * 4) % 1 - 0.5) > 0.44) | (np.abs(np.where(upright, fv, fu) - 0.5) > 0.488)
    return wood * (1 + tone[..., None]) * np.where(edge, 0.7, 1.0)[..., None]


def _brick(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    rows, columns = 12, 4
    row = np.floor(v * rows).astype(int)
    pos = (u * columns + 0.5 * (row % 2)) % columns
    brick = np.floor(pos).astype(int)
    tone = rng.normal(0, 0.14, (rows, columns))[np.broadcast_to(row, (n, n)), brick]
    rough = 0.07 * _noise(rng, n, 0.9)
    mortar = (np.abs(pos % 1 - 0.5) > 0.46) | np.broadcast_to(np.abs((v * rows) % 1 - 0.5) > 0.42, (n, n))
    body = np.asarray(m.color) * (1 + tone + rough)[..., None]
    return _mix(body, np.asarray(m.accent) * (1 + rough[..., None]), gaussian_filter(mortar.astype(float), 0.8))


def _tiles(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    cells = 4
    cu, cv = np.floor(u * cells).astype(int), np.floor(v * cells).astype(int)
    tone = rng.normal(0, 0.06, (cells, cells))[np.broadcast_to(cv, (n, n)), np.broadcast_to(cu, (n, n))]
    cloud = 0.09 * _noise(rng, n, 1.5) + 0.03 * _noise(rng, n, 0.5)
    grout = (np.abs((u * cells) % 1 - 0.5) > 0.485) | (np.abs((v * cells) % 1 - 0.5) > 0.485)
    return _mix(np.asarray(m.color) * (1 + tone + cloud)[..., None], m.accent, grout.astype(float))


def _carpet(m: Material, n: int, rng: np.random.Generator) -> Floats:
    tufts = _noise(rng, n, 0.15)
    patches = _noise(rng, n, 1.5)
    return _mix(m.color, m.accent, np.clip(0.35 + 0.22 * tufts + 0.12 * patches, 0, 1))


def _leather(m: Material, n: int, rng: np.random.Generator) -> Floats:
    tree = KDTree(rng.random((n * 3, 2)), boxsize=1.0)
    u, v = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    near = tree.query(np.stack([u, v], -1).reshape(-1, 2), k=2)[0]
    crease = np.exp(-(((near[:, 1] - near[:, 0]) * n / 1.6) ** 2)).reshape(n, n)
    tone = -0.16 * crease + 0.07 * _noise(rng, n, 1.6)
    return np.asarray(m.color) * (1 + tone[..., None])


def _stone(m: Material, n: int, rng: np.random.Generator) -> Floats:
    veins = 1 - np.abs(np.clip(_noise(rng, n, 1.5), -1, 1))
    speckle = _noise(rng, n, 0.5)
    return _mix(m.color, m.accent, np.clip(veins**6 * 0.8 + 0.06 * speckle, 0, 1))


def _cardboard(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    flutes = 0.02 * np.sin(2 * np.pi * u * 40)
    out = np.asarray(m.color) * (1 + flutes + 0.05 * _noise(rng, n, 1.3))[..., None]
    tape = np.broadcast_to(np.abs(v - 0.5) < 0.07, (n, n))
    out = np.where(tape[..., None], np.asarray(m.accent) * (1 + 0.02 * _noise(rng, n, 0.8)[..., None]), out)
    for _ in range(4):
        y, x = rng.random(2)
        w, h = rng.uniform(0.08, 0.25), rng.uniform(0.03, 0.08)
        label = (np.abs(u - x) < w / 2) & (np.abs(v - y) < h / 2)
        out = np.where(label[..., None], np.array(rng.choice([0.25, 0.92])) * np.ones(3), out)
    return out


def _painting(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    palette = np.clip(np.asarray([m.color, m.accent])[rng.integers(0, 2, 14)] + rng.normal(0, 0.22, (14, 3)), 0.05, 1)
    if m.seed % 2:
        warp = np.stack([u, v], -1) + 0.05 * np.stack([_noise(rng, n, 1.6), _noise(rng, n, 1.6)], -1)
        cell = KDTree(rng.random((14, 2))).query(warp.reshape(-1, 2))[1].reshape(n, n)
        out = palette[cell]
    else:
        horizon = 0.45 + 0.05 * _noise(rng, n, 1.9)[:1]
        out = _mix(palette[0], palette[1], np.clip(v * 1.4, 0, 1))
        for k in range(3):
            hill = v < horizon * (1 - 0.28 * k) + 0.06 * np.sin(2 * np.pi * (u * (1 + k) + rng.random()))
            out = np.where(hill[..., None], palette[2 + k], out)
        sun = np.hypot(u - rng.uniform(0.2, 0.8), v - 0.78) < 0.09
        out = np.where(sun[..., None], [1.0, 0.85, 0.55], out)
    return out * (1 + 0.06 * _noise(rng, n, 0.8)[..., None])


def _screen(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    out = _mix(m.color, m.accent, np.broadcast_to(v, (n, n))) * (1 + 0.08 * _noise(rng, n, 1.7)[..., None])
    for _ in range(3):
        x, y, w, h = rng.uniform(0.05, 0.45), rng.uniform(0.15, 0.5), rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.42)
        inside = (u > x) & (u < x + w) & (v > y) & (v < y + h)
        out = np.where(inside[..., None], np.array([0.93, 0.94, 0.95]), out)
        out = np.where((inside & (v > y + h - 0.04))[..., None], rng.uniform(0.2, 0.8, 3), out)
        ends = x + w * rng.uniform(0.3, 0.95, n // 8)
        line = np.broadcast_to((np.arange(n) // 4) % 2 == 0, (n, n)).T
        words = inside & (v < y + h - 0.06) & (u > x + 0.02) & (u < ends[np.arange(n) // 8][:, None]) & line
        out = np.where(words[..., None], np.array([0.3, 0.32, 0.36]), out)
    return np.where(np.broadcast_to(v < 0.06, (n, n))[..., None], np.array([0.15, 0.17, 0.22]), out)


def _outdoors(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    clouds = np.clip(0.5 + 0.5 * _noise(rng, n, 1.7, stretch=2.0), 0, 1) * np.clip(v * 1.5 - 0.4, 0, 1)
    out = _mix(_mix((0.86, 0.92, 0.97), (0.60, 0.78, 0.95), v), (1.0, 1.0, 1.0), clouds)
    ridge = 0.34 + 0.05 * _noise(rng, n, 1.6)[:1] + 0.03 * np.sin(2 * np.pi * u[:1] * 3)
    far = v < ridge
    out = np.where(far[..., None], np.array([0.52, 0.62, 0.60]) * (1 + 0.1 * _noise(rng, n, 0.8)[..., None]), out)
    trees = v < ridge * 0.72 + 0.05 * _noise(rng, n, 0.9)[:1]
    leaves = np.array([0.36, 0.50, 0.28]) * (1 + 0.22 * _noise(rng, n, 0.7)[..., None])
    return np.where(trees[..., None], leaves, out)


def _writing(m: Material, n: int, rng: np.random.Generator) -> Floats:
    out = np.asarray(m.color) * (1 + 0.012 * _noise(rng, n, 1.5)[..., None])
    ink = np.zeros((n, n), dtype=int)
    for k in range(18):
        x0, y0 = rng.uniform(0.05, 0.12) + 0.45 * (k % 2), 0.9 - 0.095 * (k // 2)
        t = np.linspace(0, rng.uniform(0.1, 0.36), n * 2)
        y = y0 + 0.014 * np.sin(t * rng.uniform(180, 260)) * (np.sin(t * 60) > -0.5) + 0.008 * np.sin(t * 23)
        drawn = np.sin(t * rng.uniform(60, 90)) > -0.75
        rows, columns = (y[drawn] * n).astype(int) % n, ((x0 + t[drawn]) * n).astype(int) % n
        ink[rows, columns] = 1 + k % 3
    spread = np.maximum.reduce([ink, np.roll(ink, 1, 0), np.roll(ink, 1, 1)])
    pens = np.array([[0.0, 0.0, 0.0], [0.12, 0.2, 0.55], [0.15, 0.15, 0.17], [0.65, 0.15, 0.15]])
    return np.where((spread > 0)[..., None], pens[spread], out)


def _rug(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n)
    if m.seed % 2:
        mask = ((np.abs(u - 0.5) * 12 + np.abs(v - 0.5) * 12) % 2 < 1).astype(float)
    else:
        mask = ((u * 9 + 0.35 * np.sign(np.sin(2 * np.pi * v * 6))) % 1 < 0.5).astype(float)
    border = (np.abs(u - 0.5) > 0.44) | (np.abs(v - 0.5) > 0.42)
    line = (np.abs(np.abs(u - 0.5) - 0.42) < 0.01) | (np.abs(np.abs(v - 0.5) - 0.40) < 0.012)
    mask = np.where(border, 1.0, np.where(line, 0.0, mask))
    tufts = 0.10 * _noise(rng, n, 0.25) + 0.05 * _noise(rng, n, 1.5)
    return _mix(m.color, m.accent, mask) * (1 + tufts[..., None])


def _leaf(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    rib = np.exp(-(((v - 0.5) * 30) ** 2)) + 0.4 * (np.sin(2 * np.pi * (u * 9 + np.abs(v - 0.5) * 5)) > 0.8)
    tone = 0.12 * _noise(rng, n, 1.2)
    return _mix(m.color, m.accent, np.clip(rib, 0, 1)) * (1 + tone[..., None])


def _door(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    out = _wood(m, n, rng) if m.accent != m.color else _plain(m, n, rng)
    for low, high in ((0.08, 0.40), (0.47, 0.92)):
        for left in (0.10, 0.54):
            dx = np.maximum(np.abs(u - left - 0.18) - 0.18, np.abs(v - (low + high) / 2) * 1.0 - (high - low) / 2)
            out = out * np.where(np.abs(dx) < 0.008, 0.72, 1.0)[..., None]
            out = out * np.where((dx < -0.008) & (dx > -0.022), 1.05, 1.0)[..., None]
    return out


def _clock(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = np.meshgrid((np.arange(n) + 0.5) / n - 0.5, (np.arange(n) + 0.5) / n - 0.5)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    ticks = (np.abs((angle * 6 / np.pi) % 1 - 0.5) > 0.42) & (radius > 0.37) & (radius < 0.45)
    out = np.where(ticks[..., None], 0.12, np.asarray(m.color))
    for theta, length in ((rng.uniform(0, 6.2), 0.24), (rng.uniform(0, 6.2), 0.36)):
        along, off = u * np.cos(theta) + v * np.sin(theta), -u * np.sin(theta) + v * np.cos(theta)
        out = np.where(((along > -0.03) & (along < length) & (np.abs(off) < 0.014))[..., None], 0.1, out)
    return out


def _spine(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    bands = np.zeros((1, n), dtype=bool)
    for x in rng.random(4):
        bands |= np.abs(u - x) < rng.uniform(0.01, 0.04)
    out = np.where(np.broadcast_to(bands, (n, n))[..., None], np.asarray(m.accent), np.asarray(m.color))
    letters = (np.abs(v - 0.5) < 0.12) & (_noise(rng, n, 0.2)[:1] > 0.1) & (np.abs(u - 0.5) < 0.3)
    out = np.where(letters[..., None], np.clip(np.asarray(m.accent) * 1.2, 0, 1), out)
    return out * (1 + 0.05 * _noise(rng, n, 1.2)[..., None])


def _keys(m: Material, n: int, rng: np.random.Generator) -> Floats:
    u, v = _axes(n)
    gap = (np.abs((u * 15) % 1 - 0.5) > 0.4) | (np.abs((v * 5) % 1 - 0.5) > 0.4)
    edge = (np.abs(u - 0.5) > 0.48) | (np.abs(v - 0.5) > 0.45)
    return np.where((gap | edge)[..., None], np.asarray(m.color), np.asarray(m.accent)) * np.ones((n, n, 1))


_PATTERNS: dict[str, Callable[[Material, int, np.random.Generator], Floats]] = {
    "plain": _plain, "plaster": _plaster, "wallpaper": _wallpaper, "stripes": _stripes, "fabric": _fabric,
    "plaid": _plaid, "dots": _dots, "wood": _wood, "planks": _planks, "parquet": _parquet, "brick": _brick,
    "tiles": _tiles, "carpet": _carpet, "leather": _leather, "stone": _stone, "cardboard": _cardboard,
    "painting": _painting, "screen": _screen, "outdoors": _outdoors, "writing": _writing, "rug": _rug, "leaf": _leaf,
    "door": _door, "clock": _clock, "spine": _spine, "keys": _keys,
}  # fmt: skip


def texture(material: Material, pixels: int) -> Floats:
    """Image [pixels, pixels, 3] of a material, sqrt-encoded albedo in [0, 1]; row = v, column = u.

    Raises:
        KeyError: if the material's pattern is unknown.
    """
    image = _PATTERNS[material.pattern](material, pixels, np.random.default_rng([material.seed, 977]))
    return np.clip(image, 0.02, 0.985)


class TextureAtlas:
    """All textures of a room in one array, with mip levels.

    Args:
        materials: in the order of the material indices that :meth:`sample` takes.
        detail: textures are 2^-detail of their material's size (for tiny rooms).
    """

    def __init__(self, materials: Sequence[Material], detail: int = 0) -> None:
        images: list[NDArray[np.uint8]] = []
        offsets: list[list[int]] = []
        means: list[Floats] = []
        sizes: list[int] = []
        start = 0
        self.levels = 6
        for material in materials:
            n = max(64, material.pixels >> detail)
            image = texture(material, n)
            means.append((image**2).mean((0, 1)))
            sizes.append(n)
            row: list[int] = []
            for _ in range(self.levels):
                rgba = np.zeros((image.shape[0] ** 2, 4), dtype=np.uint8)
                rgba[:, :3] = np.round(image.reshape(-1, 3) * 255)
                images.append(rgba)
                row.append(start)
                start += len(rgba)
                # Averaging albedo, not its root, keeps the mean colour of a surface the same at every distance.
                linear = image**2
                image = np.sqrt((linear[::2, ::2] + linear[1::2, ::2] + linear[::2, 1::2] + linear[1::2, 1::2]) / 4)
            offsets.append(row)
        self._texels = np.concatenate(images).view(np.uint32).ravel()
        self._offsets = np.asarray(offsets, dtype=np.int64)
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._tiles = np.asarray([m.tile for m in materials], dtype=np.float32)
        self.mean_albedo = np.asarray(means, dtype=np.float32)

    def sample(self, material: NDArray[np.integer], uv: Floats, footprint: Floats) -> Floats:
        """Linear albedo [N, 3].

        Args:
            material: material index [N].
            uv: texture coordinates [N, 2].
            footprint: width of the sample on the surface [N], in the units of uv; picks the mip level.
        """
        tile, size = self._tiles[material], self._sizes[material]
        texels = np.maximum(footprint / tile * size, 1e-6)
        level = np.clip(np.round(np.log2(texels)), 0, self.levels - 1).astype(np.int64)
        n = size >> level
        position = uv / tile[:, None] * n[:, None] - np.float32(0.5)
        corner = np.floor(position)
        weight = (position - corner).astype(np.float32)
        base = corner.astype(np.int64)
        mask = n - 1
        x0, y0 = base[:, 0] & mask, base[:, 1] & mask
        x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
        offset = self._offsets[material, level]
        wx, wy = weight[:, :1], weight[:, 1:]
        low = self._fetch(offset + y0 * n + x0) * (1 - wx) + self._fetch(offset + y0 * n + x1) * wx
        high = self._fetch(offset + y1 * n + x0) * (1 - wx) + self._fetch(offset + y1 * n + x1) * wx
        value = (low * (1 - wy) + high * wy) * np.float32(1 / 255)
        return value * value

    def _fetch(self, index: NDArray[np.int64]) -> Floats:
        return self._texels[index].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)
