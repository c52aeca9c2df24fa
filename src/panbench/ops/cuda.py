"""The CUDA operators: checks and allocation around the entry points of ``csrc/cuda/api.h``.

Memory comes from torch and work goes to torch's current stream. The library is an argument, so that the same code runs
the emulated kernels in the tests.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor

GEOMETRY_WIDTH = (7, 13)
"""Columns of ellipsoids' and discs' geometry."""

OPERATORS = (
    "project",
    "project_backward",
    "bin",
    "blend",
    "blend_backward",
    "label_sums",
    "label_sums_backward",
    "attend",
    "attend_backward",
    "attend_shares",
    "attend_shares_backward",
    "take_rows",
    "take_rows_backward",
    "spherical_harmonics",
    "spherical_harmonics_backward",
    "ssim",
)

_TILE = 16
_TYPES = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "double": ctypes.c_double}
_BOUNDS = 12  # floats to a Gaussian that blending works with


class Library:
    """The compiled entry points, with the argument types that their header declares.

    Args:
        path: shared library.
        header: ``api.h``, its declarations.
        stream: makes a device current and gives the handle of the stream to work on.
    """

    def __init__(self, path: Path, header: Path, stream: Callable[[torch.device], AbstractContextManager[int]]) -> None:
        self._library = ctypes.CDLL(str(path))
        self._stream = stream
        text = re.sub(r"//[^\n]*", "", header.read_text())
        for result, name, parameters in re.findall(r"([\w *]+)\b(pb_cuda_\w+)\(([^)]*)\);", text):
            function = getattr(self._library, name)
            function.argtypes = [
                ctypes.c_void_p if "*" in p else _TYPES[p.split()[-2]] for p in parameters.split(",") if p.strip()
            ]
            function.restype = ctypes.c_char_p if "*" in result else _TYPES[result.split()[-1]]

    def run(self, name: str, device: torch.device, *arguments: Tensor | float | None) -> None:
        """Call ``pb_cuda_<name>`` on the device's current stream; tensors are passed as their addresses, None as null.

        Raises:
            RuntimeError: with CUDA's message, if work could not be put on the stream.
        """
        with self._stream(device) as stream:
            code = self.ask(name, *arguments, stream)
        if code != 0:
            message = self._library.pb_cuda_error(code).decode()
            raise RuntimeError(f"panbench: CUDA operator {name} failed: {message}")

    def ask(self, name: str, *arguments: Tensor | float | None) -> int:
        """What ``pb_cuda_<name>`` returns."""
        passed = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        return getattr(self._library, f"pb_cuda_{name}")(*passed)


@contextmanager
def current_stream(device: torch.device) -> Generator[int, None, None]:
    """Handle of torch's current stream on a CUDA device, which is made current."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


