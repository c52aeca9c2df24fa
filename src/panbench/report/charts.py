"""Charts as SVG text: no library, no script. Colours come from the page's style sheet, so both themes fit.

Every chart has a title and a description for readers who do not see it; the page puts its figures in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44
_LETTER = 6.3  # mean width of a letter of the labels
COLORS = 8  # series colours that the style sheet has


@dataclass(frozen=True)
class Point:
    """A point of a chart; ``sd`` is drawn as a bar up and down, nan for none."""

    x: float
    y: float
    sd: float = math.nan


@dataclass(frozen=True)
class Series:
    """Named points in one colour."""

    name: str
    points: tuple[Point, ...]
    color: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis: its title, whether it is logarithmic, names for whole positions instead of numbers, its own ticks."""

    title: str
    log: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2, 5 × 10ⁿ apart) from ``low`` to ``high``, about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 × 10ⁿ between ``low`` and ``high``; whole powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return fine if 2 <= len(fine) <= 7 else [10.0**p for p in powers if low <= 10.0**p <= high] or fine


def scatter(series: Sequence[Series], x: Axis, y: Axis, *, title: str, description: str) -> str:
    """Points with their names beside them."""
    frame = _Frame.around(series, x, y)
    marks: list[str] = []
    taken = [_box(frame.x(p.x) - 5, frame.y(p.y) - 5, 10, 10) for s in series for p in s.points]
    for s in series:
        for p in s.points:
            px, py = frame.x(p.x), frame.y(p.y)
            marks.append(_bar(frame, p, s.color))
            marks.append(_dot(px, py, 4.5, s.color, f"{s.name}: {x.title} {_text(p.x)}, {y.title} {_text(p.y)}"))
            left, base, anchor, box = _label(px, py, s.name, taken)
            taken.append(box)
            if abs(base - py) > 22:
                marks.append(f'<line class="leader" x1="{px:.1f}" x2="{left:.1f}" y1="{py:.1f}" y2="{base - 4:.1f}"/>')
            marks.append(_write("name", left, base, _short(s.name), anchor))
    return _svg("scatter", frame.axes() + "".join(marks), title, description)


def lines(series: Sequence[Series], x: Axis, y: Axis, *, title: str, description: str) -> str:
    """Points joined in order, with the name of each series at its end."""
    longest = max((len(_short(s.name)) for s in series), default=0)
    frame = _Frame.around(series, x, y, right=min(150, 12 + round(_LETTER * longest)))
    marks: list[str] = []
    ends: list[tuple[float, Series]] = []
    for s in series:
        path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in s.points)
        marks.append(f'<polyline class="line c{s.color}" points="{path}"/>')
        for p in s.points:
            where = x.names[round(p.x)] if x.names else _text(p.x)
            tip = f"{s.name}: {x.title} {where}, {y.title} {_text(p.y)}"
            marks += [_bar(frame, p, s.color), _dot(frame.x(p.x), frame.y(p.y), 3.5, s.color, tip)]
        if s.points:
            ends.append((frame.y(s.points[-1].y), s))
    below = -math.inf
    for at, s in sorted(ends, key=lambda end: end[0]):
        below = max(at + 4, below + 13)
        marks.append(_write(f"name t{s.color}", frame.x(s.points[-1].x) + 8, below, _short(s.name)))
    return _svg("lines", frame.axes() + "".join(marks), title, description)


