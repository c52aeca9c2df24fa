"""The C++ back end against the reference in float64: values and gradients.

Tolerances are relative to the largest entry of a quantity (of a column, for geometry). Where float32 and float64 fall
on different sides of a threshold (alpha 1/255, transmittance 1e-4 and 1/2, the near plane), a pixel may differ by a
whole contribution: such pixels must be very few, and are left out of the gradients that are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from views import (
    BAND,
    CASES,
    KINDS,
    NEAR,
    Case,
    agreeing_pixels,
    assert_close,
    doubles,
    masked_upstream,
    random_case,
    random_like,
    singles,
)

from panbench import ops
from panbench.gaussians.rotation import rotation_matrices
from panbench.ops.backend import load_cpu
from panbench.ops.project import KIND_CODE, Kind
from panbench.scene import Camera


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    load_cpu()


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def visible(case: Case, kind: Kind, parameters: list[Tensor], backend: ops.backend.Backend) -> ops.Projected:
    means, quats, log_scales, logits = parameters
    return ops.project(means, quats, log_scales, logits, case.camera, kind=kind, near=NEAR, backend=backend)


# ------------------------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("kind", KINDS)
def test_projections_agree(case: Case, kind: Kind) -> None:
    exact, single = doubles(case.parameters), singles(case.parameters)
    expected, found = visible(case, kind, exact, "reference"), visible(case, kind, single, "cpu")
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.geometry.dtype == torch.float32
    assert_close(found.geometry, expected.geometry, 2e-5, "geometry", dim=0)
    # Seen exactly from the side a normal may be turned either way.
    points = case.means[found.ids] @ case.camera.rotation.T + case.camera.translation
    undecided = (expected.normals.detach() * points).sum(-1, keepdim=True).abs() < 1e-6 * points.norm(
        dim=-1, keepdim=True
    )
    turned = (found.normals.detach().double() * expected.normals.detach()).sum(-1, keepdim=True) < 0
    sign = torch.where(undecided & turned, -1.0, 1.0)
    assert_close(sign * found.normals, expected.normals, 2e-6, "normals")
    if len(found.ids) == 0:
        return
    # The reference itself, in float32, loses up to 1e-5 (ellipsoids) and 3e-5 (discs) on these cases.
    # Several directions, because cancellation shows in some of them only.
    for seed in range(5):
        upstream = random_like(found.geometry, seed) / expected.geometry.detach().abs().amax(0).float()
        upstream_normals = random_like(found.normals, 100 + seed)
        for name, mine, reference in zip(
            ("means", "quats", "log_scales", "opacity_logits"),
            torch.autograd.grad(
                [found.geometry, found.normals], single, [upstream, sign * upstream_normals], retain_graph=True
            ),
            torch.autograd.grad(
                [expected.geometry, expected.normals],
                exact,
                [upstream.double(), upstream_normals.double()],
                retain_graph=True,
            ),
            strict=True,
        ):
            assert_close(mine, reference, 5e-5, f"gradient of {name}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["empty", "behind"])
def test_nothing_visible_is_an_empty_projection(kind: Kind, name: str) -> None:
    parameters = singles(CASES[name]().parameters)
    found = visible(CASES[name](), kind, parameters, "cpu")
    assert found.ids.dtype == torch.int64
    assert [t.shape for t in found] == [(0,), (0, 13 if kind == "disc" else 7), (0, 3)]
    for p, gradient in zip(parameters, torch.autograd.grad(found.geometry.sum(), parameters), strict=True):
        assert torch.equal(gradient, torch.zeros_like(p))


def test_discs_may_come_with_two_scales() -> None:
    case = random_case(50)
    two = replace(case, log_scales=case.log_scales[:, :2].contiguous())
    parameters = singles(two.parameters)
    found = visible(two, "disc", parameters, "cpu")
    assert torch.equal(found.geometry, visible(case, "disc", case.parameters, "cpu").geometry)
    found.geometry.sum().backward()
    assert parameters[2].grad is not None
    assert parameters[2].grad.shape == (50, 2)


def test_needles_agree() -> None:
    """Ellipsoids hundreds of pixels long and a pixel wide: the determinant must not lose its digits."""
    case = random_case(40, 320, 240, seed=13)
    scales = torch.tensor([0.5, 1e-4, 1e-4]).log().repeat(40, 1)
    case = replace(case, log_scales=scales)
    exact, single = doubles(case.parameters), singles(case.parameters)
    expected, found = visible(case, "ellipsoid", exact, "reference"), visible(case, "ellipsoid", single, "cpu")
    assert found.ids.tolist() == expected.ids.tolist()
    assert_close(found.geometry, expected.geometry, 2e-5, "geometry", dim=0)


# --------------------------------------------------------------------------------------------------------- blending


@dataclass(frozen=True)
class Scene:
    """Geometry and features of what a case shows, float32."""

    case: Case
    kind: Kind
    geometry: Tensor
    features: Tensor

    def blend(self, inputs: list[Tensor], backend: ops.backend.Backend, detached: int) -> dict[str, Tensor]:
        """The picture's maps; the last ``detached`` channels are blended as detached labels."""
        geometry, features = inputs
        size = (self.case.width, self.case.height)
        bins = ops.bin(geometry, *size, kind=self.kind, backend=backend)
        attached = features.shape[1] - detached
        out = ops.blend(
            geometry,
            features[:, :attached],
            bins,
            *size,
            kind=self.kind,
            near=NEAR,
            labels=features[:, attached:],
            detached=True,
            distort=True,
            backend=backend,
        )
        assert out.image.shape[-1] == attached
        assert out.sums is None
        assert out.distortion is not None
        return {**maps_of(out), "distortion": out.distortion}


