"""Values that are not finite are counted, told of and written down; a loss that is not stops the run in one line."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from box_scene import BoxData, make_trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.heads import NoHead
from panbench.models import LiGS
from panbench.training.finite import WatchFinite, check_loss, spoilt
from panbench.training.metrics_csv import MetricsCsv


def gaussians(**fields: Tensor) -> GaussianSet:
    out = GaussianSet()
    out.add({name: FieldSpec(tuple(values.shape[1:]), values, 0.1) for name, values in fields.items()})
    return out


def model() -> LiGS:
    return LiGS(head=NoHead(), voxel=0.08, flat_voxel=0.08)


class Spoil(Callback):
    """Puts a value into a field of the first Gaussians before a step."""

    def __init__(self, field: str, count: int, step: int, value: float = torch.nan) -> None:
        self.field, self.count, self.step, self.value = field, count, step, value

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.gaussians[self.field][: self.count] = self.value


def test_gaussians_are_counted_by_field_and_once() -> None:
    means, colors, opacities = torch.zeros(6, 3), torch.zeros(6, 2, 3), torch.zeros(6)
    means[1, 2], means[4, 0], colors[4, 1, 1], opacities[5] = torch.nan, torch.inf, -torch.inf, torch.nan
    found = spoilt(gaussians(means=means, colors=colors, opacities=opacities, ids=torch.zeros(6)))
    assert found.gaussians == 3
    assert found.fields == {"means": 2, "colors": 1, "opacities": 1}
    assert str(found) == "means 2, colors 1, opacities 1"


def test_finite_values_are_not_counted_however_large_their_sum() -> None:
    assert spoilt(gaussians(means=torch.full((4, 3), 3e38))).gaussians == 0
    assert spoilt(gaussians(means=torch.zeros(0, 3))).gaussians == 0


def test_a_loss_that_is_not_finite_names_step_frame_and_terms() -> None:
    means = torch.zeros(5, 3)
    means[2] = torch.nan
    terms = {"photometric": torch.tensor(0.3), "normal": torch.tensor(torch.nan), "mask": torch.tensor(torch.inf)}
    with pytest.raises(UserError) as caught:
        check_loss(terms, gaussians(means=means), 1203, "46")
    told = str(caught.value)
    assert told.startswith("step 1203, frame 46: the loss is not finite (normal is nan, mask is inf); 1 Gaussians have")
    assert "(means 1)" in told
    assert "--fresh" in told
    check_loss({"photometric": torch.tensor(0.3)}, gaussians(means=means), 0, "46")
    check_loss({}, gaussians(means=means), 0, "46")
    with pytest.raises(UserError, match="the sum of the terms overflows"):
        check_loss({"a": torch.tensor(3e38), "b": torch.tensor(3e38)}, gaussians(means=torch.zeros(1, 3)), 0, "46")


def test_a_colour_that_is_not_finite_stops_the_run_before_it_changes_anything() -> None:
    made = model()
    kept: dict[str, Tensor] = {}

    class Keep(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
            kept.update({name: made.gaussians[name].detach().clone() for name in made.gaussians})

    trainer = make_trainer(20, callbacks=[Spoil("features_dc", 500, 3, torch.inf), Keep()])
    with pytest.raises(UserError, match=r"step 3, frame \d+: the loss is not finite \(.*photometric is .*features_dc"):
        trainer.fit(made, datamodule=BoxData())
    for name, values in kept.items():
        torch.testing.assert_close(made.gaussians[name].detach(), values, rtol=0, atol=0, equal_nan=True)


def test_spoilt_geometry_is_told_once_logged_and_does_not_spread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, watch = model(), WatchFinite()
    logger = MetricsCsv(tmp_path)
    trainer = make_trainer(12, callbacks=[Spoil("scales", 7, 5), watch], logger=logger, log_every_n_steps=2)
    with caplog.at_level(logging.WARNING, "panbench"):
        trainer.fit(made, datamodule=BoxData())
    told = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert told == [
        f"after step 6, 7 of {len(made.gaussians)} Gaussians have values that are not finite (scales 7): they are not "
        "drawn and learn nothing; lower the learning rates of these fields, and start over with --fresh if there are "
        "many"
    ]
    assert spoilt(made.gaussians).fields == {"scales": 7}
    logger.save()
    rows = {int(row["step"]): row["gaussians_not_finite"] for row in csv.DictReader((tmp_path / "metrics.csv").open())}
    assert rows == {1: "", 3: "", 5: "7", 7: "7", 9: "7", 11: "7"}


def test_a_checkpoint_with_values_that_are_not_finite_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(3, callbacks=[Spoil("features_dc", 500, 2, torch.inf)])
    with pytest.raises(UserError):
        trainer.fit(model(), datamodule=BoxData())
    trainer.save_checkpoint(tmp_path / "spoilt.ckpt")
    path = str(tmp_path / "spoilt.ckpt")
    for action in ("test", "fit"):
        caplog.clear()
        again = make_trainer(3, callbacks=[WatchFinite()])
        with caplog.at_level(logging.WARNING, "panbench"):
            if action == "test":
                again.test(model(), datamodule=BoxData(), ckpt_path=path, weights_only=True, verbose=False)
            else:
                with pytest.raises(UserError):
                    again.fit(model(), datamodule=BoxData(), ckpt_path=path, weights_only=True)
        told = [r.getMessage() for r in caplog.records if "in the checkpoint, 500 of" in r.getMessage()]
        assert len(told) == 1
        assert "(features_dc 500): views of them are wrong" in told[0]
