"""Density control of Gaussian surfels against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from density_sets import apply, check_moments, make, observe, opacities, tags

from panbench.errors import UserError
from panbench.gaussians.density import DensityChange, SurfelDensityControl
from panbench.gaussians.gaussian_set import GaussianSet

NOW: dict[str, Any] = {"start": 0, "every": 10, "reset_every": 0}


def surfels(
    control: SurfelDensityControl, sizes: list[tuple[float, float]], *args: Any, **kwargs: Any
) -> tuple[GaussianSet, torch.optim.Adam]:
    """Discs with three log-scales, the third the published −1e10."""
    gaussians, optimizer = make(control, torch.tensor([[a, b, 1.0] for a, b in sizes]), *args, **kwargs)
    with torch.no_grad():
        gaussians["scales"][:, 2] = -1e10
    return gaussians, optimizer


def watch(
    control: SurfelDensityControl, gaussians: GaussianSet, grads: list[float], scale_grads: list[float] | None = None
) -> None:
    """One view that sees the first surfels, with the given sums of the gradients of both log-scales."""
    grad = torch.ones_like(gaussians["scales"])
    grad[: len(grads), 0] += torch.tensor(scale_grads or [0.0] * len(grads))
    grad[:, 1] = -1.0
    grad[:, 2:] = 77.0  # the thickness is none, so what its gradient says does not count
    gaussians["scales"].grad = grad
    observe(control, gaussians, grads)


def test_the_faint_the_huge_the_tiny_and_the_unseen_are_pruned() -> None:
    control = SurfelDensityControl(**NOW)
    control.extent = 2.0  # prune above 1 m, below 4e-8 m²
    sizes = [(0.1, 0.1), (0.1, 0.1), (1.01, 0.1), (0.99, 0.1), (3e-4, 1.2e-4), (4e-4, 1.1e-4), (0.1, 0.1)]
    gaussians, optimizer = surfels(control, sizes, [0.11, 0.09] + [0.5] * 5)
    watch(control, gaussians, [0.0] * 6)  # all but the last
    assert apply(control, gaussians, optimizer, 10) == DensityChange(0, 0, 4, False, 3)
    assert tags(gaussians) == [0, 3, 5]


def test_pruning_comes_first_so_that_a_faint_candidate_has_no_children() -> None:
    control = SurfelDensityControl(**NOW)
    gaussians, optimizer = surfels(control, [(0.005, 0.005), (0.5, 0.5), (0.5, 0.5)], [0.05, 0.05, 0.5])
    watch(control, gaussians, [1.0, 1.0, 1.0])
    assert apply(control, gaussians, optimizer, 10) == DensityChange(0, 1, 2, False, 2)
    assert tags(gaussians) == [2, 2]


def test_clones_need_a_scale_that_does_not_want_to_shrink_and_room_for_opacity() -> None:
    control = SurfelDensityControl(**NOW)
    just_below, just_above = torch.tensor([1.99, 2.01]).sigmoid().tolist()
    gaussians, optimizer = surfels(
        control,
        [(0.009, 0.009)] * 4 + [(0.011, 0.009)] * 2,
        [just_below, just_below, just_above, 0.5, 0.5, 0.95],
    )
    # Over two views the mean is what counts.
    watch(control, gaussians, [1.5e-4, 1.5e-4, 1.5e-4, 0.5e-4, 1.5e-4, 1.5e-4], [-1.0, 2.0, -1.0, -1.0, 2.0, 2.0])
    watch(control, gaussians, [0.7e-4, 0.7e-4, 0.7e-4, 0.7e-4, 0.7e-4, 0.4e-4], [0.5, -1.5, -1.0, -1.0, 2.0, 2.0])
    change = apply(control, gaussians, optimizer, 10)
    # 0 grows; 1 wants to shrink; 2 is opaque; 3 and 5 lie still; 4 is split whatever its scale gradient.
    assert change == DensityChange(1, 1, 0, False, 8)
    assert tags(gaussians) == [0, 1, 2, 3, 5, 0, 4, 4]
    assert not any(gaussians[name].any() for name in control.fields())


def test_children_of_a_split_stay_flat_and_in_the_plane() -> None:
    control = SurfelDensityControl(**NOW)
    gaussians, optimizer = surfels(control, [(0.2, 0.1)] * 50, means=torch.zeros(50, 3))
    watch(control, gaussians, [1.0] * 50)
    assert apply(control, gaussians, optimizer, 10).split == 50
    means, scales = gaussians["means"].detach(), gaussians["scales"].detach()
    assert len(gaussians) == 100
    assert not means[:, 2].any()
    assert means[:, 0].std() == pytest.approx(0.2, rel=0.3)
    torch.testing.assert_close(scales[:, :2].exp(), torch.tensor([[0.2, 0.1]]).expand(100, 2) / 1.6)
    assert (scales[:, 2].exp() == 0).all()


def test_the_published_schedule_has_no_end_and_waits_until_every_frame_was_seen() -> None:
    control = SurfelDensityControl(reset_every=0)
    control.max_steps = 15_000
    assert [step for step in range(15_001) if control.due(step)] == list(range(300, 15_000, 100))
    assert control.watches(14_999)
    control.frames = 130
    assert [step for step in range(1000) if control.due(step)] == [260, 390, 520, 650, 780, 910]
    assert [s for s in range(1000) if SurfelDensityControl(reset_every=0, stop=500).due(s)] == [300, 400]
    # With 143 frames, steps 1001 and 2002 come right after a reset.
    control = SurfelDensityControl()
    control.frames = 143
    grown = [step for step in range(2300) if control.due(step) and step % 1000]
    assert grown == [step for step in range(286, 2300, 143) if step not in (1001, 2002)]
    assert not any(SurfelDensityControl(stop=0).due(step) or SurfelDensityControl(stop=0).watches(step)
                   for step in range(3000))  # fmt: skip


def test_every_1000_steps_all_opacities_fall_to_12_percent_of_themselves() -> None:
    control = SurfelDensityControl(every=100_000)
    control.max_steps = 3000
    assert [step for step in range(3001) if control.due(step)] == [1000, 2000]  # not in the last step
    gaussians, optimizer = surfels(control, [(0.1, 0.1), (0.1, 0.1), (0.1, 0.1)], [0.9, 0.2, 0.01])
    with torch.no_grad():
        gaussians["opacities"][0] = 50.0  # 1 in float32
    assert apply(control, gaussians, optimizer, 1000) == DensityChange(0, 0, 0, True, 3)
    torch.testing.assert_close(opacities(gaussians), torch.tensor([0.12, 0.024, 0.0012]), rtol=1e-5, atol=0)
    check_moments(gaussians, optimizer, torch.ones(3, dtype=torch.bool), "opacities")
    check_moments(gaussians, optimizer, torch.zeros(3, dtype=torch.bool), "means")


def test_the_reset_comes_after_pruning_and_growth() -> None:
    control = SurfelDensityControl(start=0, every=1000)
    gaussians, optimizer = surfels(control, [(0.005, 0.005)], [0.5])
    watch(control, gaussians, [1.0])
    assert apply(control, gaussians, optimizer, 1000) == DensityChange(1, 0, 0, True, 2)
    torch.testing.assert_close(opacities(gaussians), torch.tensor([0.06, 0.06]))


def test_observing_before_the_backward_pass_is_a_defect_that_is_told() -> None:
    control = SurfelDensityControl()
    gaussians, _ = surfels(control, [(0.1, 0.1)])
    gaussians["scales"].grad = None
    with pytest.raises(ValueError, match="after the backward pass"):
        observe(control, gaussians, [1.0])


@pytest.mark.parametrize(
    "bad",
    [{"every": 0}, {"stop": -1}, {"prune_opacity": 1.0}, {"reset_factor": 1.0}, {"reset_factor": 0.0},
     {"pause_after_reset": -1}, {"prune_area": -1.0}, {"prune_scale": 0.0}, {"split_shrink": 0.0},
     {"grad_threshold": math.nan}],
)  # fmt: skip
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=rf"^densify: {name} is {value}; it must be"):
        SurfelDensityControl(**bad)
