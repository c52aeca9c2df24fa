"""Adaptive density control of 3DGS and 2DGS: clone, split, prune, opacity reset, and the variants that came later."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.errors import UserError
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
from panbench.gaussians.gaussian_set import GaussianSet

log = logging.getLogger(__name__)


class AdaptiveDensityControl(GradientDensityControl):
    """Grows the set where the screen-space gradient is large, drops what has become transparent or too big.

    Kerbl et al. 2023, §5, with the numbers of their code, which are the defaults. Huang et al. 2024 (2DGS) differ in
    ``prune_opacity`` 0.05 alone. In this order: clone and split, prune, forget the statistics; then the opacity reset.
    """

    def __init__(
        self,
        start: int = 500,
        stop: int = 15_000,
        every: int = 100,
        grad_threshold: float = 2e-4,
        absgrad: bool = False,
        prune_opacity: float = 0.005,
        reset_every: int = 3000,
        reset_opacity: float = 0.01,
        pause_after_reset: int = 0,
        opacity_decay: float = 1.0,
        decay_every: int = 50,
        split_scale: float = 0.01,
        split_shrink: float = 1.6,
        revised_opacity: bool = False,
        prune_scale: float = 0.1,
        panoptic_weight: float = 0.0,
        panoptic_scale: float = 0.01,
        max_gaussians: int = 1_000_000,
    ) -> None:
        """Args:
        start, stop, every: densify at the multiples of ``every`` in (start, stop), so first at 600 and last at 14 900
            with the published numbers. ``stop`` 0: never.
        grad_threshold: mean norm of the gradient with respect to the projected centre in NDC units, above which a
            Gaussian is cloned or split. Published: 2e-4; 8e-4 with absgrad.
        absgrad: sum the absolute gradients of the pixels instead (Ye et al. 2024, AbsGS): gradients of pixels on
            either side of a Gaussian that is too large do not cancel. Ellipsoids only. Published: off.
        prune_opacity: drop below this opacity. Published: 0.005; 0.05 in 2DGS.
        reset_every: at its multiples below ``stop``, opacities are lowered to ``reset_opacity``; 0: never.
        reset_opacity: highest opacity after a reset. Published: 0.01.
        pause_after_reset: less than that many steps after a reset nothing is densified, as the reset itself makes
            gradients large (gsplat; its advice is the number of training frames). Published: 0.
        opacity_decay: factor on every opacity at the multiples of ``decay_every`` in (start, stop), in place of resets
            (Radl et al. 2024, StopThePop: 0.9995 each 50 steps). 1: none, as published.
        decay_every: steps from one decay to the next.
        split_scale: largest scale, in scene extents, up to which a Gaussian is cloned; above it is split.
        split_shrink: factor by which the two children of a split are smaller.
        revised_opacity: clones, the cloned and children get 1 − sqrt(1 − o), of which two compose to o (Rota Bulò et
            al. 2024). Published 3DGS: off, they keep o.
        prune_scale: largest scale, in scene extents, that survives once the first reset is over.
        panoptic_weight: w of panoptic-guided densification: w · exp(−s²/2σ²) · label confidence is added to the mean
            gradient of every Gaussian that was seen. OmniIndoor3D (2025) gives the form; that s is the largest scale,
            w and σ are our design, not theirs. Below ``grad_threshold`` it eases growth; above it, small Gaussians of
            certain label are cloned each time. 0: off.
        panoptic_scale: σ of it, in scene extents. Our choice: where clones end.
        max_gaussians: growth stops there; the largest scores go first. Not published: a bound on memory.

        Raises:
            UserError: settings out of range.
        """
        check_settings(
            *schedule_rules(start, stop, every, max_gaussians),
            *not_negative(
                grad_threshold=grad_threshold,
                reset_every=reset_every,
                pause_after_reset=pause_after_reset,
                split_scale=split_scale,
                panoptic_weight=panoptic_weight,
            ),
            *positive(split_shrink=split_shrink, prune_scale=prune_scale, panoptic_scale=panoptic_scale),
            (0 <= prune_opacity < 1, f"prune_opacity is {prune_opacity}; it must be in [0, 1)"),
            (0 < reset_opacity < 1, f"reset_opacity is {reset_opacity}; it must be between 0 and 1"),
            (0 < opacity_decay <= 1, f"opacity_decay is {opacity_decay}; it must be in (0, 1], 1: none"),
            (decay_every >= 1, f"decay_every is {decay_every}; it must be at least 1"),
        )
        self.start = start
        self.stop = stop
        self.every = every
        self.grad_threshold = grad_threshold
        self.absolute = absgrad
        self.prune_opacity = prune_opacity
        self.reset_every = reset_every
        self.reset_opacity = reset_opacity
        self.pause_after_reset = pause_after_reset
        self.opacity_decay = opacity_decay
        self.decay_every = decay_every
        self.split_scale = split_scale
        self.split_shrink = split_shrink
        self.revised_opacity = revised_opacity
        self.prune_scale = prune_scale
        self.panoptic_weight = panoptic_weight
        self.panoptic_scale = panoptic_scale
        self.max_gaussians = max_gaussians

    def watches(self, step: int) -> bool:
        return step < self.stop

    def due(self, step: int) -> bool:
        return self._densifies(step) or self._decays(step) or self._resets(step)

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
            cloned, parents = self._grow(gaussians, optimizer, generator, context)
            split = len(parents)
            keep = opacities_of(gaussians) >= self.opacity_floor(gaussians, context)
            if 0 < self.reset_every < step:
                keep &= largest_scales(gaussians) <= self.prune_scale * self.extent
            prune(gaussians, keep, optimizer, step, parents)
            pruned = before + cloned + split - len(gaussians)
            self.forget(gaussians)
        if self._decays(step):
            # Not a reset: what Adam has learnt of an opacity stays true.
            with torch.no_grad():
                decayed = gaussians["opacities"].double().sigmoid() * self.opacity_decay
                gaussians["opacities"].copy_(decayed.logit())
        if self._resets(step):
            logit = math.log(self.reset_opacity / (1 - self.reset_opacity))
            surgery.reset(gaussians, "opacities", gaussians["opacities"].detach().clamp(max=logit), optimizer)
        change = DensityChange(cloned, split, pruned, self._resets(step), len(gaussians))
        log.debug("step %d: %s", step, change)
        return change

    def growth_score(self, gaussians: GaussianSet, context: DensityContext) -> Tensor:
        """What must exceed ``grad_threshold`` for a Gaussian to be cloned or split [N].

        Raises:
            UserError: ``panoptic_weight`` is set, and the model has no label confidence.
        """
        score = self.mean_over_views(gaussians, "density_grad")
        if self.panoptic_weight == 0:
            return score
        confidence = context.label_confidence() if context.label_confidence is not None else None
        if confidence is None:
            raise UserError(
                f"densify: panoptic_weight is {self.panoptic_weight}, and the head has no confidence in its labels; "
                "set it to 0 or choose a head that has"
            )
        relative = largest_scales(gaussians) / (self.panoptic_scale * self.extent)
        bonus = (-relative.square() / 2).exp() * confidence.detach().reshape(len(gaussians))
        return score + self.panoptic_weight * bonus * (gaussians["density_views"] > 0)

    def opacity_floor(self, gaussians: GaussianSet, context: DensityContext) -> Tensor | float:
        """Opacity [N] or for all, below which a Gaussian is pruned."""
        return self.prune_opacity

    def place_children(self, means: Tensor, context: DensityContext) -> Tensor:
        """Where the children of splits go [K, 3], given where they were drawn [K, 3]."""
        return means

    def _densifies(self, step: int) -> bool:
        due = self.start < step < self.stop and step % self.every == 0
        return due and not paused(step, self.reset_every, self.pause_after_reset)

    def _decays(self, step: int) -> bool:
        return self.opacity_decay < 1 and self.start < step < self.stop and step % self.decay_every == 0

    def _resets(self, step: int) -> bool:
        return self.reset_every > 0 and 0 < step < self.stop and step % self.reset_every == 0

    def _grow(
        self, gaussians: GaussianSet, optimizer: Optimizer | None, generator: torch.Generator, context: DensityContext
    ) -> tuple[int, Tensor]:
        """Append clones of small candidates and two children of each large one.

        Returns the number of clones and the rows of the split parents, which are still there.
        """
        score = self.growth_score(gaussians, context)
        chosen = (score > self.grad_threshold).nonzero().squeeze(-1)
        chosen = within_room(chosen, score, self.max_gaussians - len(gaussians))
        large = largest_scales(gaussians)[chosen] > self.split_scale * self.extent
        cloned, parents = chosen[~large], chosen[large]
        clone_and_split(
            gaussians,
            optimizer,
            cloned,
            parents,
            generator,
            shrink=self.split_shrink,
            revised_opacity=self.revised_opacity,
            place=lambda means: self.place_children(means, context),
        )
        return len(cloned), parents
