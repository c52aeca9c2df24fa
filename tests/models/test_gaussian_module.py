"""What every base model owes its heads and its user, on two boxes of known place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import pytest
import torch
from box_scene import (
    CRATE,
    DRUM,
    LABELS,
    TEST,
    BoxData,
    BoxFrames,
    box_scene,
    fitted,
    make_trainer,
)
from lightning.pytorch.callbacks import Callback, LambdaCallback
from torch import Tensor
from torch.nn import functional

from panbench.errors import UserError
from panbench.gaussians.density import MCMC, AdaptiveDensityControl
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.heads import NoHead, PanopticHead, QueryHead
from panbench.heads.base import GaussianLabels, LabelView, StepContext
from panbench.models import GaussianModule, LiGS, Surfels, ThreeDGS, TwoDGS
from panbench.ops import backend
from panbench.scene import Camera, Frame, LabelSpace, PanopticMap
from panbench.training.write_predictions import PredictedView

VOXEL = 0.08
BASES: list[type[GaussianModule]] = [LiGS, ThreeDGS, TwoDGS, Surfels]


class ClassesOnly(PanopticHead):
    """A whole head in a few lines: a class distribution per Gaussian, every thing class one object."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def build(self, labels: LabelSpace) -> None:
        self.classes = labels.size - 1
        self.thing = torch.from_numpy(labels.is_thing())

    def fields(self) -> Mapping[str, FieldSpec]:
        return {"logits": FieldSpec((self.classes,), lambda count: torch.zeros(count, self.classes), self.lr)}

    def channels(self, gaussians: GaussianSet, ids: Tensor) -> Tensor:
        return gaussians["logits"][ids].softmax(-1)

    def losses(self, view: LabelView, frame: Frame, gaussians: GaussianSet, context: StepContext) -> dict[str, Tensor]:
        if frame.masks is None:
            return {}
        target = frame.masks.semantic.long() - 1
        log = (view.channels + 1e-4).log()
        return {"classes": functional.nll_loss(log.flatten(0, 1), target.flatten(), ignore_index=-1)}

    def decode(self, view: LabelView) -> PanopticMap:
        return self._panoptic(torch.where(view.alpha > 0.3, view.channels.argmax(-1) + 1, 0))

    def label(self, gaussians: GaussianSet) -> GaussianLabels:
        score, best = gaussians["logits"].detach().softmax(-1).max(-1)
        found = self._panoptic((best + 1)[None])
        return GaussianLabels(found.semantic[0], found.instance[0], score)

    def _panoptic(self, classes: Tensor) -> PanopticMap:
        return PanopticMap(classes, torch.where(self.thing[classes], classes, 0))


def make(base: type[GaussianModule], head: PanopticHead | None = None, **options: Any) -> GaussianModule:
    """A base with sizes for the boxes."""
    sizes: dict[str, Any] = {"voxel": VOXEL, "flat_voxel": VOXEL, "label_start": 0, "label_every": 1}
    if base is Surfels:
        sizes["pyramid"] = (0, 0)  # pictures of 48 x 36 pixels have nothing to spare
    elif issubclass(base, TwoDGS):
        sizes |= {"distortion_weight": 10.0, "distortion_start": 0, "consistency_start": 0}
    return base(head=head or NoHead(), **(sizes | options))


class Collect(Callback):
    """Keeps what ``test_step`` returns."""

    def __init__(self) -> None:
        self.views: list[PredictedView] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        assert isinstance(outputs, PredictedView)
        self.views.append(outputs)


def predicted(model: GaussianModule, data: BoxData, **kwargs: Any) -> list[PredictedView]:
    """The test frames as a test loop predicts them."""
    collect = Collect()
    make_trainer(1, callbacks=[collect]).test(model, datamodule=data, verbose=False, **kwargs)
    assert len(collect.views) == len(TEST)
    return collect.views


# --------------------------------------------------------------------------------------------------------- life cycle


