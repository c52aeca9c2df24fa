"""Charts as SVG text: lines on logarithmic axes, and stacked bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#0b6e99", "#c2571a", "#6b4fa0", "#3f8f4f", "#a03060", "#8a8a8a")
_FONT = "font-family='system-ui,sans-serif'"


def page(panels: Sequence[str], width: int, height: int) -> str:
    """Panels of equal size side by side."""
    body = "".join(f"<g transform='translate({i * width},0)'>{panel}</g>" for i, panel in enumerate(panels))
    total = width * len(panels)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {total} {height}' width='{total}' height='{height}'>"
        f"<rect width='{total}' height='{height}' fill='white'/>{body}</svg>\n"
    )


def lines(title: str, x_name: str, series: Mapping[str, Mapping[float, float]], width: int, height: int) -> str:
    """One line per series of y by x, both logarithmic; the name stands at the line's end."""
    left, right, top, bottom = 56, 110, 40, 44
    xs = sorted({x for points in series.values() for x in points})
    ys = [y for points in series.values() for y in points.values()]
    if not ys:
        return text(width / 2, height / 2, "nothing measured", anchor="middle")
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    first, last = math.log(xs[0]), math.log(max(xs[-1], xs[0] * 1.001))

    def px(x: float) -> float:
        return left + (math.log(x) - first) / (last - first) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (math.log10(y) - low) / max(high - low, 1) * (height - top - bottom)

    out = [text(left, 22, title, size=14, bold=True)]
    for power in range(low, high + 1):
        y = py(10**power)
        out.append(f"<line x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}' stroke='#dddddd'/>")
        out.append(text(left - 6, y + 4, f"{10.0**power:g}", anchor="end"))
    out += [text(px(x), height - bottom + 16, f"{x:g}", anchor="middle") for x in xs]
    out.append(text((left + width - right) / 2, height - 10, x_name, anchor="middle"))
    ends: list[float] = []
    for (name, points), color in zip(series.items(), COLORS, strict=False):
        if not points:
            continue
        where = [(px(x), py(y)) for x, y in sorted(points.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        out.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='2'/>")
        out += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>" for x, y in where]
        label = where[-1][1]
        while any(abs(label - other) < 13 for other in ends):
            label += 4
        ends.append(label)
        out.append(text(where[-1][0] + 8, label + 4, name, color=color))
    return "".join(out)


def bars(title: str, rows: Sequence[tuple[str, Mapping[str, float], str]], width: int, height: int) -> str:
    """One bar of full length per row (name, parts, note), cut in proportion to its parts; a legend below."""
    left, right, top, bottom = 170, 90, 40, 44
    names = list(dict.fromkeys(name for _, parts, _ in rows for name in parts))
    colors = dict(zip(names, COLORS, strict=False))
    out = [text(12, 22, title, size=14, bold=True)]
    step = min(34.0, (height - top - bottom) / max(len(rows), 1))
    for i, (name, parts, note) in enumerate(rows):
        y, x = top + i * step, float(left)
        out.append(text(left - 8, y + step * 0.55, name, anchor="end"))
        total = sum(max(part, 0.0) for part in parts.values()) or 1.0
        for part, value in parts.items():
            length = max(value, 0.0) / total * (width - left - right)
            out.append(
                f"<rect x='{x:.1f}' y='{y:.1f}' width='{length:.1f}' height='{step * 0.7:.1f}' fill='{colors[part]}'/>"
            )
            if length > 34:
                share = f"{100 * max(value, 0.0) / total:.0f} %"
                out.append(text(x + length / 2, y + step * 0.5, share, anchor="middle", color="white"))
            x += length
        out.append(text(width - right + 8, y + step * 0.55, note))
    x = 12.0
    for name in names:
        out.append(f"<rect x='{x:.1f}' y='{height - 24}' width='11' height='11' fill='{colors[name]}'/>")
        out.append(text(x + 16, height - 14, name))
        x += 28 + 6.6 * len(name)
    return "".join(out)


def text(
    x: float, y: float, what: str, size: int = 11, anchor: str = "start", color: str = "#222222", bold: bool = False
) -> str:
    """A line of text."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' fill='{color}'{weight} {_FONT}>"
        f"{escape(what)}</text>"
    )
