"""What blending gives only where it is asked for: distortion, absolute gradients, labels of which some are detached."""

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
    doubles,
    masked_upstream,
    opaque,
    random_case,
    random_like,
    singles,
)

from panbench import ops
from panbench.ops.backend import Backend, load_cpu
from panbench.ops.project import Kind

BACKENDS: list[Backend] = ["reference", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


def geometry_of(case: Case, kind: Kind) -> Tensor:
    means, quats, log_scales, logits = (p.double() for p in case.parameters)
    return ops.project(
        means, quats, log_scales, logits, case.camera, kind=kind, near=NEAR, backend="reference"
    ).geometry.float()


def walls(alphas: list[float], depths: list[float]) -> Tensor:
    """Ellipsoids so wide that each has the same alpha at every pixel."""
    return torch.tensor([[0.5, 0.5, 1e-14, 0.0, 1e-14, a, z] for a, z in zip(alphas, depths, strict=True)])


def blend(geometry: Tensor, size: tuple[int, int], backend: Backend, **asked: object) -> ops.Blended:
    features = torch.ones(len(geometry), 1).to(geometry)
    asked = {"kind": "ellipsoid", "near": NEAR, **asked}
    bins = ops.bin(geometry, *size, kind=asked["kind"], backend=backend)
    return ops.blend(geometry, features, bins, *size, backend=backend, **asked)


# ------------------------------------------------------------------------------------------------------- distortion


@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_of_three_walls(backend: Backend) -> None:
    """Weights 0.3, 0.42 and 0.14 at 2, 4 and 5 m: .3 .42 (1/4)² + .3 .14 (3/10)² + .42 .14 (1/20)²."""
    out = blend(walls([0.3, 0.6, 0.5], [2.0, 4.0, 5.0]), (3, 2), backend, distort=True)
    assert out.distortion is not None
    assert torch.allclose(out.distortion, torch.tensor(0.126 / 16 + 0.042 * 0.09 + 0.0588 / 400), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_is_that_of_2dgs_but_for_a_factor(backend: Backend) -> None:
    near, far = 0.2, 100.0
    alphas, depths = [0.3, 0.6, 0.5], [2.0, 2.1, 2.6]
    mapped = [(far * d - far * near) / ((far - near) * d) for d in depths]
    weights = [0.3, 0.42, 0.14]
    expected = sum(weights[i] * weights[j] * (mapped[i] - mapped[j]) ** 2 for i in range(3) for j in range(i))
    out = blend(walls(alphas, depths), (1, 1), backend, distort=True)
    assert out.distortion is not None
    assert out.distortion.item() * (far * near / (far - near)) ** 2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_of_a_thin_layer_far_away_keeps_its_digits(backend: Backend) -> None:
    """Millimetres at 9 m: the squares of the inverse depths differ in the eighth digit."""
    depths = [9.0, 9.001, 9.003]
    exact, single = (walls([0.3, 0.6, 0.5], depths).to(t).requires_grad_() for t in (torch.float64, torch.float32))
    expected = blend(exact, (1, 1), "reference", distort=True).distortion
    found = blend(single, (1, 1), backend, distort=True).distortion
    assert expected is not None
    assert found is not None
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    mine, wanted = torch.autograd.grad(found.sum(), single)[0], torch.autograd.grad(expected.sum(), exact)[0]
    for column in (5, 6):
        assert torch.allclose(mine[:, column].double(), wanted[:, column], rtol=2e-3, atol=0), column


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_being_asked_for_there_is_no_distortion(kind: Kind, backend: Backend) -> None:
    geometry = geometry_of(random_case(50), kind)
    plain, asked = (blend(geometry, (70, 50), backend, kind=kind, distort=d) for d in (False, True))
    assert plain.distortion is None
    for a, b in zip(plain[:5], asked[:5], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_with_one_hit_has_no_distortion(backend: Backend) -> None:
    geometry = walls([0.7], [1.3]).requires_grad_()
    out = blend(geometry, (17, 3), backend, distort=True)
    assert out.distortion is not None
    assert (out.distortion == 0).all()
    assert (torch.autograd.grad(out.distortion.sum(), geometry)[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [False, True])
def test_distortion_with_labels_targets_and_median_agrees(kind: Kind, dense: bool) -> None:
    """All at once, some of the labels detached, as a training step asks for it."""
    case = opaque() if dense else random_case(250, 61, 37, seed=31, size=-2.5)
    geometry = geometry_of(case, kind)
    generator = torch.Generator().manual_seed(32)
    features, labels = (torch.rand(len(geometry), n, generator=generator) for n in (6, 19))
    size = (case.width, case.height)
    semantic, mask = (torch.randint(low, 5, size[::-1], generator=generator).int() for low in (0, -1))
    weight = torch.rand(size[::-1], generator=generator)
    bins = ops.bin(geometry, *size, kind=kind, backend="cpu")

    def view(inputs: list[Tensor], backend: Backend, targets: ops.LabelTargets | None) -> list[Tensor]:
        g, f, x = inputs
        asked = {"labels": x, "detached": 12, "targets": targets, "distort": True}
        out = ops.blend(g, f, bins, *size, kind=kind, near=NEAR, backend=backend, **asked)
        assert out.distortion is not None
        return [*out[:5], out.distortion, *(out.sums or ())]

    inputs = [geometry, features, labels]
    exact, single = doubles(inputs), singles(inputs)
    agree = agreeing_pixels(view(single, "cpu", None), view(exact, "reference", None))
    targets = ops.LabelTargets(semantic * agree, mask, weight, 5, 4, 7, epsilon=1e-2)
    expected = view(exact, "reference", targets._replace(weight=weight.double()))
    found = view(single, "cpu", targets)
    for mine, wanted in zip(found[6:], expected[6:], strict=True):
        assert_close(mine, wanted.detach(), 2e-5, "sum")
    upstream = [*masked_upstream(found[:6], agree), *(random_like(t, 9) for t in found[6:])]
    mine = torch.autograd.grad(found, single, upstream)
    reference = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    assert_close(mine[0], reference[0], 5e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], reference[1], 2e-5, "gradient of features")
    assert_close(mine[2], reference[2], 5e-5, "gradient of labels")


# ------------------------------------------------------------------------------------------------ detached labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_labels_alone_leave_geometry_alone(kind: Kind, backend: Backend) -> None:
    """Each channel's gradient of geometry, image and sums, is whole or nothing."""
    geometry = geometry_of(random_case(120, 33, 21, seed=33, size=-2.5), kind)
    labels = torch.rand(len(geometry), 6, generator=torch.Generator().manual_seed(2))
    semantic, mask = torch.randint(0, 3, (21, 33)).int(), torch.randint(-1, 3, (21, 33)).int()
    targets = ops.LabelTargets(semantic, mask, torch.rand(21, 33), 3, 2, 3)

    def gradients(detached: bool | int) -> list[Tensor]:
        leaf = geometry.clone().requires_grad_()
        asked = {"kind": kind, "labels": labels, "targets": targets, "detached": detached}
        out = blend(leaf, (33, 21), backend, **asked)
        assert out.sums is not None
        entropy, presence, overlap = out.sums
        parts = [*(out.labels[..., c].square().sum() for c in range(6)), entropy, presence.sum(), overlap.sum()]
        zero = torch.zeros_like(leaf)
        return [
            torch.autograd.grad(p, leaf, retain_graph=True, allow_unused=True)[0] if p.requires_grad else zero
            for p in parts
        ]

    whole = gradients(False)
    for detached, still in ((True, range(9)), (6, range(9)), (0, ()), (3, (3, 4, 5, 7, 8)), (1, (5,))):
        for c, (mine, other) in enumerate(zip(gradients(detached), whole, strict=True)):
            if c in still:
                assert mine is None or (mine == 0).all(), (detached, c)
            elif detached != 1 or c < 7:  # with one query detached its part of the sums is missing
                assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max())), (detached, c)


@pytest.mark.parametrize("detached", [-1, 4])
def test_more_labels_than_there_are_cannot_be_detached(detached: int) -> None:
    geometry = walls([0.5], [1.0])
    with pytest.raises(ValueError, match=f"{detached} labels cannot be detached, there are 3"):
        blend(geometry, (2, 2), "cpu", labels=torch.ones(1, 3), detached=detached)


# ------------------------------------------------------------------------------------------- absolute gradients


def absolute_by_hand(geometry: Tensor, size: tuple[int, int], upstream: list[Tensor], features: Tensor) -> Tensor:
    """Σ |∂L/∂mean| [M, 2], one pixel after another."""
    width, height = size
    bins = ops.bin(geometry, width, height, kind="ellipsoid", backend="reference")
    total = torch.zeros(len(geometry), 2).double()
    leaf = geometry.clone().requires_grad_()
    options = {"kind": "ellipsoid", "near": NEAR, "backend": "reference", "distort": True}
    out = ops.blend(leaf, features, bins, width, height, **options)
    assert out.distortion is not None
    for y in range(height):
        for x in range(width):
            maps = (out.image, out.alpha, out.depth, out.distortion)
            loss = torch.stack([(m[y, x] * u[y, x]).sum() for m, u in zip(maps, upstream, strict=True)]).sum()
            total += torch.autograd.grad(loss, leaf, retain_graph=True)[0][:, :2].abs()
    return total


@pytest.mark.parametrize("opacity", [0.0, 6.0])
@pytest.mark.parametrize("distort", [False, True])
def test_absolute_gradients_are_summed_over_pixels(distort: bool, opacity: float) -> None:
    """Of both back ends; with clamped alphas too, and beside the gradient itself, which stays what it is."""
    case = random_case(60, 21, 18, seed=34, size=-2.0, opacity=opacity)
    geometry = geometry_of(case, "ellipsoid")
    features = torch.rand(len(geometry), 3, generator=torch.Generator().manual_seed(1))
    size = (case.width, case.height)
    shapes = ((18, 21, 3), *[(18, 21)] * 3)
    upstream = [torch.randn(s, generator=torch.Generator().manual_seed(k)).double() for k, s in enumerate(shapes)]
    upstream[3] *= distort
    expected = absolute_by_hand(geometry.double(), size, upstream, features.double())
    for backend in BACKENDS:
        results: list[list[Tensor]] = []
        for watched in (False, True):
            leaf = geometry.clone().requires_grad_()
            absolute = torch.full((len(geometry), 2), torch.nan, requires_grad=True) if watched else None
            bins = ops.bin(leaf, *size, kind="ellipsoid", backend=backend)
            asked = {"distort": distort, "absolute": absolute, "backend": backend}
            out = ops.blend(leaf, features, bins, *size, kind="ellipsoid", near=NEAR, **asked)
            maps = [out.image, out.alpha, out.depth, *([] if out.distortion is None else [out.distortion])]
            torch.autograd.backward(maps, [u.float() for u in upstream[: len(maps)]])
            assert leaf.grad is not None
            results.append([*maps, leaf.grad])
            if absolute is not None:
                assert absolute.grad is not None
                assert_close(absolute.grad, expected, 2e-4, backend, dim=0)
                assert (absolute.grad >= leaf.grad[:, :2].abs() * (1 - 1e-4) - 1e-5).all()
        for a, b in zip(*results, strict=True):
            assert_close(a.detach(), b.detach().double(), 1e-6, "what is not asked about")


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_that_pull_apart_cancel_in_the_gradient_only(backend: Backend) -> None:
    """A blob in the middle of four pixels, and a loss that is symmetric about it."""
    geometry = torch.tensor([[1.0, 1.0, 2.0, 0.0, 2.0, 0.8, 1.0]], requires_grad=True)
    absolute = torch.zeros(1, 2, requires_grad=True)
    out = blend(geometry, (2, 2), backend, absolute=absolute)
    out.image.sum().backward()
    assert geometry.grad is not None
    assert absolute.grad is not None
    assert geometry.grad[:, :2].abs().max() < 1e-6
    # Four pixels, each with |d(alpha)/d(mean_x)| = a |dx| alpha.
    alpha = 0.8 * torch.tensor(-0.5).exp()
    assert torch.allclose(absolute.grad, 4 * 2.0 * 0.5 * alpha.expand(1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_absolute_gradients_are_of_ellipsoids_only(backend: Backend) -> None:
    geometry = geometry_of(random_case(5), "disc")
    for kind, rows in (("disc", len(geometry)), ("ellipsoid", 1)):
        with pytest.raises(ValueError, match="absolute gradients"):
            blend(
                geometry if kind == "disc" else walls([0.5, 0.5], [1.0, 2.0]),
                (70, 50),
                backend,
                kind=kind,
                absolute=torch.zeros(rows, 2),
            )


# --------------------------------------------------------------------------------------------------- flat ellipsoids


@pytest.mark.parametrize("flat", [-20.0, -30.0, -1e10])
def test_flat_ellipsoids_are_surfels(flat: float) -> None:
    """Without extent along the normal: the picture and its gradients are those of float64, the normal is that axis."""
    case = random_case(200, 61, 37, seed=35, size=-2.0)
    case = replace(case, log_scales=torch.cat([case.log_scales[:, :2], torch.full((200, 1), flat)], dim=-1))
    size = (case.width, case.height)

    def view(inputs: list[Tensor], backend: Backend, rows: list[Tensor]) -> list[Tensor]:
        ids, geometry, normals = ops.project(*inputs, case.camera, kind="ellipsoid", near=NEAR, backend=backend)
        rows[:] = [ids, geometry, normals]
        bins = ops.bin(geometry, *size, kind="ellipsoid", backend=backend)
        asked = {"kind": "ellipsoid", "near": NEAR, "backend": backend, "distort": True}
        out = ops.blend(geometry, normals, bins, *size, **asked)
        assert out.distortion is not None
        return [*out[:1], *out[2:5], out.distortion]

    exact, single = doubles(case.parameters), singles(case.parameters)
    wide, narrow = [], []
    expected, found = view(exact, "reference", wide), view(single, "cpu", narrow)
    assert narrow[0].tolist() == wide[0].tolist()
    assert len(wide[0]) > 100
    assert_close(narrow[1], wide[1].detach(), 2e-5, "geometry", dim=0)
    agree = agreeing_pixels(found, expected)
    upstream = masked_upstream(found, agree)
    mine = torch.autograd.grad(found, single, upstream)
    reference = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    for name, a, b in zip(("means", "quats", "log_scales", "logits"), mine, reference, strict=True):
        assert_close(a, b, 1e-3, f"gradient of {name}")
    assert (mine[2][:, 2].abs() <= 1e-6 * mine[2].abs().max()).all()
