"""Small Gaussian sets under a density control, whose every row, gradient and moment tells which Gaussian it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from panbench.gaussians.density import DensityChange, DensityContext, DensityControl
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.optim import build_optimizer

TRAINED = ("means", "quats", "scales", "opacities", "semantic")


def make(
    control: DensityControl,
    scales: Sequence[float] | Tensor,
    opacities: Sequence[float] | None = None,
    *,
    axes: int = 3,
    means: Tensor | None = None,
    quats: Tensor | None = None,
) -> tuple[GaussianSet, torch.optim.Adam]:
    """Gaussians after one step that moved nothing: the gradient of row i is i + 1 in every field, so are the moments.

    Args:
        scales: the largest of each [N], the others are smaller by e; or all of them [N, axes]. opacities: 0.5 each.
        means: 10 m apart on the x axis. quats: the world's axes.

    ``semantic`` is a field of a head, ``votes`` one that children start at zero, ``tag`` the row's first number.
    """
    size = torch.as_tensor(scales, dtype=torch.float32)
    if size.ndim == 1:
        size = size[:, None] * torch.tensor([1.0, *[math.exp(-1)] * (axes - 1)])
    count = len(size)
    given = torch.tensor(list(opacities or [0.5] * count), dtype=torch.float64)
    number = torch.arange(count).float()
    gaussians = GaussianSet()
    gaussians.add(
        {
            "means": FieldSpec((3,), number[:, None] * torch.tensor([10.0, 0, 0]) if means is None else means, lr=0.1),
            "quats": FieldSpec(
                (4,), torch.tensor([[2.0, 0, 0, 0]]).repeat(count, 1) if quats is None else quats, lr=0.1
            ),
            "scales": FieldSpec((size.shape[1],), size.log(), lr=0.1),
            "opacities": FieldSpec((), given.logit().float(), lr=0.1),
            "semantic": FieldSpec((2,), number[:, None].repeat(1, 2), lr=0.1),
            "votes": zeros(),
            "tag": FieldSpec((), torch.arange(count)),
            **control.fields(),
        }
    )
    gaussians["votes"].copy_(number)
    optimizer, _ = build_optimizer(gaussians, [], 100)
    train(gaussians, optimizer, lr=0.0)
    return gaussians, optimizer


def train(gaussians: GaussianSet, optimizer: torch.optim.Adam, lr: float) -> None:
    """One step of Adam whose gradient is the tag plus 1."""
    optimizer.zero_grad()
    weight = gaussians["tag"].float() + 1
    torch.stack(
        [(gaussians[name] * weight.view(-1, *[1] * (gaussians[name].ndim - 1))).sum() for name in TRAINED]
    ).sum().backward()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def observe(control: DensityControl, gaussians: GaussianSet, grads: Sequence[float]) -> None:
    """One view that sees every Gaussian."""
    control.observe(gaussians, torch.arange(len(grads)), torch.tensor(grads), torch.ones(len(grads)))


def apply(
    control: DensityControl,
    gaussians: GaussianSet,
    optimizer: torch.optim.Adam | None,
    step: int,
    **known: Callable[..., Any],
) -> DensityChange:
    return control.apply(gaussians, optimizer, step, torch.Generator().manual_seed(step), DensityContext(**known))


def tags(gaussians: GaussianSet) -> list[int]:
    return gaussians["tag"].tolist()


def opacities(gaussians: GaussianSet) -> Tensor:
    return gaussians["opacities"].detach().sigmoid()


def check_moments(gaussians: GaussianSet, optimizer: torch.optim.Adam, fresh: Tensor, name: str) -> None:
    """Adam's moments of a field are those of the same Gaussians, and zero in the rows ``fresh`` (bool [N])."""
    state = optimizer.state[gaussians[name]]
    grad = (gaussians["tag"].float() + 1) * ~fresh
    for key, factor, power in (("exp_avg", 0.1, 1), ("exp_avg_sq", 0.001, 2)):
        expected = (factor * grad**power).view(-1, *[1] * (gaussians[name].ndim - 1)).expand_as(gaussians[name])
        torch.testing.assert_close(state[key], expected, rtol=1e-5, atol=0)


def plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """``surface_project`` of the plane z = 0."""
    return points * torch.tensor([1.0, 1.0, 0.0]), points[:, 2]


def height(points: Tensor) -> Tensor:
    """``surface_distance`` of the plane z = 0."""
    return points[:, 2].abs()
