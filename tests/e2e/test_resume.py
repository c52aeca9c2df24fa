"""A run that was stopped and continued is, bit for bit, the run that was not."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from box_scene import make_trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from panbench.data.scannet import ScanNetDataModule
from panbench.errors import Interrupted
from panbench.gaussians.density import AdaptiveDensityControl
from panbench.heads import QueryHead
from panbench.models import GaussianModule, LiGS, ThreeDGS
from panbench.ops import backend
from panbench.scene import Camera, Frame, FrameSource, Scene
from panbench.training.checkpoint import AtomicCheckpointIO, SaveLast

RoomData = Callable[[int, int], ScanNetDataModule]
STEPS, STOP = 20, 12


@pytest.fixture(autouse=True)
def _process_restored() -> Iterator[None]:
    """Leaves the choice of back end and the number of threads as they were."""
    threads, chosen = torch.get_num_threads(), backend.resolve()
    yield
    torch.set_num_threads(threads)
    backend.choose(chosen)


class StopAt(Callback):
    """A SIGTERM after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


class CountGaussians(Callback):
    """N and the number of queries after every step."""

    def __init__(self) -> None:
        self.sizes: dict[int, tuple[int, int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.sizes[trainer.global_step] = (len(pl_module.gaussians), _queries(pl_module))


def _queries(model: GaussianModule) -> int:
    assert isinstance(model.head, QueryHead)
    return model.head.instance_channels(model.gaussians, torch.zeros(1, dtype=torch.int64)).shape[1]


@dataclass(frozen=True)
class SplitMasks:
    """Frames whose masks are cut at every 30 cm of the world's x: twice as many seeds as there are objects."""

    frames: FrameSource

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        return self.frames.name(index)

    def camera(self, index: int) -> Camera:
        return self.frames.camera(index)

    def load(self, index: int) -> Frame:
        frame = self.frames.load(index)
        assert frame.depth is not None
        assert frame.masks is not None
        side = (frame.camera.unproject(frame.depth)[..., 0] / 0.3).floor().int() % 2
        ids = frame.masks.instance
        return replace(frame, masks=replace(frame.masks, instance=torch.where(ids > 0, 2 * ids + side, 0)))


class SurplusHead(QueryHead):
    """Starts with more queries than there are objects."""

    def seed(self, scene: Scene) -> None:
        super().seed(replace(scene, source=SplitMasks(scene.source)))


def make_model(base: type[GaussianModule], **options: Any) -> GaussianModule:
    """Sizes that a small image needs; statistics, votes and moments are all under way when the run is stopped.

    Densification at steps 5, 10 and 15, so that its statistics of steps 11 and 12 cross the stop; queries pruned after
    each pass over the 7 frames, so that the matches of steps 8 to 12 do; opacities reset at 14.
    """
    densify = AdaptiveDensityControl(
        start=1, stop=18, every=5, grad_threshold=1e-3, prune_opacity=0.28, reset_every=14, reset_opacity=0.3,
        max_gaussians=4000,
    )  # fmt: skip
    head = SurplusHead(prune_after=1)
    sizes: dict[str, Any] = {"voxel": 0.12, "flat_voxel": 0.12, "initial_opacity": 0.3, "sh_every": 6, "label_start": 0}
    if base is LiGS:
        # So small an image has too few points for planes; tests/models/test_ligs.py resumes with them.
        sizes["mixture_weight"] = 0.0
    return base(head=head, densify=densify, **(sizes | {"label_every": 1} | options))


def train(
    model: GaussianModule, data: ScanNetDataModule, folder: Path, *callbacks: Callback, resume: bool = False
) -> dict[str, Any]:
    """Optimiser state after training in a run folder."""
    trainer = make_trainer(
        STEPS,
        default_root_dir=str(folder),
        callbacks=[SaveLast(every_seconds=math.inf), *callbacks],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )
    path = folder / "checkpoints" / "last.ckpt" if resume else None
    trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    assert trainer.global_step == STEPS
    return {
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict()["last_epoch"],
    }


def straight(make: Callable[[], GaussianModule], data: ScanNetDataModule, folder: Path) -> tuple[dict[str, Any], Any]:
    L.seed_everything(0, verbose=False)
    model = make()
    count = CountGaussians()
    state = train(model, data, folder, count)
    return {**state, "model": model.state_dict()}, count.sizes


def interrupted(
    make: Callable[[], GaussianModule], open_data: Callable[[], ScanNetDataModule], folder: Path
) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    with pytest.raises(Interrupted):
        train(make(), open_data(), folder, StopAt(STOP))
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STOP
    # Another process would have another random state.
    L.seed_everything(99, verbose=False)
    model = make()
    state = train(model, open_data(), folder, resume=True)
    return {**state, "model": model.state_dict()}


def assert_same_bits(one: Any, two: Any, path: str = "") -> None:
    """Equality of nested plain data, tensors by their bits."""
    assert type(one) is type(two), path
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_same_bits(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same_bits(a, b, f"{path}[{index}]")
    elif isinstance(one, Tensor):
        assert one.dtype == two.dtype, path
        assert one.shape == two.shape, path
        assert torch.equal(one, two), f"{path}: {(one != two).sum()} of {one.numel()} differ"
    else:
        assert one == two, path


def check_resume(room_data: RoomData, tmp_path: Path, make: Callable[[], GaussianModule]) -> dict[str, Any]:
    def data() -> ScanNetDataModule:
        return room_data(40, 30)

    expected, sizes = straight(make, data(), tmp_path / "straight")
    # The run is no still life: N changes on both sides of the stop, and queries are pruned.
    assert sizes[STOP][0] != sizes[1][0]
    assert sizes[STEPS][0] != sizes[STOP][0]
    assert 0 < sizes[STEPS][1] < sizes[1][1]
    got = interrupted(make, data, tmp_path / "resumed")
    assert_same_bits(got, expected)
    return expected


@pytest.mark.parametrize("base", [LiGS, ThreeDGS])
def test_twelve_steps_and_eight_are_twenty_on_the_reference(
    base: type[GaussianModule], room_data: RoomData, tmp_path: Path
) -> None:
    backend.choose("reference")
    # Torch adds gradients of repeated rows in any order when it has several threads; panbench's own operators do not.
    torch.set_num_threads(1)
    check_resume(room_data, tmp_path, lambda: make_model(base))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("base", [LiGS, ThreeDGS])
def test_twelve_steps_and_eight_are_twenty_in_cpp(
    base: type[GaussianModule], threads: int, room_data: RoomData, tmp_path: Path
) -> None:
    # One number of threads against another is not for a whole step: torch's softmax and matrix products have other bits
    # then on some processors. Our operators do not, which test_backends_agree.py sees to.
    backend.choose("cpu")
    torch.set_num_threads(threads)
    check_resume(room_data, tmp_path, lambda: make_model(base))


def test_labels_that_start_after_the_stop_are_resumed_alike(room_data: RoomData, tmp_path: Path) -> None:
    # Their parameters have no Adam state yet when the checkpoint is written.
    backend.choose("cpu")
    check_resume(room_data, tmp_path, lambda: make_model(LiGS, label_start=STOP + 1))


def test_labels_at_every_other_step_are_resumed_alike(room_data: RoomData, tmp_path: Path) -> None:
    backend.choose("cpu")
    check_resume(room_data, tmp_path, lambda: make_model(ThreeDGS, label_every=2))


def test_checkpoints_are_plain_data_with_a_format(room_data: RoomData, tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    train(make_model(LiGS), room_data(40, 30), tmp_path)
    checkpoint: dict[str, Any] = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["panbench_format"] >= 1
    names = checkpoint["state_dict"]
    for field in ("means", "quats", "scales", "opacities", "semantic_features", "instance_features", "density_grad"):
        assert f"gaussians.{field}" in names
