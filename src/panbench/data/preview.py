"""Pictures of a scene: what some of its frames show, how their depth meets, and the room from above."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panbench.data.check_faults import Report
from panbench.data.check_geometry import TOLERANCE, DepthView, pick_pairs, relative_error
from panbench.errors import UserError
from panbench.report.pictures import class_picture, depth_colors, depth_span, object_picture
from panbench.scene import Camera, Frame, FrameSource, LabelSpace, PanopticMap, id_colors
from panbench.training.files import replacing

Picture = NDArray[np.uint8]

_PAPER, _INK, _FAINT, _ABSENT = (250, 250, 248), (30, 32, 36), (120, 124, 130), (226, 227, 224)
_MEETS, _BEFORE, _BEHIND = (96, 174, 120), (214, 62, 52), (74, 120, 190)
_TRAIN, _TEST = (36, 96, 200), (224, 96, 32)
_GAP, _MARGIN, _LINE = 4, 16, 20
_FROM_ABOVE = 40  # frames whose depth makes the picture from above
_POINTS_PER_FRAME = 12_000


@dataclass(frozen=True, eq=False)
class Shown:
    """What can be shown of a scene: its frames, the label space of their maps, which of them are training frames."""

    source: FrameSource
    labels: LabelSpace
    train: frozenset[int]


def write_preview(shown: Shown, path: Path, title: str, rows: int = 8, width: int = 240) -> Path:
    """Frames in rows (colour, depth, truth, masks), below them the room and the camera's path from above.

    Args:
        shown: the scene.
        path: PNG to write, in one piece.
        title: line above the sheet.
        rows: how many frames.
        width: of a cell, pixels.

    Raises:
        UserError: a frame cannot be read.
        OSError: the file cannot be written.
    """
    frames = [shown.source.load(i) for i in _spread(len(shown.source), rows)]
    columns = ["colour", "depth", "truth", "masks"]
    grid = _grid(
        [_captions(f, shown) for f in frames], columns, [_cells(f, frames, shown.labels) for f in frames], width
    )
    above = _from_above(shown, grid.width - 2 * _MARGIN)
    return _write(path, _stack([_text([title], grid.width), grid, above]))


def write_check_sheet(shown: Shown, report: Report, path: Path, rows: int = 8, width: int = 200) -> Path:
    """Frames in rows (colour, depth, truth, masks, how the depth meets that of another frame) and the faults found.

    Raises: as :func:`write_preview`.
    """
    picks = _spread(len(shown.source), rows)
    cameras = [shown.source.camera(i) for i in range(len(shown.source))]
    partners = dict(pick_pairs(cameras, len(cameras)))
    frames = [shown.source.load(i) for i in picks]
    cells: list[list[Picture | None]] = []
    for index, frame in zip(picks, frames, strict=True):
        # The last frames have no partner ahead: the one before serves.
        other = shown.source.load(partners.get(index, max(index - 1, 0)))
        cells.append([*_cells(frame, frames, shown.labels), _meeting(frame, other)])
    columns = ["colour", "depth", "truth", "masks", "depth against another frame"]
    grid = _grid([_captions(f, shown) for f in frames], columns, cells, width)
    colors = [
        ("meets", _MEETS),
        ("before its surface: contradicts", _BEFORE),
        ("behind it: hidden, or wrong", _BEHIND),
        ("not seen there", _ABSENT),
    ]
    legend = _legend(colors, grid.width)
    lines = [f"{report.scene}: {len(report.faults)} faults" if report.faults else f"{report.scene}: no faults"]
    told = [f"{fault.severity}  {fault.kind}  {fault.line}" for fault in report.faults]
    return _write(path, _stack([_text(lines, grid.width), grid, legend, _text(told, grid.width)]))


def _spread(count: int, rows: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(rows, count)).tolist()}) if count else []


def _captions(frame: Frame, shown: Shown) -> str:
    return f"{frame.name}\n{'train' if frame.index in shown.train else 'test'}"


def _cells(frame: Frame, frames: Sequence[Frame], labels: LabelSpace) -> list[Picture | None]:
    depth = None if frame.depth is None else frame.depth.numpy()
    span = depth_span(f.depth.numpy() for f in frames if f.depth is not None)
    photo = frame.color.numpy()
    return [
        photo,
        None if depth is None else depth_colors(depth, *span),
        _panoptic(frame.truth, labels, photo),
        _panoptic(frame.masks, labels, photo),
    ]


def _panoptic(found: PanopticMap | None, labels: LabelSpace, photo: Picture) -> Picture | None:
    if found is None:
        return None
    semantic, instance = found.semantic.numpy(), found.instance.numpy()
    if not instance.any():
        return class_picture(semantic, labels)
    colors = id_colors(int(instance.max()) + 1)
    table = {i: (int(r), int(g), int(b)) for i, (r, g, b) in enumerate(colors)}
    return object_picture(semantic, instance, labels, table, photo)


def _meeting(frame: Frame, other: Frame) -> Picture | None:
    if frame.depth is None or other.depth is None:
        return None
    error = relative_error(DepthView(frame.camera, frame.depth.numpy()), DepthView(other.camera, other.depth.numpy()))
    out = np.empty((*error.shape, 3), dtype=np.uint8)
    out[:] = _ABSENT
    out[np.abs(error) <= TOLERANCE] = _MEETS
    out[error < -TOLERANCE] = _BEFORE
    out[error > TOLERANCE] = _BEHIND
    return out


def _from_above(shown: Shown, width: int) -> Image.Image:
    """The room without what lies above the cameras, and the cameras' path; "up" is the mean of what they hold as up."""
    cameras = [shown.source.camera(i) for i in range(len(shown.source))]
    centres = np.stack([c.position.numpy() for c in cameras]).astype(np.float64)
    up = -np.mean([c.rotation.numpy()[1] for c in cameras], axis=0)
    up /= max(float(np.linalg.norm(up)), 1e-9)
    top = float(np.median(centres @ up)) + 0.3
    points, colors = _cloud(shown, cameras)
    below = points @ up < top
    points, colors = points[below], colors[below]
    order = np.argsort(points @ up)
    points, colors = points[order], colors[order]
    plane = _upright(np.concatenate([points, centres]), up)
    flat, path = points @ plane, centres @ plane
    low, high = _extent(np.concatenate([flat, path]))
    low, high = np.minimum(low, path.min(0)) - 0.2, np.maximum(high, path.max(0)) + 0.2
    scale = min(width / max(high[0] - low[0], 0.1), 700 / max(high[1] - low[1], 0.1))
    size = [max(1, int(v)) for v in (high - low) * scale]
    sheet = Image.new("RGB", (width + 2 * _MARGIN, size[1] + 3 * _LINE + _MARGIN), _PAPER)
    picture = np.full((size[1], size[0], 3), 236, dtype=np.uint8)
    at = np.floor((flat - low) * scale).astype(np.int64)
    inside = ((at >= 0) & (at < size)).all(axis=1)
    at, colors = at[inside], colors[inside]
    for x, y in itertools.product(range(3), range(3)):  # a point fills 3 x 3 pixels; the highest comes last
        picture[np.minimum(at[:, 1] + y, size[1] - 1), np.minimum(at[:, 0] + x, size[0] - 1)] = colors
    sheet.paste(Image.fromarray(picture), (_MARGIN, _LINE + 8))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 4), "from above: depth in its colours, the camera's path", fill=_INK, font=_font(13))
    ends = [(_MARGIN + float(x), _LINE + 8 + float(y)) for x, y in (path - low) * scale]
    draw.line(ends, fill=_FAINT, width=1)
    for index, (x, y) in enumerate(ends):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_TRAIN if index in shown.train else _TEST, outline=_PAPER)
    foot = size[1] + _LINE + 16
    draw.line((_MARGIN, foot + 8, _MARGIN + scale, foot + 8), fill=_INK, width=3)
    draw.text((_MARGIN + scale + 8, foot), "1 m", fill=_INK, font=_font(13))
    x = _MARGIN + scale + 60
    for name, color in (("train", _TRAIN), ("test", _TEST)):
        draw.ellipse((x, foot + 4, x + 8, foot + 12), fill=color)
        draw.text((x + 14, foot), name, fill=_INK, font=_font(13))
        x += 70
    return sheet


