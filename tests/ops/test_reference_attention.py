"""The reference attention against torch's own Gaussian density, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.distributions import MultivariateNormal

from panbench.ops import reference


def random_inputs(rows: int = 12, queries: int = 5, dim: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        normal(rows, dim),
        normal(rows, 3),
        normal(queries, dim),
        normal(queries, 3),
        0.3 * normal(queries, 3),
        normal(queries, 4),
    ]


def test_distance_is_the_ratio_of_densities_of_equation_3() -> None:
    features, means, queries, query_means, query_log_scales, query_quats = random_inputs()
    found = reference.attend(features, means, queries, query_means, query_log_scales, query_quats)
    for q in range(len(queries)):
        axes = torch.from_numpy(Rotation.from_quat(query_quats[q].numpy(), scalar_first=True).as_matrix())
        covariance = axes @ torch.diag((2 * query_log_scales[q]).exp()) @ axes.T
        density = MultivariateNormal(query_means[q], covariance)
        distance = (density.log_prob(means) - density.log_prob(query_means[q])).exp()
        similarity = torch.tensor([1 / (1 + math.exp(-float(queries[q] @ f))) for f in features], dtype=torch.float64)
        assert torch.allclose(found[:, q], similarity * distance, rtol=1e-9, atol=0)


def test_at_the_centre_of_a_query_attention_is_the_similarity() -> None:
    features, _, queries, query_means, *shape = random_inputs(rows=5)
    found = reference.attend(features, query_means, queries, query_means, *shape)
    assert torch.allclose(found.diagonal(), torch.sigmoid((features * queries).sum(-1)))


def test_attention_falls_off_by_the_radius_along_each_axis() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    for axis, radius in enumerate((0.5, 1.0, 2.0)):
        mean = torch.zeros(1, 3, dtype=torch.float64)
        mean[0, axis] = 3 * radius
        found = reference.attend(
            100 * one,
            mean,
            one,
            torch.zeros(1, 3, dtype=torch.float64),
            torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64).log(),
            torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
        )
        assert found.item() == pytest.approx(math.exp(-4.5), rel=1e-12)


def test_logarithm_is_that_of_the_attention_and_stays_finite_far_away() -> None:
    inputs = random_inputs()
    assert torch.allclose(reference.attend(*inputs, logarithm=True), reference.attend(*inputs).log())
    inputs[1] = (inputs[1] + 1000).requires_grad_()
    assert (reference.attend(*inputs) == 0).all()
    far = reference.attend(*inputs, logarithm=True)
    assert far.isfinite().all()
    (gradient,) = torch.autograd.grad(far.sum(), inputs[1])
    assert (gradient != 0).all()


@pytest.mark.parametrize("logarithm", [False, True])
def test_gradients_are_those_of_finite_differences(logarithm: bool) -> None:
    inputs = [p.requires_grad_() for p in random_inputs(rows=4, queries=3, dim=2)]
    assert torch.autograd.gradcheck(lambda *p: reference.attend(*p, logarithm=logarithm), inputs)


def test_no_gaussians_or_no_queries_give_an_empty_map() -> None:
    features, means, *queries = random_inputs()
    assert reference.attend(features[:0], means[:0], *queries).shape == (0, 5)
    assert reference.attend(features, means, *(p[:0] for p in queries)).shape == (12, 0)
