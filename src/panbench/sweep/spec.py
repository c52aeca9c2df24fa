"""Sweep files in W&B's format: what they may say, and the values that their parameters take.

Every numeric distribution is known by its inverse cumulative function, which maps u in (0, 1) to a value. Random search
draws u; Bayesian search looks for the best u, so that a logarithmic or normal parameter is searched on its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from panbench.authored import read_mapping, validated

Method = Literal["grid", "random", "bayes"]
Distribution = Literal[
    "constant",
    "categorical",
    "categorical_w_probabilities",
    "int_uniform",
    "uniform",
    "q_uniform",
    "log_uniform",
    "q_log_uniform",
    "log_uniform_values",
    "q_log_uniform_values",
    "inv_log_uniform_values",
    "normal",
    "q_normal",
    "log_normal",
    "q_log_normal",
]

# What a distribution must be given; mu, sigma and q have default values.
_NEEDS: dict[Distribution, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    **dict.fromkeys(("int_uniform", "uniform", "q_uniform"), ("min", "max")),
    **dict.fromkeys(("log_uniform", "q_log_uniform", "log_uniform_values", "q_log_uniform_values"), ("min", "max")),
    "inv_log_uniform_values": ("min", "max"),
    **dict.fromkeys(("normal", "q_normal", "log_normal", "q_log_normal"), ()),
}
_U_MARGIN = 1e-12  # a normal has no value at 0 and 1


class Parameter(BaseModel):
    """One parameter: a value, a list of values, a distribution, or further ``parameters`` below it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Any = None
    values: list[Any] | None = None
    probabilities: list[float] | None = None
    min: int | float | None = None
    max: int | float | None = None
    mu: float = 0.0
    sigma: float = Field(default=1.0, gt=0)
    q: int | float = Field(default=1, gt=0)
    distribution: Distribution | None = None
    parameters: dict[str, Parameter] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = self.model_fields_set
        if self.parameters is not None:
            if given != {"parameters"}:
                raise ValueError("nested parameters stand alone")
            return self
        missing = [key for key in _NEEDS[self.kind] if key not in given]
        if missing:
            raise ValueError(f"{self.kind} needs {' and '.join(missing)}")
        if self.values is not None and not self.values:
            raise ValueError("values is empty")
        if self.probabilities is not None and self.values is not None:
            if len(self.probabilities) != len(self.values):
                raise ValueError(f"{len(self.values)} values have {len(self.probabilities)} probabilities")
            if min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-6:
                raise ValueError("probabilities must not be negative and add up to 1")
        if self.min is not None and self.max is not None:
            if self.min > self.max:
                raise ValueError(f"min {self.min} is above max {self.max}")
            if self.kind == "int_uniform" and not (isinstance(self.min, int) and isinstance(self.max, int)):
                raise ValueError("int_uniform needs whole numbers")
            if self.kind.endswith("_values") and self.min <= 0:
                raise ValueError(f"{self.kind} needs a min above 0")
        return self

    @property
    def kind(self) -> Distribution:
        """The distribution; where none is named, what the other keys imply."""
        if self.distribution is not None:
            return self.distribution
        given = self.model_fields_set
        if "value" in given:
            return "constant"
        if "values" in given:
            return "categorical_w_probabilities" if "probabilities" in given else "categorical"
        if {"min", "max"} & given:
            whole = isinstance(self.min, int) and isinstance(self.max, int)
            return "int_uniform" if whole else "uniform"
        raise ValueError("give value, values, min and max, or a distribution")

    def points(self) -> list[Any] | None:
        """All values, for a grid; None for a continuous parameter."""
        if self.kind == "constant":
            return [self.value]
        if self.values is not None:
            return self.values
        if self.kind == "int_uniform":
            low, high = self._range()
            return list(range(int(low), int(high) + 1))
        if self.kind == "q_uniform":
            low, high = (round(bound / self.q) for bound in self._range())
            return [self._quantized(k * self.q) for k in range(low, high + 1)]
        return None

    def at(self, u: float) -> Any:
        """The value below which a share ``u`` of all draws lies (of a list: in the order of the list)."""
        u = min(max(u, _U_MARGIN), 1 - _U_MARGIN)
        if self.kind == "constant":
            return self.value
        if self.values is not None:
            shares = self.probabilities or [1 / len(self.values)] * len(self.values)
            total = 0.0
            for value, share in zip(self.values, shares, strict=True):
                total += share
                if u < total:
                    return value
            return self.values[-1]
        if self.kind == "int_uniform":
            low, high = self._range()
            return int(low) + min(int(u * (high - low + 1)), int(high - low))
        x = self._continuous(u)
        return self._quantized(x) if self.kind.startswith("q_") else x

    def _continuous(self, u: float) -> float:
        kind = self.kind.removeprefix("q_")
        if kind in ("normal", "log_normal"):
            x = NormalDist(self.mu, self.sigma).inv_cdf(u)
            return x if kind == "normal" else math.exp(x)
        low, high = self._range()
        if kind == "uniform":
            return low + u * (high - low)
        if kind == "log_uniform":  # bounds are exponents
            return math.exp(low + u * (high - low))
        # log_uniform_values; inv_log_uniform_values too: if the logarithm of 1/x is uniform, that of x is.
        return min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high)

    def _range(self) -> tuple[float, float]:
        assert self.min is not None
        assert self.max is not None
        return self.min, self.max

    def _quantized(self, x: float) -> int | float:
        k = round(x / self.q)
        return k * self.q if isinstance(self.q, int) else float(f"{k * self.q:.12g}")


