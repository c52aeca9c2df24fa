"""``panbench doctor``: what is installed, which back end is used and why, what a run would lack."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from rich.table import Table

from panbench import __version__
from panbench.cli.console import stdout
from panbench.resources import asset

Line = tuple[str, bool, str]
"""What was looked at, whether it will do, and what was found (or what to do)."""

_PACKAGES = ("lightning", "jsonargparse", "torchmetrics", "numpy", "scipy", "pillow", "pydantic", "embreex", "wandb")


def main(argv: Sequence[str]) -> int:
    """Print the report; status 1 if something that every run needs is missing."""
    parser = argparse.ArgumentParser("panbench doctor", description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="also look into this data root")
    options = parser.parse_args(argv)
    healthy = True
    for title, lines in (
        ("versions", list(versions())),
        ("back ends", list(back_ends())),
        ("compilers", list(compilers())),
        ("folders", list(folders(options.data))),
    ):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        for name, good, found in lines:
            table.add_row("[green]ok[/]" if good else "[yellow]--[/]", name, found)
        stdout().print(table)
        healthy &= all(good for name, good, _ in lines if name in _NEEDED)
    return 0 if healthy else 1


_NEEDED = ("torch", "lightning", "reference", "cache", "disk")


def versions() -> Iterator[Line]:
    """Python, panbench, torch and what else a run imports."""
    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()} ({sys.executable})"
    yield "panbench", True, f"{__version__}, configs in {asset('configs')}"
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        yield "torch", False, f"{error}; install it: pip install 'torch>=2.10,<2.14'"
    else:
        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
        yield "torch", True, f"{torch.__version__}, {gpu}, {torch.get_num_threads()} CPU threads"
    for name in _PACKAGES:
        try:
            yield name, True, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, False, f"not installed: pip install {name}"


def back_ends() -> Iterator[Line]:
    """As :func:`panbench.ops.backend.describe` says, which compiles the kernels if that was not done yet."""
    from panbench.ops.backend import describe

    yield from describe()


def compilers() -> Iterator[Line]:
    """What builds the kernels."""
    for command, purpose in (("c++", "CPU kernels"), ("ninja", "builds"), ("nvcc", "CUDA kernels")):
        # ninja comes as a package: it need not be on PATH when the environment is not activated.
        path = shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent))
        if path is None:
            yield command, False, f"not found; needed for {purpose}"
            continue
        try:
            out = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            yield command, False, f"{path} does not run: {error}"
            continue
        lines = [line for line in out.splitlines() if line.strip()]
        release = next((line for line in lines if "release" in line), lines[0] if lines else "")
        yield command, True, f"{release.strip()} ({path})"


def folders(data_root: str | None) -> Iterator[Line]:
    """Cache folder, data root, disk space."""
    cache = Path(os.environ.get("PANBENCH_CACHE") or Path.home() / ".cache" / "panbench")
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    writable = os.access(existing, os.W_OK)
    remedy = "" if writable else " cannot be written; set PANBENCH_CACHE to another folder"
    yield "cache", writable, f"{cache}{remedy}"
    if data_root is None:
        yield "data root", True, "none given: fit uses a built-in SYNTHETIC room unless --data.root is set"
    else:
        root = Path(data_root)
        scenes = sorted(p.name for p in root.iterdir() if (p / "color").is_dir()) if root.is_dir() else []
        found = f"{len(scenes)} ScanNet scenes in {root}: {', '.join(scenes[:5])}" if scenes else f"no scenes in {root}"
        yield "data root", bool(scenes), found
    free = shutil.disk_usage(Path.cwd()).free
    yield "disk", free > 2 * 2**30, f"{free / 2**30:.0f} GiB free here; a run takes up to 1 GiB"
