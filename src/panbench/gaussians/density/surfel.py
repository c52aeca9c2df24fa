"""Density control of Gaussian surfels: prune first, grow with a low threshold, dim everything often."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.gaussians import surgery
from panbench.gaussians.density.control import (
    DensityChange,
    DensityContext,
    check_settings,
    largest_scales,
    not_negative,
    opacities_of,
    positive,
    schedule_rules,
)
from panbench.gaussians.density.growth import GradientDensityControl, clone_and_split, paused, prune, within_room
from panbench.gaussians.fields import FieldSpec, zeros
from panbench.gaussians.gaussian_set import GaussianSet

log = logging.getLogger(__name__)


class SurfelDensityControl(GradientDensityControl):
    """Dai et al. 2024, "High-quality Surface Reconstruction using Gaussian Surfels"; all defaults as in their code.

    In this order: prune, clone and split, forget the statistics; then, where it is due, all opacities are dimmed.
    """

    def __init__(
        self,
        start: int = 200,
        stop: int | None = None,
        every: int = 100,
        grad_threshold: float = 1e-4,
        clone_scale_grad: float = 1e-7,
        clone_logit: float = 2.0,
        split_scale: float = 0.01,
        split_shrink: float = 1.6,
        prune_opacity: float = 0.1,
        prune_scale: float = 0.5,
        prune_area: float = 1e-8,
        reset_every: int = 1000,
        reset_factor: float = 0.12,
        pause_after_reset: int = 100,
        max_gaussians: int = 1_000_000,
    ) -> None:
        """Args:
        start: densify at the multiples of the interval above it. Published 200.
        stop: below it; null: to the end of the run, as published. 0: never.
        every: the interval is the larger of this and the number of training frames, so that each of them has been seen
            about once. Published 100.
        grad_threshold: mean norm of the gradient with respect to the projected centre in NDC units, above which a
            surfel is cloned or split. Published 1e-4.
        clone_scale_grad: clone only where the mean over views of ∂L/∂(log s_x) + ∂L/∂(log s_y) is at most this, so
            not where the loss asks for a smaller surfel. Published 1e-7.
        clone_logit: clone only where the logit of opacity is at most this. Published 2.
        split_scale: largest scale, in scene extents, up to which a surfel is cloned; above it is split. Published 0.01.
        split_shrink: factor by which the two children of a split are smaller. Published 1.6.
        prune_opacity: drop below this opacity. Published 0.1.
        prune_scale: drop above this largest scale, in scene extents. Published 0.5.
        prune_area: drop below this s_x s_y, in squared scene extents. Published 1e-8.
        reset_every: at its multiples before the end, every opacity is multiplied by ``reset_factor``; 0: never.
            Published 1000.
        reset_factor: published 0.12.
        pause_after_reset: less than that many steps after a reset nothing is densified. Our choice: it changes nothing
            at the published interval of 100, but with, say, 143 frames step 1001 would prune nearly everything.
        max_gaussians: growth stops there; the largest gradients go first. Not published: a bound on memory.

        Raises:
            UserError: settings out of range.
        """
        check_settings(
            *schedule_rules(start, stop, every, max_gaussians),
            *not_negative(
                grad_threshold=grad_threshold,
                split_scale=split_scale,
                prune_area=prune_area,
                reset_every=reset_every,
                pause_after_reset=pause_after_reset,
            ),
            *positive(split_shrink=split_shrink, prune_scale=prune_scale),
            (0 <= prune_opacity < 1, f"prune_opacity is {prune_opacity}; it must be in [0, 1)"),
            (0 < reset_factor < 1, f"reset_factor is {reset_factor}; it must be between 0 and 1"),
        )
        self.start = start
        self.stop = stop
        self.every = every
        self.grad_threshold = grad_threshold
        self.clone_scale_grad = clone_scale_grad
        self.clone_logit = clone_logit
        self.split_scale = split_scale
        self.split_shrink = split_shrink
        self.prune_opacity = prune_opacity
        self.prune_scale = prune_scale
        self.prune_area = prune_area
        self.reset_every = reset_every
        self.reset_factor = reset_factor
        self.pause_after_reset = pause_after_reset
        self.max_gaussians = max_gaussians

    def fields(self) -> dict[str, FieldSpec]:
        """Those of the base class and ``density_scale_grad``, the sum over views of ∂L/∂(log s_x) + ∂L/∂(log s_y)."""
        return {**super().fields(), "density_scale_grad": zeros()}

    def watches(self, step: int) -> bool:
        return step < self._end

    def observe(self, gaussians: GaussianSet, ids: Tensor, screen_grad: Tensor, radii: Tensor) -> None:
        super().observe(gaussians, ids, screen_grad, radii)
        grad = gaussians["scales"].grad
        if grad is None:
            raise ValueError("the scales have no gradient: observe comes after the backward pass")
        gaussians["density_scale_grad"].index_add_(0, ids, grad[ids, :2].sum(-1) * (radii > 0))

    def due(self, step: int) -> bool:
        return self._densifies(step) or self._resets(step)

    def apply(
        self,
        gaussians: GaussianSet,
        optimizer: Optimizer | None,
        step: int,
        generator: torch.Generator,
        context: DensityContext,
    ) -> DensityChange:
        cloned = split = pruned = 0
        if self._densifies(step):
            before = len(gaussians)
            prune(gaussians, self._survivors(gaussians), optimizer, step)
            pruned = before - len(gaussians)
            cloned, split = self._grow(gaussians, optimizer, step, generator)
            self.forget(gaussians)
        if self._resets(step):
            dimmed = gaussians["opacities"].detach().double().sigmoid().mul(self.reset_factor).logit()
            surgery.reset(gaussians, "opacities", dimmed.to(gaussians["opacities"].dtype), optimizer)
        change = DensityChange(cloned, split, pruned, self._resets(step), len(gaussians))
        log.debug("step %d: %s", step, change)
        return change

    @property
    def _end(self) -> int:
        return self.max_steps if self.stop is None else self.stop

    def _densifies(self, step: int) -> bool:
        due = self.start < step < self._end and step % max(self.every, self.frames) == 0
        return due and not paused(step, self.reset_every, self.pause_after_reset)

    def _resets(self, step: int) -> bool:
        return self.reset_every > 0 and 0 < step < self._end and step % self.reset_every == 0

    def _survivors(self, gaussians: GaussianSet) -> Tensor:
        """Rows that are opaque enough, neither too large nor too small, and were seen since the last time: bool [N]."""
        area = gaussians["scales"].detach()[:, :2].sum(-1).exp()
        return (
            (opacities_of(gaussians) >= self.prune_opacity)
            & (largest_scales(gaussians) <= self.prune_scale * self.extent)
            & (area >= self.prune_area * self.extent**2)
            & (gaussians["density_views"] > 0)
        )

    def _grow(
        self, gaussians: GaussianSet, optimizer: Optimizer | None, step: int, generator: torch.Generator
    ) -> tuple[int, int]:
        """Add clones, and put two children in the place of each split one. Returns how many were cloned and split."""
        score = self.mean_over_views(gaussians, "density_grad")
        large = largest_scales(gaussians) > self.split_scale * self.extent
        may_clone = self.mean_over_views(gaussians, "density_scale_grad") <= self.clone_scale_grad
        may_clone &= gaussians["opacities"].detach().reshape(len(gaussians)) <= self.clone_logit
        chosen = ((score > self.grad_threshold) & (large | may_clone)).nonzero().squeeze(-1)
        chosen = within_room(chosen, score, self.max_gaussians - len(gaussians))
        cloned, parents = chosen[~large[chosen]], chosen[large[chosen]]
        clone_and_split(gaussians, optimizer, cloned, parents, generator, shrink=self.split_shrink)
        everything = torch.ones(len(gaussians), dtype=torch.bool, device=parents.device)
        prune(gaussians, everything, optimizer, step, parents)
        return len(cloned), len(parents)