def maps_of(out: ops.Blended) -> dict[str, Tensor]:
    """Maps by name, the labels joined to the image."""
    return {
        "image": torch.cat([out.image, out.labels], dim=-1),
        "alpha": out.alpha,
        "depth": out.depth,
        "median": out.median,
    }


def scene(case: Case, kind: Kind, channels: int) -> Scene:
    _, geometry, _ = visible(case, kind, [p.double() for p in case.parameters], "reference")
    generator = torch.Generator().manual_seed(21)
    return Scene(case, kind, geometry.float(), torch.rand(len(geometry), channels, generator=generator))


def check_blending(shown: Scene, detached: int) -> None:
    inputs = [shown.geometry, shown.features]
    exact, single = doubles(inputs), singles(inputs)
    expected = list(shown.blend(exact, "reference", detached).values())
    found = list(shown.blend(single, "cpu", detached).values())
    upstream = masked_upstream(found, agreeing_pixels(found, expected))
    mine = torch.autograd.grad(found, single, upstream)
    reference = torch.autograd.grad(expected, exact, [u.double() for u in upstream])
    assert_close(mine[0], reference[0], 2e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], reference[1], 2e-5, "gradient of features")


@pytest.mark.parametrize("kind", KINDS)
def test_blended_pictures_agree(case: Case, kind: Kind) -> None:
    check_blending(scene(case, kind, channels=5), detached=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "detached"), [(1, 0), (1, 1), (3, 0), (16, 0), (17, 4), (17, 17), (100, 0), (100, 97)]
)
def test_any_number_of_channels_agrees(kind: Kind, channels: int, detached: int) -> None:
    check_blending(scene(random_case(150, 41, 29, seed=14), kind, channels), detached)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["image", "alpha", "depth", "median", "distortion"])
def test_gradients_of_each_output_alone_agree(kind: Kind, output: str) -> None:
    shown = scene(random_case(200, 45, 33, seed=15, size=-2.5), kind, 3)
    inputs = [shown.geometry, shown.features]
    exact, single = doubles(inputs), singles(inputs)
    expected, found = shown.blend(exact, "reference", 0), shown.blend(single, "cpu", 0)
    agree = agreeing_pixels(list(found.values()), list(expected.values()))
    (upstream,) = masked_upstream([found[output]], agree)
    mine = torch.autograd.grad(found[output], single, upstream)
    reference = torch.autograd.grad(
        expected[output], exact, upstream.double(), allow_unused=True, materialize_grads=True
    )
    assert_close(mine[0], reference[0], 2e-4, "gradient of geometry", dim=0)
    assert_close(mine[1], reference[1], 2e-5, "gradient of features")


@pytest.mark.parametrize("kind", KINDS)
def test_extents_below_float32_are_harmless(kind: Kind) -> None:
    """What float64 still resolves may vanish here, but nothing becomes infinite."""
    case = random_case(60, seed=5)
    scales = case.log_scales.clone()
    scales[::2], scales[::3, 0] = -60.0, -100.0
    parameters = singles(replace(case, log_scales=scales).parameters)
    _, geometry, normals = visible(case, kind, parameters, "cpu")
    bins = ops.bin(geometry, case.width, case.height, kind=kind, backend="cpu")
    out = ops.blend(geometry, normals, bins, case.width, case.height, kind=kind, near=NEAR, backend="cpu")
    maps = list(maps_of(out).values())
    assert all(m.isfinite().all() for m in maps)
    gradients = torch.autograd.grad([m.sum() for m in maps], parameters)
    assert all(g.isfinite().all() for g in gradients)


