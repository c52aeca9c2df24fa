"""Masks of other programs become a mask set of a scene: frames matched by name, classes by name, sizes checked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from panbench.data.detect import Found, open_found
from panbench.data.images import resize_nearest
from panbench.errors import UserError
from panbench.masks.foreign import ForeignMasks
from panbench.masks.mask_set import FrameMasks, LabelSource, MaskManifest, MaskWriter, set_folder
from panbench.scene import VOID, LabelSpace, Scene

log = logging.getLogger(__name__)

_NAMED = 8  # things that a message names before it only counts


@dataclass(frozen=True)
class Imported:
    """What became of an import.

    Attributes:
        manifest: of the set.
        bare: frames of the scene without masks.
        bare_train: those of them that are training frames.
        unused: masks without a frame.
    """

    manifest: MaskManifest
    bare: tuple[str, ...]
    bare_train: tuple[str, ...]
    unused: tuple[str, ...]


def import_masks(
    found: Found,
    source: Path,
    masks: ForeignMasks,
    out: str,
    *,
    class_map: Mapping[str, str | None] | None = None,
    resize: bool = False,
    labels: LabelSource = "shared",
    synthetic: bool = False,
    progress: bool = True,
) -> Imported:
    """Write foreign masks as ``masks_<out>`` of a scene. All masks are read and checked before the first is written.

    Args:
        found: the scene.
        source: what the masks were read from, for messages and the manifest.
        masks: the masks.
        out: NAME of the set.
        class_map: by name or id of theirs the name of the scene's class, None for void. Classes that are not in it are
            matched by name and prompts, without regard to case; those without names are ids of the scene.
        resize: bring masks of another shape than the colour images to their size (nearest); else they are refused.
        labels, synthetic: as in :class:`panbench.masks.mask_set.MaskManifest`; masks may say themselves that they are
            synthetic.
        progress: show a progress bar.

    Raises:
        UserError: no frame has masks, classes are unknown, sizes do not fit, or the masks are damaged.
    """
    scene = open_found(found)
    folder = set_folder(found.folder, out)
    frames = {scene.source.name(i): i for i in sorted({*scene.train, *scene.test})}
    theirs = _matched(frames, masks.stems, source)
    left = [name for name in frames if name in theirs]
    if not left:
        raise UserError(
            f"{source}: none of its {len(masks.stems)} frames ({_listed(masks.stems)}) is one of {scene.name} "
            f"({_listed(frames)}): give the folder of this scene's masks"
        )
    camera = scene.source.camera(0)
    size = (camera.width, camera.height)
    used: set[int] = set()
    console = Console(stderr=True)
    digest = hashlib.sha256()
    for name in track(left, "1/2: checking masks", console=console, disable=not progress):
        made = masks.read(theirs[name])
        used |= set(np.unique(made.semantic).tolist())
        _check_size(made.semantic.shape, size, source, theirs[name], resize)
        for path in masks.files(theirs[name]):
            if path.is_file():
                digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    table = _class_table(masks, used, scene, class_map or {}, source)
    things = scene.labels.is_thing()
    with MaskWriter(
        folder,
        generator="panbench masks import",
        settings={
            "form": masks.form,
            "source": source.resolve().name,
            "source_generator": masks.generator,
            "source_settings": dict(masks.settings),
            "source_sha256": digest.hexdigest(),
            "classes": {masks.names.get(k, str(k)): scene.labels.names()[table[k]] for k in sorted(used) if k != VOID},
            "resize": resize,
        },
        labels=scene.labels,
        source=labels,
        synthetic=synthetic or masks.synthetic,
        associated=masks.associated,
    ) as writer:
        done = writer.done()
        for name in track(left, "2/2: writing masks ", console=console, disable=not progress):
            if name in done:
                continue
            made = masks.read(theirs[name])
            semantic = table[made.semantic]
            instance = np.where(things[semantic], made.instance, 0)
            whole = FrameMasks(semantic, instance, made.score)
            writer.write(name, _resized(whole, size) if resize else whole)
    bare = tuple(name for name in frames if name not in theirs)
    trained = {scene.source.name(i) for i in scene.train}
    unused = set(masks.stems) - {theirs[name] for name in left}
    return Imported(writer.manifest, bare, tuple(n for n in bare if n in trained), tuple(sorted(unused)))


def _matched(frames: Iterable[str], stems: Sequence[str], source: Path) -> dict[str, str]:
    """Of each frame the stem of its masks: the same, or the same number ("12" and "000012")."""
    by_number: dict[int, str] = {}
    known = set(stems)
    for stem in stems:
        if stem.isdecimal() and by_number.setdefault(int(stem), stem) != stem:
            raise UserError(f"{source}: {by_number[int(stem)]} and {stem} are the same frame number: remove one")
    out: dict[str, str] = {}
    for name in frames:
        if name in known:
            out[name] = name
        elif name.isdecimal() and int(name) in by_number:
            out[name] = by_number[int(name)]
    return out


def _check_size(shape: tuple[int, ...], size: tuple[int, int], source: Path, stem: str, resize: bool) -> None:
    """Masks may be scaled as a whole: one side then says what the other is, but for rounding."""
    (height, width), (full_width, full_height) = shape, size
    uniform = abs(width - full_width * height / full_height) <= 1 or abs(height - full_height * width / full_width) <= 1
    if not uniform and not resize:
        raise UserError(
            f"{source}: the masks of {stem} are {width}x{height}, its picture is {full_width}x{full_height}: they are "
            "cropped or stretched; if stretched, give --resize"
        )


def _class_table(
    masks: ForeignMasks, used: set[int], scene: Scene, class_map: Mapping[str, str | None], source: Path
) -> NDArray[np.int64]:
    """Class of the scene by foreign class id."""
    ours = {c.name: c.id for c in scene.labels.classes}
    strange = sorted({name for name in class_map.values() if name is not None and name not in ours})
    if strange:
        raise UserError(f"--classes: {scene.name} has no class {_listed(strange)}: its classes are {', '.join(ours)}")
    alike = _by_any_name(scene.labels)
    table = np.zeros(max(used, default=0) + 1, dtype=np.int64)
    unknown: list[str] = []
    for k in sorted(used - {VOID}):
        name = masks.names.get(k, str(k))
        if name in class_map or str(k) in class_map:
            wanted = class_map[name] if name in class_map else class_map[str(k)]
            table[k] = VOID if wanted is None else ours[wanted]
        elif not masks.names and k in ours.values():
            table[k] = k
        elif masks.names and name.strip().lower() in alike:
            table[k] = alike[name.strip().lower()]
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source}: has classes that {scene.name} does not: {_listed(unknown)}: map them with --classes FILE, "
            f'{{"{unknown[0]}": "<class of the scene>", or null for void}}'
        )
    return table


def _by_any_name(labels: LabelSpace) -> dict[str, int]:
    """Classes by name, and by the prompts that are no class's name and of one class only."""
    names = {c.name.strip().lower(): c.id for c in labels.classes}
    prompts: dict[str, set[int]] = {}
    for c in labels.classes:
        for prompt in c.prompts:
            prompts.setdefault(prompt.strip().lower(), set()).add(c.id)
    return {**{text: next(iter(ids)) for text, ids in prompts.items() if len(ids) == 1}, **names}


def _resized(masks: FrameMasks, size: tuple[int, int]) -> FrameMasks:
    semantic, instance = (np.asarray(resize_nearest(m, *size), m.dtype) for m in (masks.semantic, masks.instance))
    score = None if masks.score is None else np.asarray(resize_nearest(masks.score, *size), np.uint8)
    return FrameMasks(semantic, instance, score)


def _listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
