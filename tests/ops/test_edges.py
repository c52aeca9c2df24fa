"""The C++ back end at the edges of what it takes: channel counts around every register width, images that cut their
tiles, equal depths, a million Gaussians. Against the reference, or a plain evaluation of some pixels, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from views import (
    KINDS,
    NEAR,
    Case,
    agreeing_pixels,
    assert_close,
    behind,
    doubles,
    masked_upstream,
    random_case,
    singles,
)

from panbench import ops
from panbench.ops.backend import Backend, load_cpu
from panbench.ops.project import Kind

CHANNELS = [1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 512, 513]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


def geometry_of(case: Case, kind: Kind) -> Tensor:
    """What the case's camera sees [M, G], float32."""
    means, quats, log_scales, logits = (p.double() for p in case.parameters)
    found = ops.project(means, quats, log_scales, logits, case.camera, kind=kind, near=NEAR, backend="reference")
    return found.geometry.float()


def features_of(geometry: Tensor, channels: int) -> Tensor:
    return torch.rand(len(geometry), channels, generator=torch.Generator().manual_seed(31))


def maps(geometry: Tensor, features: Tensor, size: tuple[int, int], kind: Kind, backend: Backend) -> list[Tensor]:
    """Image, alpha, depth and median."""
    bins = ops.bin(geometry, *size, kind=kind, backend=backend)
    out = ops.blend(geometry, features, bins, *size, kind=kind, near=NEAR, backend=backend)
    return [out.image, out.alpha, out.depth, out.median]


def check(geometry: Tensor, channels: int, size: tuple[int, int], kind: Kind) -> None:
    """Values and gradients of all maps agree."""
    inputs = [geometry, features_of(geometry, channels)]
    exact, single = doubles(inputs), singles(inputs)
    expected, found = maps(exact[0], exact[1], size, kind, "reference"), maps(single[0], single[1], size, kind, "cpu")
    upstream = masked_upstream(found, agreeing_pixels(found, expected))
    mine = torch.autograd.grad(found, single, upstream)
    reference = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    assert_close(mine[0], reference[0], 2e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], reference[1], 2e-5, "gradient of features")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channel_counts_around_register_widths_agree(channels: int, kind: Kind) -> None:
    check(geometry_of(random_case(70, 21, 18, seed=41, size=-2.5), kind), channels, (21, 18), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("size", [(1, 1), (17, 3), (33, 47), (15, 17), (16, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_images_that_cut_their_tiles_agree(size: tuple[int, int], channels: int, kind: Kind) -> None:
    # With some seeds a disc is so nearly edge-on that float32 has no digits of its depth.
    check(geometry_of(random_case(150, *size, seed=47, size=-2.0), kind), channels, size, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_beyond_the_border_take_no_part(kind: Kind) -> None:
    """The same geometry on whole tiles, cropped, is the same picture and the same way back."""
    geometry = geometry_of(random_case(200, 64, 48, seed=43, size=-2.5), kind)
    features = features_of(geometry, 7)
    results: list[list[Tensor]] = []
    for size in ((64, 48), (33, 47)):
        single = singles([geometry, features])
        found = [m[:47, :33] for m in maps(single[0], single[1], size, kind, "cpu")]
        upstream = masked_upstream(found, torch.ones(47, 33))
        results.append([*found, *torch.autograd.grad(found, single, upstream)])
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5 * float(whole.detach().abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_depths_are_drawn_in_the_order_of_rows(kind: Kind) -> None:
    case = random_case(120, 40, 30, seed=44, size=-2.0)
    camera = case.camera
    local = case.means @ camera.rotation.T + camera.translation
    local = local / local[:, 2:] * 2.0
    geometry = geometry_of(replace(case, means=(local - camera.translation) @ camera.rotation), kind)
    geometry[:, -1] = 2.0  # rounding leaves some of them a digit apart
    check(geometry, 4, (40, 30), kind)
    features = features_of(geometry, 4)
    forward, reversed_ = (
        maps(g.contiguous(), f.contiguous(), (40, 30), kind, "cpu")[0]
        for g, f in ((geometry, features), (geometry.flip(0), features.flip(0)))
    )
    assert (forward - reversed_).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 513])
def test_an_empty_view_is_empty_at_any_number_of_channels(channels: int, kind: Kind) -> None:
    parameters = singles(behind().parameters)
    means, quats, log_scales, logits = parameters
    seen = ops.project(means, quats, log_scales, logits, behind().camera, kind=kind, near=NEAR, backend="cpu")
    assert len(seen.ids) == 0
    features = torch.zeros(0, channels, requires_grad=True)
    found = maps(seen.geometry, features, (33, 47), kind, "cpu")
    assert all((m == 0).all() for m in found)
    grads = torch.autograd.grad([m.sum() for m in found], [features, *parameters])
    assert grads[0].shape == (0, channels)
    assert all((g == 0).all() for g in grads)


# ------------------------------------------------------------------------------------------------ a million Gaussians


def pixels_by_hand(geometry: Tensor, features: Tensor, pixels: Tensor) -> Tensor:
    """Image values [P, C] of ellipsoids [M, 7] at pixels [P, 2], from the definition: all pairs, sorted by depth."""
    order = geometry[:, 6].detach().argsort(stable=True)
    x, y, a, b, c, opacity, _ = geometry[order].unbind(-1)
    values: list[Tensor] = []
    for column, line in pixels.tolist():
        dx, dy = x - (column + 0.5), y - (line + 0.5)
        alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy))).clamp(max=0.99)
        near = (alpha >= 1 / 255).nonzero()[:, 0]
        alpha = alpha[near]
        left = (1 - alpha).cumprod(0)
        before = torch.cat([left.new_ones(1), left[:-1]])
        weight = torch.where(left > 1e-4, alpha * before, 0)
        values.append(weight @ features[order[near]])
    return torch.stack(values)


def test_a_million_gaussians_agree() -> None:
    count, size = 1_000_000, (48, 40)
    case = random_case(count, *size, seed=45, size=-4.5, opacity=-1.0)
    means, quats, log_scales, logits = parameters = singles(case.parameters)
    seen = ops.project(means, quats, log_scales, logits, case.camera, kind="ellipsoid", near=NEAR, backend="cpu")
    with torch.no_grad():
        exact = ops.project(
            *(p.double() for p in parameters), case.camera, kind="ellipsoid", near=NEAR, backend="reference"
        )
    # A few lie at the border of the image or of alpha 1/255, where float32 may decide otherwise.
    both = torch.cat([seen.ids, exact.ids]).unique(return_counts=True)
    assert (both[1] == 1).sum() <= 1e-5 * count
    assert len(seen.ids) > 400_000

    geometry, features = singles([seen.geometry, features_of(seen.geometry, 4)])
    image = maps(geometry, features, size, "ellipsoid", "cpu")[0]
    pixels = torch.stack([torch.arange(0, 48, 4), torch.arange(1, 37, 3)], dim=-1)
    values = doubles([geometry, features])
    expected = pixels_by_hand(values[0], values[1], pixels)
    found = image[pixels[:, 1], pixels[:, 0]]
    assert_close(found, expected.detach(), 2e-5, "pixels")

    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(46))
    mine = torch.autograd.grad(found, [geometry, features], upstream)
    reference = torch.autograd.grad(expected, values, upstream.double())
    # Nothing but the image has a gradient, so the depth has none.
    assert_close(mine[0][:, :6], reference[0][:, :6], 2e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], reference[1], 2e-5, "gradient of features")
    grads = torch.autograd.grad(seen.geometry, parameters, mine[0])
    assert all(g.isfinite().all() for g in grads)
    assert grads[0].any()
