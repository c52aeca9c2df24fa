"""The one owner of N: every per-Gaussian tensor is a field of a GaussianSet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panbench.errors import UserError
from panbench.gaussians.fields import FieldSpec


class GaussianSet(nn.Module):
    """Fields of equal length N: ``set["means"]`` or ``set.means`` is a tensor [N, *shape].

    Optimised fields are parameters, the others buffers, each under its own name, so ``state_dict`` holds plain tensors.
    Only :mod:`panbench.gaussians.surgery` changes N; a tensor taken from the set before a change is stale after it.
    """

    def __init__(self, count: int | None = None) -> None:
        """Args: count: N, where no field of the first ``add`` is given as a tensor (0 before loading a checkpoint)."""
        super().__init__()
        self._specs: dict[str, FieldSpec] = {}
        self._count = count

    def add(self, fields: Mapping[str, FieldSpec]) -> None:
        """Declare fields and set their first values.

        Raises:
            ValueError: a name is taken or no identifier, N is unknown, or the first values have the wrong shape.
        """
        for name in fields:
            # hasattr covers earlier fields and what nn.Module itself calls so ("train", "to", …).
            if not name.isidentifier() or hasattr(self, name):
                raise ValueError(f"field {name!r}: the name is taken or not an identifier")
        count = self._count
        for spec in fields.values():
            if count is None and isinstance(spec.init, Tensor):
                count = spec.init.shape[0]
        if count is None:
            raise ValueError(f"the number of Gaussians is unknown: none of {sorted(fields)} starts as a tensor")
        for name, spec in fields.items():
            try:
                values = spec.first_values(count)
            except ValueError as error:
                raise ValueError(f"field {name!r}: {error}") from error
            if spec.lr > 0:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)
            self._specs[name] = spec
        self._count = count

    def __len__(self) -> int:
        """N."""
        return self._count or 0

    def __bool__(self) -> bool:
        """True: an empty set is still a set."""
        return True

    def __getitem__(self, name: str) -> Tensor:
        """Field [N, *shape]; raises KeyError for a name that is no field."""
        if name not in self._specs:
            raise KeyError(f"no field {name!r}; there are {', '.join(self._specs)}")
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        """Field names in the order of declaration."""
        return iter(self._specs)

    def spec(self, name: str) -> FieldSpec:
        """How the field was declared."""
        return self._specs[name]

    def groups(self) -> list[dict[str, Any]]:
        """Optimiser groups, one per optimised field: ``{"name", "params": [tensor], "lr", "lr_final"}``."""
        return [
            {"name": name, "params": [self[name]], "lr": spec.lr, "lr_final": spec.lr_final}
            for name, spec in self._specs.items()
            if spec.lr > 0
        ]

    def resize_like(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Give every field as many rows as the checkpoint has, so that ``load_state_dict`` fits. Values become zeros.

        Call it in ``on_load_checkpoint``: optimisers are built after that, and then load their state by themselves.

        Args:
            state: a state dict that holds this set's fields under ``prefix + name``; other keys are ignored.

        Raises:
            UserError: a field is missing or has another shape than declared.
        """
        counts: set[int] = set()
        for name, spec in self._specs.items():
            saved = state.get(prefix + name)
            if saved is None:
                raise UserError(
                    f"the checkpoint has no Gaussian field {name}: load it with the configuration it was made with"
                )
            if tuple(saved.shape[1:]) != spec.shape:
                raise UserError(
                    f"the checkpoint's Gaussian field {name} has rows of shape {tuple(saved.shape[1:])}, the "
                    f"configuration asks for {spec.shape}: load it with the configuration it was made with"
                )
            counts.add(saved.shape[0])
        if len(counts) > 1:
            raise UserError(f"the checkpoint's Gaussian fields have different lengths {sorted(counts)}: it is damaged")
        for count in counts:
            for name, spec in self._specs.items():
                self.replace_field(name, self[name].detach().new_zeros((count, *spec.shape)))
            self._count = count

    def replace_field(self, name: str, values: Tensor) -> Tensor:
        """Put a new tensor in a field's place and return it as stored (a new leaf, without gradient).

        Part of a change of N that spans all fields: for :mod:`~panbench.gaussians.surgery` only, which ends it with
        :meth:`finish_resize`.
        """
        if self._specs[name].lr > 0:
            parameter = nn.Parameter(values)
            self.register_parameter(name, parameter)
            return parameter
        self.register_buffer(name, values)
        return values

    def finish_resize(self) -> None:
        """Take N from the fields after a change of all of them.

        Raises:
            ValueError: the fields have different lengths.
        """
        counts = {name: self[name].shape[0] for name in self._specs}
        if len(set(counts.values())) != 1:
            raise ValueError(f"fields have different lengths: {counts}")
        self._count = next(iter(counts.values()))

    def extra_repr(self) -> str:
        """Names and row shapes."""
        return f"{len(self)}, " + ", ".join(f"{name}{list(spec.shape)}" for name, spec in self._specs.items())


def rows_of(gaussians: GaussianSet, index: Tensor) -> dict[str, Tensor]:
    """New rows for children of the Gaussians ``index`` [K]: each field's rows as its ``on_split`` says, [K, *shape]."""
    out: dict[str, Tensor] = {}
    for name in gaussians:
        values = gaussians[name].detach()[index]
        out[name] = torch.zeros_like(values) if gaussians.spec(name).on_split == "zero" else values
    return out
