"""Models whose flat Gaussians are put where a test wants them."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.rotation import quats_with_normal
from panbench.models.base import GaussianModule

Model = TypeVar("Model", bound=GaussianModule)


def placed(model: Model, means: Tensor, normals: Tensor, scale: float, opacity: float) -> Model:
    """``model``, of spherical-harmonics degree 0, with equal discs at ``means`` [N, 3] that face along ``normals``."""
    count = len(means)
    model.gaussians = GaussianSet(count)
    model.gaussians.add(
        {
            "means": FieldSpec((3,), means, 1e-3),
            "quats": FieldSpec((4,), quats_with_normal(normals), 1e-3),
            "scales": FieldSpec((2,), torch.full((count, 2), math.log(scale)), 1e-3),
            "opacities": FieldSpec((), torch.full((count,), opacity).logit(), 1e-3),
            "features_dc": FieldSpec((3,), torch.zeros(count, 3), 1e-3),
            "features_rest": FieldSpec((0, 3), torch.zeros(count, 0, 3), 1e-3),
        }
    )
    return model
