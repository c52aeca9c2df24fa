"""Every shipped config parses and trains, and every class file states all of its values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from panbench.bench.plan import cells, load_plan
from panbench.cli.config_errors import class_arguments
from panbench.cli.train import PanbenchCLI
from panbench.resources import asset

CONFIGS = asset("configs")
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *(CONFIGS / "published").glob("*.yaml")])
BASES, HEADS, DATA, PLANS = (sorted((CONFIGS / folder).glob("*.yaml")) for folder in ("base", "head", "data", "bench"))
RECIPE = CONFIGS / "ligs_scannet.yaml"
PARTS = [*BASES, *HEADS, *DATA]
STEPS = 3


class _Parsed(PanbenchCLI):
    """Stops after parsing."""

    def instantiate_classes(self) -> None:
        pass


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_recipe_parses(path: Path) -> None:
    config = _Parsed(["--config", str(path)]).config
    assert config.trainer.max_steps > 0
    assert config.run.method
    assert config.trainer.check_val_every_n_epoch is None
    assert config.trainer.num_sanity_val_steps == 0


@pytest.mark.parametrize("path", PARTS, ids=_name)
def test_a_part_states_every_value(path: Path) -> None:
    # A value that a file leaves out would be inherited from whatever class stood there before.
    part = yaml.safe_load(path.read_text())
    stated = set(part.get("init_args") or {})
    assert stated == set(class_arguments(part["class_path"]))


@pytest.mark.parametrize("head", HEADS, ids=_name)
@pytest.mark.parametrize("base", BASES, ids=_name)
def test_any_base_takes_any_head(base: Path, head: Path) -> None:
    config = _Parsed(["--config", str(RECIPE), "--model", str(base), "--model.head", str(head)]).config
    assert (
        config.model.init_args.head.class_path.rpartition(".")[2]
        == (yaml.safe_load(head.read_text())["class_path"].rpartition(".")[2])
    )


@pytest.mark.parametrize("path", PLANS, ids=_name)
def test_what_a_plan_sets_exists(path: Path) -> None:
    plan = load_plan(path)
    first = plan.scenes[0].name, plan.seeds[0]  # other scenes and seeds change values, not keys
    for cell in cells(plan, path):
        if (cell.scene.name, cell.seed) == first and cell.options:
            assert _Parsed(cell.options).config.run.method == cell.method.name


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_recipe_trains(path: Path, tmp_path: Path) -> None:
    _trains(["--config", str(path)], tmp_path)


@pytest.mark.parametrize("base", BASES, ids=_name)
def test_a_base_trains(base: Path, tmp_path: Path) -> None:
    _trains(["--config", str(RECIPE), "--model", str(base)], tmp_path)


@pytest.mark.parametrize("head", HEADS, ids=_name)
def test_a_head_trains(head: Path, tmp_path: Path) -> None:
    _trains(["--config", str(RECIPE), "--model.head", str(head)], tmp_path)


def _trains(options: Sequence[str], folder: Path) -> None:
    """A few steps on small pictures of the tiny room; what would set in at a later step sets in at once."""
    model = _Parsed(options).config.model.init_args
    late = [f"--model.{key}=0" for key in vars(model) if key.endswith("_start")]
    small = ["--data.room_size=tiny", "--data.image_size=[64,48]", f"--trainer.max_steps={STEPS}"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--run.root={folder}"]
    cli = PanbenchCLI([*options, *late, *small, *quiet])
    cli.run_dir.create()
    first = _Watch()
    callbacks: list[L.Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(first)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert cli.trainer.global_step == STEPS
    after = cli.model.state_dict()
    moved = {name for name, value in first.parameters.items() if not torch.equal(value, after[name])}
    assert {"gaussians.means", "gaussians.features_dc"} <= moved
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())


class _Watch(L.Callback):
    """Keeps the parameters that training starts from."""

    def __init__(self) -> None:
        self.parameters: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.parameters = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
