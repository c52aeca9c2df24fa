"""Whether poses and depth tell of one world: points that one frame measured, as another frame sees them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from panbench.scene import Camera

TOLERANCE = 0.05  # relative error of depth at which two frames agree; sensors err by 1 to 2 %
_POINTS = 600  # of a frame
GOOD_FIT = 0.6  # rooms as they are have 0.9, wrongly read ones 0.1 to 0.4
LEAST_POINTS = 200  # that must land before anything is concluded
_AHEAD = 60  # frames among which the second of a pair is looked for


@dataclass(frozen=True, eq=False)
class DepthView:
    """A frame's z-depth [H, W], metres, 0 = none, and its camera at that size."""

    camera: Camera
    depth: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reading:
    """One way to read the poses and the depth.

    Attributes:
        inverse: the files hold world to camera, not camera to world.
        axes: [3, 3], takes directions in OpenCV's camera axes to the camera axes of the files.
        scale: what depth is multiplied with to be in the unit of the poses.
    """

    inverse: bool
    axes: NDArray[np.float64]
    scale: float = 1.0

    @property
    def text(self) -> str:
        """For messages: "world to camera, OpenGL axes"."""
        way = "world to camera" if self.inverse else "camera to world"
        return f"{way}, {_axes_text(self.axes)}"


@dataclass(frozen=True)
class Agreement:
    """How points of some frames fit the depth of others.

    Attributes:
        points: how many were carried over.
        landed: of these, the ones that fall on a measurement.
        agreeing: of these, the ones that lie within the tolerance.
        before: of the landed, the ones that lie before the surface measured there: contradictions. The others that do
            not agree lie behind it and may be hidden.
        error: median of |z − depth| / depth of the landed points that do not lie far behind; NaN without any.
        fit: median over pairs of agreeing / landed; where few land, of agreeing / a quarter of the points, as under a
            wrong reading most miss.
    """

    points: int
    landed: int
    agreeing: int
    before: int
    error: float
    fit: float

    @property
    def share(self) -> float:
        """Agreeing of those that are not hidden; 0 without any."""
        return self.agreeing / max(self.agreeing + self.before, 1)


def pick_pairs(cameras: Sequence[Camera], most: int) -> list[tuple[int, int]]:
    """Up to ``most`` pairs of frames, spread over the path, of which a camera turned or moved noticeably but not away.

    The angle between two poses is the same whichever way the poses are read, so pairs are chosen by it and by nearness
    in time alone.
    """
    rotations = np.stack([c.rotation.numpy() for c in cameras]) if cameras else np.zeros((0, 3, 3))
    pairs: list[tuple[int, int]] = []
    for i in range(len(cameras) - 1):
        ahead = rotations[i + 1 : i + 1 + _AHEAD]
        cosine = (np.einsum("kab,ab->k", ahead, rotations[i]) - 1) / 2
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        away = np.flatnonzero(angle > 30)
        reach = int(away[0]) if away.size else len(angle)  # frames before the camera turned away
        if reach == 0:
            continue
        turned = np.flatnonzero(angle[:reach] > 12)
        pairs.append((i, i + 1 + int(turned[0] if turned.size else reach - 1)))
    if len(pairs) <= most:
        return pairs
    return [pairs[k] for k in np.linspace(0, len(pairs) - 1, most).round().astype(int)]


def agreement(views: Sequence[tuple[DepthView, DepthView]], reading: Reading) -> Agreement:
    """Carries points of each first frame over to its second and back."""
    return _agreement(_prepare(views), reading)


