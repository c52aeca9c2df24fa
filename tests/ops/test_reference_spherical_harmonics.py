"""The reference spherical harmonics against golden values, orthonormality and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.reference.spherical_harmonics import basis

GOLDEN = [
    *(0.282094792, -0.325735008, -0.325735008, -0.162867504, 0.24278854, 0.48557708, 0.105130522, 0.24278854),
    *(-0.182091405, 0.043706933, -0.428238732, -0.372407688, 0.193498839, -0.186203844, 0.321179049, 0.240388129),
]


def random_inputs(count: int = 10, seed: int = 0) -> list[Tensor]:
    """dc, rest, means and camera position; about a quarter of the colours are clamped at zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [3 * normal(count, 3), 0.5 * normal(count, 15, 3), normal(count, 3), 3 + normal(3)]


def test_basis_has_the_golden_values() -> None:
    direction = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64) / 3
    assert basis(direction, 3).tolist() == pytest.approx(GOLDEN, abs=1e-9)
    for degree in range(3):
        assert basis(direction, degree).tolist() == pytest.approx(GOLDEN[: (degree + 1) ** 2], abs=1e-9)


def test_basis_is_orthonormal_on_the_sphere() -> None:
    z, weights = np.polynomial.legendre.leggauss(8)
    angles = 2 * math.pi * np.arange(16) / 16  # both rules are exact for products of degree 6
    radius = np.sqrt(1 - z**2)
    points = np.stack(
        [radius[:, None] * np.cos(angles), radius[:, None] * np.sin(angles), np.repeat(z[:, None], 16, axis=1)], axis=-1
    )
    values = basis(torch.from_numpy(points), 3).numpy()
    gram = np.einsum("i,ijk,ijl->kl", weights * 2 * math.pi / 16, values, values)
    assert np.allclose(gram, np.eye(16), atol=1e-12)


@pytest.mark.parametrize("degree", range(4))
def test_colour_is_the_clamped_sum_in_the_direction_of_view(degree: int) -> None:
    dc, rest, means, position = random_inputs()
    ids = torch.tensor([7, 2, 5])
    found = reference.spherical_harmonics(dc, rest, means, position, ids, degree)
    for row, i in zip(found, ids.tolist(), strict=True):
        offset = means[i] - position
        values = basis(offset / offset.norm(), degree)
        expected = 0.5 + values[0] * dc[i] + values[1:] @ rest[i, : len(values) - 1]
        assert torch.allclose(row, expected.clamp_min(0))


def test_degree_zero_does_not_depend_on_the_view() -> None:
    dc, rest, means, position = random_inputs()
    ids = torch.arange(10)
    found = reference.spherical_harmonics(dc, rest[:, :0], means, position, ids, 0)
    assert torch.allclose(found, (0.5 + 0.28209479177387814 * dc).clamp_min(0))


@pytest.mark.parametrize("degree", range(4))
def test_gradients_are_those_of_finite_differences(degree: int) -> None:
    dc, rest, means, position = (p.requires_grad_() for p in random_inputs(count=4))
    ids = torch.tensor([0, 1, 3])
    colors = reference.spherical_harmonics(dc, rest, means, position, ids, degree)
    assert (colors == 0).any()
    assert torch.autograd.gradcheck(
        lambda *p: reference.spherical_harmonics(*p, ids, degree), (dc, rest, means, position)
    )


def test_unused_bands_and_invisible_rows_receive_no_gradient() -> None:
    dc, rest, means, position = (p.requires_grad_() for p in random_inputs())
    ids = torch.tensor([1, 4])
    reference.spherical_harmonics(dc, rest, means, position, ids, 1).sum().backward()
    assert rest.grad is not None
    assert dc.grad is not None
    assert (rest.grad[:, 3:] == 0).all()
    hidden = torch.ones(10, dtype=torch.bool)
    hidden[ids] = False
    assert (dc.grad[hidden] == 0).all()
    assert (rest.grad[ids, :3] != 0).any()


@pytest.mark.parametrize("degree", [-1, 4, 3])
def test_degree_without_coefficients_is_refused(degree: int) -> None:
    dc, rest, means, position = random_inputs()
    with pytest.raises(ValueError, match="spherical harmonics of degree"):
        reference.spherical_harmonics(dc, rest[:, :8], means, position, torch.arange(2), degree)
