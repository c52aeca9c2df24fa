"""Adaptive density control of 3DGS: clone, split, prune, opacity reset (specification 1.11 of the base models)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.errors import UserError
from panbench.gaussians import surgery
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet, rows_of
from panbench.gaussians.rotation import rotation_matrices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DensityChange:
    """What one application did. Parents of splits do not count as pruned; ``count`` is N after it."""

    cloned: int
    split: int
    pruned: int
    reset: bool
    count: int


class AdaptiveDensityControl:
    """Grows the set where the screen-space gradient is large, drops what has become transparent or too big.

    Needs the fields ``means`` [3], ``quats`` [4], ``scales`` (log) [2 or 3], ``opacities`` (logit) [] or [1], and its
    own two of :meth:`fields`. Those are fields of the set, so surgery keeps them aligned and checkpoints carry them.
    """

    def __init__(
        self,
        start: int = 500,
        stop: int = 15_000,
        every: int = 100,
        grad_threshold: float = 2e-4,
        prune_opacity: float = 0.005,
        reset_every: int = 3000,
        reset_opacity: float = 0.01,
        split_scale: float = 0.01,
        split_shrink: float = 1.6,
        prune_scale: float = 0.1,
        max_gaussians: int = 1_000_000,
    ) -> None:
        """Args:
        start, stop, every: densify at the multiples of ``every`` in (start, stop). ``stop`` 0: never.
        grad_threshold: mean norm of the gradient with respect to the projected centre in NDC units, above which a
            Gaussian is cloned or split.
        prune_opacity: drop below this opacity.
        reset_every: at its multiples below ``stop``, opacities are lowered to ``reset_opacity``; 0: never.
        split_scale: largest scale, in scene extents, up to which a Gaussian is cloned; above it is split.
        split_shrink: factor by which the two children of a split are smaller.
        prune_scale: largest scale, in scene extents, that survives once the first reset is over.
        max_gaussians: growth stops there; the largest gradients go first.
        """
        if every < 1 or reset_every < 0 or split_shrink <= 0:
            raise UserError(
                f"densify: every {every}, split_shrink {split_shrink} must be positive, reset_every {reset_every} "
                "not negative"
            )
        if not (0 <= prune_opacity < 1 and 0 < reset_opacity < 1):
            raise UserError(
                f"densify: prune_opacity {prune_opacity}, reset_opacity {reset_opacity} must be between 0 and 1"
            )
        self.start = start
        self.stop = stop
        self.every = every
        self.grad_threshold = grad_threshold
        self.prune_opacity = prune_opacity
        self.reset_every = reset_every
        self.reset_opacity = reset_opacity
        self.split_scale = split_scale
        self.split_shrink = split_shrink
        self.prune_scale = prune_scale
        self.max_gaussians = max_gaussians
        self.extent = 1.0
        """Scene extent [m] (:meth:`panbench.scene.Scene.extent`); set by the model once the scene is known."""

    def fields(self) -> dict[str, FieldSpec]:
        """The statistics: ``density_grad`` (sum of gradient norms) and ``density_views`` (number of views)."""
        return {"density_grad": zeros(), "density_views": zeros()}

    def observe(self, gaussians: GaussianSet, ids: Tensor, screen_grad: Tensor, radii: Tensor) -> None:
        """Add one view to the statistics; call it each step before ``stop``, after the backward pass.

        Args:
            ids: rows of the visible Gaussians [M], unique.
            screen_grad: ‖(∂L/∂x · W/2, ∂L/∂y · H/2)‖ [M], the gradient of the projected centre in NDC units.
            radii: extent on the screen [M] in pixels; 0 counts as not seen.
        """
        seen = (radii > 0).to(torch.float32)
        gaussians["density_grad"].index_add_(0, ids, screen_grad.detach() * seen)
        gaussians["density_views"].index_add_(0, ids, seen)

    def due(self, step: int) -> bool:
        """Whether :meth:`apply` has something to do after optimiser step number ``step`` (from 1)."""
        return self._densifies(step) or self._resets(step)

    def apply(
        self, gaussians: GaussianSet, optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> DensityChange:
        """Clone, split and prune, and reset opacities, as far as they are due after step ``step``.

        Args:
            generator: source of the children's places; a run that is to resume bit for bit seeds it from ``step``.
        """
        cloned = split = pruned = 0
        if self._densifies(step):
            before = len(gaussians)
            cloned, parents = self._grow(gaussians, optimizer, generator)
            split = len(parents)
            self._prune(gaussians, parents, optimizer, step)
            pruned = before + cloned + split - len(gaussians)
            for name in self.fields():
                gaussians[name].zero_()
        if self._resets(step):
            logit = math.log(self.reset_opacity / (1 - self.reset_opacity))
            surgery.reset(gaussians, "opacities", gaussians["opacities"].detach().clamp(max=logit), optimizer)
        change = DensityChange(cloned, split, pruned, self._resets(step), len(gaussians))
        log.debug("step %d: %s", step, change)
        return change

    def _densifies(self, step: int) -> bool:
        return self.start < step < self.stop and step % self.every == 0

    def _resets(self, step: int) -> bool:
        return self.reset_every > 0 and 0 < step < self.stop and step % self.reset_every == 0

    def _grow(
        self, gaussians: GaussianSet, optimizer: Optimizer | None, generator: torch.Generator
    ) -> tuple[int, Tensor]:
        """Append clones of small candidates and two children of each large one.

        Returns the number of clones and the rows of the split parents, which are still there.
        """
        mean_grad = gaussians["density_grad"] / gaussians["density_views"].clamp(min=1)
        chosen = (mean_grad > self.grad_threshold).nonzero().squeeze(-1)
        # Either way a candidate adds one Gaussian: a clone one, a split two less the parent.
        room = max(self.max_gaussians - len(gaussians), 0)
        if len(chosen) > room:
            order = mean_grad[chosen].argsort(descending=True, stable=True)
            chosen = chosen[order[:room]].sort().values
        if len(chosen) == 0:
            return 0, chosen
        large = gaussians["scales"].detach()[chosen].amax(-1).exp() > self.split_scale * self.extent
        cloned, parents = chosen[~large], chosen[large]
        rows = rows_of(gaussians, torch.cat([cloned, parents, parents]))
        children = slice(len(cloned), None)
        spread = rows["scales"][children].exp()
        noise = torch.randn(spread.shape, generator=generator, device=generator.device).to(spread)
        axes = rotation_matrices(rows["quats"][children])[..., : spread.shape[-1]]
        rows["means"][children] += (axes @ (spread * noise)[..., None]).squeeze(-1)
        rows["scales"][children] -= math.log(self.split_shrink)
        surgery.append(gaussians, rows, optimizer)
        return len(cloned), parents

    def _prune(self, gaussians: GaussianSet, parents: Tensor, optimizer: Optimizer | None, step: int) -> None:
        """Drop the split parents, the transparent, and after the first reset the oversized."""
        keep = gaussians["opacities"].detach().reshape(len(gaussians)).sigmoid() >= self.prune_opacity
        if 0 < self.reset_every < step:
            keep &= gaussians["scales"].detach().amax(-1).exp() <= self.prune_scale * self.extent
        keep[parents] = False
        if not keep.any():
            log.warning("step %d: every Gaussian is due to be pruned; none is (the training has gone astray)", step)
        elif not keep.all():
            surgery.take(gaussians, keep, optimizer)
