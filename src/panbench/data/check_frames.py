"""Checks what the frames of a scene show, whatever files they come from: pictures, depth, poses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from panbench.data.check_faults import Faults
from panbench.data.check_files import check_masks
from panbench.data.check_geometry import (
    AS_READ,
    GOOD_FIT,
    LEAST_POINTS,
    Agreement,
    DepthView,
    agreement,
    best_reading,
    best_scale,
    pick_pairs,
    same_points,
)
from panbench.data.depth_image import read_depth
from panbench.data.images import read_color
from panbench.data.scannet_reader import ScanNetSource
from panbench.errors import UserError
from panbench.scene import Camera, Frame, FrameSource, LabelSpace

_BLUR = 0.1  # share of the scene's median sharpness
_EXPOSURE = 1.5  # brightness of the same points, frame to frame
_EXPOSURE_BLIND = 2.5  # mean brightness, frame to frame, where no points can be told to be the same
_SAME_PICTURE = 1.0  # mean difference of two small grey pictures, of 255
_HOLES, _HOLES_SCENE = 0.6, 0.4
_PLAUSIBLE = (0.15, 15.0)  # metres, median depth of a room
_UNIT = 1.15  # factor between depth and poses


@dataclass(frozen=True, eq=False)
class _Look:
    """What is kept of a frame that was decoded."""

    index: int
    sharpness: float
    digest: bytes
    small: NDArray[np.float32]
    holes: float
    depth: float


@dataclass(frozen=True, eq=False)
class _Step:
    """A frame and the next one: how their depth agrees, and the logarithm of the ratio of their brightness."""

    first: int
    fit: Agreement | None
    exposure: float
    blind: bool


def check_frames(
    source: FrameSource,
    picks: Sequence[int],
    faults: Faults,
    place: Callable[[int, str], str],
    labels: LabelSpace | None,
    pairs: int,
    advance: Callable[[], object],
) -> dict[str, float]:
    """Decode the frames ``picks`` once and look at them; ascending, neighbours being compared with each other.

    Args:
        source: whole frames.
        picks: indices to decode.
        faults: where to note what is found.
        place: file of a frame (index, "color" | "depth" | "pose" | "masks"), for messages.
        labels: label space of the masks that the source gives; None: they are not looked at.
        pairs: of how many pairs of frames the depth is compared to see whether the poses are read rightly.
        advance: called after each frame.

    Returns:
        Numbers of the scene; see :class:`panbench.data.check_faults.Report`.
    """
    cameras = [source.camera(i) for i in range(len(source))]
    looks: list[_Look] = []
    steps: list[_Step] = []
    before: tuple[int, Frame, NDArray[np.float32]] | None = None
    for index in picks:
        try:
            frame = source.load(index)
        except UserError as error:
            _tell_unreadable(source, index, error, faults)
            before = None
            advance()
            continue
        grey = frame.color.numpy().astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        looks.append(_look(index, frame, grey))
        if before is not None and before[0] == index - 1:
            steps.append(_compare(before[1], before[2], frame, grey, index - 1))
        if labels is not None and frame.masks is not None:
            check_masks(
                labels, frame.masks.semantic.numpy(), frame.masks.instance.numpy(), place(index, "masks"), frame.name,
                faults,
            )  # fmt: skip
        before = (index, frame, grey)
        advance()
    measures = _check_readings(source, [look.index for look in looks], cameras, faults, place, pairs, looks)
    trusted = measures.get("fit", 0.0) >= GOOD_FIT
    _check_path(source, cameras, steps if trusted else [], faults, place)
    _check_pictures(source, looks, steps, trusted, cameras, faults, place)
    return measures


def _tell_unreadable(source: FrameSource, index: int, error: UserError, faults: Faults) -> None:
    """Each damaged file of a frame, or what its source says of it."""
    told = False
    if isinstance(source, ScanNetSource):
        files = source.files[index]
        for file, read in ((files.color, read_color), (files.depth, read_depth)):
            try:
                if file is not None:
                    read(file)
            except UserError as damage:
                faults.add_error("unreadable", damage, [source.name(index)])
                told = True
    if not told:
        faults.add_error("unreadable", error, [source.name(index)])


def _look(index: int, frame: Frame, grey: NDArray[np.float32]) -> _Look:
    depth = None if frame.depth is None else frame.depth.numpy()
    measured = np.zeros(0) if depth is None else depth[depth > 0]
    return _Look(
        index=index,
        sharpness=_sharpness(grey),
        digest=hashlib.sha256(frame.color.numpy().tobytes()).digest(),
        small=_small(grey),
        holes=math.nan if depth is None else 1 - measured.size / depth.size,
        depth=float(np.median(measured)) if measured.size else math.nan,
    )


def _sharpness(grey: NDArray[np.float32]) -> float:
    """Variance of the Laplacian."""
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var()) if laplacian.size else 0.0


def _small(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture at about 40 x 30: means of blocks."""
    block = max(1, grey.shape[1] // 40)
    rows, columns = grey.shape[0] // block, grey.shape[1] // block
    return grey[: rows * block, : columns * block].reshape(rows, block, columns, block).mean(axis=(1, 3))


def _compare(first: Frame, grey: NDArray[np.float32], second: Frame, other: NDArray[np.float32], index: int) -> _Step:
    blind = math.log((float(other.mean()) + 4) / (float(grey.mean()) + 4))
    if first.depth is None or second.depth is None:
        return _Step(index, None, blind, blind=True)
    a, b = (DepthView(f.camera, f.depth.numpy()) for f in (first, second) if f.depth is not None)
    here, there = same_points(a, b)
    fit = agreement([(a, b)], AS_READ)
    if len(here[0]) < LEAST_POINTS // 2:
        return _Step(index, fit, blind, blind=True)
    ratio = (float(np.median(other[there])) + 4) / (float(np.median(grey[here])) + 4)
    return _Step(index, fit, math.log(ratio), blind=False)


def _check_readings(
    source: FrameSource,
    usable: Sequence[int],
    cameras: Sequence[Camera],
    faults: Faults,
    place: Callable[[int, str], str],
    most: int,
    looks: Sequence[_Look],
) -> dict[str, float]:
    """Whether poses and depth are read the right way; agreement of depth between frames."""
    depths = [look.depth for look in looks if not math.isnan(look.depth)]
    if not depths:
        return {}
    median = float(np.median(depths))
    holes = float(np.median([look.holes for look in looks]))
    measures = {"depth_median_m": median, "depth_holes": holes}
    pose_place, depth_place = place(looks[0].index, "pose"), place(looks[0].index, "depth")
    chosen = [(usable[a], usable[b]) for a, b in pick_pairs([cameras[i] for i in usable], most)]
    held: dict[int, DepthView] = {}
    for index in sorted({i for pair in chosen for i in pair}):
        depth = source.load(index).depth
        if depth is not None:
            held[index] = DepthView(cameras[index], depth.numpy())
    views = [(held[a], held[b]) for a, b in chosen if a in held and b in held]
    found = agreement(views, AS_READ)
    told, plausible = False, _PLAUSIBLE[0] < median < _PLAUSIBLE[1]
    if found.points >= LEAST_POINTS and found.fit < GOOD_FIT:
        # Depth of a wrong unit may be so coarse that it would fit any poses.
        reading, best = best_reading(views) if plausible else best_scale(views)
        if best.landed >= LEAST_POINTS and best.fit >= GOOD_FIT and best.fit > found.fit + 0.15:
            told = True
            if reading.inverse or not np.array_equal(reading.axes, AS_READ.axes):
                faults.add(
                    "camera-axes", "error", pose_place,
                    f"depth of two frames meets in {found.fit:.0%} of the points with the poses as {AS_READ.text}, "
                    f"and in {best.fit:.0%} as {reading.text}",
                    "convert the poses to camera to world with x right, y down, z forward",
                )  # fmt: skip
            if not 1 / _UNIT < reading.scale < _UNIT:
                _tell_scale(faults, reading.scale, median, pose_place, depth_place)
        elif found.landed >= LEAST_POINTS and plausible:
            faults.add(
                "inconsistent", "error", pose_place,
                f"depth of two frames meets in {found.fit:.0%} of the points only; no other reading is better",
                "check that poses, intrinsics and depth belong to these images",
            )  # fmt: skip
    if not told and not plausible:
        faults.add(
            "depth-scale", "error", depth_place, f"its median depth is {median:.3g} m, which no room has",
            "write depth as whole millimetres in 16 bit",
        )  # fmt: skip
    if found.landed >= LEAST_POINTS:
        measures |= {"pairs": len(views), "fit": found.fit, "agreeing": found.share, "depth_error": found.error}
    return measures


def _tell_scale(faults: Faults, scale: float, median: float, pose_place: str, depth_place: str) -> None:
    """Depth has to be multiplied by ``scale`` to fit the poses: which of the two is in the wrong unit?"""
    factor = _round_factor(scale)
    if _PLAUSIBLE[0] < median < _PLAUSIBLE[1] and not _PLAUSIBLE[0] < median * scale < _PLAUSIBLE[1]:
        faults.add(
            "pose-scale", "error", pose_place,
            f"positions are {factor} times too large for the depth, of which the median is {median:.2f} m",
            f"divide the positions of the poses by {factor}, so that they are in metres",
        )  # fmt: skip
        return
    faults.add(
        "depth-scale", "error", depth_place,
        f"depth fits the poses if it is multiplied by {factor}; its median as it is read is {median:.3g} m",
        f"multiply it by {factor}, so that it is in millimetres (or divide the positions of the poses)",
    )  # fmt: skip


def _round_factor(scale: float) -> str:
    """The factor, or the power of ten or five that it is within 5 % of."""
    near = min((10.0**p * m for p in range(-5, 6) for m in (1, 2, 4, 5)), key=lambda v: abs(math.log(v / scale)))
    return f"{near:g}" if abs(near / scale - 1) < 0.05 else f"{scale:.3g}"


def _check_path(
    source: FrameSource,
    cameras: Sequence[Camera],
    steps: Sequence[_Step],
    faults: Faults,
    place: Callable[[int, str], str],
) -> None:
    """Single frames that are out of place, by the path itself or by depth that meets no neighbour's."""
    if len(cameras) < 3:
        return
    centres = torch.stack([c.position for c in cameras]).double().numpy()
    moved = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    far = moved > max(0.5, 8 * float(np.median(moved)))
    bad = {int(k) for k in np.flatnonzero(far)}
    misfit = {
        s.first
        for s in steps
        if s.fit is not None and s.fit.landed >= LEAST_POINTS and s.fit.agreeing < 0.3 * s.fit.landed
    }
    for k in _odd_ones(bad, len(cameras)):
        faults.add(
            "pose-jump", "warning", place(k, "pose"), "lies far from the frames before and after it",
            "check its pose, or leave the frame out", [source.name(k)],
        )  # fmt: skip
    known = {s.first for s in steps}
    for k in _odd_ones(misfit, len(cameras)):
        alone = [e for e in (k - 1, k) if e in known]
        if k not in _odd_ones(bad, len(cameras)) and all(e in misfit for e in alone):
            faults.add(
                "pose-jump", "warning", place(k, "pose"), "its depth does not meet that of the frames beside it",
                "check its pose and that image and depth belong to it, or leave the frame out", [source.name(k)],
            )  # fmt: skip


def _odd_ones(bad: set[int], frames: int) -> list[int]:
    """Frames that sit between two bad steps (k - 1 → k → k + 1); a single bad step is laid to the frame behind it."""
    out: list[int] = []
    rest = sorted(bad)
    while rest:
        step = rest.pop(0)
        if rest and rest[0] == step + 1:
            rest.pop(0)
            out.append(step + 1)
        else:
            # The first frame of all is behind no step: a bad first step with a good second one is its own.
            out.append(0 if step == 0 and frames > 2 else step + 1)
    return out


def _check_pictures(
    source: FrameSource,
    looks: Sequence[_Look],
    steps: Sequence[_Step],
    trusted: bool,
    cameras: Sequence[Camera],
    faults: Faults,
    place: Callable[[int, str], str],
) -> None:
    """Blur, exposure, frozen pictures, holes in the depth."""
    if not looks:
        return
    usual = float(np.median([look.sharpness for look in looks]))
    for look in looks:
        if look.sharpness < _BLUR * usual:
            faults.add(
                "blur", "warning", place(look.index, "color"),
                f"far less sharp than the others (variance of the Laplacian under {_BLUR:.0%} of the median)",
                "leave the frame out if it is blurred", [source.name(look.index)],
            )  # fmt: skip
        if look.holes > _HOLES:
            faults.add(
                "depth-holes", "warning", place(look.index, "depth"), f"more than {_HOLES:.0%} have no depth",
                "leave the frame out, or go on knowing it", [source.name(look.index)],
            )  # fmt: skip
    holes = float(np.median([look.holes for look in looks]))
    if holes > _HOLES_SCENE:
        faults.add(
            "depth-holes", "warning", place(looks[0].index, "depth"),
            f"half of the frames have no depth in more than {holes:.0%} of their pixels",
            "check max range and units of the sensor; methods that need depth will suffer",
        )  # fmt: skip
    for a, b in pairwise(looks):
        if b.index - a.index > 1:
            continue
        same = a.digest == b.digest
        alike = a.small.shape == b.small.shape and float(np.abs(a.small - b.small).mean()) < _SAME_PICTURE
        if same or (alike and _apart(cameras[a.index], cameras[b.index])):
            faults.add(
                "duplicate", "warning", place(b.index, "color"),
                "the picture is the one of the frame before" + ("" if same else ", with another pose"),
                "remove the frame, or export the images again", [source.name(b.index)],
            )  # fmt: skip
    jumps: dict[int, float] = {}
    for step in steps:
        limit = _EXPOSURE_BLIND if step.blind or not trusted else _EXPOSURE
        if abs(step.exposure) > math.log(limit):
            jumps[step.first] = step.exposure
    for first in sorted(jumps):
        if first - 1 in jumps and jumps[first] * jumps[first - 1] < 0:
            continue  # back from a jump that has been told
        faults.add(
            "exposure", "warning", place(first + 1, "color"), "its brightness jumps against the frame before",
            "leave the frame out, or lock the exposure when recording", [source.name(first + 1)],
        )  # fmt: skip


def _apart(a: Camera, b: Camera) -> bool:
    """Whether two poses differ by more than 3 degrees or 5 cm."""
    cosine = (float(torch.trace(a.rotation @ b.rotation.T)) - 1) / 2
    return cosine < math.cos(math.radians(3)) or float((a.position - b.position).norm()) > 0.05
