"""The contact sheet: test views in rows, what is known of each in columns, and a legend."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panbench.metrics.functional.counts import PairCounts, concatenate, count_pairs, group_sum
from panbench.scene import VOID, LabelSpace, id_colors
from panbench.training.files import replacing

Labels = NDArray[np.integer]
Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

COLUMNS = ("photo", "render", "depth", "normal", "semantic", "instance", "ground truth", "error")

_PAPER, _INK, _FAINT = (250, 250, 248), (30, 32, 36), (120, 124, 130)
_ABSENT = (226, 227, 224)
_RIGHT, _WRONG_CLASS, _WRONG_OBJECT, _UNSCORED = (96, 174, 120), (214, 62, 52), (240, 165, 40), (60, 62, 68)
_GAP, _MARGIN, _HEADER, _LINE = 4, 16, 26, 20


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One test view; all maps [H, W] or [H, W, 3] of one size. None leaves a column empty.

    Attributes:
        name: frame name.
        photo, render: uint8 RGB.
        depth: rendered z-depth, metres, 0 = none.
        normal: camera-space unit normals, zero = none.
        semantic, instance: predicted class and scene-level object id.
        true_semantic, true_instance: ground truth.
    """

    name: str
    photo: Picture
    semantic: Labels
    instance: Labels
    render: Picture | None = None
    depth: NDArray[np.floating] | None = None
    normal: NDArray[np.floating] | None = None
    true_semantic: Labels | None = None
    true_instance: Labels | None = None


@dataclass(frozen=True, eq=False)
class ObjectColors:
    """The colour of every object. A predicted object takes that of the true object that it overlaps most.

    Colours of true objects follow their ids alone, so that they are the same for all methods on a scene.

    Attributes:
        matched: predicted id → true id, one to one, largest overlap first.
        true, predicted: colour by id.
    """

    matched: dict[int, int]
    true: dict[int, Color]
    predicted: dict[int, Color]

    @classmethod
    def of(cls, counts: PairCounts) -> ObjectColors:
        """Colours of all objects that are counted."""
        matched = _matched(counts)
        true = np.unique(counts.true_id[counts.true_id > 0]).tolist()
        predicted = np.unique(counts.pred_id[counts.pred_id > 0]).tolist()
        own = [p for p in predicted if p not in matched]
        colors = [(int(r), int(g), int(b)) for r, g, b in id_colors(1 + len(true) + len(own))[1:]]
        of_true = dict(zip(true, colors, strict=False))
        of_predicted = {p: of_true[t] for p, t in matched.items()} | dict(zip(own, colors[len(true) :], strict=True))
        return cls(matched, of_true, of_predicted)

    @classmethod
    def of_rows(cls, rows: Sequence[SheetRow]) -> ObjectColors:
        """Colours of the objects that some views show."""
        return cls.of(_count(rows))