def _upright(points: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions [3, 2], right and down, of a picture from above in which the walls are upright: of least area."""
    aside = np.eye(3)[int(np.abs(up).argmin())]
    first = np.cross(up, aside)
    first /= np.linalg.norm(first)
    second = np.cross(first, up)
    some = points[:: max(1, len(points) // 5000)]
    best: tuple[float, NDArray[np.float64]] | None = None
    for angle in np.radians(np.arange(0, 180, 2)):
        right, down = np.cos(angle) * first + np.sin(angle) * second, np.cos(angle) * second - np.sin(angle) * first
        plane = np.stack([right, down], axis=1)
        low, high = _extent(some @ plane)
        wide, tall = high - low
        if tall <= wide and (best is None or wide * tall < best[0]):
            best = (float(wide * tall), plane)
    return np.asarray(np.stack([first, second], axis=1) if best is None else best[1], dtype=np.float64)


def _extent(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corner of all but the outer hundredths."""
    low, high = np.percentile(flat, [0.5, 99.5], axis=0)
    return low, high


def _cloud(shown: Shown, cameras: Sequence[Camera]) -> tuple[NDArray[np.float64], Picture]:
    """World points [P, 3], metres, and their colours [P, 3], from the depth of some frames."""
    points: list[NDArray[np.float64]] = [np.zeros((0, 3))]
    colors: list[Picture] = [np.zeros((0, 3), dtype=np.uint8)]
    for index in _spread(len(cameras), _FROM_ABOVE):
        frame = shown.source.load(index)
        if frame.depth is None:
            continue
        step = max(1, math.isqrt(frame.depth.numel() // _POINTS_PER_FRAME))
        some = (slice(step // 2, None, step), slice(step // 2, None, step))
        measured = (frame.depth > 0)[some]
        points.append(frame.camera.unproject(frame.depth)[some][measured].numpy().astype(np.float64))
        colors.append(frame.color[some][measured].numpy())
    return np.concatenate(points), np.concatenate(colors)


# ------------------------------------------------------------------------------------------------------------ drawing


def _grid(
    names: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Picture | None]], width: int
) -> Image.Image:
    photo = cells[0][0]
    assert photo is not None
    height = round(width * photo.shape[0] / photo.shape[1])
    font = _font(13)
    label = 12 + max(math.ceil(font.getlength(line)) for name in names for line in name.split("\n"))
    total = 2 * _MARGIN + label + len(columns) * (width + _GAP) - _GAP
    sheet = Image.new("RGB", (total, 26 + len(cells) * (height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for c, column in enumerate(columns):
        draw.text((_MARGIN + label + c * (width + _GAP), 4), column, fill=_INK, font=font)
    for r, (name, row) in enumerate(zip(names, cells, strict=True)):
        y = 26 + r * (height + _GAP)
        draw.multiline_text((_MARGIN, y + height // 2 - 16), name, fill=_FAINT, font=font)
        for c, cell in enumerate(row):
            x = _MARGIN + label + c * (width + _GAP)
            if cell is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_ABSENT)
                continue
            # Label colours are not mixed at edges.
            rule = Image.Resampling.LANCZOS if c < 2 else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(np.ascontiguousarray(cell)).resize((width, height), rule), (x, y))
    return sheet


def _legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    sheet = Image.new("RGB", (width, _LINE + 8), _PAPER)
    draw, x = ImageDraw.Draw(sheet), float(_MARGIN)
    for name, color in entries:
        draw.rectangle((x, 6, x + 13, 19), fill=color, outline=_INK)
        draw.text((x + 19, 4), name, fill=_INK, font=_font(13))
        x += 19 + _font(13).getlength(name) + 18
    return sheet


def _text(lines: Sequence[str], width: int) -> Image.Image:
    """Lines, wrapped at words."""
    font, wrapped = _font(13), list[str]()
    for line in lines:
        current = ""
        for word in line.split():
            if current and font.getlength(f"{current} {word}") > width - 2 * _MARGIN:
                wrapped.append(current)
                current = "    " + word
            else:
                current = f"{current} {word}" if current else word
        wrapped.append(current)
    sheet = Image.new("RGB", (width, _LINE * len(wrapped) + 12), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, line in enumerate(wrapped):
        draw.text((_MARGIN, 6 + place * _LINE), line, fill=_INK, font=font)
    return sheet


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts) + _MARGIN), _PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _write(path: Path, sheet: Image.Image) -> Path:
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are written as PNG: give a name that ends in .png")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    with replacing(path) as stream:
        stream.write(buffer.getvalue())
    return path


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow was built without FreeType: install the wheel from PyPI")
    return font
