"""Which back end runs the operators, decided once and said aloud.

``reference`` is pure torch: the specification, any dtype and device, slow. ``cpu`` is C++ and ``cuda`` is CUDA, both
float32. ``gsplat`` is that package's projection, tile lists and blending on a GPU, with the reference for all else; it
is there to compare with. ``auto`` takes the fastest of the others that works on the device where the tensors are and
logs which and why; it never falls back in silence.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from panbench.errors import UserError
from panbench.ops import build, gsplat
from panbench.resources import asset

logger = logging.getLogger(__name__)

Backend = Literal["reference", "cpu", "cuda", "gsplat"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpu", "cuda", "gsplat")
_DEVICES: dict[Backend, str] = {"cpu": "cpu", "cuda": "cuda", "gsplat": "cuda"}
"""Where the tensors have to be; the reference takes them anywhere."""


@dataclass
class _State:
    """What this process found out: a failed build is not tried again."""

    loaded: bool = False
    failure: build.BuildError | None = None
    cuda_loaded: bool = False
    cuda_failure: build.BuildError | None = None
    chosen: Backend | None = None
    reason: str = ""
    automatic_for: str = ""
    """Device of an automatic choice; empty if the back end was asked for by name."""
    announced: set[str] = field(default_factory=set[str])


_state = _State()


def load_cpu() -> None:
    """Compile if needed and load the C++ operators.

    Raises:
        BuildError: with the cause; the same one again, without another try, in the rest of this process.
    """
    if _state.loaded:
        return
    if _state.failure is not None:
        raise _state.failure
    try:
        library = build.build()
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise build.BuildError(f"{library}: cannot load the operators: {error}; delete the folder") from error
    except build.BuildError as error:
        _state.failure = error
        raise
    from panbench.ops import autograd

    autograd.register()
    _state.loaded = True


def load_cuda() -> None:
    """Compile if needed and load the CUDA operators. They share schemas and gradients with the C++ ones.

    Raises:
        BuildError: without a GPU that torch can use, without nvcc, or as :func:`load_cpu`.
    """
    if _state.cuda_loaded:
        return
    if _state.cuda_failure is not None:
        raise _state.cuda_failure
    from panbench.ops import cuda

    try:
        architectures = _architectures()
        library = build.build_cuda(architectures)
        load_cpu()
        try:
            operators = cuda.Operators(cuda.Library(library, asset("csrc") / "cuda" / "api.h", cuda.current_stream))
        except OSError as error:
            raise build.BuildError(f"{library}: cannot load the operators: {error}; delete the folder") from error
    except build.BuildError as error:
        _state.cuda_failure = error
        raise
    cuda.register(operators)
    _state.cuda_loaded = True


def _architectures() -> tuple[str, ...]:
    """Compute capabilities of this machine's GPUs.

    Raises:
        BuildError: if torch can use none.
    """
    if torch.version.cuda is None:
        raise build.BuildError(f"torch {torch.__version__} is built without CUDA; install a CUDA build of it")
    if not torch.cuda.is_available():
        raise build.BuildError(f"torch {torch.__version__} finds no GPU; nvidia-smi says whether the driver does")
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(found))


def _load(backend: Backend) -> str:
    """Make a back end ready; says in a few words what it is."""
    if backend == "cpu":
        load_cpu()
        return "the C++ operators are compiled and loaded"
    if backend == "cuda":
        load_cuda()
        return "the CUDA operators are compiled and loaded"
    if backend == "gsplat":
        return f"gsplat {gsplat.load().__version__}"
    return "pure torch"


def choose(name: str | None = None, device: str = "cpu") -> Backend:
    """Fix the back end of this process: a name, ``auto``, or None for ``$PANBENCH_BACKEND`` (default ``auto``).

    Args:
        device: where the tensors are ("cpu", "cuda"); decides what ``auto`` takes.

    Raises:
        UserError: unknown name, or a named back end that does not work here.
    """
    wanted = name or os.environ.get("PANBENCH_BACKEND") or "auto"
    _state.automatic_for = device if wanted == "auto" else ""
    if wanted == "auto":
        fastest: Backend = {"cpu": "cpu", "cuda": "cuda"}.get(device, "reference")  # pyright: ignore[reportAssignmentType]
        try:
            _state.reason = f"auto: {_load(fastest)}"
            _state.chosen = fastest
        except build.BuildError as error:
            what = "CUDA" if fastest == "cuda" else "C++"
            _state.chosen, _state.reason = "reference", f"auto: the {what} operators do not work here: {error}"
            if device not in _state.announced:
                logger.warning("back end: reference (slow). %s", _state.reason)
    elif wanted in BACKENDS:
        _load(wanted)
        _state.chosen, _state.reason = wanted, "asked for"
    else:
        raise UserError(f"unknown back end {wanted!r}; there are auto, {', '.join(BACKENDS)}")
    if device not in _state.announced or not _state.automatic_for:
        logger.info("back end: %s (%s)", _state.chosen, _state.reason)
        _state.announced.add(device)
    return _state.chosen


def resolve(backend: Backend | None = None, device: str | None = None, *, rasterizing: bool = False) -> Backend:
    """The back end of one call: the one given, else the process's choice (made now if none was made).

    Args:
        device: where the call's tensors are; None if that does not matter.
        rasterizing: the call is one of those that gsplat has; for others its place is taken by the reference.

    Raises:
        UserError: a compiled back end that was asked for cannot work on that device, or not at all.
    """
    if backend is not None:
        _load(backend)
    elif _state.chosen is None or (device and _state.automatic_for and device != _state.automatic_for):
        backend = choose(device=device or "cpu")
    else:
        backend = _state.chosen
    if device and _DEVICES.get(backend, device) != device:
        raise UserError(f"the {backend} back end was asked for, but the tensors are on {device}; choose auto")
    return "reference" if backend == "gsplat" and not rasterizing else backend


def reason() -> str:
    """Why the process's back end was chosen; empty before that."""
    return _state.reason


def describe() -> list[tuple[str, bool, str]]:
    """(name, available, why) of every back end. Compiles the operators if that was not done yet."""
    out = [("reference", True, f"pure torch {torch.__version__}")]
    for name, load in (("cpu", load_cpu), ("cuda", load_cuda)):
        try:
            load()
            out.append((name, True, f"compiled operators in {build.cache_folder() / 'ops'}"))
        except build.BuildError as error:
            out.append((name, False, str(error)))
    try:
        out.append(("gsplat", True, f"{_load('gsplat')}, only if asked for by name"))
    except build.BuildError as error:
        out.append(("gsplat", False, f"optional: {error}"))
    return out
