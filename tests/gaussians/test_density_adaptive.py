"""Adaptive density control against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from density_sets import apply, check_moments, make, observe, opacities, tags
from scipy.spatial.transform import Rotation
from torch import Tensor

from panbench import ops
from panbench.errors import UserError
from panbench.gaussians.density import AdaptiveDensityControl, DensityChange
from panbench.scene import Camera

ALL_OFF: dict[str, Any] = {"start": 0, "stop": 1000, "every": 10, "reset_every": 0}


# ------------------------------------------------------------------------------------------------------------- growth


def test_the_mean_gradient_is_over_the_views_that_saw_the_gaussian() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    gaussians, _ = make(control, [0.001] * 4)
    control.observe(gaussians, torch.tensor([0, 2]), torch.tensor([1e-4, 6e-4]), torch.tensor([3, 5]))
    control.observe(gaussians, torch.tensor([2, 3]), torch.tensor([2e-4, 9e-4]), torch.tensor([1, 0]))
    assert gaussians["density_views"].tolist() == [1, 0, 2, 0]
    assert torch.allclose(gaussians["density_grad"], torch.tensor([1e-4, 0, 8e-4, 0]))


def test_small_candidates_are_cloned_exactly_and_large_ones_split_in_two() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    control.extent = 2.0  # clone up to 0.02
    gaussians, optimizer = make(control, [0.019, 0.019, 0.021, 0.021])
    before = {name: gaussians[name].detach().clone() for name in gaussians}
    observe(control, gaussians, [3e-4, 1e-4, 3e-4, 1e-4])
    change = apply(control, gaussians, optimizer, 10)
    assert change == DensityChange(cloned=1, split=1, pruned=0, reset=False, count=6)
    assert tags(gaussians) == [0, 1, 3, 0, 2, 2]  # the split parent is gone, its children are at the end
    for name in ("means", "quats", "scales", "opacities", "semantic"):
        assert torch.equal(gaussians[name][3], before[name][0]), name
    for child in (4, 5):
        assert torch.allclose(gaussians["scales"][child], before["scales"][2] - math.log(1.6))
        for name in ("quats", "opacities", "semantic"):
            assert torch.equal(gaussians[name][child], before[name][2]), name
        offset = (gaussians["means"][child] - before["means"][2]).abs()
        assert (offset < 6 * before["scales"][2].exp()).all()
    assert not torch.equal(gaussians["means"][4], gaussians["means"][5])
    assert gaussians["votes"].tolist() == [0, 1, 3, 0, 0, 0]


def test_statistics_start_over_and_new_rows_have_zero_moments() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    gaussians, optimizer = make(control, [0.001, 1.0])
    observe(control, gaussians, [1.0, 1.0])
    apply(control, gaussians, optimizer, 10)
    assert gaussians["density_grad"].tolist() == [0, 0, 0, 0]
    assert gaussians["density_views"].tolist() == [0, 0, 0, 0]
    for name in ("means", "opacities", "semantic"):
        check_moments(gaussians, optimizer, torch.tensor([False, True, True, True]), name)


def test_children_of_a_split_scatter_like_the_parent_in_its_own_axes() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    count = 4000
    turned = torch.tensor([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]]).repeat(count, 1)  # x axis to y
    gaussians, optimizer = make(control, [0.3] * count, means=torch.zeros(count, 3), quats=turned)
    parent = gaussians["scales"][0].detach().exp()
    observe(control, gaussians, [1.0] * count)
    apply(control, gaussians, optimizer, 10)
    assert len(gaussians) == 2 * count
    spread = gaussians["means"].detach().std(0)
    assert torch.allclose(spread, parent[[1, 0, 2]], rtol=0.05)
    assert torch.allclose(gaussians["means"].detach().mean(0), torch.zeros(3), atol=0.02)


@pytest.mark.parametrize("flat", ["two scales", "a third scale of nothing"])
def test_discs_split_within_their_plane(flat: str) -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    rotation = Rotation.random(30, rng=0)
    quats = torch.from_numpy(rotation.as_quat()[:, [3, 0, 1, 2]]).float()
    size = torch.full((30, 2), 0.3) if flat == "two scales" else torch.tensor([[0.3, 0.3, 0.0]]).repeat(30, 1)
    gaussians, optimizer = make(control, size, quats=quats)
    if flat != "two scales":
        with torch.no_grad():
            gaussians["scales"][:, 2] = -1e10
    parents = gaussians["means"].detach().clone()
    observe(control, gaussians, [1.0] * 30)
    apply(control, gaussians, optimizer, 10)
    assert len(gaussians) == 60
    offset = gaussians["means"].detach() - parents[gaussians["tag"]]
    normals = torch.from_numpy(rotation.as_matrix()[:, :, 2]).float()[gaussians["tag"]]
    assert (offset * normals).sum(-1).abs().max() < 1e-5 * 300  # float32 at 300 m
    assert offset.norm(dim=-1).median() > 0.2


def test_growth_stops_at_the_cap_and_the_largest_gradients_go_first() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, max_gaussians=6)
    gaussians, optimizer = make(control, [0.001, 0.5, 0.001, 0.5])
    observe(control, gaussians, [3e-4, 9e-4, 8e-4, 4e-4])
    change = apply(control, gaussians, optimizer, 10)
    assert (change.cloned, change.split, change.count) == (1, 1, 6)
    assert sorted(tags(gaussians)) == [0, 1, 1, 2, 2, 3]
    observe(control, gaussians, [1.0] * 6)
    assert apply(control, gaussians, optimizer, 20).count == 6


def test_more_gaussians_than_the_cap_neither_grow_nor_go() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, max_gaussians=2)
    gaussians, optimizer = make(control, [0.001] * 3)
    observe(control, gaussians, [1.0] * 3)
    assert apply(control, gaussians, optimizer, 10) == DensityChange(0, 0, 0, False, 3)


def test_the_same_generator_gives_the_same_children() -> None:
    def children() -> Tensor:
        control = AdaptiveDensityControl(**ALL_OFF)
        gaussians, optimizer = make(control, [0.5] * 3)
        observe(control, gaussians, [1.0] * 3)
        apply(control, gaussians, optimizer, 10)
        return gaussians["means"].detach()

    assert torch.equal(children(), children())


def test_a_misplaced_spot_grows_a_matching_one_stays_and_a_transparent_one_goes() -> None:
    """With gradients of a rendered picture: three spots side by side, the first a third of its width off its place."""
    camera = Camera(96, 32, 100.0, 100.0, 48.0, 16.0, torch.eye(4))
    control = AdaptiveDensityControl(**ALL_OFF)
    centres = torch.tensor([[-0.6, 0.0, 2.0], [0.0, 0.0, 2.0], [0.6, 0.0, 2.0]])
    gaussians, optimizer = make(control, torch.full((3, 3), 0.06), [0.8, 0.8, 0.004], means=centres)

    def render() -> tuple[ops.Projected, Tensor]:
        g = gaussians
        seen = ops.project(g["means"], g["quats"], g["scales"], g["opacities"], camera, kind="ellipsoid", near=0.1)
        bins = ops.bin(seen.geometry, camera.width, camera.height, kind="ellipsoid")
        white = torch.ones(len(seen.ids), 1)
        image = ops.blend(
            seen.geometry, white, bins, camera.width, camera.height, kind="ellipsoid", near=0.1,
            labels=None, detached=False, targets=None,
        ).image  # fmt: skip
        return seen, image

    target = render()[1].detach()
    with torch.no_grad():
        gaussians["means"][0, 0] += 0.02
    seen, image = render()
    seen.geometry.retain_grad()
    (image - target).abs().mean().backward()
    assert seen.geometry.grad is not None
    screen = seen.geometry.grad[:, :2] * torch.tensor([camera.width / 2, camera.height / 2])
    control.observe(gaussians, seen.ids, screen.norm(dim=-1), torch.ones(len(seen.ids)))
    change = apply(control, gaussians, optimizer, 10)
    assert tags(gaussians) == [1, 0, 0]
    assert change == DensityChange(cloned=0, split=1, pruned=1, reset=False, count=3)


# ------------------------------------------------------------------------------------------------------------ pruning


def test_transparent_gaussians_are_pruned() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, prune_opacity=0.05)
    gaussians, optimizer = make(control, [0.001] * 3, [0.04, 0.06, 0.01])
    assert apply(control, gaussians, optimizer, 10).pruned == 2
    assert tags(gaussians) == [1]
    check_moments(gaussians, optimizer, torch.tensor([False]), "means")


def test_growth_comes_before_pruning_so_that_a_transparent_candidate_goes_with_its_children() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, prune_opacity=0.05)
    gaussians, optimizer = make(control, [0.001, 0.5, 0.001], [0.04, 0.04, 0.5])
    observe(control, gaussians, [1.0, 1.0, 0.0])
    assert apply(control, gaussians, optimizer, 10) == DensityChange(1, 1, 4, False, 1)
    assert tags(gaussians) == [2]


def test_oversized_gaussians_are_pruned_only_after_the_first_reset() -> None:
    control = AdaptiveDensityControl(start=0, stop=1000, every=10, reset_every=30)
    control.extent = 2.0
    gaussians, optimizer = make(control, [0.19, 0.21])
    apply(control, gaussians, optimizer, 30)
    assert tags(gaussians) == [0, 1]
    apply(control, gaussians, optimizer, 40)
    assert tags(gaussians) == [0]


def test_nothing_is_pruned_rather_than_everything(caplog: pytest.LogCaptureFixture) -> None:
    control = AdaptiveDensityControl(**ALL_OFF, prune_opacity=0.99)
    gaussians, optimizer = make(control, [0.001] * 3)
    assert apply(control, gaussians, optimizer, 10).count == 3
    assert "every Gaussian is due to be pruned" in caplog.text
    observe(control, gaussians, [0.0, 1.0, 1.0])
    with torch.no_grad():
        gaussians["scales"][2] = 0.0
    # A split parent goes even then: its children stand for it.
    assert apply(control, gaussians, optimizer, 20) == DensityChange(1, 1, 0, False, 5)
    assert tags(gaussians) == [0, 1, 1, 2, 2]


# ---------------------------------------------------------------------------------------------------- opacity, schedule


def test_a_reset_caps_opacities_and_forgets_their_moments() -> None:
    control = AdaptiveDensityControl(start=500, stop=1000, every=10, reset_every=30)
    gaussians, optimizer = make(control, [0.001] * 2, [0.9, 0.007])
    assert apply(control, gaussians, optimizer, 30) == DensityChange(0, 0, 0, True, 2)
    assert torch.allclose(opacities(gaussians), torch.tensor([0.01, 0.007]))
    check_moments(gaussians, optimizer, torch.tensor([True, True]), "opacities")
    check_moments(gaussians, optimizer, torch.tensor([False, False]), "means")


def test_the_published_schedule_densifies_from_600_to_14900_and_resets_below_15000() -> None:
    control = AdaptiveDensityControl()
    due = [step for step in range(30_001) if control.due(step)]
    assert due == list(range(600, 15_000, 100))
    control = AdaptiveDensityControl(every=40_000)
    assert [step for step in range(30_001) if control.due(step)] == [3000, 6000, 9000, 12_000]
    assert not any(AdaptiveDensityControl(stop=0).due(step) for step in range(10_000))
    assert [step for step in range(20_000) if AdaptiveDensityControl().watches(step)] == list(range(15_000))


def test_a_pause_after_a_reset_leaves_out_the_densifications_within_it() -> None:
    control = AdaptiveDensityControl(pause_after_reset=250)
    paused = {reset + late for reset in (3000, 6000, 9000, 12_000) for late in (100, 200)}
    assert {step for step in range(600, 15_000, 100) if not control.due(step)} == paused


def test_with_revised_opacity_each_pair_is_as_opaque_as_what_it_came_from() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, revised_opacity=True)
    gaussians, optimizer = make(control, [0.001, 0.5, 0.001], [0.7, 0.3, 0.7])
    observe(control, gaussians, [1.0, 1.0, 0.0])
    apply(control, gaussians, optimizer, 10)
    assert tags(gaussians) == [0, 2, 0, 1, 1]
    # 1 − sqrt(0.3) and 1 − sqrt(0.7): two of them let through 0.3 and 0.7.
    expected = torch.tensor([1 - math.sqrt(0.3), 0.7, 1 - math.sqrt(0.3), 1 - math.sqrt(0.7), 1 - math.sqrt(0.7)])
    torch.testing.assert_close(opacities(gaussians), expected, rtol=1e-6, atol=0)
    check_moments(gaussians, optimizer, torch.tensor([True, False, True, True, True]), "opacities")
    check_moments(gaussians, optimizer, torch.tensor([False, False, True, True, True]), "means")


def test_decay_lowers_every_opacity_a_little_and_keeps_its_moments() -> None:
    control = AdaptiveDensityControl(stop=700, reset_every=0, every=10_000, opacity_decay=0.9995)
    assert [step for step in range(2000) if control.due(step)] == [550, 600, 650]
    gaussians, optimizer = make(control, [0.001] * 3, [0.9, 0.3, 0.01])
    for step in (550, 600):
        assert apply(control, gaussians, optimizer, step) == DensityChange(0, 0, 0, False, 3)
    torch.testing.assert_close(opacities(gaussians), torch.tensor([0.9, 0.3, 0.01]) * 0.9995**2, rtol=1e-5, atol=0)
    check_moments(gaussians, optimizer, torch.zeros(3, dtype=torch.bool), "opacities")


def test_absolute_gradients_are_asked_for_with_absgrad_alone() -> None:
    assert AdaptiveDensityControl(absgrad=True).absolute
    assert not AdaptiveDensityControl().absolute


# --------------------------------------------------------------------------------------------------- panoptic guidance


def test_certain_labels_ease_the_growth_of_small_gaussians_that_were_seen() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, grad_threshold=2e-4, panoptic_weight=1e-4, panoptic_scale=0.02)
    control.extent = 2.0  # σ = 0.04 m
    # The bonus is 1e-4 · exp(−s²/2σ²) · confidence: 0.607e-4 at s = σ, 0.0111e-4 at s = 3σ.
    scales = [0.04, 0.04, 0.04, 0.12, 0.04, 1e-6, 1e-6]
    grads = [1.40e-4, 1.39e-4, 1.40e-4, 1.40e-4, 1.75e-4, 1.01e-4, 0.0]
    confidence = torch.tensor([1.0, 1.0, 0.9, 1.0, 0.5, 1.0, 1.0])
    gaussians, optimizer = make(control, scales)
    observe(control, gaussians, grads[:6])  # the last one is out of view
    change = apply(control, gaussians, optimizer, 10, label_confidence=lambda: confidence)
    grown = [tag for tag in range(7) if tags(gaussians).count(tag) == 2]
    assert grown == [0, 4, 5]
    assert (change.cloned, change.split) == (1, 2)


@pytest.mark.parametrize("known", [{}, {"label_confidence": lambda: None}])
def test_panoptic_guidance_without_a_head_that_knows_its_confidence_is_refused(known: dict[str, Any]) -> None:
    control = AdaptiveDensityControl(**ALL_OFF, panoptic_weight=1e-4)
    gaussians, optimizer = make(control, [0.001])
    with pytest.raises(UserError, match=r"panoptic_weight is 0\.0001, and the head has no confidence"):
        apply(control, gaussians, optimizer, 10, **known)


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "bad",
    [
        {"every": 0},
        {"split_shrink": 0},
        {"prune_opacity": 1.0},
        {"reset_opacity": 0.0},
        {"start": -1},
        {"stop": -1},
        {"max_gaussians": 0},
        {"grad_threshold": math.nan},
        {"reset_every": -1},
        {"pause_after_reset": -1},
        {"opacity_decay": 0.0},
        {"opacity_decay": 1.01},
        {"decay_every": 0},
        {"prune_scale": 0.0},
        {"panoptic_weight": -1.0},
        {"panoptic_scale": 0.0},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    (name, value), *_ = bad.items()
    with pytest.raises(UserError, match=rf"^densify: {name} is {value}; it must be"):
        AdaptiveDensityControl(**bad)


def test_all_broken_rules_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"every is 0.*prune_opacity is 2") as refused:
        AdaptiveDensityControl(every=0, prune_opacity=2)
    assert "\n" not in str(refused.value)
