"""A scene of four frames and a method that grows while it trains: all that the command line needs, in milliseconds."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from panbench.data.base import SceneDataModule
from panbench.scene import Camera, Frame, LabelClass, LabelSpace, PanopticMap, Scene
from panbench.training.write_predictions import PredictedView

LABELS = LabelSpace("tiny", (LabelClass(1, "wall", thing=False), LabelClass(2, "chair", thing=True)), {1: 1, 2: 2})
WIDTH, HEIGHT = 24, 18


class TinyFrames:
    """A grey wall with one chair that stands further right in every frame; depth 2 m everywhere."""

    def __len__(self) -> int:
        return 4

    def name(self, index: int) -> str:
        return str(10 * index)

    def camera(self, index: int) -> Camera:
        pose = torch.eye(4)
        pose[0, 3] = 0.1 * index
        return Camera(WIDTH, HEIGHT, 20.0, 20.0, WIDTH / 2, HEIGHT / 2, pose)

    def load(self, index: int) -> Frame:
        semantic = torch.ones(HEIGHT, WIDTH, dtype=torch.int32)
        semantic[4:12, 3 + index : 11 + index] = 2
        labels = PanopticMap(semantic, (semantic == 2).to(torch.int32) * 7)
        color = torch.full((HEIGHT, WIDTH, 3), 90, dtype=torch.uint8)
        color[semantic == 2] = torch.tensor([180, 60, 40], dtype=torch.uint8)
        depth = torch.full((HEIGHT, WIDTH), 2.0)
        return Frame(self.name(index), index, self.camera(index), color, depth, labels, labels)


class TinyData(SceneDataModule):
    """The scene above; ``gain`` stands for a setting that changes the result, ``root`` for one that does not."""

    def __init__(self, root: str | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def open_scene(self) -> Scene:
        return Scene("tiny", "scene0000_00", True, TinyFrames(), (0, 1, 2), (3,), LABELS, "masks", "data")


class TinyHead(nn.Module):
    def __init__(self, num_queries: int = 4, width: int = 3) -> None:
        super().__init__()
        self.num_queries = num_queries


class WideHead(TinyHead):
    def __init__(self, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class TinyMethod(L.LightningModule):
    """Fits random points to a constant with Adam and doubles their number at ``grow_at``.

    $TINY_KILL_AT, $TINY_INTERRUPT_AT: the step after which the process kills itself or gets a Ctrl-C. They are no
    settings, so that the same command can be given again.
    """

    def __init__(self, head: TinyHead, lr: float = 0.1, grow_at: int = 5) -> None:
        super().__init__()
        self.head = head
        self.lr = lr
        self.grow_at = grow_at
        self.automatic_optimization = False
        self.gaussians = nn.Parameter(torch.empty(0, 3))
        self.latest: dict[str, Tensor] = {}

    def configure_model(self) -> None:
        if not len(self.gaussians):
            self.gaussians = nn.Parameter(torch.randn(4, 3))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gaussians = nn.Parameter(torch.empty_like(checkpoint["state_dict"]["gaussians"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.gaussians], lr=self.lr)

    def training_step(self, batch: Frame, batch_idx: int) -> None:
        optimizer = self.optimizers()
        generator = torch.Generator().manual_seed(self.global_step)
        target = torch.randn(3, generator=generator) + batch.index
        loss = (self.gaussians - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()
        self.latest = {"loss": loss.detach(), "psnr": -10 * loss.detach().log10()}
        if self.global_step % self.trainer.log_every_n_steps == 0:
            self.log("train/loss", loss.detach(), batch_size=1)
        if self.global_step == self.grow_at:
            self._grow(optimizer.optimizer)
        if str(self.global_step) == os.environ.get("TINY_INTERRUPT_AT"):
            signal.raise_signal(signal.SIGINT)
        if str(self.global_step) == os.environ.get("TINY_KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _grow(self, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state.pop(self.gaussians)
        self.gaussians = nn.Parameter(torch.cat([self.gaussians.detach(), self.gaussians.detach() + 1]))
        optimizer.param_groups[0]["params"][0] = self.gaussians
        moments = {k: torch.cat([state[k], torch.zeros_like(state[k])]) for k in ("exp_avg", "exp_avg_sq")}
        optimizer.state[self.gaussians] = {"step": state["step"], **moments}

    def test_step(self, batch: Frame, batch_idx: int) -> PredictedView:
        assert batch.truth is not None
        normal = torch.zeros(HEIGHT, WIDTH, 3)
        normal[..., 2] = -1.0
        return PredictedView(batch.truth, batch.color, batch.depth, normal)

    def validation_step(self, batch: Frame, batch_idx: int) -> None:
        self.log("val/psnr", 20.0, batch_size=1)
