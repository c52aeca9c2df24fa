"""3DGS-MCMC: the relocation formula against exact arithmetic and integrals, draws and noise against their laws."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from density_sets import apply, check_moments, make, opacities, tags
from scipy.integrate import quad
from scipy.spatial.transform import Rotation
from torch import Tensor

from panbench.errors import UserError
from panbench.gaussians.density import MCMC, DensityChange
from panbench.gaussians.density.composition import relocate, share_opacity
from panbench.gaussians.optim import LogLinear

NOW: dict[str, Any] = {"start": 0, "stop": 1000, "every": 10}


def relocated(opacity: float, copies: int) -> tuple[float, float]:
    """o' and s'/s in float64."""
    logits = torch.tensor([opacity], dtype=torch.float64).logit()
    shared, factor = relocate(logits, torch.tensor([copies]))
    return shared.sigmoid().item(), factor.exp().item()


# ------------------------------------------------------------------------------------------------- relocation formula


@pytest.mark.parametrize(
    ("copies", "opacity", "factor"), [(2, 0.4522774425, 0.9211583967), (4, 0.2599171955, 0.8845998798)]
)
def test_published_values_at_opacity_0_7(copies: int, opacity: float, factor: float) -> None:
    assert relocated(0.7, copies) == pytest.approx((opacity, factor), abs=1e-10)


@pytest.mark.parametrize("copies", [2, 3, 7, 20, 51])
@pytest.mark.parametrize("opacity", [0.0051, 0.1, 0.5, 0.95, 0.9999, 1 - 1e-6])
def test_the_double_sum_of_the_paper_in_exact_arithmetic(opacity: float, copies: int) -> None:
    with localcontext() as arithmetic:
        arithmetic.prec = 80
        # The logit in double is what the code is given, so the opacity starts from it here too.
        logits = torch.tensor([opacity], dtype=torch.float64).logit()
        o = 1 / (1 + (-Decimal(logits.item())).exp())
        shared = 1 - ((1 - o).ln() / copies).exp()
        total = sum(
            math.comb(i - 1, k) * (-1) ** k * shared ** (k + 1) / Decimal(k + 1).sqrt()
            for i in range(1, copies + 1)
            for k in range(i)
        )
        expected = float(shared), float(o / total)
    assert relocated(opacity, copies) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("opacity", "copies"), [(0.7, 2), (0.7, 5), (0.05, 3), (0.99, 10), (0.3, 51)])
def test_copies_keep_the_integral_along_a_line_and_the_opacity_of_the_centre(opacity: float, copies: int) -> None:
    shared, factor = relocated(opacity, copies)
    assert 1 - (1 - shared) ** copies == pytest.approx(opacity, rel=1e-12)
    together, _ = quad(lambda x: 1 - (1 - shared * math.exp(-0.5 * (x / factor) ** 2)) ** copies, -12, 12, epsabs=1e-13)
    assert together == pytest.approx(opacity * math.sqrt(2 * math.pi), rel=1e-9)


def test_one_copy_changes_nothing_and_more_than_51_count_as_51() -> None:
    logits = torch.linspace(-6, 20, 50)
    same, factor = relocate(logits, torch.ones(50, dtype=torch.int64))
    assert torch.equal(same, logits)
    assert not factor.any()
    assert relocated(0.7, 400) == relocated(0.7, 51)


def test_relocation_is_finite_in_float32_up_to_saturated_opacities() -> None:
    logits = torch.tensor([-5.3, 0.0, 8.0, 16.0, 17.0, 40.0, 120.0])[:, None]
    copies = torch.arange(1, 52)
    shared, factor = relocate(logits.expand(-1, 51).reshape(-1), copies.repeat(7))
    assert shared.isfinite().all()
    assert factor.isfinite().all()
    assert (factor <= 1e-6).all()  # copies of a Gaussian are never larger
    assert (shared.view(7, 51).diff(dim=1) < 0).all()  # more copies, less opacity each


def test_shared_opacity_composes_to_the_whole_even_next_to_0_and_1() -> None:
    logits = torch.tensor([-30.0, -5.0, 0.0, 3.0, 30.0])
    for copies in (2, 9):
        shared = share_opacity(logits, copies).double()
        # log(1 − o) adds up: log(1 − o') · n.
        rest = torch.nn.functional.logsigmoid(-logits.double())
        torch.testing.assert_close(torch.nn.functional.logsigmoid(-shared) * copies, rest, rtol=1e-5, atol=0)


# ----------------------------------------------------------------------------------------------- relocation and growth


def test_dead_gaussians_become_copies_of_a_living_one_which_shares_its_opacity_with_them() -> None:
    control = MCMC(**NOW, growth=0.0)
    gaussians, optimizer = make(control, [0.3, 0.2, 0.1, 0.4], [0.004, 0.7, 0.00499, 0.00501])
    with torch.no_grad():
        gaussians["opacities"][3] = -80.0
    before = {name: gaussians[name].detach().clone() for name in gaussians}
    change = apply(control, gaussians, optimizer, 10)
    assert change == DensityChange(0, 0, 0, False, 4, relocated=3)
    assert tags(gaussians) == [1, 1, 1, 1]
    shared, factor = relocated(0.7, 4)
    torch.testing.assert_close(opacities(gaussians), torch.full((4,), shared), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        gaussians["scales"].detach(), (before["scales"][1] + math.log(factor)).expand(4, -1), rtol=1e-5, atol=0
    )
    for name in ("means", "quats", "semantic"):
        assert torch.equal(gaussians[name].detach(), before[name][[1, 1, 1, 1]]), name
    assert gaussians["votes"].tolist() == [0, 1, 0, 0]  # the source keeps what is its own
    for name in ("means", "opacities", "semantic"):
        check_moments(gaussians, optimizer, torch.ones(4, dtype=torch.bool), name)


def test_those_neither_dead_nor_drawn_stay_as_they_are() -> None:
    control = MCMC(**NOW, growth=0.0)
    gaussians, optimizer = make(control, [0.1] * 40, [0.004] + [0.5] * 39)
    before = {name: gaussians[name].detach().clone() for name in gaussians}
    apply(control, gaussians, optimizer, 10)
    (source,) = {tag for tag in tags(gaussians) if tags(gaussians).count(tag) == 2}
    touched = torch.tensor([row in (0, source) for row in range(40)])
    for name in before:
        assert torch.equal(gaussians[name].detach()[~touched], before[name][~touched]), name
    for name in ("means", "opacities", "semantic"):
        check_moments(gaussians, optimizer, touched, name)


def test_sources_are_drawn_in_proportion_to_opacity() -> None:
    control = MCMC(**NOW, growth=0.0)
    dead = 20_000
    gaussians, optimizer = make(control, [0.1] * (dead + 3), [0.8, 0.15, 0.05] + [0.001] * dead)
    apply(control, gaussians, optimizer, 10)
    moved = gaussians["tag"][3:]
    for row, share in enumerate((0.8, 0.15, 0.05)):
        deviation = math.sqrt(dead * share * (1 - share))
        assert abs(int((moved == row).sum()) - dead * share) < 4 * deviation
    assert set(tags(gaussians)) == {0, 1, 2}


def test_opacities_of_many_copies_stop_at_the_lowest_that_lives() -> None:
    control = MCMC(**NOW, growth=0.0)
    gaussians, optimizer = make(control, [0.1] * 30, [0.05] + [0.001] * 29)
    apply(control, gaussians, optimizer, 10)
    # 1 − 0.95^{1/30} is 0.0017.
    torch.testing.assert_close(opacities(gaussians), torch.full((30,), 0.005), rtol=1e-5, atol=0)


def test_the_set_grows_by_five_percent_each_time_until_it_is_full() -> None:
    control = MCMC(**NOW, max_gaussians=118)
    gaussians, optimizer = make(control, [0.1] * 100, [0.5] * 100)
    counts = [apply(control, gaussians, optimizer, step) for step in (10, 20, 30, 40, 50)]
    assert [change.count for change in counts] == [105, 110, 115, 118, 118]
    assert [change.cloned for change in counts] == [5, 5, 5, 3, 0]
    check = [tags(gaussians).count(tag) for tag in range(100)]
    assert sum(check) == 118


def test_growth_copies_share_opacity_and_start_with_zero_moments() -> None:
    control = MCMC(**NOW, growth=2.0)
    gaussians, optimizer = make(control, [0.1], [0.9])
    assert apply(control, gaussians, optimizer, 10) == DensityChange(2, 0, 0, False, 3)
    shared, factor = relocated(0.9, 3)
    torch.testing.assert_close(opacities(gaussians), torch.full((3,), shared), rtol=1e-5, atol=0)
    torch.testing.assert_close(gaussians["scales"].detach().exp()[:, 0], torch.full((3,), 0.1 * factor))
    check_moments(gaussians, optimizer, torch.ones(3, dtype=torch.bool), "means")


def test_more_first_gaussians_than_the_cap_stay() -> None:
    control = MCMC(**NOW, max_gaussians=2)
    gaussians, optimizer = make(control, [0.1] * 3)
    assert apply(control, gaussians, optimizer, 10).count == 3


def test_a_gaussian_that_is_not_finite_comes_back_to_life_elsewhere() -> None:
    control = MCMC(**NOW, growth=0.0)
    gaussians, optimizer = make(control, [0.1] * 4, [0.9, 0.9, 0.9, 0.5])
    with torch.no_grad():
        gaussians["means"][0, 1] = math.nan
        gaussians["opacities"][1] = math.nan
        gaussians["scales"][2] = math.inf
    assert apply(control, gaussians, optimizer, 10).relocated == 3
    assert tags(gaussians) == [3, 3, 3, 3]
    for name in gaussians:
        assert gaussians[name].isfinite().all(), name


def test_nothing_moves_when_every_gaussian_is_dead(caplog: pytest.LogCaptureFixture) -> None:
    control = MCMC(**NOW, growth=0.0)
    gaussians, optimizer = make(control, [0.1] * 3, [0.001] * 3)
    assert apply(control, gaussians, optimizer, 10) == DensityChange(0, 0, 0, False, 3)
    assert "every Gaussian is dead" in caplog.text


def test_the_published_schedule_runs_from_600_to_24900_and_watches_no_gradient() -> None:
    control = MCMC()
    assert [step for step in range(30_001) if control.due(step)] == list(range(600, 25_000, 100))
    assert not any(control.watches(step) for step in range(1000))
    assert control.fields() == {}
    assert not any(MCMC(stop=0).due(step) for step in range(1000))
    gaussians, optimizer = make(control, [0.1] * 3)
    assert apply(control, gaussians, optimizer, 500) == DensityChange(0, 0, 0, False, 3)


# --------------------------------------------------------------------------------------------------------------- noise


def steps_of_noise(control: MCMC, scales: Tensor, opacity: float, rotation: Rotation, rate: float) -> np.ndarray:
    """Displacements [N, 3] of N equal Gaussians, float64."""
    quats = torch.from_numpy(rotation.as_quat()[[3, 0, 1, 2]]).float().repeat(len(scales), 1)
    gaussians, optimizer = make(
        control, scales, [opacity] * len(scales), means=torch.zeros(len(scales), 3), quats=quats
    )
    for group in optimizer.param_groups:
        group["lr"] = rate if group["name"] == "means" else 123.0
    # Long after the last relocation, too.
    control.after_step(gaussians, optimizer, 29_999, torch.Generator().manual_seed(3))
    return gaussians["means"].detach().double().numpy()


@pytest.mark.parametrize("opacity", [0.001, 0.005, 0.03])
def test_noise_has_the_covariance_of_sigma_times_a_normal_vector(opacity: float) -> None:
    control, rate, count = MCMC(), 1e-4, 60_000
    rotation = Rotation.random(rng=1)
    size = np.array([0.05, 0.02, 0.01])
    moved = steps_of_noise(control, torch.tensor(size).float().repeat(count, 1), opacity, rotation, rate)
    sigma = rotation.as_matrix() @ np.diag(size**2) @ rotation.as_matrix().T
    amount = rate * 5e5 / (1 + math.exp(100 * (opacity - 0.005)))
    expected = (amount * sigma) @ (amount * sigma).T
    found = np.cov(moved.T)
    # In the Gaussian's own axes, relative to each axis: the error of a sample covariance is about sqrt(2 / N).
    own = np.diag(1 / (amount * size**2)) @ rotation.as_matrix().T
    np.testing.assert_allclose(own @ found @ own.T, own @ expected @ own.T, atol=5 * math.sqrt(2 / count))
    assert np.abs(own @ moved.mean(0)).max() < 5 / math.sqrt(count)


def test_noise_keeps_discs_in_their_plane_and_opaque_gaussians_in_place() -> None:
    control = MCMC()
    rotation = Rotation.random(rng=2)
    discs = steps_of_noise(control, torch.full((500, 2), 0.05), 0.005, rotation, 1e-4)
    along = discs @ rotation.as_matrix()
    assert np.abs(along[:, 2]).max() < 1e-6 * np.abs(along[:, :2]).max()
    assert np.abs(along[:, :2]).std() > 0.01
    opaque = steps_of_noise(control, torch.full((500, 3), 0.05), 0.5, rotation, 1e-4)
    assert np.abs(opaque).max() < 1e-15


def test_noise_follows_the_schedule_of_the_means_rate_and_can_be_off() -> None:
    scales, rotation = torch.full((200, 3), 0.05), Rotation.identity()
    late = LogLinear(0.01, 100)(50)
    first = steps_of_noise(MCMC(), scales, 0.005, rotation, 1e-4)
    half = steps_of_noise(MCMC(), scales, 0.005, rotation, 1e-4 * late)
    np.testing.assert_allclose(half, first * 0.1, rtol=1e-5)
    assert not steps_of_noise(MCMC(noise_lr=0.0), scales, 0.005, rotation, 1e-4).any()


# --------------------------------------------------------------------------------------------- regularisers, settings


def test_regularisers_are_a_hundredth_of_mean_opacity_and_of_mean_scale() -> None:
    gaussians, _ = make(MCMC(), torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), [0.2, 0.6])
    terms = {name: term.item() for name, term in MCMC().regularisers(gaussians).items()}
    assert terms == pytest.approx({"mcmc_opacity": 0.01 * 0.4, "mcmc_scale": 0.01 * 0.35})
    assert MCMC(opacity_weight=0.0, scale_weight=0.0).regularisers(gaussians) == {}


@pytest.mark.parametrize(("term", "field"), [("mcmc_opacity", "opacities"), ("mcmc_scale", "scales")])
def test_gradients_of_the_regularisers_equal_finite_differences(term: str, field: str) -> None:
    control = MCMC(opacity_weight=3.0, scale_weight=3.0)
    gaussians, _ = make(control, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), [0.2, 0.6])
    gaussians.double()
    parameter = gaussians[field]
    parameter.grad = None
    control.regularisers(gaussians)[term].backward()
    assert parameter.grad is not None
    values, step = parameter.detach().view(-1), 1e-6
    for entry, grad in enumerate(parameter.grad.view(-1).tolist()):
        ends: list[float] = []
        for shift in (step, -2 * step):
            values[entry] += shift
            ends.append(control.regularisers(gaussians)[term].item())
        values[entry] += step
        assert grad == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)


@pytest.mark.parametrize(
    "bad",
    [{"every": 0}, {"max_gaussians": 0}, {"growth": -0.1}, {"min_opacity": 0.0}, {"noise_lr": math.inf},
     {"opacity_weight": -1.0}, {"scale_weight": -1.0}, {"start": -5}],
)  # fmt: skip
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=rf"^densify: {name} is {value}; it must be"):
        MCMC(**bad)
