"""What a per-Gaussian quantity is: its shape, first values, learning rate, and what a child inherits of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class FieldSpec:
    """Declares one field of a :class:`~panbench.gaussians.gaussian_set.GaussianSet`.

    Base models and heads declare fields and never hear of densification: rows are added, dropped and moved for them.

    Attributes:
        shape: of one row; () for a number per Gaussian.
        init: first values [N, *shape], or a callable that makes them from N.
        lr: Adam's learning rate; 0 makes the field a buffer, which is not optimised (but saved and kept aligned).
        lr_final: learning rate at ``max_steps``, reached log-linearly; None keeps lr.
        on_split: what a child of a split or clone starts with: its parent's row, or zeros.
    """

    shape: tuple[int, ...]
    init: Callable[[int], Tensor] | Tensor
    lr: float = 0.0
    lr_final: float | None = None
    on_split: Literal["copy", "zero"] = "copy"

    def __post_init__(self) -> None:
        if self.lr < 0 or (self.lr_final is not None and self.lr_final <= 0):
            raise ValueError(f"learning rates {self.lr}, {self.lr_final} must be positive (0: not optimised)")
        if self.lr_final is not None and self.lr == 0:
            raise ValueError("lr_final without lr: a field that is not optimised has no schedule")

    def first_values(self, count: int) -> Tensor:
        """Values [count, *shape].

        Raises:
            ValueError: ``init`` gives another shape.
        """
        values = self.init if isinstance(self.init, Tensor) else self.init(count)
        if tuple(values.shape) != (count, *self.shape):
            raise ValueError(f"initial values have shape {tuple(values.shape)}, not {(count, *self.shape)}")
        return values.detach().clone()


def zeros(shape: tuple[int, ...] = ()) -> FieldSpec:
    """A float32 buffer that starts at zero, for children too: running statistics."""
    return FieldSpec(shape, lambda count: torch.zeros(count, *shape), on_split="zero")
