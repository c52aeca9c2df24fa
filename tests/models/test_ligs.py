"""LI-GS on two boxes of known place: its mixture, where discs start, what holds them, and what a checkpoint keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from box_scene import BOXES, BoxData, BoxFrames, box_scene, fitted, make_trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.density import AdaptiveDensityControl, SurfaceDensityControl
from panbench.gaussians.init import PointCloud
from panbench.gaussians.rotation import rotation_matrices
from panbench.heads import NoHead, QueryHead
from panbench.models import LiGS
from panbench.models.ligs import DiscCloud
from panbench.scene import Frame, Scene

SIZES: dict[str, Any] = {"voxel": 0.08, "flat_voxel": 0.08, "mixture_voxel": 0.03, "mixture_radius": 0.06}


def make(**options: Any) -> LiGS:
    settings: dict[str, Any] = SIZES | {"consistency_start": 0} | options
    return LiGS(NoHead(), **settings)


class NoisyFrames(BoxFrames):
    """Depth with noise of 1 % + 1 cm, a new one in each frame."""

    def load(self, index: int) -> Frame:
        frame = super().load(index)
        assert frame.depth is not None
        noise = torch.randn(frame.depth.shape, generator=torch.Generator().manual_seed(index))
        noisy = frame.depth + noise * (0.01 * frame.depth + 0.01)
        return replace(frame, depth=torch.where(frame.depth > 0, noisy, 0.0))


def to_surface(points: Tensor) -> Tensor:
    """Distances [N] of points to the floor z = 0 and the faces of the boxes."""
    nearest = points[:, 2].abs()
    for low, high in BOXES:
        corner, other = torch.tensor(low), torch.tensor(high)
        apart = (points - (corner + other) / 2).abs() - (other - corner) / 2
        outside = apart.clamp_min(0).norm(dim=1)
        nearest = torch.minimum(nearest, torch.where(apart.amax(1) < 0, -apart.amax(1), outside))
    return nearest


def opaque(model: LiGS) -> Tensor:
    return model.gaussians["opacities"].detach().sigmoid() > 0.5


# ------------------------------------------------------------------------------------------------------------ mixture


def test_the_mixture_is_that_of_the_floor_and_the_boxes() -> None:
    mixture = fitted(make(), 1).mixture
    assert isinstance(mixture.centers, Tensor)
    distance = to_surface(mixture.centers)
    assert distance.median() < 0.004
    assert distance.quantile(0.9) < 0.02
    floor = (mixture.centers[:, 2].abs() < 0.01) & (mixture.centers[:, :2].abs().amax(1) > 1.0)
    assert floor.any()
    assert mixture.normals[floor, 2].quantile(0.05) > math.cos(math.radians(3))
    tops = (mixture.centers[:, 2] - 0.5).abs() < 0.01
    assert mixture.normals[tops, 2].median() > math.cos(math.radians(3))


def test_nothing_is_fitted_where_nothing_asks_for_it() -> None:
    model = fitted(make(mixture_weight=0.0, densify=AdaptiveDensityControl()), 1)
    assert isinstance(model, LiGS)
    assert len(model.mixture) == 0
    assert "mixture_ids" not in model.gaussians


@pytest.mark.parametrize(
    "bad",
    [
        {"mixture_weight": -1.0},
        {"mixture_voxel": 0.0},
        {"mixture_reach": 0.0},
        {"mixture_stride": 0},
        {"init_radius": -0.1},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=f"model: {name} is {value}"):
        make(**bad)


# -------------------------------------------------------------------------------------------------------------- start


class Started(LiGS):
    """Keeps the points it starts from."""

    def prepare(self, cloud: PointCloud, scene: Scene) -> PointCloud:
        self.given = cloud
        self.started = super().prepare(cloud, scene)
        return self.started


def test_discs_that_start_on_the_mixture_lie_on_the_surface_and_cover_it() -> None:
    options: dict[str, Any] = SIZES | {"init": "mixture", "init_radius": 0.03}
    model = fitted(Started(NoHead(), **options), 1)
    assert isinstance(model, Started)
    assert isinstance(model.started, DiscCloud)
    points, at_points = model.started.positions, model.given.positions
    assert to_surface(points).median() < 0.5 * to_surface(at_points).median() + 1e-3
    assert to_surface(points).quantile(0.95) < 0.03
    assert torch.cdist(at_points, points).amin(1).max() < 0.12, "what no plane covers starts at its points"
    turn = rotation_matrices(model.started.quats)
    torch.testing.assert_close(turn[..., 2], model.started.normals, rtol=0, atol=1e-3)
    scale = model.started.log_scales.exp()
    assert scale.min() >= 0.015 - 1e-6
    assert scale.max() < 0.2
    # Floor discs have the grey of the floor.
    floor = (points[:, 2].abs() < 0.01) & (points[:, :2].abs().amax(1) > 1.1)
    assert (model.started.colors[floor] - 120 / 255).abs().mean() < 0.1
    assert not model.given.positions.isnan().any()


def test_a_start_on_the_mixture_renders_the_measured_depth() -> None:
    model = fitted(make(init="mixture", init_radius=0.03, initial_opacity=0.9), 1).eval()
    frame = box_scene().source.load(4)
    assert frame.depth is not None
    got = model.predict_view(frame.camera).depth
    assert got is not None
    near = (frame.depth > 0) & (frame.depth < 3)  # farther away, 48 x 36 pixels are too few for planes
    solid = (got > 0) & near
    assert solid.sum() > 0.9 * near.sum()
    assert (got - frame.depth)[solid].abs().median() < 0.05


# ----------------------------------------------------------------------------------------------------------- training


def test_the_term_keeps_discs_on_the_surface() -> None:
    data = BoxData(NoisyFrames())
    errors: list[Tensor] = []
    for weight in (0.0, 4.0):
        model = fitted(make(mixture_weight=weight, means_lr=1.6e-3, mixture_tolerance=0.03), 100, data)
        assert isinstance(model, LiGS)
        errors.append(to_surface(model.gaussians["means"].detach()[opaque(model)]).mean())
    assert errors[1] < 0.92 * errors[0]


def test_the_term_is_in_the_loss_with_its_weight() -> None:
    def gradient(weight: float) -> Tensor:
        model = fitted(make(mixture_weight=weight), 1)
        grad = model.gaussians["means"].grad
        assert grad is not None
        return grad.clone()

    none, one, three = (gradient(w) for w in (0.0, 1.0, 3.0))
    assert (one - none).any()
    torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-3, atol=1e-6)


def test_steps_take_turns_over_the_visible_discs() -> None:
    seen: list[Tensor] = []

    class Record(LiGS):
        def mixture_term(self, ids: Tensor) -> Tensor:
            seen.append(ids)
            return super().mixture_term(ids)

    model = fitted(Record(NoHead(), mixture_stride=3, **SIZES), 3)
    visible = [model.project(box_scene().source.camera(i)).ids for i in box_scene().train]
    assert all(0.2 * len(v) < len(ids) < 0.5 * len(v) for ids in seen for v in visible)
    assert set(seen[0].tolist()) != set(seen[1].tolist())


def test_components_are_searched_at_the_start_and_after_a_change_of_density() -> None:
    control = AdaptiveDensityControl(start=0, stop=50, every=3, grad_threshold=0.0, prune_opacity=0.05)
    model = fitted(make(densify=control), 4)
    assert isinstance(model, LiGS)
    g = model.gaussians
    expected = model.mixture.nearest(g["means"], rotation_matrices(g["quats"])[..., 2], model.mixture_reach)
    assert g["mixture_ids"].shape == (len(g), 4)
    assert (g["mixture_ids"] == expected).float().mean() > 0.99  # one step has moved them since
    total = g["mixture_weights"].sum(1)
    assert torch.allclose(total, (g["mixture_ids"] >= 0).any(1).float(), atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_surface_density_control_has_the_surface_it_asks_for(weight: float) -> None:
    control = SurfaceDensityControl(start=0, stop=50, every=3, grad_threshold=1e-7, reset_every=0)
    early = fitted(make(densify=control, mixture_weight=weight), 1)
    late = fitted(make(densify=control, mixture_weight=weight), 9)
    assert len(late.gaussians) > len(early.gaussians)
    assert isinstance(late, LiGS)
    known = late.density_context()
    assert known.surface_distance is not None
    assert known.surface_project is not None
    assert known.label_confidence is not None
    points = torch.tensor([[1.3, -0.9, 0.06], [0.0, 0.0, 9.0]])
    assert float(known.surface_distance(points)[0]) == pytest.approx(0.06, abs=0.01)
    assert known.surface_distance(points)[1].isinf()
    foot, signed = known.surface_project(points)
    assert float(foot[0, 2]) == pytest.approx(0, abs=0.01)
    assert float(signed[0]) == pytest.approx(0.06, abs=0.01)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("init", ["points", "mixture"])
def test_a_resumed_run_goes_on_as_if_uninterrupted_without_a_new_fit(
    init: str, tmp_path: Any, monkeypatch: Any
) -> None:
    def model() -> LiGS:
        control = SurfaceDensityControl(start=0, stop=50, every=4, grad_threshold=1e-6, reset_every=0)
        options: dict[str, Any] = SIZES | {"init": init, "init_radius": 0.03}
        return LiGS(QueryHead(), densify=control, **options)

    path = tmp_path / "half.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint(path)

    whole = model()
    make_trainer(9, callbacks=[Save()]).fit(whole, datamodule=BoxData())
    assert len(whole.mixture) > 0

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the mixture was fitted again")

    monkeypatch.setattr("panbench.gaussians.mixture.PlaneMixture.fit", refuse)
    resumed = model()
    make_trainer(9).fit(resumed, datamodule=BoxData(), ckpt_path=path, weights_only=True)
    expected = whole.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name

    tested = model()
    bare = BoxData(BoxFrames(depth=False, masks=False))
    make_trainer(1).test(tested, datamodule=bare, verbose=False, ckpt_path=path, weights_only=True)
    assert torch.equal(tested.mixture.centers, whole.mixture.centers)


def test_a_checkpoint_without_a_mixture_says_so(tmp_path: Any) -> None:
    trainer = make_trainer(1)
    trainer.fit(make(), datamodule=BoxData())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    for name in [name for name in checkpoint["state_dict"] if name.startswith("mixture.")]:
        del checkpoint["state_dict"][name]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="no mixture of planes"):
        make_trainer(1).test(make(), datamodule=BoxData(), verbose=False, ckpt_path=path, weights_only=True)
