"""What running cells costs beyond the cells themselves: ``panbench bench`` on many tiny ones.

Every cell is a program that hands in label maps of the tiny room and is scored, a few seconds of work. Overhead is the
time of the whole command over the sum of the cells' own times divided by the number of workers, less one.

python tools/bench_scheduling.py --cells 200 --workers 2 --engine local
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from panbench.data.rooms import make_room
from panbench.data.scannet_reader import open_scene
from panbench.methods.raw_masks import raw_masks

_PROGRAM = "import shutil, sys; shutil.copytree('template', sys.argv[1])"


def measure(folder: Path, cells: int, workers: int, engine: str) -> dict[str, float]:
    """Run the plan in ``folder``; seconds of the command, of its cells, and the overhead as a share.

    Raises:
        subprocess.CalledProcessError: if a cell failed.
    """
    room = make_room(folder / "rooms", size="tiny", masks=("clean",), progress=False)
    raw_masks(open_scene(room, masks="clean", cache_bytes=0), folder / "template")
    plan = {
        "name": "many",
        "methods": [{"name": "program", "command": ["{python}", "-c", _PROGRAM, "{out}"]}],
        "scenes": [{"name": "room", "truth": str(room)}],
        "seeds": list(range(cells)),
        "protocols": ["panoptic-strict@1"],
        "resources": {"cpus": 1},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "panbench", "bench", "many.yaml", "--engine", engine]
    if engine == "local":
        command += ["--workers", str(workers)]
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - started
    records = [json.loads(path.read_text()) for path in (folder / "bench" / "many" / "cells").glob("*.json")]
    work = sum(record["seconds"] for record in records)
    return {"cells": len(records), "wall": wall, "work": work, "overhead": wall * workers / work - 1}


def main() -> None:
    """Parse the command line, measure, and write one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="side by side; with ray: the cores of the cluster")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="panbench-scheduling-") as folder:
        found = measure(Path(folder), arguments.cells, arguments.workers, arguments.engine)
    sys.stdout.write(
        f"{arguments.engine}, {arguments.workers} side by side: {found['cells']:.0f} cells of "
        f"{found['work'] / found['cells']:.2f} s in {found['wall']:.1f} s, overhead {100 * found['overhead']:.1f} %\n"
    )


if __name__ == "__main__":
    main()
