"""What there is of a scene, told without decoding more than a few frames."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from panbench.data.detect import LAYOUTS, Found, mask_sets, open_found
from panbench.errors import UserError
from panbench.masks.mask_set import read_manifest

_LOOKED_AT = 6  # frames whose depth tells the range


@dataclass(frozen=True)
class MaskInfo:
    """A mask set: its name, how many frames have masks, and what its manifest says of its origin ("" without one)."""

    name: str
    frames: int
    generator: str


@dataclass(frozen=True)
class SceneInfo:
    """What there is of one scene.

    Attributes:
        name, folder, layout: which scene, where, in which layout.
        problem: why its reader refuses it, else "". What follows is then empty.
        synthetic: it was rendered.
        frames, train, test: how many frames are used, and how they are split.
        size: (width, height) of the pictures.
        focal, center: of the cameras, pixels.
        depth: smallest, median and largest depth of a few frames, metres; () without depth.
        truth: there are ground-truth labels.
        things, stuff: names of the classes.
        masks: the mask sets.
        points: number of vertices by PLY file.
    """

    name: str
    folder: str
    layout: str
    problem: str = ""
    synthetic: bool = False
    frames: int = 0
    train: int = 0
    test: int = 0
    size: tuple[int, int] = (0, 0)
    focal: tuple[float, float] = (0.0, 0.0)
    center: tuple[float, float] = (0.0, 0.0)
    depth: tuple[float, ...] = ()
    truth: bool = False
    things: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()
    masks: tuple[MaskInfo, ...] = ()
    points: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "points": dict(self.points)}

    def lines(self) -> list[str]:
        """For people."""
        out = [
            f"{self.name}: {LAYOUTS[self.layout][0]}" + (", SYNTHETIC" if self.synthetic else ""),
            f"  {self.folder}",
        ]
        if self.problem:
            out.append(f"  cannot be opened: {self.problem}")
            out.append("  panbench data check tells everything that is wrong with it")
        else:
            f, c = self.focal, self.center
            out.append(
                f"  frames   {self.frames} ({self.train} train, {self.test} test), {self.size[0]}x{self.size[1]}"
            )
            out.append(f"  camera   focal length {f[0]:.2f} {f[1]:.2f}, centre {c[0]:.2f} {c[1]:.2f} pixels")
            span = "{:.2f} to {:.2f} m, median {:.2f} m".format(*self.depth) if self.depth else "none"
            out.append(f"  depth    {span}")
            out.append(f"  truth    {'yes' if self.truth else 'none'}")
            out.append(f"  things   {', '.join(self.things) or 'none'}")
            out.append(f"  stuff    {', '.join(self.stuff) or 'none'}")
        for mask in self.masks:
            out.append(
                f"  masks    {mask.name}: {mask.frames} frames" + (f", {mask.generator}" if mask.generator else "")
            )
        for name, points in self.points:
            out.append(f"  points   {name}: {points:,} vertices")
        return out


def scene_info(found: Found) -> SceneInfo:
    """Look at a scene. What its reader refuses is told as ``problem``, not raised."""
    folder = found.folder
    masks = tuple(_mask_info(folder / f"masks_{name}") for name in mask_sets(folder))
    points = tuple(
        (path.relative_to(folder).as_posix(), count)
        for path in sorted([*folder.glob("*.ply"), *folder.glob("scans/*.ply")])
        if (count := _vertices(path)) is not None
    )
    try:
        scene = open_found(found)
        source, first = scene.source, scene.source.camera(0)
        picks = sorted({round(i) for i in np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).tolist()})
        frames = [source.load(i) for i in picks]
    except UserError as error:
        return SceneInfo(folder.name, str(folder), found.layout, str(error), masks=masks, points=points)
    depths = [f.depth[f.depth > 0].numpy() for f in frames if f.depth is not None]
    every = np.concatenate(depths) if depths else np.zeros(0)
    return SceneInfo(
        name=folder.name,
        folder=str(folder),
        layout=found.layout,
        synthetic=scene.synthetic,
        frames=len(source),
        train=len(scene.train),
        test=len(scene.test),
        size=(first.width, first.height),
        focal=(first.fx, first.fy),
        center=(first.cx, first.cy),
        depth=tuple(float(v) for v in (every.min(), every.max(), np.median(every))) if every.size else (),
        truth=any(f.truth is not None for f in frames),
        things=tuple(c.name for c in scene.labels.classes if c.thing),
        stuff=tuple(c.name for c in scene.labels.classes if not c.thing),
        masks=masks,
        points=points,
    )


def _mask_info(folder: Path) -> MaskInfo:
    frames = sum(1 for _ in (folder / "semantic_image").glob("*.png"))
    generator = ""
    if (folder / "manifest.json").is_file():
        try:
            manifest = read_manifest(folder / "manifest.json")
            generator = f"by {manifest.generator}, labels {manifest.labels}"
        except UserError as error:
            generator = str(error)
    return MaskInfo(folder.name.removeprefix("masks_"), frames, generator)


def _vertices(path: Path) -> int | None:
    """Number of vertices by the header of a PLY file; None if it has none."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    found = re.match(rb"ply\s.*?element vertex (\d{1,18})\s", head, re.DOTALL)
    return int(found[1]) if found else None