class Operators:
    """``torch.ops.panbench.*`` over one library: same arguments, shapes and results as the CPU back end.

    Products of 9 channels and more run on tensor cores, factors rounded to TF32, where torch may do so in its own
    products (``torch.set_float32_matmul_precision``); else in float32.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def project(
        self,
        means: Tensor,
        quats: Tensor,
        log_scales: Tensor,
        opacity_logits: Tensor,
        world_to_camera: Tensor,
        fx: float,
        fy: float,
        cx: float,
        cy: float,
        width: int,
        height: int,
        kind: int,
        near: float,
        low_pass: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gaussians = _gaussians(means, quats, log_scales, opacity_logits, kind)
        _check(world_to_camera, torch.float32, means.device, (4, 4))
        camera = (world_to_camera, fx, fy, cx, cy, width, height, kind, near, low_pass)
        count = len(means)
        if count == 0:
            return _rows(means, 0, torch.int64), means.new_empty(0, GEOMETRY_WIDTH[kind]), means.new_empty(0, 3)
        seen = _rows(means, count, torch.int32)
        scratch = _rows(means, self._library.ask("scan_bytes", count), torch.uint8)
        sizes = (count, log_scales.shape[1])
        self._library.run("project_count", means.device, *gaussians, *sizes, *camera, seen, scratch, len(scratch))
        visible = int(seen[-1].item())
        ids = _rows(means, visible, torch.int64)
        geometry, normals = means.new_empty(visible, GEOMETRY_WIDTH[kind]), means.new_empty(visible, 3)
        self._library.run("project_fill", means.device, *gaussians, *sizes, *camera, seen, ids, geometry, normals)
        return ids, geometry, normals

    def project_backward(
        self,
        means: Tensor,
        quats: Tensor,
        log_scales: Tensor,
        opacity_logits: Tensor,
        world_to_camera: Tensor,
        fx: float,
        fy: float,
        cx: float,
        cy: float,
        width: int,
        height: int,
        kind: int,
        near: float,
        low_pass: float,
        ids: Tensor,
        grad_geometry: Tensor,
        grad_normals: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gaussians = _gaussians(means, quats, log_scales, opacity_logits, kind)
        visible = len(ids)
        _check(world_to_camera, torch.float32, means.device, (4, 4))
        _check(ids, torch.int64, means.device, (visible,))
        _check(grad_geometry, torch.float32, means.device, (visible, GEOMETRY_WIDTH[kind]))
        _check(grad_normals, torch.float32, means.device, (visible, 3))
        grads = tuple(torch.zeros_like(t) for t in gaussians)
        camera = (world_to_camera, fx, fy, cx, cy, width, height, kind, near, low_pass)
        self._library.run(
            "project_backward",
            means.device,
            *gaussians,
            visible,
            log_scales.shape[1],
            *camera,
            ids,
            grad_geometry,
            grad_normals,
            *grads,
        )
        return grads[0], grads[1], grads[2], grads[3]

    def bin(self, geometry: Tensor, width: int, height: int, kind: int) -> tuple[Tensor, Tensor]:
        visible = len(geometry)
        _check(geometry, torch.float32, geometry.device, (visible, GEOMETRY_WIDTH[kind]))
        tiles = -(-width // _TILE) * -(-height // _TILE)
        offsets = _rows(geometry, tiles + 1, torch.int32)
        if visible == 0:
            return offsets.zero_(), _rows(geometry, 0, torch.int32)
        order, ends = _rows(geometry, visible, torch.int32), _rows(geometry, visible, torch.int32)
        arguments = (geometry, visible, kind, width, height, order, ends)
        size = max(self._library.ask("scan_bytes", visible), self._library.ask("sort_bytes", visible))
        scratch = _rows(geometry, size, torch.uint8)
        keys = _rows(geometry, 3 * visible, torch.int32)
        self._library.run("bin_count", geometry.device, *arguments, keys, scratch, len(scratch))
        pairs = int(ends[-1].item())
        tile_ids, keys = _rows(geometry, pairs, torch.int32), _rows(geometry, 3 * pairs, torch.int32)
        scratch = _rows(geometry, self._library.ask("sort_bytes", pairs), torch.uint8)
        self._library.run(
            "bin_fill", geometry.device, *arguments, pairs, offsets, tile_ids, keys, scratch, len(scratch)
        )
        return offsets, tile_ids

    def blend(
        self,
        geometry: Tensor,
        features: Tensor,
        labels: Tensor,
        tile_offsets: Tensor,
        tile_ids: Tensor,
        semantic: Tensor | None,
        mask: Tensor | None,
        weight: Tensor | None,
        width: int,
        height: int,
        kind: int,
        detached: int,
        near: float,
        masks: int,
        classes: int,
        first_query: int,
        logits: bool,
        epsilon: float,
        distort: bool = False,
        absolute: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        _check_options(labels, kind, detached, absolute is not None)
        inputs = _blend_inputs(geometry, features, labels, tile_offsets, tile_ids, width, height, kind)
        targets = (semantic, mask, weight, masks, classes, first_query, logits, epsilon)
        queries = _queries(labels, height, width, *targets[:6])
        visible, channels, label_count = len(features), features.shape[1], labels.shape[1]
        maps = (
            features.new_empty(height, width, channels),
            labels.new_empty(height, width, label_count),
            features.new_empty(height, width),
            features.new_empty(height, width),
            features.new_empty(height, width),
        )
        sums = _rows(features, 1 + 2 * queries * (1 + masks), torch.float64).zero_()
        settings = (visible, width, height, channels, label_count, kind, near, _tf32())
        bounds = features.new_empty(visible, _BOUNDS)
        distortion = features.new_empty((height, width) if distort else (0, 0))
        wanted = distortion if distort else None
        self._library.run("blend", geometry.device, *inputs, *settings, *targets, bounds, *maps, sums, wanted)
        return *maps, *_label_sums(sums, 0 if semantic is None else masks, queries), distortion

    def blend_backward(
        self,
        geometry: Tensor,
        features: Tensor,
        labels: Tensor,
        tile_offsets: Tensor,
        tile_ids: Tensor,
        semantic: Tensor | None,
        mask: Tensor | None,
        weight: Tensor | None,
        width: int,
        height: int,
        kind: int,
        detached: int,
        near: float,
        masks: int,
        classes: int,
        first_query: int,
        logits: bool,
        epsilon: float,
        label_image: Tensor,
        grad_image: Tensor | None,
        grad_label_image: Tensor | None,
        grad_alpha: Tensor | None,
        grad_depth: Tensor | None,
        grad_median: Tensor | None,
        grad_entropy: Tensor | None,
        grad_presence: Tensor | None,
        grad_overlap: Tensor | None,
        grad_distortion: Tensor | None = None,
        absolute: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _check_options(labels, kind, detached, absolute)
        inputs = _blend_inputs(geometry, features, labels, tile_offsets, tile_ids, width, height, kind)
        targets = (semantic, mask, weight, masks, classes, first_query, logits, epsilon)
        queries = _queries(labels, height, width, *targets[:6])
        visible, channels, label_count = len(features), features.shape[1], labels.shape[1]
        upstream = {
            "label_image": (label_image, (height, width, label_count)),
            "grad_image": (grad_image, (height, width, channels)),
            "grad_label_image": (grad_label_image, (height, width, label_count)),
            "grad_alpha": (grad_alpha, (height, width)),
            "grad_depth": (grad_depth, (height, width)),
            "grad_median": (grad_median, (height, width)),
            "grad_entropy": (grad_entropy, ()),
            "grad_presence": (grad_presence, (2, queries)),
            "grad_overlap": (grad_overlap, (2, masks, queries)),
            "grad_distortion": (grad_distortion, (height, width)),
        }
        for tensor, shape in upstream.values():
            if tensor is not None:
                _check(tensor, torch.float32, geometry.device, shape)
        grads = torch.zeros_like(geometry), torch.zeros_like(features), torch.zeros_like(labels)
        watched = geometry.new_zeros(visible if absolute else 0, 2)
        settings = (visible, width, height, channels, label_count, kind, detached, near, _tf32())
        bounds = features.new_empty(visible, _BOUNDS)
        passed = [tensor for tensor, _ in upstream.values()]
        passed += [bounds, *grads, watched if absolute else None]
        self._library.run("blend_backward", geometry.device, *inputs, *settings, *targets, *passed)
        return *grads, watched

    def label_sums(
        self,
        labels: Tensor,
        semantic: Tensor,
        mask: Tensor,
        weight: Tensor,
        masks: int,
        classes: int,
        first_query: int,
        logits: bool,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width, label_count = labels.shape
        _check(labels, torch.float32, labels.device, (height, width, label_count))
        queries = _queries(labels, height, width, semantic, mask, weight, masks, classes, first_query)
        sums = _rows(labels, 1 + 2 * queries * (1 + masks), torch.float64).zero_()
        targets = (semantic, mask, weight, masks, classes, first_query, logits, epsilon)
        self._library.run("label_sums", labels.device, labels, width, height, label_count, *targets, sums)
        return _label_sums(sums, masks, queries)

    def label_sums_backward(
        self,
        labels: Tensor,
        semantic: Tensor,
        mask: Tensor,
        weight: Tensor,
        masks: int,
        classes: int,
        first_query: int,
        logits: bool,
        epsilon: float,
        grad_entropy: Tensor,
        grad_presence: Tensor,
        grad_overlap: Tensor,
    ) -> Tensor:
        height, width, label_count = labels.shape
        _check(labels, torch.float32, labels.device, (height, width, label_count))
        queries = _queries(labels, height, width, semantic, mask, weight, masks, classes, first_query)
        _check(grad_entropy, torch.float32, labels.device, ())
        _check(grad_presence, torch.float32, labels.device, (2, queries))
        _check(grad_overlap, torch.float32, labels.device, (2, masks, queries))
        grad = torch.empty_like(labels)
        targets = (semantic, mask, weight, masks, classes, first_query, logits, epsilon)
        upstream = (grad_entropy, grad_presence, grad_overlap)
        self._library.run(
            "label_sums_backward", labels.device, labels, width, height, label_count, *targets, *upstream, grad
        )
        return grad

    def attend(
        self,
        features: Tensor,
        means: Tensor,
        queries: Tensor,
        query_means: Tensor,
        query_roots: Tensor,
        logarithm: bool,
    ) -> Tensor:
        inputs, sizes = _attend_inputs(features, means, queries, query_means, query_roots)
        attention = features.new_empty(len(features), len(queries))
        self._library.run("attend", features.device, *inputs, *sizes, logarithm, attention)
        return attention

    def attend_backward(
        self,
        features: Tensor,
        means: Tensor,
        queries: Tensor,
        query_means: Tensor,
        query_roots: Tensor,
        logarithm: bool,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs, sizes = _attend_inputs(features, means, queries, query_means, query_roots)
        _check(grad, torch.float32, features.device, (len(features), len(queries)))
        grads = _zeros_of(features, means, queries, query_means, query_roots)
        self._library.run("attend_backward", features.device, *inputs, *sizes, logarithm, grad, *grads)
        return grads

    def attend_shares(
        self,
        features: Tensor,
        means: Tensor,
        queries: Tensor,
        query_means: Tensor,
        query_roots: Tensor,
        logarithm: bool,
        temperature: float,
        rest: float | None,
    ) -> Tensor:
        inputs, sizes = _attend_inputs(features, means, queries, query_means, query_roots)
        shares = features.new_empty(len(features), len(queries))
        softmax = (temperature, rest is not None, 0.0 if rest is None else rest)
        self._library.run("attend_shares", features.device, *inputs, *sizes, logarithm, *softmax, shares)
        return shares

    def attend_shares_backward(
        self,
        features: Tensor,
        means: Tensor,
        queries: Tensor,
        query_means: Tensor,
        query_roots: Tensor,
        logarithm: bool,
        temperature: float,
        rest: float | None,
        shares: Tensor,
        grad: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        inputs, sizes = _attend_inputs(features, means, queries, query_means, query_roots)
        for tensor in (shares, grad):
            _check(tensor, torch.float32, features.device, (len(features), len(queries)))
        grads = _zeros_of(features, means, queries, query_means, query_roots)
        self._library.run(
            "attend_shares_backward", features.device, *inputs, *sizes, logarithm, temperature, shares, grad, *grads
        )
        return grads

    def take_rows(self, values: Tensor, ids: Tensor) -> Tensor:
        return values.index_select(0, ids)

    def take_rows_backward(self, grad: Tensor, ids: Tensor, count: int) -> Tensor:
        # Rows are distinct: to copy them spares the sort, or the additions, that indexing's own gradient needs.
        return grad.new_zeros(count, grad.shape[1]).index_copy_(0, ids, grad)

    def spherical_harmonics(
        self, dc: Tensor, rest: Tensor, means: Tensor, camera_position: Tensor, ids: Tensor, degree: int
    ) -> Tensor:
        arguments = _harmonics_arguments(dc, rest, means, camera_position, ids, degree)
        colors = dc.new_empty(len(ids), 3)
        self._library.run("spherical_harmonics", dc.device, *arguments, colors)
        return colors

    def spherical_harmonics_backward(
        self,
        dc: Tensor,
        rest: Tensor,
        means: Tensor,
        camera_position: Tensor,
        ids: Tensor,
        degree: int,
        grad_colors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        arguments = _harmonics_arguments(dc, rest, means, camera_position, ids, degree)
        _check(grad_colors, torch.float32, dc.device, (len(ids), 3))
        grads = torch.zeros_like(dc), torch.zeros_like(rest), torch.zeros_like(means)
        self._library.run("spherical_harmonics_backward", dc.device, *arguments, grad_colors, *grads)
        return grads

    def ssim(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        height, width, channels = x.shape
        for image in (x, y):
            _check(image, torch.float32, x.device, (height, width, channels))
        value, grad = x.new_empty(()), torch.empty_like(x)
        partial = x.new_empty(3, height, width, channels)
        sums = _rows(x, self._library.ask("ssim_blocks", height, width, channels), torch.float64)
        self._library.run("ssim", x.device, x, y, height, width, channels, value, grad, partial, sums)
        return value, grad


def register(operators: Operators) -> None:
    """Make these the kernels of ``torch.ops.panbench`` for CUDA tensors. Call once, after the schemas are known."""
    for name in OPERATORS:
        torch.library.register_kernel(f"panbench::{name}", "cuda", getattr(operators, name))


def _check(tensor: Tensor, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> None:
    if (tensor.dtype, tensor.device, tensor.shape) != (dtype, device, shape) or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise RuntimeError(
            f"panbench: expected a contiguous {dtype} tensor {list(shape)} on {device}, "
            f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}, {layout}"
        )


def _rows(like: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=dtype, device=like.device)


def _tf32() -> int:
    return int(torch.get_float32_matmul_precision() != "highest")


def _gaussians(means: Tensor, quats: Tensor, log_scales: Tensor, logits: Tensor, kind: int) -> tuple[Tensor, ...]:
    count = len(means)
    columns = log_scales.shape[1] if kind == 1 and log_scales.shape[1] == 2 else 3
    for tensor, shape in ((means, (count, 3)), (quats, (count, 4)), (log_scales, (count, columns)), (logits, (count,))):
        _check(tensor, torch.float32, means.device, shape)
    return means, quats, log_scales, logits


def _zeros_of(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d, e = (torch.zeros_like(t) for t in tensors)
    return a, b, c, d, e


def _blend_inputs(
    geometry: Tensor,
    features: Tensor,
    labels: Tensor,
    tile_offsets: Tensor,
    tile_ids: Tensor,
    width: int,
    height: int,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    visible, channels = features.shape
    label_count = labels.shape[1]
    _check(geometry, torch.float32, geometry.device, (visible, GEOMETRY_WIDTH[kind]))
    _check(features, torch.float32, geometry.device, (visible, channels))
    _check(labels, torch.float32, geometry.device, (visible, label_count))
    _check(tile_offsets, torch.int32, geometry.device, (-(-width // _TILE) * -(-height // _TILE) + 1,))
    _check(tile_ids, torch.int32, geometry.device, (len(tile_ids),))
    if channels + label_count < 1:
        raise RuntimeError("panbench: there is no channel to blend")
    return geometry, features, labels, tile_offsets, tile_ids


def _check_options(labels: Tensor, kind: int, detached: int, absolute: bool) -> None:
    if not 0 <= detached <= labels.shape[1]:
        raise RuntimeError(f"panbench: {detached} of {labels.shape[1]} labels cannot be detached")
    if absolute and kind != 0:
        raise RuntimeError("panbench: only ellipsoids have absolute gradients")


def _queries(
    labels: Tensor,
    height: int,
    width: int,
    semantic: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    masks: int,
    classes: int,
    first_query: int,
) -> int:
    """Number of queries of checked targets for labels [..., L]; 0 without targets."""
    maps = ((semantic, torch.int32), (mask, torch.int32), (weight, torch.float32))
    given = [(tensor, dtype) for tensor, dtype in maps if tensor is not None]
    if not given:
        return 0
    for tensor, dtype in given:
        _check(tensor, dtype, labels.device, (height, width))
    label_count = labels.shape[-1]
    if len(given) != len(maps) or masks < 0 or not 0 <= classes <= first_query <= label_count:
        raise RuntimeError(
            f"panbench: targets with {len(given)} of 3 maps, {masks} masks, {classes} classes and queries from channel "
            f"{first_query} on, for {label_count} labels"
        )
    return label_count - first_query


def _label_sums(sums: Tensor, masks: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy [], presence [2, Q] and overlap [2, K, Q] of the sums in float64 that the kernels leave."""
    entropy, presence, overlap = sums.float().split([1, 2 * queries, 2 * masks * queries])
    # Three tensors, none a view of another: torch asks that of an operator.
    return entropy.reshape(()).clone(), presence.reshape(2, queries).clone(), overlap.reshape(2, masks, queries).clone()


