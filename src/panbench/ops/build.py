"""Compiles the C++ and the CUDA operators on first use, once per machine and version.

The build folder's name is a hash of sources, flags, compiler and torch, so nothing stale is ever loaded. A file lock
serialises concurrent builds; the system releases it when its holder ends, however it ends.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from panbench.errors import UserError
from panbench.lock import in_turn
from panbench.resources import asset

logger = logging.getLogger(__name__)

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


def nvcc() -> tuple[str, str]:
    """Path and release of the CUDA compiler (on PATH, else in ``$CUDA_HOME``).

    Raises:
        BuildError: if there is none.
    """
    path = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(os.environ.get("CUDA_HOME", "")) / "bin"))
    if path is None:
        raise BuildError(
            "nvcc is neither on PATH nor in $CUDA_HOME; install the CUDA toolkit or choose the slow reference back end"
        )
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    lines = [line for line in answer.splitlines() if "release" in line]
    return path, lines[0].strip() if lines else "nvcc of an unknown release"


@dataclass(frozen=True)
class Recipe:
    """How a shared library is made.

    Attributes:
        title: what it is, for messages.
        library: its file name.
        compiler: name and version for messages; part of the key of the build folder.
        sources: every file that the result depends on.
        compile: command before the flags of an object, ``-c``, source and object.
        link: command before the objects, ``-o`` and the library; ``end`` follows the objects.
        objects: (object, source, flags).
    """

    title: str
    library: str
    compiler: str
    sources: tuple[Path, ...]
    compile: str
    link: str
    objects: tuple[tuple[str, Path, str], ...]
    end: str = ""

    def ninja_file(self) -> str:
        """Instructions for ninja. The library appears only when it is whole."""
        lines = [
            "rule compile",
            f"  command = {self.compile} $flags -c $in -o $out",
            "rule link",
            f"  command = {self.link} $in {self.end} -o $out.part && mv $out.part $out",
        ]
        for name, source, flags in self.objects:
            lines += [f"build {name}: compile {source}", f"  flags = {flags}"]
        names = " ".join(name for name, _, _ in self.objects)
        return "\n".join([*lines, f"build {self.library}: link {names}", f"default {self.library}", ""])

    def key(self) -> str:
        """Hash of everything that decides the result."""
        digest = hashlib.sha256()
        for source in sorted(self.sources):
            digest.update(source.name.encode() + source.read_bytes())
        digest.update(f"{self.compiler} {torch.__version__} {platform.machine()} {self.ninja_file()}".encode())
        return digest.hexdigest()[:16]


def _cpu_recipe() -> Recipe:
    csrc = asset("csrc")
    cxx, version = compiler()
    torch_folder = Path(torch.__file__).parent
    tables = [("portable", "")]
    if platform.machine() in ("x86_64", "AMD64"):
        tables = [("v3", "-march=x86-64-v3"), ("v4", "-march=x86-64-v4"), *tables]
    have = " ".join(f"-DPB_HAVE_{name.upper()}" for name, _ in tables if name != "portable")
    objects: list[tuple[str, Path, str]] = []
    for name, flags in tables:  # they take longest: first
        defines = f'-DPB_TABLE=panbench_kernels_{name} -DPB_NAME=\\"{name}\\"'
        objects.append((f"kernels_{name}.o", csrc / "cpu" / "kernels.cpp", f"{flags} {defines}"))
    objects.append(("ops.o", csrc / "ops.cpp", f"{_ABI} -isystem{torch_folder / 'include'}"))
    for stem in ("project", "blend", "attend", "ssim", "normals", "label_sums", "warping", "mixture"):
        objects.append((f"{stem}.o", csrc / "cpu" / f"{stem}.cpp", have))
    return Recipe(
        title="CPU operators",
        library="panbench_cpu.so",
        compiler=version,
        sources=(*csrc.glob("*.h"), *csrc.glob("*.cpp"), *(csrc / "cpu").glob("*.*")),
        compile=" ".join((cxx, *_COMMON, *_WARNINGS)),
        link=f"{cxx} -shared -fopenmp",
        end=f"-L{torch_folder / 'lib'} -ltorch_cpu -Wl,-rpath,{torch_folder / 'lib'}",
        objects=tuple(objects),
    )


def _cuda_recipe(architectures: tuple[str, ...]) -> Recipe:
    csrc = asset("csrc")
    command, release = nvcc()
    cxx, version = compiler()
    code = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in architectures)
    return Recipe(
        title=f"CUDA operators for {', '.join(f'sm_{a}' for a in architectures)}",
        library="panbench_cuda.so",
        compiler=f"{release}, {version}",
        sources=(*csrc.glob("*.h"), *(csrc / "cuda").glob("*.*")),
        compile=f"{command} -ccbin {cxx} -O3 -std=c++17 -lineinfo -Xcompiler -fPIC {code}",
        link=f"{command} -ccbin {cxx} -shared -cudart static {code}",
        objects=tuple((f"{path.stem}.o", path, "") for path in sorted((csrc / "cuda").glob("*.cu"))),
    )


def build() -> Path:
    """Compile the CPU operators unless that was done before; returns the library.

    Raises:
        BuildError: no compiler, no ninja, a compile error (with its first line and the log), or an unwritable cache.
    """
    return make(_cpu_recipe())


def build_cuda(architectures: tuple[str, ...]) -> Path:
    """Compile the CUDA operators for devices of these compute capabilities ("90" is 9.0); returns the library.

    Raises:
        BuildError: as :func:`build`, and where there is no nvcc.
    """
    return make(_cuda_recipe(architectures))


def make(recipe: Recipe) -> Path:
    """The library of a recipe, compiled if that was not done before.

    Raises:
        BuildError: as :func:`build`.
    """
    folder = cache_folder() / "ops" / recipe.key()
    library = folder / recipe.library
    if library.exists():
        return library
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja is None:
        raise BuildError("ninja is not installed; pip install ninja")
    try:
        with in_turn(folder):
            if library.exists():  # another process made it while we waited
                return library
            (folder / "build.ninja").write_text(recipe.ninja_file())
            message = f"compiling the {recipe.title} with {recipe.compiler} (once, about a minute)"
            console = Console(stderr=True)
            if not console.is_terminal:  # where no spinner is seen
                logger.info(message)
            with console.status(message):
                run = subprocess.run([ninja], cwd=folder, capture_output=True, text=True, check=False)
            (folder / "build.log").write_text(run.stdout + run.stderr)
    except OSError as error:
        raise BuildError(
            f"{folder}: cannot build the operators there: {error}; set PANBENCH_CACHE to a folder that can be written"
        ) from error
    if run.returncode != 0 or not library.exists():
        lines = [line for line in run.stdout.splitlines() if "error:" in line or "fatal" in line] or ["unknown cause"]
        raise BuildError(f"compiling the {recipe.title} failed: {lines[0].strip()} (whole log: {folder / 'build.log'})")
    logger.info("compiled the %s into %s", recipe.title, folder)
    return library
