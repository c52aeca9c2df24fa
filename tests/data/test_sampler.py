"""The order of training frames: endless, a function of seed and step, the same after a resume."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from panbench.data.base import SceneDataModule
from panbench.data.cache import ByteBudgetCache
from panbench.data.sampler import StepSampler, frame_of_step
from panbench.scene import Camera, Frame, LabelClass, LabelSpace, Scene


class Source:
    """Seven frames of one pixel."""

    def __len__(self) -> int:
        return 7

    def name(self, index: int) -> str:
        return str(index)

    def camera(self, index: int) -> Camera:
        return Camera(1, 1, 1.0, 1.0, 0.5, 0.5, torch.eye(4))

    def load(self, index: int) -> Frame:
        return Frame(self.name(index), index, self.camera(index), torch.zeros(1, 1, 3, dtype=torch.uint8))


class Data(SceneDataModule):
    def open_scene(self) -> Scene:
        labels = LabelSpace("test", (LabelClass(1, "wall", thing=False),))
        return Scene("test", "scene", True, Source(), train=(0, 2, 3, 5, 6), test=(1, 4), labels=labels)


class Recorder(L.LightningModule):
    """Takes a step per frame and writes down which frame it was."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.automatic_optimization = False
        self.seen: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: Frame, batch_idx: int) -> None:
        assert isinstance(batch, Frame)
        self.seen.append(batch.index)
        optimizer: Any = self.optimizers()
        self.manual_backward(self.weight.sum())
        optimizer.step()

    def validation_step(self, batch: Frame, batch_idx: int) -> None:
        self.validated.append(batch.index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, steps: int, resume: Path | None = None, seed: int | None = 3) -> tuple[Recorder, L.Trainer]:
    module = Recorder()
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=4, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Data(order_seed=seed), ckpt_path=resume, weights_only=True)
    return module, trainer


def test_every_pass_over_the_frames_is_a_permutation_of_them() -> None:
    order = list(islice(StepSampler([10, 20, 30, 40], seed=1), 12))
    assert [sorted(order[i : i + 4]) for i in (0, 4, 8)] == [[10, 20, 30, 40]] * 3
    assert len({tuple(order[i : i + 4]) for i in (0, 4, 8)}) > 1


def test_a_sampler_that_starts_at_step_t_continues_the_full_order() -> None:
    whole = list(islice(StepSampler(range(5), seed=2), 23))
    for start in (0, 1, 4, 5, 13):
        assert list(islice(StepSampler(range(5), seed=2, start=start), 23 - start)) == whole[start:]
    assert whole == [frame_of_step(2, t, 5) for t in range(23)]


def test_different_seeds_give_different_orders() -> None:
    assert list(islice(StepSampler(range(50), seed=0), 50)) != list(islice(StepSampler(range(50), seed=1), 50))


def test_an_empty_list_and_negative_numbers_are_refused() -> None:
    for arguments in (([], 0, 0), ([1], -1, 0), ([1], 0, -1)):
        with pytest.raises(ValueError, match=r"no frames|negative"):
            StepSampler(*arguments)


def test_a_run_resumed_in_mid_pass_sees_the_frames_of_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path, 11)
    first, trainer = fit(tmp_path, 7)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    # The second process has another seed: the checkpoint's rules.
    second, _ = fit(tmp_path, 11, resume=tmp_path / "last.ckpt", seed=99)
    assert first.seen + second.seen == whole.seen
    assert len(whole.seen) == 11
    assert set(whole.seen) <= {0, 2, 3, 5, 6}


def test_validation_walks_the_test_frames_once_in_order(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, 8)
    assert module.validated == [1, 4, 1, 4]


def test_the_global_seed_decides_the_order_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert Data().order_seed == 17
    assert Data(order_seed=4).order_seed == 4
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert Data().order_seed == 0


class Block:
    nbytes = 40


def test_the_cache_makes_each_value_once_while_the_budget_lasts() -> None:
    cache: ByteBudgetCache[int, Block] = ByteBudgetCache(100)
    made: list[int] = []

    def make(key: int) -> Block:
        made.append(key)
        return Block()

    for _ in range(2):
        for key in range(3):
            cache.get(key, make)
    assert made == [0, 1, 2, 2]
    assert cache.used == 80
    assert len(cache) == 2