@dataclass(frozen=True)
class _Frame:
    """The plotting area: from values to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    x_axis: Axis
    y_axis: Axis
    right: int

    @classmethod
    def around(cls, series: Sequence[Series], x: Axis, y: Axis, right: int = _RIGHT) -> _Frame:
        points = [p for s in series for p in s.points]
        xs = [p.x for p in points] or [0.0]
        spread = [0.0 if math.isnan(p.sd) else p.sd for p in points] or [0.0]
        ys = [p.y for p in points] or [0.0]
        y_low, y_high = (f(v + sign * d for v, d in zip(ys, spread, strict=True)) for f, sign in ((min, -1), (max, 1)))
        pad = 0.12 * (y_high - y_low) or max(0.02 * abs(y_high), 0.5)
        if x.names:
            x_low, x_high = -0.25, len(x.names) - 0.75
        elif x.log:
            wide = max((max(xs) / min(xs)) ** 0.12, 1.15)
            x_low, x_high = min(xs) / wide, max(xs) * wide
        else:
            wide = 0.06 * (max(xs) - min(xs)) or max(0.1 * abs(max(xs)), 0.5)
            x_low, x_high = min(xs) - wide, max(xs) + wide
        floor = max(y_low - pad, 0.0) if y_low >= 0 else y_low - pad
        return cls(x_low, x_high, floor, y_high + pad, x, y, right)

    def x(self, value: float) -> float:
        low, high, at = self.x_low, self.x_high, value
        if self.x_axis.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return _LEFT + (at - low) / (high - low) * (WIDTH - _LEFT - self.right)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> str:
        out: list[str] = []
        end, bottom = WIDTH - self.right, HEIGHT - _BOTTOM
        for value in nice_ticks(self.y_low, self.y_high):
            at = self.y(value)
            out.append(f'<line class="grid" x1="{_LEFT}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>')
            out.append(_write("tick", _LEFT - 7, at + 4, _text(value), "end"))
        for value, text in self._x_ticks():
            at = self.x(value)
            out.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            out.append(_write("tick", at, bottom + 17, _short(text, 12), "middle"))
        out.append(f'<line class="axis" x1="{_LEFT}" x2="{end}" y1="{bottom}" y2="{bottom}"/>')
        out.append(_write("title", (_LEFT + end) / 2, HEIGHT - 6, self.x_axis.title, "middle"))
        height = (_TOP + bottom) / 2
        out.append(
            f'<text class="title" transform="translate(13 {height:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_axis.title)}</text>"
        )
        return "".join(out)

    def _x_ticks(self) -> list[tuple[float, str]]:
        if self.x_axis.names:
            return [(float(i), name) for i, name in enumerate(self.x_axis.names)]
        if self.x_axis.ticks:
            return [(tick, _text(tick)) for tick in self.x_axis.ticks]
        ticks = log_ticks(self.x_low, self.x_high) if self.x_axis.log else nice_ticks(self.x_low, self.x_high)
        return [(tick, _text(tick)) for tick in ticks]


_Box = tuple[float, float, float, float]


def _box(left: float, top: float, width: float, height: float) -> _Box:
    return left, top, left + width, top + height


def _label(px: float, py: float, name: str, taken: Sequence[_Box]) -> tuple[float, float, str, _Box]:
    """Where the name of a point fits: beside it, above or below, else further away, where least is covered."""
    width = _LETTER * len(_short(name))
    places = [
        (px + 9, py + 4, "start", _box(px + 9, py - 7, width, 14)),
        (px - 9, py + 4, "end", _box(px - 9 - width, py - 7, width, 14)),
        (px, py - 10, "middle", _box(px - width / 2, py - 21, width, 14)),
        (px, py + 19, "middle", _box(px - width / 2, py + 8, width, 14)),
        (px + 9, py - 9, "start", _box(px + 9, py - 20, width, 14)),
        (px + 9, py + 17, "start", _box(px + 9, py + 6, width, 14)),
        (px - 9, py - 9, "end", _box(px - 9 - width, py - 20, width, 14)),
        (px - 9, py + 17, "end", _box(px - 9 - width, py + 6, width, 14)),
    ]
    for far in (26, 40, 54, 68):
        for dx, anchor in ((12, "start"), (-12, "end")):
            for y in (py - far, py + far):
                left = px + dx - (width if anchor == "end" else 0)
                places.append((px + dx, y + 4, anchor, _box(left, y - 7, width, 14)))
    area = _box(_LEFT, 2, WIDTH - _LEFT - 2, HEIGHT - _BOTTOM - 4)

    def cost(place: tuple[float, float, str, _Box]) -> float:
        box = place[3]
        outside = (
            max(area[0] - box[0], 0) + max(box[2] - area[2], 0) + max(area[1] - box[1], 0) + max(box[3] - area[3], 0)
        )
        return 20 * outside + sum(_overlap(box, other) for other in taken) + 0.2 * abs(place[1] - py)

    return min(places, key=cost)


def _overlap(a: _Box, b: _Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _bar(frame: _Frame, p: Point, color: int) -> str:
    if math.isnan(p.sd) or p.sd <= 0:
        return ""
    at, low, high = frame.x(p.x), frame.y(p.y - p.sd), frame.y(p.y + p.sd)
    return f'<line class="bar c{color}" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'


def _write(style: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, color: int, tip: str) -> str:
    return f'<circle class="mark c{color}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(tip)}</title></circle>'


def _svg(kind: str, inside: str, title: str, description: str) -> str:
    # The title stands in an attribute: a <title> of the whole drawing would pop up under the pointer everywhere.
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}. {escape(description)}"><desc>{escape(description)}</desc>{inside}</svg>'
    )


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
