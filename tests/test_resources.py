"""Assets are found in a checkout and under their shipped names from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from panbench.errors import UserError
from panbench.resources import asset, find_config


@pytest.mark.parametrize("name", ["csrc", "configs", "baselines"])
def test_a_checkout_has_its_assets(name: str) -> None:
    assert asset(name).is_dir()  # type: ignore[arg-type]


def test_a_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/ligs_scannet.yaml") == asset("configs") / "ligs_scannet.yaml"
    assert find_config("ligs_scannet.yaml").is_file()
    assert find_config("configs/head/query.yaml").is_file()


def test_a_file_here_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ligs_scannet.yaml").write_text("")
    assert find_config("ligs_scannet.yaml") == Path("ligs_scannet.yaml")


def test_a_missing_config_is_one_line_with_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"there is no config file x\.yaml; shipped .*3dgs_scannet"):
        find_config("x.yaml")
    with pytest.raises(UserError, match=r"there is no config file /none/x\.yaml"):
        find_config("/none/x.yaml")
