from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from panbench.bench.plan import Cell, Plan, cells, find_plan, load_plan
from panbench.errors import UserError
from panbench.resources import asset

MINIMAL = "name: p\nconfig: main.yaml\nmethods: [{name: a}]\nscenes: [{name: room}]\nseeds: [0]\n"


def write(folder: Path, text: str) -> Path:
    """A plan beside a configuration of two files."""
    (folder / "main.yaml").write_text("model: base.yaml\nseed_everything: 0\n")
    (folder / "base.yaml").write_text("voxel: 0.04 # metres\n")
    (folder / "plan.yaml").write_text(text)
    return folder / "plan.yaml"


def plan_cells(folder: Path, text: str) -> list[Cell]:
    path = write(folder, text)
    return cells(load_plan(path), path)


def test_a_plan_is_every_method_on_every_scene_with_every_seed(tmp_path: Path) -> None:
    text = (
        "name: p\nconfig: main.yaml\nmethods: [{name: a}, {name: b}, {name: later, unavailable: not built}]\n"
        "scenes: [{name: x}, {name: y}]\nseeds: [0, 5]\n"
    )
    names = [cell.name for cell in plan_cells(tmp_path, text)]
    assert names == ["a/x/s0", "a/x/s5", "b/x/s0", "b/x/s5", "a/y/s0", "a/y/s5", "b/y/s0", "b/y/s5"]


def test_bases_are_crossed_with_heads(tmp_path: Path) -> None:
    text = (
        "name: p\nconfig: main.yaml\nbases: {p: base.yaml, q: base.yaml}\nheads: {h: base.yaml}\n"
        "scenes: [{name: x}]\nseeds: [0]\n"
    )
    found = plan_cells(tmp_path, text)
    assert [cell.name for cell in found] == ["p-h/x/s0", "q-h/x/s0"]
    options = found[0].options
    assert options[options.index("--model") + 1] == str(tmp_path / "base.yaml")
    assert options.index("--model") < options.index("--model.head")


def test_the_nearest_setting_decides(tmp_path: Path) -> None:
    text = (
        "name: p\nconfig: main.yaml\nset: {k.plan: 1, k.method: 1, k.scene: 1, k.point: 1}\n"
        "methods: [{name: a, set: {k.method: 2, k.scene: 2, k.point: 2}}]\n"
        "scenes: [{name: x, set: {k.scene: 3, k.point: 3}}]\n"
        "study: {axis: noise, points: [{x: 0.5, set: {k.point: 4}}]}\nseeds: [0]\n"
    )
    (cell,) = plan_cells(tmp_path, text)
    assert cell.name == "a/0.5/x/s0"
    assert {f"--k.{key}={i + 1}" for i, key in enumerate(("plan", "method", "scene", "point"))} <= set(cell.options)


def test_values_reach_the_command_line_as_yaml_meant_them(tmp_path: Path) -> None:
    text = MINIMAL + "set: {a: null, b: true, c: 1.0e-3, d: [1, 2], e: text, f: {g: 1}}\n"
    (cell,) = plan_cells(tmp_path, text)
    given = {option.partition("=")[0][2:]: option.partition("=")[2] for option in cell.options if "=" in option}
    shown = {key: yaml.safe_load(given[key]) for key in "abcdef"}
    assert shown == {"a": None, "b": True, "c": 0.001, "d": [1, 2], "e": "text", "f": {"g": 1}}


def key_of(folder: Path, text: str = MINIMAL) -> str:
    (cell,) = plan_cells(folder, text)
    return cell.key


def test_a_cell_changes_with_what_decides_its_result_and_with_nothing_else(tmp_path: Path) -> None:
    original = key_of(tmp_path)
    for same in (
        MINIMAL + "title: Something\ndescription: else\n",
        MINIMAL + "set: {data.root: /elsewhere, trainer.accelerator: gpu}\n",
        MINIMAL + "resources: {cpus: 3}\n",
    ):
        assert key_of(tmp_path, same) == original
    for other in (
        MINIMAL + "set: {model.voxel: 0.05}\n",
        MINIMAL.replace("[0]", "[1]"),
        MINIMAL + "protocols: [panoptic-strict@1]\n",
    ):
        assert key_of(tmp_path, other).rpartition("-")[2] != original.rpartition("-")[2]


