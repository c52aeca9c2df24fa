"""Changing N: all fields and the optimiser's state together. Nothing else in the package changes a field's length."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from panbench.gaussians.gaussian_set import GaussianSet


def take(gaussians: GaussianSet, index: Tensor, optimizer: Optimizer | None) -> None:
    """Keep the rows ``index`` in that order (prune, reorder).

    Args:
        index: int64 [K] row numbers, or bool [N] of rows to keep.
        optimizer: its moments are indexed the same way; None before there is one.

    Raises:
        ValueError: a mask of another length than N, or a row beyond N.
    """
    if index.dtype == torch.bool:
        if tuple(index.shape) != (len(gaussians),):
            raise ValueError(f"mask has shape {tuple(index.shape)}, there are {len(gaussians)} Gaussians")
        index = index.nonzero().squeeze(-1)
    else:
        _check_rows(gaussians, index)
    _change(gaussians, optimizer, lambda _, values: values[index], lambda moment: moment[index])


def append(gaussians: GaussianSet, rows: Mapping[str, Tensor], optimizer: Optimizer | None) -> None:
    """Add rows at the end; their moments start at zero.

    Args:
        rows: [K, *shape] for every field (see :func:`panbench.gaussians.gaussian_set.rows_of`).

    Raises:
        ValueError: a field is missing, unknown, or of the wrong shape.
    """
    if set(rows) != set(gaussians):
        raise ValueError(f"rows for {sorted(rows)} given, the fields are {sorted(gaussians)}")
    lengths = {rows[name].shape[0] for name in rows}
    for name in gaussians:
        if tuple(rows[name].shape[1:]) != gaussians.spec(name).shape or len(lengths) != 1:
            raise ValueError(
                f"rows of {name} have shape {tuple(rows[name].shape)}; rows are {gaussians.spec(name).shape}, "
                f"lengths given {sorted(lengths)}"
            )

    def extend(name: str, values: Tensor) -> Tensor:
        return torch.cat([values, rows[name].detach().to(values)])

    added = lengths.pop()
    _change(gaussians, optimizer, extend, lambda m: torch.cat([m, m.new_zeros((added, *m.shape[1:]))]))


def reset(gaussians: GaussianSet, field: str, values: Tensor, optimizer: Optimizer | None) -> None:
    """Overwrite a whole field in place and zero its moments (the step count of Adam's bias correction stays).

    Raises:
        ValueError: values of another shape than the field.
    """
    parameter = gaussians[field]
    if values.shape != parameter.shape:
        raise ValueError(f"{field} has shape {tuple(parameter.shape)}, the new values {tuple(values.shape)}")
    with torch.no_grad():
        parameter.copy_(values)
    if optimizer is not None:
        for moment in _moments(optimizer, parameter).values():
            moment.zero_()


def overwrite(gaussians: GaussianSet, index: Tensor, rows: Mapping[str, Tensor], optimizer: Optimizer | None) -> None:
    """Put other values into the rows ``index`` of the fields given, in place, and zero their moments. N stays.

    Args:
        index: int64 [K] row numbers, none twice.
        rows: [K, *shape] for each of those fields.

    Raises:
        ValueError: a row beyond N or given twice, or values of the wrong shape.
    """
    _check_rows(gaussians, index)
    if len(index.unique()) != len(index):
        raise ValueError("a row is given twice")
    for name, values in rows.items():
        if tuple(values.shape) != (len(index), *gaussians.spec(name).shape):
            raise ValueError(f"{name} has {len(index)} rows {gaussians.spec(name).shape} to fill, got {values.shape}")
    with torch.no_grad():
        for name, values in rows.items():
            parameter = gaussians[name]
            parameter[index] = values.detach().to(parameter)
            if optimizer is not None:
                for moment in _moments(optimizer, parameter).values():
                    moment[index] = 0


def _check_rows(gaussians: GaussianSet, index: Tensor) -> None:
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(gaussians)):
        raise ValueError(f"row {int(index.min())} or {int(index.max())} is outside 0 .. {len(gaussians) - 1}")


def _moments(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The entries of Adam's state that have a row per Gaussian."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


def _change(
    gaussians: GaussianSet,
    optimizer: Optimizer | None,
    change_values: Callable[[str, Tensor], Tensor],
    change_moment: Callable[[Tensor], Tensor],
) -> None:
    """Replace every field, and where the optimiser knows it, its group entry and its state under the new key."""
    with torch.no_grad():
        for name in list(gaussians):
            old = gaussians[name]
            new = gaussians.replace_field(name, change_values(name, old.detach()))
            if optimizer is None or gaussians.spec(name).lr == 0:
                continue
            for group in optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
            moments = {key: change_moment(value) for key, value in _moments(optimizer, old).items()}
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old) | moments
    gaussians.finish_resize()