def _attend_inputs(
    features: Tensor, means: Tensor, queries: Tensor, query_means: Tensor, query_roots: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
    (rows, dim), count = features.shape, len(queries)
    for tensor, shape in (
        (features, (rows, dim)),
        (means, (rows, 3)),
        (queries, (count, dim)),
        (query_means, (count, 3)),
        (query_roots, (count, 3, 3)),
    ):
        _check(tensor, torch.float32, features.device, shape)
    return (features, means, queries, query_means, query_roots), (rows, dim, count)


def _harmonics_arguments(
    dc: Tensor, rest: Tensor, means: Tensor, camera_position: Tensor, ids: Tensor, degree: int
) -> tuple[Tensor | int, ...]:
    count, coefficients = len(dc), rest.shape[1]
    if not 0 <= degree <= 3 or coefficients < (degree + 1) ** 2 - 1:
        raise RuntimeError(f"panbench: degree {degree} with {coefficients} coefficients beyond the first")
    for tensor, shape in (
        (dc, (count, 3)),
        (rest, (count, coefficients, 3)),
        (means, (count, 3)),
        (camera_position, (3,)),
    ):
        _check(tensor, torch.float32, dc.device, shape)
    _check(ids, torch.int64, dc.device, (len(ids),))
    return len(ids), ids, degree, coefficients, dc, rest, means, camera_position