def test_detached_channels_send_nothing_into_geometry() -> None:
    shown = scene(random_case(), "disc", 6)
    single = singles([shown.geometry, shown.features])
    image = shown.blend(single, "cpu", 4)["image"]
    geometry, features = torch.autograd.grad(image[..., 2:].square().sum(), single)
    assert (geometry == 0).all()
    assert (features[:, 2:] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_tile_lists_hold_every_contribution_front_to_back(case: Case, kind: Kind) -> None:
    """The reference draws the same picture from the C++ tile lists as from its own."""
    shown = scene(case, kind, 2)
    width, height = case.width, case.height
    bins = ops.bin(shown.geometry, width, height, kind=kind, backend="cpu")
    own = ops.bin(shown.geometry.double(), width, height, kind=kind, backend="reference")
    assert bins.tile_offsets.dtype == bins.tile_ids.dtype == torch.int32
    assert bins.tile_offsets.shape == own.tile_offsets.shape
    assert bins.tile_offsets[0] == 0
    assert bins.tile_offsets[-1] == len(bins.tile_ids)
    z = shown.geometry[:, -1].tolist()
    for begin, end in zip(bins.tile_offsets[:-1].tolist(), bins.tile_offsets[1:].tolist(), strict=True):
        keys = [(z[m], m) for m in bins.tile_ids[begin:end].tolist()]
        assert keys == sorted(set(keys))
    exact = shown.geometry.double(), shown.features.double()
    mine = maps_of(ops.blend(*exact, bins, width, height, kind=kind, near=NEAR, backend="reference"))
    reference = maps_of(ops.blend(*exact, own, width, height, kind=kind, near=NEAR, backend="reference"))
    for name in mine:
        assert torch.allclose(mine[name], reference[name], rtol=1e-12, atol=1e-14), name


def test_other_lists_of_tiles_draw_the_same_picture() -> None:
    """The C++ blending takes any superset of the contributing tiles: here the reference's boxes."""
    shown = scene(random_case(), "ellipsoid", 3)
    width, height = shown.case.width, shown.case.height
    loose = ops.bin(shown.geometry, width, height, kind="ellipsoid", backend="reference")
    tight = ops.bin(shown.geometry, width, height, kind="ellipsoid", backend="cpu")
    assert len(tight.tile_ids) <= len(loose.tile_ids)
    inputs = (shown.geometry, shown.features)
    found = maps_of(ops.blend(*inputs, ops.Bins(*loose), width, height, kind="ellipsoid", near=NEAR, backend="cpu"))
    expected = maps_of(ops.blend(*inputs, tight, width, height, kind="ellipsoid", near=NEAR, backend="cpu"))
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7), name


# ---------------------------------------------------------------------------------------- attention, SSIM, harmonics


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "dim"),
    [(300, 5, 3), (1, 1, 1), (0, 4, 8), (50, 16, 32), (37, 33, 32), (200, 120, 32), (20, 7, 17)],
)
def test_attention_agrees(rows: int, queries: int, dim: int, logarithm: bool) -> None:
    generator = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = [
        normal(rows, dim),
        normal(rows, 3),
        normal(queries, dim),
        normal(queries, 3),
        0.5 * normal(queries, 3),
        normal(queries, 4),
    ]
    exact, single = doubles(inputs), singles(inputs)
    expected = ops.attend(*exact, logarithm=logarithm, backend="reference")
    found = ops.attend(*single, logarithm=logarithm, backend="cpu")
    assert_close(found, expected, 3e-6, "attention")
    upstream = random_like(found, 1)
    for name, mine, reference in zip(
        ("features", "means", "queries", "query_means", "query_log_scales", "query_quats"),
        torch.autograd.grad(found, single, upstream),
        torch.autograd.grad(expected, exact, upstream.double()),
        strict=True,
    ):
        assert_close(mine, reference, 2e-5, f"gradient of {name}")


def test_attention_of_saturated_and_distant_pairs_agrees() -> None:
    inputs = [
        torch.tensor([[90.0], [-90.0], [0.0], [30.0]]),
        torch.tensor([[0.0, 0, 0], [0, 0, 0], [60.0, 0, 0], [0, 3.0, 0]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.zeros(2, 3),
        torch.zeros(2, 3),
        torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]),
    ]
    for logarithm in (False, True):
        exact, single = doubles(inputs), singles(inputs)
        expected = ops.attend(*exact, logarithm=logarithm, backend="reference")
        found = ops.attend(*single, logarithm=logarithm, backend="cpu")
        assert_close(found, expected, 1e-6, "attention")
        for mine, reference in zip(
            torch.autograd.grad(found.sum(), single), torch.autograd.grad(expected.sum(), exact), strict=True
        ):
            assert_close(mine, reference, 1e-6, "gradient")


@pytest.mark.parametrize("rest", [None, -1.5])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize(("rows", "queries", "dim"), [(300, 5, 3), (0, 4, 8), (3, 1, 1), (50, 16, 32), (37, 70, 20)])
def test_shares_of_queries_agree(rows: int, queries: int, dim: int, logarithm: bool, rest: float | None) -> None:
    generator = torch.Generator().manual_seed(rows)
    inputs = [torch.randn(rows, *shape, generator=generator) for shape in [(dim,), (3,)]]
    inputs += [torch.randn(queries, *shape, generator=generator) for shape in [(dim,), (3,), (3,), (4,)]]
    exact, single = doubles(inputs), singles(inputs)
    expected = ops.attend_shares(*exact, logarithm=logarithm, temperature=1.7, rest=rest, backend="reference")
    found = ops.attend_shares(*single, logarithm=logarithm, temperature=1.7, rest=rest, backend="cpu")
    assert_close(found, expected, 3e-6, "shares")
    upstream = random_like(found, 1)
    for name, mine, reference in zip(
        ("features", "means", "queries", "query_means", "query_log_scales", "query_quats"),
        torch.autograd.grad(found, single, upstream),
        torch.autograd.grad(expected, exact, upstream.double()),
        strict=True,
    ):
        assert_close(mine, reference, 3e-5, f"gradient of {name}")


