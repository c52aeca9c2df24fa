"""Compiles the C++ operators on first use, once per machine and version, and loads them.

The build folder's name is a hash of sources, flags, compiler and torch, so nothing stale is ever loaded. A file lock
serialises concurrent builds; the system releases it when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from panbench.errors import UserError
from panbench.resources import asset

logger = logging.getLogger(__name__)

_LIBRARY = "panbench_cpu.so"
_COMMON = ("-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_WARNINGS = ("-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-psabi")
# Torch 2.11's stable ABI: newer torch loads it too.
_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"


class BuildError(UserError):
    """The operators cannot be compiled or loaded; the message says why and what to do."""


def cache_folder() -> Path:
    """Where panbench keeps what it can make again: ``$PANBENCH_CACHE``, else ``~/.cache/panbench``."""
    return Path(os.environ.get("PANBENCH_CACHE") or Path.home() / ".cache" / "panbench")


def compiler() -> tuple[str, str]:
    """Path and first version line of the C++ compiler (``$CXX``, else c++ or g++).

    Raises:
        BuildError: if there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        path = shutil.which(name)
        if path is not None:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            return path, (answer.stdout or answer.stderr).split("\n", 1)[0]
    what = f"$CXX={wanted} is not a program" if wanted else "no C++ compiler is installed"
    raise BuildError(f"{what}; install g++ (Debian: apt install g++) or choose the slow reference back end")


def _objects() -> list[tuple[str, str, tuple[str, ...]]]:
    """(object, source, flags) of everything that goes into the library."""
    abi = (_ABI, *(f"-isystem{path}" for path in _torch_includes()))
    tables = [("portable", ())]
    if platform.machine() in ("x86_64", "AMD64"):
        tables = [("v3", ("-march=x86-64-v3",)), ("v4", ("-march=x86-64-v4",)), *tables]
    have = tuple(f"-DPB_HAVE_{name.upper()}" for name, _ in tables if name != "portable")
    out: list[tuple[str, str, tuple[str, ...]]] = [("ops.o", "ops.cpp", abi)]
    out += [
        (f"{stem}.o", f"cpu/{stem}.cpp", have)
        for stem in ("project", "blend", "attend", "ssim", "normals", "mask_loss")
    ]
    for name, flags in tables:
        defines = (f"-DPB_TABLE=panbench_kernels_{name}", f'-DPB_NAME=\\"{name}\\"')
        out.append((f"kernels_{name}.o", "cpu/kernels.cpp", (*flags, *defines)))
    return out


def _torch_includes() -> list[str]:
    return [str(Path(torch.__file__).parent / "include")]


def _ninja_file(csrc: Path, cxx: str) -> str:
    libraries = Path(torch.__file__).parent / "lib"
    lines = [
        f"cxx = {cxx}",
        "rule compile",
        f"  command = $cxx {' '.join(_COMMON)} {' '.join(_WARNINGS)} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = $cxx -shared -fopenmp $in -L{libraries} -ltorch_cpu -Wl,-rpath,{libraries} -o $out.part "
        "&& mv $out.part $out",
    ]
    objects = _objects()
    for name, source, flags in objects:
        lines += [f"build {name}: compile {csrc / source}", f"  flags = {' '.join(flags)}"]
    lines += [f"build {_LIBRARY}: link {' '.join(name for name, _, _ in objects)}", f"default {_LIBRARY}", ""]
    return "\n".join(lines)


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build() -> Path:
    """Compile the CPU operators unless that was done before; returns the library.

    Raises:
        BuildError: no compiler, no ninja, a compile error (with its first line and the log), or an unwritable cache.
    """
    csrc = asset("csrc")
    cxx, version = compiler()
    digest = hashlib.sha256()
    for source in sorted([*csrc.glob("*.h"), *csrc.glob("*.cpp"), *(csrc / "cpu").glob("*.*")]):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(f"{cxx} {version} {torch.__version__} {platform.machine()} {_ninja_file(csrc, cxx)}".encode())
    folder = cache_folder() / "ops" / digest.hexdigest()[:16]
    library = folder / _LIBRARY
    if library.exists():
        return library
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja is None:
        raise BuildError("ninja is not installed; pip install ninja")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if library.exists():  # another process made it while we waited
                return library
            (folder / "build.ninja").write_text(_ninja_file(csrc, cxx))
            with Console(stderr=True).status(f"compiling the CPU operators with {version} (once, under a minute)"):
                run = subprocess.run([ninja], cwd=folder, capture_output=True, text=True, check=False)
            (folder / "build.log").write_text(run.stdout + run.stderr)
    except OSError as error:
        raise BuildError(
            f"{folder}: cannot build the operators there: {error}; set PANBENCH_CACHE to a folder that can be written"
        ) from error
    if run.returncode != 0 or not library.exists():
        lines = [line for line in run.stdout.splitlines() if "error:" in line] or ["unknown cause"]
        raise BuildError(f"compiling the CPU operators failed: {lines[0].strip()} (whole log: {folder / 'build.log'})")
    logger.info("compiled the CPU operators into %s", folder)
    return library