@pytest.mark.parametrize("base", BASES)
def test_without_a_head_it_trains_and_predicts_appearance_with_everything_void(base: type[GaussianModule]) -> None:
    frame = box_scene().source.load(3)
    early = fitted(make(base, colors_lr=0.05), 1).eval().predict_view(frame.camera)
    model = fitted(make(base, colors_lr=0.05), 30).eval()
    late = model.predict_view(frame.camera)

    def error(got: PredictedView) -> Tensor:
        assert got.depth is not None
        return (got.color.float() - frame.color.float()).abs()[got.depth > 0].mean()

    assert error(late) < 0.8 * error(early)
    assert error(late) < 30
    assert not late.panoptic.semantic.any()
    assert not late.panoptic.instance.any()
    labels = model.head.label(model.gaussians)
    assert len(labels.semantic) == len(model.gaussians)
    assert not labels.semantic.any()


def test_the_operators_are_ready_before_training_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.load_cpu()
    monkeypatch.setattr(backend, "_state", backend._State(loaded=True))
    reasons: list[str] = []
    start = LambdaCallback(on_train_start=lambda *_: reasons.append(backend.reason()))
    make_trainer(1, callbacks=[start]).fit(make(LiGS), datamodule=BoxData())
    assert reasons == [backend.reason()] != [""]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("head", [NoHead, ClassesOnly, QueryHead])
def test_predictions_have_the_promised_shapes_types_and_ranges(
    base: type[GaussianModule], head: Callable[[], PanopticHead]
) -> None:
    model = fitted(make(base, head()), 3)
    for got in predicted(model, BoxData()):
        assert got.panoptic.semantic.shape == got.panoptic.instance.shape == (36, 48)
        assert got.panoptic.semantic.max() < LABELS.size
        assert got.color.shape == (36, 48, 3)
        assert got.color.dtype == torch.uint8
        assert got.depth is not None
        assert got.depth.isfinite().all()
        assert (got.depth >= 0).all()
        assert got.normal is not None
        length = got.normal.norm(dim=-1)
        assert (((length - 1).abs() < 1e-4) | (length < 1e-4)).all()


def test_the_trainers_predictions_are_those_of_its_tests() -> None:
    model = fitted(make(LiGS, QueryHead()), 3)
    expected = predicted(model, BoxData())
    predictions = make_trainer(3).predict(model, datamodule=BoxData())
    assert predictions is not None
    assert len(predictions) == len(TEST)
    for one, two in zip(predictions, expected, strict=True):
        assert isinstance(one, PredictedView)
        assert torch.equal(one.color, two.color)
        assert torch.equal(one.panoptic.semantic, two.panoptic.semantic)


@pytest.mark.parametrize("base", BASES)
def test_the_first_render_already_has_the_measured_geometry(base: type[GaussianModule]) -> None:
    model = fitted(make(base, initial_scale=0.9, initial_opacity=0.9), 1).eval()
    frame = box_scene().source.load(4)
    assert frame.depth is not None
    got = model.predict_view(frame.camera)
    assert got.depth is not None
    assert got.normal is not None
    solid = (got.depth > 0) & (frame.depth > 0)
    assert solid.sum() > 0.8 * (frame.depth > 0).sum()
    assert (got.depth - frame.depth)[solid].abs().median() < 0.1
    towards = (got.normal * functional.normalize(frame.camera.rays(), dim=-1)).sum(-1)
    assert (towards[solid] < 0).float().mean() > 0.95


@pytest.mark.parametrize("base", BASES)
def test_a_head_in_a_few_lines_learns_on_every_base(base: type[GaussianModule]) -> None:
    model = fitted(make(base, ClassesOnly(lr=0.3)), 40).eval()
    scene = box_scene()
    for index in TEST:
        frame = scene.source.load(index)
        assert frame.truth is not None
        got = model.predict_view(frame.camera).panoptic
        known = (got.semantic > 0) & (frame.truth.semantic > 0)
        assert known.float().mean() > 0.5
        assert (got.semantic == frame.truth.semantic)[known].float().mean() > 0.9
        assert set(got.instance.unique().tolist()) == {0, CRATE, DRUM}
    assert set(model.head.label(model.gaussians).semantic.unique().tolist()) >= {CRATE, DRUM}