def test_shares_of_hopeless_queries_are_exactly_zero() -> None:
    """Far away, log A is about −1e5: numbers too small to be normal would slow down whatever is done with them."""
    inputs = [torch.ones(9, 4), torch.zeros(9, 3), torch.ones(20, 4), torch.zeros(20, 3), torch.zeros(20, 3)]
    inputs[3][1:] = 300.0
    quats = torch.tensor([1.0, 0, 0, 0]).expand(20, 4)
    for rest, own in ((None, 1.0), (-1e4, 1.0), (1e4, 0.0)):
        shares = ops.attend_shares(*inputs, quats, logarithm=True, rest=rest, backend="cpu")
        assert torch.equal(shares, torch.tensor([own] + [0.0] * 19).expand(9, 20))


@pytest.mark.parametrize("count", [0, 1, 9000])
@pytest.mark.parametrize("width", [1, 3, 32])
def test_rows_are_taken_and_put_back(count: int, width: int) -> None:
    values = torch.randn(9000, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.randperm(9000, generator=torch.Generator().manual_seed(1))[:count].sort().values
    found = ops.take_rows(values, ids, backend="cpu")
    assert torch.equal(found, values[ids])
    upstream = random_like(found, 2)
    (mine,) = torch.autograd.grad(found, values, upstream)
    (reference,) = torch.autograd.grad(values[ids], values, upstream)
    assert torch.equal(mine, reference)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 3), (40, 1, 3), (7, 5, 1), (48, 64, 3), (33, 47, 2)])
def test_ssim_agrees(size: tuple[int, int, int]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    y = (x + 0.1 * random_like(x, 2)).clamp(0, 1)
    (exact,), (single,) = doubles([x]), singles([x])
    expected, found = ops.ssim(exact, y.double(), backend="reference"), ops.ssim(single, y, backend="cpu")
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    (mine,), (reference,) = torch.autograd.grad(3 * found, single), torch.autograd.grad(3 * expected, exact)
    assert_close(mine, reference, 1e-4, "gradient")


def test_ssim_of_flat_images_agrees() -> None:
    """Without texture the variances are differences of equal numbers."""
    x = torch.full((30, 30, 3), 0.6)
    y = torch.full((30, 30, 3), 0.5)
    (exact,), (single,) = doubles([x]), singles([x])
    expected, found = ops.ssim(exact, y.double(), backend="reference"), ops.ssim(single, y, backend="cpu")
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)
    (mine,), (reference,) = torch.autograd.grad(found, single), torch.autograd.grad(expected, exact)
    assert_close(mine, reference, 1e-2, "gradient")


@pytest.mark.parametrize("size", [(1, 9, 1), (7, 5, 1), (48, 64, 3), (33, 47, 2)])
def test_photometric_losses_agree(size: tuple[int, int, int]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    y = (x + 0.1 * random_like(x, 2)).clamp(0, 1)
    y[0, 0] = x[0, 0]  # where nothing differs the gradient of the difference is zero
    (exact,), (single,) = doubles([x]), singles([x])
    expected = ops.photometric_loss(exact, y.double(), 0.3, backend="reference")
    found = ops.photometric_loss(single, y, 0.3, backend="cpu")
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    (mine,), (reference,) = torch.autograd.grad(3 * found, single), torch.autograd.grad(3 * expected, exact)
    assert_close(mine, reference, 1e-4, "gradient")


def bumpy_depth(height: int, width: int) -> Tensor:
    """A slope with waves, and holes."""
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    depth = 2 + 0.2 * x + 0.3 * torch.sin(x) * torch.cos(2 * y)
    return torch.where(torch.rand(height, width, generator=torch.Generator().manual_seed(4)) < 0.1, 0.0, depth)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 40), (7, 7), (31, 47)])
