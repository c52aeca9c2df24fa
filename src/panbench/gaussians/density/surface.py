"""Density control that knows the surface: hard to grow away from it, easy to be pruned there (LI-GS)."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.density.adaptive import AdaptiveDensityControl
from panbench.gaussians.density.control import DensityContext, check_settings, opacities_of, positive
from panbench.gaussians.gaussian_set import GaussianSet

_Known = TypeVar("_Known")


class SurfaceDensityControl(AdaptiveDensityControl):
    """Adaptive density control whose thresholds depend on the distance δ to a known surface.

    Jiang et al. 2024 (LI-GS) say that growth and pruning thresholds are weighted by the distance to the surface of
    their mixture, and that nothing is pruned by distance alone. We have not seen their equations: **every formula and
    number here is our inference.** With δ at most ``max_distance``:

    - grow where the mean gradient exceeds ``grad_threshold`` · (1 + (δ/δ0)²);
    - prune where o < ``prune_opacity`` · min(1 + δ/δ0, ``prune_factor``);
    - children of a split that lie within δ0 of the nearest plane are moved half-way onto it.

    What no depth sensor saw (glass, black, far surfaces) may stay where it is opaque.
    """

    def __init__(
        self,
        prune_opacity: float = 0.05,
        distance_scale: float = 0.05,
        max_distance: float = 0.3,
        prune_factor: float = 6.0,
        **settings: Any,
    ) -> None:
        """Args:
        prune_opacity: drop below this opacity on the surface. As published for 2DGS.
        distance_scale: δ0, metres: where growth takes twice the gradient. Our inference.
        max_distance: δ of what has no surface near, and the largest δ, metres. Our inference.
        prune_factor: ``prune_opacity`` is raised by at most this. Our inference.
        settings: of AdaptiveDensityControl.

        Raises:
            UserError: settings out of range.
        """
        super().__init__(prune_opacity=prune_opacity, **settings)
        check_settings(
            *positive(distance_scale=distance_scale, max_distance=max_distance),
            (prune_factor >= 1, f"prune_factor is {prune_factor}; it must be at least 1"),
        )
        self.distance_scale = distance_scale
        self.max_distance = max_distance
        self.prune_factor = prune_factor

    def growth_score(self, gaussians: GaussianSet, context: DensityContext) -> Tensor:
        """The score of the base class, divided by 1 + (δ/δ0)², which is the same as a threshold that much higher."""
        score = super().growth_score(gaussians, context)
        # The divisor is never below 1, so only what passes without it needs a distance.
        rows = (score > self.grad_threshold).nonzero().squeeze(-1)
        relative = self._distances(gaussians["means"].detach()[rows], context) / self.distance_scale
        return score.index_put((rows,), score[rows] / (1 + relative.square()))

    def opacity_floor(self, gaussians: GaussianSet, context: DensityContext) -> Tensor:
        opacities = opacities_of(gaussians)
        floor = torch.full_like(opacities, self.prune_opacity)
        rows = (opacities < self.prune_opacity * self.prune_factor).nonzero().squeeze(-1)
        relative = self._distances(gaussians["means"].detach()[rows], context) / self.distance_scale
        return floor.index_put((rows,), self.prune_opacity * (1 + relative).clamp(max=self.prune_factor))

    def place_children(self, means: Tensor, context: DensityContext) -> Tensor:
        feet, distances = _known(context.surface_project)(means)
        near = distances.abs() < self.distance_scale
        return torch.where(near[:, None], (means + feet) / 2, means)

    def _distances(self, points: Tensor, context: DensityContext) -> Tensor:
        """δ [K] of points [K, 3], metres."""
        distance = _known(context.surface_distance)
        return distance(points).clamp(max=self.max_distance) if len(points) else points.new_zeros(0)


def _known(function: _Known | None) -> _Known:
    if function is None:
        raise UserError(
            "densify: SurfaceDensityControl needs a base model that knows a surface (LiGS); choose "
            "AdaptiveDensityControl for this one"
        )
    return function
