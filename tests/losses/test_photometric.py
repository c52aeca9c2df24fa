"""Eq. 13 against closed forms."""

from __future__ import annotations

import pytest
import torch

from panbench.losses.photometric import psnr
from panbench.ops import photometric_loss, ssim


def photo(seed: int = 0) -> torch.Tensor:
    return torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_photo_itself_costs_nothing(weight: float) -> None:
    assert photometric_loss(photo(), photo(), weight).abs() < 1e-5


def test_without_ssim_it_is_the_mean_absolute_difference() -> None:
    image = photo() + 0.1
    torch.testing.assert_close(photometric_loss(image, photo(), 0.0), torch.tensor(0.1))


def test_the_weight_mixes_l1_and_ssim() -> None:
    image = photo(1)
    l1 = (image - photo()).abs().mean()
    dissimilar = 1 - ssim(image, photo())
    assert dissimilar > 0.5
    torch.testing.assert_close(photometric_loss(image, photo(), 0.3), 0.7 * l1 + 0.3 * dissimilar)
    torch.testing.assert_close(photometric_loss(image, photo(), 1.0), dissimilar)


def test_its_gradient_leads_to_the_photo() -> None:
    image = torch.full((24, 32, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.05)
    costs: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = photometric_loss(image, photo(), 0.2)
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs[-1] < 0.1 * costs[0]


@pytest.mark.parametrize(("error", "expected"), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_constant_error_is_minus_twenty_log_ten_of_it(error: float, expected: float) -> None:
    image = torch.zeros(8, 8, 3)
    torch.testing.assert_close(psnr(image + error, image), torch.tensor(expected), atol=1e-4, rtol=0)


def test_psnr_looks_at_the_displayable_range_and_stays_finite() -> None:
    image = torch.ones(8, 8, 3)
    assert psnr(image * 1.7, image) == psnr(image, image)
    assert psnr(image, image).isfinite()
