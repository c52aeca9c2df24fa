"""What the controls share that grow where the screen-space gradient is large: statistics, clones, splits, pruning."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.gaussians import surgery
from panbench.gaussians.density.composition import share_opacity
from panbench.gaussians.density.control import DensityControl
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet, rows_of
from panbench.gaussians.rotation import rotation_matrices

log = logging.getLogger(__name__)


class GradientDensityControl(DensityControl):
    """Keeps the mean gradient of every projected centre over the views that saw it since the last densification."""

    def fields(self) -> dict[str, FieldSpec]:
        """The statistics: ``density_grad`` (sum of gradient norms) and ``density_views`` (number of views)."""
        return {"density_grad": zeros(), "density_views": zeros()}

    def observe(self, gaussians: GaussianSet, ids: Tensor, screen_grad: Tensor, radii: Tensor) -> None:
        seen = (radii > 0).to(torch.float32)
        gaussians["density_grad"].index_add_(0, ids, screen_grad.detach() * seen)
        gaussians["density_views"].index_add_(0, ids, seen)

    def mean_over_views(self, gaussians: GaussianSet, statistic: str) -> Tensor:
        """A summed statistic divided by the number of views [N]; 0 for what was not seen."""
        return gaussians[statistic] / gaussians["density_views"].clamp(min=1)

    def forget(self, gaussians: GaussianSet) -> None:
        """Start the statistics over."""
        for name in self.fields():
            gaussians[name].zero_()


def paused(step: int, reset_every: int, pause: int) -> bool:
    """Whether the last opacity reset, at a multiple of ``reset_every`` (0: none), is less than ``pause`` steps ago."""
    return 0 < reset_every < step and 0 < step % reset_every < pause


def within_room(chosen: Tensor, score: Tensor, room: int) -> Tensor:
    """Those of the rows ``chosen`` [K] that fit into ``room`` more Gaussians, largest ``score`` [N] first; ascending.

    A candidate adds one Gaussian either way: a clone one, a split two less the parent.
    """
    if len(chosen) <= max(room, 0):
        return chosen
    order = score[chosen].argsort(descending=True, stable=True)
    return chosen[order[: max(room, 0)]].sort().values


def clone_and_split(
    gaussians: GaussianSet,
    optimizer: Optimizer | None,
    cloned: Tensor,
    parents: Tensor,
    generator: torch.Generator,
    *,
    shrink: float,
    revised_opacity: bool = False,
    place: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Append a copy of each of ``cloned`` and two children of each of ``parents``, which are still there after it.

    Children lie at μ + R (s ⊙ N(0, I)) over the axes that have a scale, so those of a disc in its plane, and are
    smaller by ``shrink``.

    Args:
        revised_opacity: clones, what they are clones of, and children get 1 − sqrt(1 − o).
        place: moves the children's centres [2K, 3] once they are drawn.
    """
    if len(cloned) + len(parents) == 0:
        return
    if revised_opacity and len(cloned):
        shared = share_opacity(gaussians["opacities"].detach()[cloned], 2)
        surgery.overwrite(gaussians, cloned, {"opacities": shared}, optimizer)
    rows = rows_of(gaussians, torch.cat([cloned, parents, parents]))
    children = slice(len(cloned), None)
    spread = rows["scales"][children].exp()
    noise = torch.randn(spread.shape, generator=generator, device=generator.device).to(spread)
    axes = rotation_matrices(rows["quats"][children])[..., : spread.shape[-1]]
    drawn = rows["means"][children] + (axes @ (spread * noise)[..., None]).squeeze(-1)
    rows["means"][children] = place(drawn) if place is not None and len(parents) else drawn
    rows["scales"][children] -= math.log(shrink)
    if revised_opacity:
        rows["opacities"][children] = share_opacity(rows["opacities"][children], 2)
    surgery.append(gaussians, rows, optimizer)


def prune(
    gaussians: GaussianSet, keep: Tensor, optimizer: Optimizer | None, step: int, parents: Tensor | None = None
) -> None:
    """Keep the rows ``keep`` [N], or all if that were none; either way without the split ``parents`` (row numbers)."""
    rest = torch.ones_like(keep)
    if parents is not None:
        rest[parents] = False
    keep = keep & rest
    if not keep.any():
        log.warning("step %d: every Gaussian is due to be pruned; none is (the training has gone astray)", step)
        keep = rest
    if not keep.all():
        surgery.take(gaussians, keep, optimizer)
