"""What a density control is, what a model tells it, and what it reports back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet


@dataclass(frozen=True)
class DensityChange:
    """What one application did.

    Attributes:
        cloned: copies added. split: parents replaced by two children. pruned: rows dropped, without those parents.
        reset: whether opacities were lowered. count: N after it. relocated: dead rows that were moved (MCMC).
    """

    cloned: int
    split: int
    pruned: int
    reset: bool
    count: int
    relocated: int = 0


@dataclass(frozen=True, eq=False)
class DensityContext:
    """What a model offers when its density control is applied; None: the model knows no such thing.

    Attributes:
        surface_distance: points [K, 3] → their distances [K] to the known surface in metres, ≥ 0; inf where none is
            near.
        surface_project: points [K, 3] → their feet [K, 3] on the nearest plane of the surface, and their signed
            distances [K] to it in metres; a distance that is not finite where there is none near.
        label_confidence: gives the certainty of every Gaussian's label [N], in [0, 1]; or None where the head has none.
    """

    surface_distance: Callable[[Tensor], Tensor] | None = None
    surface_project: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    label_confidence: Callable[[], Tensor | None] | None = None


class DensityControl(ABC):
    """Changes the number and the places of Gaussians during training.

    Works on the fields ``means`` [3], ``quats`` [4], ``scales`` (log) [2 or 3; the third −∞ or very low on discs],
    ``opacities`` (logit) [] or [1], and on its own of :meth:`fields`. Those are fields of the set, so that surgery
    keeps them aligned and checkpoints carry them: a control has no state of its own, and with generators that are
    seeded by the step a resumed run goes on bit for bit.

    Attributes:
        extent: of the scene [m] (:meth:`panbench.scene.Scene.extent`), max_steps: length of the run, frames: number of
            training frames; all set by the model once they are known.
        absolute: :meth:`observe` wants Σ over pixels of |gradient| instead of |Σ over pixels of gradient|.
    """

    extent: float = 1.0
    max_steps: int = 30_000
    frames: int = 0
    absolute: bool = False

    def fields(self) -> dict[str, FieldSpec]:
        """Statistics per Gaussian that the control needs in the set."""
        return {}

    def watches(self, step: int) -> bool:
        """Whether :meth:`observe` is wanted after the backward pass of a step (from 0)."""
        return False

    def observe(self, gaussians: GaussianSet, ids: Tensor, screen_grad: Tensor, radii: Tensor) -> None:
        """Add one view to the statistics, after the backward pass and before the optimiser's step.

        Args:
            ids: rows of the visible Gaussians [M], unique.
            screen_grad: ‖(∂L/∂x · W/2, ∂L/∂y · H/2)‖ [M], the gradient of the projected centre in NDC units; with
                ``absolute`` that of the absolute gradients' sums.
            radii: extent on the screen [M] in pixels; 0 counts as not seen.
        """
        return

    def regularisers(self, gaussians: GaussianSet) -> dict[str, Tensor]:
        """Weighted loss terms that belong to the control, by name."""
        return {}

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether :meth:`apply` has something to do after optimiser step number ``step`` (from 1)."""

    @abstractmethod
    def apply(
        self,
        gaussians: GaussianSet,
        optimizer: Optimizer | None,
        step: int,
        generator: torch.Generator,
        context: DensityContext,
    ) -> DensityChange:
        """Do what is due after step ``step``.

        Args:
            optimizer: its moments follow the rows; those of new and of moved rows are zero.
            generator: source of all chance; a run that is to resume bit for bit seeds it from ``step``.
        """

    def after_step(self, gaussians: GaussianSet, optimizer: Optimizer, step: int, generator: torch.Generator) -> None:
        """Upkeep after every optimiser step number ``step`` (from 1), and after :meth:`apply` where that was due.

        Args:
            generator: as for :meth:`apply`; the same one goes on.
        """
        return


def check_settings(*rules: tuple[bool, str]) -> None:
    """Refuse settings that break a rule.

    Args:
        rules: whether each holds, and what to say if not: the setting with its value, and what it must be.

    Raises:
        UserError: one line with all the rules that are broken.
    """
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise UserError(f"densify: {'; '.join(broken)}")


def schedule_rules(start: int, stop: int | None, every: int, max_gaussians: int) -> list[tuple[bool, str]]:
    """The rules that every control has for its schedule and its cap, for :func:`check_settings`."""
    return [
        (start >= 0, f"start is {start}; it must be 0 or more"),
        (stop is None or stop >= 0, f"stop is {stop}; it must be 0 (never) or more"),
        (every >= 1, f"every is {every}; it must be at least 1"),
        (max_gaussians >= 1, f"max_gaussians is {max_gaussians}; it must be at least 1"),
    ]


def not_negative(**settings: float) -> list[tuple[bool, str]]:
    """Rules that settings be finite and 0 or more, for :func:`check_settings`."""
    return [
        (math.isfinite(value) and value >= 0, f"{name} is {value}; it must be a number of 0 or more")
        for name, value in settings.items()
    ]


def positive(**settings: float) -> list[tuple[bool, str]]:
    """Rules that settings be finite and more than 0, for :func:`check_settings`."""
    return [
        (math.isfinite(value) and value > 0, f"{name} is {value}; it must be a number above 0")
        for name, value in settings.items()
    ]


def opacities_of(gaussians: GaussianSet) -> Tensor:
    """Opacity of every Gaussian [N], in [0, 1], without gradient."""
    return gaussians["opacities"].detach().reshape(len(gaussians)).sigmoid()


def largest_scales(gaussians: GaussianSet) -> Tensor:
    """Largest standard deviation of every Gaussian [N], metres, without gradient."""
    return gaussians["scales"].detach().amax(-1).exp()
