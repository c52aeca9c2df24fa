"""One case of the benchmark: the views to render, and everyone who renders them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmark.machine import Ceilings, available_memory, instruction_sets
from benchmark.timing import Contestant
from benchmark.workload import NEAR, ROOM, Gaussians, cameras
from panbench import ops
from panbench.ops.backend import Backend
from panbench.ops.project import KIND_CODE
from panbench.scene import Camera
from peers import gsplat_cuda, torch_pairs
from peers.opensplat import OpenSplatRasterizer
from peers.plain import PlainRasterizer, contributions

STAGES = ("project", "bin", "blend", "blend_backward", "project_backward")
_EPS2D = 0.3


@dataclass(frozen=True)
class Case:
    """What is rendered: N Gaussians of a kind, an image size, C channels."""

    kind: ops.Kind
    count: int
    width: int
    height: int
    channels: int

    @property
    def key(self) -> str:
        """Unique name: ``ellipsoid/50k/320x240/C3``."""
        return f"{self.kind}/{thousands(self.count)}/{self.width}x{self.height}/C{self.channels}"


def thousands(count: int) -> str:
    """10k, 1M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


class Views:
    """The operators on some views of a case.

    Features are those of the visible Gaussians, as a head computes them: a view gathers them from a table, and their
    gradient ends at the gathered rows. Nothing but the image is given a gradient.
    """

    def __init__(self, case: Case, gaussians: Gaussians, views: int, seed: int = 0) -> None:
        self.case, self.gaussians = case, gaussians
        self.geometry = gaussians.geometry
        self.table = gaussians.features(case.channels, seed)
        self.cameras = cameras(case.width, case.height, views)
        generator = torch.Generator().manual_seed(seed)
        self.grad_image = torch.randn(case.height, case.width, case.channels, generator=generator)

    def forward(self, view: int, backend: Backend = "cpu") -> Tensor:
        """Image [H, W, C], without a graph."""
        with torch.no_grad():
            return self._render(self.geometry, self.cameras[view], backend)[0]

    def forward_backward(self, view: int, backend: Backend = "cpu") -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Image, visible ids [M], gradients of means, quats, log_scales, opacity_logits [N, …] and features [M, C]."""
        leaves = tuple(t.detach().requires_grad_() for t in self.geometry)
        image, ids, features = self._render(leaves, self.cameras[view], backend)
        return image.detach(), ids, torch.autograd.grad(image, [*leaves, features], self.grad_image)

    def _render(self, geometry: tuple[Tensor, ...], camera: Camera, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
        kind, size = self.case.kind, (camera.width, camera.height)
        means, quats, log_scales, logits = geometry
        projected = ops.project(
            means, quats, log_scales, logits, camera, kind=kind, near=NEAR, eps2d=_EPS2D, backend=backend
        )
        features = self.table[projected.ids].requires_grad_(torch.is_grad_enabled())
        bins = ops.bin(projected.geometry, *size, kind=kind, backend=backend)
        out = ops.blend(projected.geometry, features, bins, *size, kind=kind, near=NEAR, backend=backend)
        return out.image, projected.ids, features

    def stages(self) -> dict[str, Callable[[int], None]]:
        """The operators one by one, each on what the stages before it gave."""
        prepared = [self._prepare(camera) for camera in self.cameras]
        return {name: partial(_run_stage, prepared, name) for name in STAGES}

    def _prepare(self, camera: Camera) -> dict[str, tuple[Any, ...]]:
        """Arguments of each stage's operator for a view."""
        kind, op = KIND_CODE[self.case.kind], torch.ops.panbench
        size = (camera.width, camera.height)
        lens = (camera.fx, camera.fy, camera.cx, camera.cy, *size, kind, NEAR, _EPS2D)
        project = (*self.geometry, camera.world_to_camera, *lens)
        ids, screen, normals = op.project(*project)
        bins = op.bin(screen, *size, kind)
        features = self.table[ids]
        # No labels, and nothing to compare them with.
        none = (None, None, None)
        blend = (screen, features, features[:, :0], *bins, *none, *size, kind, False, NEAR, 0, 0, 0, False, 1e-4)
        label_image = torch.empty(camera.height, camera.width, 0)
        blend_backward = (*blend, label_image, self.grad_image, *[None] * 7)
        grad_screen, *_ = op.blend_backward(*blend_backward)
        return {
            "project": project,
            "bin": (screen, *size, kind),
            "blend": blend,
            "blend_backward": blend_backward,
            "project_backward": (*project, ids, grad_screen, torch.zeros_like(normals)),
        }

    def work(self) -> dict[str, float]:
        """Means over the views: visible Gaussians, (tile, Gaussian) pairs, contributions (of discs: 0, not counted).

        ``lane_use`` is the share of the pixels of a block of 4 × 4, one SIMD register, that a Gaussian contributes to
        if it contributes to any.
        """
        visible, pairs, blended, blocks = 0, 0, 0, 0
        for camera in self.cameras:
            means, quats, log_scales, logits = self.geometry
            projected = ops.project(means, quats, log_scales, logits, camera, kind=self.case.kind, near=NEAR)
            bins = ops.bin(projected.geometry, camera.width, camera.height, kind=self.case.kind)
            visible += len(projected.ids)
            pairs += len(bins.tile_ids)
            if self.case.kind == "ellipsoid":
                found = contributions(self.geometry, camera, NEAR)
                blended, blocks = blended + found[0], blocks + found[1]
        views = len(self.cameras)
        return {
            "visible": visible / views,
            "tile_pairs": pairs / views,
            "contributions": blended / views,
            "lane_use": blended / max(16 * blocks, 1),
        }