@pytest.mark.parametrize("base", BASES)
def test_testing_needs_a_checkpoint_and_cameras_but_no_depth_and_no_masks(
    base: type[GaussianModule], tmp_path: Any
) -> None:
    model = make(base, QueryHead())
    trainer = make_trainer(4)
    trainer.fit(model, datamodule=BoxData())
    expected = model.eval().predict_view(box_scene().source.camera(TEST[0]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    bare = BoxData(BoxFrames(depth=False, masks=False))
    first = predicted(make(base, QueryHead()), bare, ckpt_path=tmp_path / "last.ckpt", weights_only=True)[0]
    assert first.depth is not None
    assert expected.depth is not None
    assert torch.equal(first.color, expected.color)
    assert torch.equal(first.panoptic.semantic, expected.panoptic.semantic)
    assert torch.equal(first.panoptic.instance, expected.panoptic.instance)
    assert torch.equal(first.depth, expected.depth)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Any) -> None:
    trainer = make_trainer(1)
    trainer.fit(make(LiGS), datamodule=BoxData())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    checkpoint["panbench_format"] = 999
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="format 999"):
        predicted(make(LiGS), BoxData(), ckpt_path=path, weights_only=True)


def test_a_scene_without_any_depth_is_an_error_that_says_so() -> None:
    with pytest.raises(UserError, match="depth"):
        fitted(make(LiGS), 1, BoxData(BoxFrames(depth=False)))


# ---------------------------------------------------------------------------------------------- labels and geometry

GEOMETRY = ("means", "quats", "scales", "opacities")


def gradients(base: type[GaussianModule], head: PanopticHead, **options: Any) -> dict[str, Tensor]:
    """Gradients of all fields after the first step."""
    model = fitted(make(base, head, **options), 1)
    out: dict[str, Tensor] = {}
    for name in model.gaussians:
        grad = model.gaussians[name].grad
        if grad is not None:
            out[name] = grad.clone()
    return out


@pytest.mark.parametrize("base", BASES)
def test_label_losses_move_geometry_only_where_they_are_let(base: type[GaussianModule]) -> None:
    without = gradients(base, NoHead())
    apart = gradients(base, QueryHead(), label_gradient="none")
    moved = gradients(base, QueryHead(), label_gradient="all")
    assert apart["semantic_features"].any()
    assert apart["instance_features"].any()
    for name in (*GEOMETRY, "features_dc"):
        scale = without[name].abs().max()
        torch.testing.assert_close(apart[name], without[name], rtol=1e-4, atol=1e-5 * float(scale))
    for name in GEOMETRY:
        difference = (moved[name] - without[name]).norm() / without[name].norm()
        assert difference > 1e-3, name
    torch.testing.assert_close(
        moved["features_dc"], without["features_dc"], rtol=1e-4, atol=1e-5 * float(without["features_dc"].abs().max())
    )


@pytest.mark.parametrize("base", BASES)
def test_classes_alone_may_move_geometry(base: type[GaussianModule]) -> None:
    # The instance terms are switched off in one and only kept from geometry in the other: the same gradients.
    off = {"dice_weight": 0.0, "bce_weight": 0.0, "warp_weight": 0.0}
    classes = gradients(base, QueryHead(**off), label_gradient="all")
    both = gradients(base, QueryHead(warp_weight=0.0), label_gradient="semantic")
    without = gradients(base, NoHead())
    assert both["instance_features"].any()
    for name in GEOMETRY:
        scale = classes[name].abs().max()
        torch.testing.assert_close(both[name], classes[name], rtol=1e-4, atol=1e-5 * float(scale))
        assert (both[name] - without[name]).norm() > 1e-3 * without[name].norm()


@pytest.mark.parametrize("base", BASES)
def test_geometry_stays_as_it_is_from_its_stop_while_labels_go_on(base: type[GaussianModule]) -> None:
    model = make(base, QueryHead(), densify=eager(), geometry_stop=5, label_every=2)
    kept: dict[str, Tensor] = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                kept.update({name: model.gaussians[name].detach().clone() for name in model.gaussians})

    make_trainer(12, callbacks=[Keep()]).fit(model, datamodule=BoxData())
    for name in (*GEOMETRY, "features_dc", "features_rest"):
        assert torch.equal(model.gaussians[name], kept[name]), name
    for name in ("semantic_features", "instance_features"):
        assert not torch.equal(model.gaussians[name], kept[name]), name


