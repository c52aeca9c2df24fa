"""Procedural furnished rooms, written in the exported ScanNet-V2 layout so that the real loaders read them.

Everything follows from the size and the seed: the same two give the same bytes (on one version of numpy and pillow).
docs/rooms.md describes the generator and lists the measured quality of the pseudo-mask presets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from panbench.data.depth_sensor import DepthSensor
from panbench.data.draft import appearing
from panbench.data.mask_noise import PRESETS, MaskNoiser, PseudoMask, mask_quality
from panbench.data.room_camera import plan_path
from panbench.data.room_export import (
    RAW_LABELS,
    TSV_NAME,
    SensorInfo,
    write_annotation,
    write_calibration,
    write_json,
    write_label_table,
    write_matrix,
)
from panbench.data.room_layout import Room, design_room
from panbench.data.room_render import RoomTracer, View, display
from panbench.errors import UserError
from panbench.masks.mask_set import INSTANCE, MANIFEST, SCORE, SEMANTIC, MaskManifest, content_hash
from panbench.scene import VOID, LabelClass, LabelSpace

Size = Literal["tiny", "small", "full"]
VERSION = 1

_TEST_EVERY = 5
_DEPTH_UNIT = 0.0005
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class _Film:
    frames: int
    width: int
    height: int
    lost: int
    step: float
    rays: int
    detail: int


_FILMS: dict[str, _Film] = {
    "tiny": _Film(10, 160, 120, 1, 0.06, 16, 1),
    "small": _Film(60, 320, 240, 2, 0.05, 24, 0),
    "full": _Film(200, 640, 480, 4, 0.045, 32, 0),
}

_OTHER = ("keyboard", "clock", "backpack", "radiator", "light")
_CLASSES: tuple[tuple[str, bool, tuple[str, ...], tuple[str, ...]], ...] = (
    # name, thing, prompts, raw categories
    ("wall", False, ("wall",), ("wall",)),
    ("floor", False, ("floor",), ("floor",)),
    ("ceiling", False, ("ceiling",), ("ceiling",)),
    ("door", False, ("door",), ("door",)),
    ("window", False, ("window",), ("window",)),
    ("curtain", False, ("curtain",), ("curtain",)),
    ("rug", False, ("rug", "carpet"), ("mat",)),
    ("chair", True, ("chair", "armchair"), ("chair", "office chair", "armchair")),
    ("sofa", True, ("couch", "sofa"), ("couch",)),
    ("table", True, ("table", "coffee table"), ("table", "coffee table", "dining table")),
    ("desk", True, ("desk",), ("desk",)),
    ("bed", True, ("bed",), ("bed",)),
    ("cabinet", True, ("cabinet", "nightstand"), ("cabinet", "nightstand")),
    ("shelf", True, ("shelf", "bookshelf"), ("shelf", "bookshelf")),
    ("lamp", True, ("lamp",), ("lamp",)),
    ("monitor", True, ("monitor", "tv", "screen"), ("monitor", "tv")),
    ("trash can", True, ("trash can", "bin"), ("trash can",)),
    ("plant", True, ("plant",), ("plant",)),
    ("box", True, ("box",), ("box",)),
    ("picture", True, ("picture",), ("picture",)),
    ("whiteboard", True, ("whiteboard",), ("whiteboard",)),
    ("pillow", True, ("pillow", "cushion"), ("pillow",)),
    ("books", True, ("book", "books"), ("book",)),
    ("other", False, ("keyboard", "clock", "backpack", "radiator", "ceiling light"), _OTHER),
)  # fmt: skip


def make_room(
    out: Path, *, size: Size = "small", seed: int = 0, masks: Sequence[str] = tuple(PRESETS), progress: bool = True
) -> Path:
    """Make a furnished room and write it as ``out/scene<9100 + seed>_00``.

    Args:
        out: root folder; made if missing. The label table ``scannetv2-labels.combined.tsv`` is put beside the scene.
        size: "tiny" (10 frames 160×120, a handful of objects), "small" (60, 320×240) or "full" (200, 640×480).
        seed: which room, 0 … 899.
        masks: presets of pseudo-masks to write (clean, light, medium, heavy).
        progress: show a progress bar.

    Returns:
        The scene folder. It appears in one step when it is complete; a room that was there before is replaced.

    Raises:
        UserError: if the size, seed or a preset is unknown, the folder cannot be written, or a folder of that name is
            there that this generator did not write.
    """
    _check(size, seed, masks)
    scene = f"scene{9100 + seed:04d}_00"
    target = out / scene
    with appearing(target, "synthetic.json") as draft:
        _provide_label_table(out / TSV_NAME)
        _write_scene(draft, scene, size, seed, masks, progress)
    return target


def _check(size: str, seed: int, masks: Sequence[str]) -> None:
    if size not in get_args(Size):
        raise UserError(f"room size {size!r} is unknown; choose one of {', '.join(get_args(Size))}")
    if not 0 <= seed <= 899:
        raise UserError(f"room seed {seed} is out of range; choose 0 to 899")
    unknown = [name for name in masks if name not in PRESETS]
    if unknown:
        raise UserError(f"mask preset {unknown[0]!r} is unknown; choose from {', '.join(PRESETS)}")


def _provide_label_table(path: Path) -> None:
    """Write the label table, or make sure that the one which is there (the real one, say) knows all labels used."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        write_label_table(draft)
        draft.replace(path)
        return
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    known = {row[1]: row[0] for row in rows if len(row) > 1}
    for name, (raw, _) in RAW_LABELS.items():
        if known.get(name) != str(raw):
            raise UserError(f"{path}: the label table has no row {raw} {name!r} that rooms need; choose another --out")


