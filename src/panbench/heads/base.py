"""What a panoptic head is: something that turns Gaussians into a panoptic map.

A head knows nothing of files, densification or Lightning. It declares per-Gaussian fields, says which channels to
splat, what is wrong with the splatted channels, and how to read a panoptic map off them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.ops import LabelSums, LabelTargets
from panbench.scene import Camera, Frame, LabelSpace, PanopticMap, Scene


@dataclass(frozen=True, eq=False)
class LabelView:
    """Splatted label channels of one view.

    Attributes:
        channels: [H, W, C], Σ w · channels over the Gaussians of the view.
        alpha: [H, W]. depth: [H, W], expected depth in metres, 0 where alpha is small; both without gradient.
        sums: of the channels against the head's targets; None where it gave none.
    """

    channels: Tensor
    alpha: Tensor
    depth: Tensor
    sums: LabelSums | None = None


@dataclass(frozen=True, eq=False)
class StepContext:
    """What a training step offers a head beside its own view.

    Attributes:
        step: optimiser steps done so far.
        neighbor: loads a training frame close to this one, another one each step; None if there is none.
        splat: renders channels [M, C] that a function gives for visible ids [M] into another camera.
    """

    step: int
    neighbor: Callable[[], Frame | None]
    splat: Callable[[Camera, Callable[[Tensor], Tensor]], LabelView]


@dataclass(frozen=True, eq=False)
class GaussianLabels:
    """Per-Gaussian labels [N]: class id (0 void), object id (0 none), score in [0, 1] of the class."""

    semantic: Tensor
    instance: Tensor
    score: Tensor


class PanopticHead(nn.Module):
    """Base of all heads."""

    def build(self, labels: LabelSpace) -> None:
        """Make everything whose size depends on the label space. Idempotent."""
        raise NotImplementedError

    def seed(self, scene: Scene) -> None:
        """Initialise from the scene's training frames. Called once, at the start of a new run, after ``build``."""

    def initialise(self, gaussians: GaussianSet, scene: Scene) -> None:
        """Start the head's fields from the scene. Called once, at the start of a new run, after ``seed``."""

    def resize_like(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Give tensors the sizes they have in a checkpoint. Called after ``build``, before the weights are loaded."""

    def fields(self) -> Mapping[str, FieldSpec]:
        """Per-Gaussian fields that the head needs."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of what is not per Gaussian: ``{"name", "params", "lr"}`` and optionally "lr_final"."""
        return []

    def channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        """What to splat for the visible Gaussians ``ids`` [M]: [M, C]. C may change between steps."""
        raise NotImplementedError

    def targets(self, frame: Frame) -> LabelTargets | None:
        """What the channels of a training view are compared with while they are blended; asked before that.

        ``losses`` then finds the sums in its view. None: the head looks at the channels alone.
        """
        return None

    def losses(self, view: LabelView, frame: Frame, gaussians: GaussianSet, context: StepContext) -> dict[str, Tensor]:
        """Weighted loss terms by name; empty where the frame has nothing to teach."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Upkeep after optimiser step number ``step`` (from 1). Tensors that are optimised keep their sizes here."""

    @property
    def instance_count(self) -> int:
        """How many of the channels, the last ones, stand for instances."""
        return 0

    def confidence(self, gaussians: GaussianSet) -> Tensor:
        """How sure the label of every Gaussian is [N], in [0, 1]; without gradient."""
        return self.label(gaussians).score

    def decode(self, view: LabelView) -> PanopticMap:
        """Panoptic map of a view; object ids are those of the scene."""
        raise NotImplementedError

    def label(self, gaussians: GaussianSet) -> GaussianLabels:
        """Class, object and score of every Gaussian."""
        raise NotImplementedError


class NoHead(PanopticHead):
    """No labels: trains and predicts appearance and geometry only; every pixel is void."""

    def build(self, labels: LabelSpace) -> None:
        pass

    def fields(self) -> Mapping[str, FieldSpec]:
        return {}

    def channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        return gaussians["means"].new_zeros(len(ids), 0)

    def losses(self, view: LabelView, frame: Frame, gaussians: GaussianSet, context: StepContext) -> dict[str, Tensor]:
        return {}

    def decode(self, view: LabelView) -> PanopticMap:
        void = torch.zeros(view.alpha.shape, dtype=torch.int64, device=view.alpha.device)
        return PanopticMap(void, void.clone())

    def label(self, gaussians: GaussianSet) -> GaussianLabels:
        means = gaussians["means"]
        void = torch.zeros(len(gaussians), dtype=torch.int64, device=means.device)
        return GaussianLabels(void, void.clone(), means.new_zeros(len(gaussians)))