def test_frozen_geometry_and_a_frame_without_masks_make_a_step_of_nothing() -> None:
    settings = {"geometry_stop": 1, "neighbors": 0}
    model = fitted(make(LiGS, QueryHead(), **settings), 6, BoxData(BoxFrames(masks=False)))
    assert model.global_step == 6


def test_labels_wait_for_their_start() -> None:
    early = fitted(make(LiGS, QueryHead(), label_start=3), 3)
    assert early.gaussians["semantic_features"].grad is None
    late = fitted(make(LiGS, QueryHead(), label_start=3), 4)
    assert late.gaussians["semantic_features"].grad is not None


def test_queries_outlive_the_time_before_labels_start() -> None:
    passes, start = 1, 5
    frames = len(box_scene().train)
    model = fitted(make(LiGS, QueryHead(prune_after=passes), label_start=start), start + passes * frames)
    assert isinstance(model.head, QueryHead)
    assert int(model.head.paired_frames) == 0  # they were weeded, by the masks of one pass
    assert model.head.instance_channels(model.gaussians, torch.arange(2)).shape == (2, 2)


class RecordNeighbors(QueryHead):
    """Remembers which frames the head asked for beside which."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: dict[int, list[int]] = {}

    def losses(self, view: LabelView, frame: Frame, gaussians: GaussianSet, context: StepContext) -> dict[str, Tensor]:
        def neighbor() -> Frame | None:
            other = context.neighbor()
            assert other is not None
            self.asked.setdefault(frame.index, []).append(other.index)
            return other

        return super().losses(view, frame, gaussians, replace(context, neighbor=neighbor))


def test_neighbours_are_near_training_frames_and_take_turns() -> None:
    head = RecordNeighbors(warp_every=4)
    fitted(make(LiGS, head, neighbors=4), 96)
    train = set(box_scene().train)
    for index, others in head.asked.items():
        assert set(others) <= train - {index}
        assert max(abs(index - other) for other in others) <= 6
    assert any(len(set(others)) > 1 for others in head.asked.values() if len(others) > 1)


def test_no_neighbours_asked_for_means_no_warping() -> None:
    model = fitted(make(LiGS, QueryHead(warp_every=1), neighbors=0), 2)
    assert model.latest["loss"].isfinite()


# ------------------------------------------------------------------------------------------------------- densification


def eager(**options: Any) -> AdaptiveDensityControl:
    """Density control that grows at once: steps 3, 6, 9, …"""
    settings: dict[str, Any] = {
        "start": 1, "stop": 100, "every": 3, "grad_threshold": 1e-6, "reset_every": 0, "max_gaussians": 2500,
    }  # fmt: skip
    return AdaptiveDensityControl(**(settings | options))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("head", [NoHead, ClassesOnly, QueryHead])
def test_densification_changes_n_and_training_goes_on(
    base: type[GaussianModule], head: Callable[[], PanopticHead]
) -> None:
    before = len(fitted(make(base, head()), 1).gaussians)
    model = fitted(make(base, head(), densify=eager()), 8)
    after = len(model.gaussians)
    assert after > before
    for name in model.gaussians:
        assert model.gaussians[name].shape[0] == after
        assert model.gaussians[name].isfinite().all()
    optimizer: Any = model.optimizers()
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in model.gaussians.groups():
        (parameter,) = group["params"]
        assert id(parameter) in owned
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
    assert model.latest["loss"].isfinite()
    model.eval().predict_view(box_scene().source.camera(0))


@pytest.mark.parametrize("base", BASES)
def test_transparent_gaussians_are_pruned(base: type[GaussianModule]) -> None:
    count = len(fitted(make(base), 1).gaussians)
    model = fitted(make(base, densify=eager(grad_threshold=1e9, prune_opacity=0.7), initial_opacity=0.7), 4)
    assert len(model.gaussians) < count


@pytest.mark.parametrize("base", BASES)
def test_opacities_are_reset_when_due(base: type[GaussianModule]) -> None:
    model = fitted(make(base, densify=eager(every=50, reset_every=4, reset_opacity=0.05)), 4)
    assert model.gaussians["opacities"].sigmoid().max() <= 0.05 + 1e-6


@pytest.mark.parametrize("base", [ThreeDGS, Surfels])
def test_absolute_gradients_reach_the_density_control_and_are_no_smaller(base: type[GaussianModule]) -> None:
    watching = {"start": 0, "stop": 100, "every": 100, "grad_threshold": 1e9}
    plain = fitted(make(base, densify=eager(**watching)), 1).gaussians["density_grad"]
    absolute = fitted(make(base, densify=eager(**watching, absgrad=True)), 1).gaussians["density_grad"]
    assert (absolute >= plain * (1 - 1e-4) - 1e-9).all()
    assert absolute.sum() > 1.05 * plain.sum()


def test_mcmc_relocates_grows_to_its_budget_and_stays_there() -> None:
    first = len(fitted(make(ThreeDGS), 1).gaussians)
    control = MCMC(start=0, stop=100, every=2, max_gaussians=first + 50)
    model = fitted(make(ThreeDGS, QueryHead(), densify=control, initial_opacity=0.5), 9)
    assert len(model.gaussians) == first + 50
    assert all(model.gaussians[name].isfinite().all() for name in model.gaussians)


# --------------------------------------------------------------------------------------------------------- rendering


@dataclass(frozen=True)
class Probe:
    """A head's channels that count Gaussians: one channel of ones."""

    width: int = 1

    def __call__(self, ids: Tensor) -> Tensor:
        return torch.ones(len(ids), self.width)


