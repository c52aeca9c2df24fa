"""Checks a scene: every fault of its files and of what they show, not only the first.

Where a reader would stop, the check goes on. Geometry is judged by what the depth of one frame looks like from another:
see :mod:`panbench.data.check_geometry`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from panbench.data.check_faults import Faults, Report, count
from panbench.data.check_files import Inventory, check_labels, take_stock
from panbench.data.check_frames import check_frames
from panbench.data.detect import ANY_DEPTH, Found, mask_sets, open_found
from panbench.data.preview import Shown
from panbench.data.scannet_reader import ScanNetSource
from panbench.errors import UserError
from panbench.scene import FrameSource, LabelSpace, Scene

_WIDTH = 640  # pictures are compared at this width at most
_PAIRS, _PAIRS_QUICK = 24, 8
_QUICK = 12  # couples of neighbouring frames


def check_scene(found: Found, *, quick: bool = False, begin: Callable[[int], Callable[[], object]]) -> Report:
    """Check one scene.

    Args:
        found: its folder and layout.
        quick: decode twelve couples of neighbouring frames only, spread over the path; text files and the headers of
            all images are read all the same.
        begin: called with the number of frames that will be decoded; what it returns is called after each.

    Returns:
        The report; faults that are errors come first.
    """
    faults = Faults()
    check = _check_exported if found.layout == "scannet" else _check_other
    frames, looked_at, measures = check(found, quick, faults, begin)
    return Report(
        scene=found.folder.name,
        folder=str(found.folder),
        layout=found.layout,
        frames=frames,
        looked_at=looked_at,
        faults=tuple(sorted(faults.found, key=lambda fault: fault.severity == "warning")),
        measures={name: round(value, 4) for name, value in measures.items()},
    )


def summary(report: Report) -> str:
    """One line: how much was looked at, how depth agrees, how many faults."""
    m = report.measures
    parts = [f"{count(report.frames, 'frame')}, {report.looked_at} decoded"]
    if "depth_median_m" in m:
        parts.append(f"median depth {m['depth_median_m']:.2f} m, {m['depth_holes']:.0%} without")
    if "agreeing" in m:
        parts.append(
            f"depth of {count(int(m['pairs']), 'pair')} of frames agrees in {m['agreeing']:.1%} of what both see"
        )
        parts[-1] += f" (median error {m['depth_error']:.2%})"
    errors, warnings = report.errors, len(report.faults) - report.errors
    parts.append(f"{count(errors, 'error')}, {count(warnings, 'warning')}" if report.faults else "no faults")
    return "; ".join(parts)


def to_show(found: Found) -> Shown:
    """What there is to show of a scene: as its reader opens it with its first mask set; if the reader refuses, the
    frames that are whole.

    Raises:
        UserError: there is nothing to show.
    """
    try:
        masks = next(iter(mask_sets(found.folder)), None)
        scene = _open_small(found, masks)
        return Shown(scene.source, scene.labels, frozenset(scene.train))
    except UserError:
        if found.layout != "scannet":
            raise
        stock = take_stock(found.folder, Faults())
        source = _whole_source(stock, Faults())
        if source is None:
            raise
        train = frozenset(i for i, f in enumerate(source.files) if f.number in stock.train)
        return Shown(source, stock.labels or LabelSpace(found.folder.name, ()), train)


def _check_exported(
    found: Found, quick: bool, faults: Faults, begin: Callable[[int], Callable[[], object]]
) -> tuple[int, int, dict[str, float]]:
    stock = take_stock(found.folder, faults)
    source = _whole_source(stock, faults)
    picks = _pick(len(stock.frames) if source is None else len(source), quick)
    advance = begin(len(picks))
    for index in picks:
        check_labels(stock, (stock.frames if source is None else source.files)[index].number, faults)
    if source is None:
        return len(stock.names), 0, {}

    def place(index: int, what: str) -> str:
        return str(found.folder / {"pose": "pose", "depth": "depth"}.get(what, "color"))

    pairs = _PAIRS_QUICK if quick else _PAIRS
    return len(stock.names), len(picks), check_frames(source, picks, faults, place, None, pairs, advance)


def _whole_source(stock: Inventory, faults: Faults) -> ScanNetSource | None:
    """The frames of which all files are whole as far as their headers tell; None without any."""
    spoiled = {n for f in faults.found if f.kind in ("unreadable", "image-size") for n in f.frames}
    files = [f for f in stock.frames if f.name not in spoiled]
    if stock.depth is None:
        files = [replace(f, depth=None) for f in files]
    if not files or stock.color is None:
        return None
    labels = stock.labels or LabelSpace(stock.folder.name, ())
    size = _working_size(stock.color.width, stock.color.height)
    return ScanNetSource(files, stock.color, stock.depth, size, labels, ANY_DEPTH, cache_bytes=0)


def _check_other(
    found: Found, quick: bool, faults: Faults, begin: Callable[[int], Callable[[], object]]
) -> tuple[int, int, dict[str, float]]:
    """A layout that is checked through its reader: files up to the reader's first fault, frames in full."""
    masks = next(iter(mask_sets(found.folder)), None)
    try:
        scene = _open_small(found, masks)
    except UserError as error:
        faults.add_error("unreadable", error)
        return 0, 0, {}
    source: FrameSource = scene.source
    picks = _pick(len(source), quick)
    pairs = _PAIRS_QUICK if quick else _PAIRS

    def place(index: int, what: str) -> str:
        return str(found.folder / f"masks_{masks}" if what == "masks" else found.folder)

    labels = scene.labels if masks else None
    return len(source), len(picks), check_frames(source, picks, faults, place, labels, pairs, begin(len(picks)))


def _open_small(found: Found, masks: str | None) -> Scene:
    scene = open_found(found, masks)
    first = scene.source.camera(0)
    size = _working_size(first.width, first.height)
    return scene if size == (first.width, first.height) else open_found(found, masks, size)


def _working_size(width: int, height: int) -> tuple[int, int]:
    return (width, height) if width <= _WIDTH else (_WIDTH, max(1, round(height * _WIDTH / width)))


def _pick(frames: int, quick: bool) -> list[int]:
    """Indices of the frames to decode: all, or couples of neighbours spread over the path."""
    if not quick or frames <= 2 * _QUICK:
        return list(range(frames))
    first = {round(k * (frames - 2) / (_QUICK - 1)) for k in range(_QUICK)}
    return sorted({i for k in first for i in (k, k + 1)})