def contact_sheet(
    rows: Sequence[SheetRow],
    labels: LabelSpace,
    path: Path,
    *,
    title: str = "",
    width: int = 220,
    objects: ObjectColors | None = None,
    span: tuple[float, float] | None = None,
) -> Path:
    """Draw the sheet and write it as PNG.

    An object has one colour in all views, so that "instance" and "ground truth" can be compared by eye. Depth has one
    scale for the whole sheet.

    Args:
        rows: the views, from top to bottom; at least one.
        labels: for colours and the legend.
        path: PNG to write (replaced in one piece).
        title: line above the sheet.
        objects: colours of objects; None: by what the views show.
        span: depth of the first and the last colour, metres; None: by the views' depth.
        width: of one cell, pixels.

    Raises:
        ValueError: without rows.
        OSError: if the file cannot be written.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one view")
    objects = objects or ObjectColors.of_rows(rows)
    span = span or depth_span(row.depth for row in rows if row.depth is not None)
    cells = [_cells(row, labels, objects, span) for row in rows]
    sheet = _lay_out([row.name for row in rows], cells, _legend(rows, labels), title, width, span)
    with replacing(path) as stream:
        buffer = io.BytesIO()
        sheet.save(buffer, format="PNG", optimize=True)
        stream.write(buffer.getvalue())
    return path


def match_objects(rows: Sequence[SheetRow]) -> dict[int, int]:
    """Predicted id → the true id it overlaps most over all views, one to one, largest overlap first."""
    return _matched(_count(rows))


def _count(rows: Sequence[SheetRow]) -> PairCounts:
    """Joint counts of some views; where the truth is not known it counts as void."""
    parts: list[PairCounts] = []
    for i, row in enumerate(rows):
        void = np.zeros_like(row.semantic)
        classes = void if row.true_semantic is None else row.true_semantic
        ids = void if row.true_instance is None else row.true_instance
        parts.append(count_pairs(classes, ids, row.semantic, row.instance, frame=i))
    return concatenate(parts)


def _matched(counts: PairCounts) -> dict[int, int]:
    both = (counts.pred_id > 0) & (counts.true_id > 0)
    (predicted, true), pixels = group_sum([counts.pred_id[both], counts.true_id[both]], counts.pixels[both])
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for i in np.argsort(-pixels, kind="stable"):
        p, t = int(predicted[i]), int(true[i])
        if p not in matched and t not in taken:
            matched[p] = t
            taken.add(t)
    return matched


def error_map(row: SheetRow, labels: LabelSpace, matched: Mapping[int, int]) -> Picture:
    """Colours [H, W, 3]: right, wrong class, right class but another object, or not scored (true void)."""
    assert row.true_semantic is not None
    assert row.true_instance is not None
    evaluated = np.zeros(labels.size, dtype=bool)
    evaluated[list(labels.evaluated_ids)] = True
    true_class = np.where(row.true_semantic < labels.size, row.true_semantic, VOID)
    table = np.zeros(1 + max(int(row.instance.max(initial=0)), *matched, 0), dtype=np.int64)
    for p, t in matched.items():
        table[p] = t
    wrong_class = row.semantic != row.true_semantic
    wrong_object = labels.is_thing()[true_class] & (table[row.instance] != row.true_instance)
    out = np.empty((*row.semantic.shape, 3), dtype=np.uint8)
    out[:] = _RIGHT
    out[wrong_object] = _WRONG_OBJECT
    out[wrong_class] = _WRONG_CLASS
    out[~evaluated[true_class]] = _UNSCORED
    return out


def depth_colors(depth: NDArray[np.floating], low: float, high: float) -> Picture:
    """Colours [H, W, 3] of a depth map: near is bright yellow, far is dark blue, none is grey."""
    x = np.clip((depth - low) / max(high - low, 1e-6), 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_DEPTH_RAMP))
    ramp = np.stack([np.interp(x, stops, _DEPTH_RAMP[:, c]) for c in range(3)], axis=-1)
    return np.where((depth > 0)[..., None], np.round(ramp), np.asarray(_ABSENT)).astype(np.uint8)


def normal_colors(normal: NDArray[np.floating]) -> Picture:
    """Colours [H, W, 3] of camera-space normals: right is red, up green, towards the camera blue; none is grey."""
    shown = np.round(127.5 * (normal * np.asarray([1.0, -1.0, -1.0]) + 1.0))
    absent = (np.abs(normal).sum(axis=-1) < 1e-3)[..., None]
    return np.where(absent, np.asarray(_ABSENT), np.clip(shown, 0, 255)).astype(np.uint8)


# From near to far, perceptually ordered: luminance falls all the way.
_DEPTH_RAMP = np.asarray(
    [(252, 236, 150), (250, 182, 92), (232, 116, 88), (178, 68, 116), (108, 44, 124), (48, 30, 96), (14, 14, 46)],
    dtype=np.float64,
)


def class_picture(semantic: Labels, labels: LabelSpace) -> Picture:
    """Classes [H, W] in their colours [H, W, 3]; those outside the table are void."""
    return labels.colors()[np.where(semantic < labels.size, semantic, VOID)]


def object_picture(
    semantic: Labels, instance: Labels, labels: LabelSpace, colors: Mapping[int, Color], photo: Picture | None = None
) -> Picture:
    """Objects in their colours with dark outlines over pale class colours of the stuff; on a hint of the photo."""
    pale = (0.35 * labels.colors() + 0.65 * 235).astype(np.uint8)
    pale[VOID] = 40
    out = pale[np.where(semantic < labels.size, semantic, VOID)]
    for number in np.unique(instance[instance > 0]):
        out[instance == number] = colors[int(number)]
    if photo is not None:
        out = _shaded(out, photo, 0.82)
    edge = np.zeros(instance.shape, dtype=bool)
    edge[:, 1:] |= instance[:, 1:] != instance[:, :-1]
    edge[1:] |= instance[1:] != instance[:-1]
    out[edge] = _INK
    return out


def depth_span(maps: Iterable[NDArray[np.floating]]) -> tuple[float, float]:
    """Depth of the first and the last colour for some depth maps, metres: all but the outer hundredths."""
    values = [depth[depth > 0].ravel() for depth in maps]
    everything = np.concatenate(values) if values else np.zeros(0)
    if everything.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(everything, [1, 99])
    return float(low), float(max(high, low + 0.1))


def _cells(row: SheetRow, labels: LabelSpace, objects: ObjectColors, span: tuple[float, float]) -> list[Picture | None]:
    truth = error = None
    if row.true_semantic is not None and row.true_instance is not None:
        truth = object_picture(row.true_semantic, row.true_instance, labels, objects.true, row.photo)
        error = _shaded(error_map(row, labels, objects.matched), row.photo, 0.72)
    return [
        row.photo,
        row.render,
        None if row.depth is None else depth_colors(row.depth, *span),
        None if row.normal is None else normal_colors(row.normal),
        class_picture(row.semantic, labels),
        object_picture(row.semantic, row.instance, labels, objects.predicted, row.photo),
        truth,
        error,
    ]


def _shaded(color: Picture, photo: Picture, strength: float) -> Picture:
    """Flat colours with some of the photo's luminance, so that shapes stay readable."""
    grey = photo.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
    return np.clip(strength * color + (1 - strength) * grey[..., None], 0, 255).astype(np.uint8)


