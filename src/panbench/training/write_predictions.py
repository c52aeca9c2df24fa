"""Collects what a module's test step returns into the predictions folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from panbench.protocol.predictions import PredictionWriter
from panbench.scene import Frame, PanopticMap, Scene


@dataclass(frozen=True, eq=False)
class PredictedView:
    """What ``test_step`` returns for one frame, all at the camera's size.

    Attributes:
        panoptic: class and scene-level object id per pixel.
        color: uint8 [H, W, 3].
        depth: z-depth float32 [H, W], metres, 0 = none; or None.
        normal: camera-space unit normals float32 [H, W, 3], zero vector = none; or None.
    """

    panoptic: PanopticMap
    color: Tensor
    depth: Tensor | None = None
    normal: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> PredictedView:
        """Same view on another device (what ``Trainer.predict`` does with what it returns)."""
        return PredictedView(
            self.panoptic.to(*args, **kwargs),
            self.color.to(*args, **kwargs),
            None if self.depth is None else self.depth.to(*args, **kwargs),
            None if self.normal is None else self.normal.to(*args, **kwargs),
        )


class WritePredictions(Callback):
    """Writes one predictions folder from one test loop. The folder appears when the loop is through, or not at all.

    Args:
        folder: the predictions folder to make.
        scene: whose test frames the loop visits.
        method, seed, config, provenance, commit: for its manifest.
    """

    def __init__(
        self,
        folder: Path,
        scene: Scene,
        *,
        method: str,
        seed: int,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        commit: str = "",
    ) -> None:
        self._open = lambda: PredictionWriter.for_scene(
            folder, scene, method=method, seed=seed, config=config, provenance=provenance, commit=commit
        )
        self._writer: PredictionWriter | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._writer = self._open()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Frame,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, PredictedView):
            module = type(pl_module).__name__
            raise TypeError(f"{module}.test_step returned {type(outputs).__name__}, not PredictedView")
        assert self._writer is not None
        self._writer.write(batch.name, outputs.panoptic, outputs.color, outputs.depth, outputs.normal)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._writer is not None
        self._writer.close()
        self._writer = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.__exit__(type(exception), exception, exception.__traceback__)
            self._writer = None
