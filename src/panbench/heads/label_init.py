"""Labels that start from the masks: features, and a decoder of them, that already say what most views say.

OmniIndoor3D (2025) starts the semantic and the instance feature of its Gaussians from a labelled RGB-D cloud. How votes
become features here, exactly and through the decoder that is trained afterwards, is our own design.
"""

from __future__ import annotations

import torch
from scipy.spatial import KDTree
from torch import Tensor, nn

_PRIOR = 0.1  # votes that every class has from the start: keeps logarithms finite, and one view from deciding all
_ALIGNED = 4.0  # f_q · f of a Gaussian and its query: sigmoid 0.98


def vote_logits(votes: Tensor) -> Tensor:
    """log(votes + 0.1) less its mean over classes, [N, classes]: its softmax is (votes + 0.1) / Σ (votes + 0.1)."""
    logits = (votes + _PRIOR).log()
    return logits - logits.mean(1, keepdim=True)


@torch.no_grad()
def start_semantics(features: Tensor, decoder: nn.Sequential, logits: Tensor) -> None:
    """Set features [N, D] and the decoder (linear D → H, ReLU, linear H → classes) so that it decodes to logits.

    z = Σ_k (z · v_k) v_k over the right singular vectors v of the logits [N, classes]. The first r features are
    z · v_k; hidden unit k takes relu(z · v_k), unit r + k relu(−z · v_k), and their difference is decoded with v_k.
    Logits of mean 0 have rank classes − 1 at most, so this is exact where r = min(D, H / 2) ≥ classes − 1; with more
    classes it is the nearest that r numbers can say (Eckart–Young). What is left of features and units stays as it
    was, unheard until it is trained.
    """
    first, last = decoder[0], decoder[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    rank = min(first.in_features, first.out_features // 2, logits.shape[1])
    _, vectors = torch.linalg.eigh(logits.double().T @ logits.double())
    basis = vectors.flip(1)[:, :rank].to(logits)
    features[:, :rank] = (logits @ basis).to(features)
    first.weight[: 2 * rank] = 0
    first.bias[: 2 * rank] = 0
    for k in range(rank):
        first.weight[k, k], first.weight[rank + k, k] = 1, -1
    last.weight.zero_()
    last.bias.zero_()
    last.weight[:, :rank], last.weight[:, rank : 2 * rank] = basis, -basis


@torch.no_grad()
def start_instances(features: Tensor, means: Tensor, queries: Tensor, points: Tensor, owner: Tensor) -> None:
    """Set features [N, D] of Gaussians at means [N, 3] to agree with the query that owns the nearest seed point.

    f = 4 f_q / ‖f_q‖², so that f_q · f = 4 and sigmoid(f_q · f) = 0.98.

    Args:
        queries: [Q, D], their features. points: [P, 3], seed points. owner: [P], the query of each.
    """
    if not len(points) or not len(means):
        return
    _, nearest = KDTree(points.cpu().numpy()).query(means.cpu().numpy())
    mine = queries[owner[torch.from_numpy(nearest)]]
    features.copy_(_ALIGNED * mine / mine.square().sum(1, keepdim=True).clamp_min(1e-12))
