"""The studies among the shipped plans: every setting of every point exists, and points differ as their axis says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from panbench.cli.train import PanbenchCLI
from panbench.resources import asset

FOLDER = asset("configs") / "bench"
STUDIES = sorted(FOLDER.glob("study_*.yaml"))
# Training frames of a small built-in room: 58 of 60 have a pose, every fifth of them is test.
TRAINING_FRAMES = 46


class _Parsed(PanbenchCLI):
    """Stops after parsing."""

    def instantiate_classes(self) -> None:
        pass


def _plan(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _options(plan: dict[str, Any]) -> Iterator[list[str]]:
    """The options that name a method: each of the list, and each base with each head."""
    for method in plan.get("methods", []):
        yield ["--config", str(FOLDER / method.get("config", plan["config"]))]
    for base in plan.get("bases", {}).values():
        for head in plan["heads"].values():
            recipe = ["--config", str(FOLDER / plan["config"])]
            yield [*recipe, "--model", str(FOLDER / base), "--model.head", str(FOLDER / head)]


def _set(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


def test_there_are_the_studies_that_need_a_truth() -> None:
    names = {path.stem for path in STUDIES}
    assert names == {f"study_{what}" for what in ("mask_noise", "views", "depth_noise", "queries", "gaussians")}
    assert {_plan(path)["name"] for path in STUDIES} == names


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_point_of_a_study_parses_with_every_method(path: Path) -> None:
    plan = _plan(path)
    methods = list(_options(plan))
    assert len(methods) == 2
    for options in methods:
        for point in plan["study"]["points"]:
            config = _Parsed([*options, *_set(plan["scenes"][0]["set"]), *_set(point["set"])]).config
            for key, value in point["set"].items():
                at = config
                group, *inner = key.split(".")
                for part in (group, *(p for name in inner for p in ("init_args", name))):
                    at = at[part]
                assert at == value, key


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_has_enough_seeds_for_a_spread_and_more_than_one_scene(path: Path) -> None:
    plan = _plan(path)
    assert len(set(plan["seeds"])) >= 3
    assert len({str(scene["set"]) for scene in plan["scenes"]}) >= 2
    xs = [point["x"] for point in plan["study"]["points"]]
    assert len(set(xs)) == len(xs) >= 4
    if all(isinstance(x, int | float) for x in xs):
        assert xs == sorted(xs)


def test_numbers_on_the_axis_are_those_that_are_set() -> None:
    key = {"views": "data.views", "depth_noise": "data.depth_noise", "queries": "model.head.max_queries"}
    for name, setting in (key | {"gaussians": "model.max_points"}).items():
        for point in _plan(FOLDER / f"study_{name}.yaml")["study"]["points"]:
            assert point["x"] == point["set"][setting]


def test_queries_fall_silent_after_about_as_many_steps_whatever_the_number_of_views() -> None:
    points = _plan(FOLDER / "study_views.yaml")["study"]["points"]
    steps = [point["set"]["data.views"] * point["set"]["model.head.prune_after"] for point in points]
    assert steps == [5 * TRAINING_FRAMES] * len(points)


def test_the_docs_list_every_study_with_what_it_sets() -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `study_")}
    assert set(rows) == {path.name for path in STUDIES}
    for path in STUDIES:
        plan = _plan(path)
        assert f"`{next(iter(plan['study']['points'][0]['set']))}`" in rows[path.name]
