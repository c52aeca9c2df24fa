"""Values that are NaN or infinite: Gaussians that hold them are counted and told of, and such a loss stops the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.gaussian_set import GaussianSet

log = logging.getLogger(__name__)

_GEOMETRY = frozenset({"means", "scales", "quats", "opacities"})
"""Fields that projection reads: it drops a Gaussian one of whose values is not finite."""


@dataclass(frozen=True)
class Spoilt:
    """Gaussians with a value that is not finite.

    Attributes:
        gaussians: how many of them. fields: how many by field, in the order of declaration; only fields that have some.
    """

    gaussians: int = 0
    fields: Mapping[str, int] = field(default_factory=dict[str, int])

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.fields.items())


@torch.no_grad()
def spoilt(gaussians: GaussianSet) -> Spoilt:
    """Count the Gaussians of a set that have a value that is not finite, in any field."""
    fields: dict[str, int] = {}
    rows: Tensor | None = None
    for name in gaussians:
        values = gaussians[name]
        # One pass, one number to wait for. Large finite values may overflow the sum, so that it only raises suspicion.
        if not values.is_floating_point() or values.sum().isfinite():
            continue
        bad = ~values.flatten(1).isfinite().all(-1) if values.dim() > 1 else ~values.isfinite()
        if bad.any():
            fields[name] = int(bad.sum())
            rows = bad if rows is None else rows | bad
    return Spoilt(0 if rows is None else int(rows.sum()), fields)


def check_loss(terms: Mapping[str, Tensor], gaussians: GaussianSet, step: int, frame: str) -> None:
    """Stop before a loss that is not finite reaches any parameter.

    Args:
        terms: scalar loss terms by name, as added up.
        gaussians: the set whose view was rendered, to say whether the cause lies there.
        step: number of optimiser steps done. frame: name of the frame.

    Raises:
        UserError: names the step, the frame and each term that is not finite.
    """
    if not terms or torch.stack([term.detach() for term in terms.values()]).sum().isfinite():
        return
    named = {name: float(term.detach()) for name, term in terms.items() if not term.isfinite()}
    # Finite terms may still have an infinite sum.
    wrong = ", ".join(f"{name} is {value:g}" for name, value in named.items()) or "the sum of the terms overflows"
    found = spoilt(gaussians)
    cause = f"; {found.gaussians} Gaussians have values that are not finite ({found})" if found.gaussians else ""
    raise UserError(
        f"step {step}, frame {frame}: the loss is not finite ({wrong}){cause}; the last checkpoint is kept. "
        "Lower the learning rates or mend that frame's data; the same command then continues, --fresh starts over"
    )


class WatchFinite(L.Callback):
    """Counts the Gaussians with values that are not finite and says so in one line whenever the number has changed.

    It looks after loading a checkpoint, at every step that is logged (``gaussians_not_finite`` in the log, once there
    are some), and at the end of training. Works on modules whose ``gaussians`` is a :class:`GaussianSet`.
    """

    def __init__(self) -> None:
        self.latest = Spoilt()
        """What was found last."""
        self._seen = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(pl_module, "at the start of training" if trainer.ckpt_path is None else "in the checkpoint")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._look(pl_module, f"after step {trainer.global_step}")
        if self._seen:
            pl_module.log("gaussians_not_finite", float(self.latest.gaussians))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(pl_module, "at the end of training")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._look(pl_module, "in the checkpoint")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(pl_module, "in the checkpoint")

    def _look(self, module: L.LightningModule, when: str) -> None:
        gaussians = getattr(module, "gaussians", None)
        if not isinstance(gaussians, GaussianSet):
            return
        before, self.latest = self.latest, spoilt(gaussians)
        self._seen |= self.latest.gaussians > 0
        if self.latest.gaussians and self.latest != before:
            harmless = _GEOMETRY.issuperset(self.latest.fields)
            log.warning(
                "%s, %d of %d Gaussians have values that are not finite (%s): %s; lower the learning rates of these "
                "fields, and start over with --fresh if there are many",
                *(when, self.latest.gaussians, len(gaussians), self.latest),
                "they are not drawn and learn nothing" if harmless else "views of them are wrong",
            )
