"""The paper's head through its public methods, on two boxes of known place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
import yaml
from box_scene import (
    BOXES,
    CRATE,
    DRUM,
    FLOOR,
    LABELS,
    TEST,
    BoxData,
    BoxFrames,
    box_scene,
    context,
    fitted,
    label_view,
    with_masks,
)
from torch import Tensor
from torch.nn import functional

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.rotation import rotation_matrices
from panbench.heads.base import LabelView, PanopticHead, StepContext
from panbench.heads.query import QueryHead
from panbench.models import GaussianModule, LiGS
from panbench.ops import backend, label_sums
from panbench.resources import asset
from panbench.scene import Frame, PanopticMap

FIELDS_SEED = 3


def head_of_boxes(**options: Any) -> QueryHead:
    """A head seeded on the boxes: one query each."""
    torch.manual_seed(0)
    head = QueryHead(**options)
    head.build(LABELS)
    head.seed(box_scene())
    return head


def gaussians_of(head: QueryHead, count: int = 50) -> GaussianSet:
    """Random points among the boxes with the head's fields."""
    g = torch.Generator().manual_seed(FIELDS_SEED)
    out = GaussianSet(count)
    torch.manual_seed(FIELDS_SEED)
    means = torch.rand(count, 3, generator=g) * torch.tensor([2.0, 1.0, 0.6]) - torch.tensor([1.0, 0.5, 0.0])
    out.add({"means": FieldSpec((3,), means, 1e-3)})
    out.add(head.fields())
    return out


def permuted(masks: PanopticMap) -> PanopticMap:
    """The same masks under other ids; which of two ids is the smaller one changes."""
    table = torch.arange(int(masks.instance.max()) + 1, dtype=torch.int32)
    ids = masks.instance.unique()
    ids = ids[ids > 0]
    table[ids.long()] = ids.flip(0) * 7 + 2
    return replace(masks, instance=table[masks.instance.long()])


@pytest.fixture(scope="module")
def model() -> GaussianModule:
    return trained()


def trained(frames: BoxFrames | None = None, steps: int = 60, **options: Any) -> GaussianModule:
    """A model with the head after a short training on the boxes."""
    head = QueryHead(**{"semantic_lr": 0.1, "instance_lr": 0.1, "decoder_lr": 0.02, "lr_decay": 0.5} | options)
    out = fitted(LiGS(head, voxel=0.08, flat_voxel=0.08, label_start=0, label_every=1), steps, BoxData(frames))
    return out.eval()


@pytest.fixture
def _reference() -> Iterator[None]:
    before = backend.resolve()
    backend.choose("reference")
    yield
    backend.choose(before)


# ------------------------------------------------------------------------------------------------------------- losses


def summed(head: PanopticHead, view: LabelView, frame: Frame) -> LabelView:
    """The view with the sums of its channels against the head's targets."""
    targets = head.targets(frame)
    return view if targets is None else replace(view, sums=label_sums(view.channels, targets))