@pytest.mark.parametrize("base", BASES)
def test_splatting_ones_gives_alpha(base: type[GaussianModule]) -> None:
    model = fitted(make(base), 1).eval()
    camera = box_scene().source.camera(4)
    view = model.splat(camera, Probe(2))
    for channel in range(2):
        torch.testing.assert_close(view.channels[..., channel], view.alpha, rtol=1e-4, atol=1e-5)
    rendered = model.render(camera)
    torch.testing.assert_close(view.alpha, rendered.alpha.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(view.depth, rendered.depth.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", BASES)
def test_splatting_never_moves_geometry(base: type[GaussianModule]) -> None:
    model = fitted(make(base, ClassesOnly()), 1)
    for name in model.gaussians:
        model.gaussians[name].grad = None
    view = model.splat(box_scene().source.camera(4), lambda ids: model.head.channels(model.gaussians, ids))
    view.channels.square().sum().backward()
    assert model.gaussians["logits"].grad is not None
    for name in GEOMETRY:
        grad = model.gaussians[name].grad
        assert grad is None or not grad.any()


@pytest.mark.parametrize("base", BASES)
def test_a_camera_that_sees_nothing_gives_an_empty_view(base: type[GaussianModule]) -> None:
    model = fitted(make(base, QueryHead()), 2).eval()
    camera = box_scene().source.camera(0)
    pose = camera.world_to_camera.clone()
    pose[:3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ pose[:3]  # turned round
    pose[2, 3] -= 50.0
    away = replace(camera, world_to_camera=pose)
    got = model.predict_view(away)
    assert not got.color.any()
    assert not got.panoptic.semantic.any()
    assert got.depth is not None
    assert not got.depth.any()


@pytest.mark.parametrize("base", BASES)
def test_labels_add_nothing_to_colour_and_depth(base: type[GaussianModule]) -> None:
    model = fitted(make(base, QueryHead()), 2).eval()
    camera: Camera = box_scene().source.camera(6)
    with_labels, without = model.render(camera), model.render(camera, labels=False)
    torch.testing.assert_close(with_labels.image, without.image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(with_labels.depth, without.depth, rtol=1e-5, atol=1e-5)
    assert without.labels.shape[-1] == 0


def test_the_same_seed_gives_the_same_run() -> None:
    runs = [fitted(make(LiGS, QueryHead(), densify=eager()), 5).state_dict() for _ in range(2)]
    assert runs[0].keys() == runs[1].keys()
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name