def test_normals_of_depth_agree(size: tuple[int, int], step: int) -> None:
    camera = replace(random_case().camera, height=size[0], width=size[1])
    (exact,), (single,) = doubles([bumpy_depth(*size)]), singles([bumpy_depth(*size)])
    expected = ops.depth_normals(exact, camera, step, backend="reference")
    found = ops.depth_normals(single, camera, step, backend="cpu")
    assert_close(found, expected, 1e-5, "normals")
    upstream = random_like(found, 5)
    (mine,) = torch.autograd.grad(found, single, upstream)
    (reference,) = torch.autograd.grad(expected, exact, upstream.double())
    assert_close(mine, reference, 1e-4, "gradient")


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("known", [0.0, 0.7])
def test_normal_losses_agree(known: float, sliced: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    reference = torch.nn.functional.normalize(torch.randn(23, 31, 3, generator=generator), dim=-1)
    reference *= (torch.rand(23, 31, 1, generator=generator) < known).float()
    inputs = [torch.randn(23, 31, 8, generator=generator), reference]
    exact, single = doubles(inputs), singles(inputs)
    part = slice(2, 5) if sliced else [2, 3, 4]  # a view of the larger image, or a copy
    expected = ops.normal_loss(exact[0][..., part], exact[1], backend="reference")
    found = ops.normal_loss(single[0][..., part], single[1], backend="cpu")
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, mine, gradient in zip(
        ("normals", "reference"),
        torch.autograd.grad(3 * found, single),
        torch.autograd.grad(3 * expected, exact),
        strict=True,
    ):
        assert_close(mine, gradient, 1e-6, f"gradient of {name}")


def mixture_inputs(axes: int = 2) -> list[Tensor]:
    """2000 discs, some 30 planes about them, and up to four of these for every third disc."""
    generator = torch.Generator().manual_seed(11)
    means = 0.06 * torch.randn(2000, 3, generator=generator)
    quats = 3 * torch.randn(2000, 4, generator=generator)
    scales = torch.empty(2000, axes).uniform_(-4.5, -3.0, generator=generator)
    components = torch.randint(-1, 30, (2000, 4), generator=generator)
    weights = torch.rand(2000, 4, generator=generator) * (components >= 0)
    centers, normals = torch.randn(2, 30, 3, generator=generator)
    normals = torch.nn.functional.normalize(normals, dim=1)
    return [means, quats, scales, torch.arange(1, 2000, 3), components, weights, 0.1 * centers, normals]


@pytest.mark.parametrize("axes", [2, 3])
def test_mixture_losses_agree(axes: int) -> None:
    inputs = mixture_inputs(axes)
    exact, single = doubles(inputs[:3]), singles(inputs[:3])
    planes = [t.double() if t.is_floating_point() else t for t in inputs[3:]]
    expected = ops.mixture_loss(*exact, *planes, backend="reference")
    found = ops.mixture_loss(*single, *inputs[3:], backend="cpu")
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, mine, gradient in zip(
        ("means", "quats", "log_scales"),
        torch.autograd.grad(3 * found, single),
        torch.autograd.grad(3 * expected, exact),
        strict=True,
    ):
        assert_close(mine, gradient, 1e-5, f"gradient of {name}")


def test_a_component_that_is_no_plane_is_told_of() -> None:
    inputs = mixture_inputs()
    inputs[4][1, 2] = 30
    with pytest.raises(RuntimeError, match="a component is not among the planes"):
        ops.mixture_loss(*inputs, backend="cpu")


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("hidden", [False, True])
def test_warping_losses_agree(count: int, hidden: bool) -> None:
    """A slanted surface seen from two places, in images of different sizes, with holes and something in front."""
    generator = torch.Generator().manual_seed(count)
    pose = torch.eye(4)
    pose[:3, :3] = rotation_matrices(torch.tensor([1.0, 0.02, -0.05, 0.03]))
    pose[:3, 3] = torch.tensor([0.3, -0.1, 0.2])
    camera = Camera(47, 31, 40.0, 42.0, 23.0, 16.0, torch.eye(4))
    other = Camera(40, 35, 35.0, 33.0, 21.0, 17.0, pose)
    depth, other_depth = (
        2
        + 0.01 * torch.arange(c.width).expand(c.height, -1)
        + 0.001 * torch.rand(c.height, c.width, generator=generator)
        for c in (camera, other)
    )
    depth[5:8] = 0
    if hidden:
        other_depth[:, 20:25] = 1
    labels = torch.rand(31, 47, count + 4, generator=generator)
    other_labels = torch.rand(35, 40, count, generator=generator)
    (exact,), (single,) = doubles([labels]), singles([labels])
    maps = (other_labels, other_depth)
    expected = ops.warping_loss(
        exact,
        count,
        camera.to(torch.float64),
        depth.double(),
        other.to(torch.float64),
        *(m.double() for m in maps),
        0.1,
        backend="reference",
    )
    found = ops.warping_loss(single, count, camera, depth, other, *maps, 0.1, backend="cpu")
    (mine,), (reference,) = torch.autograd.grad(3 * found, single), torch.autograd.grad(3 * expected, exact)
    # Rounding may put a pixel on the other side of a border or of the tolerance: very few, and each has a small say.
    valid = [(g != 0).any(-1) for g in (mine, reference)]
    assert 200 < valid[1].sum() < 31 * 47
    assert (valid[0] != valid[1]).sum() <= 2
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)
    both = valid[0] & valid[1]
    assert not mine[..., count:].any()
    scale = valid[0].sum() / valid[1].sum()
    assert_close(mine[both] * scale, reference[both], 1e-4, "gradient")


