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


def blended(
    operators: Operators, case: Case, kind: int, channels: int, precision: str = "highest"
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(channels)
    geometry = projected(operators, case, kind)[1]
    features = torch.rand(len(geometry), channels, generator=generator)
    lists = operators.bin(geometry, case.width, case.height, kind)
    arguments = (geometry, features, *lists, case.width, case.height, kind, channels // 3, NEAR)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    maps = operators.blend(*arguments)
    upstream = [torch.randn(m.shape, generator=generator) for m in maps]
    grads = operators.blend_backward(*arguments, *upstream)
    torch.set_float32_matmul_precision(before)
    return *maps, *grads


def attended(operators: Operators, dim: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    rows, queries = 70, 40
    sizes = ((rows, dim), (rows, 3), (queries, dim), (queries, 3), (queries, 3, 3))
    inputs = [0.3 * torch.randn(size, generator=generator) for size in sizes]
    grad = torch.randn(rows, queries, generator=generator)
    return operators.attend(*inputs, False), *operators.attend_backward(*inputs, False, grad)


def colored(operators: Operators) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    dc, rest, means = (torch.randn(40, *size, generator=generator) for size in [(3,), (15, 3), (3,)])
    arguments = (dc, rest, means, torch.tensor([3.0, -2.0, 4.0]), torch.arange(0, 40, 3), 3)
    colors = operators.spherical_harmonics(*arguments)
    return colors, *operators.spherical_harmonics_backward(*arguments, colors.cos())


def compared(operators: Operators) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return operators.ssim(*(torch.rand(21, 19, 2, generator=generator) for _ in "xy"))


def masked(operators: Operators) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    channels = torch.rand(17, 13, 50, generator=generator)
    semantic = torch.randint(0, 6, (17, 13), generator=generator)
    pair = torch.randint(-1, 40, (17, 13), generator=generator)
    columns = 5 + torch.randperm(45, generator=generator)[:40]
    arguments = (channels, semantic, pair, columns, torch.rand(17, 13, generator=generator), 1e-4)
    losses, sums = operators.mask_losses(*arguments)
    return losses, sums, operators.mask_losses_backward(*arguments, sums, torch.tensor([1.0, 0.7, -1.3]))


BLENDS = ((3, "highest"), (20, "highest"), (70, "highest"), (70, "high"))
"""Channels and precision: one of every kind of kernel."""

WORK: dict[str, Work] = {
    **{
        f"blend {name} {channels} {precision}": partial(
            blended, case=crowded(), kind=kind, channels=channels, precision=precision
        )
        for kind, name in enumerate(("ellipsoids", "discs"))
        for channels, precision in BLENDS
    },
    "attend in one chunk": partial(attended, dim=20),
    "attend in two": partial(attended, dim=40),
    "harmonics": colored,
    "ssim": compared,
    "mask losses": masked,
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
