"""What copies of a Gaussian must be so that together they look like the one they come from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MOST_COPIES = 51
"""n at which the relocation formula stops: more copies count as this many (3DGS-MCMC)."""

# Opacities above 1 − 2⁻²³ are taken as that: float32 knows none between it and 1, and the series below would cancel.
_HIGHEST_LOGIT = math.log(2.0**23 - 1)


def share_opacity(logits: Tensor, copies: Tensor | int) -> Tensor:
    """Logits of o' = 1 − (1 − o)^{1/n}, of which n on top of each other have the opacity o.

    With n = 2 it is 1 − sqrt(1 − o) of Rota Bulò et al. 2024, "Revising densification in Gaussian splatting".

    Args:
        logits: of o, any shape. copies: n, a number or a tensor that broadcasts.
    """
    # log(1 − o') = log(1 − o) / n, and 1 − o = sigmoid(−logit): nothing cancels near 0 or 1.
    rest = logsigmoid(-logits) / copies
    return (-torch.expm1(rest)).log() - rest


def relocate(logits: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scale of n copies that look like the one Gaussian they replace (Kheradmand et al. 2024, 3DGS-MCMC).

    o' as in :func:`share_opacity`, and s'/s = o / Σ_{i=1..n} Σ_{k=0..i−1} binom(i−1, k) (−1)^k o'^{k+1} / sqrt(k+1),
    which keeps the integral over a line through the centre of 1 − Π (1 − o' g). The inner sums over i add up to
    binom(n, k+1), so one sum is left. It alternates: float64.

    Args:
        logits: of o [K]. copies: n [K], int64, ≥ 1; taken as 51 above that.

    Returns:
        Logits of o' [K] and log(s'/s) [K], like ``logits``. n = 1 changes nothing.
    """
    copies = copies.clamp(1, MOST_COPIES)
    logits64 = logits.double().clamp(max=_HIGHEST_LOGIT)
    shared = share_opacity(logits64, copies)
    powers = torch.arange(1, MOST_COPIES + 1, device=logits.device)
    series = _coefficients().to(logits.device)[copies - 1] * shared.sigmoid()[:, None] ** powers
    log_factor = logits64.sigmoid().log() - series.sum(-1).log()
    single = copies == 1
    return torch.where(single, logits, shared.to(logits)), log_factor.masked_fill(single, 0.0).to(logits)


def _coefficients() -> Tensor:
    """binom(n, j) (−1)^{j+1} / sqrt(j) in row n − 1 and column j − 1 [51, 51], float64."""
    rows = range(1, MOST_COPIES + 1)
    return torch.tensor(
        [[math.comb(n, j) * (-1) ** (j + 1) / math.sqrt(j) for j in rows] for n in rows], dtype=torch.float64
    )
