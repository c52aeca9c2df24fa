"""Rows of a field of all Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from panbench.ops.backend import Backend, resolve


def take_rows(values: Tensor, ids: Tensor, *, backend: Backend | None = None) -> Tensor:
    """``values[ids]`` for rows that are ascending and distinct, as those of the visible Gaussians are.

    That makes the gradient a copy: plain indexing has to expect repeated rows, and adds one number at a time.

    Args:
        values: [N, D]. ids: [M], int64.
    """
    if resolve(backend, values.device.type) != "reference":
        return torch.ops.panbench.take_rows(values, ids)
    return values[ids]
