"""An installed wheel is enough: no checkout, no files of it, kernels and configs included."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    return next(out.glob("panbench-*.whl"))


def test_the_wheel_carries_kernels_configs_baselines_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("csrc", "configs", "baselines"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
        assert files
        for path in files:
            assert f"panbench/_assets/{path.relative_to(ROOT)}" in names
    assert "panbench/py.typed" in names
    for path in (ROOT / "src/panbench/data/label_spaces").iterdir():
        assert f"panbench/data/label_spaces/{path.name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "docs/", "tools/")) for name in names)


def test_an_installed_wheel_fits_the_tiny_room_far_from_any_checkout(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    # The dependencies are those of this environment: a .pth file adds their folder but, unlike a site folder, not the
    # .pth files in it, so an editable panbench there stays out of sight.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "elsewhere"
    work.mkdir()
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PANBENCH_BACKEND")}
    clean |= {"PANBENCH_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}

    where = subprocess.run(
        [python, "-c", "import panbench; print(panbench.__file__)"], cwd=work, env=clean, capture_output=True, text=True
    )
    assert Path(where.stdout.strip()).is_relative_to(home), where

    options = ["--data.room_size=tiny", "--trainer.max_steps=30"]
    command = [home / "bin" / "panbench", "fit", "--config", "configs/ligs_scannet.yaml", *options]
    fit = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
    assert fit.returncode == 0, fit.stderr
    assert "SYNTHETIC" in fit.stderr
    assert "voxel-vote" in fit.stdout
    assert list(work.glob("runs/scannet/*/ligs-query/*/pictures/contact_sheet.png"))
