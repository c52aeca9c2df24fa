"""Panoptic scores: pure functions in ``functional``, :class:`torchmetrics.Metric` classes on top.

The classes are imported on first use, so that scoring a folder needs neither torchmetrics nor its start-up time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panbench.metrics.scene_metrics import Coverage, PanopticQuality, SemanticQuality

__all__ = ["Coverage", "PanopticQuality", "SemanticQuality"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from panbench.metrics import scene_metrics

        return getattr(scene_metrics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
