"""The one optimiser, its schedule, and a resumed run that equals the uninterrupted one bit for bit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from panbench.gaussians.density import AdaptiveDensityControl, DensityChange, DensityContext
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.optim import LogLinear, build_optimizer


def make(control: AdaptiveDensityControl | None = None) -> GaussianSet:
    generator = torch.Generator().manual_seed(0)
    gaussians = GaussianSet()
    gaussians.add(
        {
            "means": FieldSpec((3,), torch.randn(20, 3, generator=generator), lr=0.02, lr_final=0.0002),
            "quats": FieldSpec((4,), torch.randn(20, 4, generator=generator), lr=0.01),
            "scales": FieldSpec((3,), torch.full((20, 3), -2.0), lr=0.01),
            "opacities": FieldSpec((1,), torch.randn(20, 1, generator=generator), lr=0.05),
            **(control.fields() if control else {}),
        }
    )
    return gaussians


def test_rates_fall_log_linearly_to_their_final_value_and_stay_there() -> None:
    optimizer, scheduler = build_optimizer(make(), [], max_steps=100)
    rates: list[list[float]] = []
    for _ in range(121):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx([0.02, 0.01, 0.01, 0.05])
    assert rates[50] == pytest.approx([0.002, 0.01, 0.01, 0.05])
    assert rates[100] == pytest.approx([0.0002, 0.01, 0.01, 0.05])
    assert rates[120] == rates[100]


def test_adam_has_the_published_constants_and_named_groups() -> None:
    query = torch.nn.Parameter(torch.ones(2))
    extra = [{"name": "queries", "params": iter([query]), "lr": 0.3}, {"name": "empty", "params": [], "lr": 0.1}]
    optimizer, _ = build_optimizer(make(), extra, 10)
    assert [g["name"] for g in optimizer.param_groups] == ["means", "quats", "scales", "opacities", "queries"]
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"], group["fused"]) == ((0.9, 0.999), 1e-15, 0, True)
    assert optimizer.param_groups[-1]["params"] == [query]


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        build_optimizer(make(), [{"name": "means", "params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1}], 10)


def test_schedules_pickle_and_hold_plain_numbers() -> None:
    schedule = pickle.loads(pickle.dumps(LogLinear(0.01, 50)))
    assert schedule(25) == pytest.approx(0.1)
    assert vars(schedule) == {"final": 0.01, "steps": 50}


class Fit(L.LightningModule):
    """A toy run whose set grows and shrinks while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.control = AdaptiveDensityControl(
            start=0, stop=1000, every=3, reset_every=7, grad_threshold=0.6, prune_opacity=0.3, reset_opacity=0.5,
            split_scale=0.12, prune_scale=10.0, max_gaussians=90,
        )  # fmt: skip
        self.gaussians = make(self.control)
        self.target = torch.nn.Parameter(torch.zeros(4))
        self.changes: list[DensityChange] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        g = self.gaussians
        wave = torch.sin(torch.arange(len(g)) * 0.7 + self.global_step)
        loss = (g.means.norm(dim=-1) * wave).sum() + (g.quats @ self.target - 1).square().sum()
        loss = loss + (g.scales.exp().sum(-1) - 0.5).square().sum() + (g.opacities.sigmoid()[:, 0] * wave).sum()
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        generator = torch.Generator().manual_seed(self.global_step)
        grad = torch.rand(len(g), generator=generator)
        self.control.observe(g, torch.arange(len(g)), grad, torch.ones(len(g)))
        optimizer.step()
        scheduler.step()
        if self.control.due(self.global_step):
            change = self.control.apply(g, optimizer.optimizer, self.global_step, generator, DensityContext())
            self.changes.append(change)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(
            self.gaussians, [{"name": "target", "params": [self.target], "lr": 0.1}], 20
        )
        return [optimizer], [scheduler]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.gaussians.resize_like(checkpoint["state_dict"], "gaussians.")


def fit(folder: Path, steps: int, resume: Path | None = None) -> tuple[Fit, L.Trainer]:
    module = Fit()
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    loader = DataLoader(torch.zeros(100), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return module, trainer


def test_twelve_and_eight_steps_equal_twenty_bit_for_bit_while_the_set_changes(tmp_path: Path) -> None:
    whole, whole_trainer = fit(tmp_path, 20)
    first, trainer = fit(tmp_path, 12)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, second_trainer = fit(tmp_path, 20, tmp_path / "last.ckpt")
    assert first.changes + second.changes == whole.changes
    for kind in ("cloned", "split", "pruned", "reset"):
        assert any(getattr(change, kind) for change in whole.changes), kind
    assert len(first.gaussians) != 20  # so that the resize was needed
    for (name, a), (_, b) in zip(whole.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    a, b = (t.optimizers[0].state_dict() for t in (whole_trainer, second_trainer))
    for i, state in a["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["state"][i][key]), (i, key)
    assert [g["lr"] for g in a["param_groups"]] == [g["lr"] for g in b["param_groups"]]