def _legend(rows: Sequence[SheetRow], labels: LabelSpace) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and colour of every class that occurs on the sheet, largest first."""
    counts = np.zeros(labels.size, dtype=np.int64)
    for row in rows:
        for semantic in (row.semantic, row.true_semantic):
            if semantic is not None:
                seen = semantic[(semantic > VOID) & (semantic < labels.size)]
                counts += np.bincount(seen.ravel(), minlength=labels.size)
    names, colors = labels.names(), labels.colors()
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0]
    return [(names[i], (int(colors[i][0]), int(colors[i][1]), int(colors[i][2]))) for i in order]


def _lay_out(
    names: Sequence[str],
    cells: Sequence[Sequence[Picture | None]],
    legend: Sequence[tuple[str, tuple[int, int, int]]],
    title: str,
    width: int,
    span: tuple[float, float],
) -> Image.Image:
    photo = cells[0][0]
    assert photo is not None
    height = round(width * photo.shape[0] / photo.shape[1])
    text, strong = _font(13), _font(15)
    label = 12 + max(math.ceil(text.getlength(name)) for name in names)
    total = 2 * _MARGIN + label + len(COLUMNS) * (width + _GAP) - _GAP
    errors = [
        ("right", _RIGHT),
        ("wrong class", _WRONG_CLASS),
        ("right class, wrong object", _WRONG_OBJECT),
        ("not scored", _UNSCORED),
    ]
    lines = _wrap(legend, text, total - 2 * _MARGIN - _LEGEND_TITLE)
    top = _MARGIN + (28 if title else 0)
    bottom = top + _HEADER + len(cells) * (height + _GAP) + 10
    sheet = Image.new("RGB", (total, bottom + (len(lines) + 1) * _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 2), title, fill=_INK, font=strong)
    for c, name in enumerate(COLUMNS):
        caption = f"{name} {span[0]:.1f} to {span[1]:.1f} m" if name == "depth" else name
        draw.text((_MARGIN + label + c * (width + _GAP), top + 4), caption, fill=_INK, font=text)
    for r, (name, row) in enumerate(zip(names, cells, strict=True)):
        y = top + _HEADER + r * (height + _GAP)
        draw.text((_MARGIN, y + height // 2 - 8), name, fill=_FAINT, font=text)
        for c, cell in enumerate(row):
            x = _MARGIN + label + c * (width + _GAP)
            if cell is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_ABSENT)
                continue
            # Label colours are not mixed at edges; photographs and renders are.
            smooth = COLUMNS[c] in ("photo", "render", "depth", "normal")
            rule = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(np.ascontiguousarray(cell)).resize((width, height), rule), (x, y))
    for i, line in enumerate([*lines, errors]):
        y = bottom + i * _LINE
        head = "classes" if i == 0 and lines else "error" if i == len(lines) else ""
        draw.text((_MARGIN, y), head, fill=_FAINT, font=text)
        x = _MARGIN + _LEGEND_TITLE
        for name, color in line:
            draw.rectangle((x, y + 2, x + 13, y + 15), fill=color, outline=_INK)
            draw.text((x + 19, y), name, fill=_INK, font=text)
            x += _entry_width(name, text)
    return sheet


_LEGEND_TITLE = 64


def _wrap(
    legend: Sequence[tuple[str, tuple[int, int, int]]], font: ImageFont.FreeTypeFont, width: int
) -> list[list[tuple[str, tuple[int, int, int]]]]:
    lines: list[list[tuple[str, tuple[int, int, int]]]] = []
    used = width
    for name, color in legend:
        need = _entry_width(name, font)
        if used + need > width:
            lines.append([])
            used = 0
        lines[-1].append((name, color))
        used += need
    return lines


def _entry_width(name: str, font: ImageFont.FreeTypeFont) -> int:
    return 19 + math.ceil(font.getlength(name)) + 18


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("this Pillow was built without FreeType; install the wheel from PyPI")
    return font
