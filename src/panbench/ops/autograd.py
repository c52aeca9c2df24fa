"""Fake (shape-only) and autograd kernels of the compiled operators ``torch.ops.panbench.*``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WIDTH = (7, 13)  # geometry columns of ellipsoids and discs


def register() -> None:
    """Attach shapes and gradients to the operators of the library that was just loaded. Call once."""
    fake = torch.library.register_fake
    fake("panbench::project")(_project_fake)
    fake("panbench::project_backward")(lambda *args: tuple(torch.empty_like(t) for t in args[:4]))
    fake("panbench::bin")(_bin_fake)
    fake("panbench::blend")(_blend_fake)
    fake("panbench::blend_backward")(_blend_backward_fake)
    fake("panbench::label_sums")(_label_sums_fake)
    fake("panbench::label_sums_backward")(lambda labels, *_: torch.empty_like(labels))
    fake("panbench::attend")(lambda features, means, queries, *_: features.new_empty(len(features), len(queries)))
    fake("panbench::attend_backward")(lambda *args: tuple(torch.empty_like(t) for t in args[:5]))
    fake("panbench::attend_shares")(
        lambda features, means, queries, *_: features.new_empty(len(features), len(queries))
    )
    fake("panbench::attend_shares_backward")(lambda *args: tuple(torch.empty_like(t) for t in args[:5]))
    fake("panbench::take_rows")(lambda values, ids: values.new_empty(len(ids), values.shape[1]))
    fake("panbench::take_rows_backward")(lambda grad, ids, count: grad.new_empty(count, grad.shape[1]))
    fake("panbench::ssim")(lambda x, y: (x.new_empty(()), torch.empty_like(x)))
    fake("panbench::similarity")(lambda x, *_: (x.new_empty(()), torch.empty_like(x)))
    fake("panbench::depth_normals")(lambda depth, *_: depth.new_empty(*depth.shape, 3))
    fake("panbench::depth_normals_backward")(lambda depth, *_: torch.empty_like(depth))
    fake("panbench::normal_loss")(lambda n, _: (n.new_empty(()), n.new_empty((), dtype=torch.int64)))
    fake("panbench::normal_loss_backward")(lambda n, *_: (n.new_empty(n.shape), n.new_empty(n.shape)))
    fake("panbench::warping_loss")(
        lambda labels, depth, other, *_: (
            labels.new_empty(()),
            labels.new_empty(*depth.shape, other.shape[2]),
            labels.new_empty((), dtype=torch.int64),
        )
    )
    fake("panbench::warping_loss_backward")(lambda d, valid, channels, _: d.new_empty(*d.shape[:2], channels))
    fake("panbench::mixture_loss")(lambda means, *rest: (means.new_empty(()), means.new_empty(len(rest[2]), 9)))
    fake("panbench::mixture_loss_backward")(
        lambda ids, gradients, count, scale_dim, _: tuple(gradients.new_empty(count, k) for k in (3, 4, scale_dim))
    )
    fake("panbench::spherical_harmonics")(lambda dc, rest, means, camera, ids, degree: dc.new_empty(len(ids), 3))
    fake("panbench::spherical_harmonics_backward")(lambda *args: tuple(torch.empty_like(t) for t in args[:3]))
    grad = torch.library.register_autograd
    grad("panbench::project", _project_backward, setup_context=_project_context)
    grad("panbench::blend", _blend_backward, setup_context=_blend_context)
    grad("panbench::attend", _attend_backward, setup_context=_attend_context)
    grad("panbench::attend_shares", _attend_shares_backward, setup_context=_attend_shares_context)
    grad("panbench::take_rows", _take_rows_backward, setup_context=_take_rows_context)
    grad("panbench::label_sums", _label_sums_backward, setup_context=_label_sums_context)
    grad("panbench::ssim", _ssim_backward, setup_context=_ssim_context)
    grad("panbench::similarity", _similarity_backward, setup_context=_ssim_context)
    grad("panbench::depth_normals", _depth_normals_backward, setup_context=_depth_normals_context)
    grad("panbench::normal_loss", _normal_loss_backward, setup_context=_normal_loss_context)
    grad("panbench::warping_loss", _warping_loss_backward, setup_context=_warping_loss_context)
    grad("panbench::mixture_loss", _mixture_loss_backward, setup_context=_mixture_loss_context)
    grad("panbench::spherical_harmonics", _harmonics_backward, setup_context=_harmonics_context)


def _project_fake(means: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    visible = torch.library.get_ctx().new_dynamic_size()
    width = _WIDTH[args[-3]]
    return (
        means.new_empty(visible, dtype=torch.int64),
        means.new_empty(visible, width),
        means.new_empty(visible, 3),
    )


def _bin_fake(geometry: Tensor, width: int, height: int, kind: int) -> tuple[Tensor, Tensor]:
    pairs = torch.library.get_ctx().new_dynamic_size()
    tiles = ((width + 15) // 16) * ((height + 15) // 16)
    return geometry.new_empty(tiles + 1, dtype=torch.int32), geometry.new_empty(pairs, dtype=torch.int32)


def _blend_fake(
    geometry: Tensor,
    features: Tensor,
    labels: Tensor,
    offsets: Tensor,
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
) -> tuple[Tensor, ...]:
    rows = masks, labels.shape[1] - first_query
    if semantic is None:
        rows = 0, 0
    return (
        *(t.new_empty(height, width, t.shape[1]) for t in (features, labels)),
        *(features.new_empty(height, width) for _ in range(3)),
        *_sums_fake(labels, *rows),
        features.new_empty((height, width) if distort else (0, 0)),
    )


def _blend_backward_fake(geometry: Tensor, features: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    # `absolute` is the last of all 29 arguments; the dispatcher leaves out what has its default.
    absolute = len(rest) == 26 and rest[-1]
    grads = (torch.empty_like(t) for t in (geometry, features, labels))
    return *grads, geometry.new_empty(len(geometry) if absolute else 0, 2)


def _label_sums_fake(
    labels: Tensor,
    semantic: Tensor,
    mask: Tensor,
    weight: Tensor,
    masks: int,
    classes: int,
    first_query: int,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return _sums_fake(labels, masks, labels.shape[-1] - first_query)


def _sums_fake(labels: Tensor, masks: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    return labels.new_empty(()), labels.new_empty(2, queries), labels.new_empty(2, masks, queries)


def _project_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[0])
    ctx.numbers = inputs[5:]
    ctx.mark_non_differentiable(output[0])


def _project_backward(ctx: Any, grad_ids: Tensor, grad_geometry: Tensor, grad_normals: Tensor) -> tuple[Any, ...]:
    *inputs, ids = ctx.saved_tensors
    grads = torch.ops.panbench.project_backward(
        *inputs, *ctx.numbers, ids, grad_geometry.contiguous(), grad_normals.contiguous()
    )
    return (*grads, *[None] * 10)


def _blend_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.numbers = inputs[8:18]
    ctx.absolute = inputs[19] is not None
    ctx.set_materialize_grads(False)


def _blend_backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    *inputs, label_image = ctx.saved_tensors
    *grads, absolute = torch.ops.panbench.blend_backward(
        *inputs, *ctx.numbers, label_image, *(None if g is None else g.contiguous() for g in upstream), ctx.absolute
    )
    return (*grads, *[None] * 16, absolute if ctx.absolute else None)


def _label_sums_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.numbers = inputs[4:]


def _label_sums_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    grad = torch.ops.panbench.label_sums_backward(*ctx.saved_tensors, *ctx.numbers, *(g.contiguous() for g in upstream))
    return grad, *[None] * 8


def _attend_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.logarithm = inputs[5]


def _attend_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return (*torch.ops.panbench.attend_backward(*ctx.saved_tensors, ctx.logarithm, grad.contiguous()), None)


def _attend_shares_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5], output)
    ctx.numbers = inputs[5:]


def _attend_shares_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *inputs, shares = ctx.saved_tensors
    return (
        *torch.ops.panbench.attend_shares_backward(*inputs, *ctx.numbers, shares, grad.contiguous()),
        *[None] * 3,
    )


def _take_rows_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.count = len(inputs[0])


def _take_rows_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.panbench.take_rows_backward(grad.contiguous(), *ctx.saved_tensors, ctx.count), None


def _ssim_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _ssim_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return grad * ctx.saved_tensors[0], None


def _similarity_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return grad * ctx.saved_tensors[0], None, None, None


def _depth_normals_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.numbers = inputs[1:]


def _depth_normals_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.panbench.depth_normals_backward(*ctx.saved_tensors, *ctx.numbers, grad.contiguous())
    return grads, *[None] * 5


def _normal_loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _normal_loss_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return torch.ops.panbench.normal_loss_backward(*ctx.saved_tensors, grad.contiguous())


def _warping_loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.channels = inputs[0].shape[2]
    ctx.mark_non_differentiable(*output[1:])


def _warping_loss_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    directions, valid = ctx.saved_tensors
    return torch.ops.panbench.warping_loss_backward(directions, valid, ctx.channels, grad.contiguous()), *[None] * 13


def _mixture_loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[3], output[1])
    ctx.count, ctx.scale_dim = inputs[2].shape
    ctx.mark_non_differentiable(output[1])


def _mixture_loss_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.panbench.mixture_loss_backward(*ctx.saved_tensors, ctx.count, ctx.scale_dim, grad.contiguous())
    return *grads, *[None] * 7


def _harmonics_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.degree = inputs[5]


def _harmonics_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dc, rest, means = torch.ops.panbench.spherical_harmonics_backward(*ctx.saved_tensors, ctx.degree, grad.contiguous())
    return dc, rest, means, None, None, None