@pytest.mark.parametrize("what", ["no depth", "behind", "aside"])
def test_where_nothing_is_seen_twice_warping_costs_nothing(what: str) -> None:
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor({"no depth": [0.0, 0, 0], "behind": [0.0, 0, -9], "aside": [50.0, 0, 0]}[what])
    camera = Camera(9, 7, 8.0, 8.0, 4.5, 3.5, torch.eye(4))
    depth = torch.full((7, 9), 0.0 if what == "no depth" else 2.0)
    labels = torch.rand(7, 9, 4).requires_grad_()
    other = replace(camera, world_to_camera=pose)
    loss = ops.warping_loss(labels, 3, camera, depth, other, torch.rand(7, 9, 3), depth, 0.1, backend="cpu")
    (grad,) = torch.autograd.grad(loss, labels)
    assert loss == 0
    assert not grad.any()


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("count", [0, 1, 60])
def test_spherical_harmonics_agree(degree: int, count: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    inputs = [torch.randn(80, *shape, generator=generator) for shape in [(3,), (15, 3), (3,)]]
    position = torch.tensor([3.0, -2.0, 4.0])
    ids = torch.randperm(80, generator=generator)[:count].sort().values
    exact, single = doubles(inputs), singles(inputs)
    expected = ops.spherical_harmonics(*exact, position, ids, degree, backend="reference")
    found = ops.spherical_harmonics(*single, position, ids, degree, backend="cpu")
    assert torch.allclose(found.double(), expected, rtol=0, atol=3e-6)
    upstream = random_like(found, 1)
    for name, mine, reference in zip(
        ("dc", "rest", "means"),
        torch.autograd.grad(found, single, upstream),
        torch.autograd.grad(expected, exact, upstream.double(), allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert_close(mine, reference, 1e-5, f"gradient of {name}")


def test_spherical_harmonics_take_exactly_the_coefficients_they_need() -> None:
    generator = torch.Generator().manual_seed(0)
    dc, rest, means = (torch.randn(20, *shape, generator=generator) for shape in [(3,), (3, 3), (3,)])
    arguments = (dc, rest, means, torch.tensor([5.0, 0.0, 0.0]), torch.arange(20), 1)
    found = ops.spherical_harmonics(*arguments, backend="cpu")
    assert torch.allclose(found, ops.spherical_harmonics(*arguments, backend="reference"), atol=1e-6)
    nothing = ops.spherical_harmonics(dc, rest[:, :0], means, arguments[3], arguments[4], 0, backend="cpu")
    assert torch.allclose(nothing, (0.5 + 0.28209479177387814 * dc).clamp_min(0), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- whole path


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_threads_gives_the_same_bits(kind: Kind) -> None:
    case = random_case(9000, 150, 110, seed=18, size=-4.0, opacity=1.0)
    generator = torch.Generator().manual_seed(19)
    # Shares are made here: torch's own softmax has other bits on other numbers of threads.
    shares = torch.randn(9000, 9, generator=generator).softmax(-1)
    features = torch.cat([torch.randn(9000, 12, generator=generator), shares], dim=1)
    semantic, mask = (torch.randint(low, 4, (110, 150), generator=generator).int() for low in (0, -1))
    targets = ops.LabelTargets(semantic, mask, torch.rand(110, 150, generator=generator), 4, 3, 3)

    def everything() -> list[Tensor]:
        parameters = singles([*case.parameters, features])
        ids, geometry, normals = visible(case, kind, parameters[:4], "cpu")
        rows = ops.take_rows(parameters[4], ids, backend="cpu")
        channels, labels = torch.cat([normals, rows[:, :12]], dim=1), rows[:, 12:]
        bins = ops.bin(geometry, 150, 110, kind=kind, backend="cpu")
        absolute = torch.zeros(len(ids), 2, requires_grad=True) if kind == "ellipsoid" else None
        out = ops.blend(
            geometry,
            channels,
            bins,
            150,
            110,
            kind=kind,
            near=NEAR,
            labels=labels,
            targets=targets,
            distort=True,
            absolute=absolute,
            backend="cpu",
        )
        assert out.sums is not None
        assert out.distortion is not None
        toward = ops.depth_normals(out.depth, case.camera, backend="cpu")
        image = out.image[..., 3:6]
        loss = ops.normal_loss(out.image[..., :3], toward, backend="cpu")
        loss = loss + ops.photometric_loss(image, torch.zeros_like(image), 0.2, backend="cpu")
        upstream = [torch.tensor(1.0), out.image.detach(), out.alpha.detach(), *(s.detach().cos() for s in out.sums)]
        wanted = [*parameters, *([] if absolute is None else [absolute])]
        gradients = torch.autograd.grad([loss, out.image, out.distortion, *out.sums], wanted, upstream)
        mixture = mixture_inputs()
        discs = singles(mixture[:3])
        term = ops.mixture_loss(*discs, *mixture[3:], backend="cpu")
        gradients += torch.autograd.grad(term, discs)
        return [ids, geometry, *bins, *out[:5], out.distortion, *out.sums, toward, loss, term, *gradients]

    before = torch.get_num_threads()
    try:
        results: list[list[Tensor]] = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_dropped_that_can_be_seen(kind: Kind) -> None:
    """Gaussians all around the camera, of all sizes: the quick test of the frustum agrees with the exact one."""
    generator = torch.Generator().manual_seed(20)
    case = random_case(20_000, 80, 60, seed=20)
    case = replace(
        case,
        means=8 * torch.rand(20_000, 3, generator=generator) - 4,
        log_scales=torch.randn(20_000, 3, generator=generator) * 1.5 - 2.5,
    )
    expected = visible(case, kind, doubles(case.parameters), "reference")
    found = visible(case, kind, singles(case.parameters), "cpu")
    assert found.ids.tolist() == expected.ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_whole_view_agree(kind: Kind) -> None:
    """Projection, harmonics, attention and blending in one graph, as training uses them."""
    case = random_case(400, 64, 48, seed=16, size=-3.0)
    generator = torch.Generator().manual_seed(17)
    extra = [torch.randn(400, *shape, generator=generator) for shape in [(3,), (15, 3), (8,)]]
    queries = [torch.randn(6, *shape, generator=generator) for shape in [(8,), (3,), (3,), (4,)]]
    target = torch.rand(48, 64, 3, generator=generator)
    camera = case.camera

    def view(inputs: list[Tensor], backend: ops.backend.Backend) -> tuple[ops.Blended, Tensor]:
        means, quats, log_scales, logits, dc, rest, features, *queries = inputs
        ids, geometry, normals = visible(case, kind, [means, quats, log_scales, logits], backend)
        colors = ops.spherical_harmonics(dc, rest, means, camera.position, ids, 3, backend=backend)
        attention = ops.attend(features[ids], means[ids], *queries, backend=backend)
        channels, labels = torch.cat([colors, normals], dim=-1), attention.softmax(-1)
        bins = ops.bin(geometry, 64, 48, kind=kind, backend=backend)
        out = ops.blend(
            geometry, channels, bins, 64, 48, kind=kind, near=NEAR, labels=labels, detached=True, backend=backend
        )
        return out, ops.ssim(out.image[..., :3], target.to(out.image), backend=backend)

    inputs = [*case.parameters, *extra, *queries]
    exact, single = doubles(inputs), singles(inputs)
    (expected, expected_ssim), (found, found_ssim) = view(exact, "reference"), view(single, "cpu")
    assert found_ssim.item() == pytest.approx(expected_ssim.item(), abs=1e-5)
    image, exact_image = maps_of(found)["image"], maps_of(expected)["image"]
    agree = ((image.double() - exact_image).abs().amax(-1) < 1e-4) & (
        (found.depth.double() - expected.depth).abs() < 1e-4
    )
    assert (~agree).float().mean() <= 3 * BAND
    loss = torch.randn(48, 64, 12, generator=generator), torch.randn(48, 64, generator=generator)

    def gradients(out: ops.Blended, similarity: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        total = (maps_of(out)["image"] * loss[0].to(out.image) * agree[..., None]).sum() - 100 * similarity
        return torch.autograd.grad(total + (out.depth * loss[1].to(out.depth) * agree).sum(), parameters)

    queried = ("query features", "query means", "query scales", "query quats")
    names = ("means", "quats", "log_scales", "opacity_logits", "dc", "rest", "features", *queried)
    for name, mine, reference in zip(
        names, gradients(found, found_ssim, single), gradients(expected, expected_ssim, exact), strict=True
    ):
        assert_close(mine, reference, 1e-3, f"gradient of {name}")


# ------------------------------------------------------------------------------------------------- registration


def operator_arguments(kind: Kind) -> dict[str, tuple[object, ...]]:
    """Arguments of every registered operator, with gradients wanted where one is defined."""
    case = random_case(40, 33, 20)
    camera = case.camera
    numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, KIND_CODE[kind], NEAR, 0.3)
    shown = scene(case, kind, 5)
    size = (case.width, case.height)
    bins = ops.bin(shown.geometry, *size, kind=kind, backend="cpu")
    projected = visible(case, kind, case.parameters, "cpu")
    semantic, mask = torch.randint(0, 3, (20, 33)).int(), torch.randint(-1, 4, (20, 33)).int()
    targets = (semantic, mask, torch.rand(20, 33))
    numbers_of_labels = (4, 2, 2, False, 1e-4)
    settings = (*bins, *targets, *size, KIND_CODE[kind], 2, NEAR, *numbers_of_labels)
    labels = torch.rand(len(shown.geometry), 5)
    tables = [torch.randn(()), torch.randn(2, 3), torch.randn(2, 4, 3)]
    maps = [torch.rand(20, 33, 5), torch.randn(20, 33, 5), None, *torch.randn(3, 20, 33), *tables]
    watched = torch.zeros(len(shown.geometry), 2, requires_grad=True) if kind == "ellipsoid" else None
    attention = [torch.randn(30, 4), torch.randn(30, 3), torch.randn(6, 4), torch.randn(6, 3), torch.randn(6, 3, 3)]
    harmonics = [torch.randn(30, 3), torch.randn(30, 15, 3), torch.randn(30, 3)]
    placed = (torch.tensor([9.0, 0.0, 0.0]), torch.tensor([3, 4, 20]), 2)
    images = [torch.rand(20, 16, 3), torch.rand(20, 16, 3)]
    pose = camera.world_to_camera
    warped = (torch.ones(9, 13), torch.rand(8, 11, 3), torch.ones(8, 11), torch.eye(4))
    lenses = (9.0, 8.0, 6.0, 4.0, 9.0, 8.0, 5.0, 4.0)
    return {
        "project": (*singles(case.parameters), pose, *numbers),
        "project_backward": (
            *case.parameters,
            pose,
            *numbers,
            projected.ids,
            torch.randn_like(projected.geometry),
            torch.randn_like(projected.normals),
        ),
        "bin": (shown.geometry, *size, KIND_CODE[kind]),
        "blend": (*singles([shown.geometry, shown.features, labels]), *settings),
        "blend with all": (*singles([shown.geometry, shown.features, labels]), *settings, True, watched),
        "blend_backward": (shown.geometry, shown.features, labels, *settings, *maps),
        "blend_backward with all": (
            *(shown.geometry, shown.features, labels, *settings, *maps),
            *(torch.randn(20, 33), kind == "ellipsoid"),
        ),
        "label_sums": (*singles([torch.rand(20, 33, 5)]), *targets, *numbers_of_labels),
        "label_sums_backward": (torch.rand(20, 33, 5), *targets, *numbers_of_labels, *tables),
        "warping_loss": (*singles([torch.rand(9, 13, 5)]), *warped, *lenses, 0.1),
        "warping_loss_backward": (torch.rand(9, 13, 3), torch.tensor(7), 5, torch.tensor(2.0)),
        "attend": (*singles(attention), False),
        "attend_backward": (*attention, True, torch.randn(30, 6)),
        "attend_shares": (*singles(attention), True, 1.0, -2.0),
        "attend_shares_backward": (*attention, True, 1.0, None, torch.rand(30, 6), torch.randn(30, 6)),
        "similarity": (images[0].clone().requires_grad_(), images[1], 0.3, -2.0),
        "depth_normals": (*singles([bumpy_depth(9, 13)]), 9.0, 8.0, 6.0, 4.0, 2),
        "depth_normals_backward": (bumpy_depth(9, 13), 9.0, 8.0, 6.0, 4.0, 2, torch.randn(9, 13, 3)),
        "mixture_loss": (*singles(mixture_inputs()[:3]), *mixture_inputs()[3:], 0.05, 0.1),
        "mixture_loss_backward": (torch.tensor([3, 4, 20]), torch.randn(3, 9), 30, 2, torch.tensor(2.0)),
        "normal_loss": tuple(singles([*torch.randn(2, 9, 13, 3)])),
        "normal_loss_backward": (*torch.randn(2, 9, 13, 3), torch.tensor(50), torch.tensor(2.0)),
        "take_rows": (singles(attention)[0], torch.tensor([3, 4, 20])),
        "take_rows_backward": (torch.randn(3, 5), torch.tensor([3, 4, 20]), 30),
        "ssim": (images[0].requires_grad_(), images[1]),
        "spherical_harmonics": (*singles(harmonics), *placed),
        "spherical_harmonics_backward": (*harmonics, *placed, torch.randn(3, 3)),
    }


OPERATORS = [
    *("attend", "attend_backward", "attend_shares", "attend_shares_backward", "take_rows", "take_rows_backward"),
    *("depth_normals", "depth_normals_backward", "normal_loss", "normal_loss_backward", "similarity"),
    *("bin", "blend", "blend_backward", "project", "project_backward", "label_sums", "label_sums_backward"),
    *("blend with all", "blend_backward with all"),
    *("warping_loss", "warping_loss_backward", "mixture_loss", "mixture_loss_backward"),
    *("spherical_harmonics", "spherical_harmonics_backward", "ssim"),
]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_registered_operators_pass_torchs_own_check(name: str, kind: Kind) -> None:
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name != "project":  # the fourth adds up all outputs, and cannot when an integer one comes first
        checks.append("test_aot_dispatch_dynamic")
    operator = getattr(torch.ops.panbench, name.split()[0]).default
    torch.library.opcheck(operator, operator_arguments(kind)[name], test_utils=checks)
