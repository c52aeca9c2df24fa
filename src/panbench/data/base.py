"""The data module all datasets share: one scene, frames in an order that depends on seed and step alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from panbench.data.sampler import StepSampler
from panbench.errors import UserError
from panbench.scene import Frame, FrameSource, Scene


class FrameDataset(Dataset[Frame]):
    """The frames of a source by index, as a torch data set."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Frame:
        return self.source.load(index)


class SceneDataModule(L.LightningDataModule):
    """Gives the trainer one scene, a single :class:`Frame` a batch.

    Subclasses implement :meth:`open_scene`. Training frames come endlessly: step t sees frame f(seed, t)
    (:func:`panbench.data.sampler.frame_of_step`), every ``len(scene.train)`` steps being one permutation of them. The
    loader starts at ``trainer.global_step``, so a resumed run goes on with the order of the uninterrupted one.
    Validation, test and prediction loaders give each test frame once, in the scene's order.

    Needs ``check_val_every_n_epoch=None`` in the trainer: training is one endless epoch.
    """

    def __init__(self, order_seed: int | None = None) -> None:
        """Args: order_seed: seed of the frame order; None takes the one of ``seed_everything`` (0 without)."""
        super().__init__()
        self._order_seed = order_seed
        self._scene: Scene | None = None

    def open_scene(self) -> Scene:
        """Read the scene. Called once, by :meth:`setup`."""
        raise NotImplementedError

    @property
    def scene(self) -> Scene:
        """The scene; opened at the first use if ``setup`` has not run."""
        if self._scene is None:
            self._scene = self.open_scene()
        return self._scene

    @property
    def order_seed(self) -> int:
        """Seed of the frame order. A checkpoint carries it, so a resumed run keeps it whatever its own seed is."""
        if self._order_seed is None:
            self._order_seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        return self._order_seed

    def setup(self, stage: str) -> None:
        """Open the scene (idempotent)."""
        _ = self.scene

    def train_dataloader(self) -> DataLoader[Frame]:
        """Endless training frames from the trainer's current step on."""
        if not self.scene.train:
            raise UserError(f"{self.scene.name}: has no training frames; check data.split_file and data.stride")
        start = self.trainer.global_step if self.trainer is not None else 0
        sampler = StepSampler(self.scene.train, self.order_seed, start)
        # Frames are decoded in this process: worker processes would each fill a cache of their own.
        return DataLoader(FrameDataset(self.scene.source), batch_size=None, sampler=sampler, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Frame]:
        """Test frames, once each."""
        return self._once(self.scene.test)

    def test_dataloader(self) -> DataLoader[Frame]:
        """Test frames, once each."""
        return self._once(self.scene.test)

    def predict_dataloader(self) -> DataLoader[Frame]:
        """Test frames, once each."""
        return self._once(self.scene.test)

    def _once(self, indices: Sequence[int]) -> DataLoader[Frame]:
        # A list of indices is a valid sampler: it is iterated in order.
        frames = FrameDataset(self.scene.source)
        return DataLoader(frames, batch_size=None, sampler=list(indices), collate_fn=_as_it_is)

    def transfer_batch_to_device(self, batch: Frame, device: torch.device, dataloader_idx: int) -> Frame:
        """Move a frame with its camera and maps."""
        return batch.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint: the seed of the order (the position is the global step)."""
        return {"order_seed": self.order_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the order of the checkpoint."""
        self._order_seed = int(state_dict["order_seed"])


def _as_it_is(sample: Any) -> Any:
    # Without batches the loader hands each frame through this, not a list of them.
    return sample
