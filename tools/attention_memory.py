"""Measure the memory of local and global cross attention as Gaussians grow in number (Table IV's point).

python tools/attention_memory.py                                   # 100k to 600k Gaussians, a few minutes
python tools/attention_memory.py --gaussians 10k 20k --repeats 1

What is measured is the label part of one training step of the query head on synthetic furnished rooms: projection, the
head's channels, blending them against masks, the head's losses, and the way back. Gaussians grow in number in two ways:
one room of more and more Gaussians, a share of which is always in view; and more and more rooms, of which the camera
sees one. Each case runs in a process of its
own and is saved as soon as it is measured; the same command goes on after an interruption. Writes
docs/attention_memory.json, the chart docs/images/attention_memory.svg, and its part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from rich.console import Console
from torch import Tensor

from bench_rasterizer import count, size
from benchmark import chart, report
from benchmark.machine import facts, peak_memory, peak_memory_reset
from benchmark.room_frames import LABELS, RoomFrames
from benchmark.views import thousands
from benchmark.workload import NEAR, ROOM, cameras, furnished_room
from panbench import ops
from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.heads import QueryHead
from panbench.heads.base import LabelView, StepContext
from panbench.ops.backend import load_cpu
from panbench.scene import Frame
from panbench.training.files import write_text
from panbench.training.memory import keep_freed_memory

MARKER = "attention_memory"
CHART = Path("images") / "attention_memory.svg"  # beside the page
KIND = "disc"
MASKS_OF = 50_000  # Gaussians of the room that the masks are rendered of: the same masks for every case

PER_ROOM = 100_000  # Gaussians, where there are more and more rooms

Scope = Literal["local", "global"]
Layout = Literal["one room", "more rooms"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class Case(NamedTuple):
    """What one process measures: where the Gaussians lie, how many there are, what attends to which."""

    layout: Layout
    gaussians: int
    scope: Scope

    def __str__(self) -> str:
        return f"{thousands(self.gaussians)} in {self.layout}, {self.scope}"


class Setting(NamedTuple):
    """What all cases share."""

    queries: int
    width: int
    height: int
    seed: int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [100_000, 200_000, 300_000, 400_000, 500_000, 600_000]
    out.add_argument("--gaussians", type=count, nargs="+", default=default, metavar="N")
    out.add_argument("--queries", type=int, default=100)
    out.add_argument("--size", type=size, default=(320, 240), metavar="WxH", help="image")
    out.add_argument("--repeats", type=int, default=1, help="processes a case; the table shows their median")
    out.add_argument("--threads", type=int, default=torch.get_num_threads())
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--page-only", action="store_true", help="measure nothing; write the page from the file")
    out.add_argument("--out", type=Path, default=Path("docs/attention_memory.json"), help="file of all results")
    out.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="page to write into")
    return out


def rooms(layout: Layout, count: int, seed: int) -> dict[str, Tensor]:
    """Means, quats, scales and opacities of ``count`` Gaussians; further rooms lie behind the first camera."""
    sizes = [count]
    if layout == "more rooms":
        sizes = [min(PER_ROOM, count - start) for start in range(0, count, PER_ROOM)]
    parts = [furnished_room(n, seed + k).geometry for k, n in enumerate(sizes)]
    means, *others = (torch.cat(fields) for fields in zip(*parts, strict=True))
    means[:, 0] += ROOM[0] * torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return dict(zip(("means", "quats", "scales", "opacities"), (means, *others), strict=True))


class LabelPart:
    """The label part of a training step: one view of a case."""

    def __init__(self, case: Case, setting: Setting) -> None:
        queries, width, height, seed = setting
        self.head = QueryHead(scope=case.scope, max_queries=queries)
        self.head.build(LABELS)
        self.head.resize_like({"query_means": torch.empty(queries, 3)}, "")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.query_means.copy_(torch.rand(queries, 3, generator=generator) * torch.tensor(ROOM))
            self.head.query_features.normal_(generator=generator)
        self.gaussians = GaussianSet(case.gaussians)
        given = rooms(case.layout, case.gaussians, seed)
        self.gaussians.add({name: FieldSpec(tuple(v.shape[1:]), v, 1e-3) for name, v in given.items()})
        self.gaussians.add(self.head.fields())
        self.camera = cameras(width, height, 1)[0]
        masks = RoomFrames(MASKS_OF, width, height).load(0).masks
        photo = torch.zeros(height, width, 3, dtype=torch.uint8)
        self.frame = Frame("0", 0, self.camera, photo, masks=masks)
        self.visible = 0

    def step(self) -> None:
        """Forward and backward; every parameter has its gradient afterwards."""
        g, camera = self.gaussians, self.camera
        size = (camera.width, camera.height)
        seen = ops.project(g["means"], g["quats"], g["scales"], g["opacities"], camera, kind=KIND, near=NEAR)
        channels = self.head.channels(g, seen.ids)
        bins = ops.bin(seen.geometry, *size, kind=KIND)
        blended = ops.blend(
            seen.geometry, channels[:, :0], bins, *size, kind=KIND, near=NEAR, labels=channels, detached=False,
            targets=self.head.targets(self.frame),
        )  # fmt: skip
        view = LabelView(blended.labels, blended.alpha.detach(), blended.depth.detach(), blended.sums)
        terms = self.head.losses(view, self.frame, g, StepContext(0, lambda: None, _no_other_view))
        torch.stack(list(terms.values())).sum().backward()
        self.visible = len(seen.ids)


def _no_other_view(*_: object) -> LabelView:
    raise AssertionError("without a neighbouring frame nothing is warped")


def memory_of(case: Case, setting: Setting, threads: int) -> dict[str, Any]:
    """Peak memory of one label part beyond what the process held before it; runs in a process of its own."""
    torch.set_num_threads(threads)
    load_cpu()
    keep_freed_memory()
    # Loads every library and makes every pool that the measured step needs.
    LabelPart(case._replace(gaussians=1000), setting).step()
    part = LabelPart(case, setting)
    ctypes.CDLL(None).malloc_trim(0)
    before = peak_memory_reset()
    part.step()
    return {**case._asdict(), "visible": part.visible, "bytes": peak_memory() - before}


def open_results(arguments: argparse.Namespace) -> dict[str, Any]:
    """The file's results if they have these settings, else empty ones.

    Raises:
        UserError: with ``--page-only``, if there are none.
    """
    width, height = arguments.size
    settings = Setting(arguments.queries, width, height, arguments.seed)._asdict()
    machine = facts()
    if arguments.out.is_file():
        old: dict[str, Any] = json.loads(arguments.out.read_text())
        same = old["settings"] == settings and all(old["machine"][k] == machine[k] for k in ("processor", "commit"))
        if same or arguments.page_only:
            return old
    elif arguments.page_only:
        raise UserError(f"{arguments.out}: no such file: measure first")
    return {"machine": machine, "settings": settings, "cases": []}


def measure(results: dict[str, Any], arguments: argparse.Namespace, console: Console) -> None:
    """Measure what the results lack, saving each."""
    setting = Setting(**results["settings"])
    wanted = [
        Case(layout, n, scope)
        for layout in LAYOUTS
        for n in sorted(arguments.gaussians)
        for scope in SCOPES
        for _ in range(arguments.repeats)
    ]
    missing = Counter(wanted) - Counter(Case(c["layout"], c["gaussians"], c["scope"]) for c in results["cases"])
    todo = sorted(missing.elements(), key=wanted.index)
    for number, case in enumerate(todo, start=1):
        where = f"{number}/{len(todo)} {case}"
        with console.status(where), multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(memory_of, (case, setting, arguments.threads))
        results["cases"].append(found)
        write_text(arguments.out, json.dumps(results, indent=1) + "\n")
        console.print(f"{where}: {found['bytes'] / 2**20:.0f} MiB", highlight=False)


def medians(results: dict[str, Any], layout: Layout) -> dict[int, dict[str, float]]:
    """MiB by number of Gaussians and scope; "visible" is the number of those in view."""
    out: dict[int, dict[str, float]] = {}
    found = [c for c in results["cases"] if c["layout"] == layout]
    for n in sorted({c["gaussians"] for c in found}):
        cases = [c for c in found if c["gaussians"] == n]
        out[n] = {"visible": float(cases[0]["visible"])}
        for scope in SCOPES:
            peaks = [c["bytes"] / 2**20 for c in cases if c["scope"] == scope]
            out[n][scope] = statistics.median(peaks) if peaks else math.nan
    return out


def markdown(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    s, m = results["settings"], results["machine"]
    parts = [
        f"MiB at the peak of the label part of a training step (discs, {s['queries']} queries, {LABELS.size - 1} "
        f"classes, {s['width']}x{s['height']}; forward, losses and backward) beyond what the process held before, each "
        f"in a process of its own, median of repeats; {m['processor']}, commit {m['commit']}. *One room* of more and "
        "more Gaussians: a quarter is in view. *More rooms* of 100k: the camera sees one. N x Q: a float32 for every "
        "pair of a Gaussian and a query, which global attention makes and local attention never does. With both, every "
        "Gaussian gets its gradient of geometry and features, which grows with N too.",
        f"![Memory of attention]({CHART.as_posix()})",
    ]
    rows: list[list[str]] = []
    for layout in LAYOUTS:
        for n, v in medians(results, layout).items():
            pairs = 4 * n * s["queries"] / 2**20
            cells = [v["local"], v["global"], v["global"] - v["local"], pairs]
            rows.append([f"{layout}, {thousands(n)}", f"{v['visible'] / 1e3:.1f}k", *(f"{x:.0f}" for x in cells)])
    parts.append(report.table(["Gaussians", "visible", *SCOPES, "difference", "N x Q"], rows))
    for layout in LAYOUTS:
        by = medians(results, layout)
        if len(by) > 1:
            few, many = min(by), max(by)
            slope = {scope: (by[many][scope] - by[few][scope]) / (many - few) * 1e5 for scope in SCOPES}
            parts.append(
                f"With {layout}, every further 100k Gaussians take {slope['local']:.0f} MiB with local attention and "
                f"{slope['global']:.0f} MiB with global attention."
            )
    return "\n\n".join(parts)


def figure(results: dict[str, Any]) -> str:
    """Chart: memory by number of Gaussians, a panel for each layout."""
    panels: list[str] = []
    for layout in LAYOUTS:
        by = medians(results, layout)
        series = {scope: {float(n): v[scope] for n, v in by.items() if not math.isnan(v[scope])} for scope in SCOPES}
        panels.append(chart.lines(f"Peak memory of the label part, MiB: {layout}", "Gaussians", series, 560, 360))
    return chart.page(panels, 560, 360)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, save, write the page."""
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        results = open_results(arguments)
        if not arguments.page_only:
            load_cpu()
            measure(results, arguments, console)
        write_text(arguments.page.parent / CHART, figure(results))
        report.splice(arguments.page, MARKER, markdown(results))
        console.print(markdown(results), highlight=False, soft_wrap=True)
    except UserError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print(f"stopped; {arguments.out} has what was measured, the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