def _write_scene(folder: Path, scene: str, size: Size, seed: int, masks: Sequence[str], progress: bool) -> None:
    film = _FILMS[size]
    focal = 0.9 * film.width
    columns = (
        TextColumn("[progress.description]{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, disable=not progress, transient=False) as bar:
        setup = bar.add_task(f"{scene}: room and light", total=3)
        room = design_room(np.random.default_rng([seed, 10]), tiny=size == "tiny", step=film.step)
        bar.advance(setup)
        tracer = RoomTracer(room, np.random.default_rng([seed, 11]), rays=film.rays, detail=film.detail)
        bar.advance(setup)
        lost = _lost_frames(film, np.random.default_rng([seed, 12]))
        kept = [k for k in range(film.frames) if k not in lost]
        test = np.zeros(film.frames, dtype=bool)
        test[kept[::_TEST_EVERY]] = True
        poses = plan_path(
            room, tracer, frames=film.frames, focal=focal, width=film.width, height=film.height, test=test,
            rng=np.random.default_rng([seed, 13]),
        )  # fmt: skip
        bar.advance(setup)

        shots = _Shots(folder, tracer, room, film, focal, poses, lost, seed)
        frames = list(_parallel(shots.take, range(film.frames), bar, "pictures"))
        instances = [f.instance for f in frames]
        labels, class_of = _label_space(scene, room, instances)
        semantics = [class_of[i] for i in instances]
        depth_gt = np.stack([f.depth for f in frames])
        stems = np.array([str(k) for k in range(film.frames)])
        (folder / "gt").mkdir()
        np.savez_compressed(
            folder / "gt" / "depth_gt.npz", depth=depth_gt, metres_per_unit=np.array(_DEPTH_UNIT), stems=stems
        )
        np.save(folder / "gt" / "poses_gt.npy", poses)
        scores = {
            name: _write_masks(folder, name, labels, semantics, instances, lost, test, seed, bar) for name in masks
        }

    names = [item.label for item in room.items]
    write_calibration(folder, scene, SensorInfo(film.width, film.height, focal, film.frames, "Living room / Lounge"))
    write_annotation(
        folder, scene, tracer.vertices, tracer.normals, tracer.faces, tracer.vertex_colors(), tracer.vertex_item, names
    )
    write_json(folder / "classes.json", _classes_json(scene, labels, names))
    split = {
        "train": [str(k) for k in kept if not test[k]],
        "test": [str(k) for k in kept if test[k]],
        "lost": [str(k) for k in sorted(lost)],
    }
    write_json(folder / "splits.json", split)
    write_json(folder / "masks_scores.json", scores)
    write_json(folder / "stats.json", _stats(room, tracer, frames, kept, names))
    write_json(
        folder / "synthetic.json", {"generator": "panbench rooms", "version": VERSION, "size": size, "seed": seed}
    )


def _parallel(work: Callable[[_T], _R], inputs: Iterable[_T], bar: Progress, title: str) -> Iterator[_R]:
    """Results of ``work`` in order, made by a few threads (numpy and embree let go of the interpreter lock)."""
    jobs = list(inputs)
    task = bar.add_task(title, total=len(jobs))
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for result in pool.map(work, jobs):
            bar.advance(task)
            yield result


def _lost_frames(film: _Film, rng: np.random.Generator) -> set[int]:
    """Frames whose tracking "failed": spread over the film, never the first."""
    edges = np.linspace(1, film.frames, film.lost + 1)
    return {int(rng.integers(int(a), max(int(a) + 1, int(b)))) for a, b in pairwise(edges.tolist())}


@dataclass(frozen=True, eq=False)
class _Shot:
    """Truth of one frame [H, W]: objectId + 1 (0 = nothing), z-depth in units of ``_DEPTH_UNIT``."""

    instance: NDArray[np.uint8]
    depth: NDArray[np.uint16]


class _Shots:
    """Renders frames and writes their sensor files."""

    def __init__(
        self,
        folder: Path,
        tracer: RoomTracer,
        room: Room,
        film: _Film,
        focal: float,
        poses: NDArray[np.floating],
        lost: set[int],
        seed: int,
    ) -> None:
        self._folder, self._tracer, self._film, self._focal = folder, tracer, film, focal
        self._poses, self._lost, self._seed = poses, lost, seed
        self._raw = np.array([0] + [RAW_LABELS[item.label][0] for item in room.items], dtype=np.uint16)
        for name in ("color", "depth", "pose", "label-filt", "instance-filt"):
            (folder / name).mkdir()
        rng = np.random.default_rng([seed, 14])
        phase = rng.uniform(0, 2 * np.pi, 2)
        t = 2 * np.pi * np.arange(film.frames) / film.frames
        self._drift = 1 + 0.08 * (0.6 * np.sin(2 * t + phase[0]) + 0.4 * np.sin(5 * t + phase[1]))
        y, x = np.meshgrid(np.linspace(-0.75, 0.75, film.height), np.linspace(-1, 1, film.width), indexing="ij")
        self._vignette = (1 - 0.10 * (x**2 + y**2) / 1.5625)[..., None]
        self._exposure = self._meter()

    def _meter(self) -> float:
        """Exposure at which the mean of the film is a middle tone."""
        width, height = self._film.width // 5, self._film.height // 5
        picks = np.linspace(0, self._film.frames - 1, 8).astype(int)
        radiance = np.stack(
            [self._tracer.render(self._poses[k], self._focal / 5, width, height, 1).color for k in picks]
        )
        low, high = 0.02, 20.0
        for _ in range(30):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if display(radiance, middle).mean() < 0.54 else (low, middle)
        return low

    def take(self, index: int) -> _Shot:
        """Render frame ``index``, write color, depth, pose, label-filt, instance-filt."""
        film, folder = self._film, self._folder
        view = self._tracer.render(self._poses[index], self._focal, film.width, film.height)
        instance = (view.item + 1).astype(np.uint8)
        rng = np.random.default_rng([self._seed, 15, index])
        Image.fromarray(self._develop(view, index, rng)).save(folder / "color" / f"{index}.jpg", quality=92)
        reading = DepthSensor().measure(view.depth, view.cosine, self._focal, rng, view.albedo)
        _save_png(folder / "depth" / f"{index}.png", np.round(reading * 1000).astype(np.uint16))
        _save_png(folder / "label-filt" / f"{index}.png", self._raw[instance])
        _save_png(folder / "instance-filt" / f"{index}.png", instance)
        pose = np.full((4, 4), -np.inf) if index in self._lost else self._poses[index]
        write_matrix(folder / "pose" / f"{index}.txt", pose)
        return _Shot(instance, np.round(view.depth / _DEPTH_UNIT).astype(np.uint16))

    def _develop(self, view: View, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Radiance to 8 bit: exposure drift, vignetting, film curve, read noise."""
        picture = display(view.color * self._vignette, self._exposure * float(self._drift[index])) * 255
        noisy = picture + rng.normal(0, 1.2, picture.shape)
        return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _save_png(path: Path, image: NDArray[np.integer]) -> None:
    Image.fromarray(image).save(path, compress_level=3)


def _label_space(
    scene: str, room: Room, instances: Sequence[NDArray[np.uint8]]
) -> tuple[LabelSpace, NDArray[np.uint8]]:
    """Label space of the classes that some frame shows, and the class id of each objectId + 1 (0 → void)."""
    pixels = sum((np.bincount(i.ravel(), minlength=256) for i in instances), start=np.zeros(256, dtype=np.int64))
    shown = {item.label for k, item in enumerate(room.items) if pixels[k + 1]}
    in_room = {item.label for item in room.items}
    classes: list[LabelClass] = []
    raw_to_class: dict[int, int] = {}
    for name, thing, prompts, raws in _CLASSES:
        if shown.intersection(raws):
            classes.append(LabelClass(len(classes) + 1, name, thing, name != "other", prompts))
            raw_to_class |= {RAW_LABELS[r][0]: len(classes) for r in raws if r in in_room}
    table = [VOID] + [raw_to_class.get(RAW_LABELS[item.label][0], VOID) for item in room.items]
    return LabelSpace(scene, tuple(classes), raw_to_class), np.array(table, dtype=np.uint8)


def _classes_json(scene: str, labels: LabelSpace, names: Sequence[str]) -> dict[str, object]:
    raws = {name: [r for r in members if r in names] for name, _, _, members in _CLASSES}
    rows = [
        {
            "id": c.id,
            "name": c.name,
            "prompts": list(c.prompts),
            "thing": c.thing,
            "evaluate": c.evaluate,
            "labels": raws[c.name],
        }
        for c in labels.classes
    ]
    gt_map = {str(raw): class_id for raw, class_id in sorted(labels.raw_to_class.items())}
    return {"scene": scene, "classes": rows, "void": 0, "gt_map": gt_map, "gt_map_key": "ScanNet raw label id"}


def _write_masks(
    folder: Path,
    preset: str,
    labels: LabelSpace,
    semantics: Sequence[NDArray[np.uint8]],
    instances: Sequence[NDArray[np.uint8]],
    lost: set[int],
    test: NDArray[np.bool_],
    seed: int,
    bar: Progress,
) -> dict[str, float]:
    """Write ``masks_<preset>`` and return its quality on the training frames."""
    root = folder / f"masks_{preset}"
    for name in (SEMANTIC, INSTANCE, SCORE):
        (root / name).mkdir(parents=True)
    noise, noise_seed = PRESETS[preset], 1000 * seed + list(PRESETS).index(preset)
    noiser = MaskNoiser(noise, labels, len(semantics), noise_seed)

    def one(index: int) -> PseudoMask:
        mask = noiser.frame(index, semantics[index], instances[index])
        for name, image in ((SEMANTIC, mask.semantic), (INSTANCE, mask.instance), (SCORE, mask.score)):
            _save_png(root / name / f"{index}.png", image)
        return mask

    made = list(_parallel(one, range(len(semantics)), bar, f"masks: {preset}"))
    write_json(root / "thing_semantic_label.json", {f"{k}.png": m.classes for k, m in enumerate(made)}, indent=None)
    write_json(root / "segment_semantic_label.json", {}, indent=None)
    stems = sorted(str(index) for index in range(len(made)))
    manifest = MaskManifest(
        generator="panbench rooms",
        settings={**asdict(noise), "level": preset, "seed": noise_seed, "frames": len(made)},
        synthetic=True,
        classes=labels.to_dict(),
        frames=stems,
        sha256=content_hash(root, stems),
    )
    write_json(root / MANIFEST, manifest.model_dump())
    train = [k for k in range(len(made)) if k not in lost and not test[k]]
    return mask_quality((made[k] for k in train), (semantics[k] for k in train), (instances[k] for k in train), labels)


def _stats(
    room: Room, tracer: RoomTracer, frames: Sequence[_Shot], kept: Sequence[int], names: Sequence[str]
) -> dict[str, object]:
    counts = np.stack([np.bincount(frames[k].instance.ravel(), minlength=256)[1 : len(names) + 1] for k in kept])
    threshold = max(1, frames[0].instance.size // 768)
    views = (counts >= threshold).sum(0)
    return {
        "frames": len(frames),
        "kept": len(kept),
        "mesh_vertices": len(tracer.vertices),
        "mesh_faces": len(tracer.faces),
        "objects": len(room.items),
        "objects_by_label": {name: names.count(name) for name in sorted(set(names))},
        "never_seen": [f"{k + 1}:{names[k]}" for k in np.flatnonzero(counts.sum(0) == 0).tolist()],
        f"views_over_{threshold}px": {f"{k + 1}:{name}": int(views[k]) for k, name in enumerate(names)},
    }