class Metric(BaseModel):
    """What a sweep is judged by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None

    def better(self, a: float, b: float) -> bool:
        """True if ``a`` is better than ``b``."""
        return a > b if self.goal == "maximize" else a < b

    def reached(self, value: float) -> bool:
        """True if ``value`` is as good as the target, or better."""
        return self.target is not None and not self.better(self.target, value)


class SweepFile(BaseModel):
    """A sweep file. Keys that only a server needs (project, entity, …) are read and left alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    parameters: dict[str, Parameter]
    metric: Metric | None = None
    command: list[str] = ["${env}", "${interpreter}", "${program}", "${args}"]
    program: str = ""
    run_cap: int | None = Field(default=None, gt=0)
    early_terminate: dict[str, Any] | None = None
    name: str = ""
    description: str = ""
    project: str = ""
    entity: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.parameters:
            raise ValueError("parameters: there are none")
        if self.early_terminate is not None:
            raise ValueError(
                "early_terminate: a run has its scores only at its end, so there is nothing to stop it by; "
                "leave it out, or run the file with wandb agent"
            )
        if self.method == "bayes" and self.metric is None:
            raise ValueError("metric: bayes needs one, such as {name: PQ, goal: maximize}")
        if self.method == "grid":
            for path, parameter in self.leaves():
                if parameter.points() is None:
                    raise ValueError(
                        f"parameters.{'.'.join(path)}: a grid cannot hold a {parameter.kind} parameter; "
                        "list its values, or choose method: random"
                    )
        return self

    def leaves(self) -> Iterator[tuple[tuple[str, ...], Parameter]]:
        """Every parameter that has values, with its path; nested ones have paths longer than one."""
        yield from _leaves(self.parameters, ())


def _leaves(parameters: Mapping[str, Parameter], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Parameter]]:
    for name, parameter in parameters.items():
        if parameter.parameters is None:
            yield (*above, name), parameter
        else:
            yield from _leaves(parameter.parameters, (*above, name))


def load_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        UserError: if it is missing, no YAML, or says what a sweep file cannot say.
    """
    what = "a sweep file; one begins with method: grid, random or bayes"
    return validated(SweepFile, read_mapping(path, what), path)