def test_a_change_in_a_file_that_the_configuration_names_makes_another_cell(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    before = cells(load_plan(path), path)[0].key
    (tmp_path / "base.yaml").write_text("voxel: 0.04\n")
    assert cells(load_plan(path), path)[0].key == before, "a comment decides nothing"
    (tmp_path / "base.yaml").write_text("voxel: 0.05\n")
    assert cells(load_plan(path), path)[0].key != before


def test_a_program_gets_the_scene_and_the_seed(tmp_path: Path) -> None:
    text = (
        "name: p\nmethods:\n"
        '  - {name: theirs, command: [run, "{scene}", "--seed={seed}", "{out}"]}\n'
        '  - {name: sent, predictions: "sent/{scene}/{seed}"}\n'
        "scenes: [{name: x, truth: rooms/x}, {name: y, set: {data.root: /scans, data.scene: y_00}}]\nseeds: [4]\n"
    )
    theirs, sent, on_y, _ = plan_cells(tmp_path, text)
    assert theirs.program == ("run", "x", "--seed=4", "{out}")
    assert theirs.data == tmp_path / "rooms" / "x"
    assert sent.predictions == tmp_path / "sent" / "x" / "4"
    assert on_y.data == Path("/scans/y_00")


def test_keys_are_safe_as_file_names(tmp_path: Path) -> None:
    text = "name: p\nconfig: main.yaml\nmethods: [{name: 'Gaussian Grouping (own masks)/v2'}]\nscenes: [{name: ../x}]\n"
    for cell in plan_cells(tmp_path, text):
        assert not set(cell.key) & set("/ ()")
        assert not cell.key.startswith(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("just text", "is not a plan"),
        (MINIMAL + "sedes: [1]\n", r"sedes: no such key; did you mean seeds\?"),
        (MINIMAL.replace("{name: a}", "{name: a, confg: x}"), r"methods\.0\.confg: no such key; did you mean config\?"),
        (MINIMAL.replace("{name: room}", "{set: {}}"), r"scenes\.0\.name: is missing"),
        (MINIMAL.replace("name: p", "name: a/b"), "name: String should match pattern"),
        (MINIMAL.replace("[{name: a}]", "[]"), "give methods, or bases and heads"),
        (MINIMAL + "bases: {a: base.yaml}\n", "bases and heads are crossed"),
        (MINIMAL.replace("[{name: a}]", "[{name: a}, {name: a}]"), "method a stands there twice"),
        (MINIMAL.replace("seeds: [0]", "seeds: [0, 0]"), "seed 0 stands there twice"),
        (MINIMAL.replace("{name: a}", "{name: a, command: [x]}"), "command must say with {out}"),
        (
            MINIMAL.replace("{name: a}", "{name: a, config: main.yaml, unavailable: x}"),
            "only one of config, unavailable",
        ),
        (MINIMAL.replace("main.yaml", "mian.yaml"), "there is no config file mian.yaml"),
        (MINIMAL.replace("config: main.yaml\n", ""), "method a has no config"),
        (MINIMAL + "protocols: [panoptic-strct@1]\n", "did you mean panoptic-strict@1"),
        (MINIMAL.replace("{name: a}", "{name: a, predictions: p}"), "scene room: give truth"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_cells(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"no plan nothing\.yaml; shipped with panbench: .*configs/bench/quick\.yaml"):
        find_plan("nothing.yaml")


@pytest.mark.parametrize("path", sorted((asset("configs") / "bench").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_plan_comes_to_cells(path: Path) -> None:
    plan = load_plan(path)
    assert plan.name.replace("-", "_") == path.stem
    assert plan.title
    assert len(plan.seeds) >= 3, "a mean without spread says nothing"
    found = cells(plan, path)
    assert len({cell.key for cell in found}) == len(found) > 0
    assert isinstance(plan, Plan)
