"""The README tells the truth: its commands exist, its paths exist, its head runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from panbench.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_it_opens_with_the_two_commands() -> None:
    commands = [line.partition("#")[0].strip() for line in _blocks("bash")[0].splitlines()]
    assert commands == ["make demo", "make test"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_every_verb_and_config_that_it_names_exists() -> None:
    verbs = set(re.findall(r"panbench ([a-z]+)(?= )", README))
    assert verbs <= set(VERBS)
    for config in set(re.findall(r"configs/[\w/]+\.yaml", README)):
        assert (ROOT / config).is_file(), config


def test_every_linked_page_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_its_head_trains_is_scored_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "my_head.py").write_text(_blocks("python")[0])
    command = next(line for block in _blocks("bash") for line in block.splitlines() if "my_head.SoftmaxHead" in line)
    words = shlex.split(command.removeprefix("PYTHONPATH=. panbench "))
    paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, "-m", "panbench.cli.main", *words, "--data.room_size=tiny", "--trainer.max_steps=20"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths, "PANBENCH_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "my-idea" in done.stdout
    assert list(tmp_path.glob("runs/scannet/*/my-idea/*/pictures/contact_sheet.png"))
