"""The reference SSIM against SciPy, a closed form of its gradient, and identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from panbench.ops import reference

C1, C2 = 0.01**2, 0.03**2


def window() -> np.ndarray:
    steps = np.arange(-5, 6)
    plane = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 1.5**2))
    return plane / plane.sum()


def smooth(plane: np.ndarray) -> np.ndarray:
    return correlate(plane, window(), mode="constant", cval=0.0)


def images(height: int = 23, width: int = 17, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(height, width, channels, generator=generator, dtype=torch.float64)
    y = (x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return x, y


def statistics(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """mean of x, mean of y, and the terms A1, A2, B1, B2 of S = A1 A2 / (B1 B2), of one channel."""
    mx, my = smooth(x), smooth(y)
    a2 = 2 * (smooth(x * y) - mx * my) + C2
    b2 = smooth(x * x) - mx**2 + smooth(y * y) - my**2 + C2
    return mx, my, 2 * mx * my + C1, a2, mx**2 + my**2 + C1, b2


@pytest.mark.parametrize("size", [(23, 17, 3), (1, 1, 1), (4, 30, 2), (11, 11, 1)])
def test_value_is_that_of_a_plain_two_dimensional_filter(size: tuple[int, int, int]) -> None:
    x, y = images(*size)
    maps = []
    for c in range(size[2]):
        _, _, a1, a2, b1, b2 = statistics(x[..., c].numpy(), y[..., c].numpy())
        maps.append(a1 * a2 / (b1 * b2))
    assert reference.ssim(x, y).item() == pytest.approx(np.mean(maps), abs=1e-12)


def test_gradient_is_the_closed_form() -> None:
    x, y = images()
    (found,) = torch.autograd.grad(reference.ssim(x.requires_grad_(), y), x)
    for c in range(3):
        a, b = x[..., c].detach().numpy(), y[..., c].numpy()
        mx, my, a1, a2, b1, b2 = statistics(a, b)
        s = a1 * a2 / (b1 * b2)
        by_mean = 2 * my * (a2 - a1) / (b1 * b2) - 2 * mx * s * (1 / b1 - 1 / b2)
        gradient = smooth(by_mean) + 2 * a * smooth(-s / b2) + b * smooth(2 * a1 / (b1 * b2))
        assert np.allclose(found[..., c].numpy(), gradient / x.numel(), rtol=1e-9, atol=1e-15)


def test_gradients_are_those_of_finite_differences() -> None:
    x, y = images(7, 5, 2)
    assert torch.autograd.gradcheck(lambda a: reference.ssim(a, y), (x.requires_grad_(),))


def test_an_image_is_most_similar_to_itself() -> None:
    x, y = images()
    assert reference.ssim(x, x).item() == pytest.approx(1.0, abs=1e-12)
    assert reference.ssim(x, y).item() == pytest.approx(reference.ssim(y, x).item(), abs=1e-12)
    assert reference.ssim(x, y).item() < 0.95


def test_no_gradient_goes_to_the_second_image() -> None:
    x, y = images()
    reference.ssim(x.requires_grad_(), y.requires_grad_()).backward()
    assert x.grad is not None
    assert y.grad is None
