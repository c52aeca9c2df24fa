"""Sweep files: what they may say, and that parameters follow the distributions that W&B documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from panbench.errors import UserError
from panbench.sweep.search import make_search
from panbench.sweep.spec import Parameter, load_sweep

DRAWS = 20_000


def _draws(parameter: Parameter) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    return np.array([parameter.at(float(u)) for u in rng.random(DRAWS)])


def _distribution(**keys: Any) -> Parameter:
    return Parameter.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "reference"),
    [
        ({"distribution": "uniform", "min": -1, "max": 3}, scipy.stats.uniform(-1, 4)),
        ({"min": 0.0, "max": 3}, scipy.stats.uniform(0, 3)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, scipy.stats.loguniform(1e-4, 1)),
        ({"distribution": "log_uniform", "min": -3, "max": 2}, scipy.stats.loguniform(math.exp(-3), math.exp(2))),
        ({"distribution": "normal", "mu": 2.0, "sigma": 0.5}, scipy.stats.norm(2, 0.5)),
        ({"distribution": "normal"}, scipy.stats.norm()),
        ({"distribution": "log_normal", "mu": 1.0, "sigma": 0.3}, scipy.stats.lognorm(0.3, scale=math.e)),
    ],
)
def test_continuous_draws_follow_their_law(keys: dict[str, Any], reference: Any) -> None:
    assert scipy.stats.kstest(_draws(_distribution(**keys)), reference.cdf).pvalue > 0.01


def test_one_over_an_inverse_log_uniform_value_is_log_uniform() -> None:
    draws = _draws(_distribution(distribution="inv_log_uniform_values", min=0.01, max=10))
    assert scipy.stats.kstest(1 / draws, scipy.stats.loguniform(0.1, 100).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("keys", "law"),
    [
        ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 2.5}, scipy.stats.uniform(0, 10)),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 8}, scipy.stats.loguniform(1, 64)),
        ({"distribution": "q_log_uniform", "min": 0, "max": 4, "q": 8}, scipy.stats.loguniform(1, math.exp(4))),
        ({"distribution": "q_normal", "mu": 5, "sigma": 3, "q": 2}, scipy.stats.norm(5, 3)),
        ({"distribution": "q_log_normal", "mu": 1, "sigma": 0.5, "q": 0.5}, scipy.stats.lognorm(0.5, scale=math.e)),
    ],
)
def test_quantized_draws_are_the_continuous_ones_rounded_to_q(keys: dict[str, Any], law: Any) -> None:
    draws = _draws(_distribution(**keys))
    q = keys["q"]
    assert np.array_equal(draws, np.round(draws / q) * q)
    for value, count in Counter(draws.tolist()).items():
        expected = law.cdf(value + q / 2) - law.cdf(value - q / 2)
        assert count / DRAWS == pytest.approx(expected, abs=0.015)


def test_integers_are_drawn_from_both_ends_and_all_between_alike() -> None:
    draws = _draws(_distribution(min=-1, max=2))
    assert draws.dtype.kind == "i"
    counts = Counter(draws.tolist())
    assert sorted(counts) == [-1, 0, 1, 2]
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 0.01


def test_lists_are_drawn_alike_or_with_their_probabilities() -> None:
    even = Counter(_draws(_distribution(values=["a", "b"])).tolist())
    assert even["a"] / DRAWS == pytest.approx(0.5, abs=0.015)
    odd = Counter(_draws(_distribution(values=["a", "b", "c"], probabilities=[0.7, 0.0, 0.3])).tolist())
    assert set(odd) == {"a", "c"}
    assert odd["a"] / DRAWS == pytest.approx(0.7, abs=0.015)


def test_a_constant_is_a_constant_whatever_it_is() -> None:
    for value in (None, 0, False, "x", [1, 2]):
        assert _distribution(value=value).at(0.3) == value


def _file(folder: Path, content: object) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


BASIC = {"method": "grid", "program": "panbench", "parameters": {"a": {"values": [1, 2]}}}


def test_a_grid_is_every_combination_once_the_last_parameter_fastest(tmp_path: Path) -> None:
    parameters = {
        "a": {"values": [1, 2]},
        "b": {"parameters": {"c": {"min": 5, "max": 6}, "d": {"value": "x"}}},
        "e": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5},
    }
    sweep = load_sweep(_file(tmp_path, {**BASIC, "parameters": parameters}))
    suggest = make_search(sweep, seed=0)
    points = [suggest(n, ()).values for n in range(12)]
    assert points == [{"a": a, "b": {"c": c, "d": "x"}, "e": e} for a in (1, 2) for c in (5, 6) for e in (0, 0.5, 1)]


def test_a_random_trial_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    file = {**BASIC, "method": "random", "parameters": {"a": {"min": 0.0, "max": 1.0}, "b": {"min": 0, "max": 9}}}
    sweep = load_sweep(_file(tmp_path, file))
    first = [make_search(sweep, seed=3)(n, ()) for n in (0, 1, 2)]
    assert [make_search(sweep, seed=3)(n, ()) for n in (2, 1, 0)] == first[::-1]
    assert first != [make_search(sweep, seed=4)(n, ()) for n in (0, 1, 2)]
    assert len({t.values["a"] for t in first}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "best"}, "method: Input should be 'grid', 'random' or 'bayes'"),
        ({"parameters": {}}, "parameters: there are none"),
        ({"metods": 1}, "metods: no such key; did you mean method?"),
        ({"parameters": {"a": {"vlues": [1]}}}, "parameters.a.vlues: no such key; did you mean values?"),
        ({"parameters": {"a": {}}}, "parameters.a: give value, values, min and max, or a distribution"),
        ({"parameters": {"a": {"min": 1.0}}}, "parameters.a: uniform needs max"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "parameters.a: min 2 is above max 1"),
        ({"parameters": {"a": {"values": []}}}, "parameters.a: values is empty"),
        (
            {"parameters": {"a": {"values": [1, 2], "probabilities": [0.5, 0.4]}}},
            "parameters.a: probabilities must not be negative and add up to 1",
        ),
        (
            {"parameters": {"a": {"values": [1, 2], "probabilities": [1.0]}}},
            "parameters.a: 2 values have 1 probabilities",
        ),
        (
            {"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "parameters.a: log_uniform_values needs a min above 0",
        ),
        (
            {"parameters": {"b": {"parameters": {"a": {"min": 0.0, "max": 1.0}}}}},
            "parameters.b.a: a grid cannot hold a uniform parameter; list its values, or choose method: random",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 3}},
            "early_terminate: a run has its scores only at its end, so there is nothing to stop it by; "
            "leave it out, or run the file with wandb agent",
        ),
        ({"method": "bayes"}, "metric: bayes needs one, such as {name: PQ, goal: maximize}"),
        ({"run_cap": 0}, "run_cap: Input should be greater than 0"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = _file(tmp_path, {**BASIC, **change})
    with pytest.raises(UserError) as caught:
        load_sweep(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n"])
def test_what_is_no_sweep_file_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"sweep\.yaml: is no"):
        load_sweep(_file(tmp_path, text))


def test_bayes_finds_a_peak_that_random_search_of_the_same_length_misses(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from panbench.sweep.search import Known

    file = {
        **BASIC,
        "metric": {"name": "PQ", "goal": "maximize"},
        "parameters": {
            "x": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
            "y": {"min": -5.0, "max": 5.0},
            "kind": {"values": ["good", "bad", "worse"]},
        },
    }

    def score(values: dict[str, Any]) -> float:
        penalty = {"good": 0.0, "bad": 3.0, "worse": 6.0}[values["kind"]]
        return -((math.log10(values["x"]) + 2) ** 2) - (values["y"] - 1) ** 2 - penalty

    def best(method: str, seed: int) -> float:
        suggest = make_search(load_sweep(_file(tmp_path, {**file, "method": method})), seed)
        known: list[Known] = []
        scores: list[float] = []
        for number in range(40):
            trial = suggest(number, known)
            scores.append(score(trial.values))
            known.append(Known(trial.point, scores[-1]))
        return max(scores)

    seeds = range(5)
    by_bayes, by_chance = (float(np.mean([best(method, seed) for seed in seeds])) for method in ("bayes", "random"))
    assert by_bayes > by_chance
    assert by_bayes > -0.3


def test_bayes_minimizes_where_it_is_told_to(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from panbench.sweep.search import Known

    def mean_late_choice(goal: str) -> float:
        file = {
            **BASIC,
            "method": "bayes",
            "metric": {"name": "m", "goal": goal},
            "parameters": {"x": {"min": 0.0, "max": 1.0}},
        }
        suggest = make_search(load_sweep(_file(tmp_path, file)), 0)
        known: list[Known] = []
        for number in range(30):
            trial = suggest(number, known)
            known.append(Known(trial.point, trial.values["x"]))
        return float(np.mean([k.score for k in known[-10:] if k.score is not None]))

    assert mean_late_choice("minimize") < 0.2
    assert mean_late_choice("maximize") > 0.8


def test_trials_that_still_run_push_the_next_one_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from panbench.sweep.search import Known

    file = {**BASIC, "method": "bayes", "metric": {"name": "m"}, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
    suggest: Callable[..., Any] = make_search(load_sweep(_file(tmp_path, file)), 0)
    done = [Known({"x": x}, (x - 0.5) ** 2) for x in np.linspace(0, 1, 21).tolist()]
    running = [Known({"x": x}, None) for x in np.linspace(0.45, 0.55, 20).tolist()]
    alone = [abs(suggest(n, done).values["x"] - 0.5) for n in range(10)]
    beside = [abs(suggest(n, [*done, *running]).values["x"] - 0.5) for n in range(10)]
    assert np.mean(beside) > np.mean(alone)
