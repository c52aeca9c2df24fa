"""Distance-weighted cross attention between Gaussians and instance queries (eqs. 2–4)."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops import reference
from panbench.ops.backend import Backend, resolve
from panbench.ops.reference.project import rotation_matrices


def attend(
    features: Tensor,
    means: Tensor,
    queries: Tensor,
    query_means: Tensor,
    query_log_scales: Tensor,
    query_quats: Tensor,
    *,
    logarithm: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """A = sigmoid(f_q · f) · exp(−½ (x − μ)ᵀ Σ⁻¹ (x − μ)) with Σ = R diag(exp(2 log_scale)) Rᵀ.

    Local cross attention is this on the rows of the visible Gaussians only: nothing of size [N, Q] is ever made.

    Args:
        features: [M, D]. means: [M, 3], world, metres; Gaussians count as points.
        queries: [Q, D]. query_means: [Q, 3]. query_log_scales: [Q, 3]. query_quats: [Q, 4], w x y z.
        logarithm: give log A, which keeps a gradient where A underflows.

    Returns:
        A [M, Q] in [0, 1], or its logarithm.
    """
    if resolve(backend, features.device.type) == "reference":
        return reference.attend(
            features, means, queries, query_means, query_log_scales, query_quats, logarithm=logarithm
        )
    return torch.ops.panbench.attend(
        *_compiled_arguments(features, means, queries, query_means, query_log_scales, query_quats), logarithm
    )


def attend_shares(
    features: Tensor,
    means: Tensor,
    queries: Tensor,
    query_means: Tensor,
    query_log_scales: Tensor,
    query_quats: Tensor,
    *,
    logarithm: bool = False,
    temperature: float = 1.0,
    rest: float | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Softmax over queries (eq. 5) of ``temperature`` times what :func:`attend` gives.

    Args:
        rest: one more entry of that softmax, in the units of ``attend``, whose share is left out; None: no such entry.
        The others are those of :func:`attend`.

    Returns:
        Shares [M, Q] in [0, 1]; rows sum to 1, or to less with ``rest``.
    """
    inputs = (features, means, queries, query_means, query_log_scales, query_quats)
    if resolve(backend, features.device.type) != "reference":
        return torch.ops.panbench.attend_shares(*_compiled_arguments(*inputs), logarithm, temperature, rest)
    logits = temperature * attend(*inputs, logarithm=logarithm, backend=backend)
    if rest is None:
        return logits.softmax(-1)
    return torch.cat([logits, logits.new_full((len(logits), 1), temperature * rest)], dim=1).softmax(-1)[:, :-1]


def _compiled_arguments(
    features: Tensor, means: Tensor, queries: Tensor, query_means: Tensor, query_log_scales: Tensor, query_quats: Tensor
) -> tuple[Tensor, ...]:
    # Σ⁻¹ = Lᵀ L with L = diag(1/s) Rᵀ; a few queries, so torch's autograd carries L to scales and rotation.
    roots = rotation_matrices(query_quats).mT * (-query_log_scales).exp()[..., None]
    return tuple(t.contiguous() for t in (features, means, queries, query_means, roots))
