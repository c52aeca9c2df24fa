"""Compile every CUDA kernel for every architecture, with warnings as errors; fail where one uses memory for registers.

    python tools/check_cuda.py [--architectures 75 80 90 120] [--sources FOLDER]

Needs nvcc, no GPU: ptxas tells what the kernels will use.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
# The oldest that nvcc 13 compiles for, and what comes after.
ARCHITECTURES = ("75", "80", "90", "120")
# CUB's own kernels are not ours to judge.
FOREIGN = ("sort.cu",)
# The longest first, so that no core is left with one at the end.
LONG = ("blend_forward.cu", "sort.cu", "blend_backward.cu")
FLAGS = ("-O3", "-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra", "-Xptxas", "-v")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel: registers of a thread, bytes of its stack, bytes that it spills and reloads."""

    name: str
    architecture: str
    registers: int
    stack: int
    spilled: int


def kernels(log: str) -> list[Kernel]:
    """The kernels of a log of ``-Xptxas -v``.

    Raises:
        ValueError: if the log has another form than expected, so that a spill could be overlooked.
    """
    found: list[Kernel] = []
    for part in log.split("Compiling entry function ")[1:]:
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        if frame is None or used is None:
            raise ValueError(f"ptxas says nothing about spills of {part.splitlines()[0]}")
        stack, stores, loads = map(int, frame.groups())
        names = part.split("'")
        found.append(Kernel(names[1], names[3], int(used[1]), stack, stores + loads))
    return found


def targets(architectures: Sequence[str]) -> list[str]:
    """Options for nvcc. One call for all architectures reads a file and compiles its host part once."""
    return [word for a in architectures for word in ("-gencode", f"arch=compute_{a},code=sm_{a}")]


def check(source: Path, architectures: Sequence[str], folder: Path) -> tuple[str, bool]:
    """Compile one file for all architectures; a line about it, and whether it is good."""
    name = f"{source.name} {' '.join(f'sm_{a}' for a in architectures)}"
    out = folder / f"{source.stem}.o"
    command = ["nvcc", *FLAGS, *targets(architectures), "-c", str(source), "-o", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    log = run.stdout + run.stderr
    if run.returncode != 0:
        complaints = [line for line in log.splitlines() if not line.startswith(("ptxas info", "    0 bytes"))]
        return "\n".join([f"{name}: does not compile", *complaints]), False
    found = kernels(log)
    spilled = [] if source.name in FOREIGN else [k for k in found if k.spilled or k.stack]
    if spilled:
        names = ", ".join(f"{k.name} for {k.architecture} ({k.stack} bytes of stack)" for k in spilled)
        return f"{name}: registers spill in {names}", False
    return f"{name}: {len(found)} kernels, at most {max((k.registers for k in found), default=0)} registers", True


def link(folder: Path, architectures: Sequence[str], header: Path) -> tuple[str, bool]:
    """Link what was compiled, and look for every entry point that the header declares."""
    library = folder / "panbench_cuda.so"
    objects = [str(path) for path in folder.glob("*.o")]
    command = ["nvcc", "-shared", "-cudart", "static", *targets(architectures), *objects, "-o", str(library)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        return f"the library does not link\n{run.stdout}{run.stderr}", False
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        return f"the library does not load: {error}", False
    names = re.findall(r"(pb_cuda_\w+)\(", header.read_text())
    missing = [name for name in names if not hasattr(loaded, name)]
    return f"{len(names)} entry points declared, missing: {', '.join(missing) or 'none'}", not missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="XY")
    parser.add_argument("--sources", type=Path, default=SOURCES, metavar="FOLDER")
    options = parser.parse_args()
    sources = sorted(options.sources.glob("*.cu"), key=lambda path: path.name not in LONG)
    if not sources:
        sys.stderr.write(f"no .cu files in {options.sources}\n")
        return 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda source: check(source, options.architectures, Path(folder)), sources))
        if all(good for _, good in results):
            results.append(link(Path(folder), options.architectures, options.sources / "api.h"))
    sys.stdout.writelines(f"{line}\n" for line, _ in results)
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main())
