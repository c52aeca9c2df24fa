"""A panoptic map: what class and which object each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """Integer maps of one view.

    Attributes:
        semantic: class id per pixel [H, W], int; 0 = void.
        instance: object id per pixel [H, W], int; 0 = none. In predictions and ground truth an id is the same
            object in every frame of the scene; in pseudo-masks it means nothing beyond its own frame.
        score: confidence per pixel [H, W] in [0, 1], or None.
    """

    semantic: Tensor
    instance: Tensor
    score: Tensor | None = None

    def __post_init__(self) -> None:
        if self.semantic.shape != self.instance.shape or self.semantic.ndim != 2:
            raise ValueError(
                f"semantic {tuple(self.semantic.shape)} and instance {tuple(self.instance.shape)} "
                "must be [H, W] of one size"
            )
        if self.score is not None and self.score.shape != self.semantic.shape:
            raise ValueError(f"score {tuple(self.score.shape)} differs from semantic {tuple(self.semantic.shape)}")

    def to(self, *args: object, **kwargs: object) -> PanopticMap:
        """Same map on another device. Dtypes are kept: pass a device only."""
        return replace(
            self,
            semantic=self.semantic.to(*args, **kwargs),  # type: ignore[call-overload]
            instance=self.instance.to(*args, **kwargs),  # type: ignore[call-overload]
            score=None if self.score is None else self.score.to(*args, **kwargs),  # type: ignore[call-overload]
        )
