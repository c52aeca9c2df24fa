"""What ran the benchmark: processor, versions, ceilings, and who else was using it."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panbench.ops.build import compiler
from panbench.resources import asset
from peers import native


def _processor() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core."""
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    return cpu


def instruction_sets() -> list[str]:
    """Those of this processor that matter here."""
    flags = _processor().get("flags", "").split()
    return [name for name in ("avx2", "fma", "avx512f", "avx512_bf16") if name in flags]


def facts() -> dict[str, Any]:
    """Processor, memory, versions and commit."""
    cpu = _processor()
    return {
        "processor": cpu.get("model name", platform.processor()),
        "family_model": f"{cpu.get('cpu family', '?')}/{cpu.get('model', '?')}",
        "cores": os.cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": compiler()[1],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def _commit() -> str:
    """Commit of the sources, with a + where a tracked file outside of docs differs from it."""
    folder = asset("csrc")
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)docs"], cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+" if changed.returncode else "")


@dataclass
class Clock:
    """Wall time, time of this process's threads, and how many cores others used meanwhile (−1: unknown).

    ``/proc/stat`` counts hundredths of a second, so ``others`` means little over less than a fifth of a second.
    """

    wall: float = 0.0
    cpu: float = 0.0
    others: float = 0.0

    def __enter__(self) -> Clock:
        busy = _busy()
        self._start = (time.perf_counter(), time.process_time(), busy)
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu, busy = self._start
        self.wall = time.perf_counter() - wall
        self.cpu = time.process_time() - cpu
        now = _busy()
        self.others = -1.0 if now is None or busy is None else max(0.0, (now - busy - self.cpu) / self.wall)


def _busy() -> float | None:
    """Seconds that all processors together have not been idle, including time the host took away."""
    try:
        values = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, values)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


class Ceilings:
    """Measured peaks of this machine."""

    def __init__(self) -> None:
        self._library = native.load("peaks")
        self._library.peak_fma.restype = self._library.peak_copy.restype = ctypes.c_double

    def fma(self, width: int, threads: int, seconds: float = 0.05) -> float:
        """FLOP/s of fused multiply-adds in registers of ``width`` bytes (64: AVX-512, 32: AVX2)."""
        return self._library.peak_fma(width, threads, ctypes.c_double(seconds))

    def copy(self, threads: int, seconds: float = 0.05) -> float:
        """Bytes per second, read plus written, of copies that no cache holds."""
        return self._library.peak_copy(threads, ctypes.c_double(seconds))


def peak_memory_reset() -> int:
    """Start counting this process's peak memory anew; returns what it holds now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Most memory that this process held since the last reset, bytes."""
    return _status("VmHWM")


def available_memory() -> int:
    """Bytes that can still be had."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _status(name: str) -> int:
    return _field(Path("/proc/self/status"), name)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")