class QueryView:
    """The label pass of a query head on one view: the channels are the answers of C queries to each visible Gaussian.

    All Gaussians carry features of a fixed width; a row for every query exists for the visible ones alone.
    """

    WIDTH = 32

    def __init__(self, case: Case, gaussians: Gaussians, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        queries = case.channels
        self.case, self.geometry = case, gaussians.geometry
        self.camera = cameras(case.width, case.height, 1)[0]
        self.features = gaussians.features(self.WIDTH, seed)
        place = torch.rand(queries, 3, generator=generator) * torch.tensor(ROOM)
        turn = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(queries, 1)
        self.queries = [torch.randn(queries, self.WIDTH, generator=generator), place, torch.zeros(queries, 3), turn]
        self.grad_image = torch.randn(case.height, case.width, queries, generator=generator)

    def forward_backward(self, view: int) -> tuple[Tensor, ...]:
        """Gradients of means, quats, log_scales and opacity_logits, of the features and of the queries."""
        kind, size = self.case.kind, (self.case.width, self.case.height)
        geometry = [t.detach().requires_grad_() for t in self.geometry]
        features, *queries = (t.detach().requires_grad_() for t in (self.features, *self.queries))
        means, quats, log_scales, logits = geometry
        seen = ops.project(means, quats, log_scales, logits, self.camera, kind=kind, near=NEAR, eps2d=_EPS2D)
        channels = ops.attend(
            ops.take_rows(features, seen.ids), ops.take_rows(means, seen.ids), *queries, logarithm=False
        )
        bins = ops.bin(seen.geometry, *size, kind=kind)
        image = ops.blend(seen.geometry, channels, bins, *size, kind=kind, near=NEAR).image
        return torch.autograd.grad(image, [*geometry, features, *queries], self.grad_image)


def _run_stage(prepared: list[dict[str, tuple[Any, ...]]], name: str, view: int) -> None:
    getattr(torch.ops.panbench, name)(*prepared[view][name])


class TorchPairs:
    """The list-of-pairs rasterizer on the views, its lists made beforehand."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._pairs: list[torch_pairs.Pairs] = []
        for camera in views.cameras:
            _, screen = torch_pairs.project(views.geometry, camera, NEAR)
            self._pairs.append(torch_pairs.list_pairs(screen, camera.width, camera.height))

    def forward(self, view: int) -> None:
        """Render."""
        with torch.no_grad():
            self._render(self._views.geometry, view)

    def forward_backward(self, view: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """As :meth:`Views.forward_backward`."""
        leaves = tuple(t.detach().requires_grad_() for t in self._views.geometry)
        image, ids, features = self._render(leaves, view)
        grads = torch.autograd.grad(image, [*leaves, features], self._views.grad_image)
        return image.detach(), ids, grads

    def _render(self, geometry: tuple[Tensor, ...], view: int) -> tuple[Tensor, Tensor, Tensor]:
        camera = self._views.cameras[view]
        ids, screen = torch_pairs.project(geometry, camera, NEAR)
        features = self._views.table[ids].requires_grad_(torch.is_grad_enabled())
        return torch_pairs.blend(screen, features, self._pairs[view], camera.width, camera.height), ids, features


class Plain:
    """The plain C++ rasterizer on the views: its common form, or its strong one."""

    def __init__(self, views: Views, *, threaded: bool = False) -> None:
        self._views = views
        self._rasterizer = PlainRasterizer(views.geometry, views.table, NEAR, _EPS2D, threaded=threaded)

    def forward(self, view: int) -> None:
        """Render."""
        self._rasterizer.forward(self._views.cameras[view])

    def forward_backward(self, view: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """As :meth:`Views.forward_backward`."""
        image, _ = self._rasterizer.forward(self._views.cameras[view])
        grads = self._rasterizer.backward(self._views.grad_image)
        return image, grads.ids, (*grads.geometry, grads.features)


class OpenSplat:
    """OpenSplat's CPU rasterizer on the views, which have three channels."""

    def __init__(self, views: Views, checkout: Path) -> None:
        self._views = views
        self._rasterizer = OpenSplatRasterizer(checkout, views.geometry, views.table, NEAR)

    def forward(self, view: int) -> None:
        """Render."""
        self._rasterizer.forward(self._views.cameras[view])

    def forward_backward(self, view: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """As :meth:`Views.forward_backward`, with a row of features for every Gaussian."""
        image, grads = self._rasterizer.forward_backward(self._views.cameras[view], self._views.grad_image)
        return image, torch.arange(len(self._views.table)), grads


class ReferenceBackend:
    """The reference back end (pure torch, a matrix product per tile), in float32."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def forward(self, view: int) -> None:
        """Render."""
        self._views.forward(view, "reference")

    def forward_backward(self, view: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """As :meth:`Views.forward_backward`."""
        return self._views.forward_backward(view, "reference")


Peer = Plain | OpenSplat | TorchPairs | ReferenceBackend
PeerName = Literal["plain", "plain_threaded", "torch_pairs", "reference"]
PEERS: dict[PeerName, Callable[[Views], Peer]] = {
    "plain": Plain,
    "plain_threaded": partial(Plain, threaded=True),
    "torch_pairs": TorchPairs,
    "reference": ReferenceBackend,
}
SLOW: tuple[PeerName, ...] = ("torch_pairs", "reference")
"""Peers in pure torch, which take seconds where the others take milliseconds."""


def peer_memory(peer: PeerName, case: Case, work: dict[str, float], threads: int) -> float:
    """Bytes that a peer is expected to take at most, forward and backward."""
    channels = case.channels
    if peer in ("plain", "plain_threaded"):
        lists = 2 * work["contributions"] + case.width * case.height * 8
        copies = threads + 1 if peer == "plain_threaded" else 2
        return 4 * (copies * work["visible"] * channels + case.width * case.height * 2 * channels + lists)
    if peer == "torch_pairs":
        # Gathered features, products and their gradients, and some thirty numbers beside them.
        return 4 * work["contributions"] * (4 * channels + 60)
    # Some fifteen numbers for every pixel of a tile and every Gaussian in its list.
    return 4 * 256 * work["tile_pairs"] * 15


def agreement(
    ours: tuple[Tensor, Tensor, tuple[Tensor, ...]], theirs: tuple[Tensor, Tensor, tuple[Tensor, ...]]
) -> dict[str, float]:
    """Relative L2 differences of the images and of each gradient."""
    names = ("means", "quats", "log_scales", "opacity_logits")
    out = {"image": _distance(ours[0], theirs[0])}
    out |= {name: _distance(a, b) for name, a, b in zip(names, ours[2], theirs[2], strict=False)}
    rows = int(max(ours[1].max(), theirs[1].max())) + 1 if len(ours[1]) and len(theirs[1]) else 0
    dense = [
        side[2][-1].new_zeros(rows, side[2][-1].shape[1]).index_copy(0, side[1], side[2][-1]) for side in (ours, theirs)
    ]
    return out | {"features": _distance(dense[0], dense[1])}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


@contextmanager
def _threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _instructions(limit: str) -> Generator[None]:
    os.environ["PANBENCH_ISA"] = limit
    try:
        yield
    finally:
        del os.environ["PANBENCH_ISA"]


@dataclass(frozen=True)
class Field:
    """Who takes part in a case, who does not and why, and how the peers agree with us on the first view."""

    contestants: list[Contestant]
    skipped: dict[str, str]
    agreement: dict[str, dict[str, float]]


def field_of(
    views: Views,
    work: dict[str, float],
    threads: int,
    peers: Sequence[PeerName],
    ceilings: Ceilings,
    opensplat: Path | None = None,
) -> Field:
    """Our operators whole, by stage, on one thread and in lower instruction sets; the peers; the machine's ceilings.

    Names: ``forward`` and ``both`` (forward and backward), alone for ours, with the peer's name in front for a peer.

    Args:
        opensplat: checkout of OpenSplat, which then takes part where there are three channels.
    """
    out = [Contestant("forward", views.forward), Contestant("both", views.forward_backward)]
    out += [Contestant(f"stage {name}", run) for name, run in views.stages().items()]
    if views.case.channels != 3:
        narrow = Views(replace(views.case, channels=3), views.gaussians, len(views.cameras))
        out.append(Contestant("both at 3 channels", narrow.forward_backward))
    if threads > 1:
        out.append(Contestant("both 1 thread", views.forward_backward, lambda: _threads(1)))
    for limit in ("v3", "portable") if "avx512f" in instruction_sets() else ("portable",):
        out.append(Contestant(f"both {limit}", views.forward_backward, partial(_instructions, limit)))

    skipped: dict[str, str] = {}
    running: dict[str, Peer] = {}
    for peer in peers:
        needed = peer_memory(peer, views.case, work, threads)
        if views.case.kind != "ellipsoid" and peer != "reference":
            skipped[peer] = "ellipsoids only"
        elif needed > 0.6 * available_memory():
            skipped[peer] = f"needs about {needed / 2**30:.0f} GiB"
        else:
            running[peer] = PEERS[peer](views)
    if opensplat is not None and (views.case.kind, views.case.channels) == ("ellipsoid", 3):
        running["opensplat"] = OpenSplat(views, opensplat)
    agree = {name: agreement(views.forward_backward(0), peer.forward_backward(0)) for name, peer in running.items()}
    for name, peer in running.items():
        out += [Contestant(f"{name} forward", peer.forward), Contestant(f"{name} both", peer.forward_backward)]
    why = gsplat_cuda.why_not()
    if why:
        skipped["gsplat"] = why
    elif views.case.kind == "ellipsoid":
        gsplat = gsplat_cuda.rasterizer(views.geometry, views.table, NEAR)
        out += [Contestant("gsplat forward", lambda i: gsplat(views.cameras[i], None))]
        out += [Contestant("gsplat both", lambda i: gsplat(views.cameras[i], views.grad_image))]

    for width in (64, 32):
        for count in sorted({1, threads}):
            name = f"peak {width * 8} bit {count} thread"
            out.append(Contestant(name, lambda _, w=width, n=count: ceilings.fma(w, n), rate=True))
    out.append(Contestant("peak copy", lambda _: ceilings.copy(threads), rate=True))
    return Field(out, skipped, agree)
