"""Measure a long scene: opening it, the memory that decoded frames take, and what loading costs beside decoding.

python tools/bench_data.py                           # 5,000 frames in both layouts of ScanNet-V2, some minutes
python tools/bench_data.py --frames 500 --blocks 3

The scene is the built-in small room, its files repeated as hard links (or its payloads repeated in one stream). Loading
and plain decoding of such frames by Pillow take turns, a block of frames each and none twice, so that what disturbs one
disturbs the other; what is told is the median over blocks, in frames per second of processor time. --write puts the
table into docs/data.md.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from benchmark.report import splice
from panbench.data.file import File
from panbench.data.scannet import ScanNetDataModule, built_in_room
from panbench.data.scannet_reader import ScanNetSource
from panbench.data.sens import SensDepth, SensFile, SensFrame, write_sens
from panbench.training.files import write_text

LAYOUTS = ("scannet", "scannet-raw")
_PAGE = Path("docs/data.md")
_MIB = 1 << 20


def make_scene(room: Path, out: Path, frames: int, layout: str) -> Path:
    """A scene of so many frames made of a room's: frame k shows what frame k mod n of the room's posed frames shows."""
    stems = [p.stem for p in sorted((room / "pose").iterdir(), key=lambda p: int(p.stem))]
    posed = [s for s in stems if np.isfinite(np.loadtxt(room / "pose" / f"{s}.txt")).all()]
    scene = out / room.name
    scene.mkdir(parents=True)
    shutil.copy(room / "classes.json", scene)
    numbers = [str(k) for k in range(frames)]
    split = {"train": [n for n in numbers if int(n) % 5], "test": [n for n in numbers if not int(n) % 5]}
    (scene / "splits.json").write_text(json.dumps(split))
    masks = [f"masks_medium/{kind}" for kind in ("semantic_image", "instance_image", "score")]
    kinds = ["label-filt", "instance-filt", *masks]
    if layout == "scannet":
        kinds += ["color", "depth", "pose"]
        shutil.copytree(room / "intrinsic", scene / "intrinsic")
    for kind in kinds:
        (scene / kind).mkdir(parents=True)
        suffix = next((room / kind).iterdir()).suffix
        for number in numbers:
            source = room / kind / f"{posed[int(number) % len(posed)]}{suffix}"
            _link(source, scene / kind / f"{number}{suffix}")
    if layout == "scannet-raw":
        _write_stream(room, scene / f"{scene.name}.sens", [posed[k % len(posed)] for k in range(frames)])
    return scene


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many links to one file
        shutil.copyfile(source, target)


def _write_stream(room: Path, path: Path, stems: Sequence[str]) -> None:
    from panbench.data.scannet_raw_export import write_scannet_raw

    with tempfile.TemporaryDirectory() as folder:
        whole = SensFile(write_scannet_raw(room, Path(folder)) / f"{room.name}.sens")
        known: dict[str, SensFrame] = {}
        for stem in set(stems):
            depth = whole.depth(int(stem))
            pixels = None if depth is None else depth.read_depth()
            known[stem] = SensFrame(whole.color(int(stem)).read_bytes(), pixels, whole.poses[int(stem)])
        write_sens(path, whole.header, (known[stem] for stem in stems))


def decode_alone(source: ScanNetSource, index: int) -> None:
    """What Pillow and zlib take for the images of a frame, and nothing else."""
    f = source.files[index]
    with Image.open(io.BytesIO(f.color.read_bytes())) as image:
        np.array(image.convert("RGB"))
    others: list[File | None] = [f.label, f.instance, f.mask_semantic, f.mask_instance, f.mask_score]
    if isinstance(f.depth, SensDepth):
        np.frombuffer(zlib.decompress(f.depth.read_bytes()), dtype="<u2")
    else:
        others.append(f.depth)
    for file in others:
        if file is not None:
            with Image.open(io.BytesIO(file.read_bytes())) as image:
                np.array(image)


def measure(scene: Path, cache_mb: int, blocks: int, block: int, pipe: Any) -> None:
    """Everything that is told of a scene; in a process of its own, whose memory nothing else has touched."""
    module = ScanNetDataModule(root=str(scene), masks="medium", cache_mb=cache_mb)
    started, processor = time.perf_counter(), time.process_time()
    opened = module.scene
    facts: dict[str, Any] = {
        "frames": len(opened.source),
        "open_s": time.perf_counter() - started,
        "open_processor_s": time.process_time() - processor,
    }
    source = opened.source
    assert isinstance(source, ScanNetSource)
    before = _resident()
    train = iter(module.train_dataloader())

    def load(_: int) -> None:
        next(train)

    def alone(index: int) -> None:
        decode_alone(source, opened.train[index % len(opened.train)])

    rates: dict[str, list[float]] = {"load": [], "alone": []}
    work: dict[str, Callable[[int], None]] = {"load": load, "alone": alone}
    for turn in range(blocks):
        for name in sorted(work, reverse=bool(turn % 2)):
            processor = time.process_time()
            for k in range(block):
                work[name](turn * block + k)
            rates[name].append(block / (time.process_time() - processor))
    facts["load_frames_per_s"] = statistics.median(rates["load"])
    facts["alone_frames_per_s"] = statistics.median(rates["alone"])
    facts["ratio"] = statistics.median(a / b for a, b in zip(rates["load"], rates["alone"], strict=True))
    # The cache is full after blocks x block frames, if the budget is less than they take.
    facts["cache_mib"] = cache_mb
    facts["memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / _MIB
    frame = source.decode(0).nbytes
    facts["frame_mib"] = frame / _MIB
    facts["frames_of_the_budget"] = cache_mb * _MIB // frame
    pipe.send(facts)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table of docs/data.md."""
    lines = [
        "| layout | frames | opening, s | loading / decoding alone | memory beyond opening, MiB | budget, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for layout, r in results.items():
        lines.append(
            f"| {layout} | {r['frames']} | {r['open_processor_s']:.1f} | {r['ratio']:.2f} | {r['memory_mib']:.0f} | "
            f"{r['cache_mib']} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Make the scenes, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000, help="of the long scene (default: 5000)")
    parser.add_argument("--cache-mb", type=int, default=256, help="budget of the cache (default: 256)")
    parser.add_argument("--blocks", type=int, default=9, help="turns of each (default: 9)")
    parser.add_argument("--block", type=int, default=100, help="frames a turn (default: 100)")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="only this layout")
    parser.add_argument("--work", type=Path, help="folder for the scenes; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--write", action="store_true", help=f"put the table into {_PAGE}")
    args = parser.parse_args()
    room = built_in_room("small", 0)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        for layout in args.layout or LAYOUTS:
            scene = make_scene(room, Path(folder) / layout, args.frames, layout)
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(scene, args.cache_mb, args.blocks, args.block, there))
            process.start()
            there.close()
            results[layout] = here.recv()
            process.join()
    console = Console()
    console.print(json.dumps(results, indent=1), highlight=False)
    if args.out is not None:
        write_text(args.out, json.dumps(results, indent=1) + "\n")
    if args.write:
        splice(_PAGE, "bench_data", markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
