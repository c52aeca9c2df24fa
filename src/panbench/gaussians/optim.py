"""The one optimiser of a run: Adam with a named group per field, and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from panbench.gaussians.gaussian_set import GaussianSet

BETAS = (0.9, 0.999)
EPS = 1e-15
# Devices for which torch has a fused Adam kernel.
_FUSED_ON = ("cpu", "cuda")


class LogLinear:
    """Factor of the first learning rate at a step: log-linear from 1 to ``final`` at ``steps``, constant after it.

    A class and not a closure, so that it pickles; its attributes are plain numbers and go into checkpoints.
    """

    def __init__(self, final: float, steps: int) -> None:
        """Args: factor at the end, > 0; number of steps, ≥ 1."""
        self.final = final
        self.steps = steps

    def __call__(self, step: int) -> float:
        return self.final ** min(step / self.steps, 1.0)


def build_optimizer(
    gaussians: GaussianSet, extra_groups: Sequence[Mapping[str, Any]], max_steps: int
) -> tuple[torch.optim.Adam, LambdaLR]:
    """Adam (β = 0.9, 0.999; ε = 1e-15; no weight decay; fused on CPU and CUDA) and its scheduler, stepped once a step.

    Args:
        extra_groups: parameters that are not per Gaussian (queries, decoders):
            ``{"name", "params", "lr"}`` and optionally "lr_final"; groups without parameters are left out.
        max_steps: where every ``lr_final`` is reached.

    Raises:
        ValueError: a group's name is used twice.
    """
    groups = [*gaussians.groups()]
    for given in extra_groups:
        group = {"lr_final": None, **given, "params": list(given["params"])}
        if group["params"]:
            groups.append(group)
    names = [group["name"] for group in groups]
    if len(set(names)) != len(names):
        raise ValueError(f"optimiser groups share a name: {names}")
    schedules = [
        LogLinear(1.0 if group["lr_final"] is None else group["lr_final"] / group["lr"], max(max_steps, 1))
        for group in groups
    ]
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in _FUSED_ON and p.is_floating_point() for p in parameters)
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPS, fused=fused)
    return optimizer, LambdaLR(optimizer, schedules)
