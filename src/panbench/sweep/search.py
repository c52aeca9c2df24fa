"""Which values a trial gets. A suggestion depends on the seed, its number and earlier trials alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from panbench.errors import UserError
from panbench.sweep.spec import SweepFile

Values = dict[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """What a trial is run with.

    Attributes:
        values: by parameter; those of nested ones lie below their parent.
        point: what Bayesian search chose, by dotted name: u of a distribution, the index into a list; {} elsewhere.
    """

    values: Values
    point: dict[str, float]


@dataclass(frozen=True)
class Known:
    """An earlier trial, as Bayesian search sees it. ``score`` is None while it runs."""

    point: Mapping[str, float]
    score: float | None


Suggest = Callable[[int, Sequence[Known]], Suggestion]


def grid_size(sweep: SweepFile) -> int | None:
    """Number of points of a grid; None for the other methods, which have no end."""
    if sweep.method != "grid":
        return None
    return math.prod(len(parameter.points() or ()) for _, parameter in sweep.leaves())


def make_search(sweep: SweepFile, seed: int) -> Suggest:
    """The function that gives trial number n its values, by parameter (nested ones below their parent).

    Raises:
        UserError: if bayes is asked for and Optuna is not installed.
    """
    if sweep.method == "grid":
        return _grid(sweep)
    return _random(sweep, seed) if sweep.method == "random" else _bayes(sweep, seed)


def _grid(sweep: SweepFile) -> Suggest:
    paths = [path for path, _ in sweep.leaves()]
    grid = list(itertools.product(*(parameter.points() or () for _, parameter in sweep.leaves())))
    return lambda number, known: Suggestion(_nest(paths, grid[number]), {})


def _random(sweep: SweepFile, seed: int) -> Suggest:
    leaves = list(sweep.leaves())

    def suggest(number: int, known: Sequence[Known]) -> Suggestion:
        shares = np.random.default_rng((seed, number)).random(len(leaves))
        values = [parameter.at(float(u)) for (_, parameter), u in zip(leaves, shares, strict=True)]
        return Suggestion(_nest([path for path, _ in leaves], values), {})

    return suggest


def _bayes(sweep: SweepFile, seed: int) -> Suggest:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011). Trials that run count as bad, so that
    trials side by side are spread out. W&B's own server uses a Gaussian process instead.

    The study is made anew for every suggestion, from the trials there are: nothing has to survive a crash but those.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("method bayes needs Optuna: pip install 'panbench[optuna]'") from error
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert sweep.metric is not None
    direction = sweep.metric.goal
    leaves = [(".".join(path), path, parameter) for path, parameter in sweep.leaves()]
    space: dict[str, BaseDistribution] = {
        name: FloatDistribution(0.0, 1.0) if p.values is None else CategoricalDistribution(range(len(p.values)))
        for name, _, p in leaves
        if p.kind != "constant"
    }

    def suggest(number: int, known: Sequence[Known]) -> Suggestion:
        sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + number, constant_liar=True)
        study = optuna.create_study(direction=direction, sampler=sampler)
        for trial in known:
            state = TrialState.RUNNING if trial.score is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=trial.score, params=dict(trial.point), distributions=space))
        point: dict[str, float] = study.ask(space).params
        values = [
            p.value if p.kind == "constant" else p.at(point[name]) if p.values is None else p.values[int(point[name])]
            for name, _, p in leaves
        ]
        return Suggestion(_nest([path for _, path, _ in leaves], values), point)

    return suggest


def _nest(paths: Sequence[tuple[str, ...]], values: Sequence[Any]) -> Values:
    out: Values = {}
    for path, value in zip(paths, values, strict=True):
        below = out
        for name in path[:-1]:
            below = below.setdefault(name, {})
        below[path[-1]] = value
    return out
