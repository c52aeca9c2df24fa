"""Every CUDA operator on small inputs, forward and backward: what the checks of the emulated kernels run.

As a program: ``python exercise.py LIBRARY`` runs all of it once on an emulated library; with ``--overrun`` it gives one
output too little room, which a sanitizer must see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from views import NEAR, Case, random_case

from panbench.ops.cuda import Operators

Work = Callable[[Operators], tuple[Tensor, ...]]


def crowded() -> Case:
    """Enough Gaussians for several batches in a tile, and pixels that never saturate."""
    return random_case(160, 23, 19, seed=3, size=-1.5, opacity=-3.0)


def projected(operators: Operators, case: Case, kind: int) -> tuple[Tensor, ...]:
    camera = case.camera
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, kind, NEAR, 0.3)
    view = (*case.parameters, camera.world_to_camera, *numbers)
    ids, geometry, normals = operators.project(*view)
    return ids, geometry, normals, *operators.project_backward(*view, ids, geometry.cos(), normals.sin())


def label_targets(
    height: int, width: int, classes: int, masks: int, labelled: float = 0.8
) -> tuple[Tensor, Tensor, Tensor]:
    """Semantic, mask and weight [H, W]: masks are areas, with pixels of others strewn in, and pixels of none."""
    generator = torch.Generator().manual_seed(classes)
    semantic = torch.randint(1, max(classes, 1) + 1, (height, width), generator=generator)
    semantic[torch.rand(height, width, generator=generator) > labelled] = 0
    areas = torch.arange(height)[:, None] // 7 + torch.arange(width) // 5
    strewn = torch.randint(-1, max(masks, 1), (height, width), generator=generator)
    mask = torch.where(torch.rand(height, width, generator=generator) < 0.2, strewn, areas % (masks + 1) - 1)
    return semantic.int(), mask.clamp(max=masks - 1).int(), torch.rand(height, width, generator=generator)


def blended(
    operators: Operators,
    case: Case,
    kind: int,
    channels: int,
    label_count: int = 0,
    precision: str = "highest",
    extras: bool = False,
) -> tuple[Tensor, ...]:
    """Blending with as many features and labels; of these a third are classes, in logits if they are more than six.

    Args:
        extras: with distortion, absolute gradients of ellipsoids, and half of the labels detached.
    """
    generator = torch.Generator().manual_seed(channels)
    geometry = projected(operators, case, kind)[1]
    features, labels = (torch.rand(len(geometry), count, generator=generator) for count in (channels, label_count))
    lists = operators.bin(geometry, case.width, case.height, kind)
    classes, masks = label_count // 3, 6
    targets = label_targets(case.height, case.width, classes, masks) if label_count else (None, None, None)
    still = label_count // 2 if extras else label_count if label_count > 20 else 0
    settings = (case.width, case.height, kind, still, NEAR)
    numbers = (masks if label_count else 0, classes, classes, classes > 6, 1e-2)
    arguments = (geometry, features, labels, *lists, *targets, *settings, *numbers)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    maps = operators.blend(*arguments, extras)
    upstream = [torch.randn(m.shape, generator=generator) for m in maps[: 9 if extras else 8]]
    options = (extras and kind == 0,) if extras else ()
    grads = operators.blend_backward(*arguments, maps[1], *upstream, *options)
    torch.set_float32_matmul_precision(before)
    return *maps, *grads


def summed(operators: Operators) -> tuple[Tensor, ...]:
    """Sums of a label image, in probabilities and in logits, and their gradients."""
    labels = torch.rand(21, 37, 45, generator=torch.Generator().manual_seed(5))
    out: list[Tensor] = []
    for logits in (False, True):
        arguments = (labels, *label_targets(21, 37, 5, 4), 4, 5, 7, logits, 1e-2)
        sums = operators.label_sums(*arguments)
        out += [*sums, operators.label_sums_backward(*arguments, *(s.cos() for s in sums))]
    return tuple(out)


def attended(operators: Operators, dim: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    rows, queries = 70, 40
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3, 3))
    inputs = [0.3 * torch.randn(size, generator=generator) for size in sizes]
    grad = torch.randn(rows, queries, generator=generator)
    shares = operators.attend_shares(*inputs, True, 0.7, -1.0)
    return (
        operators.attend(*inputs, False),
        *operators.attend_backward(*inputs, False, grad),
        shares,
        *operators.attend_shares_backward(*inputs, True, 0.7, -1.0, shares, grad),
    )


def colored(operators: Operators) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    dc, rest, means = (torch.randn(40, *size, generator=generator) for size in [(3,), (15, 3), (3,)])
    arguments = (dc, rest, means, torch.tensor([3.0, -2.0, 4.0]), torch.arange(0, 40, 3), 3)
    colors = operators.spherical_harmonics(*arguments)
    return colors, *operators.spherical_harmonics_backward(*arguments, colors.cos())


def compared(operators: Operators) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return operators.ssim(*(torch.rand(21, 19, 2, generator=generator) for _ in "xy"))


BLENDS = (
    (3, 0, "highest"),
    (3, 4, "highest"),
    (20, 0, "highest"),
    (7, 60, "highest"),
    (7, 60, "high"),
    (0, 280, "highest"),
    (5, 130, "high"),
    (3, 4, "highest", True),
    (7, 60, "highest", True),
    (5, 130, "high", True),
)
"""Features, labels, precision and extras: one of every kind of kernel, in one window and in several."""

WORK: dict[str, Work] = {
    **{
        f"blend {name} {channels}+{labels} {precision}{' with extras' if extras else ''}": partial(
            blended,
            case=crowded(),
            kind=kind,
            channels=channels,
            label_count=labels,
            precision=precision,
            extras=bool(extras),
        )
        for kind, name in enumerate(("ellipsoids", "discs"))
        for channels, labels, precision, *extras in BLENDS
    },
    "attend in one chunk": partial(attended, dim=20),
    "attend in two": partial(attended, dim=40),
    "harmonics": colored,
    "ssim": compared,
    "label sums": summed,
}


def overrun(operators: Operators) -> None:
    """SSIM with a gradient that is one pixel short."""
    x = torch.rand(16, 16, 1)
    room = torch.empty(16 * 16 - 1), torch.empty(3, 16, 16, 1)
    operators._library.run("ssim", x.device, x, x, 16, 16, 1, torch.empty(()), *room, torch.empty(1).double())


if __name__ == "__main__":
    from emulated import operators as emulated_operators

    made = emulated_operators(Path(sys.argv[1]))
    if "--overrun" in sys.argv:
        overrun(made)
    for work in WORK.values():
        work(made)
