"""Every density control in the training of a base model, on two boxes of known place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from box_scene import box_scene, fitted

from panbench.gaussians.density import MCMC, AdaptiveDensityControl, DensityControl, SurfelDensityControl
from panbench.heads import NoHead
from panbench.models import GaussianModule, LiGS, ThreeDGS

EAGER: dict[str, Any] = {"start": 1, "every": 3, "max_gaussians": 3000}
CASES: dict[str, tuple[type[GaussianModule], Callable[[], DensityControl]]] = {
    "adaptive": (
        ThreeDGS,
        lambda: AdaptiveDensityControl(**EAGER, stop=100, grad_threshold=1e-6, revised_opacity=True),
    ),
    "mcmc": (ThreeDGS, lambda: MCMC(**EAGER, stop=100, min_opacity=0.45)),
    "mcmc of discs": (LiGS, lambda: MCMC(**EAGER, stop=100)),
    "surfels": (LiGS, lambda: SurfelDensityControl(**EAGER, grad_threshold=1e-6, reset_every=0)),
}


def trained(name: str, steps: int) -> GaussianModule:
    base, control = CASES[name]
    options: dict[str, Any] = {"voxel": 0.16, "flat_voxel": 0.16, "initial_opacity": 0.5, "opacities_lr": 0.1}
    return fitted(base(head=NoHead(), densify=control(), **options), steps)


@pytest.mark.parametrize("name", CASES)
def test_n_changes_and_training_goes_on(name: str) -> None:
    before = len(trained(name, 1).gaussians)
    model = trained(name, 9)
    assert len(model.gaussians) > before
    assert model.latest["loss"].isfinite()
    optimizer: Any = model.optimizers()
    for group in model.gaussians.groups():
        (parameter,) = group["params"]
        assert parameter.isfinite().all(), group["name"]
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("name", ["adaptive", "mcmc", "surfels"])
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    runs = [trained(name, 9).state_dict() for _ in range(2)]
    assert runs[0].keys() == runs[1].keys()
    for key, value in runs[0].items():
        assert torch.equal(value, runs[1][key]), key


def test_the_model_tells_its_control_about_the_scene() -> None:
    model = trained("surfels", 1)
    scene = box_scene()
    assert model.densify is not None
    assert model.densify.extent == pytest.approx(scene.extent())
    assert (model.densify.max_steps, model.densify.frames) == (1, len(scene.train))
