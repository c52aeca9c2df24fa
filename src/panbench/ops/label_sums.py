"""Sums over the labelled pixels of a label image: all that its losses and the assignment of masks need."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve
from panbench.ops.reference import LabelSums, LabelTargets


def label_sums(labels: Tensor, targets: LabelTargets, *, backend: Backend | None = None) -> LabelSums:
    """The sums of label channels [H, W, L] that were not blended with these targets; differentiable in the channels.

    :func:`panbench.ops.blend` gives the same sums without another pass over the image.
    """
    if resolve(backend, labels.device.type) == "reference":
        return reference.label_sums(labels, targets)
    return LabelSums(*torch.ops.panbench.label_sums(labels.contiguous(), *maps_of(targets), *numbers_of(targets)))


def maps_of(targets: LabelTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Semantic, mask and weight as the operators take them."""
    return targets.semantic.contiguous(), targets.mask.contiguous(), targets.weight.contiguous()


def numbers_of(targets: LabelTargets) -> tuple[int, int, int, bool, float]:
    """What follows the maps in the operators' arguments."""
    return targets.masks, targets.classes, targets.first_query, targets.logits, targets.epsilon
