"""Every shipped config parses, and every class file states all of its values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from panbench.cli.config_errors import class_arguments
from panbench.cli.train import PanbenchCLI
from panbench.resources import asset

CONFIGS = asset("configs")
RECIPES = sorted(CONFIGS.glob("*.yaml"))
PARTS = sorted(p for folder in ("base", "head", "data") for p in (CONFIGS / folder).glob("*.yaml"))


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


@pytest.mark.parametrize("head", sorted((CONFIGS / "head").glob("*.yaml")), ids=_name)
@pytest.mark.parametrize("base", sorted((CONFIGS / "base").glob("*.yaml")), ids=_name)
def test_any_base_takes_any_head(base: Path, head: Path) -> None:
    config = _Parsed(["--config", str(RECIPES[0]), "--model", str(base), "--model.head", str(head)]).config
    assert (
        config.model.init_args.head.class_path.rpartition(".")[2]
        == (yaml.safe_load(head.read_text())["class_path"].rpartition(".")[2])
    )
