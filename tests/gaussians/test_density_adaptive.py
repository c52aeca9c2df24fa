"""Adaptive density control against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.density import AdaptiveDensityControl, DensityChange, DensityContext
from panbench.gaussians.fields import FieldSpec
from panbench.gaussians.gaussian_set import GaussianSet
from panbench.gaussians.optim import build_optimizer

ALL_OFF = {"start": 0, "stop": 1000, "every": 10, "reset_every": 0}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def make(
    control: AdaptiveDensityControl, scales: list[float], opacities: list[float] | None = None, axes: int = 3
) -> tuple[GaussianSet, torch.optim.Adam]:
    """Gaussians on the x axis, 10 m apart, with the given largest scale; ``tag`` is their number."""
    count = len(scales)
    size = torch.tensor(scales)[:, None].log().expand(-1, axes).clone()
    size[:, 1:] -= 1.0  # the largest scale decides
    gaussians = GaussianSet()
    gaussians.add(
        {
            "means": FieldSpec((3,), torch.arange(count)[:, None] * torch.tensor([10.0, 0, 0]), lr=0.1),
            "quats": FieldSpec((4,), torch.tensor([[2.0, 0, 0, 0]]).repeat(count, 1), lr=0.1),
            "scales": FieldSpec((axes,), size, lr=0.1),
            "opacities": FieldSpec((), torch.tensor([logit(o) for o in opacities or [0.5] * count]), lr=0.1),
            "tag": FieldSpec((), torch.arange(count)),
            **control.fields(),
        }
    )
    optimizer, _ = build_optimizer(gaussians, [], 100)
    (gaussians["means"].sum() + gaussians["opacities"].sum()).backward()
    optimizer.step()
    return gaussians, optimizer


def observe(control: AdaptiveDensityControl, gaussians: GaussianSet, grads: list[float]) -> None:
    count = len(grads)
    control.observe(gaussians, torch.arange(count), torch.tensor(grads), torch.ones(count))


def apply(
    control: AdaptiveDensityControl, gaussians: GaussianSet, optimizer: torch.optim.Adam, step: int
) -> DensityChange:
    return control.apply(gaussians, optimizer, step, torch.Generator().manual_seed(step), context)


def tags(gaussians: GaussianSet) -> list[int]:
    return gaussians["tag"].tolist()


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
    for name in ("means", "quats", "scales", "opacities"):
        assert torch.equal(gaussians[name][3], before[name][0]), name
    for child in (4, 5):
        assert torch.allclose(gaussians["scales"][child], before["scales"][2] - math.log(1.6))
        assert torch.equal(gaussians["quats"][child], before["quats"][2])
        assert torch.equal(gaussians["opacities"][child], before["opacities"][2])
        offset = (gaussians["means"][child] - before["means"][2]).abs()
        assert (offset < 6 * before["scales"][2].exp()).all()
    assert not torch.equal(gaussians["means"][4], gaussians["means"][5])


def test_statistics_start_over_and_new_rows_have_zero_moments() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    gaussians, optimizer = make(control, [0.001, 1.0])
    observe(control, gaussians, [1.0, 0.0])
    apply(control, gaussians, optimizer, 10)
    assert gaussians["density_grad"].tolist() == [0, 0, 0]
    assert gaussians["density_views"].tolist() == [0, 0, 0]
    moment = optimizer.state[gaussians["means"]]["exp_avg"]
    assert (moment[:2] != 0).all()
    assert (moment[2] == 0).all()


def test_children_of_a_split_scatter_like_the_parent_in_its_own_axes() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    count = 4000
    gaussians, optimizer = make(control, [0.3] * count)
    with torch.no_grad():
        gaussians["means"].zero_()
        gaussians["quats"].copy_(torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)]))  # x axis to y
    parent = gaussians["scales"][0].detach().exp()
    observe(control, gaussians, [1.0] * count)
    apply(control, gaussians, optimizer, 10)
    assert len(gaussians) == 2 * count
    spread = gaussians["means"].detach().std(0)
    assert torch.allclose(spread, parent[[1, 0, 2]], rtol=0.05)
    assert torch.allclose(gaussians["means"].detach().mean(0), torch.zeros(3), atol=0.02)


def test_discs_split_within_their_plane() -> None:
    control = AdaptiveDensityControl(**ALL_OFF)
    gaussians, optimizer = make(control, [0.3] * 20, axes=2)
    observe(control, gaussians, [1.0] * 20)
    apply(control, gaussians, optimizer, 10)
    assert len(gaussians) == 40
    assert (gaussians["means"][:, 2] == gaussians["means"][0, 2]).all()
    assert gaussians["means"][:, 1].std() > 0.01


def test_transparent_gaussians_are_pruned() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, prune_opacity=0.05)
    gaussians, optimizer = make(control, [0.001] * 3, [0.04, 0.06, 0.01])
    with torch.no_grad():
        gaussians["opacities"].copy_(torch.tensor([logit(0.04), logit(0.06), logit(0.01)]))
    assert apply(control, gaussians, optimizer, 10).pruned == 2
    assert tags(gaussians) == [1]


def test_oversized_gaussians_are_pruned_only_after_the_first_reset() -> None:
    control = AdaptiveDensityControl(start=0, stop=1000, every=10, reset_every=30)
    control.extent = 2.0
    gaussians, optimizer = make(control, [0.19, 0.21])
    apply(control, gaussians, optimizer, 30)
    assert tags(gaussians) == [0, 1]
    apply(control, gaussians, optimizer, 40)
    assert tags(gaussians) == [0]


def test_a_reset_caps_opacities_and_forgets_their_moments() -> None:
    control = AdaptiveDensityControl(start=500, stop=1000, every=10, reset_every=30)
    gaussians, optimizer = make(control, [0.001] * 2)
    with torch.no_grad():
        gaussians["opacities"].copy_(torch.tensor([logit(0.9), logit(0.007)]))
    assert apply(control, gaussians, optimizer, 30) == DensityChange(0, 0, 0, True, 2)
    assert torch.allclose(gaussians["opacities"].detach().sigmoid(), torch.tensor([0.01, 0.007]))
    assert (optimizer.state[gaussians["opacities"]]["exp_avg"] == 0).all()
    assert (optimizer.state[gaussians["means"]]["exp_avg"] != 0).all()


def test_the_published_schedule_densifies_from_600_to_14900_and_resets_below_15000() -> None:
    control = AdaptiveDensityControl()
    due = [step for step in range(30_001) if control.due(step)]
    assert due == list(range(600, 15_000, 100))
    control = AdaptiveDensityControl(every=40_000)
    assert [step for step in range(30_001) if control.due(step)] == [3000, 6000, 9000, 12_000]
    assert not any(AdaptiveDensityControl(stop=0).due(step) for step in range(10_000))


def test_growth_stops_at_the_cap_and_the_largest_gradients_go_first() -> None:
    control = AdaptiveDensityControl(**ALL_OFF, max_gaussians=6)
    gaussians, optimizer = make(control, [0.001, 0.5, 0.001, 0.5])
    observe(control, gaussians, [3e-4, 9e-4, 8e-4, 4e-4])
    change = apply(control, gaussians, optimizer, 10)
    assert (change.cloned, change.split, change.count) == (1, 1, 6)
    assert sorted(tags(gaussians)) == [0, 1, 1, 2, 2, 3]
    observe(control, gaussians, [1.0] * 6)
    assert apply(control, gaussians, optimizer, 20).count == 6


def test_the_same_generator_gives_the_same_children() -> None:
    def children() -> Tensor:
        control = AdaptiveDensityControl(**ALL_OFF)
        gaussians, optimizer = make(control, [0.5] * 3)
        observe(control, gaussians, [1.0] * 3)
        apply(control, gaussians, optimizer, 10)
        return gaussians["means"].detach()

    assert torch.equal(children(), children())


def test_nothing_is_pruned_rather_than_everything(caplog: pytest.LogCaptureFixture) -> None:
    control = AdaptiveDensityControl(**ALL_OFF, prune_opacity=0.99)
    gaussians, optimizer = make(control, [0.001] * 3)
    assert apply(control, gaussians, optimizer, 10).count == 3
    assert "every Gaussian is due to be pruned" in caplog.text


@pytest.mark.parametrize("bad", [{"every": 0}, {"split_shrink": 0}, {"prune_opacity": 1.0}, {"reset_opacity": 0.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="densify:"):
        AdaptiveDensityControl(**bad)
