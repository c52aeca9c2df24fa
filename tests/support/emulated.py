"""The CUDA kernels on the CPU: the same sources, compiled with the emulator of ``csrc/emulator``."""

from __future__ import annotations

import ctypes
import functools
import itertools
from contextlib import nullcontext
from pathlib import Path

from panbench.ops import build
from panbench.ops.cuda import Library, Operators
from panbench.resources import asset

FORWARD, REVERSE, SHUFFLED = range(3)
ORDERS = {"forward": FORWARD, "reverse": REVERSE, "shuffled": SHUFFLED}


@functools.cache
def library(sanitize: bool = False) -> Path:
    """The emulated library, compiled once and kept with the other compiled operators."""
    csrc = asset("csrc")
    cxx, version = build.compiler()
    flags = "-O1 -g -fsanitize=address" if sanitize else "-O1"
    sources = sorted([*(csrc / "cuda").glob("*.cu"), csrc / "emulator" / "emu.cpp"])
    return build.make(
        build.Recipe(
            title="emulated CUDA operators",
            library="panbench_emulated.so",
            compiler=version,
            sources=(*csrc.glob("*.h"), *(csrc / "cuda").glob("*.*"), *(csrc / "emulator").glob("*.*")),
            compile=f"{cxx} -x c++ -std=c++17 {flags} -fPIC -DPB_EMULATE -Wall -Wextra -Wno-unknown-pragmas",
            link=f"{cxx} -shared {flags}",
            objects=tuple((f"{path.stem}.o", path, "") for path in sources),
        )
    )


def operators(path: Path | None = None) -> Operators:
    """The operators over emulated kernels; they take CPU tensors."""
    return Operators(Library(path or library(), asset("csrc") / "cuda" / "api.h", lambda _: nullcontext(0)))


class Emulator:
    """Order of the fibers, barriers, and shared memory of an emulated library."""

    def __init__(self, path: Path | None = None) -> None:
        self._library = ctypes.CDLL(str(path or library()))
        self._library.pb_emu_configure.argtypes = [ctypes.c_int, ctypes.c_char_p]
        self._library.pb_emu_barrier.restype = ctypes.c_char_p

    def limit_shared_memory(self, kibibytes: int) -> None:
        """Give blocks no more than that from now on."""
        self._library.pb_emu_shared_limit(kibibytes * 1024)

    def configure(self, order: int = FORWARD, removed: str = "") -> None:
        """Run from now on in this order, without the barrier of this name."""
        self._library.pb_emu_configure(order, removed.encode())

    def met(self) -> list[str]:
        """Names of the barriers at which threads waited since the last configuration."""
        names = itertools.takewhile(lambda n: n is not None, map(self._library.pb_emu_barrier, itertools.count()))
        return [name.decode() for name in names if name]
