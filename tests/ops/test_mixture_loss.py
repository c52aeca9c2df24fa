"""The term that holds discs to planes: its formula, its gradient, and where discs come to lie under it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panbench import ops
from panbench.gaussians.rotation import rotation_matrices
from panbench.ops.backend import Backend

CORNER, NORMAL_SHARE = 0.05, 0.1
BACKENDS: list[tuple[Backend, torch.dtype]] = [("reference", torch.float64), ("cpu", torch.float32)]
FLOOR = torch.tensor([0.0, 0.0, 1.0, 0.0])
WALL = torch.tensor([1.0, 0.0, 0.0, 0.0])


def discs(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Discs of any turn within a few centimetres of the origin, with log-radii of 1 to 5 cm."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.06 * torch.randn(count, 3, generator=generator, dtype=dtype)
    quats = torch.randn(count, 4, generator=generator, dtype=dtype)
    scales = torch.empty(count, 2, dtype=dtype).uniform_(math.log(0.01), math.log(0.05), generator=generator)
    return means, quats, scales


def some_planes(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normals = functional.normalize(torch.randn(count, 4, 3, generator=generator, dtype=torch.float64), dim=-1)
    offsets = 0.05 * torch.randn(count, 4, 1, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return torch.cat([normals, offsets], -1), weights / weights.sum(1, keepdim=True)


def mixture_loss(
    means: Tensor, quats: Tensor, scales: Tensor, planes: Tensor, weights: Tensor, *, backend: Backend | None = None
) -> Tensor:
    """The term of all discs against planes n · x = d of their own, n and d [M, 4, 4]."""
    count = len(means)
    normals, offsets = planes.reshape(-1, 4).split([3, 1], dim=1)
    components = torch.arange(4 * count).reshape(count, 4)
    ids = torch.arange(count)
    return ops.mixture_loss(means, quats, scales, ids, components, weights, normals * offsets, normals, backend=backend)


def literal(means: Tensor, quats: Tensor, scales: Tensor, planes: Tensor, weights: Tensor) -> float:
    """The formula of the docstring, a disc, a point and a plane at a time."""

    def huber(e: float) -> float:
        return e * e / (2 * CORNER) if abs(e) <= CORNER else abs(e) - CORNER / 2

    total = 0.0
    for i in range(len(means)):
        turn = rotation_matrices(quats[i])
        reach = [turn[:, a] * scales[i, a].exp() for a in (0, 1)]
        points = [means[i] + sign * axis for axis in reach for sign in (1, -1)]
        for k in range(planes.shape[1]):
            normal, offset, weight = planes[i, k, :3], planes[i, k, 3], float(weights[i, k])
            total += weight * huber(float(normal @ means[i] - offset))
            total += weight / 4 * sum(huber(float(normal @ x - offset)) for x in points)
            total += weight * NORMAL_SHARE * (1 - abs(float(turn[:, 2] @ normal)))
    return total / len(means)


def test_it_is_the_formula() -> None:
    given, (planes, weights) = discs(20), some_planes(20)
    assert float(mixture_loss(*given, planes, weights)) == pytest.approx(literal(*given, planes, weights), rel=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    # Some points within the corner of Huber's function and some beyond it.
    given, (planes, weights) = discs(6), some_planes(6)
    height = ((planes[..., :3] * given[0][:, None]).sum(-1) - planes[..., 3]).abs()
    assert (height < CORNER).any()
    assert (height > CORNER).any()
    assert torch.autograd.gradcheck(
        lambda *values: mixture_loss(*values, planes, weights), tuple(v.requires_grad_() for v in given)
    )


def test_neither_planes_nor_weights_get_a_gradient() -> None:
    given, (planes, weights) = discs(3), some_planes(3)
    planes.requires_grad_()
    weights.requires_grad_()
    mixture_loss(given[0].requires_grad_(), *given[1:], planes, weights).backward()
    assert planes.grad is None
    assert weights.grad is None


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_a_disc_in_the_plane_costs_nothing(backend: Backend, dtype: torch.dtype) -> None:
    means = torch.tensor([[0.3, -0.2, 0.0]])
    flat = torch.tensor([[math.cos(0.4), 0.0, 0.0, math.sin(0.4)]])  # turned about the plane's normal
    given = (means, flat, torch.full((1, 2), math.log(0.1)), FLOOR.expand(1, 4, 4), torch.full((1, 4), 0.25))
    loss = mixture_loss(*(value.to(dtype) for value in given), backend=backend)
    assert float(loss) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_a_disc_without_a_component_adds_nothing_and_is_not_pulled(backend: Backend, dtype: torch.dtype) -> None:
    means, quats, scales = (value.to(dtype) for value in discs(5))
    planes, weights = (value.to(dtype) for value in some_planes(5))
    alone = mixture_loss(means[:4], quats[:4], scales[:4], planes[:4], weights[:4], backend=backend)
    weights[4] = 0
    for value in (means, quats, scales):
        value.requires_grad_()
    loss = mixture_loss(means, quats, scales, planes, weights, backend=backend)
    assert float(loss.detach()) == pytest.approx(float(alone) * 4 / 5)
    loss.backward()
    for value in (means, quats, scales):
        assert value.grad is not None
        assert not value.grad[4].any()
        assert value.grad[:4].any(dim=1).all()


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_no_disc_gives_zero(backend: Backend, dtype: torch.dtype) -> None:
    none, *given = (torch.zeros(0, *shape, dtype=dtype) for shape in ((3,), (4,), (2,), (4, 4), (4,)))
    loss = mixture_loss(none.requires_grad_(), *given, backend=backend)
    loss.backward()
    assert float(loss.detach()) == 0


def settled(means: Tensor, quats: Tensor, planes: Tensor, steps: int = 600) -> tuple[Tensor, Tensor]:
    """Centres and normals after descent on the term alone."""
    means, quats = means.clone().requires_grad_(), quats.clone().requires_grad_()
    scales = torch.full((len(means), 2), math.log(0.03))
    weights = torch.full(planes.shape[:2], 1 / planes.shape[1])
    optimizer = torch.optim.Adam([{"params": [means], "lr": 1e-3}, {"params": [quats], "lr": 1e-2}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        mixture_loss(means, quats, scales, planes, weights).backward()
        optimizer.step()
        schedule.step()
    return means.detach(), rotation_matrices(quats.detach())[..., 2]


def tilted(normal: Tensor, degrees: float, count: int) -> Tensor:
    """Quaternions of discs whose normals are that far from ``normal``, about axes of any direction in the plane."""
    generator = torch.Generator().manual_seed(2)
    axis = torch.randn(count, 3, generator=generator)
    axis = functional.normalize(axis - (axis @ normal)[:, None] * normal, dim=1)
    half = math.radians(degrees) / 2
    lean = torch.cat([torch.full((count, 1), math.cos(half)), math.sin(half) * axis], 1)
    # From the z axis to the normal first: for the floor no turn, for the wall a quarter about y.
    if normal[2] == 1:
        return lean
    w, x, y, z = lean.unbind(1)
    c = math.sqrt(0.5)
    return torch.stack([w * c - y * c, x * c - z * c, w * c + y * c, x * c + z * c], 1)


def test_a_disc_off_the_plane_and_tilted_is_pulled_onto_it_and_ends_flat() -> None:
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(8, 3, generator=generator) * 0.08
    quats = tilted(FLOOR[:3], 40, 8)
    torch.testing.assert_close(
        rotation_matrices(quats)[..., 2] @ FLOOR[:3], torch.full((8,), math.cos(math.radians(40)))
    )
    at, normals = settled(means, quats, FLOOR.expand(8, 4, 4))
    assert at[:, 2].abs().max() < 2e-3
    assert (normals @ FLOOR[:3]).min() > math.cos(math.radians(3))
    torch.testing.assert_close(at[:, :2], means[:, :2])  # nothing moves it along the plane


def test_in_a_corner_each_disc_goes_to_its_own_wall() -> None:
    means = torch.tensor([[0.3, 0.0, 0.04], [0.04, 0.0, 0.3]]).repeat_interleave(4, 0)
    quats = torch.cat([tilted(FLOOR[:3], 25, 4), tilted(WALL[:3], 25, 4)])
    planes = torch.stack([FLOOR, WALL]).repeat_interleave(4, 0)[:, None].expand(8, 4, 4)
    at, normals = settled(means, quats, planes)
    assert at[:4, 2].abs().max() < 2e-3
    assert at[4:, 0].abs().max() < 2e-3
    assert (normals[:4] @ FLOOR[:3]).abs().min() > math.cos(math.radians(3))
    assert (normals[4:] @ WALL[:3]).abs().min() > math.cos(math.radians(3))
    torch.testing.assert_close(at[:4, 0], means[:4, 0])
    torch.testing.assert_close(at[4:, 2], means[4:, 2])


def test_around_a_sphere_discs_end_tangent_to_it() -> None:
    generator = torch.Generator().manual_seed(4)
    outward = functional.normalize(torch.randn(12, 3, generator=generator), dim=1)
    # The tangent planes of four points of the unit sphere, 3 cm around the disc's own.
    near = functional.normalize(outward[:, None] + 0.03 * torch.randn(12, 4, 3, generator=generator), dim=-1)
    planes = torch.cat([near, torch.ones(12, 4, 1)], -1)
    quats = torch.cat([1 + outward[:, 2:], -outward[:, 1:2], outward[:, :1], torch.zeros(12, 1)], 1)
    quats = functional.normalize(quats, dim=1) + 0.15 * torch.randn(12, 4, generator=generator)
    at, normals = settled(outward * 1.05, quats, planes)
    assert (at.norm(dim=1) - 1).abs().max() < 5e-3
    assert (normals * outward).sum(1).abs().min() > math.cos(math.radians(5))