def _agreement(samples: Sequence[_Sample], reading: Reading) -> Agreement:
    carried = [_carry(sample, reading) for sample in samples]
    points, landed, agreeing, before = (sum(counts[k] for counts, _ in carried) for k in range(4))
    error = np.concatenate([e for _, e in carried]) if carried else np.zeros(0)
    fits = [counts[2] / max(counts[1], counts[0] // 4, 1) for counts, _ in carried]
    return Agreement(
        points, landed, agreeing, before,
        error=float(np.median(error)) if error.size else float("nan"),
        fit=float(np.median(fits)) if fits else 0.0,
    )  # fmt: skip


def relative_error(source: DepthView, target: DepthView) -> NDArray[np.float32]:
    """(z − depth) / depth [H, W] of every measured point of ``source`` where ``target`` measured; NaN elsewhere."""
    v, u = np.nonzero(source.depth > 0)
    seen = _look_up(_unproject(source, u, v), source.camera, target, AS_READ)
    out = np.full(source.depth.shape, np.nan, dtype=np.float32)
    out[v[seen.landed], u[seen.landed]] = seen.relative
    return out


def same_points(
    source: DepthView, target: DepthView
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows, columns) in ``source`` and in ``target`` of points that both measured at one place; some hundreds."""
    v, u = _grid(source)
    seen = _look_up(_unproject(source, u, v), source.camera, target, AS_READ)
    fits = np.abs(seen.relative) <= TOLERANCE
    return (v[seen.landed][fits], u[seen.landed][fits]), (seen.row[fits], seen.column[fits])


def best_reading(views: Sequence[tuple[DepthView, DepthView]]) -> tuple[Reading, Agreement]:
    """The reading of poses and the scale of depth under which most points agree.

    Tried are both directions with OpenCV's and OpenGL's axes and scales from 1e-4 to 1e4; if none of them fits, all 24
    ways to name the axes, with depth in metres and millimetres.
    """
    samples = _prepare(views)
    usual = [Reading(inverse, axes) for inverse in (False, True) for axes in (np.eye(3), _OPENGL)]
    best = max((_coarse_scale(samples, reading) for reading in usual), key=_fit)
    if best[1].fit < GOOD_FIT:
        some = samples[:: max(1, len(samples) // 12)]
        every = [
            Reading(inverse, axes, scale)
            for inverse in (False, True)
            for axes in _rotations()
            for scale in (1.0, 0.001, 1000.0)
        ]
        odd = max(((r, _agreement(some, r)) for r in every), key=_fit)[0]
        best = max(best, (odd, _agreement(samples, odd)), key=_fit)
    return _refined(samples, best)


def best_scale(views: Sequence[tuple[DepthView, DepthView]]) -> tuple[Reading, Agreement]:
    """The scale of depth under which most points agree, the poses being read as they are."""
    samples = _prepare(views)
    return _refined(samples, _coarse_scale(samples, AS_READ))


def _fit(found: tuple[Reading, Agreement]) -> float:
    return found[1].fit


def _refined(samples: Sequence[_Sample], best: tuple[Reading, Agreement]) -> tuple[Reading, Agreement]:
    for step in (0.12, 0.05, 0.02, 0.008):
        around = (replace(best[0], scale=best[0].scale * 10.0**d) for d in (-step, step))
        best = max([best, *((r, _agreement(samples, r)) for r in around)], key=_fit)
    return best


def _coarse_scale(samples: Sequence[_Sample], reading: Reading) -> tuple[Reading, Agreement]:
    tried = (replace(reading, scale=float(scale)) for scale in 10.0 ** np.arange(-4, 4.01, 0.25))
    return max(((r, _agreement(samples, r)) for r in tried), key=_fit)


def _grid(view: DepthView) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of some measured pixels, evenly spread."""
    height, width = view.depth.shape
    step = max(1, int((height * width / _POINTS) ** 0.5))
    v, u = (g.ravel() for g in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    measured = view.depth[v, u] > 0
    return v[measured], u[measured]


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some points [P, 3] of a frame in its camera's axes, and the frame to look them up in."""

    points: NDArray[np.float64]
    camera: Camera
    target: DepthView


def _prepare(views: Sequence[tuple[DepthView, DepthView]]) -> list[_Sample]:
    """Points of each first frame for its second, and back."""
    out: list[_Sample] = []
    for pair in views:
        for source, target in (pair, pair[::-1]):
            v, u = _grid(source)
            out.append(_Sample(_unproject(source, u, v), source.camera, target))
    return out


def _carry(sample: _Sample, reading: Reading) -> tuple[tuple[int, int, int, int], NDArray[np.float64]]:
    """Points, landed, agreeing, before; and the errors of those that do not lie far behind."""
    relative = _look_up(sample.points, sample.camera, sample.target, reading).relative
    agreeing = int((np.abs(relative) <= TOLERANCE).sum())
    counts = (len(sample.points), len(relative), agreeing, int((relative < -TOLERANCE).sum()))
    return counts, np.abs(relative[relative < 4 * TOLERANCE])


def _unproject(view: DepthView, u: NDArray[np.integer], v: NDArray[np.integer]) -> NDArray[np.float64]:
    c, z = view.camera, view.depth[v, u].astype(np.float64)
    return np.stack([(u + 0.5 - c.cx) / c.fx * z, (v + 0.5 - c.cy) / c.fy * z, z], axis=-1)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Points as another frame sees them: ``landed`` [P], whether each falls on a measurement; of those that do, row and
    column there and (z − depth) / depth.
    """

    landed: NDArray[np.bool_]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    relative: NDArray[np.float64]


def _look_up(points: NDArray[np.float64], camera: Camera, target: DepthView, reading: Reading) -> _Seen:
    """Points of ``camera`` [P, 3] in the target's depth map."""
    rotation, shift = _relative(camera, target.camera, reading)
    moved = points @ rotation.T + shift / reading.scale
    c, z = target.camera, moved[:, 2]
    front = z > 1e-6
    safe = np.where(front, z, 1.0)
    column = np.floor(np.clip(c.fx * moved[:, 0] / safe + c.cx, -1, c.width)).astype(np.int64)
    row = np.floor(np.clip(c.fy * moved[:, 1] / safe + c.cy, -1, c.height)).astype(np.int64)
    landed = front & (column >= 0) & (column < c.width) & (row >= 0) & (row < c.height)
    landed[landed] = target.depth[row[landed], column[landed]] > 0
    row, column = row[landed], column[landed]
    there = target.depth[row, column].astype(np.float64)
    return _Seen(landed, row, column, (z[landed] - there) / there)


def _relative(source: Camera, target: Camera, reading: Reading) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotation [3, 3] and shift [3] that take points of one camera to the other, both in OpenCV's axes."""
    a, b = (c.world_to_camera.numpy().astype(np.float64) for c in (source, target))
    if reading.inverse:
        a, b = np.linalg.inv(a), np.linalg.inv(b)
    # With camera-to-world matrices C = W⁻¹ · axes: C_b⁻¹ C_a.
    relative = b @ np.linalg.inv(a)
    return reading.axes.T @ relative[:3, :3] @ reading.axes, reading.axes.T @ relative[:3, 3]


_OPENGL = np.diag([1.0, -1.0, -1.0])
AS_READ = Reading(False, np.eye(3))


def _rotations() -> list[NDArray[np.float64]]:
    """The 24 rotations that carry axes onto axes."""
    out: list[NDArray[np.float64]] = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                out.append(matrix)
    return out


def _axes_text(axes: NDArray[np.float64]) -> str:
    if np.array_equal(axes, np.eye(3)):
        return "OpenCV axes"
    if np.array_equal(axes, _OPENGL):
        return "OpenGL axes"
    names = (("left", "right"), ("up", "down"), ("backward", "forward"))
    parts: list[str] = []
    for row, letter in zip(axes, "xyz", strict=True):  # an axis of the files, in OpenCV's
        along = int(np.abs(row).argmax())
        parts.append(f"{letter} {names[along][int(row[along] > 0)]}")
    return "axes " + ", ".join(parts)
