"""Compiles a C++ file of this folder with the system's compiler and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from pathlib import Path

from panbench.ops.build import BuildError, cache_folder, compiler

COMMON_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared")
"""As projects commonly compile: for any processor of the family, serial."""
STRONG_FLAGS = (*COMMON_FLAGS, "-march=native", "-fopenmp", "-fno-math-errno")
"""For this machine alone, which shipped kernels are never compiled for: what is compiled so does not lose by flags."""


def load(name: str, flags: tuple[str, ...] = STRONG_FLAGS) -> ctypes.CDLL:
    """The library of ``NAME.cpp``, compiled at its first use with these flags.

    Raises:
        BuildError: no compiler, or an error in the source.
    """
    source = Path(__file__).parent / f"{name}.cpp"
    path, version = compiler()
    key = hashlib.sha256(source.read_bytes() + f"{path} {version} {flags}".encode()).hexdigest()[:16]
    library = cache_folder() / "peers" / f"{name}-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(".part")
        run = subprocess.run([path, *flags, str(source), "-o", str(part)], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            errors = [line for line in run.stderr.splitlines() if "error" in line] or ["unknown cause"]
            raise BuildError(f"compiling {source} failed: {errors[0].strip()}")
        part.replace(library)
    return ctypes.CDLL(str(library))