def losses_and_gradient(
    model: GaussianModule, frame: Frame, neighbor: Frame | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The head's loss terms and the gradient of their sum with respect to the channels."""
    view = label_view(model, frame)
    channels = view.channels.detach().requires_grad_()
    view = summed(model.head, replace(view, channels=channels), frame)
    terms = model.head.losses(view, frame, model.gaussians, context(model, neighbor))
    torch.stack(list(terms.values())).sum().backward()
    assert channels.grad is not None
    return {name: term.detach() for name, term in terms.items()}, channels.grad


@pytest.mark.parametrize("blending", ["label", "feature"])
def test_permuting_a_frames_ids_changes_no_loss_and_no_gradient(blending: str) -> None:
    model = trained(steps=5, blending=blending)
    scene = box_scene()
    frame, neighbor = scene.source.load(3), scene.source.load(4)
    assert frame.masks is not None
    other = with_masks(frame, permuted(frame.masks))
    assert other.masks is not None
    assert not torch.equal(other.masks.instance, frame.masks.instance)
    expected, gradient = losses_and_gradient(model, frame, neighbor)
    got, other_gradient = losses_and_gradient(model, other, neighbor)
    assert {"semantic", "dice", "bce", "warp"} <= set(expected)
    assert got.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(got[name], term, rtol=1e-6, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("_reference")
def test_a_run_on_permuted_ids_learns_the_same() -> None:
    class Permuted(BoxFrames):
        def load(self, index: int) -> Frame:
            frame = super().load(index)
            assert frame.masks is not None
            return with_masks(frame, permuted(frame.masks))

    one = trained(steps=6)
    two = trained(Permuted(), steps=6)
    torch.testing.assert_close(dict(two.state_dict()), dict(one.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_frame_without_masks_teaches_nothing(model: GaussianModule) -> None:
    frame = with_masks(box_scene().source.load(3), None)
    assert model.head.losses(label_view(model, frame), frame, model.gaussians, context(model)) == {}


@pytest.mark.parametrize("blank", ["all void", "no thing", "thing without class"])
def test_masks_with_little_in_them_give_finite_losses(model: GaussianModule, blank: str) -> None:
    frame = box_scene().source.load(3)
    assert frame.masks is not None
    semantic, instance = frame.masks.semantic, frame.masks.instance
    if blank == "all void":
        semantic, instance = torch.zeros_like(semantic), torch.zeros_like(instance)
    elif blank == "no thing":
        semantic, instance = torch.full_like(semantic, FLOOR), torch.zeros_like(instance)
    else:
        semantic = torch.zeros_like(semantic)
    frame = with_masks(frame, PanopticMap(semantic, instance))
    terms, gradient = losses_and_gradient(model, frame, None)
    assert all(term.isfinite() for term in terms.values())
    assert gradient.isfinite().all()


def test_a_mask_of_a_single_pixel_counts_like_any_other(model: GaussianModule) -> None:
    frame = box_scene().source.load(3)
    semantic, instance = torch.full((36, 48), FLOOR), torch.zeros(36, 48, dtype=torch.int64)
    semantic[11, 13], instance[11, 13] = CRATE, 1
    terms, gradient = losses_and_gradient(model, with_masks(frame, PanopticMap(semantic, instance)), None)
    assert {"semantic", "dice", "bce"} <= set(terms)
    assert all(term.isfinite() for term in terms.values())
    assert gradient.isfinite().all()


def pixel_losses(head: QueryHead, channels: Tensor, frame: Frame) -> dict[str, Tensor]:
    """The terms straight from eqs. 11 and 12 on the pixels, pairs by the least cost among all assignments."""
    assert frame.masks is not None
    labelled = frame.masks.semantic > 0
    rows, classes = channels[labelled], frame.masks.semantic[labelled].long()
    semantic = rows[:, : head.classes]
    if head.blending == "feature":
        semantic = head.decoder(rows[:, : head.semantic_dim]).softmax(-1)
    entropy = -(semantic.gather(1, classes[:, None] - 1) + 1e-4).log().mean()
    queries = rows[:, -int(head.active.sum()) :]
    ids = frame.masks.instance[labelled]
    masks = torch.stack([ids == i for i in ids.unique() if i > 0], dim=1).float()

    def terms(query: int, mask: int) -> tuple[Tensor, Tensor]:
        i, y = queries[:, query], masks[:, mask]
        return (
            1 - (2 * (i * y).sum() + 1) / (i.sum() + y.sum() + 1),
            functional.binary_cross_entropy(i.clamp(1e-4, 1 - 1e-4), y),
        )

    pairs = min(
        permutations(range(queries.shape[1]), masks.shape[1]),
        key=lambda p: sum(float(t.detach()) for k, q in enumerate(p) for t in terms(q, k)),
    )
    dice, bce = zip(*(terms(q, k) for k, q in enumerate(pairs)), strict=True)
    return {"semantic": entropy, "dice": torch.stack(dice).mean(), "bce": torch.stack(bce).mean()}


@pytest.mark.parametrize("blending", ["label", "feature"])
def test_losses_are_those_of_the_pixels(blending: str) -> None:
    model = trained(steps=8, blending=blending)
    frame = box_scene().source.load(3)
    expected_of = label_view(model, frame).channels.detach().requires_grad_()
    assert isinstance(model.head, QueryHead)
    expected = pixel_losses(model.head, expected_of, frame)
    torch.stack(list(expected.values())).sum().backward()
    terms, gradient = losses_and_gradient(model, frame, None)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, expected_of.grad, rtol=1e-3, atol=1e-7)


def test_sums_of_the_blend_teach_what_sums_of_its_image_teach(model: GaussianModule) -> None:
    frame, neighbor = box_scene().source.load(3), box_scene().source.load(4)
    assert isinstance(model.head, QueryHead)

    def gradients(apart: bool) -> list[Tensor]:
        model.zero_grad()
        view = label_view(model, frame)
        if apart:
            view = summed(model.head, view, frame)
        terms = model.head.losses(view, frame, model.gaussians, context(model, neighbor))
        assert {"semantic", "dice", "bce", "warp"} == set(terms)
        torch.stack(list(terms.values())).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for mine, theirs in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_scores_weigh_the_cross_entropy_if_asked() -> None:
    scene = box_scene()
    frame = scene.source.load(3)
    assert frame.masks is not None
    score = torch.zeros(frame.masks.semantic.shape)
    score[:, :10] = 1.0
    scored = with_masks(frame, replace(frame.masks, score=score))
    halved = with_masks(frame, replace(frame.masks, semantic=torch.where(score > 0, frame.masks.semantic, 0)))
    model = trained(steps=2, use_scores=True, warp_weight=0.0)
    by_score = losses_and_gradient(model, scored, None)[0]["semantic"]
    by_mask = losses_and_gradient(model, halved, None)[0]["semantic"]
    torch.testing.assert_close(by_score, by_mask)


def test_the_weights_scale_their_terms(model: GaussianModule) -> None:
    def terms(**weights: float) -> dict[str, Tensor]:
        head = QueryHead(**weights)  # type: ignore[arg-type]
        head.build(LABELS)
        state = {name: value.clone() for name, value in model.head.state_dict().items()}
        head.resize_like(state, "")
        head.load_state_dict(state)
        frame, neighbor = box_scene().source.load(3), box_scene().source.load(4)
        return head.losses(label_view(model, frame), frame, model.gaussians, context(model, neighbor))

    weights = {"dice_weight": 2.0, "bce_weight": 3.0, "semantic_weight": 4.0, "warp_weight": 5.0}
    plain, heavy = terms(**dict.fromkeys(weights, 1.0)), terms(**weights)
    for name in ("dice", "bce", "semantic", "warp"):
        torch.testing.assert_close(heavy[name], weights[f"{name}_weight"] * plain[name])


@pytest.mark.parametrize("attention", ["literal", "log"])
@pytest.mark.parametrize("blending", ["label", "feature"])
def test_every_form_learns(attention: str, blending: str) -> None:
    frame = box_scene().source.load(3)
    early = losses_and_gradient(trained(steps=1, attention=attention, blending=blending), frame, None)[0]
    late = losses_and_gradient(trained(steps=25, attention=attention, blending=blending), frame, None)[0]
    assert late["semantic"] < 0.8 * early["semantic"]
    assert late["dice"] < early["dice"]
    assert late["bce"] < early["bce"]


# ----------------------------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("attention", ["literal", "log"])
def test_channels_are_shares_of_probability(attention: str) -> None:
    head = head_of_boxes(attention=attention)
    gaussians = gaussians_of(head)
    ids = torch.tensor([3, 7, 20, 49])
    semantic, instance = head.semantic_channels(gaussians, ids), head.instance_channels(gaussians, ids)
    torch.testing.assert_close(semantic.sum(1), torch.ones(4))
    assert semantic.shape == (4, LABELS.size - 1)
    assert instance.shape == (4, 2)
    assert (instance >= 0).all()
    assert (instance.sum(1) <= 1 + 1e-6).all()
    assert torch.equal(head.channels(gaussians, ids), torch.cat([semantic, instance], dim=1))


@pytest.mark.parametrize("attention", ["literal", "log"])
def test_without_a_no_object_entry_queries_share_every_gaussian_out(attention: str) -> None:
    head = head_of_boxes(attention=attention, no_object=0.0)
    gaussians = gaussians_of(head)
    instance = head.instance_channels(gaussians, torch.arange(50))
    assert instance.shape == (50, 2)
    torch.testing.assert_close(instance.sum(1), torch.ones(50))


def test_eq_5_to_the_letter_is_a_softmax_over_the_attention_of_the_queries() -> None:
    settings = yaml.safe_load((asset("configs") / "head" / "query_literal.yaml").read_text())["init_args"]
    head = head_of_boxes(**settings)
    gaussians = gaussians_of(head)
    for gaussian in (3, 7, 49):
        attention = []
        for query in range(2):
            similarity = (gaussians["instance_features"][gaussian] @ head.query_features[query]).item()
            axes = rotation_matrices(head.query_quats[query])
            covariance = axes @ torch.diag((2 * head.query_log_scales[query]).exp()) @ axes.T
            offset = gaussians["means"][gaussian] - head.query_means[query]
            density = math.exp(-0.5 * (offset @ covariance.inverse() @ offset).item())
            attention.append(density / (1 + math.exp(-similarity)))
        shares = [math.exp(a) / sum(math.exp(b) for b in attention) for a in attention]
        got = head.instance_channels(gaussians, torch.tensor([gaussian]))[0]
        assert got.tolist() == pytest.approx(shares, rel=1e-4)


def test_a_negative_no_object_is_refused() -> None:
    with pytest.raises(UserError, match="no_object -1"):
        QueryHead(no_object=-1.0)


def test_attention_is_local_other_gaussians_do_not_matter() -> None:
    head = head_of_boxes()
    gaussians = gaussians_of(head)
    ids = torch.tensor([3, 7, 20, 49])
    everything = head.channels(gaussians, torch.arange(50))
    torch.testing.assert_close(head.channels(gaussians, ids), everything[ids], rtol=1e-5, atol=1e-6)
    head.channels(gaussians, ids).square().sum().backward()
    unseen = torch.ones(50, dtype=torch.bool)
    unseen[ids] = False
    for name in head.fields():
        grad = gaussians[name].grad
        assert grad is not None
        assert not grad[unseen].any()
        assert grad[ids].any()


def test_the_head_never_moves_the_gaussians_it_attends_to() -> None:
    head = head_of_boxes()
    gaussians = gaussians_of(head)
    head.channels(gaussians, torch.arange(50)).square().sum().backward()
    assert gaussians["means"].grad is None


@pytest.mark.parametrize("attention", ["literal", "log"])
def test_a_gaussian_belongs_to_the_query_whose_place_it_shares(attention: str) -> None:
    # A temperature undoes the flatness of the literal softmax; it does not change the order.
    head = head_of_boxes(attention=attention, temperature=10.0)
    gaussians = gaussians_of(head)
    with torch.no_grad():
        for box, (low, high) in enumerate(BOXES):
            gaussians["means"][box] = (torch.tensor(low) + torch.tensor(high)) / 2
            gaussians["instance_features"][box] = 0
    best = head.instance_channels(gaussians, torch.arange(2)).argmax(1)
    assert sorted(best.tolist()) == [0, 1]
    centres = torch.stack([(torch.tensor(low) + torch.tensor(high)) / 2 for low, high in BOXES])
    assert torch.equal(torch.cdist(centres, head.query_means.detach()).argmin(1), best)


# ------------------------------------------------------------------------------------------------- queries over time


def ideal_view(head: QueryHead, frame: Frame, query_of: Callable[[int], int], queries: int) -> LabelView:
    """Channels as a perfect model with label blending would render them."""
    assert frame.truth is not None
    assert frame.depth is not None
    classes = LABELS.size - 1
    semantic = torch.nn.functional.one_hot((frame.truth.semantic.long() - 1).clamp_min(0), classes).float()
    instance = torch.zeros(*frame.truth.instance.shape, queries)
    for number in (1, 2):
        instance[..., query_of(number)] = (frame.truth.instance == number).float()
    known = (frame.truth.semantic > 0).float()
    return LabelView(torch.cat([semantic, instance], dim=-1) * known[..., None], known, frame.depth)


def teach(head: QueryHead, gaussians: GaussianSet, frames: list[Frame], query_of: Callable[[int], int]) -> None:
    """Show frames to the head with perfect renderings, so that it pairs masks and queries."""

    def splat(camera: object, channels: object) -> LabelView:
        raise AssertionError("no neighbour, nothing to splat")

    for step, frame in enumerate(frames):
        queries = head.instance_channels(gaussians, torch.arange(1)).shape[1]
        view = summed(head, ideal_view(head, frame, query_of, queries), frame)
        head.losses(view, frame, gaussians, StepContext(step, lambda: None, splat))


def test_queries_take_the_class_of_their_masks_whatever_the_ids() -> None:
    frames = list(box_scene().frames(box_scene().train))
    for query_of in (lambda n: n - 1, lambda n: 2 - n):
        head = head_of_boxes()
        teach(head, gaussians_of(head), frames, query_of)
        classes = head.query_classes()
        assert classes[query_of(1)] == CRATE
        assert classes[query_of(2)] == DRUM


def test_a_class_is_voted_by_pixels_a_minority_of_confused_masks_changes_nothing() -> None:
    frames = list(box_scene().frames(box_scene().train))
    wrong = frames[0]
    assert wrong.masks is not None
    confused = torch.where(wrong.masks.semantic == CRATE, DRUM, wrong.masks.semantic)
    head = head_of_boxes()
    teach(
        head,
        gaussians_of(head),
        [with_masks(wrong, replace(wrong.masks, semantic=confused)), *frames[1:]],
        lambda n: n - 1,
    )
    assert head.query_classes().tolist() == [CRATE, DRUM]


def halved(frame: Frame, crate: int) -> Frame:
    """The frame with two masks on the drum and none on the crate, whose pixels are of class ``crate``."""
    assert frame.truth is not None
    drum = frame.truth.instance == 2
    left = drum & (drum.int().cumsum(1) <= drum.sum(1, keepdim=True) / 2)
    instance = torch.where(left, 4, torch.where(drum, 7, 0)).int()
    semantic = torch.where(frame.truth.instance == 1, crate, frame.truth.semantic).int()
    return with_masks(frame, PanopticMap(semantic, instance))


def test_a_mask_elsewhere_that_a_query_is_paired_with_gives_it_no_vote() -> None:
    frames = list(box_scene().frames(box_scene().train))
    head = head_of_boxes()
    teach(head, gaussians_of(head), [frames[0], *(halved(f, 0) for f in frames[1:])], lambda n: n - 1)
    assert head.query_classes().tolist() == [CRATE, DRUM]


@pytest.mark.parametrize(("below", "left"), [(0.5, 1), (0.05, 2)])
def test_a_query_that_lies_outside_of_its_masks_is_surplus(below: float, left: int) -> None:
    frames = list(box_scene().frames(box_scene().train))
    head = head_of_boxes(prune_after=1, prune_below=below)
    gaussians = gaussians_of(head)
    # In one of eight frames the crate has its mask; in the others its query is paired with half of the drum.
    teach(head, gaussians, [frames[0], *(halved(f, FLOOR) for f in frames[1:])], lambda n: n - 1)
    head.after_step(len(frames))
    assert head.instance_channels(gaussians, torch.arange(50)).shape[1] == left


def test_a_query_that_no_mask_ever_asked_for_has_no_class() -> None:
    head = head_of_boxes()
    assert head.query_classes().tolist() == [0, 0]


def test_decoding_a_perfect_view_gives_the_truth_with_one_id_an_object() -> None:
    head = head_of_boxes()
    scene = box_scene()
    teach(head, gaussians_of(head), list(scene.frames(scene.train)), lambda n: n - 1)
    ids = []
    for index in TEST:
        frame = scene.source.load(index)
        assert frame.truth is not None
        got = head.decode(ideal_view(head, frame, lambda n: n - 1, 2))
        assert torch.equal(got.semantic, frame.truth.semantic.long())
        assert torch.equal(got.instance > 0, frame.truth.instance > 0)
        ids.append([got.instance[frame.truth.instance == n].unique().tolist() for n in (1, 2)])
        assert all(len(found) == 1 for found in ids[-1])
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][1]


def test_an_instance_has_the_class_of_its_vote_even_where_pixels_say_otherwise() -> None:
    head = head_of_boxes()
    scene = box_scene()
    teach(head, gaussians_of(head), list(scene.frames(scene.train)), lambda n: n - 1)
    frame = scene.source.load(TEST[0])
    assert frame.truth is not None
    view = ideal_view(head, frame, lambda n: n - 1, 2)
    part = frame.truth.instance == 1
    part[:, : int(part.nonzero()[:, 1].median())] = False
    channels = view.channels.clone()
    channels[part] = 0
    channels[..., DRUM - 1][part] = 1
    channels[..., LABELS.size - 1][part] = 1
    got = head.decode(LabelView(channels, view.alpha, view.depth))
    assert (got.semantic[part] == CRATE).all()


def test_pixels_where_nothing_was_hit_are_void() -> None:
    head = head_of_boxes()
    scene = box_scene()
    teach(head, gaussians_of(head), list(scene.frames(scene.train)), lambda n: n - 1)
    view = ideal_view(head, scene.source.load(0), lambda n: n - 1, 2)
    alpha = view.alpha.clone()
    alpha[:, :24] = 0
    got = head.decode(LabelView(view.channels * (alpha > 0)[..., None], alpha, view.depth))
    assert not got.semantic[:, :24].any()
    assert not got.instance[:, :24].any()
    assert got.semantic[:, 24:].any()


def test_queries_that_no_mask_asks_for_fall_silent_and_the_others_keep_their_ids() -> None:
    head = head_of_boxes(prune_after=1)
    gaussians = gaussians_of(head)
    frames = []
    for frame in box_scene().frames(box_scene().train):
        assert frame.truth is not None
        # Masks of the drum only: the crate's query is never paired.
        only = PanopticMap(frame.truth.semantic, (frame.truth.instance == 2).int() * 4)
        frames.append(with_masks(frame, only))
    teach(head, gaussians, frames[:-1], lambda n: n - 1)
    head.after_step(len(frames) - 1)
    assert head.instance_channels(gaussians, torch.arange(50)).shape[1] == 2  # the pass is not over
    teach(head, gaussians, frames[-1:], lambda n: n - 1)
    head.after_step(len(frames))
    instance = head.instance_channels(gaussians, torch.arange(50))
    assert instance.shape[1] == 1
    frame = box_scene().source.load(TEST[0])
    assert frame.truth is not None
    channels = torch.cat(
        [ideal_view(head, frame, lambda n: 0, 1).channels[..., : LABELS.size - 1],
         (frame.truth.instance == 2).float()[..., None]], dim=-1
    )  # fmt: skip
    view = LabelView(channels, torch.ones(36, 48), torch.ones(36, 48))
    assert head.decode(view).instance[frame.truth.instance == 2].unique().tolist() == [2]


def test_queries_never_fall_silent_if_that_is_switched_off() -> None:
    head = head_of_boxes(prune_after=0)
    head.after_step(1)
    assert head.instance_channels(gaussians_of(head), torch.arange(50)).shape[1] == 2


def test_a_head_without_any_query_trains_and_predicts_stuff_and_classes() -> None:
    model = trained(BoxFrames(masks=False), steps=3)
    camera = box_scene().source.camera(0)
    assert model.render(camera).labels.shape[-1] == LABELS.size - 1
    assert not model.predict_view(camera).panoptic.instance.any()


# --------------------------------------------------------------------------------------------------- trained on boxes


def test_trained_maps_obey_the_rules_of_panoptic_maps(model: GaussianModule) -> None:
    assert isinstance(model.head, QueryHead)
    thing = torch.from_numpy(LABELS.is_thing())
    scene = box_scene()
    found = set()
    for index in range(10):
        got = model.predict_view(scene.source.camera(index)).panoptic
        assert not got.instance[~thing[got.semantic]].any()
        for number in got.instance.unique().tolist():
            if number:
                found.add(number)
                classes = got.semantic[got.instance == number].unique()
                assert len(classes) == 1
                assert classes[0] == model.head.query_classes()[number - 1]
    assert len(found) == 2


def test_one_object_has_one_id_in_every_test_view(model: GaussianModule) -> None:
    scene = box_scene()
    ids: list[list[int]] = []
    for index in TEST:
        frame = scene.source.load(index)
        assert frame.truth is not None
        got = model.predict_view(frame.camera).panoptic
        row = []
        for number in (1, 2):
            claimed = got.instance[(frame.truth.instance == number) & (got.instance > 0)]
            assert len(claimed) > 0.5 * (frame.truth.instance == number).sum()
            row.append(int(claimed.mode().values))
        ids.append(row)
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][1]


def test_gaussians_are_labelled_like_the_surface_they_lie_on(model: GaussianModule) -> None:
    labels = model.head.label(model.gaussians)
    count = len(model.gaussians)
    assert labels.semantic.shape == labels.instance.shape == labels.score.shape == (count,)
    assert ((labels.score >= 0) & (labels.score <= 1)).all()
    thing = torch.from_numpy(LABELS.is_thing())
    assert not labels.instance[~thing[labels.semantic]].any()
    means = model.gaussians["means"].detach()
    ids = []
    for (low, high), kind in zip(BOXES, (CRATE, DRUM), strict=True):
        inside = ((means > torch.tensor(low) - 0.02) & (means < torch.tensor(high) + 0.02)).all(1) & (means[:, 2] > 0.1)
        assert inside.sum() > 20
        assert (labels.semantic[inside] == kind).float().mean() > 0.7
        ids.append(int(labels.instance[inside].mode().values))
    assert 0 not in ids
    assert ids[0] != ids[1]


def test_single_gaussians_have_no_label_where_features_are_blended() -> None:
    model = trained(steps=1, blending="feature")
    with pytest.raises(UserError, match="label blending"):
        model.head.label(model.gaussians)


def test_building_twice_keeps_what_was_built() -> None:
    head = head_of_boxes()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.build(LABELS)
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_head_takes_the_size_of_a_checkpoint() -> None:
    saved = {f"head.{name}": value for name, value in head_of_boxes().state_dict().items()}
    head = QueryHead()
    head.build(LABELS)
    head.resize_like(saved, "head.")
    head.load_state_dict({name.removeprefix("head."): value for name, value in saved.items()})
    gaussians = gaussians_of(head)
    assert head.instance_channels(gaussians, torch.arange(4)).shape == (4, 2)
