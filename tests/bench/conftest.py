"""A program that needs no training: it hands in label maps that were made before, and notes that it ran."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from panbench.data.rooms import make_room
from panbench.data.scannet_reader import open_scene
from panbench.methods.raw_masks import raw_masks

PROGRAM = """\
import os, pathlib, shutil, sys, time
scene, seed, out = sys.argv[1:]
with open("ran", "a") as stream:
    stream.write(f"{scene}/{seed}\\n")
shutil.copytree("template", out, dirs_exist_ok=True)
pathlib.Path(out, "ballast").write_bytes(b"x" * int(os.environ.get("BALLAST", "0")))
time.sleep(float(os.environ.get("PROGRAM_SECONDS", "0")))
"""
PLAN = """\
name: p
methods: [{name: program, command: ["{python}", program.py, "{scene}", "{seed}", "{out}"]}]
scenes: [{name: room, truth: room}]
seeds: [0, 1, 2]
protocols: [panoptic-strict@1]
"""


@pytest.fixture(scope="session")
def handed_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``room``, a scene, and ``template``, predictions of it."""
    folder = tmp_path_factory.mktemp("handed_in")
    room = make_room(folder / "rooms", size="tiny", masks=("clean",), progress=False)
    (folder / "room").symlink_to(room)
    raw_masks(open_scene(room, masks="clean", cache_bytes=0), folder / "template")
    return folder


@pytest.fixture
def place(tmp_path: Path, handed_in: Path) -> Path:
    """A working folder with plan.yaml for three cells of the program."""
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "program.py").write_text(PROGRAM)
    for name in ("room", "template"):
        (tmp_path / name).symlink_to(handed_in / name)
    return tmp_path


@pytest.fixture
def start(place: Path) -> Callable[..., subprocess.Popen[str]]:
    """``start(*options, **environment)``: ``panbench bench plan.yaml`` as a process of its own."""

    def run(*options: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "panbench", "bench", "plan.yaml", *options],
            cwd=place,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run
